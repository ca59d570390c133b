"""Cross-validation: metrics of a stage on what earlier stages found in the same, unseen cases; folds put together.

`validation/summary.json` and `crossval_results_folds_*/summary.json` have nnU-Net's keys (`foreground_mean`, `mean`,
`metric_per_case`), everything lies on the grid of the preprocessed cases; `spineclue` holds our own metrics.
"""
from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import anatomy
from ..dataset.preprocessed import PreprocessedDataset
from ..dataset.splits import fold_cases, load_splits
from ..errors import InputError
from ..evaluation import metrics
from ..evaluation.case import evaluate_case
from ..evaluation.ignored import mostly, without_ignored
from ..evaluation.instances import instance_map, match_true_names
from ..evaluation.label_overlap import label_means, label_overlap
from ..evaluation.summary import absent, summarise
from ..imageio.volume import ImageGrid, Volume, write_volume
from ..plans.plans import DEFAULT_PLANS_NAME
from ..stages.localize.trainer import annotated_only
from ..stages.plan_files import load_plans
from ..stages.registry import stage_folder_name, train_command
from ..training.checkpoint import Checkpoint, weights_sha256
from ..training.stage_model import CHECKPOINT_NAME
from ..utilities import paths
from ..utilities.files import atomic_path, read_json, write_json
from .evidence_check import judge_evidence
from .out_of_fold import OutOfFold, up_to

logger = logging.getLogger(__name__)

CENTRE_RADIUS_MM = 10.0   # a true vertebra is located when a found centre lies this near
KEY_METRIC = {"localize": "f1", "segment": "dice", "identify": "id_rate"}


def open_fold(dataset: str, fold: int | str, device: torch.device, plans_name: str = DEFAULT_PLANS_NAME,
              trainers: Mapping[str, str] | None = None, checkpoints: Mapping[str, str] | None = None) -> OutOfFold:
    """`OutOfFold` of a fold of the dataset's split. Fold 'all' has no unseen case: InputError."""
    if fold == "all":
        raise InputError("Fold all trains on every case, so none is left that it has not seen; cross-validation uses the numbered folds.")
    base = paths.preprocessed_folder() / dataset
    patients = read_json(base / "dataset.json", "dataset description").get("patients") or {}
    plans = load_plans(base / f"{plans_name}.json")
    cases = PreprocessedDataset(base / plans.stage("segment").data_fingerprint).cases
    train, val = fold_cases(load_splits(base, cases, patients), fold, cases, patients)
    if set(train) & set(val):
        raise InputError(f"Fold {fold} of {dataset} validates on cases it is trained on (a single case or patient); add cases.")
    return OutOfFold(dataset, fold, val, device, plans_name, patients, trainers, checkpoints)


def validate_fold(found: OutOfFold, stage: str) -> dict[str, Any]:
    """Summary of `stage` on the fold's validation cases, through this fold's own networks of all stages up to it.

    MissingStage when an earlier stage has not finished this fold.
    """
    found.require(stage)
    found.folder(stage).mkdir(parents=True, exist_ok=True)
    results = [_EVALUATE[stage](found, case) for case in found.cases]
    weights = {name: found.model(name).sha256[0] for name in up_to(stage)}
    return {"stage": stage, "fold": found.fold, "weights": weights, "signature": found.signature(stage)} | summarise_stage(stage, results)


