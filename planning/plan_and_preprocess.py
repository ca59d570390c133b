"""The three steps between a raw dataset and training: fingerprint, plan, preprocess; each alone or in a row."""
from __future__ import annotations

import dataclasses
import logging
import shutil
import textwrap
from collections.abc import Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

from spineclue_v2.dataset.raw import GRADES_FILE, RawDataset
from spineclue_v2.errors import InputError
from spineclue_v2.plans.plans import DEFAULT_PLANS_NAME, GROUPS, Plans
from spineclue_v2.preprocessing.ct import preprocess_dataset
from spineclue_v2.preprocessing.mr import preprocess_mr_dataset
from spineclue_v2.stages.plan_files import load_plans
from spineclue_v2.stages.registry import modality_of, stage_of
from spineclue_v2.utilities import paths
from spineclue_v2.utilities.files import read_json, write_json

from .fine_tune import SHIPPED, FineTunePlanner
from .fingerprint import extract_fingerprint, load_fingerprint
from .mr_fingerprint import extract_mr_fingerprint, recognise
from .mr_planner import SSHSNetPlanner
from .planner import DEFAULT_PLANNER, find_planner

logger = logging.getLogger(__name__)
report = logging.getLogger(f"{__name__}.report")   # what a planning was asked for: its commands print it


def plan_and_preprocess(datasets: Sequence[str | int], planner: str | None = None, *, gpu_memory_target: float | None = None,
                        device: str = "cuda", plans_name: str | None = None, verify_integrity: bool = False,
                        preprocess: bool = True, clean: bool = False, num_processes: int = 0,
                        num_processes_fingerprint: int | None = None, executor: Executor | None = None,
                        progress: bool = True, source: str | None = None) -> dict[str, str]:
    """Fingerprint, plan and preprocess each of `datasets` (ids or names). Returns the cases that failed: {dataset/case: why}.

    `planner` None: the default one, or the MR planner where the dataset is recognised as MR. `plans_name` None takes the planner's own;
    `num_processes` 0 runs in this process; `executor` wins over both counts. `source`: see `plan_experiment`.
    """
    failures: dict[str, str] = {}
    workers = num_processes if num_processes_fingerprint is None else num_processes_fingerprint
    for dataset in datasets:
        name = fingerprint_dataset(dataset, verify_integrity, workers, executor, clean, progress, planner)
        plans = plan_experiment(name, planner, gpu_memory_target, device, plans_name, source)
        if preprocess:
            failures |= preprocess_plans(name, plans.plans_name, num_processes=num_processes, executor=executor, clean=clean,
                                         progress=progress)
        flags = "" if plans.plans_name == DEFAULT_PLANS_NAME else f" -p {plans.plans_name}"
        flags += f" -pretrained_weights {SHIPPED}" if source == SHIPPED else ""
        report.info("Next: spineclue_train %d %s 0%s (or all in place of %s: the stages in their order)", int(name[7:10]),
                    next(iter(plans.stages)), flags, next(iter(plans.stages)))
    return failures


def fingerprint_dataset(dataset: str | int, verify_integrity: bool = False, num_processes: int = 0,
                        executor: Executor | None = None, clean: bool = False, progress: bool = True,
                        planner: str | None = None) -> str:
    """Write dataset.json and dataset_fingerprint.json of a raw dataset into its preprocessed folder; returns its full name.

    MR datasets are measured as such: those that `planner` plans, without one those that are recognised.
    """
    name = paths.dataset_name(dataset, paths.raw_folder())
    raw, folder = RawDataset(paths.raw_folder() / name), paths.preprocessed_folder() / name
    logger.info("raw: %s (%d cases)\npreprocessed: %s", raw.folder, len(raw.cases), folder)
    if clean:
        for old in (folder / "dataset_fingerprint.json", folder / "fingerprint_cases.json"):
            old.unlink(missing_ok=True)
    if verify_integrity:
        _verify(raw, folder, num_processes)
    mr, why = (getattr(find_planner(planner), "modality", "CT") == "MR", f"planner {planner}") if planner else recognise(raw)
    logger.info("taken as %s dataset: %s", "an MR" if mr else "a CT", why)
    (extract_mr_fingerprint if mr else extract_fingerprint)(raw, folder, num_processes, executor, progress)
    write_json(folder / "dataset.json", raw.json)
    if raw.grades:
        write_json(folder / GRADES_FILE, raw.grades)
    own_splits = raw.folder / "splits_final.json"
    if own_splits.is_file() and not (folder / "splits_final.json").exists():
        write_json(folder / "splits_final.json", read_json(own_splits, "splits"))
        logger.info("splits_final.json of the raw dataset is used.")
    return name


