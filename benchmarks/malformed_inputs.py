"""Malformed inputs and real-world layouts by the hundred: a sentence or the right scan, no traceback, no hang, no death of the process.

    python -m benchmarks.malformed_inputs [--malformed 400] [--layouts 60] [--seconds 10]

Everything is generated from seeds (synthetic voxels). Each piece goes the way of `spineclue_predict`: `list_cases`, then `read_volume` and
`checked_ct` for every case, in a process of its own that is given `--seconds` of processor time.
"""
from __future__ import annotations

import argparse
import gzip
import multiprocessing
import re
import resource
import shutil
import struct
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom

from spineclue_v2.errors import InputError
from spineclue_v2.imageio.dicom_headers import is_dicom
from spineclue_v2.imageio.hounsfield import checked_ct
from spineclue_v2.imageio.volume import read_volume
from spineclue_v2.inference.cases import list_cases

from .dicom_files import SHAPE, axial_grid, enhanced, hu, write_series

LONGEST_SENTENCE = 900


# ---- malformed --------------------------------------------------------------------------------------------------------------------
def malformed(seed: int, folder: Path) -> Path:
    """A damaged input below `folder`: NIfTI, MetaImage, NRRD, DICOM or ZIP, one to three faults."""
    rng = np.random.default_rng(seed)
    kind = ("nii", "nii.gz", "mha", "nrrd", "dicom", "tags", "tags", "tags", "enhanced", "zip")[seed % 10]
    if kind in ("nii", "nii.gz", "mha", "nrrd"):
        return _bytes_changed(_scan_file(folder, kind), rng, header=(348 if "nii" in kind else 300))
    if kind == "zip":
        path = folder / "scan.zip"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.write(_scan_file(folder / "x", "nii"), "scan.nii")
            (folder / "x" / "scan.nii").unlink()
        return _bytes_changed(path, rng, header=path.stat().st_size)
    series = write_series(folder / "s", hu((7, 12, 12)))
    if kind == "dicom":
        for path in sorted(series.iterdir())[: int(rng.integers(1, 8))]:
            _bytes_changed(path, rng, header=900)
        return series
    if kind == "enhanced":
        path = enhanced(series, folder / "enhanced.dcm")
        shutil.rmtree(series)
        return _bytes_changed(path, rng, header=3000)
    for _ in range(int(rng.integers(1, 4))):
        _tag_changed(sorted(series.iterdir())[: int(rng.choice((1, 3, 7)))], rng)
    return series


def _scan_file(folder: Path, kind: str) -> Path:
    import SimpleITK as sitk

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"scan.{kind}"
    sitk.WriteImage(sitk.GetImageFromArray(hu((8, 10, 12))), str(path), kind != "nii")
    return path


def _bytes_changed(path: Path, rng: np.random.Generator, header: int) -> Path:
    """Some bytes replaced, most of them in the header; cut or doubled now and then."""
    content = bytearray(path.read_bytes())
    packed = path.suffix == ".gz" and rng.random() < 0.5
    if packed:
        content = bytearray(gzip.decompress(bytes(content)))
    for _ in range(int(rng.integers(1, 6))):
        where = int(rng.integers(0, min(header, len(content)) if rng.random() < 0.8 else len(content)))
        number = struct.pack("<f", rng.choice((np.nan, np.inf, -1e30, 0.0)))
        new = (rng.bytes(int(rng.integers(1, 5))), number, b"\xff\xff\xff\x7f", bytes(8), b"9" * 6)[int(rng.integers(0, 5))]
        content[where:where + len(new)] = new
    fate = rng.random()
    if fate < 0.2:
        content = content[: int(len(content) * rng.random())]
    elif fate < 0.3:
        content = content * 2
    path.write_bytes(gzip.compress(bytes(content)) if packed else bytes(content))
    return path


