"""All checks of an installation in a row."""
from __future__ import annotations

from collections.abc import Sequence

from . import checks
from .checks import BROKEN, Check, run_check
from .self_test import self_test


def examine(output: str | None = None, with_self_test: bool = True) -> list[Check]:
    """Every check; the self-test only where nothing before it is broken, for it would fail for the same reason.

    `output`: a folder that must be writable, too.
    """
    found: list[Check] = []
    for name, look in (("versions", checks.check_versions), ("threads", checks.check_threads), ("memory", checks.check_memory),
                       ("folders", lambda: checks.check_folders(output)), ("weights", checks.check_weights), ("gpu", checks.check_gpu),
                       ("opencv", checks.check_opencv), ("pictures", checks.check_pictures)):
        found += run_check(name, look)
    if with_self_test and not is_broken(found):
        found += run_check("self-test", self_test)
    return found


def is_broken(found: Sequence[Check]) -> bool:
    """Whether any of them keeps the program from working."""
    return any(check.status == BROKEN for check in found)
