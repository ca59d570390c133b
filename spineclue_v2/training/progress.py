"""What a training run tells its reader: the log file and `progress.png`."""
from __future__ import annotations

import logging
import time
from pathlib import Path

from ..utilities.files import atomic_path

logger = logging.getLogger("spineclue_v2.training")


def open_log(folder: Path) -> logging.Handler:
    """Add a file handler `training_log_<time>.txt` in `folder` to the training logger and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(folder / time.strftime("training_log_%Y_%m_%d_%H_%M_%S.txt"), encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    return handler


def plot_progress(history: dict[str, list[float]], path: Path, title: str) -> None:
    """Losses (left axis), validation metric and its moving average (right axis), learning rate and seconds below."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 9), layout="constrained")
    top, middle, bottom = figure.subplots(3, 1, sharex=True)
    epochs = range(1, len(history["train_loss"]) + 1)   # as the log counts them
    top.plot(epochs, history["train_loss"], label="training loss")
    top.plot(epochs, history["val_loss"], label="validation loss")
    top.set_ylabel("loss")
    right = top.twinx()
    right.plot(epochs, history["val_score"], color="tab:green", alpha=0.4, label="validation metric")
    right.plot(epochs, history["ema_score"], color="tab:green", label="its moving average")
    right.set_ylabel("metric")
    top.set_title(title)
    lines = [line for axis in (top, right) for line in axis.get_lines()]
    top.legend(lines, [str(line.get_label()) for line in lines], loc="center right", fontsize="small")
    middle.plot(epochs, history["learning_rate"])
    middle.set_ylabel("learning rate")
    bottom.plot(epochs, history["seconds"])
    bottom.set_ylabel("seconds per epoch")
    bottom.set_xlabel("epoch")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=80)