_WRONG: dict[str, tuple[Any, ...]] = {
    "ImagePositionPatient": ([0, 0], ["nan", "0", "0"], [0, 0, 0], [1e300, 0, 0], None),
    "ImageOrientationPatient": ([1, 0, 0], [0] * 6, None),
    "PixelSpacing": ([0, 0], [-1, 1], ["inf", "1"], [1], None, [1e-9, 1e-9]), "Rows": (0, 1, 65535, None), "Columns": (0, 3, 65535, None),
    "BitsAllocated": (0, 1, 7, 64, None), "BitsStored": (0, 99, None), "HighBit": (0, 99), "PixelRepresentation": (7, None),
    "SamplesPerPixel": (0, 3), "PhotometricInterpretation": ("RGB", "PALETTE COLOR", ""), "RescaleSlope": ("0", "nan", "1e308", "", None),
    "RescaleIntercept": ("inf", "-1e308", "", None), "NumberOfFrames": ("0", "-5", "99999999"), "SeriesInstanceUID": ("", "x" * 64, None),
    "StudyInstanceUID": ("", None), "Modality": ("", "PT", "SEG", "XX", None), "InstanceNumber": ("x", None, "99999999999"),
    "PixelData": (b"", b"\0\0", bytes(31)), "SOPClassUID": ("", None), "ImageType": (["LOCALIZER"], None),
}


def _tag_changed(paths: list[Path], rng: np.random.Generator) -> None:
    keyword = str(rng.choice(list(_WRONG)))
    value = _WRONG[keyword][int(rng.integers(0, len(_WRONG[keyword])))]
    for path in paths:
        try:
            ds = pydicom.dcmread(path)
            if value is None:
                ds.pop(keyword, None)
            else:
                setattr(ds, keyword, value)
            ds.save_as(path)
        except Exception:  # pydicom does not write everything: then the file stays as it was
            path.write_bytes(path.read_bytes()[:-100])


# ---- layouts ----------------------------------------------------------------------------------------------------------------------
def _flat(source: Path, target: Path) -> Path:
    return Path(shutil.copytree(source, target / "in"))


def _deep(source: Path, target: Path) -> Path:
    shutil.copytree(source, target / "in" / "PATIENT" / "STUDY" / "SERIES")
    return target / "in"


def _scattered(source: Path, target: Path) -> Path:
    for number, path in enumerate(sorted(source.iterdir())):
        place = target / "in" / f"DIR{number % 3}" / "A"
        place.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, place / f"IM{number:04d}")
    return target / "in"


def _medium(source: Path, target: Path) -> Path:
    from pydicom.fileset import FileSet

    medium = FileSet()
    for path in source.iterdir():
        if is_dicom(path):
            medium.add(path)
    medium.write(target / "in")
    return target / "in" / "DICOMDIR"


