"""Files that are either complete or absent: everything is written beside its place and renamed into it."""
from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import InputError


@contextmanager
def atomic_path(target: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `target` (same suffixes); on success fsync and rename it to `target`, else remove it."""
    target = Path(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=".part_", suffix="_" + target.name, dir=target.parent)
    except OSError as error:
        raise InputError(f"Cannot write {target}: {error.strerror}; choose a folder that is writable and has space.") from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, target)
    except OSError as error:
        raise InputError(f"Cannot write {target}: {error.strerror or error}; choose a folder that is writable and has space.") from error
    finally:
        temporary.unlink(missing_ok=True)


def write_json(target: str | Path, content: Any) -> None:
    """Write JSON (indented, keys in the given order, numpy scalars and arrays allowed) by rename."""
    text = json.dumps(content, indent=2, default=_plain, allow_nan=True)
    with atomic_path(target) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def read_json(path: str | Path, what: str = "JSON file") -> Any:
    """Read JSON; a missing or broken file is an InputError that names `what` it was expected to be."""
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{what} {path} does not exist.") from None
    except (ValueError, RecursionError) as error:  # no JSON, no UTF-8, numbers of thousands of digits, endless nesting
        raise InputError(f"{what} {path} is not valid JSON ({error}).") from None
    except OSError as error:
        raise InputError(f"{what} {path} cannot be read: {error.strerror}.") from None


def _plain(value: Any) -> Any:
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")
