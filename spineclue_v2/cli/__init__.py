"""One thin module per command: `DESCRIPTION`, `add_arguments(parser)`, `run(args) -> exit code`.

The module `predict` becomes the command `spineclue_predict`; `setup.py` makes one script per module that does not begin
with an underscore. Modules import nothing heavy on top, so that `-h` answers at once; `run` imports what it needs.
"""
from __future__ import annotations

import pkgutil


def command_names() -> list[str]:
    """Names of all commands without the `spineclue_` in front, sorted."""
    return sorted(info.name for info in pkgutil.iter_modules(__path__) if not info.name.startswith("_"))
