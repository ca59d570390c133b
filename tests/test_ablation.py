"""The ablation study: a tiny run writes every file and is not repeated; its figures against known answers."""
from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_dataset import DATASET

from spineclue_v2.ablation import study, trainings
from spineclue_v2.ablation.embedding import neighbour_silhouette, two_dimensions
from spineclue_v2.ablation.rows import STEPS, Scan, parts_of, shape_probabilities
from spineclue_v2.cli._common import main
from spineclue_v2.evaluation.calibration import expected_calibration_error
from spineclue_v2.stages.identify.network import ShapeNetwork
from spineclue_v2.stages.plan_files import load_plans
from spineclue_v2.utilities import paths

TABLES = ("table3.csv", "table2_regions.csv", "parameter_curves.csv", "silhouette.csv", "embedding.csv", "trainings.csv", "vertebrae.csv",
          "calibration.csv")
PICTURES = ("confusion.png", "parameter_curves.png", "embedding.png")


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def short(tiny: Path, home: Path, monkeypatch) -> None:
    """The tiny dataset with one epoch per phase, in a folder of its own."""
    base = home / "preprocessed" / DATASET
    base.mkdir(parents=True)
    for entry in tiny.iterdir():
        (base / entry.name).symlink_to(entry)
    plans = json.loads((tiny / "SpineCLUEPlans.json").read_text())
    run = plans["stages"]["identify"]["run"]
    for key in ("contrastive_epochs", "classifier_epochs", "iterations_per_epoch"):
        run[key]["value"] = 1
    (base / "SpineCLUEPlans.json").unlink()
    (base / "SpineCLUEPlans.json").write_text(json.dumps(plans))
    monkeypatch.setenv("spineclue_preprocessed", str(base.parent))


def test_one_command_writes_every_table_and_picture_and_goes_on_where_it_stopped(tiny, tmp_path, monkeypatch, capsys):
    short(tiny, tmp_path, monkeypatch)
    monkeypatch.setattr("spineclue_v2.training.watch.plot_progress", lambda *_: None)   # a picture per epoch is most of the time here
    monkeypatch.setattr(study, "CURVES", {name: values[:2] for name, values in study.CURVES.items()})
    command = ["499", "-f", "0", "--extra", "loss", "-device", "cpu", "-q"]
    assert main("ablation", command) == 0
    folder = paths.results_folder() / DATASET / "ablation__SpineCLUEPlans"
    assert str(folder) in capsys.readouterr().out
    for name in TABLES:
        assert rows(folder / name), name
    for name in PICTURES:
        assert (folder / name).read_bytes().startswith(b"\x89PNG"), name
    table = rows(folder / "table3.csv")
    assert [row["step"] for row in table] == list(STEPS)
    vertebrae = rows(folder / "vertebrae.csv")
    for row in table:                                      # the table says what the list of vertebrae says
        right = [v[row["step"]] == v["level"] for v in vertebrae]
        assert float(row["id_rate"]) == pytest.approx(np.mean(right), abs=1e-4)
        assert int(row["vertebrae"]) == len(vertebrae)
        counts = rows(folder / "confusion" / f"{row['step'].strip('+ ').replace(' ', '_')}.csv")
        assert sum(int(line[line["true"]]) for line in counts) == sum(right)
    for row in rows(folder / "calibration.csv"):
        sure, right = zip(*((float(v[f"{row['weights']}: confidence"]), v[f"{row['weights']}: name"] == v["level"]) for v in vertebrae),
                          strict=True)
        assert float(row["ece"]) == pytest.approx(expected_calibration_error(sure, right), abs=1e-4)
        assert int(row["scans"]) == int(table[0]["scans"])
    names = [row["training"] for row in rows(folder / "trainings.csv")]
    assert names == [*trainings.TRAININGS, "loss_in"]
    assert {row["training"] for row in rows(folder / "embedding.csv")} == {"contrastive", "mask", "resnext", "vit"}
    assert json.loads((folder / "study.json").read_text())["training_cases"] == {"0": 4}

    # Only what is missing is trained again, and the figures come out the same.
    finished = {path: path.stat().st_mtime_ns for path in folder.glob("fold_0/seed_0/*/checkpoint_final.pth")}
    assert len(finished) == len(names)
    gone = folder / "fold_0" / "seed_0" / "vit" / "checkpoint_final.pth"
    gone.unlink()
    before, costs = (folder / "table3.csv").read_text(), rows(folder / "trainings.csv")
    assert main("ablation", command) == 0
    assert {path for path, old in finished.items() if path.stat().st_mtime_ns != old} == {gone}
    assert (folder / "table3.csv").read_text() == before
    assert [row for row in rows(folder / "trainings.csv") if row["training"] != "vit"] == [row for row in costs if row["training"] != "vit"]

    # Weights of another plan are not passed off as this one's.
    plan = paths.preprocessed_folder() / DATASET / "SpineCLUEPlans.json"
    content = json.loads(plan.read_text())
    content["stages"]["identify"]["run"]["temperature"]["value"] = 0.3
    plan.write_text(json.dumps(content))
    capsys.readouterr()
    assert main("ablation", command) == 2
    assert "another plan" in capsys.readouterr().err


