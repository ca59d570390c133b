"""CT or MR: what a scan's DICOM files say, or else what its values look like."""
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .archives import real_path
from .dicom_headers import Damaged, headers_of, is_dicom
from .dicom_series import UNKNOWN_MODALITIES, choose_series, look_through
from .hounsfield import EIGHT_BITS, LEAST_SPREAD, looks_stored
from .label_maps import refuse_label_map
from .reading import read_scan_ahead
from .volume import Volume

MODALITIES = ("CT", "MR")
NEGATIVE_HU = -20
CT_FROM = 0.10         # of the voxels below NEGATIVE_HU: fat and air. 17 kinds of real CT, crops within the body too, have 0.26 or more
MR_UP_TO = 0.02        # 22 real MRs have 0.004 or less
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
        doubt: why it cannot be told, where that is another reason than `negative`.
    """

    name: str
    by_tag: bool
    negative: float | None = None
    doubt: str = ""

    @property
    def evidence(self) -> str:
        """How it is known, for a sentence."""
        if self.by_tag:
            return "its DICOM files say so"
        if self.doubt:
            return self.doubt
        share = 100 * (self.negative or 0.0)
        return f"{share:.1f} % of its values lie below {NEGATIVE_HU}; CT has {100 * CT_FROM:.0f} % or more, MR hardly any"


def find_modality(volume: Volume) -> ScanModality:
    """What `volume` is."""
    headers = headers_of(volume.files[0]) if volume.files else None
    stated = headers[0].modality if headers and not isinstance(headers, Damaged) else ""
    return modality_of_values(volume.array) if stated in UNKNOWN_MODALITIES else ScanModality(stated, True)


def modality_of_path(path: Path, series: str | None = None) -> ScanModality:
    """The same of a scan that is not read yet; of DICOM files only headers are, where they say it.

    A NIfTI file is not read a second time by the `read_scan` that follows. InputError as `read_scan` raises it, and for a label map.
    """
    real = real_path(path)
    if real.is_dir() or is_dicom(real):
        stated = choose_series(look_through(real) if real.is_dir() else look_through(real.parent, [real]), series, None)[0].modality
        if stated not in UNKNOWN_MODALITIES:
            return ScanModality(stated, True)
    scanned = read_scan_ahead(path, series)
    refuse_label_map(scanned.array, path)
    return find_modality(Volume(scanned.array, scanned.geometry, files=scanned.files))


def modality_of_values(array: np.ndarray) -> ScanModality:
    """What values look like.

    CT where many are negative, as fat and air are in HU, or where they are HU + 1024 beyond doubt (`hounsfield`); MR where hardly any is;
    "" between, and for what may be CT of nothing but soft tissue, a picture of 8 bits or normalised values.
    """
    values = array.ravel()[::max(1, array.size // SAMPLED)]
    low, high = float(array.min()), float(array.max())
    negative = float(np.mean(values < NEGATIVE_HU))
    if negative >= CT_FROM or low >= 0 and looks_stored(values):
        return ScanModality("CT", False, negative)
    if low >= 0 and high <= EIGHT_BITS or high - low < LEAST_SPREAD:
        return ScanModality("", False, negative, f"values from {low:g} to {high:g} may be a picture of either")
    soft, dark = (float(np.mean((values >= low) & (values <= high))) for low, high in (SOFT, DARK))
    plain = negative <= MR_UP_TO and not (soft >= SOFT_FROM and dark <= DARK_UP_TO)
    return ScanModality("MR" if plain else "", False, negative)
