"""One real scan in the forms that scans come in: does each give the result of the plain one?

    python -m benchmarks.reading_variants SCAN.nii.gz [--weights FOLDER] [--only tilt shear]

Every variant is written by a tool that is not ours (pydicom, highdicom, nibabel, zipfile). Where it is read as the very voxels and the very
grid of the plain scan, its result is that of the plain scan. Where it is not (sheared grids), the variant is predicted, too, and the label
maps are compared on the variant's own grid: the masks of the plain result are drawn there as `label_map` draws them.
"""
from __future__ import annotations

import argparse
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from spineclue_v2.imageio.grid import ImageGrid
from spineclue_v2.imageio.hounsfield import checked_ct
from spineclue_v2.imageio.volume import Volume, read_volume, write_volume

from .dicom_files import enhanced, write_series

AIR = -1024
SAME_MM = 1e-2
Maker = Callable[[Volume, Path], Path]


def _nifti(volume: Volume) -> Any:
    import nibabel

    return nibabel.Nifti1Image(volume.array.T, np.diag([-1, -1, 1, 1]) @ volume.geometry.affine)


def forms(volume: Volume, folder: Path) -> Path:
    import nibabel

    image = _nifti(volume)
    moved = image.affine.copy()
    moved[:3, 3] += 40
    image.set_qform(moved, 1)
    image.set_sform(image.affine, 2)
    nibabel.save(image, folder / "scan.nii.gz")
    return folder / "scan.nii.gz"


def micrometres(volume: Volume, folder: Path) -> Path:
    import nibabel

    image = _nifti(volume)
    image = nibabel.Nifti1Image(volume.array.T, np.diag([1000, 1000, 1000, 1]) @ image.affine)
    image.header.set_xyzt_units("micron")
    nibabel.save(image, folder / "scan.nii.gz")
    return folder / "scan.nii.gz"


def offset(volume: Volume, folder: Path) -> Path:
    write_volume(Volume((volume.array.astype(np.int32) + 1024).astype(np.int16), volume.geometry), folder / "scan.nii.gz")
    return folder / "scan.nii.gz"


def series(edit: Any = None, nested: str = "s") -> Maker:
    return lambda volume, folder: write_series(folder / nested, volume.array, volume.geometry, edit).parents[nested.count("/")]


def per_slice(number: int, ds: Any) -> None:
    values = np.frombuffer(ds.PixelData, "<u2").astype(np.int32)
    if number % 3 == 1:
        ds.PixelRepresentation, ds.RescaleIntercept, ds.PixelData = 1, "0", (values - 1024).astype("<i2").tobytes()
    elif number % 3 == 2:
        ds.RescaleSlope, ds.PixelData = "0.5", (values * 2).astype("<u2").tobytes()


def packed(syntax: str) -> Maker:
    def edit(number: int, ds: Any) -> None:
        ds.compress(syntax, generate_instance_uid=False)

    return series(edit)


def multi_frame(volume: Volume, folder: Path) -> Path:
    return enhanced(write_series(folder / "s", volume.array, volume.geometry), folder / "enhanced.dcm")


def archive(volume: Volume, folder: Path) -> Path:
    source = write_series(folder / "s", volume.array, volume.geometry)
    with zipfile.ZipFile(folder / "scan.zip", "w", zipfile.ZIP_DEFLATED) as content:
        for path in source.iterdir():
            content.write(path, f"PATIENT/STUDY/{path.name}")
    return folder / "scan.zip"


def sheared(volume: Volume, shear: np.ndarray) -> Volume:
    """The scan sampled (cubic spline) on a grid whose axes are its own times `shear` (x, y, z), wide enough for all of it."""
    from scipy.ndimage import affine_transform

    grid = volume.geometry
    affine = grid.affine.copy()
    affine[:3, :3] = affine[:3, :3] @ shear
    last = np.array(grid.shape[::-1]) - 1
    corners = np.array([(x, y, z) for x in (0, last[0]) for y in (0, last[1]) for z in (0, last[2])])
    reach = corners @ np.linalg.inv(shear).T
    low, high = np.floor(reach.min(0)), np.ceil(reach.max(0))
    affine[:3, 3] += affine[:3, :3] @ low
    target = ImageGrid.from_affine(affine, (high - low + 1)[::-1])
    first = grid.world_to_index(target.index_to_world((0, 0, 0)))
    steps = (grid.world_to_index(target.index_to_world(np.eye(3))) - first).T
    array = affine_transform(volume.array.astype(np.float32), steps, first, target.shape, order=3, mode="nearest")
    index = first + np.stack(np.meshgrid(*map(np.arange, target.shape), indexing="ij"), -1) @ steps.T
    array[((index < -0.5) | (index > np.array(grid.shape) - 0.5)).any(-1)] = AIR
    return Volume(np.rint(array).clip(-1024, 3071).astype(np.int16), target)


