"""The network of the geometry classifier: an ensemble of small transformers over the detections of a scan."""
from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...plans.plans import Plans, StagePlan
from ..converted import Graph
from .features import Batch, along, features
from .landmarks import CLASSES, FEATURES


@dataclass(frozen=True)
class Shape:
    """Size of the network."""

    width: int = 64
    layers: int = 3
    heads: int = 4
    dropout: float = 0.1


class Layer(nn.Module):
    """Pre-norm transformer layer whose attention is biased by the signed arc length between two detections."""

    def __init__(self, shape: Shape):
        super().__init__()
        width = shape.width
        self.heads = shape.heads
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.query_key_value, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.bias = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, shape.heads))
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.dropout = nn.Dropout(shape.dropout)

    def forward(self, x: Tensor, apart: Tensor, present: Tensor) -> Tensor:
        """x (S, N, width), apart (S, N, N, 6), present (S, N) -> (S, N, width)."""
        s, n, width = x.shape
        query, key, value = self.query_key_value(self.norms[0](x)).view(s, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        bias = self.bias(apart).permute(0, 3, 1, 2).masked_fill(~present[:, None, None, :], -1e4)
        score = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1]) + bias
        mixed = (score.softmax(dim=-1) @ value).transpose(1, 2).reshape(s, n, width)
        x = x + self.dropout(self.out(mixed))
        return x + self.dropout(self.mlp(self.norms[1](x)))


class SequenceNetwork(nn.Module):
    """Detections of a scan -> logits (S, N, CLASSES) over the 24 levels, "not a vertebra" and L6."""

    def __init__(self, shape: Shape):
        super().__init__()
        self.shape = shape
        self.embed = nn.Sequential(nn.Linear(FEATURES, shape.width), nn.GELU(), nn.Linear(shape.width, shape.width))
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.head = nn.Sequential(nn.LayerNorm(shape.width), nn.Linear(shape.width, CLASSES))

    def forward(self, batch: Batch) -> Tensor:
        return self.logits(features(batch), along(batch), batch.present)

    def logits(self, rows: Tensor, arc: Tensor, present: Tensor) -> Tensor:
        """`features` (S, N, FEATURES), `along` (S, N) and `present` (S, N) of a batch -> (S, N, CLASSES)."""
        apart = arc[:, None, :] - arc[:, :, None]
        scales = [torch.tanh(apart / s) for s in (1.0, 3.0, 9.0)] + [(-apart.abs() / s).exp() for s in (0.5, 1.5, 5.0)]
        apart = torch.stack(scales, dim=-1)
        x = self.embed(rows)
        for layer in self.layers:
            x = layer(x, apart, present)
        return self.head(x)


class GeometryNetwork(nn.Module):
    """Members whose mean probability is the classifier's: detections of a scan -> (S, N, CLASSES) probabilities."""

    def __init__(self, shape: Shape, members: int):
        super().__init__()
        self.shape = shape
        self.members = nn.ModuleList(SequenceNetwork(shape) for _ in range(members))

    def forward(self, batch: Batch, temperature: float = 1.0) -> Tensor:
        return torch.stack([(member(batch).double() / temperature).softmax(dim=-1) for member in self.members]).mean(dim=0)


def network_of_plans(plans: Plans) -> GeometryNetwork:
    """The plan's network with fresh weights."""
    plan = plans.stage("geometry").network
    return GeometryNetwork(Shape(plan.width, plan.layers, plan.heads, plan.dropout), plan.members)


def member_logits(network: GeometryNetwork, rows: Tensor, arc: Tensor) -> Tensor:
    """`features` (S, N, FEATURES) and `along` (S, N) of detections that are all present -> logits (members, S, N, CLASSES)."""
    present = torch.ones_like(arc) > 0
    members: list[Any] = list(network.members)
    return torch.stack([member.logits(rows, arc, present) for member in members])


def graphs(network: GeometryNetwork, plan: StagePlan) -> dict[str, Graph]:  # noqa: ARG001 - as in every stage
    """What a prediction asks of the network."""
    return {"member_logits": Graph(member_logits, (torch.zeros(1, 5, FEATURES), torch.arange(5.0)[None]), ((-1, -1, FEATURES), (-1, -1)),
                                   bfloat16=False)}
