"""What the trained networks say about the validation cases, and the names that every step of the method makes of it.

Everything that is fitted after training (temperature, fusion matrices, weights of the classifiers) is fitted on other scans
than those it is applied to: on the other folds, or with one fold on the other half of its validation cases.
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from ..anatomy import LEVEL_INDEX, LEVELS, NAME_OF_LABEL
from ..anatomy.vertebral_gaps import round_positions, vertebral_gaps
from ..dataset.preprocessed import PreprocessedDataset
from ..imageio.volume import ImageGrid, Volume
from ..stages.appearance.predictor import log_probabilities
from ..stages.appearance.trainer import AppearanceTrainer
from ..stages.geometry.predictor import evidence_of
from ..stages.identify.calibration import START, EvidenceRows, fit_weights, weigh
from ..stages.identify.decoder import Decoder, Numbering
from ..stages.identify.evidence import fold_variants, shape_logs
from ..stages.identify.fusion import MessageFusion, fit_phi
from ..stages.identify.plan import IdentifyRun, Penalties
from ..stages.identify.predictor import INFERENCE_BATCH
from ..stages.identify.trainer import IdentifyTrainer
from ..stages.identify.uncertainty import monte_carlo
from ..training.stage_model import StageModel
from ..training.temperature import fit_temperature

STEPS = ("baseline on CT", "+ mask", "+ contrastive", "+ fusion", "+ geometry", "+ appearance", "+ decoder")
"""The paper's Table 3, then what is beyond the paper."""

FITTED, PLANNED, BLIND = "fitted weights", "planned weights", "fitted, without appearance"


@dataclass
class Scan:
    """One validation case under one fold and seed: its true vertebrae in cranio-caudal order (masks and centres are the true ones).

    `features` and `logits` per training, `appearance` and `geometry` log-probabilities (n, 25); `part`: scans that share it are
    never fitted on one another.
    """

    case: str
    fold: int | str
    seed: int
    names: tuple[str, ...]
    centres: np.ndarray
    part: str = ""
    features: dict[str, torch.Tensor] = field(default_factory=dict)
    logits: dict[str, torch.Tensor] = field(default_factory=dict)
    appearance: np.ndarray | None = None
    geometry: np.ndarray | None = None

    @property
    def targets(self) -> torch.Tensor:
        """(n,) level indices, -1 for T13 and L6, which the networks do not know."""
        return torch.tensor([LEVEL_INDEX.get(name, -1) for name in self.names])

    @property
    def steps(self) -> np.ndarray:
        return vertebral_gaps(self.centres)

    @property
    def known_appearance(self) -> np.ndarray:
        """`appearance`; ValueError where its network has not seen the scan."""
        return _filled(self.appearance, "appearance", self.case)

    @property
    def known_geometry(self) -> np.ndarray:
        """`geometry`; ValueError where there is no geometry classifier."""
        return _filled(self.geometry, "geometry", self.case)


def _filled(rows: np.ndarray | None, name: str, case: str) -> np.ndarray:
    if rows is None:
        raise ValueError(f"{case}: there is no evidence of the classifier {name}")
    return rows


def scans_of(dataset: PreprocessedDataset, cases: Sequence[str], fold: int | str, seed: int, several_folds: bool,
             geometry: Any = None) -> list[Scan]:
    """The validation `cases` with what needs no training of the study; those without a vertebra are left out."""
    scans: list[Scan] = []
    for case in cases:
        properties = dataset.properties(case)
        grid = ImageGrid.from_json(properties["geometry"])
        found = sorted(properties["vertebrae"].values(), key=lambda v: -(v["start"][0] + v["stop"][0]))
        if not found:
            continue
        centres = grid.index_to_world(np.array([v["body_centre"] for v in found]))
        part = f"fold {fold}" if several_folds else f"half {len(scans) % 2}"
        scans.append(Scan(case, fold, seed, tuple(NAME_OF_LABEL[v["label"]] for v in found), centres, part,
                          geometry=None if geometry is None else fold_variants(evidence_of(centres, geometry))))
    return scans


@torch.no_grad()
def add_outputs(scans: Sequence[Scan], name: str, trainer: IdentifyTrainer | AppearanceTrainer, dataset: PreprocessedDataset) -> None:
    """Let the trained network of `name` look at every scan once; fills features and logits, or `appearance`."""
    trainer.network.eval()
    if isinstance(trainer, AppearanceTrainer):
        model = StageModel([trainer.network], [{}], [{}], [""])
        for scan in scans:
            volume = Volume(np.asarray(dataset.image(scan.case)[:]), ImageGrid.from_json(dataset.properties(scan.case)["geometry"]))
            scan.appearance = log_probabilities(volume, scan.centres, model, trainer.plan, trainer.device)
        return
    maker = trainer.batch_sampler(training=False)
    maker.cases, maker.variants = [scan.case for scan in scans], True
    for scan in scans:
        if tuple(NAME_OF_LABEL[value] for value in maker.labels_of(scan.case)) != scan.names:
            raise ValueError(f"{scan.case}: network inputs are not in the order of the vertebrae")
        inputs = maker.inputs_of(scan.case)
        features = [trainer.network.features(inputs[i:i + INFERENCE_BATCH].to(trainer.device)).float()
                    for i in range(0, len(inputs), INFERENCE_BATCH)]
        scan.features[name] = torch.cat(features)
        scan.logits[name] = trainer.network.classify(scan.features[name]).float().cpu()


