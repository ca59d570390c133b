"""The VID model: small networks and boosted trees that rank the candidate numberings of a scan, trained on which is right.

Naming detections one by one cannot tell whether a whole scan is shifted; a candidate as a whole can be weighed: what lies at
T12 and L1 if this numbering holds, how many are lumbar, what is left out, how well the sizes go with each other
(`likelihood`), and whose scan it looks like (`origin`). Networks and forests score each candidate from its features, the
softmax of their mean over a scan's candidates is the posterior (conditional logit), its temperature comes from held-out scans.
"""
from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import InputError
from ..stages.geometry.landmarks import L6, NOT_A_VERTEBRA
from ..stages.geometry.vid_landmarks import VidScan
from ..training.tensor_files import load_weights, save_weights
from .candidates import CHAIN, NONE, SIXTH, Seen, candidates
from .features import features
from .forest import Forest
from .likelihood import Likelihoods, quantities
from .origin import Origin, scan_features, with_origin
from .scans import FOLDS, Answer, folds

logger = logging.getLogger(__name__)

KIND = "spineclue_v2 VID model"
MEMBERS, FORESTS = 3, 2
CLIP = 4.0
UNKNOWN_FRACTION = 0.02              # a feature that is unknown this often tells by being unknown, too
FALSE_WEIGHT = 0.3                # of telling false detections apart, beside getting every true one right
TEMPERATURES = np.geomspace(0.25, 8.0, 81)


@dataclass(frozen=True)
class Schedule:
    """How a network is trained."""

    epochs: int = 25
    batch: int = 64
    learning_rate: float = 2e-3
    weight_decay: float = 0.03
    dropout: float = 0.4
    width: int = 64
    seed: int = 0


@dataclass(frozen=True)
class Case:
    """One scan's candidates: `classes` (m, n) of `CHAIN`, `features` (m, f), and which are `right` (m,): every detected true body
    named right; `exact` (m,): false ones rejected, too. `levels` (m, levels, 8): the candidates' `quantities`; `whole` (q,): features
    of the scan; `collection`: read in training only."""

    classes: np.ndarray
    features: np.ndarray
    right: np.ndarray
    exact: np.ndarray
    levels: np.ndarray
    whole: np.ndarray
    collection: str

    @classmethod
    def of(cls, scan: VidScan) -> Case:
        seen = Seen(scan)
        classes, plausible = candidates(seen)
        table = features(seen, classes, plausible) if len(classes) else np.zeros((0, 0), dtype=np.float32)
        rest = quantities(seen, classes), scan_features(seen), scan.collection
        if scan.landmarks.targets is None:
            nothing = np.zeros(len(classes), dtype=bool)
            return cls(classes, table, nothing, nothing, *rest)
        targets = np.select([scan.landmarks.targets == L6, scan.landmarks.targets == NOT_A_VERTEBRA], [SIXTH, NONE],
                            scan.landmarks.targets)
        agrees = classes == targets[None]
        return cls(classes, table, (agrees | (targets == NONE)).all(axis=1), agrees.all(axis=1), *rest)

    @property
    def answer(self) -> int:
        """Place of a right candidate, one that rejects the false ones, too, where there is one."""
        return int((self.exact if self.exact.any() else self.right).argmax())

    @property
    def weight(self) -> float:
        """Root of the scan's vertebrae: the rate pools vertebrae, but a scan is mostly right or wrong as one."""
        return float((self.classes[self.right.argmax()] != NONE).sum()) ** 0.5


class Ranker(nn.Module):
    """(..., m, inputs) features of a scan's candidates -> (..., m) scores. In training an input is dropped from all of a scan's
    candidates at once, so that they stay comparable."""

    def __init__(self, inputs: int, width: int, dropout: float):
        super().__init__()
        self.input_dropout = nn.Dropout(0.15)
        self.layers = nn.Sequential(
            nn.Linear(inputs, width), nn.GELU(), nn.Dropout(dropout),
            nn.Linear(width, 32), nn.GELU(), nn.Dropout(dropout), nn.Linear(32, 1))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            x = x * self.input_dropout(torch.ones_like(x[..., :1, :]))
        return self.layers(x)[..., 0]


