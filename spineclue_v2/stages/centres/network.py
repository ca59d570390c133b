"""Network of stage centres: CT windows in, heat maps of vertebral bodies and of the sacrum's upper end out."""
from __future__ import annotations

import torch

from ...plans.plans import Plans
from ..segment.network import residual_encoder_unet

BODY, SACRUM = 0, 1


def network_of_plans(plans: Plans) -> torch.nn.Module:
    """(B, windows, z, y, x) -> logits (B, 2, z, y, x) of the plan's U-Net with fresh weights; `BODY` and `SACRUM` are the channels."""
    plan = plans.stage("centres")
    return residual_encoder_unet(plan.network.features, plan.network.blocks, len(plan.data.windows_hu))
