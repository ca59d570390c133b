"""A real scan through the hands of programs that are not ours: does it come back as it was?

    python -m benchmarks.foreign_tools SCAN.nii.gz [--path DIR ...]

The scan is written as DICOM by pydicom. gdcm (Python module `gdcm`) and dcmtk (`dcmcjpeg`, `dcmcjpls`, `dcmcrle`, `dcmconv`,
`dcmmkdir`) store it anew in every transfer syntax without loss that they know, and dcm2niix converts what they wrote, and a series of a
tilted gantry, into NIfTI. Each form is read by the package and compared with the plain scan, voxel by voxel and place by place. Then every
test file that comes with pydicom and nibabel is read: a scan, or one sentence. What is not installed is said and left out; --path adds
folders with programs.
"""
from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pydicom

from spineclue_v2.errors import InputError
from spineclue_v2.imageio.volume import Volume, read_volume
from spineclue_v2.inference.cases import list_cases
from spineclue_v2.preprocessing.straighten import straightened

from .dicom_files import write_series
from .malformed_inputs import outcome
from .reading_variants import tilt

SAME_MM = 1e-2
TILT = 12.0
GDCM = {"implicit": "ImplicitVRLittleEndian", "explicit": "ExplicitVRLittleEndian", "big endian": "ExplicitVRBigEndian",
        "JPEG lossless": "JPEGLosslessProcess14_1", "JPEG-LS": "JPEGLSLossless", "JPEG 2000": "JPEG2000Lossless", "RLE": "RLELossless"}
DCMTK = {"implicit": ("dcmconv", "+ti"), "big endian": ("dcmconv", "+tb"), "deflated": ("dcmconv", "+td"), "RLE": ("dcmcrle",),
         "JPEG lossless, process 14": ("dcmcjpeg", "+el"), "JPEG lossless, SV1": ("dcmcjpeg", "+e1"), "JPEG-LS": ("dcmcjpls", "+el"),
         "no preamble": ("dcmconv", "-F"), "lengths undefined": ("dcmconv", "+te", "-e"), "groups with lengths": ("dcmconv", "+te", "+g")}


def by_gdcm(series: Path, folder: Path, syntax: str) -> None:
    import gdcm

    for path in sorted(series.iterdir()):
        reader = gdcm.ImageReader()
        reader.SetFileName(str(path))
        change = gdcm.ImageChangeTransferSyntax()
        change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, syntax)))
        if not reader.Read():
            raise OSError(f"gdcm does not read {path.name}")
        change.SetInput(reader.GetImage())
        writer = gdcm.ImageWriter()
        writer.SetFileName(str(folder / path.name))
        writer.SetFile(reader.GetFile())
        if not change.Change():
            raise OSError(f"gdcm does not store {path.name} as {syntax}")
        writer.SetImage(change.GetOutput())
        if not writer.Write():
            raise OSError(f"gdcm does not write {path.name}")


def by_dcmtk(series: Path, folder: Path, command: tuple[str, ...]) -> None:
    for path in sorted(series.iterdir()):
        subprocess.run([*command, str(path), str(folder / path.name)], check=True, capture_output=True)


def by_dcmmkdir(series: Path, folder: Path) -> None:
    """A medium with a DICOMDIR, whose names are those of the standard."""
    (folder / "IMAGES").mkdir()
    for number, path in enumerate(sorted(series.iterdir())):
        shutil.copy(path, folder / "IMAGES" / f"IM{number:05d}")
    subprocess.run(["dcmmkdir", "--general-purpose", "--invent", "+r", "+id", str(folder), "+D", str(folder / "DICOMDIR"), "IMAGES"],
                   check=True, capture_output=True, cwd=folder)


def by_dcm2niix(series: Path, folder: Path) -> Path:
    """The NIfTI files of dcm2niix; of a tilted series, its first one is as scanned and the second is straightened."""
    subprocess.run(["dcm2niix", "-z", "y", "-f", "scan", "-o", str(folder), str(series)], check=True, capture_output=True)
    return folder


def forms(series: Path, work: Path) -> Iterator[tuple[str, str, Callable[[Path], object]]]:
    """(tool, form, function of an empty folder that fills it)."""
    for name, syntax in GDCM.items():
        yield "gdcm", name, lambda folder, syntax=syntax: by_gdcm(series, folder, syntax)
    for name, command in DCMTK.items():
        yield command[0], name, lambda folder, command=command: by_dcmtk(series, folder, command)
    yield "dcmmkdir", "DICOMDIR", lambda folder: by_dcmmkdir(series, folder)
    yield "dcm2niix", "NIfTI of the plain series", lambda folder: by_dcm2niix(series, folder)
    for name in ("gdcm, JPEG 2000", "dcmcjpeg, JPEG lossless, SV1"):
        yield "dcm2niix", f"NIfTI of {name}", lambda folder, name=name: by_dcm2niix(work / name, folder)


