"""Installing a shared model beside what is there; an altered ZIP installs nothing."""
from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_model import CARD, DATASET, export_fold, files_of, write_results
from test_bad_commands import Trap
from test_bad_input import is_one_sentence

from spineclue_v2.errors import InputError
from spineclue_v2.model_sharing import export_model as share
from spineclue_v2.model_sharing import install_model as install
from spineclue_v2.model_sharing.install_model import install_model


class Archive:
    """The files of a ZIP with its manifest, ours to alter. `infos` replaces the directory entry of a file."""

    def __init__(self, path: Path) -> None:
        with zipfile.ZipFile(path) as content:
            self.files = {name: content.read(name) for name in content.namelist()}
        self.manifest = json.loads(self.files.pop(f"{CARD}/manifest.json"))
        self.infos: dict[str, zipfile.ZipInfo] = {}
        self.packed: set[str] = set()
        self.raw: list[tuple[zipfile.ZipInfo | str, bytes]] = []   # entries the manifest knows nothing about
        self.place = f"{CARD}/manifest.json"

    def checkpoint(self, stage: str = "identify") -> str:
        return next(name for name in self.files if f"__{stage}/fold_0" in name)

    def put(self, name: str, content: bytes) -> None:
        """A file with its right size and hash in the manifest."""
        self.files[name] = content
        self.manifest["files"][name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}

    def put_packed(self, name: str, content: bytes) -> None:
        self.put(name, content)
        self.packed.add(name)

    def save(self, path: Path) -> Path:
        with zipfile.ZipFile(path, "w") as content:
            for name, data in self.files.items():
                info = self.infos.get(name, zipfile.ZipInfo(name))
                info.compress_type = zipfile.ZIP_DEFLATED if name in self.packed else zipfile.ZIP_STORED
                content.writestr(info, data)
            for info, data in self.raw:
                content.writestr(info, data)
            if self.place:
                content.writestr(self.place, json.dumps(self.manifest))
        return path


