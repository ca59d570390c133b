"""The dataset fingerprint: what a dataset looks like, measured once per case and remembered by content.

`dataset_fingerprint.json` holds nnU-Net's fields, one short record per case, and the spine's own statistics (`spine`),
from which every rule takes its numbers. `fingerprint_cases.json` beside it is the cache: adding a case costs one case.
"""
from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import numpy as np

from spineclue_v2.anatomy import IGNORED, NAME_OF_LABEL, ORDER_INDEX, VERTEBRA_LABELS, morphology
from spineclue_v2.anatomy.label_boxes import beside_ignored, label_boxes
from spineclue_v2.dataset.raw import RawDataset
from spineclue_v2.errors import InputError
from spineclue_v2.imageio.hounsfield import training_ct
from spineclue_v2.imageio.modality import modality_of_values
from spineclue_v2.imageio.orientation import check_same_grid, oriented_view
from spineclue_v2.imageio.volume import Volume, read_labels, read_volume
from spineclue_v2.preprocessing.sides import lung_beside
from spineclue_v2.utilities.files import read_json, write_json
from spineclue_v2.utilities.parallel import run_tasks

from .grade_checks import check_grades, grade_counts
from .integrity import ISLAND_ML, LUNG_BASES, Finding, are_neighbours, check_case, distance_mm, table

logger = logging.getLogger(__name__)

FILE_NAME = "dataset_fingerprint.json"
CACHE_NAME = "fingerprint_cases.json"
VERSION = 7                     # raise when a measurement or a check changes: remembered cases are done again
QUANTILES = 401                 # of the foreground HU, per case
SHAPE_MM = 1.5                  # masks are looked at on about this grid
MAX_FOREGROUND = 200_000        # foreground voxels per case whose HU are kept for the quantiles


def extract_fingerprint(raw: RawDataset, dataset_folder: str | Path, num_processes: int = 0, executor: Executor | None = None,
                        progress: bool = True) -> dict[str, Any]:
    """Measure every case of `raw` that is not remembered, write both files into `dataset_folder`, return the fingerprint.

    Raises InputError when a case cannot be read or a check finds an error; the table of findings is logged before.
    """
    folder = Path(dataset_folder)
    cache = _read_cache(folder / CACHE_NAME)
    digests = {case: f"{raw.case_digest(case)}-{VERSION}" for case in raw.cases}
    records = {case: cache[case] for case in raw.cases if cache.get(case, {}).get("digest") == digests[case]}
    tasks = {case: (raw.image(case), raw.label(case), case, raw.verse_value, digests[case])
             for case in raw.cases if case not in records}
    if records:
        logger.info("%d of %d cases are remembered from the last fingerprint.", len(records), len(raw.cases))
    measured, failures = run_tasks(measure_case, tasks, executor, num_processes, "fingerprint", progress)
    records.update(measured)
    if measured or set(cache) != set(records):
        write_json(folder / CACHE_NAME, {case: records[case] for case in sorted(records)})
    findings = [Finding(case, "error", "unusable", detail) for case, detail in failures.items()]
    for case in sorted(records):
        findings += [Finding(**entry) for entry in records[case]["findings"]]
    if not failures:
        findings += check_grades(raw, {case: records[case]["vertebrae"] for case in raw.cases})
    text = table(findings)
    if text:
        level = logging.WARNING if any(f.severity != "note" for f in findings) else logging.INFO
        logger.log(level, "checks of %s:\n%s", raw.name, text)
    errors = [f for f in findings if f.severity == "error"]
    if errors:
        raise InputError(f"{raw.name} has {len(errors)} error(s) that would spoil training (first: case '{errors[0].case}', "
                         f"{errors[0].detail}); fix or remove these cases and run again.")
    fingerprint = summarise(raw, records, findings)
    write_json(folder / FILE_NAME, fingerprint)
    return fingerprint


def load_fingerprint(dataset_folder: str | Path) -> dict[str, Any]:
    """The fingerprint that `extract_fingerprint` wrote; InputError when there is none or it is nnU-Net's."""
    path = Path(dataset_folder) / FILE_NAME
    if not path.is_file():
        raise InputError(f"{path} does not exist; run spineclue_extract_fingerprint -d ID first.")
    fingerprint = read_json(path, "dataset fingerprint")
    if "spine" not in fingerprint and "mr" not in fingerprint:
        raise InputError(f"{path} was not made by spineclue_v2 (no 'spine' in it); run spineclue_extract_fingerprint -d ID.")
    return fingerprint


