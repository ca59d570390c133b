"""Whoever waits notices when nobody is left to wait for: training batches, pools of processes, nnU-Net's check, a Dask cluster."""
from __future__ import annotations

import logging
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from multiprocessing import forkserver
from pathlib import Path

import pytest
import torch
import worker_tasks
from blocks import lumbar_dataset
from torch.utils.data import get_worker_info

from spineclue_v2.errors import InputError
from spineclue_v2.training.batches import iterate_batches
from spineclue_v2.utilities import parallel
from spineclue_v2.utilities.parallel import WatchedExecutor, run_tasks
from spineclue_v2.utilities.worker_pool import WorkerPool


@dataclass
class Batches:
    """Batch i holds i; the worker that makes batch `deadly` kills itself (`once`: the first one alone, which leaves this file; `unheard`:
    and nobody hears of it before the process that would tell has gone on), batch `wrong` cannot be made anywhere."""

    deadly: int = -1
    wrong: int = -1
    size: int = 4
    once: Path | None = None
    unheard: bool = False

    def __call__(self, index: int) -> dict[str, torch.Tensor]:
        if index == self.deadly and get_worker_info() is not None and not (self.once and self.once.exists()):
            if self.once:
                self.once.write_text(str(os.getppid()))
            if self.unheard:
                time.sleep(0.5)  # what it made before is sent by then
                os.kill(os.getppid(), signal.SIGSTOP)
            os.kill(os.getpid(), signal.SIGKILL)
        if index == self.wrong:
            raise InputError("case 'a' is broken")
        return {"image": torch.full((self.size,), float(index)), "boxes": torch.zeros(0, 4), "on": torch.ones(2, dtype=torch.bool)}


def numbers(batches: Iterator[dict[str, torch.Tensor]]) -> list[int]:
    return [int(batch["image"][0]) for batch in batches]