def plan_experiment(dataset: str | int, planner: str | None = None, gpu_memory_target: float | None = None,
                    device: str = "cuda", plans_name: str | None = None, source: str | None = None) -> Plans:
    """Plan from the fingerprint, save `<plans_name>.json`, say what was decided. An older, different plan is kept aside.

    `source`: 'shipped' or a plans.json of the weights that trainings are to start from (`fine_tune.FineTunePlanner`).
    """
    name = paths.dataset_name(dataset)
    folder = paths.preprocessed_folder() / name
    fingerprint = load_fingerprint(folder)
    if source is not None:
        if planner not in (None, FineTunePlanner.__name__):
            raise InputError(f"--from plans with {FineTunePlanner.__name__}, not with {planner}; leave one of --from and -pl out.")
        plans = FineTunePlanner(paths.raw_folder() / name, fingerprint, gpu_memory_target, device, plans_name, source).plan()
    else:
        planner = planner or (SSHSNetPlanner.__name__ if "mr" in fingerprint else DEFAULT_PLANNER)
        plans = find_planner(planner)(paths.raw_folder() / name, fingerprint, gpu_memory_target, device, plans_name).plan()
    path = folder / f"{plans.plans_name}.json"
    if path.is_file():
        _keep_previous(path, plans)
    if not path.is_file() or read_json(path) != _as_read(plans):
        plans.save(path)
    budget = plans.budget
    report.info("plan: %s (%s, %g GB on %s, class %s)\n%s", path, plans.planner, budget["gpu_memory_target_gb"], budget["device"],
                budget["machine_class"], summary_table(plans))
    _say_memory(plans)
    return plans


def preprocess_plans(dataset: str | int, plans_name: str = DEFAULT_PLANS_NAME, stages: Sequence[str] | None = None,
                     num_processes: int = 0, executor: Executor | None = None, clean: bool = False,
                     progress: bool = True) -> dict[str, str]:
    """Preprocess a dataset as its plan says. Returns the cases that failed: {dataset/folder/case: why}."""
    name = paths.dataset_name(dataset, paths.raw_folder())
    raw, folder = RawDataset(paths.raw_folder() / name), paths.preprocessed_folder() / name
    plans = load_plans(folder / f"{plans_name}.json")
    if stages:
        for stage in stages:
            plans.stage(stage)
    if plans.dataset_hash != raw.content_hash():
        logger.warning("%s has changed since it was planned; spineclue_plan_and_preprocess plans it anew.", name)
    write_json(folder / "dataset.json", raw.json)
    if modality_of(plans.stages) == "MR":
        failed: dict[Path, dict[str, str]] = {}
        for fingerprint, data in {plan.data_fingerprint: plan.data for plan in plans.stages.values()}.items():
            failed |= preprocess_mr_dataset(raw, data, folder / fingerprint, executor, num_processes, clean, progress)
    else:
        failed = preprocess_dataset(raw, plans, folder, stages, executor, num_processes, clean, progress)
    for folder in failed:
        using = [s for s in plans.stages if plans.stage(s).data_fingerprint == folder.name]
        logger.info("preprocessed for %s: %s", ", ".join(using), folder)
    return {f"{name}/{folder.name}/{case}": why for folder, cases in failed.items() for case, why in cases.items()}


def summary_table(plans: Plans) -> str:
    """The numbers a user asks about, with their rule, one per line."""
    rows = []
    for stage, plan in plans.stages.items():
        for key in stage_of(stage).headline:
            group, field = key.split(".")
            value = getattr(getattr(plan, group), field)
            text = (", " if field == "classes" else " x ").join(map(str, value)) if isinstance(value, tuple) else str(value)
            rows.append((stage, field, text, textwrap.shorten(plan.reasons.get(key, {}).get("rule", ""), 90, placeholder=" ...")))
    widths = [*(max(len(row[i]) for row in rows) for i in range(3)), 0]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def _say_memory(plans: Plans) -> None:
    """The memory model's estimate per stage, and a warning where it is more than what was asked for."""
    target, steps = plans.budget["gpu_memory_target_gb"], plans.budget.get("training_step_gb", {})
    report.info("memory of a training step: %s", ", ".join(f"{stage} {gb:g} GB" for stage, gb in steps.items()))
    for stage, gb in steps.items():
        if gb > target:
            logger.warning("A training step of %s is estimated at %g GB, more than the %g GB asked for; lower its run.batch_size (%d) in "
                           "%s.json, or plan with a larger -gpu_memory_target.", stage, gb, target,
                           plans.stage(stage).run.batch_size, plans.plans_name)


def _verify(raw: RawDataset, folder: Path, num_processes: int) -> None:
    """nnU-Net's integrity check, once per content of the dataset."""
    from spineclue_v2.adapters import verify_dataset_integrity

    path = folder / "integrity.json"
    content = {"dataset_hash": raw.content_hash(), "checked_by": "nnunetv2 verify_dataset_integrity"}
    if path.is_file() and read_json(path) == content:
        logger.info("nnU-Net's integrity check passed before on the same content.")
        return
    verify_dataset_integrity(raw.folder, num_processes)
    write_json(path, content)


def _keep_previous(path: Path, plans: Plans) -> None:
    """Say which numbers of the plan at `path` change, and keep it beside as `<name>_previous.json`."""
    try:
        old = load_plans(path)
    except InputError as error:
        changed = [str(error)]
    else:
        changed = [f"{stage}.{group}.{field}: {value} -> {getattr(getattr(plans.stages[stage], group), field)}"
                   for stage, plan in old.stages.items() if stage in plans.stages for group in GROUPS
                   for field, value in dataclasses.asdict(getattr(plan, group)).items()
                   if value != getattr(getattr(plans.stages[stage], group), field)]
    if changed:
        previous = path.with_name(f"{path.stem}_previous.json")
        shutil.copyfile(path, previous)
        logger.warning("%s differs from the new plan and is kept as %s:\n  %s", path.name, previous.name, "\n  ".join(changed))


def _as_read(plans: Plans) -> Any:
    import json

    return json.loads(json.dumps(plans.to_json()))
