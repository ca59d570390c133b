"""Installing a shared model: everything about the ZIP is checked before anything appears among the results.

The archive is taken for hostile: names, kinds and sizes are judged from its directory before a byte is unpacked, no more is unpacked
than was declared, every file is compared with its hash, checkpoints are looked at without allocating their tensors, and plans and
checkpoints must load. What passed all of that is renamed into place; an archive that fails leaves nothing behind.
"""
from __future__ import annotations

import hashlib
import json
import logging
import re
import shutil
import stat
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import torch

from ..errors import InputError
from ..inference.model import check_package
from ..stages.plan_files import load_plans
from ..stages.registry import is_whole_model, stage_of
from ..training.checkpoint import Checkpoint, file_sha256
from ..utilities import paths
from ..utilities.files import read_json
from .export_model import CARD_FOLDER, FORMAT, MANIFEST

logger = logging.getLogger(__name__)

MAX_FILES = 500
MAX_TOTAL_BYTES = 32 << 30
MAX_TEXT_BYTES = 64 << 20
MAX_MANIFEST_BYTES = 1 << 20
MAX_PACKING = 200          # weights hardly shrink and our JSON packs about 10:1; a bomb packs 1000:1
MAX_SHARING = 4            # networks name some tensors twice, and the file holds them once
BLOCK = 1 << 20
_WORD = r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}"
_STAGE_FILES = r"(plans|dataset|dataset_fingerprint)\.json"
_LAYOUT = re.compile(rf"Dataset\d{{3}}_{_WORD}/({CARD_FOLDER}{_WORD}/({re.escape(MANIFEST)}|MODEL_CARD\.md|LICENSE\.txt)"
                     rf"|{_WORD}__{_WORD}__[a-z][a-z0-9_]{{0,40}}/({_STAGE_FILES}|fold_(\d{{1,4}}|all)/{_WORD}\.pth))")


def install_model(archive: str | Path, overwrite: bool = False) -> Path:
    """Install a ZIP of `export_model` into the results folder; returns the dataset's folder there.

    InputError, with the reason, for an archive that is damaged, incomplete, altered, of a newer format, or that holds anything a
    model does not need; also when other weights lie where it would go, unless `overwrite`. Stage folders appear by rename.
    """
    archive = Path(archive)
    if not archive.is_file():
        raise InputError(f"Model {archive} does not exist; give the ZIP that spineclue_export_model wrote.")
    with _reading(archive), zipfile.ZipFile(archive) as content:
        entries = _checked_entries(archive, content)
        manifest = _read_manifest(archive, content, entries)
        _compare(archive, entries, manifest)
        dataset = manifest["dataset"]
        results = paths.results_folder()
        _check_space(archive, results, sum(info.file_size for info in entries.values()))
        with _staging(results) as staging:
            for name, info in entries.items():
                _unpack(archive, content, info, staging / name, manifest["files"].get(name))
            _check_model(archive, staging / dataset, manifest)
            _move_into_place(archive, staging, results / dataset, manifest["plans_name"], overwrite)
    return results / dataset


@contextmanager
def _reading(archive: Path) -> Iterator[None]:
    """Whatever a broken ZIP makes zipfile and zlib raise becomes one sentence."""
    try:
        yield
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, UnicodeDecodeError, ValueError, OverflowError) as error:
        raise InputError(f"Model {archive} is no intact ZIP ({' '.join(str(error).split())[:120]}); copy or download it again.") from error
    except OSError as error:
        raise InputError(f"Model {archive} cannot be installed: {error.strerror or error}.") from error


