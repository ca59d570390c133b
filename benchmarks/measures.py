"""Figures of documentation/explanation/measures.md: angles against the phantom's own surfaces, a scan on other grids, another program.

    python -m benchmarks.measures phantoms -subjects 8 [-slices 3]        # angles from true masks of whole synthetic spines
    python -m benchmarks.measures predicted -subjects 4 [-slices 3]       # from masks that the shipped weights predict, and S1 from the CT
    python -m benchmarks.measures turned -i LABELS -ct CT                 # one scan on other grids
    python -m benchmarks.measures predicted_turned -ct CT [-m WEIGHTS]    # the same with a new prediction on each grid
    python -m benchmarks.measures parts -data ../shared/data/ct/tptbox    # body and arch against sub-regions made elsewhere
    python -m benchmarks.measures tptbox -i LABELS                        # angles of TPTBox (installed apart) beside ours

True surfaces of a phantom are those of its distance fields, warped as they are, not those of its parameters. A true end plate runs
through four rims of that surface, which are looked up there directly: neither voxels nor the fit under test have a part in it.
"""
from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from spineclue_v2.anatomy import LABEL_OF_NAME
from spineclue_v2.imageio.volume import ImageGrid, Volume, read_labels, read_volume
from spineclue_v2.inference.measure_labels import measured
from spineclue_v2.measures.alignment import ANGLES, sagittal_angles
from spineclue_v2.measures.bodies import Body, EndPlate
from spineclue_v2.measures.coronal import coronal_curves
from spineclue_v2.measures.parts import PART_VALUES, part_map
from spineclue_v2.measures.planes import PatientPlanes, patient_planes
from spineclue_v2.measures.segments import axial_rotation, disc_records, vertebra_records
from spineclue_v2.phantom import sampling, spine
from spineclue_v2.phantom.canvas import Canvas
from spineclue_v2.phantom.fields import Field, distance_fields

from .grading import draw_fields

RIM, BAND = 0.85, (-0.2, -0.1, 0.0, 0.1, 0.2)
ANGLE_NAMES = tuple(name for name, *_ in ANGLES)


def true_plate(field: Field, canvas: Canvas, side: int) -> EndPlate | None:
    """The plane through the four rims of one end plate of a phantom's surface; `side` 1: upper, -1: lower. None where a rim is not met."""
    from scipy.ndimage import map_coordinates

    placed, box, distance = field
    p, size = placed.params, placed.scale
    half_depth, half_width = p["dm"] / 2 * size, p["wm"] / 2 * size
    up = np.arange(0.25 * min(p["ha"], p["hp"]), max(p["ha"], p["hp"]) / 2 + 6, 0.1) * size * side

    def height(s: float, t: float) -> float:
        local = np.stack([np.full(len(up), t * half_width), np.full(len(up), s * half_depth), up], axis=1)
        world = placed.centre + local @ placed.rotation.T
        index = (world[:, ::-1] - canvas.origin) / canvas.spacing - [b.start for b in box]
        outside = np.flatnonzero(map_coordinates(distance.numpy(), index.T, order=1, mode="nearest") > 0)
        return float(up[outside[0]]) if len(outside) and outside[0] else np.nan
    front, back = (np.mean([height(s, t) for t in BAND]) for s in (-RIM, RIM))
    right, left = (np.mean([height(s, t) for s in BAND]) for t in (-RIM, RIM))
    if not np.isfinite([front, back, right, left]).all():
        return None
    normal = np.array([-(left - right) / (2 * RIM * half_width), -(back - front) / (2 * RIM * half_depth), 1.0])
    world = placed.rotation @ (normal / np.linalg.norm(normal))
    ends = [placed.centre + placed.rotation @ np.array(row) for row in ((0, -half_depth, front), (0, half_depth, back),
                                                                        (-half_width, 0, right), (half_width, 0, left))]
    middle = placed.centre + placed.rotation @ np.array([0, 0, (front + back) / 2])
    return EndPlate(middle, world, *ends, np.stack([ends[0], middle, ends[1]]), 0.0)


