"""DICOM output read back by programs that are not ours: Dice with the label map, findings of a validator, sizes, seconds.

    python -m benchmarks.dicom_round_trip -o DIR [--data ../shared/data]

Real scans are written as DICOM series: as they are, with rows mirrored, cut sagittally, and with every slice shifted as a tilted gantry
leaves it. Each is read by the package, a label map of it is exported as SEG, SR and RTSTRUCT, and these are read by highdicom, dcmqi
(`segimage2itkimage`) and plastimatch and checked by `dciodvfy`, where installed. Dice is over all labels together; 1 means every voxel.
"""
from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from spineclue_v2.anatomy import LEVELS, NAME_OF_LABEL
from spineclue_v2.anatomy.label_boxes import label_boxes
from spineclue_v2.anatomy.vertebra import BodyHeights, Vertebra
from spineclue_v2.export.run_files import Provenance
from spineclue_v2.imageio.volume import Volume, read_labels, read_volume
from spineclue_v2.results import SpineResult

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from dicom_series import write_series  # noqa: E402

OBJECTS = ("dicom_seg", "dicom_sr", "dicom_rtstruct")


def scans(data: Path) -> Iterator[tuple[str, Volume, np.ndarray, float]]:
    """(name, scan, label map, shear in mm per slice). Where there is no mask, bone stands in, in bands along z: it has more holes and
    pieces than any vertebra."""
    verse = data / "ct" / "verse" / "sub-verse008"
    ct, mask = read_volume(Path(f"{verse}_ct.nii.gz")), read_labels(Path(f"{verse}_seg-vert_msk.nii.gz"))
    for orientation in ("LPS", "RPI", "PIR"):
        yield f"verse008 {orientation}", ct.reoriented(orientation), mask.reoriented(orientation).array, 0.0
    ct, mask = ct.reoriented("LPS"), mask.reoriented("LPS")
    yield "verse008 tilted 15 degrees", ct, mask.array, ct.spacing[0] * 0.268
    for name, path in (("taichi sagittal oblique", "by_eye/taichi_lumbar_sag"), ("RIDER chest", "unlabelled/rider_chest_1p5mm")):
        scan = read_volume(data / "ct" / f"{path}.nii.gz")
        yield name, scan, bone_bands(scan), 0.0


def bone_bands(scan: Volume) -> np.ndarray:
    from scipy.ndimage import binary_opening

    height = scan.geometry.index_to_world(np.stack(np.meshgrid(*map(np.arange, scan.array.shape), indexing="ij"), -1))[..., 2]
    band = np.clip(((height.max() - height) / 35).astype(int), 0, len(LEVELS) - 1) + 1
    return np.where(binary_opening(scan.array > 250), band, 0).astype(np.uint8)


def result_of(scan: Volume, labels: np.ndarray) -> SpineResult:
    vertebrae = []
    for value, box in label_boxes(labels).items():
        mask, start = labels[box] == value, (box[0].start, box[1].start, box[2].start)
        x, y, z = (float(c) for c in scan.geometry.index_to_world(np.argwhere(mask).mean(axis=0) + start))
        vertebrae.append(Vertebra((x, y, z), (1.0, 1.0, 1.0), 1.0, mask=mask, mask_start=start, body_centre=(x, y, z), volume_ml=1.0,
                                  level=NAME_OF_LABEL[value], confidence=0.9, heights=BodyHeights(20.0, 19.0, 21.0), trabecular_hu=120.0))
    return SpineResult(tuple(vertebrae), True, grid=scan.geometry, mask_grid=scan.geometry, provenance=Provenance(files=scan.files))


def dice(found: np.ndarray, true: np.ndarray) -> float:
    return 2 * float(((found == true) & (true > 0)).sum()) / float((found > 0).sum() + (true > 0).sum())


def by_highdicom(path: Path, scan: Volume) -> np.ndarray:
    import highdicom as hd
    import pydicom

    seg = hd.seg.segread(path)
    uids = [str(pydicom.dcmread(file, stop_before_pixels=True).SOPInstanceUID) for file in scan.files]
    values = seg.get_pixels_by_source_instance(uids, combine_segments=True, relabel=False, ignore_spatial_locations=True,
                                               assert_missing_frames_are_empty=True)
    table = np.zeros(256, np.uint8)
    for number in seg.segment_numbers:
        table[number] = {name: value for value, name in NAME_OF_LABEL.items()}[seg.get_segment_description(number).segment_label]
    return table[values]


