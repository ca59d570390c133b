"""The corpus of malformed input: every piece is refused with one sentence, quickly, without eating the memory."""
from __future__ import annotations

import logging
import re
import resource
import shutil
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from malformed import CORPUS, torch_bytes
from malformed_scans import header_with, whole_file
from small_model import write_results
from test_install import without_detector

from spineclue_v2.errors import InputError
from spineclue_v2.imageio.volume import read_volume
from spineclue_v2.model_sharing.export_model import export_model
from spineclue_v2.model_sharing.install_model import check_checkpoint, install_model
from spineclue_v2.training.checkpoint import Checkpoint

CPU_SECONDS = 10.0
GROWTH_BYTES = 600 * 2 ** 20


def sentence_of(refusal: pytest.ExceptionInfo[InputError]) -> str:
    text = str(refusal.value)
    assert "\n" not in text and 20 < len(text) < 700 and text[-1] in ".?)" and not re.search("0x[0-9a-f]{6}", text), text
    assert "Traceback" not in text
    return text


def peak_bytes() -> int:
    """Largest resident size of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def test_the_corpus_is_large():
    assert len(CORPUS) >= 300


@pytest.mark.parametrize("kind", CORPUS)
def test_malformed_input_is_refused(kind, tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    started, before = time.process_time(), peak_bytes()
    with caplog.at_level(logging.ERROR), pytest.raises(InputError) as refusal:
        CORPUS[kind](tmp_path)
    sentence_of(refusal)
    assert time.process_time() - started < CPU_SECONDS
    assert peak_bytes() - before < GROWTH_BYTES
    assert not (tmp_path / "sprung").exists(), "code of a checkpoint ran"


# ---- random damage: refused, or read as something sound ------------------------------------------------------------------------
@settings(max_examples=150, deadline=None)
@given(st.integers(0, 347), st.binary(min_size=1, max_size=8))
@example(123, b"\x01")  # metres instead of millimetres
def test_nifti_headers_with_random_bytes_are_refused_or_read_soundly(tmp_path_factory, offset, values):
    values = values[:348 - offset]
    make = header_with(offset, f"{len(values)}s", values)
    try:
        volume = make(tmp_path_factory.mktemp("scan"))
    except InputError as error:
        assert "\n" not in str(error)
        return
    assert np.isfinite(volume.array).all() and min(volume.array.shape) >= 5 and volume.array.size <= 2 ** 20
    assert all(1e-3 <= s <= 100 for s in volume.spacing) and np.isfinite(volume.geometry.origin).all()
    assert abs(abs(np.linalg.det(volume.geometry.direction)) - 1) < 0.03


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([".mha", ".nrrd"]), st.integers(0, 250), st.binary(min_size=1, max_size=4))
def test_text_headers_with_random_bytes_are_refused_or_read_soundly(tmp_path_factory, ending, offset, values):
    content = bytearray(whole_file(ending, compressed=False))
    content[offset:offset + len(values)] = values
    path = tmp_path_factory.mktemp("scan") / f"scan{ending}"
    path.write_bytes(bytes(content))
    try:
        volume = read_volume(path)
    except InputError as error:
        assert "\n" not in str(error)
        return
    assert np.isfinite(volume.array).all() and min(volume.array.shape) >= 5
    assert all(1e-3 <= s <= 100 for s in volume.spacing) and np.isfinite(volume.geometry.origin).all()


@settings(max_examples=60, deadline=None)
@given(st.floats(0, 1, exclude_max=True), st.binary(min_size=1, max_size=6))
def test_checkpoints_with_random_bytes_are_refused_or_whole(tmp_path_factory, place, values):
    content = bytearray(torch_bytes({"format": 1, "network_weights": {"w": torch.arange(20.0)}, "meta": "{}"}))
    where = int(place * len(content))
    content[where:where + len(values)] = values
    path = tmp_path_factory.mktemp("checkpoint") / "checkpoint_final.pth"
    path.write_bytes(bytes(content))
    try:
        check_checkpoint(path)
        found = Checkpoint.load(path)
    except InputError as error:
        assert "\n" not in str(error)
        return
    assert all(isinstance(tensor, torch.Tensor) for tensor in found.network.values())


# ---- archives ------------------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> bytes:
    """A model as a ZIP."""
    with pytest.MonkeyPatch.context() as patch:
        results = write_results(tmp_path_factory.mktemp("results")).parent
        patch.setenv("spineclue_results", str(results))
        return without_detector(export_model(501, results / "model.zip", half=True)).read_bytes()


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()} if folder.exists() else {}


@pytest.mark.parametrize("share", [0.0, 0.0001, 0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99, 0.999, 0.9999, 0.99999])
def test_archives_that_end_early_install_nothing(archive, tmp_path, monkeypatch, share):
    monkeypatch.setenv("spineclue_results", str(tmp_path / "installed"))
    (tmp_path / "model.zip").write_bytes(archive[:int(len(archive) * share)])
    with pytest.raises(InputError) as refusal:
        install_model(tmp_path / "model.zip")
    assert str(tmp_path / "model.zip") in sentence_of(refusal)
    assert files_of(tmp_path / "installed") == {}


@pytest.mark.parametrize("seed", range(24))
def test_archives_with_a_flipped_byte_install_nothing_or_the_model(archive, tmp_path, monkeypatch, seed):
    """Half of the flips hit the directory at the end, where every field is; a few bytes (dates) mean nothing to anybody."""
    monkeypatch.setenv("spineclue_results", str(tmp_path / "installed"))
    rng = np.random.default_rng(seed)
    directory = archive.index(b"PK\x01\x02")
    place = int(rng.integers(directory, len(archive)) if seed % 2 else rng.integers(len(archive)))
    spoiled = bytearray(archive)
    spoiled[place] ^= int(rng.integers(1, 256))
    (tmp_path / "model.zip").write_bytes(bytes(spoiled))
    try:
        folder = install_model(tmp_path / "model.zip")
    except InputError as error:
        assert "\n" not in str(error) and files_of(tmp_path / "installed") == {}
        return
    (tmp_path / "whole.zip").write_bytes(archive)
    with zipfile.ZipFile(tmp_path / "whole.zip") as content:
        content.extractall(tmp_path / "expected")
    assert files_of(folder) == files_of(tmp_path / "expected" / folder.name)
    shutil.rmtree(tmp_path / "expected")
