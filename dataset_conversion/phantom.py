"""Write synthetic spines as an nnU-Net v2 raw dataset, with VerSe-style centroids and Genant grades beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from spineclue_v2 import anatomy
from spineclue_v2.errors import InputError
from spineclue_v2.utilities.files import read_json, write_json
from spineclue_v2.utilities.parallel import run_tasks

ORIENTATIONS = {"LPS": 0.55, "RAS": 0.1, "LAS": 0.05, "PIR": 0.12, "LIP": 0.05, "ASR": 0.05, "RPI": 0.04, "SAL": 0.04}
"""How often the voxels of a case are written in another order than LPS (index axes x, y, z), as scanners and public datasets do."""
PARTS = (("imagesTr", "_0000.nii.gz"), ("labelsTr", ".nii.gz"), ("centroidsTr", "_ctd.json"), ("gradesTr", ".json"))


def convert(
    output_folder: str | Path, cases: int, seed: int = 1, num_processes: int = 1, pathology: str = "", **what: Any
) -> list[str]:
    """Write `cases` phantoms (seeds seed * 100000 + i, i from 1) into a DatasetXXX folder; complete cases are kept as they are.

    Layout: imagesTr/CASE_0000.nii.gz (int16 HU), labelsTr/CASE.nii.gz (uint8, VerSe values), centroidsTr/CASE_ctd.json (whole
    masks' centroids, VerSe format, voxels along P, I, R), gradesTr/CASE.json (level name -> Genant grade), dataset.json.
    The order of the voxels differs between cases (ORIENTATIONS), and some grids are turned against the body.
    `pathology` is text for `phantom.parse_pathology`; `what` goes to `phantom.sample`. Returns the case names. InputError for
    bad numbers or switches, and for a folder that holds phantoms of another seed or of other switches.
    """
    from spineclue_v2.phantom import parse_pathology

    if cases < 1 or seed < 1:
        raise InputError(f"Phantom cases and seed must be at least 1, found {cases} cases and seed {seed}.")
    folder = Path(output_folder)
    what = parse_pathology(pathology) | what
    made_by = json.loads(json.dumps({"seed": seed, "what": what}))
    description = folder / "dataset.json"
    if description.is_file() and read_json(description, "dataset.json").get("phantom", made_by) != made_by:
        raise InputError(f"{folder} holds a dataset of another seed or pathology; choose another -d, or delete the folder.")
    names = [f"phantom_{i:04d}" for i in range(1, cases + 1)]
    jobs = [(name, seed * 100000 + i) for i, name in enumerate(names, 1) if not _complete(folder, name)]
    tasks = {name: (name, case_seed, folder, what) for name, case_seed in jobs}
    _, failures = run_tasks(_write_job, tasks, num_processes=num_processes if num_processes > 1 else 0, description="phantoms")
    if failures:
        name, why = next(iter(failures.items()))
        raise InputError(f"{len(failures)} of {len(jobs)} phantoms could not be written, first {name}: {why}")
    write_json(description, {
        "channel_names": {"0": "CT"}, "labels": anatomy.dataset_labels(), "numTraining": cases, "file_ending": ".nii.gz",
        "name": folder.name, "description": f"Synthetic spines of spineclue_v2.phantom, seed {seed}", "phantom": made_by,
        "patients": {name: name for name in names}})  # fmt: skip
    return names


def write_case(folder: Path, name: str, case: Any, orientation: str = "LPS") -> None:
    """Write one PhantomCase with its voxels in the order `orientation`; the image comes last, so a case with an image is complete."""
    from spineclue_v2.imageio.centroids import DIRECTION, to_voxels
    from spineclue_v2.imageio.volume import ImageGrid, Volume, write_volume

    geometry = ImageGrid(case.ct.shape, tuple(case.spacing), (0.0, 0.0, 0.0), case.direction)
    image, labels = (Volume(array, geometry).reoriented(orientation) for array in (case.ct, case.labels))
    points = []
    for level, centre in case.centroids.items():
        voxel = to_voxels(np.array(centre["mask"]), image.geometry, DIRECTION)
        points.append({"label": anatomy.LABEL_OF_NAME[level]} | dict(zip("XYZ", map(float, voxel), strict=True)))
    write_json(folder / "centroidsTr" / f"{name}_ctd.json", [{"direction": list(DIRECTION)}, *points])
    write_json(folder / "gradesTr" / f"{name}.json", case.grades)
    write_volume(labels, folder / "labelsTr" / f"{name}.nii.gz")
    write_volume(image, folder / "imagesTr" / f"{name}_0000.nii.gz")


def _complete(folder: Path, name: str) -> bool:
    return all((folder / place / f"{name}{ending}").is_file() for place, ending in PARTS)


def _write_job(name: str, case_seed: int, folder: Path, what: dict[str, Any]) -> None:
    from spineclue_v2.phantom import sample

    rng = np.random.default_rng([case_seed, 3])
    write_case(folder, name, sample(case_seed, **what), str(rng.choice(list(ORIENTATIONS), p=list(ORIENTATIONS.values()))))
