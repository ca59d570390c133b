"""Evaluate a folder of predictions: nnU-Net's `summary.json`, with the vertebra metrics under "spineclue"."""
from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import numpy as np

from ..anatomy import IGNORED
from ..errors import InputError
from ..imageio.volume import Volume, read_labels
from ..utilities.files import read_json, write_json
from ..utilities.parallel import run_tasks
from .case import check_same_grid, evaluate_case
from .files import GROUP_SEPARATOR, CaseFiles, case_key, pair_files, stem
from .grading import grading_of
from .ignored import without_ignored
from .label_overlap import label_means, label_overlap
from .pooling import pool

logger = logging.getLogger(__name__)

CENTROIDS = ("mask", "body")


def evaluate(reference_folder: str | Path, prediction_folder: str | Path, output: str | Path | None = None, *,
             num_processes: int = 0, groups: Mapping[str, str] | None = None, centroids: str = "mask",
             executor: Executor | None = None, cases: Collection[str] | None = None,
             progress: bool = False) -> dict[str, Any]:
    """Compare the label maps of two folders (or two files) case by case and pool the metrics.

    Args:
        reference_folder: label maps with VerSe values, `CASE.nii.gz` or any readable format; or one file.
        prediction_folder: predictions of the same names on the same grids; a missing one counts as all missed. `CASE.json` beside
            them gives confidences and `numbering_anchored`. Or one file.
        output: where `summary.json` is written (None: nowhere).
        num_processes: worker processes; 0 works in this process.
        groups: {case: group}, or several groups with ";" between; every metric is repeated per group.
        centroids: 'mask' takes centroids of whole masks for VerSe's id.rate (VerSe 2020), 'body' takes body centres from
            `CASE_ctd.json` beside both label maps or in `centroidsTr`/`centroidsTs` beside the reference folder (VerSe 2019).
        executor: any concurrent.futures.Executor to use instead of own processes.
        cases: names to which the evaluation is restricted.
        progress: show a progress bar.

    Returns nnU-Net's `foreground_mean`, `mean`, `metric_per_case`, and `spineclue` (metrics of `pooling.pool`, `groups`, `cases`,
    `failed`, `without_prediction`, `without_reference`, `settings`). A case that cannot be evaluated is listed in `failed` and
    does not stop the others. Raises InputError when nothing can be compared at all.
    """
    if centroids not in CENTROIDS:
        raise InputError(f"centroids '{centroids}' is unknown; choose one of {', '.join(CENTROIDS)}.")
    pairs, without_reference = pair_files(reference_folder, prediction_folder)
    pairs = _restrict(pairs, cases)
    _check_groups(groups or {}, pairs)
    values = _reference_values(Path(reference_folder))
    results, failures = run_tasks(evaluate_files, {pair.case: (pair, centroids, values) for pair in pairs}, executor,
                                  num_processes, "evaluate", progress)
    for case, sentence in failures.items():
        logger.error("%s: %s", case, sentence)
    summary = summarise(list(results.values()), groups)
    summary["spineclue"] |= {
        "failed": [{"case": case, "error": sentence} for case, sentence in failures.items()],
        "without_prediction": [pair.case for pair in pairs if pair.prediction is None],
        "without_reference": without_reference,
        "settings": {"reference": str(reference_folder), "prediction": str(prediction_folder), "centroids": centroids,
                     "hit_dice": 0.5, "verse_max_mm": 20.0, "nsd_tolerance_mm": 1.0},
    }
    if grading := grading_of([pair for pair in pairs if pair.case in results]):
        summary["spineclue"]["grading"] = grading
    summary = {key: summary[key] for key in sorted(summary)}
    if output is not None:
        write_json(output, summary)
    return summary


def _check_groups(groups: Mapping[str, str], pairs: list[CaseFiles]) -> None:
    """A table that fits no case at all is a mistake; one that names cases of other folders as well only deserves a word."""
    known = {case_key(pair.case) for pair in pairs}
    strangers = sorted(case for case in groups if case_key(case) not in known)
    if groups and len(strangers) == len(groups):
        raise InputError(f"The table of groups names {len(groups)} cases (first: {strangers[0]}), but none of the {len(pairs)} that are "
                         f"evaluated (first: {pairs[0].case}); give case names as in the reference folder, without file ending.")
    if strangers:
        logger.warning("The table of groups names %d cases that are not evaluated (first: %s).", len(strangers), strangers[0])