def by_dcmqi(path: Path, grid: Volume, folder: Path) -> np.ndarray | None:
    """Labels by dcmqi; its image may cover a part of the grid. None where it gives none."""
    import json

    import SimpleITK as sitk

    if not (tool := shutil.which("segimage2itkimage") or shutil.which("segimage2itkimage", path=str(Path(sys.executable).parent))):
        return None
    out = folder / "dcmqi"
    out.mkdir()
    subprocess.run([tool, "--inputDICOM", str(path), "--outputDirectory", str(out), "--outputType", "nii", "--prefix", "s"],
                   capture_output=True, check=False)
    values = np.zeros(grid.array.shape, np.uint8)
    names = {row["labelID"]: row["SegmentLabel"] for group in json.loads((out / "s-meta.json").read_text())["segmentAttributes"]
             for row in group} if (out / "s-meta.json").exists() else {}
    for number, name in names.items():
        image = sitk.ReadImage(str(out / f"s-{number}.nii.gz"))
        mask = sitk.GetArrayFromImage(sitk.Resample(image, grid.to_sitk(), sitk.Transform(), sitk.sitkNearestNeighbor, 0)) > 0
        values[mask] = {n: v for v, n in NAME_OF_LABEL.items()}[name]
    return values


def by_plastimatch(path: Path, grid: Volume, series: Path, folder: Path) -> np.ndarray | None:
    import SimpleITK as sitk

    if not shutil.which("plastimatch"):
        return None
    subprocess.run(["plastimatch", "convert", "--input", str(path), "--referenced-ct", str(series), "--output-prefix", str(folder / "rt"),
                    "--prefix-format", "nii.gz"], capture_output=True, check=False)
    values = np.zeros(grid.array.shape, np.uint8)
    for file in (folder / "rt").glob("*.nii.gz"):
        image = sitk.ReadImage(str(file))
        mask = sitk.GetArrayFromImage(sitk.Resample(image, grid.to_sitk(), sitk.Transform(), sitk.sitkNearestNeighbor, 0)) > 0
        values[mask] = {n: v for v, n in NAME_OF_LABEL.items()}[file.name.split(".")[0]]
    return values


def by_polygons(path: Path, scan: Volume) -> np.ndarray:
    """Contours filled by scikit-image, slice by slice."""
    import pydicom
    from skimage.draw import polygon2mask

    rt, files = pydicom.dcmread(path), {}
    for number, file in enumerate(scan.files):
        files[str(pydicom.dcmread(file, stop_before_pixels=True).SOPInstanceUID)] = (number, pydicom.dcmread(file, stop_before_pixels=True))
    values = np.zeros(scan.array.shape, np.uint8)
    names = {roi.ROINumber: roi.ROIName for roi in rt.StructureSetROISequence}
    for roi in rt.ROIContourSequence:
        for contour in roi.ContourSequence:
            number, header = files[contour.ContourImageSequence[0].ReferencedSOPInstanceUID]
            points = np.array(contour.ContourData, float).reshape(-1, 3) - np.array(header.ImagePositionPatient, float)
            row, column = np.array(header.ImageOrientationPatient, float).reshape(2, 3)
            place = np.stack([points @ column / header.PixelSpacing[0], points @ row / header.PixelSpacing[1]], axis=1)
            mask = polygon2mask(values.shape[1:], place)
            values[number][mask] = {n: v for v, n in NAME_OF_LABEL.items()}[names[roi.ReferencedROINumber]]
    return values


def errors_of(path: Path) -> str:
    if not shutil.which("dciodvfy"):
        return "-"
    said = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, check=False)
    lines = (said.stderr + said.stdout).splitlines()
    return f"{sum(line.startswith('Error') for line in lines)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    args = parser.parse_args()
    for name, scan, labels, shear in scans(args.data):
        folder = args.o / name.replace(" ", "_").replace(",", "")
        shutil.rmtree(folder, ignore_errors=True)
        series = write_series(replace(scan, array=np.clip(np.round(scan.array), -32768, 32767).astype(np.int16)), folder / "series", shear)
        read = read_volume(series)
        # The order of the slices is the reader's; the labels follow the files.
        order = np.argsort([file.name for file in read.files]).argsort() if read.files else range(len(labels))
        result, row = result_of(read, np.ascontiguousarray(labels[order])), {}
        for kind in OBJECTS:
            started = time.perf_counter()
            files: dict[str, Any] = result.save(folder / kind, "case", report=False, describe=False, also=(kind,))
            path = files[kind]
            row[kind] = f"{path.stat().st_size / 1e6:.1f} MB {time.perf_counter() - started:.1f} s {errors_of(path)} errors"
        true = result.labels
        seg, rt = folder / "dicom_seg" / "case_seg.dcm", folder / "dicom_rtstruct" / "case_rtstruct.dcm"
        read_back = {"highdicom": by_highdicom(seg, read), "dcmqi": by_dcmqi(seg, read, folder),
                     "polygons": by_polygons(rt, read), "plastimatch": by_plastimatch(rt, read, series, folder)}
        scores = ", ".join(f"{key} {'-' if value is None else f'{dice(value, true):.6f}'}" for key, value in read_back.items())
        print(f"{name}: {true.shape}, {len(result)} labels; {row}; {scores}", flush=True)


if __name__ == "__main__":
    main()
