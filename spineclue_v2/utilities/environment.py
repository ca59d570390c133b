"""What the program expects of its process; the commands call it, and whoever imports ultralytics. Nothing happens at import."""
from __future__ import annotations

import os

_GUARDS = {
    "YOLO_AUTOINSTALL": "false",   # ultralytics would install missing packages by itself
    "YOLO_OFFLINE": "true",        # no look-ups of newer versions, no downloads, no usage events
    "YOLO_VERBOSE": "false",       # its banner is not ours to print
    "MPLBACKEND": "Agg",           # figures go to files; a server has no screen
}


def guard() -> None:
    """Set the environment variables that keep other libraries quiet and offline; what the user has set himself stays."""
    for name, value in _GUARDS.items():
        os.environ.setdefault(name, value)