def saved_checkpoint(content: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Path:
    """A results folder with one model of two folds."""
    return write_results(tmp_path_factory.mktemp("results"), folds=(0, 1)).parent


@pytest.fixture(scope="module")
def light(results, tmp_path_factory) -> Path:
    """Fold 0 as a ZIP with the detector's weights left out: installing looks at no network."""
    return without_detector(export_fold(results, 0, tmp_path_factory.mktemp("zip") / "model.zip"))


@pytest.fixture(scope="module")
def light_other(results, tmp_path_factory) -> Path:
    return without_detector(export_fold(results, 1, tmp_path_factory.mktemp("zip") / "other.zip"))


def without_detector(path: Path) -> Path:
    archive = Archive(path)
    name = next(name for name in archive.files if "__localize/fold_" in name)
    content = torch.load(io.BytesIO(archive.files[name]), weights_only=True)
    archive.put(name, saved_checkpoint(content | {"network_weights": {"w": torch.zeros(2)}}))
    return archive.save(path.with_name(f"light_{path.name}"))


# ---- installing beside what is there -----------------------------------------------------------------------------------------
@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("spineclue_results", str(tmp_path / "installed"))
    return tmp_path / "installed"


def test_other_weights_are_replaced_only_when_asked(light, light_other, home):
    install_model(light)
    before = {name: (home / name).read_bytes() for name in files_of(home)}
    install_model(light)  # the same model again is no conflict
    with pytest.raises(InputError, match="--overwrite"):
        install_model(light_other)
    assert {name: (home / name).read_bytes() for name in files_of(home)} == before
    install_model(light_other, overwrite=True)
    assert files_of(home) == sorted(name.replace("fold_0", "fold_1") for name in before)


def test_parts_of_the_old_model_do_not_stay_beside_the_new_one(light, light_other, home):
    install_model(light)
    old = [home / DATASET / f"{trainer}__SpineCLUEPlans__{stage}" / "fold_0" / "checkpoint_final.pth"
           for trainer, stage in (("GradeTrainer", "grade"), ("AppearanceTrainer", "appearance"))]
    for file in old:
        file.parent.mkdir(parents=True)
        file.write_text("of the old model")
    install_model(light)  # the same model: they are its own
    assert all(file.exists() for file in old)
    install_model(light_other, overwrite=True)
    assert not any(file.parents[1].exists() for file in old)
    shutil.rmtree(home)
    old[0].parent.mkdir(parents=True)
    with pytest.raises(InputError, match="GradeTrainer.*--overwrite"):
        install_model(light)
    assert [path.name for path in (home / DATASET).iterdir()] == ["GradeTrainer__SpineCLUEPlans__grade"]


def test_what_else_the_dataset_has_stays(light, home):
    own = home / DATASET / "IdentifyTrainer__MyPlans__identify" / "fold_0" / "checkpoint_final.pth"
    own.parent.mkdir(parents=True)
    own.write_text("mine")
    install_model(light)
    assert own.read_text() == "mine" and (home / DATASET / "card__SpineCLUEPlans").is_dir()
    assert [path.name for path in home.iterdir()] == [DATASET]


@pytest.mark.parametrize("failing", range(1, 8))
def test_a_rename_that_fails_brings_the_old_model_back(light, light_other, home, monkeypatch, failing):
    install_model(light)
    before, rename, calls = {name: (home / name).read_bytes() for name in files_of(home)}, Path.rename, []

    def broken(self: Path, target: Path) -> Path:
        calls.append(self)
        if len(calls) == failing:
            raise OSError(28, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", broken)
    with pytest.raises(InputError, match="No space left"):
        install_model(light_other, overwrite=True)
    assert {name: (home / name).read_bytes() for name in files_of(home)} == before


def test_too_little_room_is_said_before_anything_is_unpacked(light, home, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda place: shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(InputError, match="MB left"):
        install_model(light)
    assert not home.exists()


# ---- hostile archives --------------------------------------------------------------------------------------------------------
def link(name: str, kind: int = stat.S_IFLNK) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.create_system, info.external_attr = 3, (kind | 0o777) << 16
    return info


def packed_again(content: bytes) -> bytes:
    """The same checkpoint with deflated records: torch would unpack whatever they expand to."""
    target = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    return target.getvalue()


def spoil(archive: Archive, **changes: Any) -> None:
    """Alter the identify checkpoint's content."""
    content = torch.load(io.BytesIO(archive.files[archive.checkpoint()]), weights_only=True)
    archive.put(archive.checkpoint(), saved_checkpoint(content | changes))


def meta_with(archive: Archive, **changes: Any) -> str:
    content = torch.load(io.BytesIO(archive.files[archive.checkpoint()]), weights_only=True)
    return json.dumps(json.loads(content["meta"]) | changes)


def edit_plan(archive: Archive, edit: Callable[[dict[str, Any]], Any]) -> None:
    name = next(name for name in archive.files if name.endswith("__identify/plans.json"))
    content = json.loads(archive.files[name])
    edit(content)
    archive.put(name, json.dumps(content).encode())


HUGE = torch.zeros(1).expand(1 << 20, 1 << 20)  # 4 bytes on disk, 4 TB as a tensor of its own
STAGE = f"{DATASET}/IdentifyTrainer__SpineCLUEPlans__identify"

HOSTILE: dict[str, tuple[Callable[[Archive], Any], str]] = {
    **{f"escape {name!r}": (lambda a, name=name: a.raw.append((name, b"x")), "could leave its folder|absolute path") for name in (
        "../evil.pth", f"{DATASET}/../../evil.pth", f"{STAGE}/fold_0/../../../../evil.pth", "/etc/evil", "/evil.pth", "C:/evil.pth",
        "C:\\evil.pth", "\\\\server\\evil", f"{DATASET}\\..\\evil.pth", "..", f"{DATASET}/..", f"{STAGE}/fold_0/a\nb.pth")},
    **{f"unknown {name!r}": (lambda a, name=name: a.put(name, b"x"), "no part of a model") for name in (
        "evil.pth", "README.md", f"{DATASET}/evil.py", f"{STAGE}/fold_0/run.sh", f"{STAGE}/__init__.py", f"{STAGE}/fold_0/a/b.pth",
        f"{STAGE}/.hidden.pth", f"{STAGE}/fold_x/checkpoint_final.pth", f"{STAGE}/fold_0/.pth", f"{CARD}/extra.txt",
        "Dataset1_Short/card__SpineCLUEPlans/LICENSE.txt", f"{DATASET}/A__B__Other/plans.json", f"{STAGE}/fold_0/" + 200 * "a" + ".pth")},
    "extra checkpoint": (lambda a: a.raw.append((f"{STAGE}/fold_1/checkpoint_final.pth", b"x")), "manifest does not list"),
    "extra listed elsewhere": (lambda a: a.put("Dataset777_Other/A__B__identify/plans.json", b"{}"), "does not belong"),
    "symbolic link": (lambda a: a.infos.update({a.checkpoint(): link(a.checkpoint())}), "link or device"),
    "link as extra": (lambda a: a.raw.append((link(f"{STAGE}/fold_1/checkpoint_final.pth"), b"/etc/passwd")), "link or device"),
    "device": (lambda a: a.raw.append((link(f"{STAGE}/fold_1/checkpoint_final.pth", stat.S_IFCHR), b"")), "link or device"),
    "fifo": (lambda a: a.infos.update({a.checkpoint(): link(a.checkpoint(), stat.S_IFIFO)}), "link or device"),
    "folder that is a link": (lambda a: a.raw.append((link(f"{DATASET}/folder/"), b"/tmp")), "link or device"),
    "two of one name": (lambda a: a.raw.append((a.checkpoint(), b"x")), "twice"),
    "two of one name but for case": (lambda a: a.put(a.checkpoint().replace("Dataset", "dataset"), b"x"), "twice"),
    "bomb": (lambda a: a.put_packed(a.checkpoint(), bytes(50 << 20)), "decompression bomb"),
    "text bomb": (lambda a: a.put_packed(f"{STAGE}/dataset.json", b" " * (30 << 20)), "decompression bomb"),
    "text of 70 MB": (lambda a: a.put(f"{STAGE}/dataset.json", b" " * (70 << 20)), "decompression bomb"),
    "listed checkpoint of another fold": (lambda a: a.put(f"{STAGE}/fold_1/checkpoint_final.pth", b"x"), "does not belong"),
    "listed checkpoint of another name": (lambda a: a.put(f"{STAGE}/fold_0/checkpoint_best.pth", b"x"), "does not belong"),
    "dataset.json no JSON": (lambda a: a.put(f"{STAGE}/dataset.json", b"{"), "not valid JSON"),
    "manifest bomb": (lambda a: a.manifest.update(x=" " * (2 << 20)), "bytes|bomb"),
    "too many files": (lambda a: [a.raw.append((f"{STAGE}/fold_{i}/checkpoint_final.pth", b"")) for i in range(600)], "at most 500"),
    "wrong hash": (lambda a: a.manifest["files"][a.checkpoint()].update(sha256="0" * 64), "sha256"),
    "no hash": (lambda a: a.manifest["files"][a.checkpoint()].pop("sha256"), "no manifest"),
    "wrong size": (lambda a: a.manifest["files"][a.checkpoint()].update(bytes=5), "altered or damaged"),
    "altered plan": (lambda a: a.files.update({f"{STAGE}/plans.json": a.files[f"{STAGE}/plans.json"].replace(b"4", b"5", 1)}), "sha256"),
    "checkpoint missing": (lambda a: a.files.pop(a.checkpoint()), "lacks"),
    "plan missing": (lambda a: (a.files.pop(f"{STAGE}/plans.json"), a.manifest["files"].pop(f"{STAGE}/plans.json")), "lacks"),
    "fold missing": (lambda a: a.manifest.update(folds=["0", "1"]), "lacks"),
    "no manifest": (lambda a: setattr(a, "place", ""), "0 manifests"),
    "two manifests": (lambda a: a.raw.append((f"{DATASET}/card__Other/manifest.json", b"{}")), "2 manifests"),
    "manifest elsewhere": (lambda a: setattr(a, "place", f"{DATASET}/card__Other/manifest.json"), "no manifest of"),
    "newer format": (lambda a: a.manifest.update(format=share.FORMAT + 1), "Update spineclue_v2"),
    "format a word": (lambda a: a.manifest.update(format="one"), "no manifest of"),
    "folds no list": (lambda a: a.manifest.update(folds="0"), "no manifest of"),
    "no folds": (lambda a: a.manifest.update(folds=[]), "no manifest of"),
    "stages a list": (lambda a: a.manifest.update(stages=["localize"]), "no manifest of"),
    "a stage missing": (lambda a: a.manifest["stages"].pop("segment"), "no manifest of"),
    "stages mixed up": (lambda a: a.manifest["stages"].update(identify=a.manifest["stages"]["segment"]), "does not belong|lacks"),
    "files a list": (lambda a: a.manifest.update(files=[]), "no manifest of"),
    "escape in the manifest": (lambda a: a.manifest.update(dataset="../.."), "no manifest of"),
    "escape in a stage": (lambda a: a.manifest["stages"].update(identify="../x__identify"), "lacks"),
    "escape in a fold": (lambda a: a.manifest.update(folds=["0", "../0"]), "lacks"),
    "pickle with code": (lambda a: a.put(a.checkpoint(), saved_checkpoint({"network_weights": {}, "meta": Trap(Path("sprung"))})),
                         "damaged or no checkpoint"),
    "whole module": (lambda a: a.put(a.checkpoint(), saved_checkpoint(torch.nn.Linear(2, 2))), "damaged or no checkpoint"),
    "no torch file": (lambda a: a.put(a.checkpoint(), b"not a checkpoint"), "damaged or no checkpoint"),
    "half a checkpoint": (lambda a: a.put(a.checkpoint(), a.files[a.checkpoint()][:3000]), "damaged or no checkpoint"),
    "packed records": (lambda a: a.put(a.checkpoint(), packed_again(a.files[a.checkpoint()])), "records are packed"),
    "huge tensor": (lambda a: spoil(a, network_weights={"w": HUGE}), "tensors claim"),
    "huge extra tensor": (lambda a: spoil(a, extra={"phi": HUGE}), "tensors claim"),
    "weights a list": (lambda a: spoil(a, network_weights=[torch.zeros(2)]), "named tensors"),
    "weights no tensors": (lambda a: spoil(a, network_weights={"w": "text"}), "named tensors"),
    "weights numbered": (lambda a: spoil(a, network_weights={1: torch.zeros(2)}), "named tensors"),
    "a bare tensor": (lambda a: a.put(a.checkpoint(), saved_checkpoint(torch.zeros(3))), "named tensors"),
    "newer checkpoint": (lambda a: spoil(a, format=99), "format 99"),
    "checkpoint format a word": (lambda a: spoil(a, format="new"), "no format"),
    "description a number": (lambda a: spoil(a, meta=5), "no description"),
    "description no JSON": (lambda a: spoil(a, meta="{"), "no JSON object"),
    "description a list": (lambda a: spoil(a, meta="[]"), "no JSON object"),
    "description nested deeply": (lambda a: spoil(a, meta="[" * 100_000), "no JSON object"),
    "other stage": (lambda a: a.put(a.checkpoint(), a.files[a.checkpoint("segment")]), "stage 'segment'"),
    "other fingerprint": (lambda a: spoil(a, meta=meta_with(a, model_fingerprint="0" * 16)), "0000000000000000"),
    "other fingerprint in the manifest": (lambda a: a.manifest["fingerprints"].update(identify="0" * 16), "0000000000000000"),
    "edited plan": (lambda a: edit_plan(a, lambda p: p["stages"]["identify"]["network"]["width"].update(value=8)), "its manifest says"),
    "newer plan": (lambda a: edit_plan(a, lambda p: p.update(format=99)), "format 99"),
    "plan without its stage": (lambda a: edit_plan(a, lambda p: p["stages"].pop("identify")), "no stage 'identify'"),
    "plan no JSON": (lambda a: a.put(f"{STAGE}/plans.json", b"{"), "not valid JSON"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_archive_installs_nothing(light, home, tmp_path, monkeypatch, kind):
    alter, reason = HOSTILE[kind]
    monkeypatch.chdir(tmp_path)
    archive = Archive(light)
    alter(archive)
    path = archive.save(tmp_path / "model.zip")
    with pytest.raises(InputError, match=reason) as refusal:
        install_model(path)
    assert is_one_sentence(str(refusal.value)), str(refusal.value)
    assert str(path) in str(refusal.value) and ".part_install" not in str(refusal.value)
    assert (files_of(home) if home.exists() else []) == [] and files_of(tmp_path) == ["model.zip"]
    assert not [p for p in (home.iterdir() if home.exists() else []) if p.name.startswith(".part")]


def test_an_archive_that_was_packed_again_with_folder_entries_is_fine(light, home, tmp_path):
    shutil.unpack_archive(light, tmp_path / "content")
    shutil.make_archive(str(tmp_path / "again"), "zip", tmp_path / "content")
    assert any(name.endswith("/") for name in zipfile.ZipFile(tmp_path / "again.zip").namelist())
    assert (install_model(tmp_path / "again.zip") / "card__SpineCLUEPlans").is_dir()


def test_no_more_is_written_than_was_declared(light, home, tmp_path, monkeypatch):
    """A member whose directory entry claims fewer bytes than it unpacks to ends at the claim, and fails."""
    archive = Archive(light)
    name = f"{STAGE}/dataset.json"
    archive.put(name, np.random.default_rng(0).bytes(5000))
    archive.manifest["files"][name]["bytes"] = 100
    content = archive.save(tmp_path / "model.zip").read_bytes()
    where = content.rindex(b"PK\x01\x02", 0, content.rindex(name.encode()))
    (tmp_path / "model.zip").write_bytes(content[:where + 24] + (100).to_bytes(4, "little") + content[where + 28:])
    monkeypatch.setattr(install, "BLOCK", 64)
    with pytest.raises(InputError, match="no intact ZIP|sha256"):
        install_model(tmp_path / "model.zip")
    assert files_of(home) == []


def test_a_results_folder_that_cannot_be_made(light, tmp_path, monkeypatch):
    (tmp_path / "occupied").write_text("a file")
    monkeypatch.setenv("spineclue_results", str(tmp_path / "occupied" / "results"))
    with pytest.raises(InputError) as refusal:
        install_model(light)
    assert is_one_sentence(str(refusal.value)) and os.listdir(tmp_path) == ["occupied"]
