"""The settings of a trained identify stage: as the training left them, written as chosen, and taken back.

Chosen settings live in two places: numbers in the stage's `plans.json`, fusion matrices in the checkpoint of every fold. Before either is
touched, both are kept in `before_find_best/` beside the folds, so that `restore` gives back the model as it was trained.
"""
from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..training.checkpoint import Checkpoint, weights_sha256
from ..training.stage_model import CHECKPOINT_NAME
from ..utilities.files import atomic_path

if TYPE_CHECKING:
    from .out_of_fold import OutOfFold

KEPT = "before_find_best"
Fitted = tuple[dict[str, Any], dict[str, torch.Tensor]]
"""`fitted` and `extra` of a checkpoint."""


def trained_state(found: OutOfFold) -> Fitted:
    """`fitted` and `extra` of the fold's identify checkpoint as the training left them, whatever was chosen since."""
    checkpoint = Checkpoint.load(found.checkpoint_file("identify"))
    kept = _kept(found.stage_folder("identify"), str(found.fold), checkpoint)
    return (kept or checkpoint).meta.get("fitted", {}), (kept or checkpoint).extra


def write_settings(found: OutOfFold, fitted: Mapping[str, Any], extra: Mapping[str, torch.Tensor]) -> None:
    """Put `fitted` and `extra` into the fold's checkpoint; what was there is kept. A checkpoint that has them stays untouched."""
    folder, file = found.stage_folder("identify"), found.checkpoint_file("identify")
    keep_plans(folder)
    checkpoint = Checkpoint.load(file)
    if checkpoint.meta.get("fitted") == fitted and _same(checkpoint.extra, extra):
        return
    if _kept(folder, str(found.fold), checkpoint) is None:
        meta = {"fitted": checkpoint.meta.get("fitted", {}), "weights": weights_sha256(checkpoint.network)}
        Checkpoint({}, meta, checkpoint.extra).save(folder / KEPT / f"fold_{found.fold}.pth")
    checkpoint.meta["fitted"], checkpoint.extra = dict(fitted), dict(extra)
    checkpoint.save(file)


def keep_plans(folder: Path) -> None:
    """Keep plans.json of the stage in `folder` as the training left it, unless an earlier search has done so."""
    kept = folder / KEPT / "plans.json"
    if not kept.is_file():
        kept.parent.mkdir(exist_ok=True)
        with atomic_path(kept) as temporary:
            shutil.copyfile(folder / "plans.json", temporary)


def restore(folder: Path) -> bool:
    """Give a stage's folder back what the training left in it; False when nothing had been chosen.

    A fold that was trained again since keeps what that training fitted.
    """
    if not (folder / KEPT).is_dir():
        return False
    for place in sorted(folder.glob("fold_*")):
        file = place / CHECKPOINT_NAME
        if not file.is_file():
            continue
        checkpoint = Checkpoint.load(file)
        kept = _kept(folder, place.name.removeprefix("fold_"), checkpoint)
        if kept is not None:
            checkpoint.meta["fitted"], checkpoint.extra = kept.meta["fitted"], kept.extra
            checkpoint.save(file)
    if (folder / KEPT / "plans.json").is_file():
        with atomic_path(folder / "plans.json") as temporary:
            shutil.copyfile(folder / KEPT / "plans.json", temporary)
    shutil.rmtree(folder / KEPT)
    return True


def _kept(folder: Path, fold: str, checkpoint: Checkpoint) -> Checkpoint | None:
    """What was kept of a fold; None where that is nothing, or of other weights than the fold has now."""
    file = folder / KEPT / f"fold_{fold}.pth"
    if not file.is_file():
        return None
    kept = Checkpoint.load(file)
    return kept if kept.meta.get("weights") == weights_sha256(checkpoint.network) else None


def _same(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