def true_bodies(fields: list[Field], canvas: Canvas) -> list[Body]:
    """Bodies of a phantom with their true end plates, C1 left out; of C2 the lower one alone."""
    found = []
    for field in fields:
        placed = field[0]
        if placed.name == "C1":
            continue
        upper = None if placed.name == "C2" else true_plate(field, canvas, 1)
        lower = true_plate(field, canvas, -1)
        why = None if lower is not None and upper is not None else "not known"
        found.append(Body(placed.name, None, placed.centre, placed.rotation.T[[2, 1, 0]], placed.params["dm"] / 2 * placed.scale,
                          placed.params["wm"] / 2 * placed.scale, upper, lower, why))
    return found


def all_angles(bodies: list[Body], planes: PatientPlanes) -> dict[str, float]:
    """Every angle of one spine by name and level."""
    named = {body.level: body for body in bodies}
    rows = [*sagittal_angles(named, planes, {}), *coronal_curves(bodies, planes)[:1]]
    found = {row["name"]: row["value"] for row in rows if row["value"] is not None}
    for row in [*vertebra_records(bodies, planes), *disc_records(bodies, planes)]:
        if row["unit"] == "deg":
            found[f"{row['name']} {row.get('disc', row['levels'][0])}"] = row["value"]
    return found


def errors(found: dict[str, float], truth: dict[str, float]) -> dict[str, list[float]]:
    """Signed errors (degrees) by kind of angle; levels of the same kind together, cervical ones apart."""
    result: dict[str, list[float]] = {}
    for name, value in found.items():
        if name in truth:
            kind, place = (name, "") if name in ANGLE_NAMES or name.startswith("Cobb") else name.rsplit(" ", 1)
            result.setdefault(kind + (" (cervical)" if place.startswith("C") else ""), []).append(value - truth[name])
    return result


def table(rows: dict[str, list[float]], missing: int) -> None:
    for kind, values in rows.items():
        v = np.array(values)
        most = np.percentile(np.abs(v), 95)
        print(f"{kind:<34} n {len(v):4d}  mean error {np.abs(v).mean():5.2f}  bias {v.mean():+5.2f}  95 % {most:5.2f}")
    print(f"not given: {missing}", flush=True)


def add(rows: dict[str, list[float]], more: dict[str, list[float]]) -> None:
    for kind, values in more.items():
        rows.setdefault(kind, []).extend(values)


def phantoms(args: argparse.Namespace) -> None:
    rows: dict[str, list[float]] = {}
    missing = 0
    for seed in range(args.first, args.first + args.subjects):
        labels, _, fields, canvas = draw_fields(seed, (args.slices, 1.0, 1.0), 0.05, "CTL")
        result = measured(labels)
        bodies = true_bodies(fields, canvas)
        planes = patient_planes(bodies)
        assert planes is not None
        truth = all_angles(bodies, planes)
        found = all_angles(list(result.bodies), patient_planes(result.bodies) or planes)
        missing += len(truth.keys() - found.keys())
        add(rows, errors(found, truth))
        real = {body.level: axial_rotation(body, planes) for body in bodies}
        add(rows, {"axial rotation, true frame": [value - real[name.split()[-1]] for name, value in found.items() if "rotation" in name]})
    print(f"{args.subjects} synthetic spines, seeds from {args.first}, slices of {args.slices:g} mm, true masks")
    table(rows, missing)


def synthetic_scans(args: argparse.Namespace) -> Iterator[tuple[sampling.PhantomCase, list[Body], Body]]:
    """CTs of T10 to the sacrum with their true bodies, and S1 with its true upper end plate."""
    original = spine.draw_subject
    for seed in range(args.first, args.first + args.subjects):
        kept: dict[str, Any] = {}

        def draw_subject(*what: Any, kept: dict[str, Any] = kept) -> spine.Subject:
            kept["subject"] = original(*what)
            return kept["subject"]

        def fields(canvas: Canvas, *what: Any, kept: dict[str, Any] = kept) -> list[Field]:
            kept["canvas"], kept["fields"] = canvas, distance_fields(canvas, *what)
            return kept["fields"]
        with mock.patch.object(spine, "draw_subject", draw_subject), mock.patch.object(sampling, "distance_fields", fields):
            case = sampling.sample(seed, first="T10", last="L5", spacing=(args.slices, 1.0, 1.0), margin=60, wide=False, variant=None,
                                   oblique=0, screws=0, cement=0, tight=False, fractures={}, motion=0)
        shown = [f for f in kept["fields"] if LABEL_OF_NAME[f[0].name] in case.labels]
        centre, frame = kept["subject"].sacrum
        s = kept["subject"].scale
        up, places = frame[:, 2], [centre + frame @ (np.array(row) * s) for row in ((0, 0, 14.2), (0, -15.5, 14.2), (0, 15.5, 14.2))]
        plate = EndPlate(places[0], up, places[1], places[2], places[0], places[0], np.stack([places[1], places[0], places[2]]), 0.0)
        yield case, true_bodies(shown, kept["canvas"]), Body("S1", None, places[0], frame.T[[2, 1, 0]], 15.5 * s, 25 * s, plate, None, "S1")