def _zip(source: Path, target: Path) -> Path:
    with zipfile.ZipFile(target / "in.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in source.iterdir():
            archive.write(path, f"export/{path.name}")
        archive.writestr("export/README.txt", "a viewer")
    return target / "in.zip"


def _list(source: Path, target: Path) -> Path:
    place = shutil.copytree(source, target / "scans")
    (target / "list.txt").write_text(f"# one scan\n{place}\n")
    return Path(f"@{target / 'list.txt'}")


STRUCTURES: dict[str, Callable[[Path, Path], Path]] = {"flat": _flat, "deep": _deep, "scattered": _scattered, "medium": _medium,
                                                       "zip": _zip, "list": _list}


def _junk(folder: Path) -> None:
    (folder / "Thumbs.db").write_bytes(b"\0" * 3000)
    (folder / "VERSION").write_text("1")


def _localizer(folder: Path) -> None:
    def edit(number: int, ds: Any) -> None:
        ds.ImageType, ds.ImageOrientationPatient = ["ORIGINAL", "PRIMARY", "LOCALIZER"], [1, 0, 0, 0, 0, -1]

    _join(folder, write_series(folder.parent / "scout", hu((2, 30, 30)), edit=edit))


def _join(folder: Path, other: Path) -> None:
    for path in sorted(other.iterdir()):
        path.rename(folder / f"other_{path.name}")


def _pet(folder: Path) -> None:
    def edit(number: int, ds: Any) -> None:
        ds.Modality = "PT"

    _join(folder, write_series(folder.parent / "pet", hu((40, 8, 8)), edit=edit, series="1.2.9"))


def _double(folder: Path) -> None:
    shutil.copy(sorted(folder.iterdir())[3], folder / "copy_of_a_slice")


def _each(change: Callable[[int, Any], object]) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        for path in folder.iterdir():
            ds = pydicom.dcmread(path)
            change(int(ds.InstanceNumber), ds)
            ds.save_as(path)

    return make


def _first_signed(number: int, ds: Any) -> None:
    if number < 4:
        values = np.frombuffer(ds.PixelData, "<u2").astype(np.int32) - 1024
        ds.PixelRepresentation, ds.RescaleIntercept, ds.PixelData = 1, "0", values.astype("<i2").tobytes()


def _rle(number: int, ds: Any) -> None:
    ds.compress("1.2.840.10008.1.2.5", generate_instance_uid=False)


def _multi_frame(folder: Path) -> None:
    path = enhanced(folder, folder.parent / "enhanced.dcm")
    for old in folder.iterdir():
        old.unlink()
    path.rename(folder / "IM0")


def _without_endings(folder: Path) -> None:
    for path in folder.iterdir():
        path.rename(path.with_suffix(""))


CONTENTS: dict[str, Callable[[Path], object]] = {
    "plain": lambda folder: None, "junk": _junk, "localizer": _localizer, "pet": _pet, "double": _double, "rle": _each(_rle),
    "signed": _each(_first_signed), "multi_frame": _multi_frame, "no endings": _without_endings, "tilted": lambda folder: None,
}
LAYOUTS = [(structure, content) for content in CONTENTS for structure in STRUCTURES]


def layout(number: int, folder: Path) -> Path:
    """The scan `hu()` in layout `number`, below `folder`."""
    structure, content = LAYOUTS[number]
    source = write_series(folder / "made" / "s", grid=axial_grid(step=(0.0, 0.42)) if content == "tilted" else None)
    CONTENTS[content](source)
    (folder / "laid").mkdir()
    return STRUCTURES[structure](source, folder / "laid")


# ---- running ----------------------------------------------------------------------------------------------------------------------
def outcome(source: Path, expected: np.ndarray | None) -> str:
    """ "right", "read", "sentence"; anything else is a fault, in words."""
    try:
        arrays = [checked_ct(read_volume(case.path, series=case.series, modality="CT"), "scan").array for case in list_cases(source)]
    except InputError as error:
        text = str(error)
        if "\n" in text or re.search("0x[0-9a-f]{8}", text) or not 20 < len(text) < LONGEST_SENTENCE:
            return f"no sentence: {text[:300]!r}"
        return "sentence" if expected is None else f"refused: {text}"
    except BaseException:
        return "traceback: " + traceback.format_exc().replace("\n", " | ")[-600:]
    if expected is not None:
        return "right" if len(arrays) == 1 and np.array_equal(arrays[0], expected) else f"wrong: {len(arrays)} scans"
    sound = all(np.isfinite(array).all() and min(array.shape) >= 5 for array in arrays)
    return "read" if sound else "wrong: no sound scan"


def _one(what: str, number: int, seconds: int, queue: Any) -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (seconds + 60, seconds + 70))
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        make = malformed if what == "malformed" else layout
        source = make(number, Path(folder))
        started = time.process_time()
        queue.put((outcome(source, hu(SHAPE) if what == "layout" else None), time.process_time() - started))


def run(what: str, number: int, seconds: int) -> str:
    """The outcome of one piece in a process of its own."""
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    process = context.Process(target=_one, args=(what, number, seconds, queue))
    process.start()
    process.join(seconds * 20)
    if process.is_alive():
        process.kill()
        return "hang"
    if queue.empty():
        return f"death of the process, exit code {process.exitcode}"
    found, used = queue.get()
    return found if used <= seconds else f"slow: {used:.0f} s"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--malformed", type=int, default=400)
    parser.add_argument("--layouts", type=int, default=len(LAYOUTS))
    parser.add_argument("--seconds", type=int, default=10)
    args = parser.parse_args(arguments)
    import highdicom  # noqa: F401  here and not in every process that is forked
    import nibabel  # noqa: F401
    import SimpleITK  # noqa: F401

    counts: Counter[str] = Counter()
    for what, total in (("malformed", args.malformed), ("layout", min(args.layouts, len(LAYOUTS)))):
        for number in range(total):
            found = run(what, number, args.seconds)
            counts[f"{what}: {found if found in ('right', 'read', 'sentence') else 'FAULT'}"] += 1
            if found not in ("right", "read", "sentence"):
                print(f"{what} {number if what == 'malformed' else LAYOUTS[number]}: {found}", flush=True)
    print(", ".join(f"{kind} {count}" for kind, count in sorted(counts.items())))
    return 1 if any("FAULT" in kind for kind in counts) else 0


if __name__ == "__main__":
    sys.exit(main())
