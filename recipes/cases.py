"""Training cases in the model spaces of localize and segment, written straight from arrays (no raw files in between).

A case has two label maps: for localize every vertebra has its label, for segment a vertebra whose mask is not trusted is `IGNORE`.
"""
from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

IGNORE = 255       # voxels that segment neither learns as a vertebra nor as its surroundings
AROUND_MM = 75.0   # kept of a scan around the labelled vertebrae for segment: its crops reach no farther
STAGES = ("localize", "segment")


def shipped_plans(weights: Path) -> dict[str, Any]:
    """Stage plans of the weights in `weights` (STAGE.pth): {stage: StagePlan}."""
    from spineclue_v2.stages.plan_files import plans_from_json
    from spineclue_v2.training.checkpoint import Checkpoint

    return {stage: plans_from_json(Checkpoint.load(weights / f"{stage}.pth").meta["plans"]).stage(stage) for stage in STAGES}


def write_case(folder: Path, case: str, image: Any, labels: Any, data: Any, around_mm: float | None = None) -> None:
    """Image and labels (Volumes on one grid) into `folder` as `PreprocessedDataset` reads them; complete once the JSON is there."""
    from spineclue_v2.preprocessing.ct import vertebra_properties
    from spineclue_v2.preprocessing.files import write_blosc2
    from spineclue_v2.preprocessing.resampling import labels_to_network_space, to_network_space
    from spineclue_v2.utilities.files import write_json

    image, labels = image.reoriented(data.orientation), labels.reoriented(data.orientation)
    if around_mm is not None and labels.array.any():
        inside = [np.flatnonzero(labels.array.any(axes)) for axes in ((1, 2), (0, 2), (0, 1))]
        reach = np.ceil(around_mm / np.array(image.spacing)).astype(int)
        low = np.maximum([i[0] for i in inside] - reach, 0)
        high = np.minimum([i[-1] + 1 for i in inside] + reach, image.array.shape)
        image, labels = image.cropped(low, high), labels.cropped(low, high)
    scan = to_network_space(image, data)
    segmentation = labels_to_network_space(labels, scan.geometry, None)
    folder.mkdir(parents=True, exist_ok=True)
    write_blosc2(folder / f"{case}.b2nd", scan)
    write_blosc2(folder / f"{case}_seg.b2nd", segmentation)
    write_json(folder / f"{case}.json", {
        "geometry": scan.geometry.to_json(), "source_geometry": image.geometry.to_json(), "source_digest": "",
        "vertebrae": vertebra_properties(segmentation)})