def tilt(degrees: float | None) -> Maker:
    """A gantry tilted by `degrees`: axial slices that move to the front from one to the next. None: by the angle at which they move by one
    whole pixel, so that the variant holds the scan's own voxels, not interpolated ones."""
    def make(volume: Volume, folder: Path) -> Path:
        axial = volume.reoriented("LPS")
        dz, dy, _ = axial.geometry.spacing
        matrix = np.eye(3)
        matrix[1, 2] = -1.0 if degrees is None else -np.tan(np.radians(degrees)) * dz / dy
        moved = sheared(axial, matrix)
        return write_series(folder / "s", moved.array, moved.geometry)

    return make


def air(slices: int, rows: int) -> Maker:
    """No variant of the file: the same scan in a larger field of view, with so many voxels of air above and below, in front and behind.
    How much the networks mind it is the measure for variants with other fields of view."""
    def make(volume: Volume, folder: Path) -> Path:
        axial = volume.reoriented("LPS")
        array = np.pad(axial.array, ((slices, slices), (rows, rows), (0, 0)), constant_values=AIR)
        write_volume(Volume(array, axial.geometry.cropped((-slices, -rows, 0), array.shape)), folder / "scan.nii.gz")
        return folder / "scan.nii.gz"

    return make


def shear(volume: Volume, folder: Path) -> Path:
    import nibabel

    moved = sheared(volume, np.array([[1, 0.1, 0.05], [0, 1, -0.08], [0, 0, 1]]))
    image = _nifti(moved)
    image.set_qform(None, 0)
    image.set_sform(image.affine, 1)
    nibabel.save(image, folder / "scan.nii.gz")
    return folder / "scan.nii.gz"


VARIANTS: dict[str, Maker] = {
    "forms": forms, "micrometres": micrometres, "offset": offset, "series": series(), "nested": series(nested="A/B/C"),
    "per_slice": series(per_slice), "rle": packed("1.2.840.10008.1.2.5"), "jpeg2000": packed("1.2.840.10008.1.2.4.90"),
    "multi_frame": multi_frame, "zip": archive, "tilt_12": tilt(12), "tilt_20": tilt(20), "tilt_whole": tilt(None), "shear": shear,
    "air_24_rows": air(0, 24), "air_2_rows": air(0, 2), "air_4_slices": air(4, 0),
}


def dice(one: np.ndarray, other: np.ndarray) -> dict[int, float]:
    labels = set(np.unique(one)) | set(np.unique(other)) - {0}
    return {int(v): 2 * float(((one == v) & (other == v)).sum()) / float((one == v).sum() + (other == v).sum()) for v in labels if v}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scan", type=Path)
    parser.add_argument("--weights", type=Path, default=None, help="weights that never saw the patient; default: the shipped ones")
    parser.add_argument("--only", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    args = parser.parse_args(arguments)
    from spineclue_v2.export.label_map import label_map

    from .real_model import Program

    read = read_volume(args.scan)
    plain = Volume(np.rint(read.array).clip(-1024, 3071).astype(np.int16), read.geometry)
    program, reference = None, None
    spacing = " x ".join(f"{s:.3g}" for s in plain.spacing)
    print(f"{args.scan.name}: {' x '.join(map(str, plain.array.shape))} voxels (z, y, x) of {spacing} mm")
    failed = 0
    for name in args.only:
        with tempfile.TemporaryDirectory() as folder:
            path = VARIANTS[name](plain, Path(folder))
            volume = checked_ct(read_volume(path, modality="CT"), name)
        codes = ", ".join(flag.code for flag in volume.flags) or "none"
        if volume.geometry.same_grid(plain.geometry, SAME_MM) and np.array_equal(volume.array, plain.array):
            print(f"{name:12} the same voxels and grid; flags: {codes}", flush=True)
            continue
        if program is None:
            program = Program(args.weights).program
            reference = program.predict(plain)
        found = program.predict(volume)
        wanted = label_map(reference.vertebrae, reference.grids()[1], volume.geometry)
        shares = dice(wanted, found.labels)
        pairs = [(v, found[v.level]) for v in reference if v.level in found]
        apart = [float(np.linalg.norm(np.subtract(a.body_centre, b.body_centre))) for a, b in pairs]
        worst, whole = min(shares.values(), default=0.0), 2 * float(((wanted == found.labels) & (wanted > 0)).sum()) / max(
            float((wanted > 0).sum() + (found.labels > 0).sum()), 1.0)
        good = whole >= 0.99 and max(apart, default=99.0) <= 0.5 and len(pairs) == len(reference)
        failed += not good
        print(f"{name:12} {len(pairs)} of {len(reference)} levels; Dice {whole:.4f} (worst level {worst:.4f}); centres up to "
              f"{max(apart, default=float('nan')):.2f} mm apart; flags: {codes}{'' if good else '   BELOW the aim'}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
