"""How a training goes, for who watches it: a line per epoch, `progress.csv`, `progress.png`, TensorBoard, and what to do when it does not
learn."""
from __future__ import annotations

import contextlib
import csv
import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..utilities.files import atomic_path
from ..utilities.pictures import draw_or_say
from .progress import plot_progress

logger = logging.getLogger("spineclue_v2.training")

FLAT = 0.01               # a loss that changes by less, relative to its first value, has not moved
RISEN = 1.5               # times its least value: the steps are too large
NOTHING = 0.01            # a metric that never exceeds this is 0
EARLIEST = 4              # epochs before anything is said


class TrainingWatch:
    """What one run tells of itself. `metric`: what the epoch's metric means; `steps`: training steps per epoch."""

    def __init__(self, folder: Path, title: str, epochs: int, steps: int, tensorboard: bool = False) -> None:
        self.folder, self.title, self.epochs, self.steps, self.tensorboard = folder, title, epochs, steps, tensorboard
        self._waited = 0.0
        self._said: set[str] = set()
        self._writer: Any = None

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Around what waits for the next batch."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self._waited += time.perf_counter() - started

    def epoch(self, number: int, history: Mapping[str, Sequence[float]], metric: str, since: int = 0) -> None:
        """Epoch `number` (from 1) is done; `history` holds one value per epoch and key. `metric` "" where the phase has none; `since`:
        epochs before the present phase, whose losses are of another kind."""
        logger.info(epoch_line(number, self.epochs, self.steps, {key: values[-1] for key, values in history.items()}, metric, self._waited,
                               history["seconds"]))
        self._waited = 0.0
        write_table(history, self.folder / "progress.csv")
        lists = {key: list(values) for key, values in history.items()}
        draw_or_say(lambda: plot_progress(lists, self.folder / "progress.png", self.title), "progress.png")
        if self.tensorboard:
            self._write_scalars(number, history)
        trouble = find_trouble({key: values[since:] for key, values in history.items()}, self.epochs - since, bool(metric))
        if trouble is not None and trouble[0] not in self._said:
            self._said.add(trouble[0])
            logger.warning("%s: %s", self.title, trouble[1])

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _write_scalars(self, number: int, history: Mapping[str, Sequence[float]]) -> None:
        if self._writer is None:
            # A run that is continued writes over what came after its last full epoch.
            self._writer = open_tensorboard(self.folder / "tensorboard", number)
        for key, values in history.items():
            self._writer.add_scalar(key, values[-1], number)
        self._writer.flush()


def epoch_line(number: int, epochs: int, steps: int, values: Mapping[str, float], metric: str, waited: float,
               seconds: Sequence[float]) -> str:
    """One epoch in one line: losses, what the metric means, seconds per step, the part spent waiting for data, and when the end is due."""
    shown = f"{metric} {values['val_score']:.4f} (average {values['ema_score']:.4f})" if metric else "no metric in this phase"
    taken = max(values["seconds"], 1e-9)
    recent = seconds[-3:]
    left = (epochs - number) * sum(recent) / len(recent)
    end = f", {duration(left)} left, done about {time.strftime('%H:%M', time.localtime(time.time() + left))}" if number < epochs else ""
    return (f"epoch {number}/{epochs}: loss {values['train_loss']:.4f}, validation loss {values['val_loss']:.4f}, {shown}, {taken:.1f} s "
            f"({taken / max(1, steps):.2f} s a step, {min(1.0, waited / taken):.0%} waiting for data){end}")


def duration(seconds: float) -> str:
    """Seconds as "45 s", "12 min" or "3 h 20 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = math.ceil(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def write_table(history: Mapping[str, Sequence[float]], path: Path) -> None:
    """`progress.csv`: a row per epoch, counted from 1, and a column per key of `history`."""
    with atomic_path(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["epoch", *history])
        writer.writerows([number, *row] for number, row in enumerate(zip(*history.values(), strict=True), start=1))


def open_tensorboard(folder: Path, first_epoch: int) -> Any:
    """A SummaryWriter of `folder`; InputError without the package tensorboard."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise InputError("--tensorboard needs the package tensorboard; install it with pip install 'spineclue_v2[tensorboard]', or leave "
                         "the flag out: progress.csv holds the same numbers.") from error
    return SummaryWriter(str(folder), purge_step=first_epoch)


def find_trouble(history: Mapping[str, Sequence[float]], epochs: int, has_metric: bool = True) -> tuple[str, str] | None:
    """(kind, sentence) when a training does not learn, with the likely cause; None while nothing speaks for it.

    `history`: train_loss, val_loss and val_score per epoch of one phase; `epochs`: its planned length.
    """
    losses, checked, scores = history["train_loss"], history["val_loss"], history["val_score"]
    if len(losses) < max(EARLIEST, epochs // 5):
        return None
    found = max(scores) > NOTHING if has_metric else True
    recent = sum(losses[-2:]) / 2
    if recent > RISEN * min(losses) and recent > losses[0]:
        return "rises", (f"the training loss rises ({losses[0]:.3g} at first, {recent:.3g} now); the learning rate is too high, so lower "
                         "it in the plan's run group (a tenth is a good start) and start again.")
    flat = abs(recent - losses[0]) < FLAT * abs(losses[0])
    if flat and not found:
        return "flat", (f"it does not learn: the training loss stays at {recent:.3g} and the metric at 0. Either the training cases show "
                        "no labelled vertebrae on their scans (look at them with spineclue_plot_overlay_pngs), or the learning rate is "
                        "too low.")
    if not found and len(scores) > epochs // 2:
        return "nothing", ("the loss falls, but nothing is found in the validation cases after half of the epochs. The training is too "
                           "short, or the validation cases differ from the training cases; more epochs in the plan or "
                           "-pretrained_weights shipped help.")
    if has_metric and checked[-1] > RISEN * min(checked) and scores[-1] < max(scores) - 0.1 and losses[-1] <= min(losses[:-1]):
        return "by heart", ("the training loss falls while validation gets worse: the few training cases are learned by heart. Stop here "
                            "and use --val_best, or train with more cases.")
    return None