def _restrict(pairs: list[CaseFiles], cases: Collection[str] | None) -> list[CaseFiles]:
    if cases is None:
        return pairs
    wanted = {case_key(case) for case in cases}
    kept = [pair for pair in pairs if case_key(stem(pair.reference)) in wanted]
    missing = wanted - {case_key(stem(pair.reference)) for pair in kept}
    if missing:
        raise InputError(f"No reference for {len(missing)} of {len(wanted)} chosen cases (first: {sorted(missing)[0]}).")
    return kept


def _reference_values(folder: Path) -> dict[int, int] | None:
    """{value in the reference maps: VerSe value} where the dataset.json of their raw dataset says other values, else None."""
    description = folder.parent / "dataset.json"
    if not folder.name.startswith("labels") or not description.is_file():
        return None
    from ..dataset.raw import verse_values

    labels = read_json(description, "dataset.json").get("labels", {})
    values = verse_values({name: value for name, value in labels.items() if isinstance(value, int)}, folder.parent)
    return None if all(old == new for old, new in values.items()) else values


def read_verse_labels(path: Path, values: Mapping[int, int] | None = None) -> Volume:
    """A label map in LPS order; `values` maps its values to VerSe's (others become 0), None leaves them."""
    volume = read_labels(path).reoriented("LPS")
    if values is None:
        return volume
    lookup = np.zeros(int(volume.array.max(initial=0)) + 1, dtype=np.uint8)
    for old, new in values.items():
        if old < len(lookup):
            lookup[old] = new
    return Volume(lookup[volume.array], volume.geometry)


def evaluate_files(files: CaseFiles, centroids: str = "mask", values: Mapping[int, int] | None = None) -> dict[str, Any]:
    """Metrics of one case from its files: {'spineclue': `evaluate_case`, 'metrics': nnU-Net's per label, file names}.

    `values` maps the values of the reference map to VerSe's (None: they are VerSe's).
    """
    reference = read_verse_labels(files.reference, values)
    prediction = read_labels(files.prediction).reoriented("LPS") if files.prediction else None
    record, found = None, {}
    if files.prediction is not None and (beside := files.prediction.parent / f"{stem(files.prediction)}.json").is_file():
        record = read_json(beside, "record")
        record = record if isinstance(record, dict) else None
    if centroids == "body":
        found["reference_centroids"] = _body_centres(files.reference, reference)
        found["predicted_centroids"] = {} if files.prediction is None or prediction is None else _body_centres(files.prediction, prediction)
    known, judged = without_ignored(reference, prediction)
    of_vertebrae = evaluate_case(known, judged, record, case=files.case, **found)
    predicted = np.zeros_like(reference.array) if prediction is None else prediction.array
    labels = np.union1d(np.unique(reference.array), np.unique(predicted))
    wanted = [int(n) for n in labels if n not in (0, IGNORED)]
    return {"spineclue": of_vertebrae, "metrics": label_overlap(reference.array, predicted, wanted, IGNORED),
            "voxels": int(reference.array.size), "reference_file": str(files.reference),
            "prediction_file": str(files.prediction) if files.prediction else None}


def _body_centres(path: Path, labels: Volume) -> dict[int, np.ndarray]:
    from ..imageio.centroids import read_ctd

    name = f"{case_key(stem(path))}_ctd.json"
    folder = path.parent
    tried = [folder / f"{stem(path)}_ctd.json", folder / name, folder / f"{case_key(stem(path))}_seg-subreg_ctd.json",
             folder.parent / folder.name.replace("labels", "centroids") / name]
    for choice in tried:
        if choice.is_file():
            return read_ctd(choice, labels.geometry)
    raise InputError(f"{path.name} has no body centres ({tried[0]} or {tried[-1]}); use --centroids mask.")


