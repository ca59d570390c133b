"""Every test runs offline, on two threads, with its own empty home folder."""
from __future__ import annotations

import importlib
import importlib.util
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# Before anything imports torch or SimpleITK: both read these once, at import.
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"):
    os.environ.setdefault(_name, "2")
os.environ["HF_HUB_OFFLINE"] = "1"
# An empty home has no network that was converted, and converting takes longer than most tests (`test_openvino` does).
os.environ["SPINECLUE_ENGINE"] = "torch"
# `benchmarks` is the folder of the repository, not tests/benchmarks: pytest puts tests/ first later.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
importlib.import_module("benchmarks")


def pytest_configure() -> None:
    if importlib.util.find_spec("spineclue_v2") is None or importlib.util.find_spec("spineclue_v2.planning") is None:
        # With a plain wheel the checkout's spineclue_v2/ shadows the installed package and its planning/ is not found.
        raise pytest.UsageError("the tests need an editable install: pip install -e '.[test]', then python -m pytest -q here")
    from spineclue_v2.utilities.environment import guard

    guard()


@pytest.fixture(autouse=True)
def own_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Point every folder the program writes to by itself into a fresh temporary one."""
    monkeypatch.setenv("SPINECLUE_HOME", str(tmp_path_factory.mktemp("home")))
    for variable in ("spineclue_raw", "spineclue_preprocessed", "spineclue_results", "SPINECLUE_WEIGHTS", "nnUNet_raw"):
        monkeypatch.delenv(variable, raising=False)


@pytest.fixture(scope="session", autouse=True)
def written_cases_obey_the_schema(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Every CASE.json that any test wrote, by whatever command, is held against the schema in the end."""
    yield
    import jsonschema

    from spineclue_v2.export.schema import case_schema

    checker = jsonschema.Draft202012Validator(case_schema())
    for path in sorted(tmp_path_factory.getbasetemp().rglob("*.json")):
        if path.is_file() and '"execution_status"' in (text := path.read_text(encoding="utf-8", errors="replace")):
            checker.validate(json.loads(text))


@pytest.fixture(scope="session")
def tiny_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tiny_dataset import make

    return make(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def tiny(tiny_once: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Preprocessed folder of `tiny_dataset`, shared by all tests (leave it as it is); results go to the test's own home."""
    monkeypatch.setenv("spineclue_preprocessed", str(tiny_once.parent))
    monkeypatch.setenv("spineclue_n_proc_DA", "0")  # batches are made in this process: no time is lost on starting others
    return tiny_once