def test_a_killed_batch_worker_is_replaced(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    lost: list[bool] = []
    with caplog.at_level(logging.WARNING):
        batches = iterate_batches(Batches(deadly=4, once=tmp_path / "died"), 1, 9, 1, lambda: lost.append(True))
        assert numbers(batches) == list(range(1, 9))
    assert lost == [True] and re.search(r"from batch [1-4] on a new one makes them", caplog.text)


def test_a_batch_worker_whose_end_is_heard_of_late_is_replaced(tmp_path: Path) -> None:
    """On a busy machine its batches cannot be fetched any more before torch knows that it is gone."""
    died = tmp_path / "died"
    batches = iterate_batches(Batches(deadly=4, once=died, unheard=True), 1, 9, 1)
    first = int(next(batches)["image"][0])
    while not died.exists() or not died.read_text():
        time.sleep(0.02)
    time.sleep(0.8)
    threading.Timer(1.0, os.kill, (int(died.read_text()), signal.SIGCONT)).start()
    assert [first, *numbers(batches)] == list(range(1, 9))


def test_a_batch_that_kills_every_worker_ends_the_run_with_the_reason() -> None:
    with pytest.raises(RuntimeError, match="exited unexpectedly|killed"):
        numbers(iterate_batches(Batches(deadly=2), 1, 5, 1))


def test_a_batch_that_cannot_be_made_says_why_itself(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(InputError) as raised:
        numbers(iterate_batches(Batches(wrong=2), 0, 5, 1))
    assert str(raised.value) == "case 'a' is broken" and "was lost" not in caplog.text


def test_a_run_may_begin_and_end_anywhere() -> None:
    assert numbers(iterate_batches(Batches(), 3, 7, 0)) == [3, 4, 5, 6] and numbers(iterate_batches(Batches(), 7, 7, 2)) == []


SMALL_SHARED_MEMORY = """
import logging, sys
sys.path.insert(0, {tests!r})
from test_lost_workers import Batches, numbers
from spineclue_v2.training.batches import iterate_batches
if __name__ == "__main__":
    logging.basicConfig()
    print(numbers(iterate_batches(Batches(size=1 << 20), 0, 8, 2)))
"""


def test_a_container_with_little_shared_memory_trains_in_one_process(tmp_path: Path) -> None:
    """4 MB a batch, 8 MB of /dev/shm: the loader's workers fill it, and training goes on without them."""
    script = tmp_path / "small.py"
    script.write_text(SMALL_SHARED_MEMORY.format(tests=str(Path(__file__).parent)))
    command = f"mount -t tmpfs -o size=8m tmpfs /dev/shm && exec {sys.executable} {script}"
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-m", "sh", "-c", "mount -t tmpfs -o size=8m tmpfs /dev/shm"],
                                                         capture_output=True).returncode:
        pytest.skip("no right to mount another /dev/shm")
    done = subprocess.run(["unshare", "-m", "sh", "-c", command], capture_output=True, text=True, timeout=600)
    assert done.stdout.strip() == "[0, 1, 2, 3, 4, 5, 6, 7]", done.stderr[-2000:]
    assert "Shared memory (/dev/shm) is too small" in done.stderr


def test_of_a_pool_only_the_task_that_kills_its_process_fails() -> None:
    found, failed = run_tasks(worker_tasks.kill_second, {f"case {i}": (i,) for i in range(6)}, num_processes=2, progress=False)
    assert list(found.values()) == [0, 1, 3, 4, 5] and list(failed) == ["case 2"] and "its worker process died" in failed["case 2"]


def test_a_process_that_dies_costs_the_others_nothing() -> None:
    """They go on where they are: no case begins again, and no network is loaded again for it."""
    found, failed = run_tasks(worker_tasks.kill_first, {i: (i,) for i in range(6)}, num_processes=1, progress=False)
    assert list(failed) == [0] and list(found) == [1, 2, 3, 4, 5] and len(set(found.values())) == 1


def test_a_task_that_dies_for_want_of_memory_has_it_all_in_the_end(tmp_path: Path) -> None:
    """It runs alone: whoever waits for work has ended, with what it held."""
    tasks = {"a": ("",), "b": (str(tmp_path / "once"),)}
    others = worker_tasks.living_children(getattr(forkserver._forkserver, "_forkserver_pid", None))     # of earlier tests
    found, failed = run_tasks(worker_tasks.second_time, tasks, num_processes=2, progress=False)
    assert not failed and found["b"] - others <= 1, "one process of its kind, its own"


def test_what_cannot_be_sent_is_a_failure_of_its_task_alone() -> None:
    with WorkerPool(1) as pool:
        unsent, back, fine = pool.submit(lambda: 1), pool.submit(worker_tasks.unpicklable), pool.submit(abs, -3)
        assert fine.result() == 3
        with pytest.raises(Exception, match="pickle|local"):
            unsent.result()
        with pytest.raises(RuntimeError, match="cannot be sent back"):
            back.result()


def test_a_pool_is_interrupted_without_waiting_for_what_has_not_begun() -> None:
    pool = WorkerPool(1)
    futures = [pool.submit(abs, -i) for i in range(200)]
    pool.shutdown(cancel_futures=True)
    assert futures[0].cancelled() or futures[0].result() == 0
    assert all(future.done() for future in futures) and futures[-1].cancelled()
    with pytest.raises(RuntimeError, match="after shutdown"):
        pool.submit(abs, 1)


def test_without_processes_work_is_done_in_this_process(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(multiprocessing.get_context("forkserver").Process, "start", refuse)
    found, failed = run_tasks(abs, {"a": (-1,), "b": (2,)}, num_processes=2, progress=False)
    assert found == {"a": 1, "b": 2} and not failed and "No worker processes can be started" in caplog.text


class Silent(Executor):
    """Takes work and never does any, but for the first."""

    def __init__(self) -> None:
        self.taken: list[Future[int]] = []

    def submit(self, fn: object, /, *args: object, **kwargs: object) -> Future[int]:  # type: ignore[override]
        self.taken.append(Future())
        if len(self.taken) == 1:
            self.taken[0].set_result(7)
        return self.taken[-1]


def test_a_cluster_without_workers_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "WATCH_S", 0.05)
    monkeypatch.setattr(parallel, "LOST_AFTER_S", 0.2)
    executor = WatchedExecutor(Silent(), lambda: "no Dask worker is left at tcp://here")
    found, failed = run_tasks(abs, {"a": (1,), "b": (2,), "c": (3,)}, executor, progress=False)
    assert found == {"a": 7} and list(failed) == ["b", "c"]
    assert failed["b"] == "not done: no Dask worker is left at tcp://here; run again, finished cases are kept"


def test_trouble_that_passes_fails_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "WATCH_S", 0.05)
    monkeypatch.setattr(parallel, "LOST_AFTER_S", 0.3)
    silent, asked = Silent(), []

    def trouble() -> str:
        asked.append(True)
        return "" if len(asked) % 4 == 0 else "away"

    threading.Timer(0.8, lambda: [future.set_result(5) for future in silent.taken[1:]]).start()
    found, failed = run_tasks(abs, {"a": (1,), "b": (2,)}, WatchedExecutor(silent, trouble), progress=False)
    assert found == {"a": 7, "b": 5} and not failed and len(asked) > 6


def test_a_cluster_that_loses_its_workers_ends_with_sentences(monkeypatch: pytest.MonkeyPatch) -> None:
    distributed = pytest.importorskip("distributed")
    monkeypatch.setattr(parallel, "WATCH_S", 0.2)
    monkeypatch.setattr(parallel, "LOST_AFTER_S", 0.5)
    with distributed.LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=":0", silence_logs=logging.CRITICAL,
                                  processes=False) as local, parallel.dask_executor(local.scheduler_address) as executor:
        local.scale(0)
        while local.scheduler.workers:
            threading.Event().wait(0.05)
        found, failed = run_tasks(abs, {"a": (1,)}, executor, progress=False)
    assert not found and "no Dask worker is left at" in failed["a"]


def killing(*_: object) -> bool:
    os.kill(os.getpid(), signal.SIGKILL)
    return True


def test_nnunets_check_does_not_wait_for_a_dead_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nnunetv2.experiment_planning import verify_dataset_integrity as theirs

    from spineclue_v2.adapters import verify_dataset_integrity

    folder = tmp_path / "Dataset501_Lumbar"
    lumbar_dataset(folder, 2)
    monkeypatch.setattr(theirs, "verify_labels", killing)
    with pytest.raises(InputError, match="died .out of memory"):
        verify_dataset_integrity(folder, 1)
