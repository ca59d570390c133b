"""Scans of the evidence recipes: coarse CT (5 mm, int16 HU, LPS) with body centres and level names, real ones with patient and fold.

`python -m recipes.evidence_data DATA WORK --folds folds.json` writes every real scan that has points or masks to WORK/real. Other recipes
ask for another grid with --spacing, in a WORK of their own.
"""
from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

SPACING_MM = 5.0
POINTS = "ct/points_by_eye.json"
MASKS = {"ct/verse/sub-verse005_ct.nii.gz": "ct/verse/sub-verse005_seg-vert_msk.nii.gz",
         "ct/tptbox/sub-ct_label-22_ct.nii.gz": "ct/tptbox/sub-ct_seg-vert_label-22_msk.nii.gz",
         "ct/verse/sub-verse008_ct.nii.gz": "ct/verse/sub-verse008_seg-vert_msk.nii.gz"}
SAME_PATIENT = {"ct/by_eye/taichi_lumbar_cor.nii.gz": "by_eye/taichi_lumbar_sag.nii.gz"}
"""Another reconstruction of the same examination: the points hold for it, since both lie in scanner coordinates."""
NEGATIVES = ("ct/negative/STS_010_CT_image.nii.gz", "ct/negative/STS_019_CT_image.nii.gz")


@dataclass(frozen=True)
class Scan:
    """`volume`: coarse CT. `names` and `centres` (n, 3) LPS mm, cranio-caudal; names may hold S1. `fold`: -1 for phantoms."""

    case: str
    volume: Any
    names: tuple[str, ...]
    centres: np.ndarray
    patient: str = ""
    fold: int = -1


def coarse_scan(volume: Any, spacing_mm: float = SPACING_MM) -> Any:
    """CT on a coarse grid, by default the appearance network's."""
    from spineclue_v2.plans.data import Data
    from spineclue_v2.preprocessing.resampling import to_network_space

    return to_network_space(volume, Data(spacing_mm))


def save_scan(path: Path, volume: Any, names: list[str], centres: np.ndarray, **more: Any) -> None:
    order = np.argsort(-centres[:, 2], kind="stable") if len(names) else np.zeros(0, int)
    with open(path, "wb") as file:
        np.savez_compressed(file, ct=volume.array, geometry=json.dumps(volume.geometry.to_json()), names=np.array(names, "U4")[order],
                            centres=np.asarray(centres, float).reshape(-1, 3)[order], **more)


def load_scan(path: Path) -> Scan:
    from spineclue_v2.imageio.grid import ImageGrid
    from spineclue_v2.imageio.volume import Volume

    with np.load(path) as content:
        volume = Volume(content["ct"], ImageGrid.from_json(json.loads(str(content["geometry"]))))
        return Scan(path.stem, volume, tuple(map(str, content["names"])), content["centres"],
                    str(content["patient"]) if "patient" in content else path.stem, int(content["fold"]) if "fold" in content else -1)


def real_points(data: Path) -> dict[str, tuple[list[str], np.ndarray]]:
    """Names and centres (n, 3) LPS mm of every real scan whose levels are known, by its path under `data`."""
    from spineclue_v2.anatomy import NAME_OF_LABEL
    from spineclue_v2.imageio.volume import read_labels
    from spineclue_v2.preprocessing.ct import vertebra_properties

    by_eye = json.loads((data / POINTS).read_text())
    found = {}
    for key, entry in by_eye.items():
        if entry["levels_sure"]:
            points = [*entry["points"], *_cut_sacrum(entry)]
            found[f"ct/{key}"] = [p[0] for p in points], np.array([p[1] for p in points], float)
    for scan, mask in MASKS.items():
        labels = read_labels(data / mask)
        properties = vertebra_properties(labels.reoriented("LPS"))
        geometry = labels.reoriented("LPS").geometry
        names = [NAME_OF_LABEL[p["label"]] for p in properties.values()]
        centres = geometry.index_to_world(np.array([p["body_centre"] for p in properties.values()]))
        if scan in found:                                    # the sacrum by eye beside the masks
            extra = [(n, c) for n, c in zip(*found[scan], strict=True) if n not in names]
            names, centres = names + [n for n, _ in extra], np.vstack([centres, *(c[None] for _, c in extra)])
        found[scan] = names, centres
    for scan, other in SAME_PATIENT.items():
        found[scan] = found[f"ct/{other}"]
    return found


def _cut_sacrum(entry: dict[str, Any]) -> list[Any]:
    return [p[:2] for p in entry.get("border", []) if p[0] == "S1"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="folder of the real scans")
    parser.add_argument("work", type=Path, help="folder of the recipe")
    parser.add_argument("--folds", required=True, type=Path)
    parser.add_argument("--spacing", type=float, default=SPACING_MM, help="mm")
    args = parser.parse_args()
    from spineclue_v2.imageio.volume import read_volume
    from spineclue_v2.utilities.files import atomic_path

    folder = args.work / "real"
    folder.mkdir(parents=True, exist_ok=True)
    folds = json.loads(args.folds.read_text())
    found = real_points(args.data) | {scan: ([], np.zeros((0, 3))) for scan in NEGATIVES}
    for scan, (names, centres) in found.items():
        target = folder / f"{Path(scan).name.removesuffix('.nii.gz')}.npz"
        if not target.exists():
            with atomic_path(target) as temporary:
                save_scan(temporary, coarse_scan(read_volume(args.data / scan), args.spacing), names, centres,
                          patient=folds["patient_of_scan"][scan], fold=folds["scans"][scan])
            print(target.name, names, flush=True)


if __name__ == "__main__":
    main()
