"""Malformed scans and label maps: name -> function of a fresh folder that hands one of them to a reader (see malformed.py)."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from bad_scans import BAD_SCANS, ct, save, written

from spineclue_v2.imageio.volume import read_labels, read_volume

Maker = Callable[[Path], object]
SCANS: dict[str, Maker] = {f"scan, {kind}": (lambda folder, make=make: read_volume(make(folder))) for kind, (make, _) in BAD_SCANS.items()}


# ---- scans -------------------------------------------------------------------------------------------------------------------
@cache
def whole_file(ending: str, compressed: bool = True) -> bytes:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"scan{ending}"
        sitk.WriteImage(sitk.GetImageFromArray(ct()), str(path), compressed)
        return path.read_bytes()


def scan_of(content: bytes, ending: str) -> Maker:
    return lambda folder: read_volume(written(folder / f"scan{ending}", content))


def header_with(offset: int, layout: str, *values: float) -> Maker:
    content = bytearray(gzip.decompress(whole_file(".nii.gz")))
    struct.pack_into("<" + layout, content, offset, *values)
    return scan_of(bytes(content), ".nii")


def text_replaced(ending: str, old: bytes, new: bytes) -> Maker:
    content = whole_file(ending, compressed=False)
    assert old in content, (ending, old)
    return scan_of(content.replace(old, new, 1), ending)


for _ending in (".nii.gz", ".nii", ".nrrd", ".mha"):
    for _share in (0.0, 0.001, 0.005, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99):
        _content = whole_file(_ending, compressed=_ending != ".nii")
        SCANS[f"{_ending} cut at {_share:g}"] = scan_of(_content[: int(len(_content) * _share)], _ending)
for _place in np.linspace(0.01, 0.99, 24):
    _flipped = bytearray(whole_file(".nii.gz"))
    _flipped[int(len(_flipped) * _place)] ^= 0x55
    SCANS[f".nii.gz with a flipped byte at {_place:.2f}"] = scan_of(bytes(_flipped), ".nii.gz")
for _code in (0, 1, 3, 32, 128, 255, 1792, 2048, 2304, 17, -4, 32767):
    SCANS[f"NIfTI data type {_code}"] = header_with(70, "h", _code)
for _axis in range(3):
    for _value in (0.0, -0.5, float("nan"), float("inf"), float("-inf"), 1e-9, 1e9):
        SCANS[f"NIfTI spacing {_value} along axis {_axis}"] = header_with(80 + 4 * _axis, "f", _value)
    for _size in (0, 1, 4, -1, -32768, 2000, 32767):
        SCANS[f"NIfTI size {_size} along axis {_axis}"] = header_with(42 + 2 * _axis, "h", _size)
for _number in (0, 1, 2, 8, -1, 32767):
    SCANS[f"NIfTI of {_number} dimensions"] = header_with(40, "h", _number)
for _value in (float("nan"), float("inf"), -1.0, 1e12, 1e30, 3e8):
    SCANS[f"NIfTI voxels at byte {_value}"] = header_with(108, "f", _value)
for _number in (0, 347, 349, 2**31 - 1, -348):
    SCANS[f"NIfTI header of {_number} bytes"] = header_with(0, "i", _number)
for _magic in (b"n+3\0", b"ni1\0", b"\0\0\0\0", b"gzip"):
    SCANS[f"NIfTI magic {_magic!r}"] = header_with(344, "4s", _magic)
for _row in range(3):
    for _value in (float("nan"), float("inf")):
        SCANS[f"NIfTI matrix with {_value} in row {_row}"] = header_with(280 + 16 * _row, "f", _value)
for _slope, _intercept in ((2.0, float("inf")), (3e38, 0.0), (1e-30, -3e38), (2.5, float("nan"))):
    SCANS[f"NIfTI scaled by {_slope} and {_intercept}"] = header_with(112, "2f", _slope, _intercept)
for _new in (
    b"ElementSpacing = 1 nan 1",
    b"ElementSpacing = 1 -1 1",
    b"ElementSpacing = 0 0 0",
    b"ElementSpacing = 1 1 1e9",
    b"ElementSpacing = a b c",
):
    SCANS[f"MetaImage {_new.decode()}"] = text_replaced(".mha", b"ElementSpacing = 1 1 1", _new)
for _new in (
    b"DimSize = 0 24 20",
    b"DimSize = -28 24 20",
    b"DimSize = 28 24",
    b"DimSize = 9999999 9999999 9999999",
    b"DimSize = 1290 1290 1290",
    b"DimSize = a b c",
    b"DimSize = 28 24 21",
):
    SCANS[f"MetaImage {_new.decode()}"] = text_replaced(".mha", b"DimSize = 28 24 20", _new)
for _old, _new in (
    (b"NDims = 3", b"NDims = 99"),
    (b"NDims = 3", b"NDims = 0"),
    (b"MET_SHORT", b"MET_NOTHING"),
    (b"ElementDataFile = LOCAL", b"ElementDataFile = nowhere.raw"),
    (b"ElementDataFile = LOCAL", b"ElementDataFile ="),
    (b"TransformMatrix = 1 0 0 0 1 0 0 0 1", b"TransformMatrix = 1 0 0 1 0 0 0 0 1"),
    (b"TransformMatrix = 1 0 0 0 1 0 0 0 1", b"TransformMatrix = 0 0 0 0 0 0 0 0 0"),
):
    SCANS[f"MetaImage {_new.decode()}"] = text_replaced(".mha", _old, _new)
for _old, _new in (
    (b"sizes: 28 24 20", b"sizes: 28 24"),
    (b"sizes: 28 24 20", b"sizes: 0 24 20"),
    (b"sizes: 28 24 20", b"sizes: a b c"),
    (b"sizes: 28 24 20", b"sizes: 1290 1290 1290"),
    (b"sizes: 28 24 20", b"sizes: 99999999 99999999 9"),
    (b"sizes: 28 24 20", b"sizes: 28 24 21"),
    (b"dimension: 3", b"dimension: 99"),
    (b"dimension: 3", b"dimension: 2"),
    (b"type: short", b"type: sword"),
    (b"type: short", b"type: block"),
    (b"encoding: raw", b"encoding: rot13"),
    (b"NRRD000", b"NRRD999"),
    (b"(0,0,1)", b"(0,0,nan)"),
    (b"(0,0,1)", b"(0,0,0)"),
    (b"(0,0,1)", b"(0,1,0)"),
):
    SCANS[f"NRRD {_new.decode()}"] = text_replaced(".nrrd", _old, _new)


# ITK's parsers crash on these, so no run of the corpus comes to its end when they reach them.
SCANS["MetaImage with a name of 390 characters"] = text_replaced(".mha", b"NDims", b"Name = " + b"B" * 390 + b"\nNDims")
SCANS["MetaImage of -3 dimensions"] = text_replaced(".mha", b"NDims = 3", b"NDims =-3")
SCANS["MetaImage of 2 billion dimensions"] = text_replaced(".mha", b"NDims = 3", b"NDims = 2147483648")
for _line in (b"endian: little", b"kinds: domain", b"space: ", b""):
    _long = _line + b" " + b"A" * 5000
    SCANS[f"NRRD with a long line after {_line.decode()!r}"] = text_replaced(".nrrd", b"encoding", _long + b"\nencoding")


def detached(ending: str, header: str) -> Maker:
    """A header file that names another file for its voxels."""

    def make(folder: Path) -> object:
        (folder / "voxels.raw").write_bytes(bytes(1000))
        return read_volume(written(folder / f"scan{ending}", header.encode()))

    return make


_MHD = "ObjectType = Image\nNDims = 3\nDimSize = {}\nElementType = MET_DOUBLE\nElementDataFile = {}\n"
_NHDR = "NRRD0004\ntype: double\ndimension: 3\nsizes: {}\nencoding: raw\nendian: little\ndata file: {}\n"
for _ending, _header in ((".mhd", _MHD), (".nhdr", _NHDR)):
    for _file in ("voxels.raw", "nowhere.raw", "../../../nowhere.raw", "LIST"):
        SCANS[f"{_ending} of 2 billion voxels in {_file}"] = detached(_ending, _header.format("1290 1290 1290", _file))
    SCANS[f"{_ending} with too few voxels"] = detached(_ending, _header.format("10 10 10", "voxels.raw"))


def dicom(old: bytes = b"", new: bytes = b"", keep: float = 1.0, which: int = 6) -> Maker:
    """A series of 6 slices; in the first `which` files `old` is replaced, and only the share `keep` of their bytes remains."""
    from test_bad_input import dicom_folder

    def make(folder: Path) -> object:
        series = dicom_folder(folder / "series", [2.0 * i for i in range(6)])
        for file in sorted(series.iterdir())[:which]:
            content = file.read_bytes()
            assert old in content
            file.write_bytes(content.replace(old, new or old)[: int(len(content) * keep)])
        return read_volume(series)

    return make


SCANS["DICOM, all files cut in the header"] = dicom(keep=0.05)
for _share in (0.4, 0.6, 0.8):
    for _which in (1, 6):
        SCANS[f"DICOM, {_which} of 6 files cut at {_share}"] = dicom(keep=_share, which=_which)
for _old, _new in (
    (b"1\\0\\0\\0\\1\\0", b"a\\0\\0\\0\\1\\0"),
    (b"1\\0\\0\\0\\1\\0", b"1\\0\\0      "),
    (b"1\\0\\0\\0\\1\\0", b"0\\0\\0\\0\\0\\0"),
    (b"-10\\-20", b"-10\\a20"),
    (b"-10\\-20", b"-10  -20"),
):
    SCANS[f"DICOM, {_new.decode()} for {_old.decode()}"] = dicom(_old, _new)


# ---- label maps --------------------------------------------------------------------------------------------------------------
def labels_of(value: float, kind: type) -> Maker:
    def make(folder: Path) -> object:
        array = np.zeros((8, 9, 10), kind)
        array[1, 2, 3] = value
        return read_labels(save(array, folder / "labels.nii.gz"))

    return make


for _value, _kind in (
    (0.5, np.float32),
    (float("nan"), np.float64),
    (float("inf"), np.float32),
    (-1, np.int8),
    (-1, np.float32),
    (65536, np.int32),
    (1e30, np.float64),
    (2**40, np.int64),
    (-(2**40), np.int64),
    (1e-3, np.float64),
):
    SCANS[f"label {_value} of type {_kind.__name__}"] = labels_of(_value, _kind)
