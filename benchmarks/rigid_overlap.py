"""Solids as signed distances, and the Dice of two of them after rigid alignment: phantom vertebrae, real masks, meshes."""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

STEPS = 60
OPTIMISED_POINTS = 4000


@dataclass(frozen=True)
class Solid:
    """A vertebra: `points` (n, 3) x, y, z mm of its voxels in its own LPS-like frame, `field` (z, y, x) signed mm on a grid with
    index (z, y, x) = matrix @ point + offset, `volume` cm3."""

    name: str
    points: Tensor
    field: Tensor
    matrix: np.ndarray
    offset: np.ndarray
    volume: float

    @property
    def centroid(self) -> Tensor:
        return self.points.mean(0)


def solid(name: str, field: Tensor, spacing: float, frame: np.ndarray | None = None, centre: np.ndarray | None = None) -> Solid:
    """From a signed distance on a cubic grid (index * spacing = world, x, y, z mm). Frame (columns = axes) and centre of the local
    coordinates in that world; by default the world's axes and the solid's centroid."""
    index = torch.nonzero(field < 0).numpy()
    world = index[:, ::-1] * spacing
    frame = np.eye(3) if frame is None else frame
    centre = world.mean(0) if centre is None else centre
    local = (world - centre) @ frame
    flip = np.eye(3)[::-1] / spacing
    volume = len(index) * spacing**3 / 1000
    return Solid(name, torch.from_numpy(local.copy()).float(), field, flip @ frame, flip @ centre, volume)


