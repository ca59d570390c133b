"""Memory that was freed goes back to the system."""
from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from typing import Any


def give_back_memory() -> None:
    """Hand freed memory back to the system.

    The C library of Linux (glibc) keeps what was freed in pieces for the process's own later use, a hundred megabytes after a large scan.
    Where another library is in use nothing happens.
    """
    if (trim := _trim()) is not None:
        trim(0)


@cache
def _trim() -> Callable[[int], Any] | None:
    try:
        found: Callable[[int], Any] = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return None
    return found
