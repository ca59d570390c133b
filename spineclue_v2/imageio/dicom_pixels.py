"""Pixels of DICOM slices as they are stored, before any rescaling.

Native pixels are taken from their bytes. Compressed ones go through GDCM, which SimpleITK brings: each frame is written to a small file of
its own that holds nothing but what the decoder has to know, so that neither the path of the scan nor the rest of its header can matter.
"""
from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from .dicom_headers import SliceHeader, read_dataset
from .grid_checks import MAX_PACKING

_CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2"


class PixelReader:
    """Stored values of slices, one after the other; keeps the file that was read last, since a multi-frame object holds many."""

    def __init__(self) -> None:
        self._path: Path | None = None
        self._dataset: Any = None

    def read(self, header: SliceHeader) -> np.ndarray:
        """Stored values (rows, columns) of a slice, any integer type. InputError where they are not there or cannot be decoded."""
        if self._path != header.path:
            try:
                self._dataset = read_dataset(header.path, pixels=True)
            except InputError:
                raise
            except Exception as error:
                raise InputError(f"The DICOM file {header.path} cannot be read ({type(error).__name__}); is it truncated? Copy it again."
                                 ) from error
            self._path = header.path
        try:
            values = self._decode(header)
        except InputError:
            raise
        except Exception as error:
            raise InputError(f"The pixels of {header.path} cannot be decoded ({type(error).__name__}); is it truncated? Copy it again."
                             ) from error
        return values

    def _decode(self, header: SliceHeader) -> np.ndarray:
        dataset = self._dataset
        if "FloatPixelData" in dataset or "DoubleFloatPixelData" in dataset:
            raise InputError(f"{header.path} stores its pixels as floating point numbers, as parametric maps do; expected whole numbers.")
        if "PixelData" not in dataset:
            raise InputError(f"{header.path} holds no pixels; is it truncated? Copy it again.")
        syntax = getattr(dataset.file_meta, "TransferSyntaxUID", None)
        if syntax is not None and syntax.is_encapsulated:
            return _decompressed(header, dataset, syntax)
        return _native(header, dataset, big=syntax is not None and not syntax.is_little_endian)


def _native(header: SliceHeader, dataset: Any, big: bool) -> np.ndarray:
    rows, columns = header.shape
    allocated, stored, signed = int(dataset.BitsAllocated), int(dataset.get("BitsStored", dataset.BitsAllocated)), _signed(dataset)
    if allocated not in (8, 16, 32) or not 0 < stored <= allocated:
        raise InputError(f"{header.path} has pixels of {stored} bits in {allocated}; expected 8, 16 or 32.")
    size = rows * columns * allocated // 8
    content, start = dataset.PixelData, size * (header.frame or 0)
    if len(content) < start + size:
        raise InputError(f"{header.path} ends after {len(content)} of {size * header.frames} bytes of pixels; is it truncated? Copy it "
                         "again.")
    kind = np.dtype(f"{'>' if big else '<'}{'i' if signed else 'u'}{allocated // 8}")
    values = np.frombuffer(content, kind, rows * columns, start).reshape(rows, columns).astype(kind.newbyteorder("="))
    high = int(dataset.get("HighBit", stored - 1))
    if stored < allocated and stored - 1 <= high < allocated:
        # Bits beside the stored ones may hold an overlay. The shift to the right keeps the sign.
        values = (values << (allocated - 1 - high)) >> (allocated - stored)
    return values


def _signed(dataset: Any) -> bool:
    return bool(dataset.get("PixelRepresentation", 0))


def _decompressed(header: SliceHeader, dataset: Any, syntax: Any) -> np.ndarray:
    import SimpleITK as sitk
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.encaps import encapsulate, get_frame
    from pydicom.uid import UID

    rows, columns = header.shape
    frame = get_frame(dataset.PixelData, header.frame or 0, number_of_frames=header.frames)
    if rows * columns * int(dataset.BitsAllocated) // 8 > max(len(frame), 64) * MAX_PACKING:
        raise InputError(f"{header.path} claims {rows} x {columns} pixels but its {len(frame)} bytes cannot hold them; is it truncated? "
                         "Copy it again.")
    alone = Dataset()
    alone.SOPClassUID, alone.SOPInstanceUID, alone.Modality = UID(_CT_IMAGE), UID("1.2.3"), "CT"
    for keyword in ("Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "SamplesPerPixel", "PhotometricInterpretation"):
        setattr(alone, keyword, dataset[keyword].value)
    alone.PixelRepresentation = int(_signed(dataset))
    alone.PixelData = encapsulate([frame])
    alone["PixelData"].VR = "OB"
    alone["PixelData"].is_undefined_length = True
    alone.file_meta = FileMetaDataset()
    alone.file_meta.TransferSyntaxUID = syntax
    with tempfile.TemporaryDirectory(prefix="spineclue_") as folder:
        path = f"{folder}/frame.dcm"
        alone.save_as(path, enforce_file_format=True)
        reader = sitk.ImageFileReader()
        reader.SetImageIO("GDCMImageIO")
        reader.SetFileName(path)
        try:
            values = sitk.GetArrayFromImage(reader.Execute()).squeeze()
        except RuntimeError as error:
            raise InputError(f"{header.path} is compressed as '{syntax.name}' and cannot be decoded; is it truncated? Else unpack it, e.g. "
                             "with gdcmconv --raw.") from error
    if values.shape != (rows, columns):
        raise InputError(f"{header.path} holds a picture of {' x '.join(map(str, values.shape))} where its header says {rows} x {columns}.")
    return values
