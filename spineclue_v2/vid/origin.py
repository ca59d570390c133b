"""Which collection a VID scan comes from, guessed from its coordinates and extent, and what that changes in a numbering.

The collections were labelled by different people: one has L6, another never; in one the lumbar spine starts a vertebra lower than the
detector thinks. Their names teach the guess, but are not read when scans are numbered.
"""
from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from .candidates import Seen
from .features import ORIGIN_COLUMNS

SIZE = 35                         # of `scan_features`
CLIP = 4.0
NETWORKS, PARTS = 2, 4            # of the guess; parts into which the training scans are cut to guess each by the others
EPOCHS, BATCH, WIDTH, DROPOUT = 25, 128, 32, 0.3
LEAST = 1e-3                      # a guess this small or smaller says no


def scan_features(seen: Seen) -> np.ndarray:
    """(q,) position, extent, size and looks of the whole row of detections, whatever its numbering; NaN where unknown."""
    x = seen.centres
    n = len(x)
    if n < 2:
        return np.full(SIZE, np.nan)
    gaps = np.linalg.norm(np.diff(x, axis=0), axis=1)
    pedicle = np.concatenate(seen.sides) - np.concatenate([x, x])
    drift = np.polyfit(np.arange(n), x[:, :2], 1)[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)     # means of nothing are NaN, which is what is meant
        return np.array([
            *x.mean(axis=0), *x[0], *x[-1], n, gaps.mean(), gaps[0], gaps[-1], np.nanmean(seen.width), np.nanstd(seen.width),
            *seen.ctl.mean(axis=0), *seen.ctl.min(axis=0), *seen.ctl.max(axis=0), *x[:, :2].std(axis=0), x[0, 2] - x[-1, 2],
            (seen.total < 0.9).sum(), len(seen.scan.pedicles) - 2 * n, np.nanmean(pedicle[:, 1]), *drift,
            np.nanmean(np.asarray(seen.scan.landmarks.rank, dtype=float)), seen.total[0], seen.total[-1]], dtype=float)


def with_origin(table: np.ndarray, guess: np.ndarray) -> np.ndarray:
    """(m, f) features of candidates, (k,) guess -> (m, f + k + k * c): the log of the guess, and the c columns that collections
    judge differently once per collection, weighted by its guess."""
    columns = np.nan_to_num(table[:, list(ORIGIN_COLUMNS)], nan=0.0)
    weighted = (columns[:, None, :] * guess[None, :, None]).reshape(len(table), -1)
    logs = np.broadcast_to(np.log(np.maximum(guess, LEAST)), (len(table), len(guess)))
    return np.concatenate([table, logs, weighted], axis=1).astype(np.float32)


@dataclass
class Origin:
    """A guess among k collections `names`; one collection needs no networks. `mean`, `spread` (q,) scale the scan features."""

    names: tuple[str, ...]
    networks: list[nn.Sequential]
    mean: np.ndarray
    spread: np.ndarray

    @classmethod
    def fit(cls, table: np.ndarray, collections: Sequence[str], seed: int) -> Origin:
        """From (s, q) scan features and s names; deterministic by the seed."""
        names = tuple(sorted(set(collections)))
        known = np.isfinite(table)
        count = np.maximum(known.sum(axis=0), 1)
        mean = np.where(known, table, 0.0).sum(axis=0) / count
        spread = np.sqrt(np.where(known, (table - mean) ** 2, 0.0).sum(axis=0) / count) + 1e-3
        origin = cls(names, [], mean.astype(np.float32), spread.astype(np.float32))
        if len(names) > 1:
            target = torch.tensor([names.index(name) for name in collections])
            origin.networks = [_train(origin._inputs(table), target, len(names), seed + k) for k in range(NETWORKS)]
        return origin

    @classmethod
    def cross_fit(cls, table: np.ndarray, collections: Sequence[str], seed: int) -> np.ndarray:
        """(s, k) guess for each training scan by networks trained without it, as honest as the guess for a new scan."""
        names = sorted(set(collections))
        part = np.random.default_rng(seed).permutation(len(table)) % PARTS
        out = np.zeros((len(table), len(names)))
        for k in range(PARTS):
            rest = np.flatnonzero(part != k)
            origin = cls.fit(table[rest], [collections[int(i)] for i in rest], seed)
            columns = [names.index(name) for name in origin.names]      # a part may hold a collection of its own
            out[np.ix_(part == k, columns)] = origin.guess(table[part == k])
        return out

    def guess(self, table: np.ndarray) -> np.ndarray:
        """(s, q) scan features -> (s, k) probabilities."""
        if not self.networks:
            return np.ones((len(table), 1))
        with torch.inference_mode():
            x = self._inputs(table)
            return torch.stack([network(x).softmax(dim=1) for network in self.networks]).mean(dim=0).double().numpy()

    def _inputs(self, table: np.ndarray) -> Tensor:
        scaled = np.clip((table - self.mean) / self.spread, -CLIP, CLIP)
        return torch.from_numpy(np.nan_to_num(scaled, nan=0.0).astype(np.float32))

    def tensors(self) -> dict[str, Tensor]:
        weights = {f"origin.{i}.{name}": value.half() for i, network in enumerate(self.networks)
                   for name, value in network.state_dict().items()}
        return weights | {"origin.mean": torch.from_numpy(self.mean), "origin.spread": torch.from_numpy(self.spread)}

    @classmethod
    def of_tensors(cls, tensors: Mapping[str, Tensor], names: Sequence[str]) -> Origin:
        """From what `tensors` gave; KeyError or RuntimeError where they do not fit."""
        origin = cls(tuple(names), [], tensors["origin.mean"].numpy(), tensors["origin.spread"].numpy())
        for i in range(NETWORKS if len(names) > 1 else 0):
            network = _network(len(origin.mean), len(names))
            network.load_state_dict({name: tensors[f"origin.{i}.{name}"].float() for name in network.state_dict()})
            origin.networks.append(network.eval())
        return origin


def _network(inputs: int, classes: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, WIDTH), nn.GELU(), nn.Dropout(DROPOUT), nn.Linear(WIDTH, classes))


def _train(x: Tensor, target: Tensor, classes: int, seed: int) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = _network(x.shape[1], classes).train()
        optimizer = torch.optim.AdamW(network.parameters(), lr=5e-3, weight_decay=0.03)
        batches = -(-len(x) // BATCH)
        rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=EPOCHS * batches)
        for _ in range(EPOCHS):
            for rows in torch.randperm(len(x)).split(BATCH):
                loss = nn.functional.cross_entropy(network(x[rows]), target[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                rate.step()
    return network.eval()
