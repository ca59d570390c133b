"""Shapes of single vertebra masks: body against arch, islands, holes. Masks are bool (z, y, x), LPS (y = posterior)."""
from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..utilities.triples import float_triple


def largest_component(mask: np.ndarray) -> np.ndarray:
    """The largest 26-connected component of a bool mask, as bool of the same shape."""
    import cc3d

    if not mask.any():
        return mask.astype(bool)
    return cc3d.largest_k(np.ascontiguousarray(mask, dtype=np.uint8), k=1, connectivity=26).astype(bool)


def component_at(mask: np.ndarray, place: np.ndarray, reach: float) -> np.ndarray:
    """The 26-connected component of a bool mask that comes nearest to `place` (z, y, x) index; the largest one where none comes within
    `reach` voxels."""
    import cc3d

    labels = cc3d.connected_components(np.ascontiguousarray(mask, dtype=np.uint8), connectivity=26)
    inside = np.argwhere(labels)
    distance = np.linalg.norm(inside - place, axis=1)
    if not len(inside) or distance.min() > reach:
        return largest_component(mask)
    nearest: np.ndarray = labels == labels[tuple(inside[int(distance.argmin())])]
    return nearest


def fill_holes(mask: np.ndarray) -> np.ndarray:
    """The mask with every cavity filled that does not reach the array's border (6-connected background)."""
    import cc3d

    outside = cc3d.connected_components(np.pad(~mask.astype(bool), 1, constant_values=True).astype(np.uint8), connectivity=6)
    return (outside != outside[0, 0, 0])[1:-1, 1:-1, 1:-1]


def body_centre(mask: np.ndarray, spacing_mm: Sequence[float] | np.ndarray) -> tuple[float, float, float]:
    """Centre (z, y, x) index of the vertebral body, the part in front of the spinal canal.

    The body is the thickest part near the midline and the front: its core is found in the distance transform, weighted
    against articular masses (as thick as a cervical body, but lateral), and grown back by the same depth. C1 has no
    body; its anterior arch and the front of its lateral masses answer. An empty mask is a ValueError.
    """
    from scipy.ndimage import distance_transform_edt

    if not mask.any():
        raise ValueError("an empty mask has no body centre")
    spacing = np.asarray(spacing_mm, dtype=float)
    padded = np.pad(mask.astype(bool), 1)
    depth = distance_transform_edt(padded, sampling=spacing)
    points = np.argwhere(padded)
    weights = _prior(points * spacing)
    score = depth[tuple(points.T)] * weights
    seed = points[int(np.argmax(score))]
    core = _component_with(depth > 0.6 * depth[tuple(seed)], seed)
    grown = distance_transform_edt(~core, sampling=spacing) <= 0.6 * depth[tuple(seed)]
    return float_triple(np.argwhere(grown & padded).mean(0) - 1)


def _prior(points_mm: np.ndarray) -> np.ndarray:
    """Weight 0..1 of each point: high near the midline and in the front half of the vertebra."""
    middle = points_mm[:, 2].mean()
    half_width = max(1e-6, np.percentile(np.abs(points_mm[:, 2] - middle), 98))
    front, back = np.percentile(points_mm[:, 1], (1, 99))
    lateral = np.abs(points_mm[:, 2] - middle) / half_width
    behind = np.clip((points_mm[:, 1] - front) / max(1e-6, back - front), 0, 1)
    return np.exp(-0.5 * (lateral / 0.35) ** 2) * np.exp(-0.5 * (np.maximum(0, behind - 0.25) / 0.25) ** 2)


def _component_with(mask: np.ndarray, point: np.ndarray) -> np.ndarray:
    import cc3d

    components = cc3d.connected_components(mask.astype(np.uint8), connectivity=26)
    return components == components[tuple(point)]
