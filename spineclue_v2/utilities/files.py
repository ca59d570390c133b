"""Files that are either complete or absent: everything is written beside its place and renamed into it."""
from __future__ import annotations

import errno
import json
import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import InputError


@contextmanager
def atomic_path(target: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `target` (same suffixes); on success fsync and rename it to `target`, else remove it.

    The file has the permissions that the process's umask and the folder give to new files; nothing is ever chmod-ed, which some file
    systems refuse.
    """
    target = Path(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = _new_file(target)
    except OSError as error:
        raise InputError(f"Cannot write {target}: {error.strerror}; choose a folder that is writable and has space.") from error
    try:
        yield temporary
        _flush(temporary)
        os.replace(temporary, target)
    except OSError as error:
        raise InputError(f"Cannot write {target}: {error.strerror or error}; choose a folder that is writable and has space.") from error
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def staged_folder(target: str | Path, name: str) -> Iterator[Path]:
    """Yield an empty folder inside `target`, which is made where it is missing; it is gone afterwards. Write a case's files there, then
    `move_files`: an interruption leaves what was there before."""
    target = Path(target)
    try:
        target.mkdir(parents=True, exist_ok=True)
        made = tempfile.TemporaryDirectory(prefix=f".{name}_", dir=target)
    except OSError as error:
        raise InputError(f"Cannot write into {target}: {error.strerror}; choose a folder that is writable and has space.") from error
    with made as folder:
        yield Path(folder)


def move_files(source: Path, target: Path, last: Path) -> None:
    """All files of a folder into another one, `last` (one of them) at the end."""
    for path in sorted((path for path in source.rglob("*") if path.is_file()), key=lambda path: path == last):
        place = target / path.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        path.replace(place)


def _new_file(target: Path) -> Path:
    """An empty file of a new name beside `target`, made as any program makes files (`tempfile` would close it to everybody else)."""
    while True:
        path = target.parent / f".part_{secrets.token_hex(4)}_{target.name}"
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        except FileExistsError:
            continue
        return path


def _flush(path: Path) -> None:
    """The file's content on the disk, where the file system knows how."""
    with open(path, "rb") as file:
        try:
            os.fsync(file.fileno())
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS):  # network and user-space file systems may not
                raise


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
