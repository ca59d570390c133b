"""Heights of the bodies as a reader would report them: what was measured, what was expected, and how sure a grade is.

A grade by Genant's limits on one number is not more certain than the number. So the limits are laid against the spread of the loss:
of the ruler (masks, voxels) and of what neighbours let expect of a healthy body.
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..anatomy.vertebra import BodyFrame, BodyHeights, Vertebra
from ..imageio.grid import ImageGrid
from ..stages.grade.comparison import GRADE_LIMITS, GRADED, shape_of
from ..stages.grade.trust import BEYOND_BORDER, BORDER, METAL, voxel_along
from .bodies import Body
from .records import Record, record

NAME = "height loss"
WHERE = ("anterior", "middle", "posterior")
EXPECTED_SD = {"neighbours": 0.05, "own posterior wall": 0.06}
"""By reference, share of the expected height: how far healthy bodies lie from it. From readers' heights (see the documentation)."""
RULER_MM, RULER_VOXELS = 0.6, 0.33  # deviation of a height: what remains with fine voxels, and per mm of voxel along the spine
SHOWN_SD = 1.96                     # 95 %


def height_records(vertebrae: Sequence[Vertebra], bodies: Sequence[Body], grid: ImageGrid, field: ImageGrid) -> list[Record]:
    """`height loss` of every vertebra that has heights or a reason for none: the largest of the three, % of the expected height.

    Beside it `measured_mm`, `expected_mm`, `loss` (%) in the order anterior, middle, posterior, `interval` (95 %, %), `reference`,
    of thoracic and lumbar levels `grade_probabilities` (Genant 0 to 3), and `shape` where a grade above 0 is the more probable.
    `grid` is that of the masks, `field` the scan's.
    """
    named = {body.level: body for body in bodies}
    rows = []
    for vertebra in vertebrae:
        body = named.get(vertebra.level or "")
        if body is None:
            continue
        if vertebra.heights is not None and vertebra.heights.expected is not None:
            rows.append(_measured(vertebra.heights, body, _voxel(vertebra.frame, grid, field)))
        elif vertebra.height_doubt is not None:
            rows.append(record(NAME, None, "%", [body], f"not measured: {reason(vertebra.height_doubt)}"))
    return rows


def reason(doubt: str) -> str:
    """A `height_doubt` in the words of a report."""
    if doubt in (BORDER, BEYOND_BORDER):
        return f"cut: {doubt}"
    return f"metal: {doubt}" if doubt == METAL else f"doubtful mask: {doubt}"


def _voxel(frame: BodyFrame | None, grid: ImageGrid, field: ImageGrid) -> float:
    axis = np.array([1.0, 0.0, 0.0]) if frame is None else frame.axes[0]
    return max(voxel_along(axis, grid, each) for each in (grid, field))


def _measured(heights: BodyHeights, body: Body, voxel_mm: float) -> Record:
    assert heights.expected is not None and heights.loss is not None
    loss = np.array(heights.loss)
    largest = int(loss.argmax())
    value, spread = float(loss[largest]), loss_deviation(heights.expected[largest], heights.reference, voxel_mm)
    interval = [round(100 * (value + way * SHOWN_SD * spread), 1) for way in (-1, 1)]
    more: dict[str, Any] = {
        "where": WHERE[largest], "measured_mm": [round(h, 1) for h in heights.measured],
        "expected_mm": [round(h, 1) for h in heights.expected],
        "loss": [round(100 * share, 1) for share in heights.loss], "interval": interval, "reference": heights.reference}
    if body.level in GRADED:
        grades = grade_probabilities(value, spread)
        more["grade_probabilities"] = {str(grade): round(p, 3) for grade, p in grades.items()}
        if grades[0] < 0.5:
            more["shape"] = shape_of(loss)
    return record(NAME, 100 * value, "%", [body], **more)


def loss_deviation(expected_mm: float, reference: str | None, voxel_mm: float) -> float:
    """Standard deviation of a loss (share of the expected height). `voxel_mm`: reach of a voxel along the body's axis."""
    ruler = np.hypot(RULER_MM, RULER_VOXELS * voxel_mm) / expected_mm
    return float(np.hypot(EXPECTED_SD.get(reference or "", max(EXPECTED_SD.values())), ruler))


def grade_probabilities(loss: float, deviation: float) -> Mapping[int, float]:
    """Probability of Genant's grades 0 to 3 of a loss that is known up to `deviation` (normal; every loss as likely beforehand)."""
    from scipy.special import ndtr

    reached = [1.0, *(float(ndtr((loss - limit) / deviation)) for limit in GRADE_LIMITS), 0.0]
    return {grade: reached[grade] - reached[grade + 1] for grade in range(4)}
