"""The sequence network of the geometry classifier, a small transformer over the detections of a scan, and its training."""
from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .features import CLASSES, FEATURES, UNKNOWN, Augmentation, Batch, Landmarks, along, augment, features

logger = logging.getLogger(__name__)


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
        arc = along(batch)
        apart = arc[:, None, :] - arc[:, :, None]
        scales = [torch.tanh(apart / s) for s in (1.0, 3.0, 9.0)] + [(-apart.abs() / s).exp() for s in (0.5, 1.5, 5.0)]
        apart = torch.stack(scales, dim=-1)
        x = self.embed(features(batch))
        for layer in self.layers:
            x = layer(x, apart, batch.present)
        return self.head(x)


@dataclass(frozen=True)
class Schedule:
    """How the network is trained."""

    epochs: int = 60
    batch: int = 64
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    smoothing: float = 0.02
    seed: int = 0
    augmentation: Augmentation = field(default_factory=Augmentation)


def train(scans: Sequence[Landmarks], shape: Shape, schedule: Schedule) -> SequenceNetwork:
    """Train on labelled scans (`targets` given), each seen once per epoch in a new random view; deterministic by the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(schedule.seed)
        generator = torch.Generator().manual_seed(schedule.seed)
        network = SequenceNetwork(shape).train()
        data = Batch.of([scan for scan in scans if len(scan.centres)], spare=1)
        scans_seen = len(data.present)
        batches = math.ceil(scans_seen / schedule.batch)
        optimizer = torch.optim.AdamW(network.parameters(), lr=schedule.learning_rate, weight_decay=schedule.weight_decay)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, schedule.learning_rate, total_steps=schedule.epochs * batches)
        for epoch in range(schedule.epochs):
            total = 0.0
            for rows in _similar_lengths(data, schedule.batch, generator):
                view = augment(data.take(rows, spare=1), schedule.augmentation, generator)
                loss = F.cross_entropy(network(view).flatten(0, 1), view.targets.flatten(), ignore_index=UNKNOWN,
                                       label_smoothing=schedule.smoothing)
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(network.parameters(), 1.0)
                optimizer.step()
                scheduler.step()
                total += float(loss.detach()) * len(rows)
            logger.debug("geometry classifier, epoch %d: loss %.4f", epoch, total / scans_seen)
    return network.eval()


def _similar_lengths(data: Batch, size: int, generator: torch.Generator) -> list[Tensor]:
    """Random batches of scans of similar length, in random order: short scans do not pay for long ones."""
    length = data.present.sum(dim=1) + 3.0 * torch.rand(len(data.present), generator=generator)
    batches = length.argsort().split(size)
    return [batches[i] for i in torch.randperm(len(batches), generator=generator)]
