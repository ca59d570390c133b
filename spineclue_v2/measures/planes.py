"""The patient's own planes: angles are seen in them, so that how the patient lay in the scanner does not matter."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .bodies import Body, EndPlate


@dataclass(frozen=True, eq=False)
class PatientPlanes:
    """Unit vectors (LPS): `left`, `back`, `up`. Sagittal plane: `back` and `up`; coronal plane: `left` and `up`."""

    left: np.ndarray
    back: np.ndarray
    up: np.ndarray

    def sagittal_tilt(self, plate: EndPlate) -> float:
        """Degrees by which the plate falls towards the front in the sagittal plane (a lateral radiograph's tilt)."""
        return float(np.degrees(np.arctan2(-(plate.normal @ self.back), plate.normal @ self.up)))

    def coronal_tilt(self, plate: EndPlate) -> float:
        """Degrees by which the plate falls towards the patient's left in the coronal plane."""
        return float(np.degrees(np.arctan2(plate.normal @ self.left, plate.normal @ self.up)))


def patient_planes(bodies: Sequence[Body]) -> PatientPlanes | None:
    """Planes of the row of bodies with end plates: `up` from the lowest to the highest of them, `left` the mean of theirs, square to it.

    None without such a body; with a single one its own axes are the planes.
    """
    good = [body for body in bodies if body.why_not is None]
    if not good:
        return None
    up = good[0].centre - good[-1].centre if len(good) > 1 else good[0].axes[0]
    up = up / np.linalg.norm(up)
    left = np.mean([body.axes[2] for body in good], axis=0)
    left = left - (left @ up) * up
    left = left / np.linalg.norm(left)
    return PatientPlanes(left, np.cross(up, left), up)
