"""Networks that need no training: they find bright bone in the block spines of `blocks` by a threshold, their only weight."""
from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scipy import ndimage

from spineclue_v2.imageio.volume import ImageGrid, Volume
from spineclue_v2.plans.plans import StagePlan

BONE = 0.25  # of the window -100..1300 HU: 250 HU, between the tissue (40) and bone (400) of the blocks


class ThresholdDetector(torch.nn.Module):
    """Boxes around the connected bright parts of a slice. `calls` counts the batches it was given."""

    def __init__(self, threshold: float = BONE) -> None:
        super().__init__()
        self.threshold = torch.nn.Parameter(torch.tensor(threshold))
        self.calls = 0

    def boxes(self, slices: torch.Tensor, min_score: float, nms_iou: float) -> list[torch.Tensor]:
        self.calls += 1
        result = []
        for picture in slices[:, 1].numpy() > float(self.threshold):
            parts, _ = ndimage.label(picture)
            rows = [(place[1].start, place[0].start, place[1].stop, place[0].stop, 0.9)
                    for number, place in enumerate(ndimage.find_objects(parts), 1) if (parts[place] == number).sum() >= 9]
            result.append(torch.tensor(rows, dtype=torch.float32).reshape(-1, 5))
        return result


class ThresholdSegmenter(torch.nn.Module):
    """Logits +-4: the bright part under the heat map's highest value. `calls` counts the batches it was given."""

    def __init__(self, threshold: float = BONE) -> None:
        super().__init__()
        self.threshold = torch.nn.Parameter(torch.tensor(threshold))
        self.calls = 0

    def forward(self, crops: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        logits = torch.full((len(crops), 2, *crops.shape[2:]), -4.0)
        for i, (bone, heat) in enumerate(zip(crops[:, 1].numpy() > float(self.threshold), crops[:, -1].numpy(), strict=True)):
            parts, count = ndimage.label(bone)
            if count:
                wanted = int(np.argmax([heat[parts == number].max() for number in range(1, count + 1)])) + 1
                logits[i, 1][torch.from_numpy(parts == wanted)] = 4.0
        logits[:, 0] = -logits[:, 1]
        return logits


def hu_volume(array: np.ndarray, plan: StagePlan) -> Volume:
    """`array` (z, y, x) HU as a volume in the network space of `plan`, origin 0."""
    geometry = ImageGrid(array.shape, (plan.data.spacing_mm,) * 3, (0.0, 0.0, 0.0), np.eye(3))
    return Volume(array.astype(np.int16), geometry)


def localize_run(**edits: Any) -> Any:
    """`run` group of stage localize with the numbers of a usual plan."""
    from spineclue_v2.stages.localize.plan import LocalizeRun

    numbers: dict[str, Any] = {"batch_size": 2, "epochs": 1, "iterations_per_epoch": 1, "initial_lr": 1e-3, "weight_decay": 0.0,
                               "slice_gap_mm": 4.0, "inference_batch": 16, "min_score": 0.25, "nms_iou": 0.5, "eps_mm": 4.0,
                               "axis_scale": (1.0, 4.0, 4.0), "min_samples_fraction": 0.25, "size_eps": 0.25,
                               "spacing_between_mm": (12.0, 47.0)}
    return LocalizeRun(**(numbers | edits))
