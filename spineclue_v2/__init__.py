"""spineclue_v2: finds, segments and names every vertebra of a CT of any field of view.

    from spineclue_v2 import SpineCLUE
    result = SpineCLUE.from_pretrained().predict("scan.nii.gz")
"""
from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .version import __version__

if TYPE_CHECKING:
    from .api import SpineCLUE

__all__ = ["SpineCLUE", "__version__"]


def __getattr__(name: str) -> Any:
    # `import spineclue_v2` must not cost the seconds that torch takes: every command's -h goes through here.
    if name == "SpineCLUE":
        from .api import SpineCLUE

        return SpineCLUE
    raise AttributeError(f"module 'spineclue_v2' has no attribute '{name}'")
