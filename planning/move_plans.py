"""The plan of one dataset for another: pretrain on one, fine-tune on the other with the same networks and the same network space."""
from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from spineclue_v2.errors import InputError
from spineclue_v2.plans.plans import DEFAULT_PLANS_NAME
from spineclue_v2.stages.plan_files import load_plans
from spineclue_v2.utilities import paths
from spineclue_v2.utilities.files import read_json


def move_plans_between_datasets(source: str | int, target: str | int, source_plans: str = DEFAULT_PLANS_NAME,
                                target_plans: str | None = None) -> Path:
    """Write `source`'s plan into `target`'s preprocessed folder under the name `target_plans` (default: the same); returns its path.

    Every number stays, `dataset_name` and `dataset_hash` become the target's. InputError when the target has a plan of that name already
    with other fingerprints, or when it has not been fingerprinted.
    """
    source_name, target_name = paths.dataset_name(source), paths.dataset_name(target)
    name = target_plans or source_plans
    plans = load_plans(paths.preprocessed_folder() / source_name / f"{source_plans}.json")
    folder = paths.preprocessed_folder() / target_name
    if not (folder / "dataset_fingerprint.json").is_file():
        raise InputError(f"{target_name} has no fingerprint, which training needs beside the plan; run spineclue_extract_fingerprint -d "
                         f"{target_name[7:10]} first.")
    fingerprint = read_json(folder / "dataset_fingerprint.json", "fingerprint")
    moved = replace(plans, plans_name=name, dataset_name=target_name, dataset_hash=str(fingerprint.get("dataset_hash", "")))
    path = folder / f"{name}.json"
    if path.is_file():
        known = load_plans(path)
        if any(stage not in known.stages or known.stages[stage].model_fingerprint != plan.model_fingerprint
               for stage, plan in moved.stages.items()):
            raise InputError(f"{target_name} has another plan {name} already; choose another name with -tp.")
    moved.save(path)
    return path