@dataclass
class VidModel:
    """Rankers: `networks` with the scale of their inputs, `mean`, `spread` (f,), `flagged` (k,) features whose absence is an input,
    and `forests`, which need none; `likelihood` and `origin`, a guess of the collection, add to a case's features."""

    networks: list[Ranker]
    forests: list[Forest]
    likelihood: Likelihoods
    origin: Origin
    mean: np.ndarray
    spread: np.ndarray
    flagged: np.ndarray
    width: int
    temperature: float = 1.0
    about: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def fit(cls, cases: Sequence[Case], schedule: Schedule, members: int) -> VidModel:
        """Train on the cases that hold a right candidate; deterministic by the seed."""
        cases = [case for case in cases if case.right.any() and not case.right.all()]
        if not cases:
            raise InputError("The VID model cannot be trained: no scan has a right and a wrong numbering to choose from.")
        whole, collections = np.stack([case.whole for case in cases]), [case.collection for case in cases]
        guesses = Origin.cross_fit(whole, collections, schedule.seed)
        levels, right = [case.levels for case in cases], np.stack([case.levels[case.answer] for case in cases])
        posteriors = Likelihoods.cross_fit(right, levels, schedule.seed)
        tables = [_table(case, *seen) for case, *seen in zip(cases, guesses, posteriors, strict=True)]
        table = np.concatenate(tables)
        known = np.isfinite(table)
        count = np.maximum(known.sum(axis=0), 1)
        mean = np.where(known, table, 0.0).sum(axis=0, dtype=float) / count
        spread = np.sqrt(np.where(known, (table - mean) ** 2, 0.0).sum(axis=0) / count) + 1e-3
        flagged = np.flatnonzero((~known).mean(axis=0) > UNKNOWN_FRACTION)
        model = cls([], [], Likelihoods.fit(right), Origin.fit(whole, collections, schedule.seed), mean.astype(np.float32),
                    spread.astype(np.float32), flagged, schedule.width, about={"scans": len(cases)})
        inputs = [model.inputs(rows) for rows in tables]
        model.networks = [_train(cases, inputs, schedule, schedule.seed + member) for member in range(members)]
        weight = np.array([case.weight for case in cases])
        model.forests = [Forest.grow(tables, [case.right for case in cases], weight / weight.mean(), schedule.seed + k)
                         for k in range(FORESTS)]
        return model

    def inputs(self, table: np.ndarray) -> Tensor:
        """(m, f) features, NaN where unknown -> (m, f + k) inputs of the networks."""
        scaled = np.clip((table - self.mean) / self.spread, -CLIP, CLIP)
        unknown = np.isnan(table[:, self.flagged]).astype(np.float32)
        return torch.from_numpy(np.concatenate([np.nan_to_num(scaled, nan=0.0), unknown], axis=1).astype(np.float32))

    def scores(self, case: Case) -> np.ndarray:
        """(m,) score of each candidate, mean of the networks' and the forests' means, before the temperature."""
        if len(case.classes) == 0:
            return np.zeros(0)
        table = _table(case, self.origin.guess(case.whole[None])[0], self.likelihood.posteriors(case.levels))
        with torch.inference_mode():
            x = self.inputs(table)
            networks = torch.stack([network(x) for network in self.networks]).mean(dim=0).double().numpy()
        return (networks + np.mean([forest.scores(table) for forest in self.forests], axis=0)) / 2

    def number(self, scans: Sequence[VidScan]) -> list[Answer]:
        cases = [Case.of(scan) for scan in scans]
        return [answer(case, self.scores(case) / self.temperature) for case in cases]

    def save(self, path: str | Path) -> None:
        tensors = {f"{i}.{name}": value.half() for i, network in enumerate(self.networks)
                   for name, value in network.state_dict().items()}
        tensors |= {"mean": torch.from_numpy(self.mean), "spread": torch.from_numpy(self.spread),
                    "flagged": torch.from_numpy(self.flagged)} | self.origin.tensors() | self.likelihood.tensors()
        tensors |= {f"forest.{i}.{name}": value for i, forest in enumerate(self.forests) for name, value in forest.tensors().items()}
        save_weights(path, tensors, {"kind": KIND, "members": len(self.networks), "forests": len(self.forests), "width": self.width,
                                     "temperature": self.temperature, "collections": list(self.origin.names), "about": self.about})

    @classmethod
    def load(cls, path: str | Path) -> VidModel:
        """Read `save`'s file; anything else is an InputError."""
        tensors, description = load_weights(path, KIND)
        try:
            origin = Origin.of_tensors(tensors, description["collections"])
            forests = [Forest.of_tensors({name.removeprefix(f"forest.{i}."): value for name, value in tensors.items()
                                          if name.startswith(f"forest.{i}.")}) for i in range(description["forests"])]
            mean, spread, flagged = (tensors[name].numpy() for name in ("mean", "spread", "flagged"))
            model = cls([], forests, Likelihoods.of_tensors(tensors), origin, mean, spread, flagged, description["width"],
                        description["temperature"], description["about"])
            for i in range(description["members"]):
                network = Ranker(len(model.mean) + len(model.flagged), model.width, 0.0)
                network.load_state_dict({name: tensors[f"{i}.{name}"].float() for name in network.state_dict()})
                model.networks.append(network.eval())
        except (KeyError, RuntimeError, TypeError) as error:
            raise InputError(f"{path} is no usable {KIND}: {type(error).__name__}. Train it again (spineclue_benchmark_vid "
                             "train FILE -m MODEL).") from error
        return model


def _table(case: Case, guess: np.ndarray, posteriors: np.ndarray) -> np.ndarray:
    """(m, f) all that the rankers see of a case."""
    return np.concatenate([with_origin(case.features, guess), posteriors], axis=1)


