"""Sharing: what is exported predicts the same elsewhere, tells nothing about patients, and an altered ZIP installs nothing."""
from __future__ import annotations

import hashlib
import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from small_model import CARD, CASES, DATASET, export_fold, files_of, small_plans, write_results, write_stage
from test_bad_commands import refused, run

from spineclue_v2.inference.model import load_shipped, load_trained
from spineclue_v2.model_sharing import export_model as share
from spineclue_v2.model_sharing.export_model import export_model, write_shipped
from spineclue_v2.model_sharing.install_model import install_model
from spineclue_v2.stages.registry import CORE_STAGES
from spineclue_v2.training.checkpoint import Checkpoint
from spineclue_v2.utilities import paths

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A results folder with one model of two folds."""
    return write_results(tmp_path_factory.mktemp("results"), folds=(0, 1)).parent


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory) -> Path:
    """Fold 0 of it as a ZIP."""
    return export_fold(trained, 0, tmp_path_factory.mktemp("zip") / "model.zip")


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {f"{stage} {i} {name}": tensor for stage, part in model.stages.items() for i, network in enumerate(part.networks)
            for name, tensor in network.state_dict().items()}


def test_a_model_predicts_the_same_after_export_and_installation(trained, tmp_path, monkeypatch):
    monkeypatch.setenv("spineclue_results", str(trained))
    archive = export_model(501, tmp_path / "model.zip")
    monkeypatch.setenv("spineclue_results", str(tmp_path / "elsewhere"))
    folder = install_model(archive)
    assert folder == tmp_path / "elsewhere" / DATASET
    before, after = load_trained(trained / DATASET, None, CPU), load_trained(folder, None, CPU)
    assert len(after.stages["identify"].networks) == 2 and after.record["fingerprints"] == before.record["fingerprints"]
    assert weights(before).keys() == weights(after).keys()
    assert all(torch.equal(tensor, weights(after)[name]) for name, tensor in weights(before).items())
    assert after.stages["identify"].fitted == before.stages["identify"].fitted
    extra = [model.stages["identify"].extra for model in (before, after)]
    assert all(torch.equal(a["phi"], b["phi"]) for a, b in zip(*extra, strict=True))
    assert [p.name for p in folder.parent.iterdir()] == [DATASET]


def test_identify_is_still_fitted_to_the_weights_it_was_exported_with(trained, exported, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("spineclue_results", str(trained))
    for number, archive in enumerate((exported, export_model(501, tmp_path / "whole.zip", [0]))):  # as fp16 and as they are
        shutil.unpack_archive(archive, tmp_path / str(number))
        load_trained(tmp_path / str(number) / DATASET, None, CPU)
    assert "fitted to other weights" not in caplog.text
    file = next((tmp_path / "1" / DATASET).glob("*__segment/fold_0/*.pth"))
    changed = Checkpoint.load(file)
    next(t for t in changed.network.values() if t.is_floating_point()).mul_(1.01)
    changed.save(file)
    load_trained(tmp_path / "1" / DATASET, None, CPU)
    assert "fitted to other weights of stage segment" in caplog.text


@pytest.mark.parametrize("stage", ["appearance", "geometry"])
def test_every_trained_classifier_is_passed_on(trained, exported, tmp_path, monkeypatch, stage):
    shutil.unpack_archive(exported, tmp_path / "results")
    monkeypatch.setenv("spineclue_results", str(tmp_path / "results"))
    plans = small_plans()
    write_stage(tmp_path / "results" / DATASET, stage, plans)
    export_model(501, tmp_path / "model.zip")
    shutil.rmtree(tmp_path / "results")
    install_model(tmp_path / "model.zip")
    model = load_trained(tmp_path / "results" / DATASET, None, CPU)
    assert stage in model.stages and stage not in model.record.get("shipped_stands_in", ())
    assert model.record["fingerprints"][stage] == plans.stage(stage).model_fingerprint


def test_a_geometry_classifier_of_the_package_stands_in_and_is_named(trained, exported, tmp_path):
    shutil.unpack_archive(exported, tmp_path)
    model = load_trained(tmp_path / DATASET, None, CPU)
    assert model.record["shipped_stands_in"] == ["geometry"] and "geometry" in model.stages
    with zipfile.ZipFile(exported) as content:
        assert not [name for name in content.namelist() if "__geometry/" in name]
        assert "the package's own weights of it stand in" in content.read(f"{CARD}/MODEL_CARD.md").decode()


def test_plain_unzip_installs_too(exported, tmp_path):
    shutil.unpack_archive(exported, tmp_path)
    assert set(load_trained(tmp_path / DATASET, None, CPU).stages) == {*CORE_STAGES, "geometry"}


def test_the_manifest_knows_every_file(exported):
    with zipfile.ZipFile(exported) as content:
        manifest = json.loads(content.read(f"{CARD}/manifest.json"))
        assert set(manifest["files"]) == set(content.namelist()) - {f"{CARD}/manifest.json"}
        for name, listed in manifest["files"].items():
            assert listed == {"bytes": len(content.read(name)), "sha256": hashlib.sha256(content.read(name)).hexdigest()}
    assert (manifest["format"], manifest["folds"], manifest["dataset"]) == (share.FORMAT, ["0"], DATASET)


def test_half_precision_halves_the_size_and_drops_the_optimiser(trained, exported, tmp_path, monkeypatch):
    monkeypatch.setenv("spineclue_results", str(trained))
    whole = export_model(501, tmp_path / "whole.zip", [0])
    assert exported.stat().st_size < 0.55 * whole.stat().st_size
    shutil.unpack_archive(whole, tmp_path)
    file = next((tmp_path / DATASET).glob("*__identify/fold_0/*.pth"))
    content = torch.load(file, weights_only=True)
    assert content["optimizer_state"] is None and content["grad_scaler_state"] is None
    assert {v.dtype for v in content["network_weights"].values()} <= {torch.float32, torch.int64}


def test_exports_of_one_model_are_equal_bytes(trained, exported, tmp_path, monkeypatch):
    monkeypatch.setenv("spineclue_results", str(trained))
    assert export_model(501, tmp_path / "model.zip", [0], half=True).read_bytes() == exported.read_bytes()


def test_no_case_or_patient_is_named_anywhere(exported, tmp_path):
    shutil.unpack_archive(exported, tmp_path)
    everything = b"".join((tmp_path / name).read_bytes() for name in files_of(tmp_path))
    names = {case for part in CASES.values() for case in part} | {case[:5] for part in CASES.values() for case in part}
    assert not [name for name in names if name.encode() in everything]
    assert Checkpoint.load(next(tmp_path.rglob("*__segment/fold_0/*.pth"))).meta["cases"] == {"train": 3, "val": 1}


def test_the_card_says_what_the_model_is(exported):
    with zipfile.ZipFile(exported) as content:
        card, licence = (content.read(f"{CARD}/{name}").decode() for name in ("MODEL_CARD.md", "LICENSE.txt"))
        fingerprints = json.loads(content.read(f"{CARD}/manifest.json"))["fingerprints"]
    assert all(f"| {stage} | `{fingerprints[stage]}` | 0 | 7 | 3, 1 | f1 0.25 |" in card for stage in CORE_STAGES)
    assert "not a medical device" in card and "cases: 4" in card and "patients: 3" in card and "licence: CC BY 4.0" in card
    assert "L3 120" in card and "fp16" in card
    assert "stated no licence" in licence and "AGPL" in licence


def test_a_licence_of_ones_own(trained, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("spineclue_results", str(trained))
    (tmp_path / "mine.txt").write_text("Use it kindly.")
    assert run("export_model", "-d", 501, "-o", tmp_path / "model.zip", "-f", 1, "-license", tmp_path / "mine.txt") == 0
    with zipfile.ZipFile(tmp_path / "model.zip") as content:
        text = content.read(f"{CARD}/LICENSE.txt").decode()
    assert text.startswith("Use it kindly.") and "stated no licence" not in text and "AGPL" in text
    (tmp_path / "picture").write_bytes(b"\xff\xd8\xff")
    assert "no readable text" in refused(capsys, "export_model", "-d", 501, "-o", tmp_path / "m.zip", "-license", tmp_path / "picture")


def test_shipped_weights_load_as_the_package_loads_them(trained, tmp_path, monkeypatch):
    monkeypatch.setenv("spineclue_results", str(trained))
    written = write_shipped(501, 1, tmp_path)
    monkeypatch.setattr(paths, "weights_folder", lambda: tmp_path)
    assert [path.name for path in written] == [f"{stage}.pth" for stage in CORE_STAGES] == ["localize.pth", "segment.pth", "identify.pth"]
    shipped, original = weights(load_shipped(CPU)), weights(load_trained(trained / DATASET, ["1"], CPU))
    assert shipped.keys() == original.keys()
    for name, tensor in original.items():
        assert torch.equal(shipped[name], tensor.half().float() if tensor.is_floating_point() else tensor)
    for path in written:
        content = torch.load(path, weights_only=True)
        assert content["format"] == 1 and "optimizer_state" not in content and path.stat().st_size < share.SHIPPED_LIMIT
        meta = json.loads(content["meta"])
        assert "history" not in meta and "train_cases" not in meta and meta["fitted"]["temperature"] == 1.5


def test_the_commands(trained, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("spineclue_results", str(trained))
    assert run("export_model", "-d", 501, "-f", 0, 1, "-o", tmp_path / "model.zip", "--half") == 0
    assert run("export_model", "-d", 501, "-f", 0, "--shipped", tmp_path / "shipped") == 0
    assert "one fold" in refused(capsys, "export_model", "-d", 501, "--shipped", tmp_path / "shipped")
    shipped = ("export_model", "-d", 501, "-f", 0, "--shipped", tmp_path / "shipped")
    assert "-license belongs to the ZIP" in refused(capsys, *shipped, "-license", tmp_path / "licence.txt")
    assert "ends with .zip" in refused(capsys, "export_model", "-d", 501, "-o", tmp_path / "model.tar")
    assert "fold_5" in refused(capsys, "export_model", "-d", 501, "-f", 5, "-o", tmp_path / "other.zip")
    monkeypatch.setenv("spineclue_results", str(tmp_path / "elsewhere"))
    assert run("install_model", tmp_path / "model.zip") == 0
    assert DATASET in capsys.readouterr().out
    assert "does not exist" in refused(capsys, "install_model", tmp_path / "nothing.zip")
    assert not (tmp_path / "other.zip").exists()
