"""Plan groups of stage geometry."""
from __future__ import annotations

from typing import Annotated

from pydantic import model_validator
from pydantic.dataclasses import dataclass

from ...plans.fields import CONFIG, Amount, Batch, Channels, Count, Fraction, ScheduledRun, Whole, planned


@dataclass(frozen=True, config=CONFIG)
class GeometryNetworkPlan:
    width: Annotated[Channels, planned("channels of the transformer, a multiple of heads")]
    layers: Annotated[Count, planned("layers of the transformer", le=256)]
    heads: Annotated[Count, planned("of the attention", le=256)]
    dropout: Annotated[Amount, planned("part of the activations that training drops", lt=1)]
    members: Annotated[Count, planned("networks whose mean probability is the classifier's", "networks", le=256)]

    @model_validator(mode="after")
    def _check(self) -> GeometryNetworkPlan:
        if self.width % self.heads:
            raise ValueError(f"width is {self.width} and heads {self.heads}; expected heads that divide the width")
        return self


@dataclass(frozen=True, config=CONFIG)
class GeometryRun(ScheduledRun):
    batch_size: Annotated[Batch, planned("scans that a member sees per training step", "scans")]
    label_smoothing: Annotated[Amount, planned("probability that the targets give to all levels alike", lt=1)]
    sampled_spines: Annotated[Whole, planned("spine curves of the phantom beside the dataset's own", "spines")]
    window: Annotated[Fraction, planned("part of the scans that training cuts to a random run of neighbours")]
