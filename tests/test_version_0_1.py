"""Results that version 0.1 left behind: what is read, and what is said of the rest."""
from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from small_model import write_results

from spineclue_v2.errors import InputError
from spineclue_v2.inference.model import load_trained

CPU = torch.device("cpu")


def test_an_appearance_classifier_of_0_1_is_left_out_aloud(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    results = write_results(tmp_path)
    with caplog.at_level(logging.WARNING):
        load_trained(results, None, CPU)
    assert caplog.messages == []
    (results / "AppearanceTrainer__SpineCLUEPlans__identify" / "fold_0").mkdir(parents=True)
    with caplog.at_level(logging.WARNING):
        model = load_trained(results, None, CPU)
    assert "appearance" not in model.stages and len(caplog.messages) == 1
    assert "AppearanceTrainer__SpineCLUEPlans__identify is left out" in caplog.text
    assert "train it again with spineclue_train 501 appearance FOLD" in caplog.text
    with pytest.raises(InputError, match="has no Mine__SpineCLUEPlans__identify.*-tr identify=IdentifyTrainer"):
        load_trained(results, None, CPU, trainers={"identify": "Mine"})


def test_a_folder_that_is_no_model_gets_no_command_without_a_dataset(tmp_path: Path) -> None:
    (tmp_path / "scans").mkdir()
    with pytest.raises(InputError, match=r"scans is no folder of a model \(no TRAINER__PLANS__STAGE is in it\); give -m"):
        load_trained(tmp_path / "scans", None, CPU)
    (tmp_path / "Dataset501_Empty").mkdir()
    with pytest.raises(InputError, match="train stage localize first: spineclue_train 501 localize FOLD"):
        load_trained(tmp_path / "Dataset501_Empty", None, CPU)