def predicted(args: argparse.Namespace) -> None:
    """Angles from predicted masks, on true names where the predicted ones are shifted; beside those from true masks with the same CT."""
    from spineclue_v2 import SpineCLUE

    program = SpineCLUE.from_pretrained(device="cpu")
    rows: dict[str, list[float]] = {}
    true_masks: dict[str, list[float]] = {}
    missing, shifted = 0, 0
    for case, bodies, sacrum in synthetic_scans(args):
        grid = ImageGrid(case.ct.shape, case.spacing, (0.0, 0.0, 0.0), np.eye(3))  # type: ignore[arg-type]
        planes = patient_planes(bodies)
        assert planes is not None
        truth = all_angles([*bodies, sacrum], planes)
        result = program.predict(Volume(case.ct, grid), keep_scan=False)
        shifted += [v.level for v in result.vertebrae][-1:] != ["L5"]
        for into, measures in ((rows, result), (true_masks, measured(Volume(case.labels, grid), None, Volume(case.ct, grid)))):
            found = all_angles(list(measures.bodies), patient_planes(measures.bodies) or planes)
            if into is rows:
                missing += len(truth.keys() - found.keys())
            add(into, errors(found, truth))
    print(f"{args.subjects} synthetic CTs, T10 to sacrum, slices of {args.slices:g} mm, predicted masks ({shifted} named otherwise)")
    table(rows, missing)
    print("the same CTs, true masks")
    table(true_masks, 0)


def grids(volume: Volume) -> Iterator[tuple[str, ImageGrid]]:
    """Other grids over the same scan: coarser, finer, turned."""
    from scipy.spatial.transform import Rotation

    own = volume.geometry
    for name, spacing in (("1.5 mm", (1.5, 1.5, 1.5)), ("2.5 mm axial slices", (2.5, 1.0, 1.0)), ("3 mm sagittal slices", (1.0, 1.0, 3.0))):
        yield name, own.resampled(spacing)
    for axis, degrees in (("x", 10), ("y", 8), ("z", 15)):
        turn = Rotation.from_euler(axis, degrees, degrees=True).as_matrix()
        middle = own.index_to_world((np.array(own.shape) - 1) / 2)
        spacing = np.full(3, max(min(own.spacing), 1.0))
        shape = tuple(int(n) for n in np.ceil(np.array(own.extent_mm) / spacing))
        origin = middle - turn @ own.direction @ ((np.array(shape) - 1) / 2 * spacing)[::-1]
        grid = ImageGrid(shape, tuple(spacing), tuple(origin), turn @ own.direction)  # type: ignore[arg-type]
        yield f"turned {degrees} degrees about {axis}", grid


def on_grid(volume: Volume, grid: ImageGrid, labels: bool) -> Volume:
    import SimpleITK as sitk

    target = Volume(np.zeros(grid.shape, np.uint8), grid).to_sitk()
    outside = 0 if labels else -1000
    image = sitk.Resample(volume.to_sitk(), target, sitk.Transform(), sitk.sitkNearestNeighbor if labels else sitk.sitkLinear, outside)
    return Volume.from_sitk(image)


def spread(results: dict[str, dict[str, float]]) -> None:
    """Largest and mean deviation from the scan's own grid, by kind."""
    own = results.pop("own")
    by_kind: dict[str, list[float]] = {}
    for name, found in results.items():
        differences = errors(found, own)
        add(by_kind, differences)
        worst = max((abs(v) for values in differences.values() for v in values), default=0.0)
        print(f"{name:<28} {len(found)} of {len(own)} angles, largest difference {worst:.1f} degrees; "
              + ", ".join(f"{kind} {values[0]:+.1f}" for kind, values in differences.items() if kind in (*ANGLE_NAMES, "Cobb angle")))
    table(by_kind, sum(len(own.keys() - found.keys()) for found in results.values()))


def angles_of(result: Any) -> dict[str, float]:
    planes = patient_planes(result.bodies)
    return {} if planes is None else all_angles(list(result.bodies), planes)


