"""What the program expects of its process; the commands call it, and whoever imports ultralytics. Nothing happens at import."""
from __future__ import annotations

import os
import warnings

_GUARDS = {
    "YOLO_AUTOINSTALL": "false",   # ultralytics would install missing packages by itself
    "YOLO_OFFLINE": "true",        # no look-ups of newer versions, no downloads, no usage events
    "YOLO_VERBOSE": "false",       # its banner is not ours to print
}


def guard() -> None:
    """Set the environment variables that keep other libraries quiet and offline; what the user has set himself stays.

    For processes that are the program's own (its commands and their workers). matplotlib's backend is the exception: a shell inside a
    notebook hands down one that need not be installed here, and matplotlib does not import with a name that it does not know. Commands
    draw to files alone, so theirs is "agg" whatever was set. Code that is imported sets no backend: pictures carry their own canvas.
    """
    for name, value in _GUARDS.items():
        os.environ.setdefault(name, value)
    os.environ["MPLBACKEND"] = "agg"
    warnings.filterwarnings("ignore", ".*torch\\.jit.*", FutureWarning)  # of libraries that still use it; no user can do anything about it
