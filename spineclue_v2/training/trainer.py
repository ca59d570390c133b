"""One training loop for every stage, in the manner of nnU-Net: poly schedule, mixed precision, moving average of the
validation metric, best/latest/final checkpoints by rename, resume, a log file and `progress.png`.

A stage overrides a few hooks (network, loss, batches, metric); batches are pure functions of (seed, iteration), so that a
resumed run sees exactly the data an uninterrupted one would have seen.
"""
from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from ..anatomy.vertebra import Vertebra
from ..dataset.preprocessed import PreprocessedDataset
from ..errors import InputError
from ..plans.plans import Plans
from ..utilities.plugins import package_of
from ..version import __version__
from .added_cases import AddedCases, mixed_sampler
from .batches import default_workers, iterate_batches
from .checkpoint import Checkpoint, load_fitting_weights, load_weights
from .device import autocast, out_of_memory, to_device
from .distributed import any_process, mean_over_processes, parallel_loss, rank, shard_of, synchronise, world_size
from .optimizers import build_optimizer, poly_schedule, restore_schedule
from .progress import open_log
from .stage_model import StageModel
from .watch import TrainingWatch

logger = logging.getLogger("spineclue_v2.training")

EMA_WEIGHT = 0.9
GRADIENT_CLIP = 12.0
VALIDATION_BATCHES = 6
HISTORY = ("train_loss", "val_loss", "val_score", "ema_score", "learning_rate", "seconds")


class EarlierFindings(Protocol):
    """What earlier stages of the same fold found in its validation cases."""

    def segmented(self, case: str) -> list[Vertebra]:
        """Vertebrae with masks, in no order."""

    def labels(self, case: str) -> np.ndarray:
        """True label values (z, y, x) on the grid of the masks."""

    def model(self, stage: str) -> StageModel:
        """The fold's network of an earlier stage."""


class Interrupted(Exception):
    """The run was asked to stop (SIGTERM); `checkpoint_latest.pth` holds the state after the last full epoch, `checkpoint_final.pth`
    that after the last of all."""


