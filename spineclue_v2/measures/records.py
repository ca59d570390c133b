"""Measures as flat records, the same in `CASE.json`, the table and the picture."""
from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from .bodies import Body, as_triple

POSITION = "lying"
"""CT and MR are taken lying: curves are flatter than in a standing radiograph, on which the literature's values rest."""

Line = tuple[np.ndarray, np.ndarray]
Record = dict[str, Any]


def record(name: str, value: float | None, unit: str, bodies: Iterable[Body], note: str = "", lines: Sequence[Line] = (), plane: str = "",
           levels: Sequence[str] | None = None, **more: Any) -> Record:
    """One measure. `bodies`: those whose names it rests on; `levels` where these are not all there; `lines`: ends (LPS mm) of what a reader
    would draw; `plane`: in which view. `value` None: not given, and `note` says why."""
    bodies = list(bodies)
    sure = [body.confidence for body in bodies if body.confidence is not None]
    return {"name": name, "value": None if value is None else _rounded(value, unit), "unit": unit,
            "levels": list(levels) if levels is not None else [body.level for body in bodies],
            "confidence": round(min(sure), 4) if sure and len(sure) == len(bodies) else None, "position": POSITION, "note": note, **more,
            **({"plane": plane, "lines_mm": [[list(as_triple(a)), list(as_triple(b))] for a, b in lines]} if lines else {})}


def _rounded(value: float, unit: str) -> float:
    return round(float(value), 0 if unit == "HU" else 1) + 0.0  # + 0.0: no negative zero


def not_given(name: str, unit: str, levels: Sequence[str], why: str) -> Record:
    """A measure that has a name and no value."""
    return record(name, None, unit, (), f"not given: {why}", levels=levels)
