"""Learn the decoder's penalties: the ones under which the true paths of held-out scans are most likely."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import minimize

from .decoder import Decoder
from .plan import Penalties

FITTED = ("l6", "missing_t12", "missed", "false_detection", "evidence")
OF_VARIANT = {"T13": ("t13", "t13_offset"), "L6": ("l6_offset",)}
"""What only scans with such a vertebra tell: fitted where there is one, else left as it is."""
BOUNDS = {"t13": (-9.0, 0.0), "l6": (-9.0, 0.0), "missing_t12": (-9.0, 0.0), "missed": (-9.0, 0.0), "t13_offset": (-4.0, 4.0),
          "l6_offset": (-4.0, 4.0), "false_detection": (-6.0, 4.0), "evidence": (0.1, 2.0)}
WORST = -20.0
"""A true path that is all but impossible (an error of the reference, say) counts no more than this."""


@dataclass(frozen=True)
class Case:
    """One scan with its true path: the arguments of `Decoder.decode` and the true names (None = false detection)."""

    log_probabilities: np.ndarray
    names: tuple[str | None, ...]
    steps: np.ndarray | None = None
    variants: np.ndarray | None = None


def mean_log_posterior(penalties: Penalties, cases: Sequence[Case], weights: Sequence[float] | None = None) -> float:
    """Mean over scans (weighted) of the log posterior of the true path."""
    decoder = Decoder(penalties)
    values = [decoder.log_posterior(case.names, case.log_probabilities, case.steps, case.variants) for case in cases]
    return float(np.average(np.maximum(values, WORST), weights=weights))


def fit_penalties(cases: Sequence[Case], start: Penalties | None = None, names: Sequence[str] | None = None, iterations: int = 8,
               weights: Sequence[float] | None = None) -> Penalties:
    """Penalties that maximise `mean_log_posterior` over held-out scans.

    Args:
        cases: out-of-fold scans; their share of anomalies, missed and false detections is what the penalties learn.
        start: where to begin; fields not in `names` stay.
        names: fields of `Penalties` to fit; None: `FITTED`, and those of the variants that the cases show.
        iterations: of L-BFGS with numerical gradients; each costs one pass over the cases per fitted field.
        weights: of the cases; a stratified sample gives each scan the number it stands for.
    """
    start = start or Penalties()
    if not cases:
        return start
    if names is None:
        shown = {name for case in cases for name in case.names}
        names = (*FITTED, *(field for variant, own in OF_VARIANT.items() if variant in shown for field in own))

    def loss(values: np.ndarray) -> float:
        return -mean_log_posterior(replace(start, **dict(zip(names, map(float, values), strict=True))), cases, weights)

    begin = np.array([np.clip(getattr(start, name), *BOUNDS[name]) for name in names])
    found = minimize(loss, begin, method="L-BFGS-B", bounds=[BOUNDS[name] for name in names],
                     options={"maxiter": iterations, "eps": 1e-2})
    return replace(start, **dict(zip(names, map(float, found.x), strict=True)))
