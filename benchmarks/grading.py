"""Figures of documentation/explanation/heights_and_grades.md: heights against the phantom's own parameters, grades against
the phantom's and readers'.

    python -m benchmarks.grading heights -subjects 40                     # mean absolute error at 1 mm and with 3 mm slices
    python -m benchmarks.grading grades -subjects 240 -first 50000 -o ROWS.json   # the grade that heights imply, true masks
    python -m benchmarks.grading merge -rows ROWS_1.json ROWS_2.json      # figures of parts that ran apart
    python -m benchmarks.grading readers -i VERSE_MASKS -t TABLE.csv      # real masks beside readers' grades

Only masks are drawn (no CT), so a subject of 17 thoracic and lumbar vertebrae costs seconds.
"""
from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from spineclue_v2.anatomy import LABEL_OF_NAME, NAME_OF_LABEL
from spineclue_v2.anatomy.label_boxes import label_boxes
from spineclue_v2.anatomy.vertebra import BodyHeights
from spineclue_v2.evaluation.grading import summarise
from spineclue_v2.imageio.volume import ImageGrid, Volume, read_labels
from spineclue_v2.inference.bodies import Body, find_bodies, to_vertebra
from spineclue_v2.phantom import spine
from spineclue_v2.phantom.canvas import Canvas
from spineclue_v2.phantom.fields import Field, distance_fields, label_volume, world_extent
from spineclue_v2.plans.data import Data
from spineclue_v2.stages.grade.comparison import compare
from spineclue_v2.stages.grade.heights import HEIGHT_POSITIONS, axes_along, measure

MARGIN_MM = 6.0
FRACTURED = 0.05       # share of thoracic and lumbar vertebrae with a grade above 0, as the paper states it


def draw(seed: int, spacing: tuple[float, float, float], fractured: float = FRACTURED) -> tuple[Volume, list[spine.Placed]]:
    """Labels of a whole thoracic and lumbar spine at `spacing` (z, y, x) mm, and the vertebrae as they were placed."""
    labels, shown, _, _ = draw_fields(seed, spacing, fractured)
    return labels, shown


def draw_fields(seed: int, spacing: tuple[float, float, float], fractured: float = FRACTURED, regions: str = "TL"
                ) -> tuple[Volume, list[spine.Placed], list[Field], Canvas]:
    """As `draw`, of the vertebrae of `regions` (letters), with their distance fields and the canvas these lie on."""
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    names = [n for n in spine.level_names(None) if n[0] in regions]
    count = int(rng.binomial(len(names), fractured))
    subject = spine.draw_subject(rng, None, None, spine.draw_fractures(rng, names, count), float(rng.uniform(0, 1) ** 2))
    shown = [v for v in subject.placed if v.name in names]
    extent = [world_extent(v) for v in shown]
    low = np.min([e.min(0) for e in extent], 0) - MARGIN_MM
    high = np.max([e.max(0) for e in extent], 0) + MARGIN_MM
    for v in subject.placed:
        v.centre = v.centre - low
    subject.placed = shown
    shape = tuple(int(n) for n in np.ceil((high - low)[::-1] / spacing))
    factor = tuple(int(np.ceil(s / 1.0)) for s in spacing)
    fine = tuple(s / f for s, f in zip(spacing, factor, strict=True))
    origin = tuple(0.5 * (a - b) for a, b in zip(fine, spacing, strict=True))
    canvas = Canvas(tuple(n * f for n, f in zip(shape, factor, strict=True)), fine, origin, 0.5, generator)
    with torch.no_grad():
        fields = distance_fields(canvas, subject, generator)
        labels, _ = label_volume(canvas, subject, fields, shape, factor)
    return Volume(labels, ImageGrid(shape, spacing, (0.0, 0.0, 0.0), np.eye(3))), shown, fields, canvas


def true_heights(v: spine.Placed) -> tuple[float, float, float]:
    """Heights at the measured places by the phantom's own parameters (phantom.shapes: linear from front to back, sunk in the middle,
    concave end plates, grown by 0.3 mm on every side), without the random warp of its surface."""
    p = v.params
    mean, middle = (p["ha"] + p["hp"]) / 2, (p["ha"] + p["hp"]) / 2 * (1 - p.get("hm_loss", 0.0))
    concave = (1.2 if v.name[0] == "L" else 0.8) + p.get("concave", 0.0)
    return tuple(v.scale * (mean + (p["hp"] - p["ha"]) / 2 * s + (middle - mean) * (1 - s * s)  # type: ignore[return-value]
                            - 2 * concave * (1 - s * s) + 0.6) for s in HEIGHT_POSITIONS)


def measured(labels: Volume, spacing: float) -> tuple[list[str], list[tuple[float, float, float] | None]]:
    """Levels in cranio-caudal order and their heights, each mask brought to `spacing` as in prediction."""
    data = Data(spacing)
    view = labels.geometry.reoriented("LPS")[0]
    bodies = [Body(tuple(s.start for s in box), labels.array[box] == value, value) for value, box in label_boxes(labels.array).items()]
    vertebrae = [(NAME_OF_LABEL[b.value], to_vertebra(b, view, data)) for b in sorted(bodies, key=lambda b: b.value)]
    axes = axes_along(np.array([v.body_centre for _, v in vertebrae]))
    found = [measure(v.mask, (spacing,) * 3, axis) for (_, v), axis in zip(vertebrae, axes, strict=True)]
    return [name for name, _ in vertebrae], [None if m is None else m.heights_mm for m in found]


