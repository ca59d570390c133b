"""Tasks for worker processes. They import nothing, for every process that runs one of them does so, too."""
from __future__ import annotations

import os
import signal
from pathlib import Path


def kill_second(number: int) -> int:
    if number == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def kill_first(number: int) -> int:
    """Id of the process that did it."""
    if number == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return os.getpid()


def second_time(once: str) -> int:
    """How many living processes have the parent of this one for theirs; the first time with a file `once` its process dies."""
    if once and not Path(once).exists():
        Path(once).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return living_children(os.getppid())


def living_children(parent: int | None) -> int:
    """How many processes a process has begun that have not ended; 0 of None."""
    found = [status(path) for path in Path("/proc").glob("[0-9]*/status")]
    return sum(f"PPid:\t{parent}\n" in text and "State:\tZ" not in text for text in found)   # a dead one may not be collected yet


def status(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def unpicklable() -> object:
    return lambda: None
