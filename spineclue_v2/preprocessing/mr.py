"""Raw MR -> network space of the MR stages, by the plan: sagittal orientation, in-plane spacing, z-score. Training and inference share it.

The slice axis keeps the scan's own slices; only where they lie closer than half the planned distance are several averaged into
one. Any number of slices and any slice distance comes in; nothing is invented between slices.
"""
from __future__ import annotations

import logging
from collections.abc import Mapping
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import numpy as np

from ..anatomy import IGNORE_NAME, IGNORED
from ..anatomy.structures import canonical_values
from ..dataset.raw import RawDataset
from ..imageio.orientation import check_same_grid, oriented_view
from ..imageio.volume import ImageGrid, Volume, read_labels, read_volume
from ..plans.data import MRData
from ..utilities.files import write_json
from ..utilities.parallel import run_tasks
from .files import prepare_folder, remove_leftovers, write_blosc2
from .resampling import labels_to_network_space, resample_floats
from .straighten import straightened

logger = logging.getLogger(__name__)

UNLABELLED = "unlabelled"      # folder of the unlabelled cases inside a preprocessed folder
LOCATIONS = 300                # voxels remembered per structure: crops are placed on them


def mr_grid(geometry: ImageGrid, data: MRData) -> ImageGrid:
    """Grid of network space for a scan on `geometry`: planned in-plane spacing, own slices (or a whole number of them averaged)."""
    oriented = geometry.reoriented(data.orientation)[0]
    merged = max(1, round(data.spacing_mm[0] / oriented.spacing[0]))
    return oriented.resampled((oriented.spacing[0] * merged, data.spacing_mm[1], data.spacing_mm[2]))


def to_mr_space(volume: Volume, data: MRData) -> Volume:
    """`volume` in network space, float32 (slices, rows, columns): resampled, clipped and z-scored on its non-zero voxels, background 0."""
    source = oriented_view(volume, data.orientation)
    target = mr_grid(volume.geometry, data)
    array = resample_floats(source, target)
    inside = resample_floats(Volume((source.array != 0).astype(np.float32), source.geometry), target, linear=True) > 0.5
    return Volume(normalise(array, inside, data.percentiles), target)


def normalise(array: np.ndarray, inside: np.ndarray, percentiles: tuple[float, float]) -> np.ndarray:
    """Clip to the percentiles of the voxels `inside`, subtract their mean, divide by their standard deviation; 0 elsewhere."""
    result = np.zeros(array.shape, np.float32)
    values = array[inside]
    if values.size:
        values = np.clip(values, *np.percentile(values, percentiles))
        result[inside] = (values - values.mean()) / max(float(values.std()), 1e-6)
    return result


def class_of_value(labels: Mapping[str, int], data: MRData) -> dict[int, int]:
    """Stored label value -> class number of the plan (0: not a class of the plan), matched by name; "ignore" becomes `IGNORED`."""
    number = {name: i + 1 for i, name in enumerate(data.classes)}
    found = {value: number.get(name, 0) for name, value in canonical_values(labels).items()}
    return found | ({labels[IGNORE_NAME]: IGNORED} if IGNORE_NAME in labels else {})


def preprocess_mr_case(image: str | Path, label: str | Path | None, folder: str | Path, case: str, data: MRData,
                       class_numbers: Mapping[int, int], source_digest: str = "") -> dict[str, Any]:
    """Write CASE.b2nd (float16), CASE_seg.b2nd (class numbers; labelled cases only) and last CASE.json into `folder`."""
    folder = Path(folder)
    remove_leftovers(folder, case)
    scan = read_volume(image)
    model = to_mr_space(straightened(scan, fill=0.0), data)
    properties: dict[str, Any] = {"geometry": model.geometry.to_json(), "source_geometry": scan.geometry.to_json(),
                                  "source_digest": source_digest, "vertebrae": {}, "structures": {}}
    if label is not None:
        stored = read_labels(label)
        check_same_grid(scan.geometry, stored.geometry, case, label)
        classes = labels_to_network_space(stored, model.geometry, class_numbers)
        properties["structures"] = _locations(classes.array, data)
        write_blosc2(folder / f"{case}_seg.b2nd", classes)
    write_blosc2(folder / f"{case}.b2nd", Volume(model.array.astype(np.float16), model.geometry))
    write_json(folder / f"{case}.json", properties)
    return properties


def preprocess_mr_dataset(raw: RawDataset, data: MRData, folder: Path, executor: Executor | None = None, num_processes: int = 0,
                          clean: bool = False, progress: bool = True) -> dict[Path, dict[str, str]]:
    """Labelled cases into `folder`, those of imagesUl/ into its folder `unlabelled`. Complete, unchanged cases are kept unless `clean`.

    Returns {folder: {case: what went wrong}}; failures stop nothing.
    """
    numbers = class_of_value(raw.labels, data)
    failures: dict[Path, dict[str, str]] = {}
    for target, cases in ((folder, {case: (raw.image(case), raw.label(case)) for case in raw.cases}),
                         (folder / UNLABELLED, {case: (path, None) for case, path in raw.unlabelled.items()})):
        digests = {case: raw.case_digest(case) for case in cases}
        prepare_folder(target, list(cases), digests, clean)
        tasks = {case: (image, label, target, case, data, numbers, digests[case]) for case, (image, label) in cases.items()
                 if not (target / f"{case}.json").is_file()}
        if len(tasks) < len(cases):
            logger.info("%s: %d of %d cases are there and unchanged.", target, len(cases) - len(tasks), len(cases))
        what = "unlabelled" if target.name == UNLABELLED else "labelled"
        _, failures[target] = run_tasks(_quietly, tasks, executor, num_processes, f"{data.spacing_mm[1]:g} mm, {what}", progress)
    return failures


def _quietly(*arguments: Any) -> None:
    preprocess_mr_case(*arguments)


def _locations(classes: np.ndarray, data: MRData) -> dict[str, Any]:
    """Per structure present: voxel count and up to LOCATIONS of its voxels (slice, row, column), drawn evenly."""
    found: dict[str, Any] = {}
    for number, name in enumerate(data.classes, 1):
        voxels = np.argwhere(classes == number)
        if len(voxels):
            chosen = np.linspace(0, len(voxels) - 1, min(LOCATIONS, len(voxels))).astype(int)
            found[name] = {"class": number, "voxels": len(voxels), "locations": voxels[chosen].tolist()}
    return found
