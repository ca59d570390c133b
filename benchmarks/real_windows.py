"""Windows cut from real scans, and changes that must not matter, each from a fixed seed. Images are SimpleITK's.

Every function takes an image in LPS storage order with its points, and gives the changed image, the points in its world, which of
them lie in it, and the way back (4 x 4, from the new world to the scan's).
"""
from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from .real_cases import Point

FEWEST, MOST = 3, 12                # vertebrae of a window
SLAB_MM = (60.0, 120.0)
THICKEST_MM, THICKER = 5.0, 1.25    # slices up to the first, and at least so many times those of the scan
NOISE_HU = (20.0, 70.0)
TILT_DEGREES = (6.0, 18.0)
REFORMAT_MM = 3.0
SIDE_MARGIN_MM = 15.0               # a body nearer to a slab's side is not asked for
AIR = -1024


@dataclass(frozen=True)
class Made:
    """A case: `image`, `points` in its world, `inside` per point, `back` (4, 4) from its world to the scan's."""

    image: Any
    points: tuple[Point, ...]
    inside: tuple[bool, ...]
    back: np.ndarray = field(default_factory=lambda: np.eye(4))
    note: str = ""


def seeded(name: str) -> np.random.Generator:
    """Random numbers that depend on `name` alone."""
    return np.random.default_rng(zlib.crc32(name.encode()))


def make(image: Any, points: Sequence[Point] | None, kind: str, name: str) -> Made | None:
    """The case `name` of `kind` ('whole', or a key of WINDOWS or TRIVIAL); None where the scan does not allow it."""
    import SimpleITK as sitk

    whole = Made(image, tuple(points or ()), (True,) * len(points or ()))
    if kind == "whole":
        return whole
    whole = replace(whole, image=sitk.DICOMOrient(image, "LPS"))
    rng = seeded(name)
    if kind in TRIVIAL:
        return TRIVIAL[kind](whole, rng)
    if kind != "part" and rng.random() < 0.4:
        return WINDOWS[kind](whole, rng)
    part = cut_part(whole, rng)
    return part if kind == "part" or part is None else WINDOWS[kind](part, rng)


def indices(made: Made) -> np.ndarray:
    """Continuous indices (n, 3), order x, y, z, of the points."""
    rows = [made.image.TransformPhysicalPointToContinuousIndex(point.place) for point in made.points]
    return np.array(rows).reshape(-1, 3)


def crop(made: Made, axis: int, first: int, stop: int, margin_mm: float | np.ndarray) -> Made:
    """The image between two indices of an axis (0..2: x, y, z); points within `margin_mm` of the new ends are not asked for."""
    import SimpleITK as sitk

    size, start = list(made.image.GetSize()), [0, 0, 0]
    start[axis], size[axis] = first, stop - first
    place, spacing = indices(made)[:, axis], made.image.GetSpacing()[axis]
    inside = (place >= first - 0.5) & (place < stop - 0.5)
    room = np.minimum(place - (first - 0.5), stop - 0.5 - place) * spacing
    near = room < margin_mm
    cut_low, cut_high = first > 0, stop < made.image.GetSize()[axis]
    near &= np.where(place - first < stop - place, cut_low, cut_high)       # at an end that the scan has, too, nothing changed
    points = tuple(replace(point, required=point.required and not bool(n)) for point, n in zip(made.points, near, strict=True))
    return replace(made, image=sitk.RegionOfInterest(made.image, size, start), points=points,
                   inside=tuple(bool(a and b) for a, b in zip(inside, made.inside, strict=True)))


def cut_part(made: Made, rng: np.random.Generator) -> Made | None:
    """A part along the spine that holds 3 to 12 vertebrae, its ends anywhere in the bodies next to them.

    Where nothing is known: a part of 80 to 250 mm.
    """
    place, spacing, length = indices(made)[:, 2], made.image.GetSpacing()[2], made.image.GetSize()[2]
    asked = [i for i, point in enumerate(made.points) if point.required]
    if len(asked) <= FEWEST:
        if made.points:
            return None
        count = int(np.clip(rng.uniform(80, 250) / spacing, 1, length))
        first = int(rng.integers(0, length - count + 1))
        return crop(made, 2, first, first + count, 0.0)
    count = int(rng.integers(FEWEST, min(MOST, len(asked) - 1) + 1))
    top = asked[int(rng.integers(0, len(asked) - count + 1))]
    bottom = top + count - 1
    step = np.abs(np.diff(place))
    gaps = np.concatenate([step[:1], (step[:-1] + step[1:]) / 2, step[-1:]])          # of each vertebra to its neighbours
    high = place[top] + rng.uniform(0.5, 1.1) * gaps[top]
    low = place[bottom] - rng.uniform(0.5, 1.1) * gaps[bottom]
    first, stop = max(0, int(np.floor(low))), min(length, int(np.ceil(high)) + 1)
    return crop(made, 2, first, stop, 0.45 * gaps * spacing)


