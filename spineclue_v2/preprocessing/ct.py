"""CT: raw case -> network space, as the plans say; training and inference share it."""
from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import numpy as np

from ..anatomy import IGNORED, NAME_OF_LABEL, ORDER_INDEX, morphology
from ..anatomy.label_boxes import beside_ignored, label_boxes
from ..dataset.raw import RawDataset
from ..imageio.hounsfield import training_ct
from ..imageio.orientation import check_same_grid
from ..imageio.volume import Volume, read_labels, read_volume
from ..plans.data import Data
from ..plans.plans import Plans
from ..utilities.files import write_json
from ..utilities.parallel import run_tasks
from .files import prepare_folder, remove_leftovers, write_blosc2
from .resampling import labels_to_network_space, to_network_space

logger = logging.getLogger(__name__)



def vertebra_properties(labels: Volume) -> dict[str, dict[str, Any]]:
    """Per vertebra present in `labels` (VerSe values): box, centroid, body centre (indices z, y, x), voxels, touches_border.

    Where the annotation ends (`IGNORED` voxels beside it), a vertebra counts as cut, as by the border of the scan.
    """
    found: dict[str, dict[str, Any]] = {}
    shape = np.array(labels.array.shape)
    for value, box in label_boxes(labels.array).items():
        name = NAME_OF_LABEL.get(value)
        if name not in ORDER_INDEX:
            continue
        mask = labels.array[box] == value
        start, stop = np.array([s.start for s in box]), np.array([s.stop for s in box])
        body = morphology.body_centre(mask, labels.spacing)
        found[name] = {"label": value, "start": start.tolist(), "stop": stop.tolist(),
                       "centroid": (start + np.mean(np.nonzero(mask), axis=1)).tolist(),
                       "body_centre": (start + np.asarray(body)).tolist(), "voxels": int(mask.sum()),
                       "touches_border": bool((start == 0).any() or (stop == shape).any()) or beside_ignored(labels.array, box, value)}
    return {name: found[name] for name in sorted(found, key=ORDER_INDEX.__getitem__)}


def preprocess_case(image: str | Path, label: str | Path, folder: str | Path, case: str, data: Data,
                    verse_value: Mapping[int, int], source_digest: str = "") -> dict[str, Any]:
    """Write CASE.b2nd, CASE_seg.b2nd and last CASE.json into `folder`; returns the JSON's content (see PreprocessedDataset)."""
    from threadpoolctl import threadpool_limits

    folder = Path(folder)
    remove_leftovers(folder, case)
    scan, _ = training_ct(read_volume(image), str(image))     # what it finds doubtful the fingerprint says
    source_geometry = scan.geometry
    with threadpool_limits(1):  # the last bit of a matrix product, and so now and then a rounded value, goes by the number of threads
        scan = to_network_space(scan, data)
    segmentation = read_labels(label)
    check_same_grid(source_geometry, segmentation.geometry, case, label)
    segmentation = labels_to_network_space(segmentation, scan.geometry, verse_value)
    properties: dict[str, Any] = {"geometry": scan.geometry.to_json(), "source_geometry": source_geometry.to_json(),
                  "source_digest": source_digest, "vertebrae": vertebra_properties(segmentation)}
    if (segmentation.array == IGNORED).any():
        properties["partly_annotated"] = True
    write_blosc2(folder / f"{case}.b2nd", scan)
    write_blosc2(folder / f"{case}_seg.b2nd", segmentation)
    write_json(folder / f"{case}.json", properties)
    return properties


def preprocess_dataset(raw: RawDataset, plans: Plans, dataset_folder: str | Path, stages: Sequence[str] | None = None,
                       executor: Executor | None = None, num_processes: int = 0, clean: bool = False,
                       progress: bool = True) -> dict[Path, dict[str, str]]:
    """Preprocess every case for `stages` (default: all of the plan) into `dataset_folder`/<data fingerprint>.

    Stages with equal data fingerprints share one folder. Complete cases whose raw files are unchanged are kept unless
    `clean`; cases that left the raw dataset are removed. Returns {folder: {case: what went wrong}}; failures stop nothing.
    """
    folders: dict[str, Data] = {}
    for name in stages or plans.stages:
        folders.setdefault(plans.stage(name).data_fingerprint, plans.stage(name).data)
    failures: dict[Path, dict[str, str]] = {}
    digests = {case: raw.case_digest(case) for case in raw.cases}
    for fingerprint, data in folders.items():
        folder = Path(dataset_folder) / fingerprint
        prepare_folder(folder, raw.cases, digests, clean)
        tasks = {case: (raw.image(case), raw.label(case), folder, case, data, raw.verse_value, digests[case])
                 for case in raw.cases if not (folder / f"{case}.json").is_file()}
        done = len(raw.cases) - len(tasks)
        if done:
            logger.info("%s: %d of %d cases are there and unchanged.", folder, done, len(raw.cases))
        _, failures[folder] = run_tasks(_preprocess_quietly, tasks, executor, num_processes, f"{data.spacing_mm:g} mm", progress)
    return failures


def _preprocess_quietly(*arguments: Any) -> None:
    preprocess_case(*arguments)
