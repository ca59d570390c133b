"""What converters share: the list of cases they found, and writing it as an nnU-Net v2 raw dataset with VerSe label values.

A converter only says where image and labels of each case lie, who the patient is, which set the case belongs to and what the
stored values mean. Images are hard-linked (copied across file systems), labels too where they need no change. A case is
complete when its image is there (placed last); running again converts only what is missing.
"""
from __future__ import annotations

import logging
import os
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from spineclue_v2.anatomy import LABEL_OF_NAME, NAME_OF_LABEL, VERTEBRA_LABELS, dataset_labels
from spineclue_v2.errors import InputError
from spineclue_v2.imageio.orientation import check_same_grid, oriented_view
from spineclue_v2.imageio.volume import Volume, read_labels, read_volume, write_volume
from spineclue_v2.utilities.files import atomic_path, read_json, write_json
from spineclue_v2.utilities.parallel import run_tasks

logger = logging.getLogger(__name__)

ENDING = ".nii.gz"
TRAINING = "training"
MAX_LISTED = 20


@dataclass(frozen=True)
class Case:
    """One scan of a public dataset. `values` maps stored label values to VerSe's (None: they are VerSe's; values that are
    missing in it become background). `structures` are (level, binary file) pairs instead of `label`; a level may have several files."""

    name: str
    image: Path
    label: Path | None = None
    structures: Sequence[tuple[str, Path]] = ()
    patient: str = ""
    part: str = TRAINING                     # TRAINING, or the name of a test set ("public", "hidden")
    values: Mapping[int, int] | None = None
    centroids: Path | None = None            # VerSe's centroid file, already in the image's voxels
    grades: Mapping[str, int] = field(default_factory=dict)
    hu_offset: int = 0                       # added to the stored intensities
    top_to_bottom: Sequence[str] = ()        # levels of the stored values, sorted by height (values say nothing)


def write_dataset(cases: Sequence[Case], folder: Path, description: str, skipped: Mapping[str, str] | None = None,
                  channel: str = "CT", num_processes: int = 0, **info: Any) -> list[str]:
    """Write `cases` as a raw dataset into `folder`; returns the names of those that are complete.

    Training cases go to imagesTr/labelsTr, test sets to imagesTs/labelsTs and test_sets.json; centroids and grades beside
    them. What was taken and skipped, and why, is logged. Raises InputError when nothing usable is left.
    """
    skipped = dict(skipped or {})
    doubled = [name for name, count in Counter(case.name for case in cases).items() if count > 1]
    if doubled:
        raise InputError(f"Two scans are called '{doubled[0]}'; convert the releases one by one.")
    tasks = {case.name: (case, folder) for case in cases}
    written, failures = run_tasks(convert_case, tasks, None, num_processes, folder.name)
    skipped |= failures
    done = [case for case in cases if case.name in written]
    training = sorted(case.name for case in done if case.part == TRAINING)
    _report(done, skipped, written)
    if not training:
        raise InputError(f"No usable training case was found for {folder.name}; see the reasons above.")
    sets: dict[str, list[str]] = {}
    for case in done:
        if case.part != TRAINING:
            sets.setdefault(case.part, []).append(case.name)
    if sets:
        write_json(folder / "test_sets.json", {name: sorted(names) for name, names in sorted(sets.items())})
    patients = {case.name: case.patient or case.name for case in sorted(done, key=lambda c: c.name)}
    write_json(folder / "dataset.json", {
        "channel_names": {"0": channel}, "labels": dataset_labels(), "numTraining": len(training), "file_ending": ENDING,
        "name": folder.name, "description": description, "patients": patients} | info)
    return sorted(case.name for case in done)


def convert_case(case: Case, folder: Path) -> str:
    """Write one case; returns what was done ('kept', 'linked', 'fixed'). Raises InputError when it cannot be used."""
    suffix = "Tr" if case.part == TRAINING else "Ts"
    image, label = folder / f"images{suffix}" / f"{case.name}_0000{ENDING}", folder / f"labels{suffix}" / f"{case.name}{ENDING}"
    if case.centroids is not None:
        _write_centroids(case.centroids, folder / f"centroids{suffix}" / f"{case.name}_ctd.json")
    if case.grades:
        write_json(folder / f"grades{suffix}" / f"{case.name}.json", dict(case.grades))
    if image.is_file() and label.is_file():
        return "kept"
    scan = read_volume(case.image)
    stored, values = _stored_labels(case, scan)
    check_same_grid(scan.geometry, stored.geometry, case.name, case.label or "its structures")
    mapped = np.zeros(max(int(stored.array.max()), max(values, default=0)) + 1, np.uint8)
    for value, verse in values.items():
        mapped[value] = verse
    result = mapped[stored.array]
    if not np.isin(np.unique(result), VERTEBRA_LABELS).any():
        raise InputError("no vertebra is labelled")
    # nnU-Net compares arrays, not positions: labels stored along other axes are rewritten along the image's.
    same_axes = stored.geometry.orientation == scan.geometry.orientation and stored.array.shape == scan.array.shape
    exact = same_axes and stored.geometry.same_grid(scan.geometry, 1e-3)
    unchanged = (exact and case.label is not None and np.array_equal(result, stored.array) and case.label.name.endswith(ENDING)
                 and stores_integers(case.label))
    if same_axes and not exact:
        logger.info("%s: the label map's header differs from the image's by rounding; it got the image's.", case.name)
    if unchanged and case.label is not None:
        place(case.label, label)
    else:
        turned = oriented_view(Volume(result, stored.geometry), scan.geometry.orientation)
        write_volume(Volume(np.ascontiguousarray(turned.array), scan.geometry), label)
    if case.image.name.endswith(ENDING) and not case.hu_offset:
        place(case.image, image)
    else:
        shifted = np.clip(scan.array + np.float32(case.hu_offset), -32768, 32767) if case.hu_offset else scan.array
        write_volume(Volume(np.round(shifted).astype(np.int16) if case.hu_offset else shifted, scan.geometry), image)
    return "linked" if unchanged else "fixed"