def parts_of(scans: Sequence[Scan]) -> list[tuple[list[Scan], list[Scan]]]:
    """(to fit on, to apply to) for every part; a single part must serve as both."""
    names = sorted({scan.part for scan in scans})
    if len(names) == 1:
        return [(list(scans), list(scans))]
    return [([s for s in scans if s.part != name], [s for s in scans if s.part == name]) for name in names]


def best_level(rows: np.ndarray | torch.Tensor) -> list[str | None]:
    """The most probable of the 24 levels of each row."""
    return [LEVELS[int(k)] for k in np.asarray(rows)[:, :len(LEVELS)].argmax(axis=1)]


def temperature_of(scans: Sequence[Scan], name: str) -> float:
    return fit_temperature(torch.cat([s.logits[name] for s in scans]), torch.cat([s.targets for s in scans]))


def shape_probabilities(fit: Sequence[Scan], apply: Sequence[Scan], network: Mapping[tuple[int | str, int], Any], run: IdentifyRun,
                        fused: bool = True, name: str = "contrastive") -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Probabilities (n, 24) of the shape classifier, for the scans of `fit` and of `apply`, everything fitted on `fit`.

    `network`: {(fold, seed): network}, for the Monte-Carlo draws of its head. `fused` False: before the messages.
    """
    temperature = temperature_of(fit, name)
    rows = {}
    for scan in [*fit, *apply]:
        mean, entropy = monte_carlo(network[scan.fold, scan.seed], scan.features[name], run.mc_samples, temperature)
        rows[id(scan)] = (mean.cpu().clone(), entropy.cpu().clone(), torch.from_numpy(round_positions(scan.steps)), scan.targets)
    if not fused:
        return [rows[id(scan)][0].numpy() for scan in fit], [rows[id(scan)][0].numpy() for scan in apply]
    fusion = MessageFusion(run.theta, run.hops, run.neighbours)
    if run.hops:
        fit_phi(fusion, [rows[id(scan)] for scan in fit])
    with torch.no_grad():
        return [fusion(*rows[id(scan)][:3]).numpy() for scan in fit], [fusion(*rows[id(scan)][:3]).numpy() for scan in apply]


def names_by_step(fit: Sequence[Scan], apply: Sequence[Scan], network: Mapping[tuple[int | str, int], Any],
                  run: IdentifyRun) -> tuple[dict[str, list[list[str | None]]], dict[str, list[Numbering]]]:
    """{step: names per scan of `apply`}, and what the decoder says with fitted weights, planned ones, and without the appearance.

    Steps whose classifier is not there are left out. The names after the decoder are those with fitted weights.
    """
    found = {"baseline on CT": [best_level(s.logits["ct"]) for s in apply], "+ mask": [best_level(s.logits["mask"]) for s in apply],
             "+ contrastive": [best_level(p) for p in shape_probabilities(fit, apply, network, run, fused=False)[1]]}
    shapes = shape_probabilities(fit, apply, network, run)
    found["+ fusion"] = [best_level(p) for p in shapes[1]]
    temperature = _appearance_temperature(fit)
    enabled: tuple[str, ...] = ("shape",)
    for step, classifier in (("+ geometry", "geometry"), ("+ appearance", "appearance")):
        if getattr(apply[0], classifier) is None:
            continue
        enabled = (*enabled, classifier)
        known, asked = (_evidence_rows(scans, shape, enabled, temperature) for scans, shape in zip((fit, apply), shapes, strict=True))
        weights = fit_weights(known)
        found[step] = [best_level(weigh(rows.logs, weights)) for rows in asked]
    penalties = Penalties.from_dict(run.decoder_penalties)
    decoder, numberings = Decoder(penalties), {}
    for how, classifiers in ((FITTED, enabled), (PLANNED, enabled), (BLIND, tuple(name for name in enabled if name != "appearance"))):
        if how == BLIND and classifiers == enabled:
            continue
        known, asked = (_evidence_rows(scans, shape, classifiers, temperature) for scans, shape in zip((fit, apply), shapes, strict=True))
        weights = START | run.classifier_weights if how == PLANNED else fit_weights(known, penalties)
        numberings[how] = [decoder.decode(weigh(rows.logs, weights), rows.steps) for rows in asked]
    found["+ decoder"] = [list(numbering.names) for numbering in numberings[FITTED]]
    return found, numberings


def _appearance_temperature(scans: Sequence[Scan]) -> float:
    if scans[0].appearance is None:
        return 1.0
    return fit_temperature(torch.from_numpy(np.concatenate([s.known_appearance for s in scans])), torch.cat([s.targets for s in scans]))


def _evidence_rows(scans: Sequence[Scan], shape: Sequence[np.ndarray], enabled: Sequence[str], temperature: float) -> list[EvidenceRows]:
    rows = []
    for scan, probabilities in zip(scans, shape, strict=True):
        logs = {"shape": shape_logs(probabilities)}
        if "geometry" in enabled:
            logs["geometry"] = scan.known_geometry
        if "appearance" in enabled:
            tempered = scan.known_appearance / temperature
            logs["appearance"] = tempered - np.logaddexp.reduce(tempered, axis=1, keepdims=True)
        rows.append(EvidenceRows(logs, scan.names, scan.steps))
    return rows
