"""The real scans of the exam, with what is known of them: points or masks, patients, and which shipped weights saw them.

Points are LPS millimetres (x, y, z), cranio-caudal. The data lie outside the repository and never enter it.
"""
from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

VERTEBRAE = (*[f"C{i}" for i in range(1, 8)], *[f"T{i}" for i in range(1, 13)], *[f"L{i}" for i in range(1, 6)])
NAME_OF_LABEL = dict(enumerate(VERTEBRAE, start=1)) | {25: "L6", 26: "S1", 27: "coccyx", 28: "T13"}

# A scan with a mask of its own instead of points; the one without points that lies on another's patient and world.
MASKS = {"verse/sub-verse005_ct.nii.gz": "verse/sub-verse005_seg-vert_msk.nii.gz",
         "tptbox/sub-ct_label-22_ct.nii.gz": "tptbox/sub-ct_seg-vert_label-22_msk.nii.gz"}
SHARED_WORLD = {"by_eye/taichi_lumbar_cor.nii.gz": "by_eye/taichi_lumbar_sag.nii.gz"}
UNLABELLED = ("unlabelled/lungdx_A0002_chest_ct_8mm.nii.gz",)
NEGATIVE = ("negative/STS_010_CT_image.nii.gz", "negative/STS_019_CT_image.nii.gz")
NOT_NORMAL = {"verse/sub-verse008_ct.nii.gz": {"L2"}}      # bodies that a reader graded as fractured
# Patients that the weights before the folds had seen, by stage; figures on them say nothing of other patients.
SEEN = {"verse/sub-verse005_ct.nii.gz": "localize, segment", "totalsegmentator/example_ct.nii.gz": "localize, segment",
        "verse/sub-verse008_ct.nii.gz": "localize", "tptbox/sub-ct_label-22_ct.nii.gz": "localize"}


@dataclass(frozen=True)
class Point:
    """A place in a vertebral body. `name` None: the level is not known; `required`: it lies whole enough in view to be asked for."""

    name: str | None
    place: tuple[float, float, float]
    required: bool = True


@dataclass(frozen=True)
class Scan:
    """A scan of the exam: `name` is its path below `ct/`; `points` None: nothing is known, () : there is no vertebra."""

    name: str
    path: Path
    points: tuple[Point, ...] | None
    not_normal: frozenset[str] = frozenset()

    @property
    def short(self) -> str:
        """Name for tables and files."""
        return Path(self.name).name.removesuffix(".nii.gz").removesuffix("_CT_image").removesuffix("_ct").removeprefix("sub-")

    @property
    def patient(self) -> str:
        """Scans of one patient share it."""
        return "taichi" if "taichi" in self.short else self.short


def load_scans(data: Path) -> list[Scan]:
    """All scans below `data`/ct that are there, in a fixed order. Raises SystemExit when the points are missing."""
    file = data / "ct" / "points_by_eye.json"
    if not file.is_file():
        raise SystemExit(f"{file} is missing; give the folder of the real scans with --data.")
    table = json.loads(file.read_text(encoding="utf-8"))
    found: dict[str, tuple[Point, ...] | None] = {name: points_of(entry) for name, entry in table.items()}
    found |= {name: found[other] for name, other in SHARED_WORLD.items() if other in found}
    found |= {name: mask_points(data / "ct" / mask) for name, mask in MASKS.items() if (data / "ct" / mask).is_file()}
    found |= dict.fromkeys(UNLABELLED)
    found |= dict.fromkeys(NEGATIVE, ())
    scans = [Scan(name, data / "ct" / name, points, frozenset(NOT_NORMAL.get(name, ()))) for name, points in sorted(found.items())]
    return [scan for scan in scans if scan.path.is_file()]


def points_of(entry: dict[str, Any]) -> tuple[Point, ...]:
    """Points of one entry of `points_by_eye.json`: `points` are asked for, the sacrum and `border` are not."""
    sure = entry.get("levels_sure", True)
    rows = [Point(name if sure else None, tuple(place), name != "S1") for name, place in entry["points"]]
    rows += [Point(name, tuple(place), False) for name, place in entry.get("border", [])]
    return tuple(sorted(rows, key=lambda point: -point.place[2]))


def mask_points(path: Path) -> tuple[Point, ...]:
    """A point in each vertebra of a label map (VerSe values): the place deepest inside its mask, which lies in the body."""
    import SimpleITK as sitk
    from scipy.ndimage import distance_transform_edt

    image = sitk.DICOMOrient(sitk.ReadImage(str(path)), "LPS")
    array, spacing = sitk.GetArrayFromImage(image), image.GetSpacing()[::-1]
    rows = []
    for value in np.unique(array):
        if int(value) not in NAME_OF_LABEL:
            continue
        depth = distance_transform_edt(np.pad(array == value, 1, mode="edge"), sampling=spacing)[1:-1, 1:-1, 1:-1]
        index = np.unravel_index(int(depth.argmax()), depth.shape)
        rows.append(Point(NAME_OF_LABEL[int(value)], image.TransformIndexToPhysicalPoint([int(i) for i in index[::-1]])))
    return tuple(sorted(rows, key=lambda point: -point.place[2]))
