"""Voxel values of a scan, whatever it came from: one type for all, and refused where they are no scan."""
from __future__ import annotations

import numpy as np

from ..errors import InputError

AIR_HU = -500


def scan_values(array: np.ndarray, what: object, check_intensities: bool = True) -> np.ndarray:
    """`array` as contiguous int16, or float32 where it holds floating point numbers; no copy where it is so already.

    Args:
        array: (z, y, x), any real type; whole numbers beyond int16 are clipped.
        what: the file or object, for messages.
        check_intensities: also refuse what holds nothing but air, or one single value.

    Raises:
        InputError: values that are not finite, nothing but air, one single value.
    """
    if array.dtype.kind == "f":
        with np.errstate(over="ignore"):  # what does not fit becomes infinite and is counted below
            array = array.astype(np.float32, copy=False)
        bad = array.size - sum(int(np.isfinite(plane).sum()) for plane in array)
        if bad:
            raise InputError(f"{what} holds {bad} voxels that are NaN or infinite; replace them with air (-1024 HU) first.")
    elif array.dtype != np.int16:
        given, array = array, np.empty(array.shape, np.int16)
        for values, plane in zip(given, array, strict=True):  # slice by slice: no second copy of the scan
            plane[...] = np.clip(values, -32768, 32767)
    if check_intensities:
        highest = float(array.max())
        if highest <= AIR_HU:
            raise InputError(f"{what} holds nothing but air (highest value {highest:g} HU); expected a CT in Hounsfield units.")
        if highest == float(array.min()):
            raise InputError(f"{what} holds the single value {highest:g} everywhere; expected a CT in Hounsfield units.")
    return np.ascontiguousarray(array)
