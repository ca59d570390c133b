"""MRSpineSeg challenge (Pang et al. 2021): `CaseN.nii.gz` with `mask_caseN.nii.gz`, T2 MR, sacrum and L5..T9 numbered upwards.

Bodies and discs are kept (`structures.LABELS`). Scans without a mask are left out: who wants to learn from them puts them into
imagesUl/ himself, so that a test set is never trained on by accident.
"""
from __future__ import annotations

import re
from pathlib import Path

from spineclue_v2.anatomy.structures import LABELS, values_by_name
from spineclue_v2.errors import InputError

from .common import Case, scans_below, stem, write_dataset

NAMES = {1: "sacrum", 2: "L5", 3: "L4", 4: "L3", 5: "L2", 6: "L1", 7: "T12", 8: "T11", 9: "T10", 10: "T9"}
NAMES |= dict(enumerate(("L5/S", "L4/L5", "L3/L4", "L2/L3", "L1/L2", "T12/L1", "T11/T12", "T10/T11", "T9/T10"), 11))


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
            skipped[name] = "no mask (unlabelled test scan; copy it to imagesUl to learn from it)"
            continue
        cases.append(Case(name, path, masks[match[1]], patient=name, values=values_by_name(NAMES)))
    if not cases:
        raise InputError(f"{source} holds no MRSpineSeg case; expected CaseN.nii.gz with mask_caseN.nii.gz.")
    return write_dataset(cases, folder, "MRSpineSeg, bodies and discs", skipped, "T2", num_processes, labels=LABELS,
                         reference="https://www.spinesegmentation-challenge.com")