def _checked_entries(archive: Path, content: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """Files of the archive by name, judged by its directory alone."""
    listed = content.infolist()
    if len(listed) > MAX_FILES:
        raise InputError(f"Model {archive} lists {len(listed)} files; a model has at most {MAX_FILES}.")
    entries: dict[str, zipfile.ZipInfo] = {}
    seen: set[str] = set()  # some file systems take names for equal that differ in case only
    for info in listed:
        # Before `filename` is trusted: zipfile cuts it at a NUL and turns the system's separators into slashes.
        name = info.orig_filename
        _check_name(archive, name)
        mode = info.external_attr >> 16
        if stat.S_IFMT(mode) not in (0, stat.S_IFREG) and not (info.is_dir() and stat.S_ISDIR(mode)):
            raise InputError(f"Model {archive}: {name!r} is a link or device; a model holds plain files only.")
        if info.is_dir():
            continue  # tools that pack again add them
        if name.casefold() in seen:
            raise InputError(f"Model {archive} lists {name!r} twice; expected each file once.")
        seen.add(name.casefold())
        if not _LAYOUT.fullmatch(name):
            raise InputError(f"Model {archive} holds {name[:200]!r}, which is no part of a model; it is not installed.")
        if info.flag_bits & 1:
            raise InputError(f"Model {archive}: {name!r} is encrypted; ask for a ZIP without a password.")
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise InputError(f"Model {archive}: {name!r} is packed in an unusual way (method {info.compress_type}); expected deflate.")
        limit = MAX_TOTAL_BYTES if name.endswith(".pth") else MAX_TEXT_BYTES
        if info.file_size > limit or info.file_size > MAX_PACKING * max(info.compress_size, 64):
            raise InputError(f"Model {archive}: {name!r} claims {info.file_size} bytes from {info.compress_size} packed ones; "
                             "it is refused as a decompression bomb.")
        entries[name] = info
    total = sum(info.file_size for info in entries.values())
    if total > MAX_TOTAL_BYTES:
        raise InputError(f"Model {archive} claims {total} bytes unpacked; at most {MAX_TOTAL_BYTES} are accepted.")
    return entries


def _check_name(archive: Path, name: str) -> None:
    parts = PurePosixPath(name).parts
    if name.startswith(("/", "\\")) or re.match(r"[A-Za-z]:", name):
        raise InputError(f"Model {archive} holds the absolute path {name[:200]!r}; nothing was installed.")
    if ".." in parts or "\\" in name or not name or not name.isprintable():
        raise InputError(f"Model {archive} holds the path {name[:200]!r}, which could leave its folder; nothing was installed.")


def _read_manifest(archive: Path, content: zipfile.ZipFile, entries: dict[str, zipfile.ZipInfo]) -> dict[str, Any]:
    found = [name for name in entries if name.endswith(f"/{MANIFEST}")]
    if len(found) != 1:
        raise InputError(f"Model {archive} has {len(found)} manifests, expected one; was it written by spineclue_export_model?")
    if entries[found[0]].file_size > MAX_MANIFEST_BYTES:
        raise InputError(f"Model {archive}: its manifest has {entries[found[0]].file_size} bytes, more than {MAX_MANIFEST_BYTES}.")
    wrong = InputError(f"Model {archive}: {found[0]} is no manifest of spineclue_export_model; nothing was installed.")
    try:
        manifest = json.loads(content.read(found[0]).decode("utf-8"))
    except (ValueError, RecursionError):
        raise wrong from None
    if not isinstance(manifest, dict) or not isinstance(manifest.get("format"), int):
        raise wrong
    if manifest["format"] > FORMAT:
        raise InputError(f"Model {archive} has format {manifest['format']}; this version reads up to {FORMAT}. Update spineclue_v2.")
    _check_stages_known(archive, manifest.get("stages"), manifest.get("packages"))
    texts, files, stages = ("dataset", "plans_name", "checkpoint"), manifest.get("files"), manifest.get("stages")
    folds, fingerprints = manifest.get("folds"), manifest.get("fingerprints")
    if not (all(isinstance(manifest.get(key), str) for key in texts) and isinstance(files, dict)
            and all(isinstance(f, dict) and isinstance(f.get("bytes"), int) and isinstance(f.get("sha256"), str) for f in files.values())
            and isinstance(stages, dict) and isinstance(fingerprints, dict)
            and all(isinstance(v, str) for d in (stages, fingerprints) for v in d.values())
            and set(stages) == set(fingerprints) and is_whole_model(stages)
            and isinstance(folds, list) and folds and all(isinstance(fold, str) for fold in folds)):
        raise wrong
    if found[0] != f"{manifest['dataset']}/{CARD_FOLDER}{manifest['plans_name']}/{MANIFEST}":
        raise wrong
    return manifest | {"path": found[0]}


def _check_stages_known(archive: Path, stages: Any, packages: Any) -> None:
    """InputError for a stage of a package that is not installed here, or cannot be used."""
    for name in stages if isinstance(stages, dict) else ():
        try:
            stage_of(name)
        except InputError as error:
            package = packages.get(name) if isinstance(packages, dict) else None
            whose = f" of package {package[:100]!r}" if isinstance(package, str) else ""
            raise InputError(f"Model {archive} has a stage{whose} that this installation lacks: {error}") from error


def _compare(archive: Path, entries: dict[str, zipfile.ZipInfo], manifest: dict[str, Any]) -> None:
    """The archive must hold what its manifest lists, no more and no less, and whatever its stages and folds need."""
    base, stages = manifest["dataset"], manifest["stages"]
    needed = {f"{base}/{folder}/fold_{fold}/{manifest['checkpoint']}" for folder in stages.values() for fold in manifest["folds"]}
    needed |= {f"{base}/{folder}/plans.json" for folder in stages.values()}
    missing = sorted((needed | set(manifest["files"])) - set(entries))
    if missing:
        raise InputError(f"Model {archive} lacks {missing[0]!r} ({len(missing)} files are missing); copy or download it again.")
    extra = sorted(set(entries) - set(manifest["files"]) - {manifest["path"]})
    if extra:
        raise InputError(f"Model {archive} holds {extra[0]!r}, which its manifest does not list; it is not installed.")
    texts = {f"{base}/{folder}/{name}" for folder in stages.values() for name in ("dataset.json", "dataset_fingerprint.json")}
    texts |= {f"{base}/{CARD_FOLDER}{manifest['plans_name']}/{name}" for name in ("MODEL_CARD.md", "LICENSE.txt")}
    stray = sorted(set(manifest["files"]) - needed - texts)
    if stray or any(not folder.endswith(f"__{stage}") for stage, folder in stages.items()):
        raise InputError(f"Model {archive} holds {(stray or sorted(stages.values()))[0]!r}, which does not belong to the stages and folds "
                         "that its manifest names; it is not installed.")
    for name, listed in manifest["files"].items():
        if entries[name].file_size != listed["bytes"]:
            raise InputError(f"Model {archive}: {name!r} has {entries[name].file_size} bytes, its manifest says {listed['bytes']}; "
                             "it was altered or damaged.")


def _check_space(archive: Path, results: Path, wanted: int) -> None:
    place = next(folder for folder in (results, *results.parents) if folder.exists())
    free = shutil.disk_usage(place).free
    if free < wanted:
        raise InputError(f"Model {archive} needs {wanted / 1e6:.0f} MB but {place} has {free / 1e6:.0f} MB left; make room first.")


@contextmanager
def _staging(results: Path) -> Iterator[Path]:
    """A folder beside the final place, so that a rename is enough; gone afterwards, whatever happens."""
    results.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=".part_install_", dir=results))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _unpack(archive: Path, content: zipfile.ZipFile, info: zipfile.ZipInfo, target: Path, listed: dict[str, Any] | None) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    with content.open(info) as source, open(target, "wb") as file:
        while block := source.read(BLOCK):  # zipfile ends at the declared size, so no more than that is ever written
            digest.update(block)
            file.write(block)
    if listed is not None and digest.hexdigest() != listed["sha256"]:
        raise InputError(f"Model {archive}: {info.filename!r} does not have the sha256 of its manifest; it was altered or damaged.")


