"""Write synthetic spines as an nnU-Net v2 raw dataset, with VerSe-style centroids and Genant grades beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from spineclue_v2 import anatomy
from spineclue_v2.errors import InputError
from spineclue_v2.parallel import run_tasks
from spineclue_v2.storage import atomic_path, read_json, write_json

PARTS = (("imagesTr", "_0000.nii.gz"), ("labelsTr", ".nii.gz"), ("centroidsTr", "_ctd.json"), ("gradesTr", ".json"))


def convert(
    output_folder: str | Path, cases: int, seed: int = 1, num_processes: int = 1, pathology: str = "", **what: Any
) -> list[str]:
    """Write `cases` phantoms (seeds seed * 100000 + i, i from 1) into a DatasetXXX folder; complete cases are kept as they are.

    Layout: imagesTr/CASE_0000.nii.gz (int16 HU), labelsTr/CASE.nii.gz (uint8, VerSe values), centroidsTr/CASE_ctd.json (whole
    masks' centroids, VerSe format, voxels along P, I, R), gradesTr/CASE.json (level name -> Genant grade), dataset.json.
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


def write_case(folder: Path, name: str, case: Any) -> None:
    """Write one PhantomCase; the image comes last, so that a case with an image is complete."""
    import SimpleITK as sitk

    voxels = list(zip(case.spacing[::-1], case.ct.shape[::-1], strict=True))
    directions = {"direction": ["P", "I", "R"]}
    points = []
    for level, centre in case.centroids.items():
        x, y, z = (c / s for c, (s, _) in zip(centre["mask"], voxels, strict=True))
        points.append(
            {"label": anatomy.LABEL_OF_NAME[level], "X": y, "Y": case.ct.shape[0] - 1 - z, "Z": case.ct.shape[2] - 1 - x}
        )
    write_json(folder / "centroidsTr" / f"{name}_ctd.json", [directions, *points])
    write_json(folder / "gradesTr" / f"{name}.json", case.grades)
    for array, place in ((case.labels, f"labelsTr/{name}.nii.gz"), (case.ct, f"imagesTr/{name}_0000.nii.gz")):
        image = sitk.GetImageFromArray(array)
        image.SetSpacing([float(s) for s in case.spacing[::-1]])
        with atomic_path(folder / place) as temporary:
            sitk.WriteImage(image, str(temporary), useCompression=True)


def _complete(folder: Path, name: str) -> bool:
    return all((folder / place / f"{name}{ending}").is_file() for place, ending in PARTS)


def _write_job(name: str, case_seed: int, folder: Path, what: dict[str, Any]) -> None:
    from spineclue_v2.phantom import sample

    write_case(folder, name, sample(case_seed, **what))
