"""VerSe19 and VerSe20 (Sekuboyina et al. 2021; CC BY-SA 4.0), both releases: the subject-based one and the MICCAI challenge's.

Subject-based: `.../rawdata/sub-X/sub-X[_split-Y][_dir-Z]_ct.nii.gz` with `derivatives/sub-X/<same stem>_seg-vert_msk.nii.gz`
and `_seg-subreg_ctd.json` (older `_seg-vb_ctd.json`). MICCAI: `verseNNN[_CT-...]_seg.nii.gz` beside the image. The folder says
the set: validation was the public test, test the hidden one. All parts of a patient are one patient.
"""
from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from pathlib import Path

from spineclue_v2.anatomy import NAME_OF_LABEL, VERTEBRA_LABELS
from spineclue_v2.errors import InputError

from .common import TRAINING, Case, scans_below, stem, write_dataset

_CENTROIDS = ("_seg-subreg_ctd.json", "_seg-vb_ctd.json")


def convert(source: Path, folder: Path, release: str = "VerSe", num_processes: int = 0, grades: Path | None = None) -> list[str]:
    """Convert the VerSe release at `source`; `grades`: table with columns subject, verse_label, genant_grade."""
    cases, skipped = find_cases(source, read_grades(grades or _grades_table(source)))
    if not cases:
        raise InputError(f"{source} holds no VerSe scan with labels; expected rawdata/sub-X/*_ct.nii.gz with derivatives/sub-X/"
                         "*_seg-vert_msk.nii.gz, or verseNNN.nii.gz with verseNNN_seg.nii.gz.")
    return write_dataset(cases, folder, f"{release}, converted from the public release", skipped, num_processes=num_processes,
                         licence="CC BY-SA 4.0", reference="https://github.com/anjany/verse")


def find_cases(source: Path, grades: dict[str, dict[str, int]]) -> tuple[list[Case], dict[str, str]]:
    """Cases of both layouts below `source`, and the scans that lack labels."""
    source = source.resolve()
    cases, skipped = [], {}
    files = scans_below(source)
    for path in files:
        name = stem(path)
        if name.endswith("_ct") and path.parent.parent.name == "rawdata":
            base, derived = name[:-3], path.parent.parent.parent / "derivatives" / path.parent.name
            mask = derived / f"{base}_seg-vert_msk.nii.gz"
            centroids = next((derived / (base + ending) for ending in _CENTROIDS if (derived / (base + ending)).is_file()), None)
            subject = path.parent.name
        elif name.endswith("_seg"):
            base = name[:-4]
            image = _miccai_image(path, base, files)
            if image is None:
                skipped[base] = "no image beside the labels"
                continue
            path, mask, centroids, subject = image, path, None, "sub-" + re.split(r"[_-]", base)[0]
        else:
            continue
        if not mask.is_file():
            skipped[base] = "no vertebra mask (_seg-vert_msk)"
            continue
        cases.append(Case(base, path, mask, patient=subject, part=part_of(path.relative_to(source.parent)), centroids=centroids,
                          grades=_grades_of(base, subject, grades)))
    return cases, skipped


def part_of(path: Path) -> str:
    """Set of a scan from its path below the release: training, public (validation) or hidden (test)."""
    for folder in path.parents:
        name = folder.name.lower()
        if "valid" in name:
            return "public"
        if "test" in name:
            return "hidden"
        if "train" in name:
            return TRAINING
    return TRAINING


def read_grades(path: Path | None) -> dict[str, dict[str, int]]:
    """subject -> {level: Genant grade} from a table with subject, verse_label, genant_grade; empty without a table."""
    if path is None:
        return {}
    grades: dict[str, dict[str, int]] = {}
    with open(path, newline="", encoding="utf-8-sig") as file:
        rows = csv.DictReader(file)
        missing = {"subject", "verse_label", "genant_grade"} - set(rows.fieldnames or ())
        if missing:
            lacks = ", ".join(sorted(missing))
            raise InputError(f"{path} lacks the columns {lacks}; expected subject, verse_label, genant_grade.")
        for row in rows:
            label, grade = int(row["verse_label"]), row["genant_grade"].strip()
            if label in VERTEBRA_LABELS and grade.isdigit():
                grades.setdefault(row["subject"], {})[NAME_OF_LABEL[label]] = int(grade)
    return grades


def _grades_table(source: Path) -> Path | None:
    return next((p for p in sorted(source.rglob("*genant*.csv"))), None)


def _grades_of(base: str, subject: str, grades: dict[str, dict[str, int]]) -> dict[str, int]:
    """By scan first (a split part carries the old id: sub-verse401_split-verse253), then by subject."""
    split = re.search(r"split-(verse\d+)", base)
    for key in ([f"sub-{split[1]}"] if split else []) + [base, subject]:
        if key in grades:
            return grades[key]
    return {}


def _miccai_image(mask: Path, base: str, files: Sequence[Path]) -> Path | None:
    exact = mask.with_name(f"{base}.nii.gz")
    if exact.is_file():
        return exact
    scan = re.split(r"[_-]", base)[0]
    beside = [f for f in files if f.parent == mask.parent and re.match(rf"{re.escape(scan)}([._-]|$)", f.name)
              and not re.search(r"_seg|_msk", f.name)]
    return beside[0] if len(beside) == 1 else None
