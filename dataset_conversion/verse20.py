"""VerSe2020, see `verse`."""
from __future__ import annotations

from pathlib import Path

from . import verse


def convert(source: Path, folder: Path, num_processes: int = 0, grades: Path | None = None) -> list[str]:
    """Convert VerSe2020 at `source` into `folder`."""
    return verse.convert(source, folder, "VerSe2020", num_processes, grades)
