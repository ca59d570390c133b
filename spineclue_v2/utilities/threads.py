"""How many threads a command computes with, and what they do while they wait. Standard library alone: this runs before torch starts.

OpenMP reads its variables once, when torch (or numpy's linear algebra) is loaded. By default its threads spin while they wait for work.
Beside another busy program they burn the very cores that the work waits for.
"""
from __future__ import annotations

import os
from collections.abc import MutableMapping
from pathlib import Path

THREADS, WAITING = "OMP_NUM_THREADS", "OMP_WAIT_POLICY"


def usable_cores() -> float:
    """Cores of this process by its affinity and by the control group's limit (Linux, version 1 or 2)."""
    cores = float(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    limit = control_group_cores(Path("/sys/fs/cgroup"))
    return cores if limit is None else min(cores, limit)


def control_group_cores(root: Path) -> float | None:
    """Processor time per time that the group at `root` may use; None without a limit. A container sees its own group there."""
    try:
        quota, period = (root / "cpu.max").read_text(encoding="ascii").split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        pass
    try:
        used, each = (int((root / "cpu" / f"cpu.cfs_{name}_us").read_text(encoding="ascii")) for name in ("quota", "period"))
        return used / each if used > 0 else None
    except (OSError, ValueError, ZeroDivisionError):
        return None


def busy_elsewhere(text: str | None = None) -> float:
    """Cores of the machine that other programs keep busy, from `/proc/loadavg` (or its `text`); 0 where that is not known.

    The load of the last minute holds programs that ended since, such as the previous run of a loop. The count of this moment holds those
    that run for a moment. A core counts as busy where both say so.
    """
    try:
        words = (Path("/proc/loadavg").read_text(encoding="ascii") if text is None else text).split()
        return max(0.0, min(float(words[0]), int(words[3].split("/")[0]) - 1))
    except (OSError, ValueError, IndexError):
        return 0.0


def threads_for(usable: float, machine: int, busy: float) -> int:
    """Threads for a program that may use `usable` of a machine's cores, `busy` of which others use."""
    return max(1, int(min(usable, machine - round(busy))))


def choose_threads(environment: MutableMapping[str, str] | None = None) -> None:
    """Set OMP_NUM_THREADS and OMP_WAIT_POLICY for this process and its children, before torch is imported.

    What the user has set stays: either variable, or one of the libraries' own that means the same.
    """
    variables = os.environ if environment is None else environment
    if WAITING not in variables and not {"KMP_BLOCKTIME", "GOMP_SPINCOUNT"} & set(variables):
        variables[WAITING] = "PASSIVE"
    if THREADS not in variables and "MKL_NUM_THREADS" not in variables:
        variables[THREADS] = str(threads_for(usable_cores(), os.cpu_count() or 1, busy_elsewhere()))


def compute_threads() -> int:
    """Threads of a network that does not run through torch: as OMP_NUM_THREADS says, or the cores of this process."""
    try:
        return max(1, int(os.environ[THREADS].split(",")[0]))
    except (KeyError, ValueError):
        return max(1, int(usable_cores()))
