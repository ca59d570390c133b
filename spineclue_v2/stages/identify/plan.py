"""Plan groups of stage identify."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, field, fields
from dataclasses import dataclass as plain_dataclass
from typing import Annotated

from pydantic import AfterValidator
from pydantic.dataclasses import dataclass

from ...plans.fields import CONFIG, Amount, Batch, Box, Count, Iterations, Real, Run, WeightDecay, Whole, one_of, planned
from ...plans.schema import nearest

EvidenceValues = dict[str, Real | dict[str, Real | dict[str, Real | list[Real]]]]
EVIDENCE_ENTRIES = ("scale", "power", "trust", "landmark", "bias", "none_weight", "least_none", "doubt", "sum_weight",
                    "sum_false_detection")   # of `trust.EvidenceModel`


@plain_dataclass(frozen=True)
class Penalties:
    """Log weights of what is rare, learned from held-out scans by `decoder_fit.fit_penalties`; more negative = rarer."""

    t13: float = -5.5                 # transition T12 -> T13
    l6: float = -4.0                  # transition L5 -> L6
    missing_t12: float = -5.5         # transition T11 -> L1
    missed: float = -3.0              # each vertebra passed over
    false_detection: float = -2.0     # each detection dropped, beside its log p(not a vertebra)
    t13_offset: float = 0.0           # added to T12's evidence when it is read as T13's
    l6_offset: float = 0.0            # added to L5's evidence when it is read as L6's
    step_sigma: float = 0.2           # spread of log(measured steps / steps of the way)
    step_floor: float = -6.0          # the most a strange gap can cost
    evidence: float = 1.0             # multiplies the log-probabilities: detections of one scan share the mistakes of a classifier
    shifted_limit: float = 0.05       # numbering is anchored while shifted paths hold no more than this

    @classmethod
    def from_dict(cls, values: Mapping[str, float]) -> Penalties:
        """From plans or a checkpoint; an unknown name is an error that lists the known ones."""
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ValueError(f"unknown decoder penalty '{unknown[0]}'; known: {', '.join(sorted(known))}")
        return cls(**values)

    def to_dict(self) -> dict[str, float]:
        return asdict(self)


def _check_penalties(values: dict[str, float]) -> dict[str, float]:
    known = [entry.name for entry in fields(Penalties)]
    if unknown := [name for name in values if name not in known]:
        raise ValueError(f"unknown key '{unknown[0]}'{nearest(unknown[0], known)}")
    return values


def _check_evidence_model(values: EvidenceValues) -> EvidenceValues:
    if unknown := [name for name in values if name not in EVIDENCE_ENTRIES]:
        raise ValueError(f"unknown key '{unknown[0]}'{nearest(unknown[0], EVIDENCE_ENTRIES)}")
    return values


def _check_odd(number: int) -> int:
    if number % 2 == 0:
        raise ValueError("expected an odd number: the vertebra itself and as many on either side")
    return number


@dataclass(frozen=True, config=CONFIG)
class IdentifyNetwork:
    depth: Annotated[int, one_of(18, 34, 50, 101), planned("layers of the ResNet")]
    width: Annotated[int, planned("channels of the first stage; each later one has twice as many", gt=0, le=4096)]
    stem_stride: Annotated[int, one_of(1, 2, 4), planned("the stem makes the grid this much coarser")]
    crop_size: Annotated[Box, planned("crop (z, y, x) of the mask around a vertebra", "voxels")]
    pool_grid: Annotated[Box, planned("cells (z, y, x) kept by the pooling before the head; 1, 1, 1: the mean alone", "cells")]
    hidden: Annotated[Count, planned("width of the projection head's hidden layer", le=1 << 16)]
    projection_dim: Annotated[Count, planned("length of the vectors that the contrastive loss compares", le=1 << 16)]
    dropout: Annotated[Amount, planned("part of the head's inputs that is dropped, in prediction too (Monte-Carlo dropout)", lt=1)]


@dataclass(frozen=True, config=CONFIG)
class IdentifyRun(Run):
    batch_size: Annotated[Batch, planned("vertebrae per training step; the contrastive phase sees two views of each", "vertebrae")]
    contrastive_epochs: Annotated[Whole, planned("length of the contrastive phase", "epochs")]
    classifier_epochs: Annotated[Whole, planned("length of the classifier's phase", "epochs")]
    iterations_per_epoch: Iterations
    contrastive_lr: Annotated[Amount, planned("first learning rate of the contrastive phase; it falls to 0 as (1 - t) ^ 0.9")]
    classifier_lr: Annotated[Amount, planned("first learning rate of the classifier's phase; it falls to 0 as (1 - t) ^ 0.9")]
    weight_decay: WeightDecay
    contrastive_loss: Annotated[str, one_of("in", "out"), planned(
        "where the mean over positives stands: in the logarithm, as the paper prints it, or out of it")]
    temperature: Annotated[Amount, planned("of the contrastive loss", gt=0)]
    loss_weights: Annotated[tuple[Amount, Amount, Amount], planned(
        "alpha (order of the sequence), beta (squared distance of levels), gamma (cross entropy)")]
    freeze_backbone: Annotated[bool, planned("the classifier's phase leaves the backbone as it is")]
    mc_samples: Annotated[Count, planned("passes of Monte-Carlo dropout", "passes", le=1 << 16)]
    theta: Annotated[Amount, planned("weight of the neighbours' messages in the fusion")]
    hops: Annotated[Whole, planned("how often messages are passed on")]
    neighbours: Annotated[Count, AfterValidator(_check_odd), planned("vertebrae that exchange messages, the target included; odd")]
    decoder_penalties: Annotated[dict[str, Real], AfterValidator(_check_penalties), planned(
        "log weights of the sequence decoder, by name; those left out keep its defaults", old_names=["decoder_prices"])] = field(
        default_factory=dict)
    classifier_weights: Annotated[dict[str, Real], planned(
        "weight of each classifier's log probabilities: shape, geometry, appearance", old_names=["witness_weights"])] = field(
        default_factory=dict)
    evidence_model: Annotated[EvidenceValues, AfterValidator(_check_evidence_model), planned(
        "what each classifier is worth and how often it is off for a whole scan; empty: classifier_weights alone count")] = field(
        default_factory=dict)
    classifier_batch_size: Annotated[int, planned(
        "vertebrae per step of the classifier's phase, filled up to whole spines; 0: as many as batch_size", "vertebrae", ge=0,
        le=1 << 16)] = 0

    @property
    def classifier_batch(self) -> int:
        """Vertebrae per step of the classifier's phase."""
        return self.classifier_batch_size or self.batch_size
