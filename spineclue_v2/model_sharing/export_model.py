"""Passing a trained model on: `export_model` writes a ZIP with a manifest of hashes, `write_shipped` the files of the package.

A ZIP holds, below `DatasetXXX_Name/`, per stage `TRAINER__PLANS__STAGE/{plans.json, dataset.json, dataset_fingerprint.json,
fold_X/CHECKPOINT}` and once `card__PLANS/{manifest.json, MODEL_CARD.md, LICENSE.txt}`: the results folder's own layout, so that plain
unzip installs it too. Tensors and JSON only; names of cases and patients and paths of the training data stay behind.
"""
from __future__ import annotations

import hashlib
import io
import json
import logging
import tempfile
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..errors import InputError
from ..inference.model import Model, folds_of, load_trained, trained_files
from ..plans.plans import DEFAULT_PLANS_NAME
from ..stages.identify.fitting import HALVES
from ..stages.plan_files import load_plans
from ..training.checkpoint import Checkpoint
from ..training.stage_model import CHECKPOINT_NAME
from ..utilities import paths
from ..utilities.files import atomic_path, read_json
from ..version import __version__
from .model_card import licence_text, model_card, packages_of

logger = logging.getLogger(__name__)

FORMAT = 1
MANIFEST = "manifest.json"
CARD_FOLDER = "card__"
SHIPPED_LIMIT = 14 * 1000 * 1000
EPOCH = (1980, 1, 1, 0, 0, 0)  # the same model gives the same bytes whenever it is exported
PRIVATE_KEYS = ("patients", "dataset")  # of dataset.json: who the cases are, and where they lie
PRIVATE_FINGERPRINT_KEYS = ("cases", "checks")


def export_model(dataset: str | int, output: str | Path, folds: list[int | str] | None = None, plans_name: str = DEFAULT_PLANS_NAME,
                 trainers: dict[str, str] | None = None, checkpoint_name: str = CHECKPOINT_NAME, half: bool = False,
                 licence: str | Path | None = None) -> Path:
    """Write the trained model of `dataset` (all finished folds, or `folds`) as a ZIP; returns its path.

    The model is loaded once beforehand, so that nothing is exported that does not predict. `half`: weights as fp16.
    `licence`: a text file whose content becomes LICENSE.txt.
    """
    output = Path(output)
    if output.suffix.lower() != ".zip":
        raise InputError(f"Cannot write the model to {output}; give a file name that ends with .zip.")
    folder, files, model = _checked(dataset, folds, plans_name, trainers, checkpoint_name)
    card = f"{CARD_FOLDER}{plans_name}"
    texts = {f"{card}/MODEL_CARD.md": model_card(model, files, half), f"{card}/LICENSE.txt": licence_text(licence)}
    for found in files.values():
        stage_folder = found[0].parents[1]
        for name, private in (("plans.json", ()), ("dataset.json", PRIVATE_KEYS),
                              ("dataset_fingerprint.json", PRIVATE_FINGERPRINT_KEYS)):
            if (stage_folder / name).exists():
                content = read_json(stage_folder / name, name)
                texts[f"{stage_folder.name}/{name}"] = _json({k: v for k, v in content.items() if k not in private})
    with atomic_path(output) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        listed: dict[str, Any] = {}
        for name, text in texts.items():
            _add(archive, listed, f"{folder.name}/{name}", text.encode())
        for file in (file for found in files.values() for file in found):
            name = f"{folder.name}/{file.parents[1].name}/{file.parent.name}/{file.name}"
            _add(archive, listed, name, _shareable_bytes(file, half))
        manifest = {"format": FORMAT, "spineclue_v2": __version__, "dataset": folder.name, "plans_name": plans_name,
                    "folds": folds_of(files), "checkpoint": checkpoint_name,
                    "stages": {stage: found[0].parents[1].name for stage, found in files.items()}, "half": half,
                    "fingerprints": {stage: model.record["fingerprints"][stage] for stage in files}, "files": listed}
        if packages := packages_of(model, files):
            manifest["packages"] = packages
        _add(archive, {}, f"{folder.name}/{card}/{MANIFEST}", _json(manifest).encode())
    logger.info("%s: %.1f MB.", output, output.stat().st_size / 1e6)
    return output


