"""Closed outlines of a 2D mask that give back exactly that mask when they are filled."""
from __future__ import annotations

import numpy as np


def outlines(mask: np.ndarray) -> list[np.ndarray]:
    """Polygons (n, 2) in (row, column) pixel coordinates, one per region of a mask (rows, columns).

    Vertices lie halfway between a pixel of the mask and one outside, so a pixel's centre is inside a polygon exactly where the pixel is in
    the mask. Pixels that touch at a corner alone belong to different regions. Holes are reached through a channel of no width.
    """
    from skimage.measure import find_contours, points_in_poly

    padded = np.pad(mask, 1).astype(np.uint8)
    rings = [ring[:-1] - 1 for ring in find_contours(padded, 0.5, fully_connected="low", positive_orientation="low")]
    # Rings run anticlockwise in the image around what is low: outer ones have a negative area, holes a positive one.
    outer, holes = [ring for ring in rings if _area(ring) < 0], [ring for ring in rings if _area(ring) > 0]
    owner = [min((i for i, ring in enumerate(outer) if points_in_poly(hole[:1], ring)[0]), key=lambda i: abs(_area(outer[i])))
             for hole in holes]
    regions = []
    for number, ring in enumerate(outer):
        for hole, own in zip(holes, owner, strict=True):
            if own == number:
                ring = _joined(ring, hole)
        regions.append(ring)
    return regions


def _area(ring: np.ndarray) -> float:
    """Signed area (shoelace formula)."""
    rows, columns = ring[:, 0], ring[:, 1]
    return 0.5 * float(np.sum(rows * np.roll(columns, -1) - columns * np.roll(rows, -1)))


def _joined(ring: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """One polygon that runs around `ring`, at its nearest vertex across to `hole`, around it and back."""
    squared = ((ring[:, None] - hole[None]) ** 2).sum(axis=-1)
    i, j = np.unravel_index(int(np.argmin(squared)), squared.shape)
    around = np.concatenate([hole[j:], hole[:j + 1]])
    return np.concatenate([ring[:i + 1], around, ring[i:]])