def slab(made: Made, rng: np.random.Generator) -> Made | None:
    """60 to 120 mm wide around the bodies: a sagittal slab, or (one in three) a coronal one that reaches farther behind them."""
    axis = 0 if rng.random() < 2 / 3 else 1
    place, spacing, length = indices(made)[:, axis], made.image.GetSpacing()[axis], made.image.GetSize()[axis]
    place = place[np.array(made.inside, dtype=bool)]
    if not len(place):
        return None
    wanted = rng.uniform(*SLAB_MM) / spacing
    middle = (place.min() + place.max()) / 2 + (rng.uniform(-10, 10) if axis == 0 else rng.uniform(0, 15)) / spacing
    first, stop = max(0, int(middle - wanted / 2)), min(length, int(middle + wanted / 2))
    if stop - first < 0.7 * wanted or stop - first > 0.9 * length:
        return None
    return replace(crop(made, axis, first, stop, SIDE_MARGIN_MM), note=f"{'xy'[axis]} {wanted * spacing:.0f} mm")


def thick(made: Made, rng: np.random.Generator) -> Made | None:
    """Slices averaged to at most 5 mm."""
    spacing = made.image.GetSpacing()[2]
    if THICKER * spacing > THICKEST_MM:
        return None
    wanted = float(rng.uniform(max(2.0, THICKER * spacing), THICKEST_MM))
    return replace(averaged(made, 2, wanted), note=f"{wanted:.1f} mm")


def averaged(made: Made, axis: int, wanted_mm: float) -> Made:
    """Slabs of `wanted_mm` along an axis (0..2: x, y, z), each the mean over its own thickness; the rest at the far end is dropped."""
    import SimpleITK as sitk

    image = made.image
    array = np.moveaxis(sitk.GetArrayFromImage(image), 2 - axis, 0).astype(np.float64)
    ratio = wanted_mm / image.GetSpacing()[axis]
    edges = np.arange(int(len(array) / ratio) + 1) * ratio
    total = np.concatenate([np.zeros((1, *array.shape[1:])), np.cumsum(array, axis=0)])
    whole = np.minimum(edges.astype(int), len(array) - 1)
    part = (edges - whole).reshape(-1, 1, 1)
    means = np.diff(total[whole] + part * array[whole], axis=0) / ratio
    return replace(made, image=_image_like(image, np.moveaxis(means, 0, 2 - axis), axis, wanted_mm, (ratio - 1) / 2))


def _image_like(image: Any, array: np.ndarray, axis: int, spacing_mm: float, first_index: float) -> Any:
    import SimpleITK as sitk

    result = sitk.GetImageFromArray(np.rint(array).astype(np.int16))
    spacing, first = list(image.GetSpacing()), [0.0, 0.0, 0.0]
    spacing[axis], first[axis] = spacing_mm, first_index
    result.SetSpacing(spacing)
    result.SetDirection(image.GetDirection())
    result.SetOrigin(image.TransformContinuousIndexToPhysicalPoint(first))
    return result


def noise(made: Made, rng: np.random.Generator) -> Made:
    """Gaussian noise of 20 to 70 HU."""
    import SimpleITK as sitk

    array, sigma = sitk.GetArrayFromImage(made.image).astype(np.float32), float(rng.uniform(*NOISE_HU))
    noisy = np.clip(array + rng.normal(0, sigma, array.shape), -1024, 3071)
    result = sitk.GetImageFromArray(np.rint(noisy).astype(np.int16))
    result.CopyInformation(made.image)
    return replace(made, image=result, note=f"{sigma:.0f} HU")


def mirrored(made: Made, rng: np.random.Generator) -> Made:
    """Left and right changed: the anatomy of a mirror, on the same grid."""
    import SimpleITK as sitk

    image = made.image
    middle = np.array(image.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in image.GetSize()]))
    normal = np.array(image.GetDirection()).reshape(3, 3)[:, 0]
    forward = np.eye(4)
    forward[:3, :3] -= 2 * np.outer(normal, normal)
    forward[:3, 3] = 2 * normal * (normal @ middle)
    result = sitk.GetImageFromArray(np.ascontiguousarray(sitk.GetArrayFromImage(image)[:, :, ::-1]))
    result.CopyInformation(image)
    return moved(made, result, forward)