def stores_integers(path: Path) -> bool:
    """Whether a NIfTI file stores whole numbers as such, unscaled; nnU-Net takes no labels of another type."""
    import nibabel

    header: Any = nibabel.load(path).header
    slope, intercept = header.get_slope_inter()
    return bool(np.issubdtype(header.get_data_dtype(), np.integer) and slope in (None, 1) and intercept in (None, 0))


def place(source: Path, target: Path) -> None:
    """Hard link `source` at `target`, or copy it where links are impossible; complete or absent."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(target) as temporary:
        temporary.unlink()
        try:
            os.link(source.resolve(), temporary)
        except OSError:
            shutil.copyfile(source, temporary)


def stem(path: Path) -> str:
    """File name without .nii.gz, .nii, .mha, .mhd."""
    name = path.name
    for ending in (".nii.gz", ".nii", ".mha", ".mhd", ".nrrd"):
        if name.lower().endswith(ending):
            return name[:-len(ending)]
    return name


def scans_below(folder: Path, endings: Sequence[str] = (".nii.gz",)) -> list[Path]:
    """Every scan file below `folder`, sorted; hidden files (macOS droppings among them) left out."""
    return sorted(p for p in folder.rglob("*")
                  if p.name.lower().endswith(tuple(endings)) and not p.name.startswith(".") and p.is_file())


def _stored_labels(case: Case, scan: Volume) -> tuple[Volume, dict[int, int]]:
    """Label volume and what its values mean."""
    if case.structures:
        array = np.zeros(scan.array.shape, np.uint8)
        for name, path in case.structures:
            part = read_labels(path)
            check_same_grid(scan.geometry, part.geometry, case.name, path)
            turned = oriented_view(part, scan.geometry.orientation).array
            array[turned > 0] = LABEL_OF_NAME[name]
        return Volume(array, scan.geometry), {v: v for v in NAME_OF_LABEL} | {0: 0}
    if case.label is None:
        raise InputError("no label file was found beside it")
    stored = read_labels(case.label)
    present = [int(v) for v in np.unique(stored.array) if v]
    if case.top_to_bottom:
        return stored, _values_by_height(stored, present, case.top_to_bottom)
    if case.values is not None:
        unknown = [v for v in present if v not in case.values]
        if unknown:
            logger.warning("%s: label values %s have no meaning here and become background.", case.name, unknown)
        return stored, {v: case.values.get(v, 0) for v in present} | {0: 0}
    unknown = [v for v in present if v not in NAME_OF_LABEL]
    if unknown:
        raise InputError(f"its labels hold the values {unknown}, which are not VerSe's")
    return stored, {v: v for v in present} | {0: 0}


def _values_by_height(stored: Volume, present: Sequence[int], levels: Sequence[str]) -> dict[int, int]:
    if len(present) != len(levels):
        raise InputError(f"it has {len(present)} labelled bodies; expected {len(levels)} ({levels[0]}..{levels[-1]})")
    upright = oriented_view(stored)
    heights = {v: float(np.flatnonzero((upright.array == v).any((1, 2))).mean()) for v in present}
    order = sorted(present, key=lambda v: -heights[v])
    return {value: LABEL_OF_NAME[name] for value, name in zip(order, levels, strict=True)} | {0: 0}


def _write_centroids(source: Path, target: Path) -> None:
    """Take over a centroid file that says its directions; others (older, in another frame) are left out."""
    content = read_json(source, "centroid file")
    if isinstance(content, list) and content and isinstance(content[0], dict) and "direction" in content[0]:
        write_json(target, content)
    else:
        logger.warning("%s does not say its axes and is left out.", source.name)


def _report(done: Sequence[Case], skipped: Mapping[str, str], how: Mapping[str, str]) -> None:
    parts = Counter(case.part for case in done)
    people = len({case.patient or case.name for case in done})
    ways = ", ".join(f"{n} {way}" for way, n in sorted(Counter(how.values()).items()))
    sets = ", ".join(f"{n} {part}" for part, n in sorted(parts.items()))
    logger.info("took %d scans of %d patients (%s; %s)", len(done), people, sets, ways)
    if skipped:
        lines = [f"  {name}: {why}" for name, why in list(skipped.items())[:MAX_LISTED]]
        more = [f"  ... and {len(skipped) - MAX_LISTED} more"] if len(skipped) > MAX_LISTED else []
        logger.warning("skipped %d:\n%s", len(skipped), "\n".join(lines + more))
