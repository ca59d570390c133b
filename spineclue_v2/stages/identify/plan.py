"""Plan groups of stage identify."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, ClassVar

from ...plans.data import Box


@dataclass(frozen=True)
class Penalties:
    """Log weights of what is rare, learned from held-out scans by `decoder_fit.fit_prices`; more negative = rarer."""

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


@dataclass(frozen=True)
class IdentifyNetwork:
    depth: int                        # 18, 34, 50 or 101
    width: int                        # channels of the first stage
    stem_stride: int
    crop_size: Box
    pool_grid: Box                    # spatial cells kept by the pooling before the head
    hidden: int
    projection_dim: int
    dropout: float


@dataclass(frozen=True)
class IdentifyRun:
    batch_size: int
    contrastive_epochs: int
    classifier_epochs: int
    iterations_per_epoch: int
    contrastive_lr: float
    classifier_lr: float
    weight_decay: float
    contrastive_loss: str             # "in" (as printed in the paper) or "out"
    temperature: float
    loss_weights: tuple[float, float, float]  # alpha (sequence), beta (level distance), gamma (cross entropy)
    freeze_backbone: bool
    mc_samples: int
    theta: float
    hops: int
    neighbours: int                   # including the target
    decoder_penalties: dict[str, float] = field(default_factory=dict)  # empty: the decoder's own defaults
    classifier_weights: dict[str, float] = field(default_factory=dict)  # weight of each classifier's log probabilities
    evidence_model: dict[str, Any] = field(default_factory=dict)  # what each classifier is worth (`trust`); empty: only their weights count

    KNOWN_KEYS: ClassVar[dict[str, tuple[str, ...]]] = {"decoder_penalties": tuple(entry.name for entry in fields(Penalties))}
