"""How much a vertebral body is usually wedged, for end plates that a scan shows too coarsely to say.

Between slices of 3 mm an end plate may lie 6 degrees this way or that. Both end plates of a body are nearly parallel, up to the wedge of
its level, and that says which way is likelier. A body that is wedged otherwise, as fractured ones are, is left as it is measured.
"""
from __future__ import annotations

from collections.abc import Sequence

USUAL_DEG = {**{f"T{i}": -3.0 for i in range(1, 9)}, "T9": -3.8, "T10": -3.2, "T11": -5.0, "T12": -4.2, "T13": -4.2, "L1": -3.4, "L2": -1.6,
             "L3": 0.0, "L4": 1.9, "L5": 6.2, "L6": 6.2}
"""Degrees, positive where the body is higher in front. T9 to L5: Masharawi et al. (2010); T1 to T8 are assumed. Of other levels nothing
is said."""
SPREAD_DEG = 3.0    # standard deviation between people
EXCEPTION = 1.5     # times that: where a wedge farther from the usual begins to be an exception (the scale of a Cauchy distribution)
ROUNDS = 10


def turns_to_usual(level: str, tilts: Sequence[float], deviations: Sequence[float]) -> tuple[float, float]:
    """Degrees by which the upper and the lower end plate turn.

    Args:
        level: of the body.
        tilts: of the upper and the lower end plate, degrees that they fall towards the front.
        deviations: their standard deviations, degrees.
    """
    if level not in USUAL_DEG:
        return 0.0, 0.0
    upper, lower = (deviation ** 2 for deviation in deviations)
    measured = tilts[1] - tilts[0]
    wedge = measured
    for _ in range(ROUNDS):
        spread = SPREAD_DEG ** 2 + ((wedge - USUAL_DEG[level]) / EXCEPTION) ** 2
        gain = (USUAL_DEG[level] - measured) / (upper + lower + spread)
        wedge = measured + (upper + lower) * gain
    return -upper * gain, lower * gain
