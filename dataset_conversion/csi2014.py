"""CSI 2014 challenge (SpineWeb data set 2; Yao et al. 2016): ten thoracolumbar CTs, `caseN.mhd` with `caseN_label.mhd`.

Each training scan shows all of T1..L5; the stored values name bodies, not levels, so levels follow from their height. The
intensities are 12-bit counts from 0: 1024 less gives Hounsfield units. File names are known from published code, not seen.
"""
from __future__ import annotations

from pathlib import Path

from spineclue_v2.anatomy import LUMBAR, THORACIC
from spineclue_v2.errors import InputError

from .common import Case, scans_below, stem, write_dataset

ENDINGS = (".mhd", ".mha", ".nii.gz")
HU_OFFSET = -1024


def convert(source: Path, folder: Path, num_processes: int = 0) -> list[str]:
    """Convert the CSI 2014 training scans at `source` into `folder`."""
    files = {stem(f): f for f in scans_below(source, ENDINGS)}
    cases, skipped = [], {}
    for name, path in sorted(files.items()):
        if name.endswith("_label"):
            continue
        if f"{name}_label" not in files:
            skipped[name] = "no labels"
            continue
        cases.append(Case(name, path, files[f"{name}_label"], patient=name, hu_offset=_offset(path),
                          top_to_bottom=THORACIC + LUMBAR))
    if not cases:
        raise InputError(f"{source} holds no CSI 2014 case; expected caseN.mhd with caseN_label.mhd.")
    return write_dataset(cases, folder, "CSI 2014 (SpineWeb data set 2)", skipped, num_processes=num_processes,
                         reference="https://doi.org/10.1016/j.compmedimag.2015.12.006")


def _offset(path: Path) -> int:
    """-1024 where air is stored as 0, 0 where the file is in Hounsfield units already."""
    from spineclue_v2.imageio.volume import read_volume

    return HU_OFFSET if int(read_volume(path).array.min()) >= 0 else 0
