"""`spineclue_find_best_configuration`: what to predict with, chosen on cross-validation alone, and the commands that do it.

Per plans name, stage by stage: of several trainers the one whose validation on unseen cases is best, later stages validated on what the
chosen earlier ones found; then fusion and decoder (`identification_search`), which keep their planned settings unless a gain is sure
(`settings_trial`). Of several plans the one whose last stage names most.
Everything is kept or made anew by signature, so a run cut at any moment goes on; the instructions are written last.
"""
from __future__ import annotations

import logging
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..errors import InputError
from ..plans.plans import DEFAULT_PLANS_NAME
from ..stages.identify.fitting import HALVES
from ..stages.identify.plan import IdentifyRun
from ..stages.plan_files import load_plans
from ..stages.registry import CORE_STAGES, default_trainer_name, train_command
from ..training.stage_model import CHECKPOINT_NAME
from ..utilities import paths
from ..utilities.files import atomic_path, read_json, write_json
from .identification_search import Row, Settings, choose, fitted_fusion
from .model_settings import Fitted, restore, trained_state, write_settings
from .out_of_fold import OutOfFold
from .settings_trial import Verdict, count_right, judge, nested_gains, settings_of_run, with_settings
from .validation import accumulate, key_metric, open_fold, validate_fold

logger = logging.getLogger(__name__)

INFORMATION, INSTRUCTIONS = "inference_information.json", "inference_instructions.txt"
RULE = "chosen by spineclue_find_best_configuration on out-of-fold rows"


def find_best_configuration(dataset: str | int, plans_names: Sequence[str] = (DEFAULT_PLANS_NAME,), trainers: Sequence[str] | None = None,
                            folds: Sequence[int | str] = (0, 1, 2, 3, 4), device: torch.device | None = None,
                            dry_run: bool = False) -> dict[str, Any]:
    """Choose, write the choice into the model's plans and checkpoints, and say how to predict; content of inference_information.json.

    `trainers`: class names to compare (None: every trainer that has finished all `folds`). Validations that belong to the present
    weights are kept, others are made anew. Settings of fusion and decoder are written only where their gain on cases that had no part in
    choosing them is sure (`settings_trial`); `undo` takes them back. `dry_run`: validate and search, and write nothing else.
    """
    name = paths.dataset_name(dataset)
    where, numbers = device or torch.device("cpu"), [str(fold) for fold in folds]
    _check_trainers(name, plans_names, trainers or ())
    found = {plans_name: _choose_chain(name, plans_name, trainers, numbers, where) for plans_name in dict.fromkeys(plans_names)}
    best = max(found, key=lambda key: found[key]["figures"][CORE_STAGES[-1]])  # the first of equals
    chosen = found[best]
    settings = _choose_settings(name, best, chosen["trainers"], numbers, where, dry_run)
    information = {"dataset": name, "folds": numbers, "plans": best, "trainers": chosen["trainers"], "figures": chosen["figures"],
                   "candidates": {key: value["candidates"] for key, value in found.items()}, **settings,
                   "note": "nested_estimate is of cases that had no part in choosing. Rates in settings_tried are of folds that had no "
                           "part in fitting; the choice follows them, so the best one flatters. Nothing was tuned on test cases."}
    if dry_run:
        return information
    write_json(paths.results_folder() / name / INFORMATION, information)
    with atomic_path(paths.results_folder() / name / INSTRUCTIONS) as temporary:
        temporary.write_text(_instructions(name, best, chosen["trainers"], numbers, information), encoding="utf-8")
    return information


def _choose_chain(dataset: str, plans_name: str, trainers: Sequence[str] | None, folds: list[str],
                  device: torch.device) -> dict[str, Any]:
    """Per stage the best trainer, rated on what the chosen earlier stages found."""
    chosen: dict[str, str] = {}
    figures: dict[str, float] = {}
    candidates: dict[str, dict[str, float]] = {}
    for stage in CORE_STAGES:
        candidates[stage] = {}
        for trainer in _finished_trainers(dataset, stage, plans_name, trainers, folds):
            for fold in folds:
                _ensure_validated(open_fold(dataset, fold, device, plans_name, chosen | {stage: trainer}), stage)
            _, summary = accumulate(dataset, stage, folds, plans_name, trainer)
            candidates[stage][trainer] = key_metric(stage, summary)
            logger.info("%s, %s: %.4f over %d cases.", stage, trainer, candidates[stage][trainer], len(summary["metric_per_case"]))
        chosen[stage] = max(candidates[stage], key=candidates[stage].__getitem__)
        figures[stage] = candidates[stage][chosen[stage]]
    return {"trainers": chosen, "figures": figures, "candidates": candidates}