def _check_model(archive: Path, folder: Path, manifest: dict[str, Any]) -> None:
    """Plans load, checkpoints hold tensors and JSON only, and both have the fingerprints of the manifest."""
    for stage, name in manifest["stages"].items():
        wanted = manifest["fingerprints"][stage]
        place = f"Model {archive}: {name}"
        try:
            found = load_plans(folder / name / "plans.json").stage(stage).model_fingerprint
            if found != wanted:
                raise InputError(f"its plan has model fingerprint {found}, its manifest says {wanted}.")
            for text in ("dataset.json", "dataset_fingerprint.json"):
                if (folder / name / text).exists():
                    read_json(folder / name / text, text)
            for fold in manifest["folds"]:
                file = folder / name / f"fold_{fold}" / manifest["checkpoint"]
                check_checkpoint(file)
                meta = Checkpoint.load(file).meta
                check_package(meta, f"fold {fold}")
                if (meta.get("stage"), meta.get("model_fingerprint")) != (stage, wanted):
                    raise InputError(f"fold {fold} holds a checkpoint of stage {meta.get('stage')!r} with model fingerprint "
                                     f"{meta.get('model_fingerprint')!r}, expected {stage!r} with {wanted}.")
        except InputError as error:
            # The staging folder's name would tell the reader nothing.
            raise InputError(f"{place}: {str(error).replace(str(folder), folder.name)}") from error


