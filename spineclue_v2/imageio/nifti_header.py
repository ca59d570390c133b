"""The header of a NIfTI file, read and written as nibabel does, whose import takes longer than reading a scan."""
from __future__ import annotations

from functools import cache
from typing import Any, Literal

import numpy as np

SIZES = {348: b"n+1", 540: b"n+2"}      # bytes of the header -> how its magic begins
VOXEL_TYPES = {2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8"}
COLOURS = {32: "complex64", 128: "RGB", 1792: "complex128", 2304: "RGBA"}     # types that are no single number
EXTENSION = 4                           # bytes between the header and the voxels that say whether there is more
_ORDERS: tuple[Literal["<", ">"], ...] = ("<", ">")
_FIRST = [("sizeof_hdr", "i4"), ("data_type", "S10"), ("db_name", "S18"), ("extents", "i4"), ("session_error", "i2"), ("regular", "S1"),
          ("dim_info", "u1"), ("dim", "i2", (8,)), ("intent_p", "f4", (3,)), ("intent_code", "i2"), ("datatype", "i2"), ("bitpix", "i2"),
          ("slice_start", "i2"), ("pixdim", "f4", (8,)), ("vox_offset", "f4"), ("scl_slope", "f4"), ("scl_inter", "f4"),
          ("slice_end", "i2"), ("slice_code", "u1"), ("xyzt_units", "u1"), ("cal", "f4", (2,)), ("slice_duration", "f4"),
          ("toffset", "f4"), ("gl", "i4", (2,)), ("descrip", "S80"), ("aux_file", "S24"), ("qform_code", "i2"), ("sform_code", "i2"),
          ("quatern", "f4", (3,)), ("qoffset", "f4", (3,)), ("srow", "f4", (3, 4)), ("intent_name", "S16"), ("magic", "S4")]
_SECOND = [("sizeof_hdr", "i4"), ("magic", "S4"), ("eol_check", "i1", (4,)), ("datatype", "i2"), ("bitpix", "i2"), ("dim", "i8", (8,)),
           ("intent_p", "f8", (3,)), ("pixdim", "f8", (8,)), ("vox_offset", "i8"), ("scl_slope", "f8"), ("scl_inter", "f8"),
           ("cal", "f8", (2,)), ("slice_duration", "f8"), ("toffset", "f8"), ("slice_start", "i8"), ("slice_end", "i8"),
           ("descrip", "S80"), ("aux_file", "S24"), ("qform_code", "i4"), ("sform_code", "i4"), ("quatern", "f8", (3,)),
           ("qoffset", "f8", (3,)), ("srow", "f8", (3, 4)), ("slice_code", "i4"), ("xyzt_units", "i4"), ("intent_code", "i4"),
           ("intent_name", "S16"), ("dim_info", "u1"), ("unused_str", "S15")]


class NiftiHeader:
    """The fields of a header by the standard's names: `header["dim"]`. Nothing is checked or mended."""

    def __init__(self, fields: np.ndarray) -> None:
        self.fields = fields

    @classmethod
    def read(cls, head: bytes) -> NiftiHeader | None:
        """The header that a file's first bytes are; None where they are none."""
        for size, magic in SIZES.items():
            for order in _ORDERS:
                if len(head) >= size and head[:4] == size.to_bytes(4, "little" if order == "<" else "big"):
                    header = cls(np.frombuffer(head[:size], _layout(size, order))[0])
                    return header if bytes(header["magic"])[:3] == magic and 1 <= int(header["dim"][0]) <= 7 else None
        return None

    def __getitem__(self, name: str) -> Any:
        return self.fields[name]

    def get_data_dtype(self) -> np.dtype[Any]:
        """Type of the voxels, in the file's order of bytes. Colours and complex numbers have one that is no number's.

        Raises:
            ValueError: the code is unknown.
        """
        code = int(self["datatype"])
        if code in COLOURS:
            return np.dtype(COLOURS[code]) if COLOURS[code].startswith("complex") else np.dtype([(c, "u1") for c in COLOURS[code]])
        if code not in VOXEL_TYPES:
            raise ValueError(f"data type {code}")
        order = ">" if self.fields.dtype["dim"].base.byteorder == ">" else "<"
        return np.dtype(order + VOXEL_TYPES[code])

    def get_sform(self) -> np.ndarray:
        """4 x 4."""
        return np.vstack([np.asarray(self["srow"], dtype=float), [0.0, 0.0, 0.0, 1.0]])

    def get_qform(self) -> np.ndarray:
        """4 x 4.

        Raises:
            ValueError: the quaternion is none, or the spacing has another sign than it may have.
        """
        spacing = np.asarray(self["pixdim"], dtype=float)
        if (spacing[1:4] < 0).any() or spacing[0] not in (-1, 1):
            raise ValueError("spacing")
        axes = rotation_of(np.asarray(self["quatern"]))
        result = np.eye(4)
        result[:3, :3] = axes * (spacing[1], spacing[2], spacing[3] * spacing[0])
        result[:3, 3] = self["qoffset"]
        return result


def rotation_of(quaternion: np.ndarray) -> np.ndarray:
    """3 x 3 of the last three numbers of a unit quaternion (3,). ValueError where these are too long for one."""
    b, c, d = (float(value) for value in quaternion)
    squares = 1.0 - (b * b + c * c + d * d)
    if squares < -3 * float(np.finfo(quaternion.dtype).eps):
        raise ValueError("quaternion")
    a = 0.0 if abs(squares) < 3 * float(np.finfo(quaternion.dtype).eps) else float(np.sqrt(squares))
    length = a * a + b * b + c * c + d * d
    if length < np.finfo(float).eps:
        return np.eye(3)
    s = 2.0 / length
    return np.array([[1 - s * (c * c + d * d), s * (b * c - a * d), s * (b * d + a * c)],
                     [s * (b * c + a * d), 1 - s * (b * b + d * d), s * (c * d - a * b)],
                     [s * (b * d - a * c), s * (c * d + a * b), 1 - s * (b * b + c * c)]])


def header_bytes(array: np.ndarray, qform: np.ndarray | None, qform_code: int, sform: np.ndarray | None, sform_code: int,
                 spacing: np.ndarray, scale: tuple[float, float] = (1.0, 0.0)) -> bytes:
    """Header of a `.nii` of voxels `array` (x, y, z) in millimetres, little endian, and the four bytes behind it.

    Args:
        array: integers or floats.
        qform: 4 x 4 at right angles; None: not stated.
        qform_code: what it means.
        sform: 4 x 4; None: not stated.
        sform_code: what it means.
        spacing: (x, y, z) where the qform states none.
        scale: slope and intercept of the stored values.
    """
    fields = np.zeros((), _layout(348, "<"))
    code = next((code for code, kind in VOXEL_TYPES.items() if np.dtype(kind) == array.dtype), None)
    if code is None:
        raise ValueError(f"NIfTI has no voxels of type {array.dtype}")
    fields["sizeof_hdr"], fields["magic"], fields["vox_offset"], fields["xyzt_units"] = 348, SIZES[348], 348 + EXTENSION, 2
    fields["dim"] = [array.ndim, *array.shape, *[1] * (7 - array.ndim)]
    fields["datatype"], fields["bitpix"] = code, 8 * array.dtype.itemsize
    fields["scl_slope"], fields["scl_inter"] = scale
    fields["pixdim"] = [1.0, *spacing, 1.0, 1.0, 1.0, 1.0]
    if qform is not None:
        steps = np.linalg.norm(qform[:3, :3], axis=0)
        axes = qform[:3, :3] / steps
        if np.linalg.det(axes) < 0:
            axes = axes * (1, 1, -1)
            fields["pixdim"][0] = -1.0
        fields["pixdim"][1:4] = steps
        fields["quatern"], fields["qoffset"] = quaternion_of(axes), qform[:3, 3]
    fields["qform_code"], fields["sform_code"] = qform_code, sform_code
    if sform is not None:
        fields["srow"] = sform[:3]
    return fields.tobytes() + bytes(EXTENSION)


def quaternion_of(axes: np.ndarray) -> np.ndarray:
    """The last three numbers of the unit quaternion, with a first one not below 0, of the rotation nearest to `axes` (3 x 3)."""
    left, _, right = np.linalg.svd(axes)
    r = left @ right
    k = np.array([[r[0, 0] - r[1, 1] - r[2, 2], 0, 0, 0], [r[0, 1] + r[1, 0], r[1, 1] - r[0, 0] - r[2, 2], 0, 0],
                  [r[0, 2] + r[2, 0], r[1, 2] + r[2, 1], r[2, 2] - r[0, 0] - r[1, 1], 0],
                  [r[2, 1] - r[1, 2], r[0, 2] - r[2, 0], r[1, 0] - r[0, 1], r[0, 0] + r[1, 1] + r[2, 2]]]) / 3.0
    values, vectors = np.linalg.eigh(k)         # of its lower triangle
    b, c, d, a = vectors[:, values.argmax()]
    return np.array([b, c, d]) * (-1.0 if a < 0 else 1.0)


@cache
def _layout(size: int, order: Literal["<", ">"]) -> np.dtype[Any]:
    return np.dtype(_FIRST if size == 348 else _SECOND).newbyteorder(order)