def measure_case(image: str | Path, label: str | Path, case: str, verse_value: Mapping[int, int],
                 digest: str = "") -> dict[str, Any]:
    """One read of a case -> its record: grid, foreground HU, per vertebra sizes and positions (mm, (z, y, x), LPS), findings."""
    scan, doubt = training_ct(read_volume(image), Path(image).name)
    if not doubt and (found := modality_of_values(scan.array)).name == "MR":
        doubt = f"values that look like MR ({found.evidence}); a CT dataset expects HU"
    labels = read_labels(label)
    check_same_grid(scan.geometry, labels.geometry, case, label)
    record: dict[str, Any] = {"digest": digest, "shape": list(scan.geometry.shape), "spacing": list(scan.geometry.spacing),
                              "orientation": scan.geometry.orientation}
    scan, labels = oriented_view(scan), oriented_view(labels)
    record["fov_mm"] = [round(float(v), 2) for v in scan.geometry.extent_mm]
    boxes = label_boxes(labels.array)
    unknown = sorted(set(boxes) - set(verse_value))
    findings = [Finding(case, "warning", "values", f"{Path(image).name}: {doubt}")] if doubt else []
    if unknown:
        findings.append(Finding(case, "error", "labels", f"values {unknown} are not in dataset.json"))
    ignored = next((value for value, verse in verse_value.items() if verse == IGNORED), None)
    if ignored is not None:
        record["annotated_share"] = round(float((labels.array != ignored).mean()), 4)
    record["intensity"] = _intensity(scan.array, labels.array, ignored)
    vertebrae = {}
    for value, box in boxes.items():
        verse = verse_value.get(value, 0)
        if verse in VERTEBRA_LABELS:
            name = NAME_OF_LABEL[verse]
            vertebrae[name] = measure_vertebra(labels, value, box)
            if ignored is not None and beside_ignored(labels.array, box, value, ignored):
                vertebrae[name]["touches_border"] = True  # the annotation ends there: its sizes are not those of the whole
            if name in LUNG_BASES:
                vertebrae[name]["lung_beside"] = lung_beside(scan, vertebrae[name]["body_centre_mm"])
    record["vertebrae"] = {name: vertebrae[name] for name in sorted(vertebrae, key=ORDER_INDEX.__getitem__)}
    findings += check_case(case, record["vertebrae"])
    record["findings"] = [finding.to_json() for finding in findings]
    return record


def measure_vertebra(labels: Volume, value: int, box: Sequence[slice]) -> dict[str, Any]:
    """Sizes and positions of one vertebra (LPS label map), on a grid of about 1.5 mm."""
    spacing = np.array(labels.spacing)
    start, stop = np.array([s.start for s in box]), np.array([s.stop for s in box])
    step = np.maximum(1, (SHAPE_MM / spacing + 0.01).astype(int))
    full = labels.array[tuple(box)] == value
    offset = (np.array(full.shape) - 1) % step // 2
    mask = np.ascontiguousarray(full[tuple(slice(int(o), None, int(k)) for o, k in zip(offset, step, strict=True))])
    grid = spacing * step
    if not mask.any():                                   # thinner than the grid
        mask, grid, offset = full, spacing, np.zeros(3, int)
    first = start + offset
    centroid = np.argwhere(mask).mean(0)
    body = np.array(morphology.body_centre(mask, grid))
    return {"extent_mm": _round((stop - start) * spacing), "volume_ml": round(float(full.sum() * spacing.prod() / 1000), 3),
            "body_height_mm": round(_body_height(mask, body, grid), 2),
            "centroid_mm": _round(first * spacing + centroid * grid), "body_centre_mm": _round(first * spacing + body * grid),
            "thick_in_front_mm": round(_thick_in_front(mask, grid), 2),
            "touches_border": bool((start == 0).any() or (stop == np.array(labels.array.shape)).any()),
            "component_ml": _component_volumes(mask, float(grid.prod()) / 1000)}