def _train(cases: Sequence[Case], inputs: Sequence[Tensor], schedule: Schedule, seed: int) -> Ranker:
    """One network."""
    weight = torch.tensor([case.weight for case in cases])
    weight /= weight.mean()
    longest = max(len(x) for x in inputs)
    x = torch.zeros(len(cases), longest, inputs[0].shape[1])
    real, right, exact = (torch.zeros(len(cases), longest, dtype=torch.bool) for _ in range(3))
    for i, (case, rows) in enumerate(zip(cases, inputs, strict=True)):
        m = len(rows)
        x[i, :m], real[i, :m] = rows, True
        right[i, :m], exact[i, :m] = torch.from_numpy(case.right), torch.from_numpy(case.exact)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Ranker(x.shape[2], schedule.width, schedule.dropout).train()
        optimizer = torch.optim.AdamW(network.parameters(), lr=schedule.learning_rate, weight_decay=schedule.weight_decay)
        batches = -(-len(cases) // schedule.batch)
        rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, schedule.learning_rate, total_steps=schedule.epochs * batches)
        for _ in range(schedule.epochs):
            for rows in torch.randperm(len(cases)).split(schedule.batch):
                logs = network(x[rows]).masked_fill(~real[rows], -1e9).log_softmax(dim=1)
                log_right = logs.masked_fill(~right[rows], -1e9).logsumexp(dim=1)
                known = exact[rows].any(dim=1)
                log_exact = logs.masked_fill(~exact[rows], -1e9).logsumexp(dim=1) - log_right
                loss = -(weight[rows] * log_right).mean() - FALSE_WEIGHT * log_exact.where(known, torch.zeros(())).mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                rate.step()
    return network.eval()


def answer(case: Case, scores: np.ndarray) -> Answer:
    """The numbering with the highest posterior, exp(scores) made to add up to 1, and how sure it is.

    `shifted` is the posterior of candidates that give a detection which both name another level, or name nothing in common.
    """
    n = case.classes.shape[1]
    if len(case.classes) == 0:
        return Answer((None,) * n, np.zeros(n), 1.0)
    posterior = np.exp(scores - np.logaddexp.reduce(scores))
    best = int(posterior.argmax())
    both = (case.classes != NONE) & (case.classes[best] != NONE)[None]
    differs = ((case.classes != case.classes[best][None]) & both).any(axis=1) | ~both.any(axis=1)
    differs[best] = False
    confidence = posterior @ (case.classes == case.classes[best][None])
    return Answer(tuple(CHAIN[k] for k in case.classes[best]), confidence, float(min(posterior[differs].sum(), 1.0)))


def fit_temperature(scores: Sequence[np.ndarray], cases: Sequence[Case]) -> float:
    """The temperature under which held-out scores give the right candidates the highest likelihood."""
    pairs = [(row, case.right) for row, case in zip(scores, cases, strict=True) if case.right.any()]
    if not pairs:
        return 1.0

    def loss(temperature: float) -> float:
        return sum(np.logaddexp.reduce(row / temperature) - np.logaddexp.reduce(row[right] / temperature) for row, right in pairs)
    return float(min(TEMPERATURES, key=loss))


def train(scans: Sequence[VidScan], schedule: Schedule | None = None, members: int = MEMBERS,
          about: Mapping[str, Any] | None = None) -> VidModel:
    """A model from all scans; its temperature comes from a fold held out from a first ensemble."""
    schedule = schedule or Schedule()
    cases = [Case.of(scan) for scan in scans]
    fold = folds(scans)
    first = VidModel.fit([case for case, k in zip(cases, fold, strict=True) if k], schedule, members)
    held_out = [case for case, k in zip(cases, fold, strict=True) if not k]
    model = VidModel.fit(cases, schedule, members)
    model.temperature = fit_temperature([first.scores(case) for case in held_out], held_out)
    model.about |= dict(about or {})
    return model


def crossval(scans: Sequence[VidScan], schedule: Schedule | None = None, members: int = MEMBERS,
             fold: np.ndarray | None = None) -> list[Answer]:
    """Out-of-fold answer for every scan: networks from the other folds, temperature from the other folds' out-of-fold scores.

    `fold` (len(scans),) replaces the draw of `vid.folds`.
    """
    schedule = schedule or Schedule()
    cases = [Case.of(scan) for scan in scans]
    fold = folds(scans) if fold is None else fold
    scores: list[np.ndarray] = [np.zeros(0)] * len(scans)
    for k in range(FOLDS):
        model = VidModel.fit([case for case, f in zip(cases, fold, strict=True) if f != k], schedule, members)
        for i in np.flatnonzero(fold == k):
            scores[i] = model.scores(cases[i])
        logger.info("fold %d of %d: trained on %d scans", k + 1, FOLDS, model.about["scans"])
    answers: list[Answer] = []
    temperature = {}
    for k in range(FOLDS):
        others = np.flatnonzero(fold != k)
        temperature[k] = fit_temperature([scores[i] for i in others], [cases[i] for i in others])
    for case, row, k in zip(cases, scores, fold, strict=True):
        answers.append(answer(case, row / temperature[int(k)]))
    return answers