def test_bad_input_is_one_sentence(tiny, capsys):
    for arguments, words in ((["499", "--seeds", "0"], "--seeds is 0"), (["499", "-f", "all"], "validates on cases it trains on"),
                             (["777"], "777"), (["499", "-p", "Nothing"], "does not exist"), (["499", "-f", "x"], "Fold 'x'")):
        assert main("ablation", [*arguments, "-device", "cpu"]) == 2
        error = capsys.readouterr().err
        assert words in error and len(error.strip().splitlines()) == 1


def test_trainings_differ_from_the_plan_in_what_they_are_named_after(tiny):
    plan = load_plans(tiny / "SpineCLUEPlans.json").stage("identify")
    plain = trainings.plain(plan.run)
    assert plain.contrastive_epochs == 0 and plain.loss_weights == (0.0, 0.0, 1.0) and not plain.freeze_backbone
    assert plain.classifier_epochs == plan.run.contrastive_epochs + plan.run.classifier_epochs
    found = trainings.extra_trainings(trainings.EXTRAS, plan)
    assert set(found) == {"cross_entropy", "loss_in", "temperature_0.05", "temperature_0.2", "temperature_0.5", "frozen", "width_4",
                          "width_8"}
    assert found["loss_in"].run(plan.run).contrastive_loss == "in" and found["frozen"].run(plan.run).freeze_backbone
    assert found["width_8"].network(plan.network).width == 8 and found["width_4"].network(plan.network).width == 4


def test_silhouette_of_neighbouring_levels_by_hand():
    # Angles 0, 0 | 90, 90 degrees: own distance 0, the neighbour's 1 -> 1 each. Level 7 has no neighbour and does not count.
    features = np.array([[1, 0], [2, 0], [0, 1], [0, 3], [1, 1.0]])
    assert neighbour_silhouette(features, np.array([0, 0, 1, 1, 7])) == pytest.approx(1.0)
    # Mixed: each has its twin at distance 1 and the neighbour at mean (0 + 1) / 2 -> (0.5 - 1) / 1.
    assert neighbour_silhouette(features[:4], np.array([0, 1, 0, 1])) == pytest.approx(-0.5)
    assert np.isnan(neighbour_silhouette(features[:2], np.array([0, 5])))
    # A cluster two levels away does not count, however near it is.
    assert neighbour_silhouette(np.array([[1, 0], [1, 0], [0, 1], [0, 1], [1, 0]]), np.array([0, 0, 1, 1, 2])) > 0.1


def test_embedding_is_the_same_again_and_takes_few_rows():
    features = np.random.default_rng(0).normal(size=(12, 5))
    assert np.array_equal(two_dimensions(features), two_dimensions(features))
    assert two_dimensions(features[:2]).shape == (2, 2)


def scan(case: str, part: str, seed: int) -> Scan:
    generator = torch.Generator().manual_seed(seed)
    centres = np.array([[0.0, 0.0, -30.0 * i] for i in range(4)])
    network = ShapeNetwork(18, 4, 4, hidden=8, projection_dim=8, pool_grid=(1, 1, 1))
    found = Scan(case, 0, 0, ("T11", "T12", "L1", "L2"), centres, part)
    found.features["contrastive"] = torch.randn(4, network.feature_dim, generator=generator)
    found.logits["contrastive"] = network.classify(found.features["contrastive"]).detach()
    return found


def test_nothing_is_fitted_on_the_scans_it_is_applied_to(tiny):
    run = load_plans(tiny / "SpineCLUEPlans.json").stage("identify").run
    scans = [scan(f"case{i}", f"half {i % 2}", i) for i in range(4)]
    for fit, apply in parts_of(scans):
        assert not {s.case for s in fit} & {s.case for s in apply}
    torch.manual_seed(0)
    network = {(0, 0): ShapeNetwork(18, 4, 4, hidden=8, projection_dim=8, pool_grid=(1, 1, 1)).eval()}
    fit, apply = parts_of(scans)[0]
    before = shape_probabilities(fit, apply, network, run)[1]
    for other in apply:                                    # other truth there: the same probabilities
        other.names = ("C1", "C2", "C3", "C4")
    after = shape_probabilities(fit, apply, network, run)[1]
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))
    for other in fit:
        other.names = ("C1", "C2", "C3", "C4")
    changed = shape_probabilities(fit, apply, network, run)[1]
    assert not np.allclose(before[0], changed[0])
