"""Scans that no program should swallow: each maker writes one below a folder and returns its path."""
from __future__ import annotations

import gzip
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import SimpleITK as sitk

SHAPE = (20, 24, 28)


def ct(shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    """Noise around soft tissue, int16 HU."""
    return np.random.default_rng(0).normal(0, 300, shape).clip(-1000, 1500).astype(np.int16)


def save(array: np.ndarray, path: Path, spacing: tuple[float, ...] | None = None, **kind: bool) -> Path:
    image = sitk.GetImageFromArray(array, **kind)
    if spacing:
        image.SetSpacing(spacing)
    sitk.WriteImage(image, str(path), True)
    return path


def edited_header(folder: Path, offset: int, layout: str, *values: float) -> Path:
    """A good NIfTI with some header fields overwritten (offsets as in the standard)."""
    content = bytearray(gzip.decompress(save(ct(), folder / "good.nii.gz").read_bytes()))
    struct.pack_into("<" + layout, content, offset, *values)
    path = folder / "scan.nii.gz"
    path.write_bytes(gzip.compress(bytes(content)))
    return path


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def truncated(folder: Path, ending: str, share: float, compressed: bool = True) -> Path:
    path = folder / f"whole{ending}"
    sitk.WriteImage(sitk.GetImageFromArray(ct()), str(path), compressed)
    content = path.read_bytes()
    return written(folder / f"scan{ending}", content[:int(len(content) * share)])


def flipped_byte(folder: Path) -> Path:
    content = bytearray(save(ct(), folder / "good.nii.gz").read_bytes())
    content[len(content) // 2] ^= 0xFF
    return written(folder / "scan.nii.gz", bytes(content))


def with_voxel(folder: Path, value: float, ending: str = ".nii.gz") -> Path:
    array = ct().astype(np.float32)
    array[3, 4, 5] = value
    return save(array, folder / f"scan{ending}")


def replaced_text(folder: Path, old: bytes, new: bytes) -> Path:
    """A MetaImage whose header says something else."""
    path = folder / "scan.mha"
    sitk.WriteImage(sitk.GetImageFromArray(ct()), str(path), False)
    content = path.read_bytes()
    assert old in content
    return written(path, content.replace(old, new))


def folder_with(folder: Path, name: str | None) -> Path:
    place = folder / "input"
    place.mkdir()
    if name:
        (place / name).write_text("no scan")
    return place


PIXDIM, DIM, SROW_X = 76, 40, 280

BAD_SCANS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "missing": (lambda f: f / "nothing.nii.gz", "does not exist"),
    "empty folder": (lambda f: folder_with(f, None), "holds no"),
    "folder of other files": (lambda f: folder_with(f, "notes.txt"), "holds no"),
    "other format": (lambda f: written(f / "scan.png", b"\x89PNG"), "known format"),
    "empty file": (lambda f: written(f / "scan.nii.gz", b""), "no NIfTI file"),
    "text called nii.gz": (lambda f: written(f / "scan.nii.gz", b"patient was moving\n" * 50), "no NIfTI file"),
    "text called nrrd": (lambda f: written(f / "scan.nrrd", b"patient was moving\n" * 50), "no readable image"),
    "text called mha": (lambda f: written(f / "scan.mha", b"patient was moving\n" * 50), "no readable image"),
    "gzipped text": (lambda f: written(f / "scan.nii.gz", gzip.compress(b"patient was moving\n" * 50)), "no NIfTI file"),
    "truncated gzip": (lambda f: truncated(f, ".nii.gz", 0.5), "truncated"),
    "gzip without its end": (lambda f: truncated(f, ".nii.gz", 0.9995), "truncated"),
    "gzip of a few bytes": (lambda f: truncated(f, ".nii.gz", 0.01), "truncated"),
    "damaged gzip": (flipped_byte, "no intact gzip file: its checksum"),
    "truncated nii": (lambda f: truncated(f, ".nii", 0.5), "truncated"),
    "truncated nrrd": (lambda f: truncated(f, ".nrrd", 0.5), "truncated"),
    "truncated raw nrrd": (lambda f: truncated(f, ".nrrd", 0.5, compressed=False), "truncated"),
    "truncated mha": (lambda f: truncated(f, ".mha", 0.5), "truncated"),
    "2D": (lambda f: save(ct(SHAPE[1:]), f / "scan.nii.gz"), "2D"),
    "4D": (lambda f: save(ct((3, *SHAPE)), f / "scan.nii.gz", isVector=False), "4D with 3 volumes"),
    "4D nrrd": (lambda f: save(ct((3, *SHAPE)), f / "scan.nrrd", isVector=False), "4D with 3 volumes"),
    "RGB": (lambda f: save(ct((*SHAPE, 3)).astype(np.uint8), f / "scan.nii.gz", isVector=True), "one HU value per voxel|5D"),
    "RGB mha": (lambda f: save(ct((*SHAPE, 3)).astype(np.uint8), f / "scan.mha", isVector=True), "3 values per voxel"),
    "complex": (lambda f: save(ct().astype(np.complex64), f / "scan.nii.gz"), "complex64"),
    "zero spacing": (lambda f: edited_header(f, PIXDIM + 12, "f", 0.0), "spacing"),
    "NaN spacing": (lambda f: edited_header(f, PIXDIM + 4, "f", float("nan")), "spacing"),
    "infinite spacing": (lambda f: edited_header(f, PIXDIM + 8, "f", float("inf")), "spacing"),
    "negative spacing": (lambda f: edited_header(f, PIXDIM + 12, "f", -1.0), "spacing"),
    "zero spacing mha": (lambda f: replaced_text(f, b"ElementSpacing = 1 1 1", b"ElementSpacing = 1 0 1"), "spacing"),
    "NaN origin": (lambda f: edited_header(f, SROW_X + 12, "f", float("nan")), "not finite"),
    "huge size": (lambda f: edited_header(f, DIM, "4h", 3, 32767, 32767, 32767), "claims 35181150961663 voxels"),
    "size beyond the file": (lambda f: edited_header(f, DIM, "4h", 3, 1200, 1200, 1200), "cannot hold"),
    "size beyond the file, mha": (lambda f: replaced_text(f, b"DimSize = 28 24 20", b"DimSize = 1200 1200 1200"), "cannot hold"),
    "negative size": (lambda f: edited_header(f, DIM, "2h", 3, -5), "expected 5 slices"),
    "unknown data type": (lambda f: edited_header(f, 70, "h", 12345), "data type"),
    "NaN scaling": (lambda f: edited_header(f, 112, "2f", 2.0, float("nan")), "scaling"),
    "NaN voxel": (lambda f: with_voxel(f, float("nan")), "1 voxels that are NaN or infinite"),
    "infinite voxel": (lambda f: with_voxel(f, float("inf")), "1 voxels that are NaN or infinite"),
    "NaN voxel in nrrd": (lambda f: with_voxel(f, float("nan"), ".nrrd"), "1 voxels that are NaN or infinite"),
    "all air": (lambda f: save(np.full(SHAPE, -1000, np.int16), f / "scan.nii.gz"), "nothing but air"),
    "one value": (lambda f: save(np.full(SHAPE, 40, np.int16), f / "scan.nii.gz"), "single value"),
    "3 slices": (lambda f: save(ct((3, 64, 64)), f / "scan.nii.gz"), "expected 5 slices"),
}
