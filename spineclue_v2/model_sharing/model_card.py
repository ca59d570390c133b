"""What travels with shared weights for people to read: the model card and the licence text."""
from __future__ import annotations

from pathlib import Path
from typing import Any

from ..anatomy import ORDER_INDEX
from ..errors import InputError
from ..inference.model import Model, folds_of
from ..plans.plans import DEFAULT_PLANS_NAME
from ..stages.registry import default_trainer_name
from ..training.checkpoint import Checkpoint
from ..utilities.files import read_json
from ..utilities.plugins import package_of
from ..version import __version__

MAX_LICENCE_BYTES = 1 << 20

NO_LICENCE = """\
Whoever exported this model stated no licence for its weights; ask them before you use or pass on the weights.
"""
TERMS = """\
Whatever the terms above, keep in mind:

- The detector (weights of the stage localize) is a network of the package ultralytics' design. Its vendor holds that weights
  trained with ultralytics fall under the AGPL-3.0 unless a commercial licence was bought; treat them so.
- Weights may be bound by the terms of the data they were trained on (attribution, share-alike, no commercial use).
- spineclue_v2 itself, which this archive does not contain, is licensed under Apache-2.0.

NO MEDICAL DEVICE. The weights come without warranty of any kind.
"""


INTENDED_USE = """\
Research on CT scans like those it was trained on. It is **not a medical device**: it has not been validated for clinical use, and
nobody may be diagnosed, treated or operated on the ground of its output (README of spineclue_v2, "What it is not"). A wrong level
looks as convincing as a right one. Names of cases and patients are not part of this archive."""


def licence_text(file: str | Path | None = None) -> str:
    """Content of LICENSE.txt: the exporter's own text, else that there is none, and in any case what the weights' origin implies."""
    if file is None:
        return f"{NO_LICENCE}\n{TERMS}"
    path = Path(file)
    try:
        if path.stat().st_size > MAX_LICENCE_BYTES:
            raise InputError(f"Licence {path} has {path.stat().st_size} bytes; expected a text of at most {MAX_LICENCE_BYTES}.")
        return f"{path.read_text(encoding='utf-8').rstrip()}\n\n{TERMS}"
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"Licence {path} is no readable text file; give -license a text in UTF-8.") from error


def model_card(model: Model, files: dict[str, list[Path]], half: bool) -> str:
    """Markdown: what the model was trained on, its figures on its validation cases, its fingerprints, what it is for and what not."""
    folder = next(iter(files.values()))[0].parents[1]
    dataset, fingerprint = _optional(folder / "dataset.json"), _optional(folder / "dataset_fingerprint.json")
    folds = ", ".join(folds_of(files))
    plans = model.plans
    lines = [f"# {plans.dataset_name or folder.parent.name}, {plans.plans_name}", "",
             "Finds, segments and names the vertebrae of a CT scan with [SpineCLUE](https://arxiv.org/abs/2401.07271) as implemented in "
             f"spineclue_v2 (exported by version {__version__}). Install it with `spineclue_install_model ZIP`, use it with "
             f"`spineclue_predict -d {folder.parent.name}{choice_of(files)}`.", "",
             f"- folds: {folds}", f"- weights: {'fp16' if half else 'as trained (fp32)'}", f"- planner: {plans.planner}",
             f"- content hash of the dataset: `{plans.dataset_hash}`", "", "## Training data", ""]
    lines += [f"- {text}" for text in _data_lines(dataset, fingerprint)]
    for stage, package in packages_of(model, files).items():
        lines += ["", f"Stage {stage} needs the package `{package}`: install it first."]
    lines += ["", "## Stages and their figures", "",
              "Figures of each fold on its own validation cases, as `validation/summary.json` has them: each stage on what the earlier "
              "stages of that fold found (on true input where those were not trained). Measure it on your data with "
              "`spineclue_evaluate`.", "",
              "| stage | model fingerprint | fold | epochs | cases (training, validation) | figures |", "|---|---|---|---|---|---|"]
    for stage in files:
        lines += [_stage_row(stage, model, file) for file in files[stage]]
    for stage in model.record.get("shipped_stands_in", ()):
        lines += ["", f"Stage {stage} was not trained with this model and is not part of it: the package's own weights of it stand in."]
    lines += ["", "## Intended use", "", INTENDED_USE, "", "Licence: see LICENSE.txt beside this card.", ""]
    return "\n".join(lines)


def packages_of(model: Model, files: dict[str, list[Path]]) -> dict[str, str]:
    """{stage: package} of the stages that are, or whose trainers are, from other packages than ours."""
    found = {stage: package_of(type(model.plans.stage(stage).network)) or Checkpoint.load(paths[0]).meta.get("package")
             for stage, paths in files.items()}
    return {stage: package for stage, package in found.items() if package}


def choice_of(files: dict[str, list[Path]]) -> str:
    """The flags of spineclue_predict that choose this model's plans and trainers; empty where those are the default."""
    names = {stage: paths[0].parents[1].name.split("__") for stage, paths in files.items()}
    plans_name = next(iter(names.values()))[1]
    own = [f"{stage}={trainer}" for stage, (trainer, *_) in names.items() if trainer != default_trainer_name(stage)]
    return (f" -p {plans_name}" if plans_name != DEFAULT_PLANS_NAME else "") + (f" -tr {' '.join(own)}" if own else "")


def _optional(path: Path) -> dict[str, Any]:
    return read_json(path, path.name) if path.exists() else {}


def _data_lines(dataset: dict[str, Any], fingerprint: dict[str, Any]) -> list[str]:
    lines = [f"{key}: {dataset[key]}" for key in ("name", "description", "reference", "licence", "license", "release") if dataset.get(key)]
    if "numTraining" in dataset:
        lines.append(f"cases: {dataset['numTraining']}")
    if dataset.get("patients"):
        lines.append(f"patients: {len(set(dataset['patients'].values()))}")
    levels = fingerprint.get("spine", {}).get("levels", {})
    if isinstance(levels, dict) and levels:
        known = sorted((n for n in levels if n in ORDER_INDEX), key=ORDER_INDEX.__getitem__)
        lines.append("vertebrae per level: " + ", ".join(f"{name} {levels[name].get('count', '?')}" for name in known))
    return lines or ["not described: the results folder holds neither dataset.json nor dataset_fingerprint.json"]


def _stage_row(stage: str, model: Model, file: Path) -> str:
    meta = Checkpoint.load(file).meta
    summary = _optional(file.parent / "validation" / "summary.json")
    figures = [f"{key} {value:.4g}" for key, value in _figures(summary).items()]
    cases = f"{len(meta.get('train_cases', []))}, {len(meta.get('val_cases', []))}"
    return (f"| {stage} | `{model.plans.stage(stage).model_fingerprint}` | {file.parent.name[5:]} | {meta.get('epoch', '?')} | {cases} | "
            f"{'; '.join(figures) or 'not validated'} |")


def _figures(summary: dict[str, Any]) -> dict[str, Any]:
    """Numbers of a validation summary but those of single cases and levels: on what earlier stages found, else of the stage alone."""
    alone = summary.get("alone", summary)
    found = summary.get("spineclue") or alone | alone.get("foreground_mean", {})
    return {key: value for key, value in found.items() if isinstance(value, int | float) and not isinstance(value, bool) and key != "fold"}
