"""MRSpineSeg challenge (Pang et al. 2021): `CaseN.nii.gz` with `mask_caseN.nii.gz`, T2 MR, sacrum and L5..T9 numbered upwards.

Discs (11..19) become background: vertebrae are what this project names.
"""
from __future__ import annotations

import re
from pathlib import Path

from spineclue_v2.errors import InputError

from .common import Case, scans_below, stem, verse_by_name, write_dataset

NAMES = {1: "sacrum", 2: "L5", 3: "L4", 4: "L3", 5: "L2", 6: "L1", 7: "T12", 8: "T11", 9: "T10", 10: "T9"}
NAMES |= dict.fromkeys(range(11, 20), "disc")


def convert(source: Path, folder: Path, num_processes: int = 0) -> list[str]:
    """Convert MRSpineSeg at `source` into `folder`."""
    files = scans_below(source)
    masks = {match[1]: f for f in files if (match := re.fullmatch(r"mask_case(\d+)", stem(f), re.IGNORECASE))}
    cases, skipped = [], {}
    for path in files:
        match = re.fullmatch(r"case(\d+)", stem(path), re.IGNORECASE)
        if not match:
            continue
        name = f"Case{match[1]}"
        if match[1] not in masks:
            skipped[name] = "no mask (unlabelled test scan)"
            continue
        cases.append(Case(name, path, masks[match[1]], patient=name, values=verse_by_name(NAMES)))
    if not cases:
        raise InputError(f"{source} holds no MRSpineSeg case; expected CaseN.nii.gz with mask_caseN.nii.gz.")
    return write_dataset(cases, folder, "MRSpineSeg, vertebrae only", skipped, "T2", num_processes,
                         reference="https://www.spinesegmentation-challenge.com")
