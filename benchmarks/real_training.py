"""Labelled real scans as training cases: images and labels (VerSe values) cut to the part whose vertebrae are all labelled."""
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

TOTALSEGMENTATOR = {27: 24, 28: 23, 29: 22, 30: 21, 31: 20, 32: 19, 33: 18}   # its values for L5..L1, T12, T11 -> VerSe's


@dataclass(frozen=True)
class RealScan:
    """`label` None: the scan holds no vertebra. `above_mm`: what is kept above the uppermost labelled vertebra (None: everything)."""

    image: str
    label: str | None
    values: dict[int, int] | None = None
    above_mm: float | None = None


SCANS = {
    "verse005": RealScan("ct/verse/sub-verse005_ct.nii.gz", "ct/verse/sub-verse005_seg-vert_msk.nii.gz"),
    "verse008": RealScan("ct/verse/sub-verse008_ct.nii.gz", "ct/verse/sub-verse008_seg-vert_msk.nii.gz", above_mm=2.0),
    "tptbox": RealScan("ct/tptbox/sub-ct_label-22_ct.nii.gz", "ct/tptbox/sub-ct_seg-vert_label-22_msk.nii.gz"),
    "totalsegmentator": RealScan("ct/totalsegmentator/example_ct.nii.gz", "ct/totalsegmentator/example_ct_lumbar_ref.nii.gz",
                                 TOTALSEGMENTATOR),
    "leg": RealScan("ct/negative/STS_010_CT_image.nii.gz", None),
    "hand": RealScan("ct/negative/STS_019_CT_image.nii.gz", None),
}


def real_cases(data: Path, raw: Path) -> list[str]:
    """Write the scans of `data` into the raw dataset as real_NAME; returns the case names."""
    names = []
    for name, scan in SCANS.items():
        if (data / scan.image).exists():
            write_scan(data, raw, f"real_{name}", scan)
            names.append(f"real_{name}")
    return names


def write_scan(data: Path, raw: Path, name: str, scan: RealScan) -> None:
    from spineclue_v2.imageio.volume import Volume, read_labels, read_volume, write_volume

    image = read_volume(data / scan.image).reoriented("LPS")
    if scan.label is None:
        labels = Volume(np.zeros(image.array.shape, np.uint8), image.geometry)
    else:
        labels = read_labels(data / scan.label).reoriented("LPS")
        if scan.values is not None:
            table = np.zeros(256, np.uint8)
            table[list(scan.values)] = list(scan.values.values())
            labels = Volume(table[labels.array], labels.geometry)
    if scan.above_mm is not None:
        top = int(np.flatnonzero(labels.array.any((1, 2))).max() + 1 + scan.above_mm / image.geometry.spacing[0])
        stop = np.minimum([top, *image.array.shape[1:]], image.array.shape)
        image, labels = image.cropped(np.zeros(3, int), stop), labels.cropped(np.zeros(3, int), stop)
    write_volume(labels, raw / "labelsTr" / f"{name}.nii.gz")
    write_volume(image, raw / "imagesTr" / f"{name}_0000.nii.gz")
