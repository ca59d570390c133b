"""The example package of the documentation: its trainers, its planner and its stage do by command what ours do."""
from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from math import cos, pi
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from plugins import EXAMPLE, found_in, install_example
from tiny_dataset import CPU, DATASET, PHANTOM, trainer

from spineclue_v2.cli._common import build_parser
from spineclue_v2.inference.model import load_stage
from spineclue_v2.stages import registry
from spineclue_v2.training.checkpoint import Checkpoint

GUIDES = Path(__file__).parents[1] / "documentation" / "how_to"
PLANS = ("-p", "TryOutPlans")
MODEL = (*PLANS, "-tr", "segment=SegmentTrainerDilated")
CARD = f"spineclue_predict -d {DATASET} {' '.join(MODEL)}"


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The folder that the example package is installed in."""
    place = tmp_path_factory.mktemp("extension")
    return install_example(place / "site", place / "source")


@pytest.fixture(scope="module")
def command(site, tmp_path_factory) -> Callable[..., subprocess.CompletedProcess]:
    """Runs one of our commands in a process of its own, in a home folder, with the example package installed or without it."""
    def run(home: Path, *words: str, installed: bool = True, code: int = 0) -> subprocess.CompletedProcess:
        environment = os.environ | {"SPINECLUE_HOME": str(home), "PYTHONPATH": str(site) if installed else "", "OMP_NUM_THREADS": "1",
                                    "spineclue_n_proc_DA": "0"}
        done = subprocess.run([sys.executable, "-m", "spineclue_v2.cli", *words], env=environment, cwd=tmp_path_factory.getbasetemp(),
                              capture_output=True, encoding="utf-8")
        assert done.returncode == code, f"{' '.join(words)} ended with {done.returncode}: {done.stderr}"
        return done

    return run


@pytest.fixture(scope="module")
def home(command, tmp_path_factory) -> Path:
    """A home folder in which a dataset was planned by the example's planner and all stages trained for an epoch, by command."""
    from spineclue_v2.dataset_conversion.phantom import convert

    home = tmp_path_factory.mktemp("first")
    convert(home / "raw" / DATASET, 3, seed=7, **PHANTOM)
    command(home, "plan_and_preprocess", "-d", "499", "-pl", "TryOutPlanner", "-device", "cpu", "-gpu_memory_target", "1", "-np", "0")
    words = (("localize", "-pretrained_weights", "shipped"), ("segment", "-tr", "SegmentTrainerDilated"), ("volume",),
             ("identify", "-pretrained_weights", "shipped"), ("segment", "-tr", "SegmentTrainerCosine"))
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda given: command(home, "train", "499", given[0], "all", *PLANS, "-device", "cpu", *given[1:]), words))
    return home


def predict(command: Callable, home: Path, scan: Path, output: Path) -> tuple[dict, np.ndarray]:
    """CASE.json and label map of a scan, by command with the trained model."""
    command(home, "predict", "-i", str(scan), "-o", str(output), "-d", "499", *MODEL, "-device", "cpu", "--no_report")
    case = scan.name.removesuffix("_0000.nii.gz")
    return json.loads((output / f"{case}.json").read_text()), np.asarray(nibabel.load(output / f"{case}.nii.gz").dataobj)


def test_the_plan_is_the_planners_and_holds_the_stage(home):
    plan = json.loads((home / "preprocessed" / DATASET / "TryOutPlans.json").read_text())
    assert plan["planner"] == "TryOutPlanner" and plan["stages"]["segment"]["run"]["epochs"]["value"] == 1
    volume = plan["stages"]["volume"]
    assert volume["package"] == "spineclue_extension" and "package" not in plan["stages"]["segment"]
    assert volume["data"]["spacing_mm"]["value"] == plan["stages"]["segment"]["data"]["spacing_mm"]["value"]
    assert all(entry["rule"] for group in ("data", "network") for entry in volume[group].values())


