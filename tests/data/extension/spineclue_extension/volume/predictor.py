"""Prediction of stage volume: it takes what is known of a scan and gives it back with more."""
from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from spineclue_v2.preprocessing.crops import mask_crop
from spineclue_v2.stages.base import Context, Findings
from spineclue_v2.training.stage_model import StageModel


@torch.inference_mode()
def predict(findings: Findings, model: StageModel, context: Context) -> Findings:
    """Findings with `extra["volume"]`: ml of each vertebra in their order, mean over the folds. Values are plain, for they become JSON."""
    size = context.plans.stage("volume").network.crop_size
    masks = [mask_crop(vertebra.mask, size) for vertebra in findings.vertebrae if vertebra.mask is not None]
    volumes: list[float] = []
    if masks:
        images = torch.from_numpy(np.stack(masks)[:, None]).to(context.device)
        volumes = torch.stack([network(images).exp() for network in model.networks]).mean(0).tolist()
    return replace(findings, extra={**findings.extra, "volume": {"ml": [round(volume, 2) for volume in volumes]}})