def rigid_dice(moving: Solid, fixed: Solid, pitches: Sequence[float] = (0.0,), scale: float = 1.0) -> float:
    """Best Dice over turns and shifts of `moving` (grown by `scale`), from starts nodded by `pitches` degrees with equal centroids."""
    points = moving.points * scale
    rng = torch.Generator().manual_seed(0)
    chosen = points[torch.randperm(len(points), generator=rng)[:OPTIMISED_POINTS]]
    best = None
    for pitch in pitches:
        start = torch.tensor([float(np.radians(pitch)), 0.0, 0.0])
        turn, shift, value = _align(chosen, fixed, start, None, STEPS if len(pitches) == 1 else STEPS // 3)
        if best is None or value > best[2]:
            best = turn, shift, value
    if len(pitches) > 1:
        best = _align(chosen, fixed, best[0], best[1], STEPS)
    with torch.no_grad():
        inside = float((_look_up(fixed, points, *best[:2]) < 0).float().mean())
    volume = moving.volume * scale**3
    return 2 * inside * volume / (volume + fixed.volume)


def _align(points: Tensor, fixed: Solid, turn: Tensor, shift: Tensor | None, steps: int) -> tuple[Tensor, Tensor, float]:
    turn = turn.clone().requires_grad_()
    if shift is None:
        shift = fixed.centroid - _rotation(turn.detach()) @ points.mean(0)
    shift = shift.clone().requires_grad_()
    optimiser = torch.optim.Adam([{"params": [turn], "lr": 0.03}, {"params": [shift], "lr": 0.6}])
    for step in range(steps):
        for group, rate in zip(optimiser.param_groups, (0.03, 0.6), strict=True):
            group["lr"] = rate * (1 - 0.9 * step / steps)
        softness = 2.0 - 1.4 * step / steps
        value = torch.sigmoid(-_look_up(fixed, points, turn, shift) / softness).mean()
        optimiser.zero_grad()
        (-value).backward()
        optimiser.step()
    return turn.detach(), shift.detach(), float(value.detach())


def _rotation(vector: Tensor) -> Tensor:
    """Rotation matrix of an axis-angle vector (3,)."""
    zero = vector.new_zeros(())
    x, y, z = vector
    return torch.linalg.matrix_exp(torch.stack([zero, -z, y, z, zero, -x, -y, x, zero]).view(3, 3))


def _look_up(fixed: Solid, points: Tensor, turn: Tensor, shift: Tensor) -> Tensor:
    """Signed distance of `fixed` at moved points (n,)."""
    moved = points @ _rotation(turn).T + shift
    index = moved @ torch.from_numpy(fixed.matrix).float().T + torch.from_numpy(fixed.offset).float()
    size = torch.tensor(fixed.field.shape) - 1.0
    grid = (index / size * 2 - 1).flip(-1).view(1, 1, 1, -1, 3)
    return functional.grid_sample(fixed.field[None, None], grid, align_corners=True, padding_mode="border").flatten()


def signed_distance(mask: np.ndarray, spacing: Sequence[float], step: float) -> Tensor:
    """Mask (z, y, x) -> signed distance in mm on a cubic grid of `step` mm."""
    from scipy.ndimage import distance_transform_edt, zoom

    padded = np.pad(mask, 6)
    inner, outer = (distance_transform_edt(m, sampling=spacing) for m in (padded, ~padded))
    # half a voxel on either side: the surface runs between voxel centres
    half = 0.5 * float(np.mean(spacing))
    distance = np.where(padded, half - inner, outer - half)
    return torch.from_numpy(zoom(distance, np.asarray(spacing) / step, order=1, grid_mode=True, mode="nearest")).float()


def real_masks(folder: Path, step: float = 1.0) -> dict[str, dict[str, Solid]]:
    """{case: {level: Solid}} of VerSe masks `*_msk.nii.gz`, without vertebrae that the border cuts."""
    from spineclue_v2.anatomy import NAME_OF_LABEL
    from spineclue_v2.imageio.volume import read_labels

    cases: dict[str, dict[str, Solid]] = {}
    for path in sorted(Path(folder).glob("*_msk.nii.gz")):
        volume = read_labels(path).reoriented("LPS")
        spacing, labels = volume.geometry.spacing, volume.array
        case = cases.setdefault(path.name.split("_")[0].removeprefix("sub-"), {})
        for label in np.unique(labels)[1:]:
            index = np.argwhere(labels == label)
            low, high = index.min(0), index.max(0) + 1
            if ((index == 0) | (index == np.array(labels.shape) - 1)).any(1).mean() > 0.015:
                continue
            box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
            name = NAME_OF_LABEL[int(label)]
            case[name] = solid(name, signed_distance(labels[box] == label, spacing, step), step)
    return cases


def mean_lumbar(folder: Path, step: float = 1.0) -> dict[str, Solid]:
    """L2..L5 of the morphable lumbar model's mean surface (mm; its axes run anterior, left, cranial)."""
    vertices = np.loadtxt(Path(folder) / "SSM_meanMesh_vertices.csv", delimiter=",") @ np.array([[0, -1, 0], [1, 0, 0], [0, 0, 1.0]])
    faces = np.loadtxt(Path(folder) / "SSM_meanMesh_faces.csv", delimiter=",").astype(int) - 1
    return {name: solid(name, field, step) for name, field in zip(("L2", "L3", "L4", "L5"), _surfaces(vertices, faces, step), strict=True)}


def _surfaces(vertices: np.ndarray, faces: np.ndarray, step: float) -> Iterator[Tensor]:
    """Signed distances of the closed parts of a mesh, from the highest down."""
    from scipy.ndimage import binary_fill_holes, distance_transform_edt, zoom
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    a, b = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]]]).T
    count, part = connected_components(coo_matrix((np.ones(len(a)), (a, b)), shape=(len(vertices),) * 2), directed=False)
    fine = 0.5
    parts = [np.flatnonzero(part == k) for k in range(count)]
    parts = sorted((p for p in parts if len(p) > 2000), key=lambda p: -vertices[p, 2].mean())
    for member in parts:
        own = vertices[faces[np.isin(faces[:, 0], member)]]  # (f, 3, 3)
        weights = np.array([(i, j, 6 - i - j) for i in range(7) for j in range(7 - i)]) / 6
        dense = np.einsum("wk,fkc->fwc", weights, own).reshape(-1, 3)[:, ::-1]
        low = dense.min(0) - 6
        index = np.rint((dense - low) / fine).astype(int)
        shell = np.zeros(index.max(0) + 13, bool)
        shell[tuple(index.T)] = True
        inner = binary_fill_holes(shell) & ~shell
        distance = distance_transform_edt(~shell) * fine
        yield torch.from_numpy(zoom(np.where(inner, -distance, distance), fine / step, order=1, grid_mode=True, mode="nearest")).float()
