"""spineclue_v2: finds, segments and names every vertebra of a CT of any field of view.

    from spineclue_v2 import SpineCLUE
    result = SpineCLUE.from_pretrained().predict("scan.nii.gz")
"""
from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .version import __version__

if TYPE_CHECKING:
    from .api import SpineCLUE
    from .imageio.volume import Volume
    from .planning.planner import SpineCLUEPlanner
    from .results import SpineResult
    from .stages.base import Stage
    from .training.trainer import BaseTrainer

__all__ = ["BaseTrainer", "SpineCLUE", "SpineCLUEPlanner", "SpineResult", "Stage", "Volume", "__version__"]

_HOME = {"BaseTrainer": "training.trainer", "SpineCLUE": "api", "SpineCLUEPlanner": "planning.planner", "SpineResult": "results",
         "Stage": "stages.base", "Volume": "imageio.volume"}


def __getattr__(name: str) -> Any:
    # `import spineclue_v2` must not cost the seconds that torch takes: every command's -h goes through here.
    if name not in _HOME:
        raise AttributeError(f"module 'spineclue_v2' has no attribute '{name}'")
    from importlib import import_module

    return getattr(import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