def check_checkpoint(file: Path) -> None:
    """InputError unless `file` is a checkpoint of tensors and JSON whose tensors are no larger than the file; allocates none of them.

    A small file can claim huge tensors (packed records, strides of 0), and turning those into floats would take all memory.
    """
    wrong = f"Checkpoint {file} is damaged or no checkpoint of ours"
    try:
        with zipfile.ZipFile(file) as records:
            packed = any(info.compress_type != zipfile.ZIP_STORED for info in records.infolist())
        content = torch.load(file, map_location="meta", weights_only=True)
    except Exception as error:  # torch raises many kinds for broken or foreign files
        raise InputError(f"{wrong} ({type(error).__name__}).") from error
    if packed:
        raise InputError(f"{wrong} (its records are packed, which torch never does).")
    groups = [content.get(key, {}) for key in ("network_weights", "extra")] if isinstance(content, dict) else [None]
    if not all(isinstance(g, dict) and all(isinstance(k, str) and type(v) is torch.Tensor for k, v in g.items()) for g in groups):
        raise InputError(f"{wrong} (expected named tensors).")
    claims = [v.numel() * v.element_size() for g in groups for v in g.values()]  # type: ignore[union-attr]
    size = file.stat().st_size
    if max(claims, default=0) > size or sum(claims) > MAX_SHARING * size:
        raise InputError(f"{wrong} (its tensors claim {sum(claims)} bytes, the file has {size}).")
    meta = content.get("meta")
    if not isinstance(content.get("format"), int) or not isinstance(meta, str):
        raise InputError(f"{wrong} (no format or no description).")
    try:
        described = isinstance(json.loads(meta), dict)
    except (ValueError, RecursionError):
        described = False
    if not described:
        raise InputError(f"{wrong} (its description is no JSON object).")


def _move_into_place(archive: Path, staging: Path, target: Path, plans_name: str, overwrite: bool) -> None:
    """Rename the new folders to `target`; those of the same plans name step aside first, and come back when a rename fails.

    Also those that the archive has none of: grades or an appearance classifier of the old model would be loaded with the new one.

    Cut in between (power, SIGKILL), some stages are missing, which prediction reports; old and new stages never lie side by side.
    """
    source = staging / target.name
    if not target.exists():
        source.rename(target)
        return
    names = sorted(folder.name for folder in source.iterdir())
    present = [name for name in names if (target / name).exists()]
    different = [name for name in present if not _same_files(source / name, target / name)]
    if present and len(present) == len(names) and not different:
        logger.info("%s is already installed in %s.", archive.name, target)
        return
    left_over = sorted(folder.name for folder in target.iterdir()
                       if folder.name not in names and folder.name.split("__")[1:2] == [plans_name] and folder.name.count("__") == 2)
    if (different or left_over) and not overwrite:
        raise InputError(f"{target / (different + left_over)[0]} holds another model; --overwrite replaces it, or move it away first.")
    aside = staging / "replaced"
    aside.mkdir()
    moves = [(target / name, aside / name) for name in present + left_over] + [(source / name, target / name) for name in names]
    done: list[tuple[Path, Path]] = []
    try:
        for old, new in moves:
            old.rename(new)
            done.append((old, new))
    except OSError:
        for old, new in reversed(done):
            new.rename(old)
        raise


def _same_files(first: Path, second: Path) -> bool:
    """True when both folders hold the same files with the same bytes."""
    def content(folder: Path) -> dict[str, str]:
        return {str(p.relative_to(folder)): file_sha256(p) for p in sorted(folder.rglob("*")) if p.is_file()}
    return content(first) == content(second)