def summarise(results: list[dict[str, Any]], groups: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Content of `summary.json` from the results of `evaluate_files`."""
    labels = sorted({label for result in results for label in result["metrics"]})
    per_label = [{label: result["metrics"].get(label) or absent(result["voxels"]) for label in labels} for result in results]
    cases = [result["spineclue"] for result in results]
    summary = label_means(per_label, labels)
    summary["metric_per_case"] = [
        {"metrics": {str(label): values for label, values in metrics.items()}, "prediction_file": result["prediction_file"],
         "reference_file": result["reference_file"]} for metrics, result in zip(per_label, results, strict=True)]
    summary["spineclue"] = pool(cases) | {"cases": cases}
    if groups is not None:
        by_key = {case_key(case): group for case, group in groups.items()}
        named: dict[str, list[dict[str, Any]]] = {}
        for case in cases:
            for group in (by_key.get(case_key(case["case"])) or "(no group)").split(GROUP_SEPARATOR):
                named.setdefault(group, []).append(case)
        summary["spineclue"]["groups"] = {group: pool(members) for group, members in named.items()}
    return summary


def absent(voxels: int) -> dict[str, float]:
    """nnU-Net's metrics of a label that neither map of a case holds."""
    return {"Dice": float("nan"), "IoU": float("nan"), "TP": 0, "FP": 0, "FN": 0, "TN": voxels, "n_pred": 0, "n_ref": 0}


def dataset_reference(reference: str | Path | None, dataset: str | None = None,
                      chosen: str | None = None) -> tuple[Path, list[str] | None]:
    """Folder of reference labels and, where a test set is chosen, its cases.

    Without `reference` the raw dataset's `labelsTs` serves, or `labelsTr` when it has none. InputError when something is missing.
    """
    if dataset is None:
        if chosen is not None:
            raise InputError(f"--set {chosen} needs -d DATASET, whose test_sets.json names the cases.")
        if reference is None:
            raise InputError("No reference: give -ref LABELS or -d DATASET.")
        return Path(reference), None
    from ..utilities.paths import dataset_name, raw_folder

    folder = raw_folder() / dataset_name(dataset, raw_folder())
    if reference is None:
        reference = next((folder / name for name in ("labelsTs", "labelsTr") if (folder / name).is_dir()), None)
        if reference is None:
            raise InputError(f"{folder} has neither labelsTs nor labelsTr; give -ref LABELS.")
    if chosen is None:
        return Path(reference), None
    sets = read_json(folder / "test_sets.json", "list of test sets")
    if chosen not in sets:
        raise InputError(f"{folder / 'test_sets.json'} has no set '{chosen}'; known: {', '.join(sets) or 'none'}.")
    return Path(reference), list(sets[chosen])


def evaluate_simple(reference_folder: str | Path, prediction_folder: str | Path, labels: list[int],
                    ignore_label: int | None = None, output: str | Path | None = None, num_processes: int = 0,
                    chill: bool = False) -> tuple[dict[str, Any], dict[str, str]]:
    """Overlap of equal label values as `nnUNetv2_evaluate_simple`: (content of summary.json, {failed case: sentence}).

    With `chill` references without prediction are skipped, else they are an InputError, as are folders without a common name.
    """
    pairs, _ = pair_files(reference_folder, prediction_folder)
    missing = [pair.case for pair in pairs if pair.prediction is None]
    if missing and not chill:
        raise InputError(f"{len(missing)} of {len(pairs)} references lack a prediction (first {missing[0]}); --chill skips them.")
    compared = {pair.case: (pair.reference, pair.prediction) for pair in pairs if pair.prediction is not None}
    tasks = {case: (case, *files, labels, ignore_label) for case, files in compared.items()}
    results, failed = run_tasks(_simple_case, tasks, None, num_processes, "evaluate", num_processes > 0)
    summary = label_means(list(results.values()), labels)
    summary["metric_per_case"] = [
        {"metrics": {str(label): values for label, values in metrics.items()}, "prediction_file": str(compared[case][1]),
         "reference_file": str(compared[case][0])} for case, metrics in results.items()]
    summary = {key: summary[key] for key in sorted(summary)}
    if output is not None:
        write_json(output, summary)
    return summary, failed


def _simple_case(case: str, reference: Path, prediction: Path, labels: list[int], ignore_label: int | None) -> dict[int, dict[str, float]]:
    true, predicted = read_labels(reference).reoriented("LPS"), read_labels(prediction).reoriented("LPS")
    check_same_grid(true.geometry, predicted.geometry, case)
    return label_overlap(true.array, predicted.array, labels, ignore_label)
