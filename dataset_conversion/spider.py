"""SPIDER (van der Graaf et al. 2024; CC BY 4.0): lumbar MR, `images/N_t1.mha`, `N_t2.mha`, `N_t2_SPACE.mha`, `masks/` likewise.

Vertebrae are counted from below (1 = L5 as far as counting can tell), 201.. are the discs below them; 100, the canal, is dropped. All
series of a patient are one patient; `overview.csv` (column subset) makes the public test set of its validation patients.
"""
from __future__ import annotations

import csv
from pathlib import Path

from spineclue_v2.anatomy import LEVELS
from spineclue_v2.anatomy.structures import LABELS, values_by_name
from spineclue_v2.errors import InputError

from .common import TRAINING, Case, scans_below, stem, write_dataset

NAMES = {i + 1: level for i, level in enumerate(reversed(LEVELS))}
NAMES |= dict.fromkeys((25, 100), "other")
NAMES |= {i + 201: f"{upper}/{lower}" for i, (lower, upper) in enumerate(zip(("S", *reversed(LEVELS)), reversed(LEVELS), strict=False))}
# Bodies cut by the border carry their number plus 100.
NAMES |= {i + 101: level for i, level in enumerate(reversed(LEVELS))}


def convert(source: Path, folder: Path, num_processes: int = 0) -> list[str]:
    """Convert SPIDER at `source` into `folder`."""
    files = scans_below(source, (".mha", ".nii.gz"))
    masks = {stem(f): f for f in files if f.parent.name == "masks"}
    validation = _validation(source)
    cases, skipped = [], {}
    for path in (f for f in files if f.parent.name == "images"):
        name = stem(path)
        if name not in masks:
            skipped[name] = "no mask"
            continue
        part = "public" if name in validation else TRAINING
        patient = f"spider_{name.split('_')[0]}"
        cases.append(Case(f"spider_{name}", path, masks[name], patient=patient, part=part, values=values_by_name(NAMES)))
    if not cases:
        raise InputError(f"{source} holds no SPIDER case; expected images/N_t2.mha with masks/N_t2.mha.")
    return write_dataset(cases, folder, "SPIDER, vertebrae and discs, counted from L5 upwards", skipped, "T2", num_processes, labels=LABELS,
                         licence="CC BY 4.0", reference="https://zenodo.org/records/10159290")


def _validation(source: Path) -> set[str]:
    path = next(iter(sorted(source.rglob("overview.csv"))), None)
    if path is None:
        return set()
    with open(path, newline="", encoding="utf-8-sig") as file:
        return {row.get("new_file_name", "") for row in csv.DictReader(file) if row.get("subset", "").lower().startswith("valid")}
