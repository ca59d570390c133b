"""TotalSegmentator v2 dataset (Wasserthal et al. 2023; CC BY 4.0): `sNNNN/ct.nii.gz`, one binary file per structure beside it.

`meta.csv` (image_id; split) names the test scans. Scans without a vertebra are skipped. Version 2's `sacrum` has a hole where
`vertebrae_S1` lies (github.com/wasserth/TotalSegmentator, issue 249): both together are the sacrum here.
"""
from __future__ import annotations

import csv
from pathlib import Path

from spineclue_v2.anatomy import LEVELS
from spineclue_v2.errors import InputError

from .common import TRAINING, Case, write_dataset

# Scans in which a radiologist found vertebrae mixed up (github.com/wasserth/TotalSegmentator, issue 394). They are skipped unless
# `keep_known_errors`; the issue estimates far more, so that the anatomy checks of the fingerprint deserve a look here.
KNOWN_ERRORS = ("s0071", "s0128", "s0350", "s0513", "s0603", "s0676", "s0941")
SETS = {"train": TRAINING, "val": TRAINING, "test": "public"}


def convert(source: Path, folder: Path, num_processes: int = 0, keep_known_errors: bool = False) -> list[str]:
    """Convert the TotalSegmentator dataset at `source` into `folder`."""
    cases, skipped = find_cases(source, keep_known_errors)
    if not cases:
        raise InputError(f"{source} holds no scan with vertebrae; expected sNNNN/ct.nii.gz with "
                         "sNNNN/segmentations/vertebrae_*.nii.gz.")
    return write_dataset(cases, folder, "TotalSegmentator v2, vertebrae only", skipped, num_processes=num_processes,
                         licence="CC BY 4.0", reference="https://zenodo.org/records/10047292")


def find_cases(source: Path, keep_known_errors: bool = False) -> tuple[list[Case], dict[str, str]]:
    """Cases with at least one vertebra file, and what is skipped."""
    parts = _read_meta(source)
    cases, skipped = [], {}
    for image in sorted(source.rglob("ct.nii.gz")):
        name, where = image.parent.name, image.parent / "segmentations"
        files = [("sacrum", where / "sacrum.nii.gz"), ("sacrum", where / "vertebrae_S1.nii.gz"),
                 *((level, where / f"vertebrae_{level}.nii.gz") for level in LEVELS)]
        structures = [(level, path) for level, path in files if path.is_file()]
        if all(level == "sacrum" for level, _ in structures):
            skipped[name] = "no vertebra file"
            continue
        if name in KNOWN_ERRORS and not keep_known_errors:
            skipped[name] = "vertebrae mixed up (upstream issue 394)"
            continue
        cases.append(Case(name, image, structures=structures, patient=name, part=SETS.get(parts.get(name, "train"), TRAINING)))
    return cases, skipped


def _read_meta(source: Path) -> dict[str, str]:
    path = source / "meta.csv"
    if not path.is_file():
        return {}
    text = path.read_text(encoding="utf-8-sig").splitlines()
    rows = csv.DictReader(text, delimiter=";" if text and ";" in text[0] else ",")
    return {row["image_id"]: row.get("split", "train") for row in rows if row.get("image_id")}
