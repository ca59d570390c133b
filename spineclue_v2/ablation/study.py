"""From a planned and preprocessed dataset to the tables and pictures of the study. Trainings that are finished are not repeated."""
from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import anatomy
from ..dataset.preprocessed import PreprocessedDataset
from ..dataset.splits import fold_cases, load_splits, parse_fold, patients_of
from ..errors import InputError
from ..evaluation import calibration, metrics
from ..inference.model import load_stand_in
from ..plans.plans import DEFAULT_PLANS_NAME, Plans
from ..stages.identify.plan import IdentifyRun
from ..stages.plan_files import load_plans
from ..training.device import resolve_device
from ..training.stage_model import StageModel
from ..training.trainer import BaseTrainer
from ..utilities import paths
from ..utilities.files import write_json
from . import figures
from .embedding import neighbour_silhouette, two_dimensions
from .rows import STEPS, Scan, add_outputs, best_level, names_by_step, parts_of, scans_of, shape_probabilities
from .trainings import TRAININGS, Training, extra_trainings, train_or_load

logger = logging.getLogger(__name__)

CURVES: dict[str, tuple[float, ...]] = {"hops": (0, 1, 2, 3, 4, 5, 7), "mc_samples": (1, 2, 5, 10, 20, 40),
                                        "theta": (0.01, 0.05, 0.1, 0.2, 0.5, 1.0), "neighbours": (1, 3, 5, 7, 9, 11)}
"""The parameters of the paper's Fig. 7 and the values tried, one at a time, the others as planned."""

EMBEDDED = ("contrastive", "mask", "resnext", "vit")


def ablation(dataset: str | int, folds: Sequence[int | str] = (0,), plans_name: str = DEFAULT_PLANS_NAME, output: str | Path | None = None,
             seeds: int = 1, extras: Sequence[str] = (), device: str | None = None,
             workers: int | None = None) -> tuple[Path, list[dict[str, Any]]]:
    """Train what is missing, then write all tables and pictures into `output` (default: in the dataset's results folder).

    Args:
        dataset: id or name of a planned and preprocessed dataset.
        folds: their validation cases are what is measured on.
        plans_name: the plan whose identify stage is studied.
        seeds: trainings of everything that often, from other first weights and batches.
        extras: further trainings, from `trainings.EXTRAS`.
        device: cuda, cpu, mps or the best there is.
        workers: processes that make batches (None: as in training).

    Returns the folder and the rows of table3.csv.
    """
    if seeds < 1:
        raise InputError(f"--seeds is {seeds}; expected at least 1.")
    name = paths.dataset_name(dataset)
    base = paths.preprocessed_folder() / name
    plans = load_plans(base / f"{plans_name}.json")
    plan = plans.stage("identify")
    data = PreprocessedDataset(base / plan.data_fingerprint)
    patients = patients_of(base)
    splits = load_splits(base, data.cases, patients)
    folds = list(dict.fromkeys(parse_fold(fold) for fold in folds))
    cases = {fold: fold_cases(splits, fold, data.cases, patients) for fold in folds}
    for fold, (training, validation) in cases.items():
        if set(training) & set(validation):
            raise InputError(f"Fold {fold} validates on cases it trains on; an ablation needs others. Give folds such as -f 0.")
    where = resolve_device(device)
    folder = Path(output) if output else paths.results_folder() / name / f"ablation__{plans_name}"
    trainings = TRAININGS | extra_trainings(extras, plan)
    networks, scans, records = _outputs(trainings, plans, data, cases, folder, seeds, where, workers)
    rows = _names(scans, networks["contrastive"], plan.run)
    table = _write_tables(folder, rows, seeds)
    _write_calibration(folder, rows)
    _write_curves(folder, scans, networks["contrastive"], plan.run)
    _write_embeddings(folder, scans, trainings)
    figures.write_csv(folder / "trainings.csv", [record | _single(record, scans) for record in records])
    write_json(folder / "study.json", {
        "dataset": name, "dataset_hash": plans.dataset_hash, "plans": plans_name,
        "model_fingerprint": plan.model_fingerprint, "folds": folds, "seeds": seeds, "extras": list(extras),
        "validation_cases": {str(fold): found[1] for fold, found in cases.items()},
        "training_cases": {str(fold): len(found[0]) for fold, found in cases.items()},
        "input": "true masks and true centres of the validation cases", "plan": plans.to_json()["stages"]["identify"]})
    return folder, table


