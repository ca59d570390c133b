"""What a training tells of itself: the line of an epoch, the table, and why it does not learn."""
from __future__ import annotations

import csv
import sys

import pytest

from spineclue_v2.errors import InputError
from spineclue_v2.training import watch


def history(losses: list[float], scores: list[float], checked: list[float] | None = None) -> dict[str, list[float]]:
    return {"train_loss": losses, "val_loss": checked or losses, "val_score": scores, "ema_score": scores,
            "learning_rate": [1e-3] * len(losses), "seconds": [10.0] * len(losses)}


def test_a_line_says_what_the_metric_means_and_when_the_end_is_due():
    values = {key: column[-1] for key, column in history([2.0, 1.0], [0.25, 0.5]).items()}
    line = watch.epoch_line(2, 14, 20, values, "Dice of single vertebrae", 2.5, [30.0, 10.0])
    assert line.startswith("epoch 2/14: loss 1.0000") and "Dice of single vertebrae 0.5000 (average 0.5000)" in line
    assert "(0.50 s a step, 25% waiting for data)" in line and "4 min left, done about" in line
    last = watch.epoch_line(14, 14, 20, values, "", 0.0, [10.0])
    assert "no metric in this phase" in last and "left" not in last


@pytest.mark.parametrize("seconds, text", [(45, "45 s"), (91, "2 min"), (3600, "60 min"), (12000, "3 h 20 min")])
def test_durations_are_read_at_a_glance(seconds, text):
    assert watch.duration(seconds) == text


def test_the_table_has_a_row_per_epoch_counted_from_one(tmp_path):
    watch.write_table(history([2.0, 1.0], [0.1, 0.2]), tmp_path / "progress.csv")
    with open(tmp_path / "progress.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2"] and float(rows[1]["val_score"]) == 0.2


@pytest.mark.parametrize("losses, scores, checked, kind", [
    ([1.0] * 6, [0.0] * 6, None, "flat"),
    ([1.0, 0.8, 0.9, 2.0, 3.0, 4.0], [0.3] * 6, None, "rises"),
    ([1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4], [0.0] * 7, None, "nothing"),
    ([1.0, 0.9, 0.8, 0.7, 0.6, 0.5], [0.2, 0.5, 0.6, 0.5, 0.4, 0.3], [1.0, 0.5, 0.6, 0.7, 0.8, 0.9], "by heart"),
    ([1.0, 0.9, 0.8, 0.7, 0.6, 0.5], [0.1, 0.2, 0.3, 0.4, 0.5, 0.6], None, None),
    ([1.0] * 3, [0.0] * 3, None, None),
], ids=["flat", "rises", "nothing", "by heart", "learns", "too early"])
def test_what_does_not_learn_is_told_apart(losses, scores, checked, kind):
    found = watch.find_trouble(history(losses, scores, checked), 10)
    assert (found[0] if found else None) == kind


def test_a_phase_without_metric_is_not_blamed_for_it():
    assert watch.find_trouble(history([1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4], [0.0] * 7), 10, has_metric=False) is None


def test_tensorboard_that_is_not_installed_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(InputError, match="pip install 'spineclue_v2\\[tensorboard\\]'"):
        watch.open_tensorboard(tmp_path, 1)


def test_trouble_is_said_once(tmp_path, caplog):
    told = watch.TrainingWatch(tmp_path, "Dataset segment fold 0", 10, 2)
    for number in range(5, 8):
        told.epoch(number, history([1.0] * number, [0.0] * number), "Dice")
    assert sum("does not learn" in record.message for record in caplog.records) == 1
    assert (tmp_path / "progress.csv").is_file() and (tmp_path / "progress.png").is_file()
