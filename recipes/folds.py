"""The three folds of the real scans, by patient: `python -m recipes.folds DATA -o folds.json`.

Weights of fold f are trained without the patients of fold f. The patients that earlier shipped weights of localize or segment were
trained on lie in fold 0, whose trainings start from weights that saw synthetic spines only; the other two folds may start from the
shipped weights. Kinds of scans (necks, chests, trunks, lumbar spines, wide fields) are spread over the folds by hand, the necks in turn.
"""
from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

FOLDS = 3
SEEN_BY_SHIPPED = {   # patient -> stages whose earlier shipped weights were trained on it
    "verse005": ("localize", "segment"), "verse008": ("localize",), "tptbox": ("localize",),
    "totalsegmentator": ("localize", "segment"), "STS_010": ("localize",), "STS_019": ("localize",)}
PATIENTS: dict[str, tuple[int, tuple[str, ...]]] = {   # patient -> (fold, its scans below the data folder)
    "verse005": (0, ("ct/verse/sub-verse005_ct.nii.gz",)),
    "verse008": (0, ("ct/verse/sub-verse008_ct.nii.gz",)),
    "tptbox": (0, ("ct/tptbox/sub-ct_label-22_ct.nii.gz",)),
    "totalsegmentator": (0, ("ct/totalsegmentator/example_ct.nii.gz",)),
    "STS_010": (0, ("ct/negative/STS_010_CT_image.nii.gz",)),
    "STS_019": (0, ("ct/negative/STS_019_CT_image.nii.gz",)),
    "lidc0117": (0, ("ct/by_eye/lidc0117_lowchest_75mm.nii.gz",)),
    "rider": (1, ("ct/unlabelled/rider_chest_1p5mm.nii.gz",)),
    "elastix": (1, ("ct/unlabelled/elastix_lung_baseline.nii.gz",)),
    "taichi": (1, ("ct/by_eye/taichi_lumbar_sag.nii.gz", "ct/by_eye/taichi_lumbar_cor.nii.gz")),
    "c3n01192": (1, ("ct/by_eye/cptac_c3n01192_c1_c3.nii.gz",)),
    "STS_002": (1, ("ct/unlabelled/STS_002_CT_image.nii.gz",)),
    "cmb": (2, ("ct/unlabelled/cmb_chest_1p5x2p5mm.nii.gz",)),
    "pancreas": (2, ("ct/by_eye/pancreas_ct_cb_001.nii.gz",)),
    "c3l00189": (2, ("ct/by_eye/cptac_c3l00189_5mm.nii.gz",)),
    "lungdx": (2, ("ct/unlabelled/lungdx_A0002_chest_ct_8mm.nii.gz",)),
}


def patients(data: Path) -> dict[str, tuple[int, tuple[str, ...]]]:
    """Every patient of the data folder: (fold, scans)."""
    necks = sorted(path.name for path in (data / "ct/necks_coarse").glob("pt_*.nii.gz"))
    return PATIENTS | {name.removesuffix(".nii.gz"): (number % FOLDS, (f"ct/necks_coarse/{name}",)) for number, name in enumerate(necks)}


def table(data: Path) -> dict[str, Any]:
    """What folds.json holds: patient -> fold, scan path (below the data folder) -> fold and -> patient, and what was seen before."""
    known = patients(data)
    return {"folds": FOLDS, "patients": {name: fold for name, (fold, _) in known.items()},
            "scans": {scan: fold for fold, scans in known.values() for scan in scans},
            "patient_of_scan": {scan: name for name, (_, scans) in known.items() for scan in scans},
            "seen_by_earlier_shipped_weights": {name: list(stages) for name, stages in SEEN_BY_SHIPPED.items()}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="folder of the real scans")
    parser.add_argument("-o", type=Path, required=True, help="file to write")
    args = parser.parse_args()
    args.o.write_text(json.dumps(table(args.data), indent=1) + "\n")


if __name__ == "__main__":
    main()