def _outputs(trainings: dict[str, Training], plans: Plans, data: PreprocessedDataset, cases: dict[int | str, tuple[list[str], list[str]]],
             folder: Path, seeds: int, device: torch.device, workers: int | None
             ) -> tuple[dict[str, dict[tuple[int | str, int], Any]], list[Scan], list[dict[str, Any]]]:
    """Networks {training: {(fold, seed): network}}, what they say about every validation case, and a record of each training."""
    geometry = _geometry()
    networks: dict[str, dict[tuple[int | str, int], Any]] = {name: {} for name in trainings}
    scans: list[Scan] = []
    records = []
    for fold, own in cases.items():
        for seed in range(seeds):
            found = scans_of(data, own[1], fold, seed, len(cases) > 1, geometry)
            if not found:
                raise InputError(f"The validation cases of fold {fold} hold no vertebra; an ablation has nothing to measure there.")
            for name, training in trainings.items():
                trainer = train_or_load(name, training, plans, data, own, folder / f"fold_{fold}" / f"seed_{seed}", fold=fold, seed=seed,
                                        device=device, workers=workers)
                add_outputs(found, name, trainer, data)
                networks[name][fold, seed] = trainer.network
                records.append({"training": name, "title": training.title, "fold": fold, "seed": seed} | _cost(trainer))
            scans += found
    return networks, scans, records


def _geometry() -> StageModel | None:
    """The geometry classifier that comes with the package, None where it does not."""
    found = load_stand_in("geometry", torch.device("cpu"))
    if found is None:
        logger.warning("The package has no geometry.pth: the study goes without the geometry classifier.")
    return found


def _cost(trainer: BaseTrainer) -> dict[str, Any]:
    """Parameters and seconds of training on this machine."""
    return {"parameters": sum(p.numel() for p in trainer.network.parameters()),
            "training_seconds": round(sum(trainer.history["seconds"]), 1)}


def _names(scans: Sequence[Scan], networks: dict[tuple[int | str, int], Any], run: IdentifyRun) -> list[dict[str, Any]]:
    """One row per validation vertebra and seed: its true name, what each step calls it ("" = no vertebra), and the decoder's confidence."""
    rows = []
    for seed in sorted({scan.seed for scan in scans}):
        for fit, apply in parts_of([scan for scan in scans if scan.seed == seed]):
            found, numberings = names_by_step(fit, apply, networks, run)
            for k, scan in enumerate(apply):
                for i, level in enumerate(scan.names):
                    row: dict[str, Any] = {"fold": scan.fold, "seed": seed, "case": scan.case, "level": level}
                    row |= {step: names[k][i] or "" for step, names in found.items()}
                    for how, decoded in numberings.items():
                        row |= {f"{how}: name": decoded[k].names[i] or "", f"{how}: confidence": round(float(decoded[k].confidence[i]), 4),
                                f"{how}: anchored": decoded[k].numbering_anchored}
                    rows.append(row)
    return rows


def _write_calibration(folder: Path, rows: Sequence[dict[str, Any]]) -> None:
    """calibration.csv: how often the decoder is right and whether its confidences can be believed, by the weights of the classifiers."""
    table = []
    for how in (key.removesuffix(": name") for key in rows[0] if key.endswith(": name")):
        right = [row[f"{how}: name"] == row["level"] for row in rows]
        sure = [row[f"{how}: confidence"] for row in rows]
        scans: dict[tuple[Any, ...], tuple[bool, bool]] = {}
        for row, good in zip(rows, right, strict=True):
            key = (row["fold"], row["seed"], row["case"])
            scans[key] = row[f"{how}: anchored"], scans.get(key, (True, True))[1] and good
        flag = calibration.anchoring(*zip(*scans.values(), strict=True))
        risk = calibration.risk_coverage(sure, right)["risk_at"]
        table.append({"weights": how, "vertebrae": len(rows), "id_rate": round(float(np.mean(right)), 4),
                      "ece": round(calibration.expected_calibration_error(sure, right), 4),
                      "wrong_among_surest_half": round(risk["0.5"], 4),
                      "wrong_among_surest_90_percent": round(risk["0.9"], 4)} | {key: round(value, 4) for key, value in flag.items()})
    figures.write_csv(folder / "calibration.csv", table)


def _write_tables(folder: Path, rows: list[dict[str, Any]], seeds: int) -> list[dict[str, Any]]:
    """vertebrae.csv, table3.csv, table2_regions.csv, confusion/STEP.csv and confusion.png; returns the rows of table 3."""
    steps = [step for step in STEPS if step in rows[0]]
    figures.write_csv(folder / "vertebrae.csv", rows)
    table = [{"step": step} | _figures(rows, step, seeds) for step in steps]
    figures.write_csv(folder / "table3.csv", table)
    regions = []
    for step in steps:
        for region in ("cervical", "thoracic", "lumbar"):
            part = [row for row in rows if anatomy.region(row["level"]) == region]
            if part:
                regions.append({"step": step, "region": region} | _figures(part, step, seeds, whole_scans=False))
    figures.write_csv(folder / "table2_regions.csv", regions)
    matrices = {step: metrics.confusion_matrix([row["level"] for row in rows], [row[step] or None for row in rows]) for step in steps}
    for step, counts in matrices.items():
        lines = [{"true": level} | dict(zip(anatomy.LEVELS, line.tolist(), strict=True))
                 for level, line in zip(anatomy.LEVELS, counts, strict=True)]
        figures.write_csv(folder / "confusion" / f"{step.strip('+ ').replace(' ', '_')}.csv", lines)
    figures.plot_confusion(matrices, folder / "confusion.png")
    return table