def installed(tool: str) -> bool:
    if tool == "gdcm":
        try:
            import gdcm  # noqa: F401
        except ImportError:
            return False
        return True
    return shutil.which(tool) is not None


def difference(source: Path, plain: Volume) -> str:
    """What a form is, read as the program reads it, beside the plain scan: "the same voxels and grid", or how they differ."""
    cases = list_cases(source)
    if len(cases) != 1:
        return f"DIFFERS: {len(cases)} cases"
    read = read_volume(cases[0].path, series=cases[0].series, modality="CT").reoriented(plain.geometry.orientation)
    if read.array.shape != plain.array.shape:
        return f"DIFFERS: shape {read.array.shape}, expected {plain.array.shape}"
    corners = np.array([(0, 0, 0), np.array(plain.array.shape) - 1])
    apart = float(np.abs(read.geometry.index_to_world(corners) - plain.geometry.index_to_world(corners)).max())
    voxels = int((read.array != plain.array).sum())
    if voxels or apart > SAME_MM:
        return f"DIFFERS: {voxels} voxels, corners {apart:.3f} mm apart"
    return f"the same voxels, corners {apart:.4f} mm apart"


def tilted_by_dcm2niix(plain: Volume, folder: Path) -> str:
    """Our straightened voxels of a series tilted by 12 degrees beside those of dcm2niix, on its grid."""
    import SimpleITK as sitk

    series, made = tilt(TILT)(plain, folder), folder / "nifti"
    made.mkdir()
    for path in series.iterdir():
        ds = pydicom.dcmread(path)
        # dcm2niix straightens what is signed and states its tilt.
        values = np.frombuffer(ds.PixelData, "<u2").astype(np.int32) + int(ds.RescaleIntercept)
        ds.GantryDetectorTilt, ds.PixelRepresentation, ds.RescaleIntercept = TILT, 1, "0"
        ds.PixelData = values.astype("<i2").tobytes()
        ds.save_as(path)
    by_dcm2niix(series, made)
    ours = straightened(read_volume(series, modality="CT"))
    lines = []
    for path in sorted(made.glob("*.nii.gz")):
        theirs = read_volume(path)
        image = sitk.Resample(ours.to_sitk(), theirs.to_sitk(), sitk.Transform(), sitk.sitkLinear, -1024.0)
        both = (sitk.GetArrayFromImage(image) > -900) & (theirs.array > -900)
        apart = float(np.abs(sitk.GetArrayFromImage(image)[both].astype(float) - theirs.array[both]).mean()) if both.any() else np.nan
        lines.append(f"{path.name} ({'sheared' if theirs.geometry.is_sheared else 'right angles'}): mean difference {apart:.1f} HU")
    return "; ".join(lines)


def test_files() -> Iterator[tuple[str, Path]]:
    import nibabel

    for package, folder in (("pydicom", Path(pydicom.__file__).parent / "data"), ("nibabel", Path(nibabel.__file__).parent)):
        for path in sorted(folder.glob("**/*")):
            inside = "test" in "/".join(path.relative_to(folder).parts) or "data" in path.relative_to(folder).parts
            if inside and path.suffix not in (".py", ".pyc", ".md", ".rst", ".m") and "__pycache__" not in path.parts:
                yield package, path


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scan", type=Path)
    parser.add_argument("--path", nargs="+", default=[], help="folders with programs, before those of PATH")
    args = parser.parse_args(arguments)
    os.environ["PATH"] = os.pathsep.join([*args.path, os.environ.get("PATH", "")])
    read, faults = read_volume(args.scan), 0
    plain = Volume(np.rint(read.array).clip(-1024, 3071).astype(np.int16), read.geometry)
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        series = write_series(work / "plain", plain.array, plain.geometry)
        for tool, form, make in forms(series, work):
            folder = work / f"{tool}, {form}"
            folder.mkdir()
            if not installed(tool):
                print(f"{tool:10} {form:32} not installed")
                continue
            try:
                make(folder)
            except (OSError, subprocess.CalledProcessError) as error:
                print(f"{tool:10} {form:32} not made ({str(error)[:80]})")
                continue
            try:
                found = difference(folder, plain)
            except InputError as error:
                found = f"REFUSED: {error}".replace(str(work), "")
            faults += found.startswith(("DIFFERS", "REFUSED"))
            print(f"{tool:10} {form:32} {found}", flush=True)
        if installed("dcm2niix"):
            (work / "tilt").mkdir()
            print(f"{'dcm2niix':10} {'tilted by 12 degrees':32} {tilted_by_dcm2niix(plain, work / 'tilt')}", flush=True)
    counts: Counter[str] = Counter()
    for package, path in test_files():
        found = outcome(path, None)
        counts[f"{package}: {found if found in ('read', 'sentence') else 'FAULT'}"] += 1
        if found not in ("read", "sentence"):
            faults += 1
            print(f"{package} {path.name}: {found}")
    print("test files and folders of " + ", ".join(f"{kind} {count}" for kind, count in sorted(counts.items())))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
