"""Threads and their waiting are chosen from the machine; what a user has set stays."""
from __future__ import annotations

from pathlib import Path

import pytest

from spineclue_v2.cli._common import main
from spineclue_v2.utilities import threads


@pytest.mark.parametrize(("load", "busy"), [
    ("3.02 1.00 0.50 4/300 77", 3.0),      # three programs beside this one, for a minute already
    ("2.00 1.00 0.50 1/300 77", 0.0),      # the previous run of a loop has ended
    ("0.00 0.00 0.00 5/300 77", 0.0),      # many run for a moment
    ("nonsense", 0.0)])
def test_load_of_others(load: str, busy: float) -> None:
    assert threads.busy_elsewhere(load) == pytest.approx(busy, abs=0.03)


@pytest.mark.parametrize(("usable", "machine", "busy", "expected"), [
    (2, 2, 0, 2), (2, 2, 1, 1), (2, 2, 9, 1), (4, 64, 40, 4), (4, 64, 62, 2), (0.5, 8, 0, 1), (2.5, 8, 0, 2)])
def test_threads_for_a_machine(usable: float, machine: int, busy: float, expected: int) -> None:
    assert threads.threads_for(usable, machine, busy) == expected


@pytest.mark.parametrize("files", [{"cpu.max": "150000 100000"}, {"cpu/cpu.cfs_quota_us": "150000", "cpu/cpu.cfs_period_us": "100000"}])
def test_limits_of_a_container_are_seen(tmp_path: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert threads.control_group_cores(tmp_path) == 1.5


@pytest.mark.parametrize("files", [{}, {"cpu.max": "max 100000"}, {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}])
def test_no_limit(tmp_path: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert threads.control_group_cores(tmp_path) is None


def test_what_the_user_has_set_stays() -> None:
    chosen: dict[str, str] = {}
    threads.choose_threads(chosen)
    assert chosen["OMP_WAIT_POLICY"] == "PASSIVE" and 1 <= int(chosen["OMP_NUM_THREADS"]) <= threads.usable_cores() + 1
    own = {"OMP_NUM_THREADS": "7", "OMP_WAIT_POLICY": "ACTIVE"}
    threads.choose_threads(own)
    assert own == {"OMP_NUM_THREADS": "7", "OMP_WAIT_POLICY": "ACTIVE"}
    other = {"MKL_NUM_THREADS": "3", "GOMP_SPINCOUNT": "10"}
    threads.choose_threads(other)
    assert other == {"MKL_NUM_THREADS": "3", "GOMP_SPINCOUNT": "10"}


def test_commands_choose(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    main("predict", ["-i", str(tmp_path / "missing.nii.gz"), "-o", str(tmp_path / "o")])
    assert threads.os.environ["OMP_WAIT_POLICY"] == "PASSIVE"
    monkeypatch.delenv("OMP_WAIT_POLICY")