def _figures(rows: Sequence[dict[str, Any]], step: str, seeds: int, whole_scans: bool = True) -> dict[str, Any]:
    """ID-rate and MSE as mean and standard deviation over the seeds, and the share of scans with all levels right."""
    values: dict[str, list[float]] = {"id_rate": [], "mse": [], "all_right": []}
    for seed in range(seeds):
        own = [row for row in rows if row["seed"] == seed]
        true, given = [row["level"] for row in own], [row[step] or None for row in own]
        values["id_rate"].append(metrics.identification_rate(true, given))
        values["mse"].append(metrics.level_mse(true, given))
        scans: dict[tuple[Any, str], list[bool]] = {}
        for row in own:
            scans.setdefault((row["fold"], row["case"]), []).append(row[step] == row["level"])
        values["all_right"].append(float(np.mean([all(right) for right in scans.values()])))
    found: dict[str, Any] = {"vertebrae": len(rows) // seeds, "scans": len({(row["fold"], row["case"]) for row in rows}), "seeds": seeds}
    for key in values if whole_scans else ("id_rate", "mse"):
        found[key] = round(float(np.mean(values[key])), 4)
        found[f"{key}_sd"] = round(float(np.std(values[key], ddof=1)), 4) if seeds > 1 else ""
    return found


def _write_curves(folder: Path, scans: Sequence[Scan], networks: dict[tuple[int | str, int], Any], run: IdentifyRun) -> None:
    """parameter_curves.csv and .png: ID-rate after fusion, phi and temperature fitted anew for every setting."""
    rows = []
    for parameter, values in CURVES.items():
        for value in values:
            setting = replace(run, **{parameter: type(getattr(run, parameter))(value)})
            for seed in sorted({scan.seed for scan in scans}):
                true: list[str] = []
                given: list[str | None] = []
                for fit, apply in parts_of([scan for scan in scans if scan.seed == seed]):
                    for scan, probabilities in zip(apply, shape_probabilities(fit, apply, networks, setting)[1], strict=True):
                        true += scan.names
                        given += best_level(probabilities)
                rows.append({"parameter": parameter, "value": value, "seed": seed, "planned": value == getattr(run, parameter),
                             "id_rate": round(metrics.identification_rate(true, given), 4),
                             "mse": round(metrics.level_mse(true, given), 4)})
    figures.write_csv(folder / "parameter_curves.csv", rows)
    figures.plot_curves(rows, folder / "parameter_curves.png")


def _write_embeddings(folder: Path, scans: Sequence[Scan], trainings: Iterable[str]) -> None:
    """silhouette.csv (every fold and seed), embedding.csv and .png (the first ones): features of the validation vertebrae."""
    silhouettes, points = [], []
    for fold, seed in dict.fromkeys((scan.fold, scan.seed) for scan in scans):
        own = [scan for scan in scans if (scan.fold, scan.seed) == (fold, seed)]
        targets = torch.cat([scan.targets for scan in own]).numpy()
        for name in (n for n in trainings if n in own[0].features):
            features = torch.cat([scan.features[name] for scan in own]).cpu().numpy()[targets >= 0]
            silhouettes.append({"training": name, "fold": fold, "seed": seed, "vertebrae": len(features), "neighbour_silhouette":
                                round(neighbour_silhouette(features, targets[targets >= 0]), 4)})
            if name in EMBEDDED and (fold, seed) == (scans[0].fold, scans[0].seed):
                plane = two_dimensions(features)
                points += [{"training": name, "level": anatomy.LEVELS[t], "x": round(float(x), 3), "y": round(float(y), 3)}
                           for t, (x, y) in zip(targets[targets >= 0], plane, strict=True)]
    figures.write_csv(folder / "silhouette.csv", silhouettes)
    figures.write_csv(folder / "embedding.csv", points)
    figures.plot_embeddings(points, silhouettes, {name: TRAININGS[name].title for name in EMBEDDED}, folder / "embedding.png")


def _single(record: dict[str, Any], scans: Sequence[Scan]) -> dict[str, Any]:
    """ID-rate of one training's network alone, vertebra by vertebra, without messages or other classifiers."""
    own = [scan for scan in scans if (scan.fold, scan.seed) == (record["fold"], record["seed"])]
    name = record["training"]
    true = [level for scan in own for level in scan.names]
    given = [level for scan in own for level in best_level(scan.known_appearance if name == "appearance" else scan.logits[name])]
    return {"id_rate_single": round(metrics.identification_rate(true, given), 4), "mse_single": round(metrics.level_mse(true, given), 4)}