def _trainers_of(dataset: str, stage: str, plans_name: str) -> list[str]:
    """Trainers that have a folder for the stage."""
    return [place.name.split("__")[0] for place in (paths.results_folder() / dataset).glob(f"*__{plans_name}__{stage}")]


def _check_trainers(dataset: str, plans_names: Sequence[str], wanted: Sequence[str]) -> None:
    """InputError when one of the trainers named has trained no stage."""
    known = sorted({name for plans_name in plans_names for stage in CORE_STAGES for name in _trainers_of(dataset, stage, plans_name)})
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise InputError(f"No stage that predicts was trained by '{unknown[0]}' with {', '.join(plans_names)} of {dataset}; there are: "
                         f"{', '.join(known) or 'none'}.")


def _finished_trainers(dataset: str, stage: str, plans_name: str, wanted: Sequence[str] | None, folds: list[str]) -> list[str]:
    """Trainers of the stage with all folds, the default first; InputError when there is none."""
    results, default = paths.results_folder() / dataset, default_trainer_name(stage)
    known = sorted(_trainers_of(dataset, stage, plans_name), key=lambda t: (t != default, t))
    if wanted is not None:  # trainers belong to one stage each: where none of those named does, the default serves
        known = [trainer for trainer in known if trainer in wanted] or [default]
    missing: dict[str, list[str]] = {trainer: [fold for fold in folds if not (
        results / f"{trainer}__{plans_name}__{stage}" / f"fold_{fold}" / CHECKPOINT_NAME).is_file()] for trainer in known}
    finished = [trainer for trainer in known if not missing[trainer]]
    if finished:
        return finished
    trainer, lacking = next(iter(missing.items()), (default, folds))
    raise InputError(f"Stage {stage} with {plans_name} has not finished fold {lacking[0]} of {dataset}; run "
                     f"{train_command(dataset, stage, lacking[0], plans_name, trainer)}, or choose folds with -f.")


def _ensure_validated(found: OutOfFold, stage: str) -> None:
    """Make sure that the fold's summary belongs to the present weights of this stage and of the chosen earlier ones."""
    file = found.folder(stage) / "summary.json"
    summary = read_json(file, "validation summary") if file.is_file() else {}
    if summary.get("signature") == found.signature(stage) and "metric_per_case" in summary:
        return
    found.require(stage)
    alone = {"alone": summary["alone"]} if "alone" in summary else {}
    write_json(file, validate_fold(found, stage) | alone)


def _choose_settings(dataset: str, plans_name: str, trainers: dict[str, str], folds: list[str], device: torch.device,
                     dry_run: bool) -> dict[str, Any]:
    """Search fusion and decoder, judge what is found on cases that had no part in it, and write it where the gain is sure: matrices into
    every fold's checkpoint, numbers into plans.json (last). Otherwise the model is as its training left it."""
    opened = [open_fold(dataset, fold, device, plans_name, trainers) for fold in folds]
    rows = [_row(found, case) for found in opened for case in found.cases]
    folder = opened[0].stage_folder("identify")
    # The settings of the preprocessed plan are where the search starts, whatever an earlier search has left here.
    run = load_plans(paths.preprocessed_folder() / dataset / f"{plans_name}.json").stage("identify").run
    start = Settings(run.theta, run.hops, run.neighbours, dict(run.classifier_weights), dict(run.decoder_penalties))
    states = {str(found.fold): trained_state(found) for found in opened}
    settings, table = choose(rows, start)
    verdict = _judge(opened, states, rows, start, settings)
    logger.info("Settings: %s.", verdict.reason)
    if not dry_run:
        if verdict.taken:
            _write(opened, states, rows, settings, folds)
            _write_numbers(folder, settings, run, folds)
        elif restore(folder):
            logger.info("What an earlier search had chosen is taken back.")
    return {"settings": (settings if verdict.taken else start).to_json(), "settings_planned": start.to_json(),
            "settings_chosen": settings.to_json(), "nested_estimate": verdict.to_json(), "settings_tried": table,
            "written": verdict.taken and not dry_run}


def _judge(opened: list[OutOfFold], states: dict[str, Fitted], rows: list[Row], start: Settings, settings: Settings) -> Verdict:
    """Nested estimate of the search, and where that speaks for it a trial run of the very settings that would be written."""
    if settings == start:
        return Verdict(0.0, 0.0, (0.0, 0.0), False, "nothing that was tried does better than the plan")
    if len(opened) < 2:
        return Verdict(0.0, 0.0, (0.0, 0.0), False, "one fold alone has no cases that had no part in choosing; give two folds or more")
    verdict = judge(nested_gains(opened, states, rows, start))
    if not verdict.taken:
        return verdict
    phi, right = fitted_fusion(rows, settings).phi.detach().clone(), 0
    for found in opened:
        right += sum(count_right(found, case, settings, states[str(found.fold)], phi)[0] for case in found.cases)
    if right < sum(case.planned for case in verdict.cases):
        return replace(verdict, taken=False, reason="fitted on all folds, the settings name fewer of these very cases than the plan does")
    return verdict


