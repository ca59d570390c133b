"""CTSpine1K (Deng et al. 2021, arXiv 2105.14711; CC BY-NC-SA): COLONOG, HNSCC, MSD liver and COVID-19 scans, VerSe label values.

Layout of the hub's copy: `raw_data/volumes/<source>/*.nii.gz` and `raw_data/labels/<source>/*_seg.nii.gz`; any other folders do,
images and labels are matched by name. `data_split.txt` (trainset, test_public, test_private) makes the test sets.
"""
from __future__ import annotations

import logging
import re
from pathlib import Path

from spineclue_v2.errors import InputError

from .common import TRAINING, Case, scans_below, stem, write_dataset

logger = logging.getLogger(__name__)

# Reported upstream and never fixed (github.com/MIRACLE-Center/CTSpine1K, issues 13 and 15): labels with a level left out or
# shifted. They are skipped unless `keep_known_errors`; every other case goes through the anatomy checks of the fingerprint.
KNOWN_ERRORS = {
    "1.3.6.1.4.1.9328.50.4.0103": "labels not consecutive (upstream issue 13)",
    "1.3.6.1.4.1.9328.50.4.0291": "label 22 left out (upstream issue 13)",
    "1.3.6.1.4.1.9328.50.4.0730": "label 22 left out (upstream issue 13)",
    "1.3.6.1.4.1.9328.50.4.0482": "upper levels shifted by one (upstream issue 15)",
    "1.3.6.1.4.1.9328.50.4.0500": "upper levels shifted by one (upstream issue 15)",
}
SETS = {"trainset": TRAINING, "test_public": "public", "test_private": "hidden"}
SPLIT_FILE = "data_split.txt"


def convert(source: Path, folder: Path, num_processes: int = 0, keep_known_errors: bool = False) -> list[str]:
    """Convert CTSpine1K at `source` into `folder`."""
    cases, skipped = find_cases(source, keep_known_errors)
    if not cases:
        raise InputError(f"{source} holds no CTSpine1K labels (*_seg.nii.gz) with their images.")
    return write_dataset(cases, folder, "CTSpine1K, converted from the public release", skipped, num_processes=num_processes,
                         licence="CC BY-NC-SA 4.0", reference="https://github.com/MIRACLE-Center/CTSpine1K")


def find_cases(source: Path, keep_known_errors: bool = False) -> tuple[list[Case], dict[str, str]]:
    """Cases with labels below `source`, and what is skipped and why."""
    files = scans_below(source)
    labels = {stem(f)[:-4]: f for f in files if stem(f).endswith("_seg")}
    images = {stem(f): f for f in files if not stem(f).endswith("_seg")}
    parts = read_split(source)
    cases, skipped = [], {}
    for name in sorted(labels | images):
        if name not in images:
            skipped[name] = "no image"
        elif name not in labels:
            skipped[name] = "no labels"
        elif name in KNOWN_ERRORS and not keep_known_errors:
            skipped[name] = KNOWN_ERRORS[name]
        elif parts and name not in parts:
            skipped[name] = f"not in {SPLIT_FILE}"
        else:
            cases.append(Case(name, images[name], labels[name], patient=name, part=parts.get(name, TRAINING)))
    return cases, skipped


def read_split(source: Path) -> dict[str, str]:
    """Case -> set from the dataset's split file; empty (everything is training) without one."""
    path = next((p for p in sorted(source.rglob("*.txt")) if re.search(r"data_?split", p.name, re.IGNORECASE)), None)
    if path is None:
        logger.warning("%s has no %s: every case becomes a training case.", source, SPLIT_FILE)
        return {}
    parts, current = {}, TRAINING
    for line in path.read_text(encoding="utf-8").splitlines():
        text = line.strip()
        if text.rstrip(":") in SETS:
            current = SETS[text.rstrip(":")]
        elif text:
            parts[stem(Path(text))] = current
    return parts