def write_shipped(dataset: str | int, fold: int | str, folder: str | Path, plans_name: str = DEFAULT_PLANS_NAME,
                  trainers: dict[str, str] | None = None, checkpoint_name: str = CHECKPOINT_NAME) -> list[Path]:
    """Write one fold as `STAGE.pth` each (fp16, histories left out), as `model.load_shipped` expects them; returns the paths."""
    _, files, _ = _checked(dataset, [fold], plans_name, trainers, checkpoint_name)
    return [write_shipped_stage(found[0], Path(folder) / f"{stage}.pth") for stage, found in files.items()]


def write_shipped_stage(checkpoint_file: Path, target: Path) -> Path:
    """Write one checkpoint of a fold's folder as `target`, as `model.load_shipped` expects it; returns `target`."""
    checkpoint = _without_cases(Checkpoint.load(checkpoint_file))
    # The folder's plan, not the one at the start of training: `run` numbers may have been chosen since.
    plans = load_plans(checkpoint_file.parent.parent / "plans.json")
    meta = {k: v for k, v in checkpoint.meta.items() if k != "history"} | {"plans": plans.to_json()}
    replace(checkpoint, meta=meta).save(target, half=True)
    size = target.stat().st_size
    if size > SHIPPED_LIMIT:
        logger.warning("%s has %.1f MB; the package's weights should stay under %.0f MB each.", target, size / 1e6, SHIPPED_LIMIT / 1e6)
    return target


def _checked(dataset: str | int, folds: list[int | str] | None, plans_name: str, trainers: dict[str, str] | None,
             checkpoint_name: str) -> tuple[Path, dict[str, list[Path]], Model]:
    folder = paths.results_folder() / paths.dataset_name(dataset)
    files = trained_files(folder, folds, plans_name, trainers, checkpoint_name)
    model = load_trained(folder, folds, torch.device("cpu"), plans_name, trainers, checkpoint_name)
    return folder, files, model


def _without_cases(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint without optimiser and scaler, and with counts where the names of its cases were."""
    meta = {k: v for k, v in checkpoint.meta.items() if k not in ("train_cases", "val_cases")}
    if HALVES in meta.get("fitted", {}):  # by what the validation cases were judged: their names, and matrices for nothing else
        meta["fitted"] = {k: v for k, v in meta["fitted"].items() if k != HALVES}
    extra = {name: tensor for name, tensor in checkpoint.extra.items() if not name.startswith("phi_half_")}
    meta["cases"] = {part: len(checkpoint.meta.get(f"{part}_cases", [])) for part in ("train", "val")}
    return replace(checkpoint, meta=meta, extra=extra, optimizer=None, scaler=None)


def _shareable_bytes(file: Path, half: bool) -> bytes:
    """The checkpoint as it is shared. Saved a second time into memory: torch writes the (temporary) file's name into the file."""
    buffer = io.BytesIO()
    with tempfile.TemporaryDirectory() as scratch:
        target = Path(scratch) / file.name
        checkpoint = _without_cases(Checkpoint.load(file))
        checkpoint.save(target, half)
        torch.save(torch.load(target, weights_only=True), buffer)
    return buffer.getvalue()


def _add(archive: zipfile.ZipFile, listed: dict[str, Any], name: str, content: bytes) -> None:
    packing = zipfile.ZIP_STORED if name.endswith(".pth") else zipfile.ZIP_DEFLATED
    info = zipfile.ZipInfo(name, EPOCH)
    info.compress_type = packing
    info.external_attr = 0o644 << 16
    archive.writestr(info, content)
    listed[name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def _json(content: Any) -> str:
    return json.dumps(content, indent=2) + "\n"