def _write(opened: list[OutOfFold], states: dict[str, Fitted], rows: list[Row], settings: Settings, folds: list[str]) -> None:
    """Fusion matrices of all folds into each fold's checkpoint."""
    phi = fitted_fusion(rows, settings).phi.detach().clone()
    for found in opened:
        before, known = states[str(found.fold)]
        fitted = before | {"fusion_fitted_on": f"unseen cases of folds {', '.join(folds)}"}
        extra = {**known, "phi": phi}
        for number, half in enumerate(fitted.get(HALVES, ())):  # what these cases are judged by has not seen them
            others = [row for row in rows if row.case not in half["cases"]]
            extra[f"phi_half_{number}"] = fitted_fusion(others, settings).phi.detach().clone()
        write_settings(found, fitted, extra)


def _write_numbers(folder: Path, settings: Settings, before: IdentifyRun, folds: list[str]) -> None:
    """The numbers into the model's plans.json, each with its rule and the value that was planned."""
    plans = load_plans(folder / "plans.json")
    stage = plans.stage("identify")
    reasons = stage.reasons | {f"run.{key}": {"rule": RULE, "from": {"folds": folds, "before": getattr(before, key)}}
                               for key in settings_of_run(settings)}
    plans.stages["identify"] = replace(stage, run=with_settings(stage.run, settings), reasons=reasons)
    plans.save(folder / "plans.json")


def undo(dataset: str | int, plans_names: Sequence[str] = (DEFAULT_PLANS_NAME,)) -> list[Path]:
    """Give every identify stage of the plans back what its training left; the folders that had chosen settings.

    InputError when there is none. `inference_information.json` says that the plan's settings count again.
    """
    name = paths.dataset_name(dataset)
    folders = [place for plans_name in dict.fromkeys(plans_names)
               for place in sorted((paths.results_folder() / name).glob(f"*__{plans_name}__identify")) if restore(place)]
    if not folders:
        raise InputError(f"No settings were chosen for {', '.join(plans_names)} of {name}, so there is nothing to undo.")
    file = paths.results_folder() / name / INFORMATION
    if file.is_file():
        information = read_json(file, "inference information")
        write_json(file, information | {"settings": information.get("settings_planned", information.get("settings")), "written": False})
    return folders


def _row(found: OutOfFold, case: str) -> Row:
    rows = found.rows(case)
    true = len(found.data("identify").properties(case)["vertebrae"])
    evidence = found.evidence(case) if len(rows["names"]) else {}
    return Row(case, str(found.fold), rows["probabilities"], rows["entropy"], rows["centres"], rows["names"],
               true - int((rows["names"] != "").sum()), evidence)


def _instructions(dataset: str, plans_name: str, trainers: dict[str, str], folds: list[str], information: dict[str, Any]) -> str:
    """Text with commands that run as they stand, on the dataset's own scans; put your folders in their place."""
    raw = paths.raw_folder() / dataset
    scans = next((raw / name for name in ("imagesTs", "imagesTr") if (raw / name).is_dir()), raw / "imagesTs")
    output = paths.results_folder() / dataset / f"predicted_{scans.name}"
    model = ["-d", dataset, "-p", plans_name, "-tr", *(trainers[stage] for stage in CORE_STAGES), "-f", *folds]
    figures = ", ".join(f"{stage} {value:.4f}" for stage, value in information["figures"].items())
    lines = [f"# {dataset}: predict with {len(folds)} folds of {plans_name}, {', '.join(trainers.values())}.",
             f"# On cases that the networks had not seen: {figures}.",
             f"# Another folder of scans: put it after -i. All that was compared: {INFORMATION}.", "",
             shlex.join(["spineclue_predict", "-i", str(scans), "-o", str(output), *model])]
    labels = raw / scans.name.replace("images", "labels")
    if labels.is_dir():
        caution = "" if scans.name == "imagesTs" else " (these scans were trained on: no measure of quality)"
        lines += ["", f"# Against the reference{caution}:", shlex.join(["spineclue_evaluate", "-ref", str(labels), "-pred", str(output)])]
    return "\n".join(lines) + "\n"


def results_place(dataset: str) -> tuple[Path, Path]:
    """Paths of inference_information.json and inference_instructions.txt."""
    folder = paths.results_folder() / paths.dataset_name(dataset)
    return folder / INFORMATION, folder / INSTRUCTIONS