def summarise(raw: RawDataset, records: Mapping[str, Mapping[str, Any]], findings: Sequence[Finding]) -> dict[str, Any]:
    """Fingerprint of a dataset from its cases' records."""
    cases = sorted(records)
    return {
        "version": VERSION, "dataset_name": raw.name, "dataset_hash": raw.content_hash(), "channel_name": raw.channel_name,
        "spacings": [records[c]["spacing"] for c in cases],
        "shapes_after_crop": [records[c]["shape"] for c in cases],
        "median_relative_size_after_cropping": 1.0,
        "foreground_intensity_properties_per_channel": {"0": _pooled_intensity([records[c]["intensity"] for c in cases])},
        "spine": _spine_statistics([records[c] for c in cases]),
        "cases": {c: {"fov_mm": records[c]["fov_mm"], "spacing": records[c]["spacing"], "orientation": records[c]["orientation"],
                      "levels": list(records[c]["vertebrae"]), "num_vertebrae": len(records[c]["vertebrae"])} for c in cases},
        "checks": [finding.to_json() for finding in findings],
    } | _annotated_shares(records) | ({"grades": grade_counts(raw, {c: records[c]["vertebrae"] for c in cases})} if raw.grades else {})


def _annotated_shares(records: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """{"annotated_share": {case: share of its voxels that are not "ignore"}} of a dataset with that label, else nothing."""
    shares = {case: record["annotated_share"] for case, record in sorted(records.items()) if "annotated_share" in record}
    if shares:
        logger.info("Label 'ignore': %.0f %% of the voxels are annotated (mean over %d cases); the others count nowhere.",
                    100 * float(np.mean(list(shares.values()))), len(shares))
    return {"annotated_share": shares} if shares else {}


def _spine_statistics(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    rows = [(name, v) for r in records for name, v in r["vertebrae"].items()]
    if not rows:
        raise InputError("No case of the dataset holds a labelled vertebra; there is nothing to plan from.")
    levels: dict[str, dict[str, Any]] = {}
    gaps: dict[str, list[float]] = {}
    transitions: Counter[str] = Counter()
    for name in sorted({name for name, _ in rows}, key=ORDER_INDEX.__getitem__):
        levels[name] = _level_statistics([v for n, v in rows if n == name])
    for record in records:
        names = list(record["vertebrae"])
        for a, b in zip(names, names[1:], strict=False):
            transitions[f"{a}->{b}"] += 1
            if are_neighbours(a, b):
                gaps.setdefault(f"{a}-{b}", []).append(distance_mm(record["vertebrae"][a], record["vertebrae"][b]))
    whole = [v for _, v in rows if not v["touches_border"]] or [v for _, v in rows]
    every_gap = [g for values in gaps.values() for g in values]
    unusual = {key: n for key, n in transitions.items() if key in ("T11->L1", "T12->T13", "T13->L1", "L4->sacrum", "L5->L6")}
    fov = np.array([r["fov_mm"] for r in records])
    return {
        "num_cases": len(records), "num_vertebrae": len(rows), "num_touching_border": sum(v["touches_border"] for _, v in rows),
        "vertebrae_per_case": _percentiles([len(r["vertebrae"]) for r in records]),
        "orientations": dict(Counter(r["orientation"] for r in records)),
        "median_voxel_mm": round(float(np.median([np.prod(r["spacing"]) ** (1 / 3) for r in records])), 4),
        "fov_mm": {axis: _percentiles(fov[:, i]) for i, axis in enumerate(("si", "ap", "lr"))},
        "extent_mm": {axis: _percentiles([v["extent_mm"][i] for v in whole]) for i, axis in enumerate(("si", "ap", "lr"))},
        "volume_ml": _percentiles([v["volume_ml"] for v in whole]),
        "body_height_mm": _percentiles([v["body_height_mm"] for v in whole]),
        "spacing_between_mm": _percentiles(every_gap) if every_gap else None,
        "levels": levels,
        "pairs": {pair: _percentiles(values) | {"count": len(values)} for pair, values in gaps.items()},
        "transitions": unusual,
    }


def _level_statistics(vertebrae: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    whole = [v for v in vertebrae if not v["touches_border"]] or list(vertebrae)
    extents = {axis: _percentiles([v["extent_mm"][i] for v in whole]) for i, axis in enumerate(("si", "ap", "lr"))}
    return {"count": len(vertebrae), "whole": sum(not v["touches_border"] for v in vertebrae), "extent_mm": extents,
            "volume_ml": _percentiles([v["volume_ml"] for v in whole]),
            "body_height_mm": _percentiles([v["body_height_mm"] for v in whole])}


def _percentiles(values: Sequence[float] | np.ndarray) -> dict[str, float]:
    keys = (1, 5, 50, 95, 99)
    return {f"p{k}": round(float(p), 3) for k, p in zip(keys, np.percentile(np.asarray(values, float), keys), strict=True)}


def _intensity(scan: np.ndarray, labels: np.ndarray, ignored: int | None = None) -> dict[str, Any] | None:
    """Foreground HU of a case: moments and quantiles of an evenly spaced sample. `ignored`: a value that is no foreground."""
    values = scan[labels > 0 if ignored is None else (labels > 0) & (labels != ignored)]
    if not values.size:
        return None
    values = values[::max(1, values.size // MAX_FOREGROUND)].astype(np.float32)
    return {"mean": float(values.mean(dtype=np.float64)), "std": float(values.std(dtype=np.float64)),
            "quantiles": [round(float(q), 1) for q in np.quantile(values, np.linspace(0, 1, QUANTILES))]}


def _pooled_intensity(cases: Sequence[Mapping[str, Any] | None]) -> dict[str, float]:
    """nnU-Net's intensity properties; every case weighs the same, as there."""
    rows = [case for case in cases if case]
    if not rows:
        return dict.fromkeys(("mean", "median", "std", "min", "max", "percentile_00_5", "percentile_99_5"), 0.0)
    pooled = np.concatenate([row["quantiles"] for row in rows])
    mean = float(np.mean([row["mean"] for row in rows]))
    square = float(np.mean([row["std"] ** 2 + row["mean"] ** 2 for row in rows]))
    low, median, high = np.percentile(pooled, (0.5, 50, 99.5))
    return {"mean": mean, "median": float(median), "std": max(0.0, square - mean ** 2) ** 0.5, "min": float(pooled.min()),
            "max": float(pooled.max()), "percentile_00_5": float(low), "percentile_99_5": float(high)}


def _body_height(mask: np.ndarray, body: np.ndarray, spacing: np.ndarray) -> float:
    """Median length (mm) of the vertical columns within 4 mm of the body centre."""
    reach = np.maximum(1, np.round(4 / spacing[1:])).astype(int)
    y, x = np.round(body[1:]).astype(int)
    columns = mask[:, max(0, y - reach[0]):y + reach[0] + 1, max(0, x - reach[1]):x + reach[1] + 1].sum(0)
    columns = columns[columns > 0]
    return float(np.median(columns) * spacing[0]) if columns.size else 0.0


def _thick_in_front(mask: np.ndarray, spacing: np.ndarray) -> float:
    """How far (mm) the thick parts lie in front of the mask's centroid: positive when the body is anterior of the arch."""
    from scipy.ndimage import distance_transform_edt

    depth = distance_transform_edt(np.pad(mask, 1), sampling=spacing)[1:-1, 1:-1, 1:-1]
    profile = (depth ** 3).sum((0, 2))
    positions = np.arange(mask.shape[1])
    return float((np.average(positions, weights=mask.sum((0, 2))) - np.average(positions, weights=profile)) * spacing[1])


def _component_volumes(mask: np.ndarray, voxel_ml: float) -> list[float]:
    """Volumes (ml) of the components, largest first, specks left out."""
    import cc3d

    components = cc3d.connected_components(mask.astype(np.uint8), connectivity=26)
    sizes = np.sort(np.bincount(components.ravel())[1:])[::-1] * voxel_ml
    return [round(float(s), 2) for i, s in enumerate(sizes) if i == 0 or s >= ISLAND_ML]


def _round(values: Any) -> list[float]:
    return [round(float(v), 2) for v in values]


def _read_cache(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = read_json(path)
    except InputError:
        logger.warning("%s is unreadable; every case is measured again.", path)
        return {}
    return content if isinstance(content, dict) else {}
