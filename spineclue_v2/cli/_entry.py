"""Console scripts land here: the attribute `predict` is a function that runs the command `spineclue_predict`."""
from __future__ import annotations

from collections.abc import Callable
from functools import partial

from . import command_names
from ._common import main


def __getattr__(name: str) -> Callable[[], int]:
    if name in command_names():
        return partial(main, name)
    raise AttributeError(f"there is no command spineclue_{name}")