def summarise_stage(stage: str, results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Summary of the cases' results ({'metrics', 'spineclue', 'voxels', 'prediction_file', 'reference_file'} each)."""
    results = list(results)
    if stage == "identify":
        return summarise(results)
    cases = [result["spineclue"] for result in results]
    counts = {key: sum(case[key] for case in cases) for key in ("hits", "missed", "false_positives")}
    own = metrics.detection(counts["hits"], counts["false_positives"], counts["missed"]) | counts
    labels = sorted({label for result in results for label in result["metrics"]})
    if stage == "segment":
        per_label = [{label: result["metrics"].get(label) or absent(result["voxels"]) for label in labels} for result in results]
        means = label_means(per_label, labels)
        own["dice"] = _mean([row["Dice"] for result in results for row in result["metrics"].values()])
    else:
        per_label = [result["metrics"] for result in results]
        values = {label: [row[label] for row in per_label if label in row] for label in labels}
        mean = {str(label): {"found": _mean([v["found"] for v in rows]), "distance_mm": _mean([v["distance_mm"] for v in rows]),
                             "n_ref": len(rows)} for label, rows in values.items()}
        own["mean_centre_error_mm"] = _mean([v["distance_mm"] for rows in values.values() for v in rows])
        means = {"mean": mean, "foreground_mean": {key: _mean([row[key] for row in mean.values()]) for key in ("found", "distance_mm")}}
    return means | {"metric_per_case": [
        {"metrics": {str(label): row for label, row in metric.items()}, "prediction_file": result["prediction_file"],
         "reference_file": result["reference_file"]} for metric, result in zip(per_label, results, strict=True)],
        "spineclue": own | {"cases": cases}}


def accumulate(dataset: str | int, stage: str, folds: Sequence[int | str] = (0, 1, 2, 3, 4), plans_name: str = DEFAULT_PLANS_NAME,
               trainer: str | None = None, output: Path | None = None) -> tuple[Path, dict[str, Any]]:
    """Put the validations of `folds` together: every case once, each by networks that had not seen it; (folder, summary).

    Writes `crossval_results_folds_0_1_2_3_4/summary.json` with the predictions beside it, as nnU-Net does.
    """
    name = paths.dataset_name(dataset)
    stage_folder = paths.results_folder() / name / stage_folder_name(stage, plans_name, trainer)
    numbers = list(dict.fromkeys(str(fold) for fold in folds))
    output = Path(output) if output else stage_folder / f"crossval_results_folds_{'_'.join(numbers)}"
    results: list[dict[str, Any]] = []
    owner: dict[str, str] = {}
    for fold in numbers:
        file = stage_folder / f"fold_{fold}" / "validation" / "summary.json"
        if not file.is_file():
            trained = (stage_folder / f"fold_{fold}" / CHECKPOINT_NAME).is_file()
            raise InputError(f"Fold {fold} of {stage_folder.name} has no validation; run "
                             f"{train_command(name, stage, fold, plans_name, trainer, *['--val'] * trained)}.")
        summary = read_json(file, "validation summary")
        if "spineclue" not in summary or "metric_per_case" not in summary:
            raise InputError(f"{file} holds only the metrics of the stage alone: an earlier stage was not trained on fold {fold}; train "
                             f"it, then run {train_command(name, stage, fold, plans_name, trainer, '--val')}.")
        _check_weights(summary, stage_folder, fold, train_command(name, stage, fold, plans_name, trainer, "--val"))
        for result in _results_of(summary):
            case = result["spineclue"]["case"]
            if case in owner:
                raise InputError(f"Case '{case}' is validated by fold {owner[case]} and by fold {fold}: these are no folds of one split "
                                 "(those beyond splits_final.json are drawn by themselves); give fewer folds with -f.")
            owner[case] = fold
            results.append(result)
    summary = {"stage": stage, "folds": numbers} | summarise_stage(stage, results)
    output.mkdir(parents=True, exist_ok=True)
    for case, fold in owner.items():
        for ending in (".nii.gz", ".json"):
            source = stage_folder / f"fold_{fold}" / "validation" / f"{case}{ending}"
            if source.is_file():
                with atomic_path(output / source.name) as temporary:
                    shutil.copyfile(source, temporary)
    for description in ("plans.json", "dataset.json"):
        if (stage_folder / description).is_file():
            with atomic_path(output / description) as temporary:
                shutil.copyfile(stage_folder / description, temporary)
    write_json(output / "summary.json", summary)
    return output, summary


def _check_weights(summary: Mapping[str, Any], stage_folder: Path, fold: str, again: str) -> None:
    """Warn when a validation was made with weights that are no longer there: its metrics are those of another model.

    Earlier stages may be of any trainer: which one the validation followed is not known here.
    """
    trainer, plans_name, stage = stage_folder.name.split("__")
    for name, wanted in summary.get("weights", {}).items():
        files = stage_folder.parent.glob(f"{trainer if name == stage else '*'}__{plans_name}__{name}/fold_{fold}/checkpoint_*.pth")
        if wanted not in (weights_sha256(Checkpoint.load(file).network) for file in files):
            logger.warning("The validation of fold %s of %s was made with other weights of stage %s than those there are now; repeat it "
                           "with %s.", fold, stage_folder.name, name, again)


def key_metric(stage: str, summary: Mapping[str, Any]) -> float:
    """The one number a stage is rated by: F1 of located vertebrae, Dice of true vertebrae (a missed one counts 0), ID-rate among all
    true vertebrae (a missed one is not named right)."""
    own = summary["spineclue"]
    if stage == "identify":
        rows = [row for case in own["cases"] for row in case["vertebrae"]]
        return sum(row["predicted"] == row["level"] for row in rows) / max(1, len(rows))
    return float(own[KEY_METRIC[stage]])


def _results_of(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The cases' results out of a summary."""
    return [{"metrics": {int(label): row for label, row in entry["metrics"].items()}, "spineclue": case, "voxels": case.get("voxels", 0),
             "prediction_file": entry["prediction_file"], "reference_file": entry["reference_file"]}
            for entry, case in zip(summary["metric_per_case"], summary["spineclue"]["cases"], strict=True)]


def _mean(values: Sequence[float]) -> float:
    kept = [value for value in values if value == value]
    return float(np.mean(kept)) if kept else float("nan")


def _files(found: OutOfFold, stage: str, case: str) -> dict[str, str]:
    ending = "json" if stage == "localize" else "nii.gz"
    return {"prediction_file": str(found.folder(stage) / f"{case}.{ending}"),
            "reference_file": str(found.data(stage).folder / f"{case}_seg.b2nd")}


def _localize(found: OutOfFold, case: str) -> dict[str, Any]:
    from scipy.optimize import linear_sum_assignment
    from scipy.spatial.distance import cdist

    properties = found.data("localize").properties(case)
    rows = list(properties["vertebrae"].values())
    middles = np.array([(np.array(v["start"]) + np.array(v["stop"]) - 1) / 2 for v in rows]).reshape(-1, 3)
    true = ImageGrid.from_json(properties["geometry"]).index_to_world(middles)
    located = annotated_only(np.array([v.box_centre for v in found.located(case)]).reshape(-1, 3), found.data("localize"), case)
    distance = cdist(true, located)
    table = {int(v["label"]): {"found": 0, "distance_mm": float("nan")} for v in rows}
    hits = 0
    for i, j in zip(*linear_sum_assignment(np.where(distance <= CENTRE_RADIUS_MM, distance, 1e3)), strict=True):
        if distance[i, j] <= CENTRE_RADIUS_MM:
            table[int(rows[i]["label"])] = {"found": 1, "distance_mm": float(distance[i, j])}
            hits += 1
    case_metrics = {"case": case, "hits": hits, "missed": len(rows) - hits, "false_positives": len(located) - hits}
    return {"metrics": table, "spineclue": case_metrics, "voxels": 0} | _files(found, "localize", case)


def _segment(found: OutOfFold, case: str) -> dict[str, Any]:
    """Masks under the names of the true vertebrae they cover; masks that cover none are false positives."""
    vertebrae, labels = found.segmented(case), found.labels(case)
    names = match_true_names(vertebrae, labels)
    value = np.array([0, *(anatomy.LABEL_OF_NAME[name] if name else 0 for name in names)], dtype=np.uint8)
    instances, annotated = instance_map(vertebrae, labels.shape), found.annotated(case)
    wanted = [int(n) for n in np.unique(labels) if n]
    overlap = label_overlap(np.where(annotated, labels, anatomy.IGNORED), value[instances], wanted, anatomy.IGNORED)
    hits = sum(name is not None for name in names)
    false = sum(name is None and mostly(annotated[v.mask_box], v.known_mask) for v, name in zip(vertebrae, names, strict=True))
    case_metrics = {"case": case, "hits": hits, "missed": len(overlap) - hits, "false_positives": false,
                    "voxels": int(labels.size)}
    return {"metrics": overlap, "spineclue": case_metrics, "voxels": int(labels.size)} | _files(found, "segment", case)


def _identify(found: OutOfFold, case: str) -> dict[str, Any]:
    from ..export.case_record import case_record
    from ..export.label_map import label_map
    from ..inference.pipeline import identify_masks

    found.rows(case)
    vertebrae, truth = found.segmented(case), found.labels(case)
    geometry = ImageGrid.from_json(found.data("segment").properties(case)["geometry"])
    result = identify_masks(vertebrae, found.naming_model(case), scan=found.volume("segment", case))
    prediction = Volume(label_map(result.vertebrae, geometry, geometry), geometry)
    record = case_record(result)
    write_volume(prediction, found.folder("identify") / f"{case}.nii.gz")
    write_json(found.folder("identify") / f"{case}.json", record)
    whole = np.where(found.annotated(case), truth, anatomy.IGNORED)
    case_metrics = evaluate_case(*without_ignored(Volume(whole, geometry), prediction), record, case=case) | {"voxels": int(truth.size)}
    detections = list(result.basis.detections) if result.basis is not None else []
    judged = judge_evidence(result, match_true_names(detections, truth) if detections else [])
    if judged is not None:
        case_metrics["evidence_model"] = judged
    labels = [int(n) for n in np.union1d(np.unique(truth), np.unique(prediction.array)) if n]
    return {"metrics": label_overlap(whole, prediction.array, labels, anatomy.IGNORED), "spineclue": case_metrics,
            "voxels": int(truth.size)} | _files(found, "identify", case)


_EVALUATE = {"localize": _localize, "segment": _segment, "identify": _identify}