class BaseTrainer:
    """Trains one stage on one fold.

    Parameters: `plans`; `fold` number or "all"; `train_cases`/`val_cases` ids; `dataset` preprocessed cases of this stage;
    `folder` the fold's output folder; `device`; `seed`; `workers` processes that make batches (0: in this process).
    """

    stage = ""
    metric = "metric"      # what `validation_metric` scores, in words
    bfloat16 = True        # False: the network keeps full precision on a CPU, whose only shorter one it is

    def __init__(self, plans: Plans, fold: int | str, dataset: PreprocessedDataset, train_cases: list[str], val_cases: list[str],
                 folder: Path, device: torch.device, seed: int = 1234, workers: int | None = None) -> None:
        self.plans, self.plan = plans, plans.stage(self.stage)
        self.fold, self.dataset, self.folder, self.device, self.seed = fold, dataset, Path(folder), device, seed
        self.train_cases, self.val_cases = train_cases, val_cases
        if not train_cases:
            raise InputError(f"Fold {fold} of {plans.dataset_name} has no training cases.")
        self.workers = default_workers() if workers is None else workers
        self.epochs = self.planned_epochs()
        self.iterations = self.plan.run.iterations_per_epoch
        self.history: dict[str, list[float]] = {key: [] for key in HISTORY}
        self.best = -float("inf")
        self.epoch = 0
        self.extra: dict[str, torch.Tensor] = {}
        self.fitted: dict[str, Any] = {}
        self.method = ""                        # fingerprint of the numbers in the stage's code, for the checkpoint
        self.upstream: EarlierFindings | None = None  # what earlier stages found in the validation cases
        self.added: AddedCases | None = None    # what is learned from beside the training cases
        self.watch = TrainingWatch(self.folder, f"{plans.dataset_name} {self.stage} fold {fold}", self.epochs, self.iterations)
        self._stop = False
        self._parallel_loss: Callable[[dict[str, torch.Tensor]], torch.Tensor] = self._loss_alone
        self.set_up()
        torch.manual_seed(seed)
        self.network = synchronise(self.build_network(plans).to(device), device)
        self.passes = 1                         # 2 once memory ran out: each batch is then worked on in halves
        if self.plan.run.batch_size % world_size():
            raise InputError(f"A batch of {self.plan.run.batch_size} cannot be shared evenly by {world_size()} processes; change "
                             f"-num_gpus, or batch_size in stage {self.stage} of the plan.")
        self.optimizer, self.scheduler = self.configure_optimizers()
        self.scaler = torch.amp.GradScaler("cuda", enabled=device.type == "cuda")

    # ---- hooks -----------------------------------------------------------------------------------------------------
    @classmethod
    def build_network(cls, plans: Plans) -> torch.nn.Module:
        """The network with fresh weights, from the plans alone: prediction calls it again, by the trainer's name in the checkpoint."""
        raise NotImplementedError

    def set_up(self) -> None:
        """Room for what a trainer needs besides its network (losses); called before that is built."""

    def planned_epochs(self) -> int:
        """Length of the training; a stage with phases adds them up."""
        return int(self.plan.run.epochs)

    def has_samples(self, cases: list[str]) -> bool:
        """Whether batches can be made of `cases`; stages that need vertebrae ask for them (a scan may show none)."""
        return bool(cases)

    def batch_cases(self, training: bool) -> list[str]:
        """Cases that batches come from: training ones, and for the epoch's metric validation ones where they have samples."""
        return self.val_cases if not training and self.has_samples(self.val_cases) else self.train_cases

    def batch_sampler(self, training: bool) -> Any:
        """A picklable callable: batch index -> dict of tensors."""
        raise NotImplementedError

    def loss(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, float]]:
        """Loss tensor and named parts for the log; called under autocast."""
        raise NotImplementedError

    def smallest_grid(self) -> tuple[int, ...] | None:
        """Fewest voxels per axis that a 3D convolution of the network sees, (1, 1, 1) where that is not known, None when it has none."""
        return (1, 1, 1)

    def validation_metric(self, batch: dict[str, torch.Tensor]) -> dict[str, float]:
        """{'loss': .., 'score': ..} of one validation batch; larger score is better. Called without gradients."""
        raise NotImplementedError

    def metric_meaning(self) -> str:
        """What the epoch's metric says, for the log; "" where the present phase has none."""
        return self.metric

    def validate_cases(self) -> dict[str, Any]:
        """Metrics over whole validation cases, given true input (true centres, true masks) where the stage needs any."""
        raise NotImplementedError

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, Any]:
        """The plan's optimiser, and nnU-Net's schedule over all steps."""
        run = self.plan.run
        optimizer = build_optimizer(run.optimizer, self.network.parameters(), run.initial_lr, run.weight_decay)
        return optimizer, poly_schedule(optimizer, self.epochs * self.iterations)

    def shard(self, batch: dict[str, torch.Tensor], part: int, parts: int) -> dict[str, torch.Tensor]:
        """What process `part` of `parts` works on: its samples of a batch. Other entries than samples are the stage's own matter."""
        mine = shard_of(len(batch["image"]), part, parts)
        return {key: value[mine] for key, value in batch.items()}

    def micro_batches(self, batch: dict[str, torch.Tensor]) -> list[dict[str, torch.Tensor]]:
        """The batch in two that can be worked on one after the other, when memory does not hold it whole."""
        return [self.shard(batch, part, 2) for part in range(2)]

    def on_epoch_start(self) -> None:
        """Room for phases (identify changes from contrastive to classifier training)."""

    def schedule_start(self) -> int:
        """Epoch at which the present optimiser's schedule began; not 0 in a later phase."""
        return 0

    def on_train_end(self) -> None:
        """Room for what is fitted after the last epoch (temperature, fusion)."""

    # ---- the loop --------------------------------------------------------------------------------------------------
    def run(self, resume: bool = False) -> None:
        """Train to the last epoch; with `resume` continue from the newest checkpoint."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if resume:
            self._resume()
        # Of several processes the first one speaks, writes and validates; all of them train.
        handler = open_log(self.folder) if rank() == 0 else logging.NullHandler()
        previous = _on_sigterm(self._request_stop)
        self._parallel_loss = parallel_loss(self.network, self._loss_alone, self.device)
        try:
            logger.info("%s, fold %s: %d training and %d validation cases, %d epochs x %d iterations on %s (%d threads, %d processes that "
                        "make batches).", self.stage, self.fold, len(self.train_cases), len(self.val_cases), self.epochs, self.iterations,
                        self.device, torch.get_num_threads(), self.workers)
            batches = self._batches(training=True, start=self.epoch * self.iterations, stop=self.epochs * self.iterations)
            if not resume and rank() == 0:
                # From here on a run cut at any moment can be continued, within the first epoch too.
                self.checkpoint(with_optimizer=True).save(self.folder / "checkpoint_latest.pth")
            while self.epoch < self.epochs:
                self._run_epoch(batches)
            if rank() != 0:
                return
            torch.manual_seed(self.seed * 100_003 + self.epochs)  # what is fitted does not depend on where the run was resumed
            self.on_train_end()
            self.checkpoint().save(self.folder / "checkpoint_final.pth")
            (self.folder / "checkpoint_latest.pth").unlink(missing_ok=True)
            logger.info("Training is done: %s.", self.folder / "checkpoint_final.pth")
            if self._stop:  # asked for after the last step: the validation that would follow is left to the continued run
                raise Interrupted(f"Stopped after the last epoch of {self.stage}, fold {self.fold}; continue with --c.")
        finally:
            self.watch.close()
            logger.removeHandler(handler)
            handler.close()
            if previous is not None:
                signal.signal(signal.SIGTERM, previous)

    def _run_epoch(self, batches: Iterator[dict[str, torch.Tensor]]) -> None:
        # Seeding by epoch makes dropout and friends independent of where a run was resumed.
        torch.manual_seed(self.seed * 100_003 + self.epoch)
        self.on_epoch_start()
        started, losses = time.perf_counter(), []
        self.network.train()
        for _ in range(self.iterations):
            with self.watch.waiting():
                batch = self._next(batches)
            losses.append(self.train_step(batch))
        if rank() != 0:
            self.epoch += 1
            return
        metrics = self._validate()
        previous = self.history["ema_score"][-1] if self.history["ema_score"] else metrics["score"]
        ema = EMA_WEIGHT * previous + (1 - EMA_WEIGHT) * metrics["score"]
        values = (float(np.mean(losses)), metrics["loss"], metrics["score"], ema, self.optimizer.param_groups[0]["lr"],
                  time.perf_counter() - started)
        for key, value in zip(HISTORY, values, strict=True):
            self.history[key].append(value)
        self.epoch += 1
        if ema > self.best:
            self.best = ema
            self.checkpoint().save(self.folder / "checkpoint_best.pth")
        self.checkpoint(with_optimizer=True).save(self.folder / "checkpoint_latest.pth")
        self.watch.epoch(self.epoch, self.history, self.metric_meaning(), self.schedule_start())

    def _next(self, batches: Iterator[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        """The next batch; Interrupted when the run was asked to stop, the sampler's own error when making the batch failed."""
        if any_process(self._stop, self.device):
            raise self._interrupted()
        try:
            return next(batches)
        except RuntimeError as error:
            if self._stop:  # who stops a whole process group stops the workers too
                raise self._interrupted() from error
            raise

    def _interrupted(self) -> Interrupted:
        return Interrupted(f"Stopped in epoch {self.epoch + 1} of {self.epochs} of {self.stage}, fold {self.fold}; continue with --c.")

    def train_step(self, batch: dict[str, torch.Tensor]) -> float:
        """One step of the optimiser; its loss. When memory runs out, the batch is halved once and for all, and the log says so."""
        if world_size() > 1:
            batch = self.shard(batch, rank(), world_size())
        batch = to_device(batch, self.device)
        try:
            loss = self._gradients(batch)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            if self.passes > 1 or world_size() > 1:
                raise InputError(f"Stage {self.stage} ran out of memory{' with halved batches' if self.passes > 1 else ''}; plan for less "
                                 "with -gpu_memory_target, or lower batch_size in the plan, and continue with --c.") from error
            loss = None
        if loss is None:  # out here the failed attempt's tensors are gone
            self.passes = 2
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            logger.warning("Out of memory with a batch of %d: from here on it is worked on in two halves.", self.plan.run.batch_size)
            return self.train_step(batch)
        self.scaler.unscale_(self.optimizer)
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), GRADIENT_CLIP)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.scheduler.step()
        return loss

    def _loss_alone(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return self.loss(batch)[0]

    def _gradients(self, batch: dict[str, torch.Tensor]) -> float:
        """Fresh gradients of the batch in all parameters; the loss."""
        # Of the whole network: what a phase has frozen must not keep an old gradient, which would count in the clipping.
        self.network.zero_grad(set_to_none=True)
        parts, total = [batch] if self.passes == 1 else self.micro_batches(batch), 0.0
        for part in parts:
            with autocast(self.device, self.smallest_grid(), self.bfloat16):
                loss = self._parallel_loss(part) / len(parts)
            if not torch.isfinite(loss):
                raise RuntimeError(f"The loss of stage {self.stage} became {loss.item()} in epoch {self.epoch}.")
            self.scaler.scale(loss).backward()
            total += mean_over_processes(loss.detach())
        return total

    @torch.no_grad()
    def _validate(self) -> dict[str, float]:
        self.network.eval()
        if not hasattr(self, "_validation_batches"):
            self._validation_batches = list(self._batches(training=False, start=0, stop=VALIDATION_BATCHES))
        rows = []
        for batch in self._validation_batches:
            with autocast(self.device, bfloat16=self.bfloat16):
                rows.append(self.validation_metric(to_device(batch, self.device)))
        return {key: float(np.nanmean([row[key] for row in rows])) for key in ("loss", "score")}

    def _batches(self, training: bool, start: int, stop: int) -> Iterator[dict[str, torch.Tensor]]:
        sampler = mixed_sampler(self, self.added) if training and self.added is not None else self.batch_sampler(training)
        return iterate_batches(sampler, start, stop, self.workers if training else 0, self._worker_lost)

    def _worker_lost(self) -> None:
        if self._stop:  # who stops a whole process group stops the workers too
            raise self._interrupted()
        self.workers = 0

    # ---- checkpoints -----------------------------------------------------------------------------------------------
    def checkpoint(self, with_optimizer: bool = False) -> Checkpoint:
        meta = {"stage": self.stage, "trainer": type(self).__name__, "fold": self.fold, "epoch": self.epoch, "best_ema": self.best,
                "history": self.history, "plans": self.plans.to_json(), "data_fingerprint": self.plan.data_fingerprint,
                "model_fingerprint": self.plan.model_fingerprint, "fitted": self.fitted, "version": __version__, "method": self.method,
                "train_cases": self.train_cases, "val_cases": self.val_cases}
        if self.added is not None:
            meta["added_cases"] = self.added.to_json()
        if package := package_of(type(self)):
            meta["package"] = package  # who lacks it cannot build the network, and learns which one to install
        optimizer = {"optimizer": self.optimizer.state_dict(), "scheduler": self.scheduler.state_dict()} if with_optimizer else None
        return Checkpoint(self.network.state_dict(), meta, self.extra, optimizer, self.scaler.state_dict() if with_optimizer else None)

    def _resume(self) -> None:
        # A latest checkpoint is removed when a run ends: where there is one, it is newer than the final one of an earlier run.
        for name in ("checkpoint_latest.pth", "checkpoint_final.pth"):
            if (self.folder / name).exists():
                break
        else:
            raise InputError(f"--c was given but {self.folder} holds no checkpoint to continue from; start without --c.")
        saved = self.load(self.folder / name)
        self.best, self.history = saved.meta["best_ema"], saved.meta["history"]
        # The saved optimiser is the one of the last epoch that was run; a phase that begins now makes its own.
        self.epoch = max(0, saved.meta["epoch"] - 1)
        self.on_epoch_start()
        self.epoch = saved.meta["epoch"]
        if saved.optimizer is not None:
            self.scaler.load_state_dict(saved.scaler or {})
        restore_schedule(self.optimizer, self.scheduler, saved.optimizer, (self.epoch - self.schedule_start()) * self.iterations)
        logger.info("Continuing after epoch %d.", self.epoch)

    def load(self, path: Path) -> Checkpoint:
        """Load weights, fitted values and extra tensors of a checkpoint that fits this plan."""
        saved = Checkpoint.load(path, self.device)
        found = saved.meta.get("model_fingerprint")
        if found != self.plan.model_fingerprint:
            raise InputError(f"Checkpoint {path} was trained with model fingerprint {found}, the plan has "
                             f"{self.plan.model_fingerprint}; restore that plan, or train again without --c.")
        load_weights(self.network, saved, path)
        self.extra, self.fitted = saved.extra, saved.meta.get("fitted", {})
        return saved

    def load_pretrained(self, path: Path) -> None:
        """Start from another model's weights (`-pretrained_weights`); tensors whose shape differs stay as initialised, and are named."""
        load_fitting_weights(self.network, Checkpoint.load(path, self.device), path, self.stage)

    def perform_validation(self, save_probabilities: bool = False) -> dict[str, Any]:
        """Metrics of the stage alone over the validation cases, with the current weights."""
        self.save_probabilities = save_probabilities
        self.network.eval()
        return self.validate_cases()

    def fitted_to_other_weights(self) -> bool:
        """Whether what `on_train_end` fitted rests on other weights of earlier stages than those of `upstream`."""
        return False

    def _request_stop(self, *_: Any) -> None:
        self._stop = True


def _on_sigterm(handler: Any) -> Any:
    try:
        return signal.signal(signal.SIGTERM, handler)
    except ValueError:  # not the main thread: signals stay with whoever owns it
        return None
