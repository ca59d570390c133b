"""CT or MR: what a scan's DICOM files say, or else what its values look like."""
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .volume import Volume

MODALITIES = ("CT", "MR")
NEGATIVE_HU = -20
CT_FROM = 0.10         # of the voxels below NEGATIVE_HU: fat and air. 17 kinds of real CT, crops within the body too, have 0.26 or more
MR_UP_TO = 0.02        # 22 real MRs have 0.004 or less
UNSHIFTED = (900, 1150)      # where soft tissue lies in CT stored without its offset of 1024
UNSHIFTED_FROM = 0.3         # of the voxels above AIR: more than MR holds in so narrow a band
AIR = 100
SOFT, SOFT_FROM = (15, 75), 0.55         # HU of soft tissue, and its part of the voxels: 0.48 at most in 22 real MRs
DARK, DARK_UP_TO = (-20, 10), 0.15       # of MR's background and bone: 0.19 at least in them
SAMPLED = 2_000_000    # voxels looked at


@dataclass(frozen=True)
class ScanModality:
    """What a scan is.

    Attributes:
        name: "CT", "MR", another DICOM modality such as "PT", or "" where it cannot be told.
        by_tag: said by the DICOM files, not by values.
        negative: part of the voxels below -20; None where values were not looked at.
    """

    name: str
    by_tag: bool
    negative: float | None = None

    @property
    def evidence(self) -> str:
        """How it is known, for a sentence."""
        if self.by_tag:
            return "its DICOM files say so"
        share = 100 * (self.negative or 0.0)
        return f"{share:.1f} % of its values lie below {NEGATIVE_HU}; CT has {100 * CT_FROM:.0f} % or more, MR hardly any"


def find_modality(volume: Volume, source: str | Path | None = None) -> ScanModality:
    """What `volume` is; `source`: where it was read from (a folder of DICOM files, or a file)."""
    tag = stored_modality(volume.files[0] if volume.files else source)
    return ScanModality(tag, True) if tag else modality_of_values(volume.array)


def stored_modality(source: str | Path | None) -> str:
    """DICOM's Modality (0008,0060) of a file, or of the first image of a folder; "" where there is none."""
    if source is None:
        return ""
    place = Path(source)
    try:
        candidates = sorted(entry for entry in place.iterdir() if entry.is_file()) if place.is_dir() else [place]
    except OSError:
        return ""
    found = (_tag(path) for path in candidates)
    return next((tag for tag in found if tag), "")


def _tag(path: Path) -> str:
    import pydicom

    try:
        with open(path, "rb") as file:
            file.seek(128)
            if file.read(4) != b"DICM":
                return ""
        header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["Modality", "Rows"])
    except (OSError, pydicom.errors.InvalidDicomError, ValueError, TypeError, KeyError, AttributeError):
        return ""
    return str(header.get("Modality", "")).strip().upper() if "Rows" in header else ""


def modality_of_values(array: np.ndarray) -> ScanModality:
    """CT where many voxels are negative, as fat and air are in HU; MR where hardly any is; "" between, for what may be CT without its
    offset, and for what may be CT of nothing but soft tissue."""
    values = array.ravel()[::max(1, array.size // SAMPLED)]
    negative = float(np.mean(values < NEGATIVE_HU))
    if negative >= CT_FROM:
        return ScanModality("CT", False, negative)
    tissue = values[values > AIR]
    unshifted = tissue.size and float(np.mean((tissue >= UNSHIFTED[0]) & (tissue <= UNSHIFTED[1]))) >= UNSHIFTED_FROM
    soft, dark = (float(np.mean((values >= low) & (values <= high))) for low, high in (SOFT, DARK))
    plain = negative <= MR_UP_TO and not unshifted and not (soft >= SOFT_FROM and dark <= DARK_UP_TO)
    return ScanModality("MR" if plain else "", False, negative)