def heights(args: argparse.Namespace) -> dict[str, Any]:
    """Mean absolute error (mm) against the parameters, per slice thickness and model spacing."""
    result = {}
    for name, spacing, model in (("1 mm", (1.0, 1.0, 1.0), 1.0), ("1 mm, network space 1.5 mm", (1.0, 1.0, 1.0), 1.5),
                                 ("3 mm slices", (3.0, 1.0, 1.0), 1.0), ("3 mm slices, network space 1.5 mm", (3.0, 1.0, 1.0), 1.5),
                                 ("3 mm sagittal slices", (1.0, 1.0, 3.0), 1.0)):
        errors, missed = [], 0
        for seed in range(args.first, args.first + args.subjects):
            labels, placed = draw(seed, spacing)
            truth = {v.name: true_heights(v) for v in placed}
            for level, found in zip(*measured(labels, model), strict=True):
                if found is None:
                    missed += 1
                else:
                    errors.append(np.subtract(found, truth[level]))
        errors = np.array(errors)
        result[name] = {"vertebrae": len(errors), "not measured": missed, "mean absolute error": round(float(np.abs(errors).mean()), 3)}
        for what, column in zip(("anterior", "middle", "posterior"), errors.T, strict=True):
            result[name][what] = {"error": round(float(np.abs(column).mean()), 2), "bias": round(float(column.mean()), 2),
                                  "p95": round(float(np.percentile(np.abs(column), 95)), 2)}
        print(name, json.dumps(result[name]), flush=True)
    return result


def phantom_rows(first: int, subjects: int, spacing: tuple[float, float, float], model: float) -> Iterator[dict[str, Any]]:
    """One row per vertebra: subject, level, true grade, the heights beside what was expected."""
    for seed in range(first, first + subjects):
        labels, placed = draw(seed, spacing)
        truth = {v.name: v.grade for v in placed}
        levels, found = measured(labels, model)
        for level, body in zip(levels, compare(levels, found), strict=True):
            yield {"patient": str(seed), "level": level, "grade": truth[level], "heights": body}


def score(body: BodyHeights | None) -> float:
    """What a threshold is laid on: the largest loss; a body that could not be measured counts as unharmed."""
    return max(body.loss) if body is not None and body.loss is not None else 0.0


def grades(args: argparse.Namespace) -> dict[str, Any]:
    rows = list(phantom_rows(args.first, args.subjects, (args.slices, 1.0, 1.0), args.model))
    keep = {"patient": [r["patient"] for r in rows], "level": [r["level"] for r in rows], "grade": [r["grade"] for r in rows],
            "implied": [r["heights"].grade if r["heights"] else 0 for r in rows], "score": [score(r["heights"]) for r in rows],
            "loss": [r["heights"].loss if r["heights"] else None for r in rows]}
    if args.o:
        Path(args.o).write_text(json.dumps(keep))
    return judged(keep)


def merge(args: argparse.Namespace) -> dict[str, Any]:
    parts = [json.loads(Path(path).read_text()) for path in args.rows]
    return judged({key: sum((part[key] for part in parts), []) for key in parts[0]})


def judged(rows: dict[str, list[Any]]) -> dict[str, Any]:
    result = summarise(rows["grade"], rows["implied"], np.array(rows["score"]), rows["patient"])
    result["not_measured"] = sum(loss is None for loss in rows["loss"])
    print(json.dumps(result, indent=1))
    return result


def readers(args: argparse.Namespace) -> dict[str, Any]:
    """Real masks: measured heights and implied grade beside the reader's."""
    with open(args.t, newline="") as file:
        read = {(r["subject"], NAME_OF_LABEL[int(r["verse_label"])]): int(r["genant_grade"]) for r in csv.DictReader(file)}
    result: dict[str, Any] = {}
    for path in sorted(Path(args.i).glob("*_msk.nii.gz")):
        subject = path.name.split("_")[0]
        labels = read_labels(path)
        bodies = [b for b in find_bodies(labels, 1.0)[0] if b.value in NAME_OF_LABEL]
        view = labels.geometry.reoriented("LPS")[0]
        vertebrae = [(NAME_OF_LABEL[b.value], to_vertebra(b, view, Data(args.model))) for b in sorted(bodies, key=lambda b: LABEL_OF_NAME[
            NAME_OF_LABEL[b.value]])]
        axes = axes_along(np.array([v.body_centre for _, v in vertebrae]))
        found = [measure(v.mask, (args.model,) * 3, axis) for (_, v), axis in zip(vertebrae, axes, strict=True)]
        names = [name for name, _ in vertebrae]
        for level, body in zip(names, compare(names, [None if m is None else m.heights_mm for m in found]), strict=True):
            row = None if body is None else {
                "heights": np.round(body.measured, 1).tolist(), "expected": np.round(body.expected, 1).tolist(),
                "loss": np.round(body.loss, 2).tolist(), "grade": body.grade, "shape": body.shape, "reference": body.reference}
            result[f"{subject} {level}"] = {"reader": read.get((subject, level)), "measured": row}
            print(f"{subject} {level:<4} reader {read.get((subject, level))}  {row}")
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["heights", "grades", "merge", "readers"])
    parser.add_argument("-subjects", type=int, default=40)
    parser.add_argument("-first", type=int, default=50000, help="first seed")
    parser.add_argument("-slices", type=float, default=1.0, help="slice thickness, mm")
    parser.add_argument("-model", type=float, default=1.0, help="spacing of network space, mm")
    parser.add_argument("-i", help="folder of real masks")
    parser.add_argument("-t", help="table of readers' grades")
    parser.add_argument("-o", help="JSON file for the rows")
    parser.add_argument("-rows", nargs="+", help="JSON files of rows")
    args = parser.parse_args()
    torch.set_num_threads(1)
    {"heights": heights, "grades": grades, "merge": merge, "readers": readers}[args.what](args)


if __name__ == "__main__":
    main()
