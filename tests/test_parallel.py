"""One way to fan work out: in this process, over processes, through a thread pool, over a Dask cluster; the same files each time."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from blocks import lumbar_dataset

from spineclue_v2.cli._common import main
from spineclue_v2.errors import InputError
from spineclue_v2.utilities.parallel import dask_executor, make_executor, run_tasks


def halve(number: int) -> float:
    if number < 0:
        raise InputError(f"{number} is negative")
    return 12 / number


@pytest.mark.parametrize("kind", ["in-process", "processes", "threads"])
def test_failures_stop_nothing_and_keep_their_place(kind: str) -> None:
    tasks = {"a": (4,), "b": (-1,), "c": (0,), "d": (3,)}
    with ThreadPoolExecutor(2) as threads:
        found, failed = run_tasks(halve, tasks, threads if kind == "threads" else None, 2 if kind == "processes" else 0, progress=False)
    assert found == {"a": 3.0, "d": 4.0} and list(failed) == ["b", "c"]
    assert failed["b"] == "-1 is negative" and failed["c"].startswith("ZeroDivisionError")


def test_a_negative_number_of_processes_is_refused() -> None:
    with pytest.raises(InputError, match="-2; expected 0"), make_executor(-2):
        pass


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """Address of a Dask scheduler with two workers, each its own process."""
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0", silence_logs=logging.ERROR) as local:
        yield local.scheduler_address


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_dask_cluster_gives_identical_files(cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lumbar_dataset(tmp_path / "raw" / "Dataset501_Lumbar", 4)
    monkeypatch.setenv("spineclue_raw", str(tmp_path / "raw"))
    made = {}
    for name, flags in {"here": ["-np", "0"], "processes": ["-np", "2"], "dask": ["--dask", cluster]}.items():
        monkeypatch.setenv("spineclue_preprocessed", str(tmp_path / name))
        assert main("plan_and_preprocess", ["-d", "501", "-device", "cpu", "--no_pbar", *flags]) == 0
        made[name] = files(tmp_path / name)
    assert len(made["here"]) >= 2 * 3 * 4
    for name in ("processes", "dask"):
        assert [f for f in made["here"].keys() | made[name].keys() if made["here"].get(f) != made[name].get(f)] == []


def test_failures_of_dask_workers_are_sentences(cluster: str) -> None:
    with dask_executor(cluster) as executor:
        found, failed = run_tasks(halve, {"a": (4,), "b": (-1,), "c": (0,)}, executor, progress=False)
    assert found == {"a": 3.0} and failed["b"] == "-1 is negative" and failed["c"].startswith("ZeroDivisionError")


def test_a_cluster_that_cannot_work_is_one_sentence() -> None:
    distributed = pytest.importorskip("distributed")
    with pytest.raises(InputError, match="No Dask scheduler answers at tcp://127.0.0.1:9"), dask_executor("tcp://127.0.0.1:9", 1):
        pass
    with (
        distributed.LocalCluster(n_workers=0, dashboard_address=":0", silence_logs=logging.ERROR) as local,
        pytest.raises(InputError, match="has no workers; start some with 'dask worker tcp://"),
        dask_executor(local.scheduler_address, 1),
    ):
        pass
