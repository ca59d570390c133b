"""Scans inside a `.zip`: `scans.zip` and `scans.zip/folder/scan.nii.gz` are paths like any other.

An archive is taken for hostile. Names, kinds and sizes are judged from its directory before a byte is unpacked, and no more is unpacked
than was declared. Only what can be a scan is unpacked, into a folder that goes when the process ends or others were read since.
"""
from __future__ import annotations

import atexit
import os
import shutil
import stat
import tempfile
import threading
import zipfile
import zlib
from collections import OrderedDict
from pathlib import Path, PurePosixPath

from ..errors import InputError
from .grid_checks import FILE_ENDINGS

MAX_MEMBERS = 100_000
MAX_BYTES = 16 << 30
MAX_PACKING = 100          # CT packs about 3:1, label maps 50:1, a bomb 1000:1 ...
UNSUSPICIOUS = 1 << 30    # ... and this much does no harm
KEPT = 4
BLOCK = 1 << 20
_TAILS = (".raw", ".zraw", ".img", ".gz")    # voxels that a header beside them names

_BROKEN = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, ValueError, OverflowError, RuntimeError)

_lock = threading.Lock()
_unpacked: OrderedDict[tuple[str, int, int], str] = OrderedDict()


def is_archive(path: Path) -> bool:
    return path.name.lower().endswith(".zip") and path.is_file()


def real_path(path: Path) -> Path:
    """`path`, or where its file lies after the archive that `path` is or leads through was unpacked. InputError for a bad archive."""
    for archive in (path, *path.parents):
        if is_archive(archive):
            return _folder_of(archive) / path.relative_to(archive)
    return path


def _folder_of(archive: Path) -> Path:
    """The folder with an archive's scans; several calls unpack once."""
    state = archive.stat()
    key = (str(archive.absolute()), state.st_size, state.st_mtime_ns)
    with _lock:
        if key in _unpacked and os.path.isdir(_unpacked[key]):
            _unpacked.move_to_end(key)
            return Path(_unpacked[key])
        folder = tempfile.mkdtemp(prefix="spineclue_zip_")
        try:
            _unpack(archive, Path(folder))
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        if not _unpacked:
            atexit.register(_remove_all)
        _unpacked[key] = folder
        while len(_unpacked) > KEPT:
            shutil.rmtree(_unpacked.popitem(last=False)[1], ignore_errors=True)
        return Path(folder)


def _remove_all() -> None:
    for folder in _unpacked.values():
        shutil.rmtree(folder, ignore_errors=True)


def _unpack(archive: Path, folder: Path) -> None:
    try:
        with zipfile.ZipFile(archive) as content:
            members = _checked(archive, content)
            if sum(member.file_size for member in members) > shutil.disk_usage(folder).free:
                raise InputError(f"{archive} needs more space than {folder.parent} has; make space, or set TMPDIR to another folder.")
            for member in members:
                _write(archive, content, member, folder)
    except _BROKEN as error:
        raise InputError(f"{archive} is no intact ZIP ({' '.join(str(error).split())[:120]}); copy it again.") from error
    except OSError as error:
        raise InputError(f"{archive} cannot be unpacked: {error.strerror or error}.") from error


def _checked(archive: Path, content: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
    """The files of an archive. InputError where one leads out of it, is no plain file, or they unpack to more than anybody scans."""
    members = content.infolist()
    if len(members) > MAX_MEMBERS:
        raise InputError(f"{archive} holds {len(members)} files; expected {MAX_MEMBERS} at most.")
    for member in members:
        name = PurePosixPath(member.filename.replace("\\", "/"))
        mode = stat.S_IFMT(member.external_attr >> 16)
        if name.is_absolute() or ".." in name.parts or ":" in member.filename.split("/")[0] or "\0" in member.filename:
            raise InputError(f"{archive} holds {member.filename[:80]!r}, which leads out of it; nothing was unpacked.")
        if mode not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise InputError(f"{archive} holds {member.filename[:80]!r}, which is a link or a device; nothing was unpacked.")
        if member.flag_bits & 1:
            raise InputError(f"{archive} is encrypted; unpack it yourself and give its folder.")
    total = sum(member.file_size for member in members)
    if total > MAX_BYTES or total > max(UNSUSPICIOUS, MAX_PACKING * archive.stat().st_size):
        raise InputError(f"{archive} unpacks from {archive.stat().st_size} to {total} bytes, more than scans do; nothing was unpacked.")
    return [member for member in members if not member.is_dir()]


def _write(archive: Path, content: zipfile.ZipFile, member: zipfile.ZipInfo, folder: Path) -> None:
    with content.open(member) as stream:
        block = stream.read(BLOCK)
        name = member.filename.replace("\\", "/").lower()
        old_dicom = block[:2] == b"\x08\x00"
        if not (name.endswith(FILE_ENDINGS + _TAILS) or block[128:132] == b"DICM" or old_dicom):
            return  # programs and papers of a patient's CD
        target = folder.joinpath(*PurePosixPath(member.filename.replace("\\", "/")).parts)
        target.parent.mkdir(parents=True, exist_ok=True)
        written = 0
        with open(target, "xb") as file:
            while block:
                written += len(block)
                if written > member.file_size:
                    raise InputError(f"{archive} unpacks to more than it declares; nothing of it is used.")
                file.write(block)
                block = stream.read(BLOCK)
