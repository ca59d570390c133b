"""What is known of the levels of a scan besides its evidence, as hard factors of the sequence decoder."""
from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ...anatomy import ANATOMICAL_ORDER, ORDER_INDEX
from .plan import Penalties

NAMES = len(ANATOMICAL_ORDER)
NEVER = -np.inf


@dataclass(frozen=True)
class Constraints:
    """Which names each detection may have, and how many vertebrae the patient has.

    Attributes:
        allowed: (n, 27) bool over ANATOMICAL_ORDER and "not a vertebra".
        lumbar: 5 or 6 lumbar vertebrae; None = not known.
        thoracic: 11, 12 or 13 thoracic vertebrae; None = not known.
    """

    allowed: np.ndarray
    lumbar: int | None = None
    thoracic: int | None = None

    @classmethod
    def free(cls, count: int, lumbar: int | None = None, thoracic: int | None = None) -> Constraints:
        """Every name that the numbers of vertebrae allow, for `count` detections."""
        allowed = np.ones((count, NAMES + 1), bool)
        absent = {5: ("L6",)}.get(lumbar or 0, ()) + {11: ("T12", "T13"), 12: ("T13",)}.get(thoracic or 0, ())
        allowed[:, [ORDER_INDEX[name] for name in absent]] = False
        return cls(allowed, lumbar, thoracic)

    def pinned(self, detection: int, level: str) -> Constraints:
        """The same with one detection's level given."""
        only = np.zeros(NAMES + 1, bool)
        only[ORDER_INDEX[level]] = True
        allowed = self.allowed.copy()
        allowed[detection] &= only
        return replace(self, allowed=allowed)

    @property
    def levels_given(self) -> bool:
        """Whether the level of a detection is known."""
        return bool((self.allowed.sum(axis=1) == 1).any())

    def penalties(self, usual: Penalties) -> Penalties:
        """A vertebra that the patient has is no anomaly, and one that he lacks never comes."""
        change: dict[str, float] = {}
        if self.lumbar is not None:
            change["l6"] = 0.0 if self.lumbar == 6 else NEVER
        if self.thoracic is not None:
            change |= {"t13": 0.0 if self.thoracic == 13 else NEVER, "missing_t12": 0.0 if self.thoracic == 11 else NEVER}
        return replace(usual, **change)

    @property
    def closed_ways(self) -> tuple[tuple[str, str], ...]:
        """Steps down the spine that the numbers of vertebrae exclude."""
        return {11: (("T11", "T12"), ("T12", "L1")), 13: (("T12", "L1"),)}.get(self.thoracic or 0, ())

    @property
    def landmarks(self) -> dict[str, list[int]]:
        """Which names may lie above the sacrum, where the number of lumbar vertebrae says so."""
        return {} if self.lumbar is None else {"sacrum": [ORDER_INDEX["L6" if self.lumbar == 6 else "L5"]]}
