"""Whether the values of a scan are CT numbers in Hounsfield units (HU), and what was assumed where they are not.

Air has -1000 HU and water 0, so a CT without negative values is none in HU. Of what is seen in practice one kind can be put right without
a guess (values that are HU + 1024, the numbers that scanners store); windowed or normalised pictures cannot, and are refused.
"""
from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..errors import InputError
from ..flags import Flag
from .label_maps import label_values, refuse_label_map
from .volume import Volume

STORED_OFFSET = 1024
SOFT_TISSUE_HU = (-150, 250)
SAMPLES = 2_000_000
LEAST_SPREAD = 60         # z-scores span 20; air to soft tissue 1000 HU, fat to bone 400
EIGHT_BITS = 255
LEAST_SHARE = 0.5         # of the voxels that are not background


def checked_ct(volume: Volume, what: str, offset: float | None = None) -> Volume:
    """`volume` in HU, with flags for what was added.

    Args:
        volume: a scan that is said to be CT.
        what: the file or object, for messages.
        offset: what the caller wants added to all values; None: nothing is known, and values that are HU + 1024 beyond doubt are put right.

    Raises:
        InputError: a label map, a picture of 8 bits, normalised values.
    """
    if offset is not None and not np.isfinite(offset):
        raise InputError(f"The intensity offset is {offset}; expected a number.")
    refuse_label_map(volume.array, what)
    if offset:
        message = f"{offset:g} was added to all values, as asked for."
        volume = _moved(volume, offset, Flag("intensity_offset", "read", "info", message, offset))
    sample = volume.array.ravel()[:: max(1, volume.array.size // SAMPLES)]
    low, high = float(volume.array.min()), float(volume.array.max())
    if low >= 0 and high <= EIGHT_BITS or high - low < LEAST_SPREAD:
        whole = bool((sample == np.round(sample)).all())
        kind = "an 8-bit picture of one window" if whole and high > 1 else "normalised values"
        raise InputError(f"{what} holds values {low:g} to {high:g}: {kind}; expected a CT in Hounsfield units (air -1000, water 0). Export "
                         "the scan again without windowing or scaling.")
    if offset is None and low >= 0 and looks_stored(sample):
        message = (f"All values look like HU + {STORED_OFFSET} (no negative ones, soft tissue around {STORED_OFFSET}); {STORED_OFFSET} was "
                   "subtracted.")
        flag = Flag("offset_assumed", "read", "review", message, low, 0, "Check some values, or give --intensity-offset yourself (0: the "
                    "values are HU).")
        return _moved(volume, -STORED_OFFSET, flag)
    return volume


def training_ct(volume: Volume, what: str) -> tuple[Volume, str]:
    """A scan of a training dataset as prediction would see it (HU + 1024 put right), and a sentence on what is doubtful; "" for nothing.

    Raises InputError for what windows in HU make one value of: label maps and normalised values.
    """
    low, high = float(volume.array.min()), float(volume.array.max())
    if high - low >= LEAST_SPREAD and low >= 0 and high <= EIGHT_BITS and label_values(volume.array) is None:
        return volume, f"values {low:g} to {high:g}, a picture of one window and no HU; spineclue_predict will refuse such scans"
    checked = checked_ct(volume, what)
    return checked, next((flag.message for flag in checked.flags if flag not in volume.flags), "")


def looks_stored(sample: np.ndarray) -> bool:
    """Whether what is not background lies mostly where soft tissue + 1024 does, and next to nothing where soft tissue in HU does."""
    body = sample[sample > SOFT_TISSUE_HU[1]]
    if body.size < 0.02 * sample.size:
        return False
    low, high = (bound + STORED_OFFSET for bound in SOFT_TISSUE_HU)
    tissue = float(((body >= low) & (body <= high)).mean())
    return tissue > LEAST_SHARE


def _moved(volume: Volume, offset: float, flag: Flag) -> Volume:
    if volume.array.dtype.kind == "f" or not float(offset).is_integer():
        array = np.add(volume.array, np.float32(offset), dtype=np.float32)
    else:
        array = np.empty(volume.array.shape, np.int16)
        for values, moved in zip(volume.array, array, strict=True):
            moved[...] = np.clip(values.astype(np.int32) + int(offset), -32768, 32767)
    return replace(volume, array=array, flags=(*volume.flags, flag))
