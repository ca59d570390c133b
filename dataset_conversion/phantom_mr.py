"""Write synthetic sagittal spine MR as a raw dataset: labelled cases, unlabelled ones in imagesUl/, labelled test cases."""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from spineclue_v2.anatomy import structures
from spineclue_v2.errors import InputError
from spineclue_v2.imageio.volume import ImageGrid, Volume, write_volume
from spineclue_v2.utilities.files import read_json, write_json
from spineclue_v2.utilities.parallel import run_tasks

CHANNELS = {"t2": "T2", "water": "water", "fat": "fat", "t1": "T1", "stir": "STIR"}
ACQUIRED = "PIL"  # sagittal: slices towards the left, rows caudally, columns posteriorly
PARTS = {"labelled": ("imagesTr", "labelsTr"), "unlabelled": ("imagesUl", None), "test": ("imagesTs", "labelsTs")}


def convert(output_folder: str | Path, cases: int, seed: int = 1, unlabelled: int = 0, test: int = 0, contrast: str = "t2",
            num_processes: int = 1, **what: Any) -> list[str]:
    """Write `cases` labelled, `unlabelled` and `test` MR phantoms (seeds seed * 100000 + i, counted on from part to part).

    `what` goes to `phantom.mr.sample_mr`. Complete cases are kept. Returns the names of the labelled cases. InputError for bad numbers
    or switches, and for a folder that holds phantoms of another seed or of other switches.
    """
    if cases < 1 or seed < 1 or min(unlabelled, test) < 0:
        raise InputError(f"MR phantom cases and seed must be at least 1, found {cases} cases, {unlabelled} unlabelled, {test} for testing, "
                         f"seed {seed}.")
    if contrast not in CHANNELS:
        raise InputError(f"MR phantom contrast '{contrast}' is unknown; choose one of {', '.join(CHANNELS)}.")
    folder = Path(output_folder)
    made_by = json.loads(json.dumps({"seed": seed, "contrast": contrast, "cases": [cases, unlabelled, test], "what": what}))
    description = folder / "dataset.json"
    if description.is_file() and read_json(description, "dataset.json").get("phantom", made_by) != made_by:
        raise InputError(f"{folder} holds a dataset of another seed, size or contrast; choose another -d, or delete the folder.")
    names: dict[str, list[str]] = {}
    tasks, number = {}, 0
    for part, count in (("labelled", cases), ("unlabelled", unlabelled), ("test", test)):
        names[part] = [f"mr_{number + i:04d}" for i in range(1, count + 1)]
        for name in names[part]:
            number += 1
            if not (folder / PARTS[part][0] / f"{name}_0000.nii.gz").is_file():
                tasks[name] = (name, part, seed * 100000 + number, folder, contrast, what)
    _, failures = run_tasks(_write_case, tasks, num_processes=num_processes if num_processes > 1 else 0, description="MR phantoms")
    if failures:
        name, why = next(iter(failures.items()))
        raise InputError(f"{len(failures)} of {len(tasks)} MR phantoms could not be written, first {name}: {why}")
    if names["test"]:
        write_json(folder / "test_sets.json", {"phantom": names["test"]})
    write_json(description, {
        "channel_names": {"0": CHANNELS[contrast]}, "labels": structures.LABELS, "numTraining": cases, "file_ending": ".nii.gz",
        "name": folder.name, "description": f"Synthetic sagittal MR of spineclue_v2.phantom, seed {seed}", "phantom": made_by})
    return names["labelled"]


def _write_case(name: str, part: str, seed: int, folder: Path, contrast: str, what: dict[str, Any]) -> None:
    """One case; the image comes last, so that a case with an image is complete."""
    import numpy as np

    from spineclue_v2.phantom.mr import sample_mr

    case = sample_mr(seed, contrast=contrast, **what)
    geometry = ImageGrid(case.image.shape, case.spacing, (0.0, 0.0, 0.0), np.eye(3))
    images, labels = PARTS[part]
    if labels is not None:
        write_volume(Volume(case.labels, geometry).reoriented(ACQUIRED), folder / labels / f"{name}.nii.gz")
    write_volume(Volume(case.image, geometry).reoriented(ACQUIRED), folder / images / f"{name}_0000.nii.gz")