def moved(made: Made, image: Any, forward: np.ndarray) -> Made:
    """The case with its points moved by `forward` (4, 4)."""
    places = [(forward @ [*p.place, 1.0])[:3] for p in made.points]
    points = tuple(replace(p, place=(float(x), float(y), float(z))) for p, (x, y, z) in zip(made.points, places, strict=True))
    return replace(made, image=image, points=points, back=made.back @ np.linalg.inv(forward))


def oblique(made: Made, rng: np.random.Generator) -> Made:
    """The same patient on a grid tilted by 6 to 18 degrees, as a tilted gantry or an oblique reformat stores it."""
    import SimpleITK as sitk

    image = made.image
    angle, axis = np.deg2rad(rng.uniform(*TILT_DEGREES)) * rng.choice([-1, 1]), int(rng.integers(0, 2))
    a, b = [i for i in range(3) if i != axis]
    turn = np.eye(3)
    turn[a, a] = turn[b, b] = np.cos(angle)
    turn[a, b], turn[b, a] = -np.sin(angle), np.sin(angle)
    direction = np.array(image.GetDirection()).reshape(3, 3) @ turn
    middle = np.array(image.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in image.GetSize()]))
    half = (np.array(image.GetSize()) - 1) / 2 * np.array(image.GetSpacing())
    result = sitk.Resample(image, image.GetSize(), sitk.Transform(), sitk.sitkLinear, (middle - direction @ half).tolist(),
                           image.GetSpacing(), direction.ravel().tolist(), AIR, sitk.sitkInt16)
    made = replace(made, image=result, note=f"{np.rad2deg(angle):.0f} degrees about {'xy'[axis]}")
    room = np.minimum(indices(made), np.array(result.GetSize()) - 1 - indices(made)) * np.array(result.GetSpacing())
    return replace(made, points=tuple(replace(p, required=p.required and bool((r > [SIDE_MARGIN_MM, SIDE_MARGIN_MM, 10.0]).all()))
                                      for p, r in zip(made.points, room, strict=True)),
                   inside=tuple(bool(i and (r > 0).all()) for i, r in zip(made.inside, room, strict=True)))


def reformatted(made: Made, rng: np.random.Generator) -> Made | None:
    """3 mm sagittal or coronal slices, stored as such a series is."""
    import SimpleITK as sitk

    axis = int(rng.integers(0, 2))
    if THICKER * made.image.GetSpacing()[axis] > REFORMAT_MM:
        return None
    changed = averaged(made, axis, REFORMAT_MM)
    order = [1, 2, 0] if axis == 0 else [0, 2, 1]
    return replace(changed, image=sitk.PermuteAxes(changed.image, order), note="sagittal" if axis == 0 else "coronal")


def air(top: bool) -> Callable[[Made, np.random.Generator], Made]:
    """One slice of air more at the upper or lower end."""
    def add(made: Made, rng: np.random.Generator) -> Made:
        import SimpleITK as sitk

        return replace(made, image=sitk.ConstantPad(made.image, [0, 0, 0 if top else 1], [0, 0, 1 if top else 0], AIR))
    return add


def one_voxel(made: Made, rng: np.random.Generator) -> Made:
    """One voxel less at one of the sides, front or back."""
    axis, low = int(rng.integers(0, 2)), int(rng.integers(0, 2))
    return crop(made, axis, low, made.image.GetSize()[axis] - 1 + low, 0.0)


def reversed_slices(made: Made, rng: np.random.Generator) -> Made:
    """The slices stored from the other end, the header saying so."""
    import SimpleITK as sitk

    return replace(made, image=sitk.Flip(made.image, [False, False, True]))


def turned_axes(made: Made, rng: np.random.Generator) -> Made:
    """Axes stored in another order and direction, the header saying so."""
    import SimpleITK as sitk

    return replace(made, image=sitk.DICOMOrient(made.image, ["PIR", "RSP", "ASL", "SAR"][int(rng.integers(0, 4))]))


def shifted(made: Made, rng: np.random.Generator) -> Made:
    """The origin of the header moved."""
    import SimpleITK as sitk

    forward = np.eye(4)
    forward[:3, 3] = rng.uniform(-500, 500, 3)
    image = sitk.Image(made.image)
    image.SetOrigin((np.array(image.GetOrigin()) + forward[:3, 3]).tolist())
    return moved(made, image, forward)


WINDOWS: dict[str, Callable[[Made, np.random.Generator], Made | None]] = {
    "part": cut_part, "slab": slab, "thick": thick, "noise": noise, "mirrored": mirrored, "oblique": oblique,
    "reformatted": reformatted}
TRIVIAL: dict[str, Callable[[Made, np.random.Generator], Made | None]] = {
    "air above": air(True), "air below": air(False), "one voxel": one_voxel, "reversed slices": reversed_slices,
    "turned axes": turned_axes, "shifted header": shifted}