def test_trained_exported_installed_elsewhere_and_used(home, command, tmp_path):
    results = home / "results" / DATASET
    for name in ("SegmentTrainerDilated__TryOutPlans__segment", "SegmentTrainerCosine__TryOutPlans__segment",
                 "VolumeTrainer__TryOutPlans__volume"):
        meta = Checkpoint.load(results / name / "fold_all" / "checkpoint_final.pth").meta
        assert meta["trainer"] == name.split("__")[0] and meta["package"] == "spineclue_extension" and meta["epoch"] == 1
        assert (results / name / "fold_all" / "validation" / "summary.json").exists()
    scan = home / "raw" / DATASET / "imagesTr" / "phantom_0002_0000.nii.gz"
    record, labels = predict(command, home, scan, tmp_path / "before")
    assert len(record["vertebrae"]) >= 3 and np.unique(labels).size == len(record["vertebrae"]) + 1
    assert record["extra"]["volume"]["ml"] == pytest.approx([v["volume_ml"] for v in record["vertebrae"]], rel=0.11)
    assert record["extra"]["volume"]["ml"] != [v["volume_ml"] for v in record["vertebrae"]]  # the network says it, nobody counted
    steps = ("localize", "segment", "geometry", "identify", "volume", "heights")
    assert tuple(step for step in record["seconds"] if step in steps) == steps

    command(home, "export_model", "-d", "499", *MODEL, "-o", str(tmp_path / "model.zip"))
    elsewhere = tmp_path / "elsewhere"
    said = command(elsewhere, "install_model", str(tmp_path / "model.zip"), installed=False, code=2).stderr
    assert said.count("\n") == 1 and "has a stage of package 'spineclue_extension' that this installation lacks" in said
    command(elsewhere, "install_model", str(tmp_path / "model.zip"))
    card = (elsewhere / "results" / DATASET / "card__TryOutPlans" / "MODEL_CARD.md").read_text()
    assert CARD in card and "Stage volume needs the package `spineclue_extension`: install it first." in card
    again, same_labels = predict(command, elsewhere, scan, tmp_path / "after")
    np.testing.assert_array_equal(same_labels, labels)
    assert again["extra"] == record["extra"] and again["plans"]["weights"] == record["plans"]["weights"]
    said = command(elsewhere, "predict", "-i", str(scan), "-o", str(tmp_path / "none"), "-d", "499", *MODEL, installed=False, code=2).stderr
    assert said.count("\n") == 1 and "of stage 'volume' of package 'spineclue_extension', which cannot be used here" in said
    assert not (tmp_path / "none").exists()


def test_the_network_that_a_trainer_builds_is_the_one_that_predicts(site, tiny, tmp_path):
    with found_in(site):
        kind = registry.trainer_class("segment", "SegmentTrainerDilated")
        run = trainer(tiny, "segment", tmp_path, kind=kind, run={"epochs": 1})
        run.run()
        model, _ = load_stage(tmp_path / "checkpoint_final.pth", "segment", CPU)
        (network,) = model.networks
        assert type(network).__name__ == "DilatedNetwork" and type(network) is type(run.network)
        for name, tensor in run.network.state_dict().items():
            torch.testing.assert_close(network.state_dict()[name], tensor, rtol=0, atol=0)


def test_the_schedule_is_the_trainers_own(site, tiny, tmp_path):
    with found_in(site):
        kind = registry.trainer_class("segment", "SegmentTrainerCosine")
        run = trainer(tiny, "segment", tmp_path, kind=kind, run={"epochs": 4, "iterations_per_epoch": 5, "initial_lr": 0.5})
    rates = []
    for _ in range(20):
        rates.append(run.optimizer.param_groups[0]["lr"])
        run.optimizer.step()
        run.scheduler.step()
    assert rates == pytest.approx([0.25 * (1 + cos(pi * step / 20)) for step in range(20)])


@pytest.mark.parametrize("page", ["own_stage.md", "own_trainer.md", "own_planner.md"])
def test_quoted_code_is_the_code_of_the_example(page):
    """A block behind a line "`FILE`:" quotes that file and must stand in it word for word; no block of code goes unchecked."""
    text = (GUIDES / page).read_text(encoding="utf-8")
    blocks = re.findall(r"^`(\S+)`:\n\n```(?:python|toml)\n(.*?)```", text, re.DOTALL | re.MULTILINE)
    assert len(blocks) == len(re.findall(r"^```(?:python|toml)", text, re.MULTILINE))
    assert blocks
    for name, code in blocks:
        assert code.strip() in (EXAMPLE / name).read_text(encoding="utf-8"), f"{page} quotes {name} as it is not"


@pytest.mark.parametrize("page", ["own_stage.md", "own_trainer.md", "own_planner.md"])
def test_the_commands_of_the_guides_exist(page, site):
    """As those of a reader who has installed the package."""
    lines = [line for block in re.findall(r"```console\n(.*?)```", (GUIDES / page).read_text(encoding="utf-8"), re.DOTALL)
             for line in block.splitlines() if line.startswith("spineclue_")]
    assert lines
    with found_in(site):
        for line in lines:
            name, *words = line.split()
            build_parser(name.removeprefix("spineclue_")).parse_args(words)
