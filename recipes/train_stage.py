"""One training of localize or segment on phantoms and real scans: `python -m recipes.train_stage STAGE FOLD DATA -o OUT --start WEIGHTS`.

FOLD 0, 1, 2 leaves that fold's patients out (`recipes.folds`), "all" none. The training starts from STAGE.pth in WEIGHTS and goes on
where an earlier call was cut. OUT/STAGE_FOLD/ holds the checkpoints, OUT/STAGE_FOLD.pth the weights in the shipped format.
"""
from __future__ import annotations

import argparse
import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

import torch

from spineclue_v2.dataset.preprocessed import PreprocessedDataset
from spineclue_v2.model_sharing.export_model import write_shipped_stage
from spineclue_v2.plans.plans import Plans
from spineclue_v2.stages.localize.network import SliceDetector
from spineclue_v2.stages.localize.trainer import LocalizeTrainer
from spineclue_v2.stages.plan_files import plans_from_json
from spineclue_v2.stages.segment.trainer import SegmentTrainer
from spineclue_v2.training import trainer as trainer_module
from spineclue_v2.training import watch as watch_module
from spineclue_v2.training.checkpoint import Checkpoint

from .crops import UNKNOWN, MixedCrops, masked_loss
from .mean_weights import save
from .slices import MixedSlices

PHANTOM_FRACTION = 0.5
NECK_FRACTION = 0.45        # of the real half; the other scans are fewer and differ more
NEGATIVE_WEIGHT = 0.4    # of a scan without vertebrae, against another one
CURVE_BATCHES = 2        # of the validation cases after each epoch: nothing is chosen by them
HELD_OUT_PHANTOMS = 16   # the last ones, for the curve of a training on all patients


class RealLocalizeTrainer(LocalizeTrainer):
    case_weights: dict[str, float] = {}

    @classmethod
    def build_network(cls, plans: Plans) -> SliceDetector:
        return super().build_network(plans).to(memory_format=torch.channels_last)   # a fifth quicker on a CPU

    def loss(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, float]]:
        return super().loss(batch | {"image": batch["image"].contiguous(memory_format=torch.channels_last)})

    def batch_sampler(self, training: bool) -> MixedSlices:
        return MixedSlices(self.dataset.folder, self.batch_cases(training), self.plan.data.windows_hu, self.plan.network.slice_size,
                           self.plan.data.spacing_mm, self.plan.run.batch_size, self.seed + (0 if training else 1), augment=training,
                           weights=self.case_weights)


class RealSegmentTrainer(SegmentTrainer):
    case_weights: dict[str, float] = {}

    def batch_sampler(self, training: bool) -> MixedCrops:
        data, network, run = self.plan.data, self.plan.network, self.plan.run
        return MixedCrops(self.dataset.folder, self.batch_cases(training), data.windows_hu, data.hu_min, self.training_crop(),
                          network.heatmap_sigma_mm / data.spacing_mm, run.centre_jitter_mm / data.spacing_mm, run.batch_size,
                          self.seed + (0 if training else 1), augment=training, spacing=data.spacing_mm, weights=self.case_weights)

    def loss(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, float]]:
        logits = self.network(batch["image"])
        with torch.autocast(self.device.type, enabled=False):
            return masked_loss(logits.float(), batch["target"]), {}

    def validation_metric(self, batch: dict[str, torch.Tensor]) -> dict[str, float]:
        known = {"image": batch["image"], "target": torch.where(batch["target"] == UNKNOWN, 0, batch["target"])}
        return super().validation_metric(known)


class RealSegmentTrainerSmallCrops(RealSegmentTrainer):
    """Crops of about half the volume: twice the steps in the same time."""

    crop_share = 0.78


TRAINERS = {"localize": RealLocalizeTrainer, "segment": RealSegmentTrainer, "segment_small": RealSegmentTrainerSmallCrops}