def turned(args: argparse.Namespace) -> None:
    """Labels (nearest neighbour) and CT of one scan on other grids."""
    labels, scan = read_labels(args.i), read_volume(args.ct) if args.ct else None
    results = {"own": angles_of(measured(labels, None, scan))}
    for name, grid in grids(labels):
        results[name] = angles_of(measured(on_grid(labels, grid, True), None, on_grid(scan, grid, False) if scan is not None else None))
    spread(results)


def predicted_turned(args: argparse.Namespace) -> None:
    """One CT on other grids, predicted anew on each. A case whose lowest level is named otherwise is left out and told."""
    import os

    if args.m:
        os.environ["SPINECLUE_WEIGHTS"] = args.m
    from spineclue_v2 import SpineCLUE

    program, scan = SpineCLUE.from_pretrained(device="cpu"), read_volume(args.ct)
    own = program.predict(scan, keep_scan=False)
    results, lowest = {"own": angles_of(own)}, own.vertebrae[-1].level
    for name, grid in grids(scan):
        result = program.predict(on_grid(scan, grid, False), keep_scan=False)
        if result.vertebrae and result.vertebrae[-1].level == lowest:
            results[name] = angles_of(result)
        else:
            print(f"{name}: left out, the lowest vertebra is named {result.vertebrae[-1].level if result else 'not at all'}, not {lowest}")
    spread(results)


def parts(args: argparse.Namespace) -> None:
    """Dice of body, posterior elements and processes against TPTBox's sub-regions of its own test scans, on its vertebra masks."""
    groups = {"body": ((PART_VALUES["body"],), (49, 50)), "arch with processes": (tuple(range(41, 49)),) * 2} | {
        name: ((value,), (value,)) for name, value in PART_VALUES.items() if 41 <= value <= 48}
    for path in sorted(Path(args.data).glob("*seg-vert*msk.nii.gz")):
        labels = read_labels(path).reoriented("LPS")
        regions = read_labels(path.with_name(path.name.replace("seg-vert", "seg-subreg"))).reoriented("LPS").array
        array = np.where(labels.array < 100, labels.array, 0).astype(np.uint8)
        if array.max() < 15:  # the MR sample: lumbar bodies that are called 5 to 7
            array = np.where(array > 0, array + 16, 0).astype(np.uint8)
        volume = Volume(array, labels.geometry)
        result = measured(volume)
        drawn = part_map(volume, result.bodies)
        for body in result.bodies:
            mask, found = array == LABEL_OF_NAME[body.level], {}
            for name, (ours, theirs) in groups.items():
                a, b = np.isin(drawn, ours) & mask, np.isin(regions, theirs) & mask
                found[name] = round(float(2 * (a & b).sum() / max(a.sum() + b.sum(), 1)), 3)
            told = found if body.why_not is None else dict(list(found.items())[:2])
            print(path.name, body.level, body.why_not or "whole", json.dumps(told))


def tptbox(args: argparse.Namespace) -> None:
    """TPTBox's lordosis, kyphosis and largest Cobb angle from our label map and sub-regions, beside ours."""
    from .measures_tptbox import their_angles

    labels = read_labels(args.i)
    result = measured(labels)
    for row in result.measures["alignment"]:
        if row["unit"] == "deg" and row["value"] is not None:
            print(f"ours    {row['name']} {'-'.join(row['levels'])}: {row['value']}")
    for name, value in their_angles(labels, part_map(labels, result.bodies)).items():
        print(f"TPTBox  {name}: {value}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = {"phantoms": phantoms, "predicted": predicted, "turned": turned, "predicted_turned": predicted_turned, "parts": parts,
                "tptbox": tptbox}
    parser.add_argument("what", choices=list(commands))
    parser.add_argument("-subjects", type=int, default=8)
    parser.add_argument("-first", type=int, default=930000, help="first seed")
    parser.add_argument("-slices", type=float, default=1.0, help="slice thickness, mm")
    parser.add_argument("-i", help="label map")
    parser.add_argument("-ct", help="its CT")
    parser.add_argument("-m", help="folder of weights")
    parser.add_argument("-data", default="../shared/data/ct/tptbox", help="folder with TPTBox's test scans")
    args = parser.parse_args()
    torch.set_num_threads(1)
    commands[args.what](args)


if __name__ == "__main__":
    main()