def split(cases: list[str], folds: dict[str, Any], fold: str) -> tuple[list[str], list[str]]:
    """(training, validation) cases of a fold. Validation: its patients; of "all" some phantoms, which no training sees."""
    place = {f"real_{Path(scan).name.removesuffix('.nii.gz')}": number for scan, number in folds["scans"].items()}
    phantoms = [c for c in cases if c.startswith("phantom_")]
    kept = phantoms[:-HELD_OUT_PHANTOMS]
    real = [c for c in cases if c.startswith("real_")]
    unknown = [c for c in real if c not in place]
    if unknown:
        raise SystemExit(f"No fold is known for {', '.join(unknown)}.")
    if fold == "all":
        return kept + real, phantoms[-HELD_OUT_PHANTOMS:]
    return kept + [c for c in real if place[c] != int(fold)], [c for c in real if place[c] == int(fold)]


def weights_of(cases: list[str], dataset: PreprocessedDataset) -> dict[str, float]:
    """How often each case is drawn: half phantoms, of the real half the necks `NECK_SHARE`."""
    necks = [c for c in cases if c.startswith("real_pt_")]
    rest = [c for c in cases if c.startswith("real_") and c not in necks]
    single = {c: 1.0 if dataset.properties(c)["vertebrae"] else NEGATIVE_WEIGHT for c in rest}
    single |= {c: single[c] / 2 for c in rest if "taichi" in c}   # two reconstructions of one patient
    phantoms = [c for c in cases if c.startswith("phantom_")]
    weights = {c: PHANTOM_FRACTION / len(phantoms) for c in phantoms}
    weights |= {c: (1 - PHANTOM_FRACTION) * NECK_FRACTION / len(necks) for c in necks}
    return weights | {c: (1 - PHANTOM_FRACTION) * (1 - NECK_FRACTION) * w / sum(single.values()) for c, w in single.items()}


def trained(kind: str, fold: str, data: Path, out: Path, start: Path, plan_of: Path, epochs: int, rate: float,
            folds: dict[str, Any]) -> Path:
    """Train (or go on) and write OUT/KIND_FOLD.pth with the plan of the weights in `plan_of`; returns it."""
    stage = kind.removesuffix("_small")
    plans = plans_from_json(Checkpoint.load(plan_of / f"{stage}.pth").meta["plans"])
    plan = plans.stage(stage)
    plans = dataclasses.replace(plans, stages=plans.stages | {
        stage: dataclasses.replace(plan, run=dataclasses.replace(plan.run, epochs=epochs, initial_lr=rate))})
    dataset = PreprocessedDataset(data / stage)
    train, val = split(dataset.cases, folds, fold)
    folder = out / f"{kind}_{fold}"
    run = TRAINERS[kind](plans, fold if fold == "all" else int(fold), dataset, train, val, folder / "fold", torch.device("cpu"), workers=0)
    run.case_weights = weights_of(train, dataset)
    resume = any((folder / "fold" / f"checkpoint_{name}.pth").exists() for name in ("latest", "final"))
    if not resume:
        run.load_pretrained(start / f"{stage}.pth")
    plans.save(folder / "plans.json")
    run.run(resume)
    target = write_shipped_stage(folder / "fold" / "checkpoint_final.pth", out / f"{kind}_{fold}.pth")
    done = Checkpoint.load(target)   # any trainer of the stage can go on from it
    save(dataclasses.replace(done, meta=done.meta | {"trainer": TRAINERS[kind].__mro__[1 if kind == stage else 2].__name__}), target)
    return target


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=sorted(TRAINERS))
    parser.add_argument("fold", choices=("0", "1", "2", "all"))
    parser.add_argument("data", type=Path, help="folder with localize/ and segment/ of preprocessed cases")
    parser.add_argument("-o", type=Path, required=True)
    parser.add_argument("--start", type=Path, required=True, help="folder of the weights to start from")
    parser.add_argument("--plan", type=Path, required=True, help="folder of the weights whose plan is kept")
    parser.add_argument("--folds", type=Path, required=True)
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--rate", type=float, required=True)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    trainer_module.VALIDATION_BATCHES = CURVE_BATCHES
    watch_module.plot_progress = lambda *_: None   # the log has the figures
    folds = json.loads(args.folds.read_text())
    print(trained(args.kind, args.fold, args.data, args.o, args.start, args.plan, args.epochs, args.rate, folds))


if __name__ == "__main__":
    main()
