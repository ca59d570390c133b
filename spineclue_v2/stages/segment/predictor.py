"""Inference of stage 2: crops in batches, ownership of contested voxels settled jointly, one connected body per vertebra."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from ...anatomy.morphology import body_centre, component_at, fill_holes, largest_component
from ...anatomy.vertebra import Vertebra, on_the_masks_side
from ...imageio.volume import Volume
from ...plans.plans import StagePlan
from ...preprocessing.crops import crop_start
from ...training.device import items_at_once
from ...utilities.triples import Floats3, float_triple, int_triple
from ..engine import engine_of
from .crops import crop_channels
from .fences import Fence, fence_in, fences_of, hand_over, shows_centre

if TYPE_CHECKING:
    import torch

OWN_FRACTION = 0.5    # whose neighbours own more than the rest of its mask is no vertebra of its own,
CONTESTED_DICE, SPLINTER = 0.2, 0.4   # nor is what is this small beside a mask it shares so much with
COVERED, PART = 0.8, 0.3   # a mask that two others, apart from one another, cover so far, each with so much of it, holds two vertebrae
LOOKS = 3          # a vertebra found in a gap may show the next gap
BELIEVED_MM = 4.0  # a mask's body lies no farther from the centre that is known
PROMPTS_MM = (0.0, 4.0)   # where a known centre is asked for again when the network showed a neighbour instead
RECENTRE_MM = 6.0  # a mask whose middle lies farther from the crop's middle is segmented again around its own middle


def segment(volume: Volume, vertebrae: Sequence[Vertebra], networks: list[torch.nn.Module], plan: StagePlan, device: torch.device,
            mirror: bool = False, missed: Callable[[list[Vertebra], list[Vertebra]], list[Vertebra]] | None = None) -> list[Vertebra]:
    """Vertebrae with mask, centroids, volume and border flag, cranio-caudal as given; those without a plausible mask are dropped.

    Args:
        volume: int16 HU in the stage's network space. Only the crops' probabilities exist, never a full-size map per vertebra.
        missed: gives further candidates, from what was found and from those it gave before; they are looked at, too, and all settled
            together, until there are none or nothing more is found.
    """
    if not vertebrae:
        return []
    look = partial(_look, volume, networks=networks, plan=plan, device=device, mirror=mirror)
    size, fences = plan.network.crop_size, fences_of(vertebrae, volume.geometry)
    raw, centres = look(vertebrae, fences)
    probabilities, starts = _fenced(raw, centres, fences, size)
    found = _settle(vertebrae, probabilities, starts, volume, plan)
    for shift in PROMPTS_MM:
        lost = [i for i, v in enumerate(vertebrae) if v.centre_score is not None and i not in found]
        if not lost:
            break
        vertebrae = [_prompted(v, shift) if i in lost else v for i, v in enumerate(vertebrae)]
        for i, crop, centre in zip(lost, *look([vertebrae[i] for i in lost], [fences[i] for i in lost]), strict=True):
            raw[i], centres[i] = crop, centre
        probabilities, starts = _fenced(raw, centres, fences, size)
        found = _settle(vertebrae, probabilities, starts, volume, plan)
    tried: list[Vertebra] = []
    for _ in range(LOOKS):
        more = [] if missed is None else missed(list(found.values()), tried)
        if not more:
            break
        own, (further, further_centres) = list(found), look(more, [[] for _ in more])
        further_starts = np.array([crop_start(c, size) for c in further_centres])
        vertebrae, before, tried = [*(vertebrae[i] for i in own), *more], len(own), tried + more
        probabilities, starts = [*(probabilities[i] for i in own), *further], np.concatenate([starts[own], further_starts])
        found = _settle(vertebrae, probabilities, starts, volume, plan)
        if len(found) <= before:
            break
    return list(found.values())


def _prompted(vertebra: Vertebra, shift: float) -> Vertebra:
    """The vertebra with its heat map `shift` mm above where its box's middle would lie from its body's centre, half as far behind it."""
    body, box = np.array(vertebra.known_body_centre), np.array(vertebra.box_centre)
    return replace(vertebra, box_centre=float_triple(body + (box - body) * (0.0, 0.5, 0.0) + (0.0, 0.0, shift)))


def _look(volume: Volume, vertebrae: Sequence[Vertebra], fences: Sequence[Sequence[Fence]], networks: list[torch.nn.Module],
          plan: StagePlan, device: torch.device, mirror: bool) -> tuple[list[np.ndarray], np.ndarray]:
    """Foreground probability (z, y, x) of each vertebra's crop, and the crops' middles (n, 3) index; crops far off their mask are moved."""
    size = plan.network.crop_size
    centres = volume.geometry.world_to_index(np.array([v.box_centre for v in vertebrae]))
    raw = _probabilities(volume, centres, networks, plan, device, mirror)
    moved = _find_better_centres(centres, _fenced(raw, centres, fences, size)[0], size, plan.data.spacing_mm)
    again = np.flatnonzero(np.abs(moved - centres).max(1) > 0).tolist()
    if again:
        for i, crop in zip(again, _probabilities(volume, moved[again], networks, plan, device, mirror), strict=True):
            if _shows_no_less(crop, moved[i], raw[i], centres[i], fences[i], size):
                raw[i], centres[i] = crop, moved[i]
    return raw, centres


def _shows_no_less(crop: np.ndarray, centre: np.ndarray, before: np.ndarray, old_centre: np.ndarray, fences: Sequence[Fence],
                   size: tuple[int, ...]) -> bool:
    """Whether a crop that was moved onto its mask still shows the centre that is known, as it did before."""
    if not fences:
        return True
    own = fences[0].own
    return shows_centre(crop, crop_start(centre, size), own) or not shows_centre(before, crop_start(old_centre, size), own)


def _fenced(raw: Sequence[np.ndarray], centres: np.ndarray, fences: Sequence[Sequence[Fence]], size: tuple[int, ...]
            ) -> tuple[list[np.ndarray], np.ndarray]:
    """The crops with each body where its centre is known to be, and where they start (n, 3); the same arrays where no centre is known."""
    starts = np.array([crop_start(centre, size) for centre in centres])
    if not any(fences):
        return list(raw), starts
    fenced = [crop.copy() for crop in raw]
    hand_over(fenced, starts, fences)
    for crop, start, own in zip(fenced, starts, fences, strict=True):
        fence_in(crop, start, own)
    return fenced, starts


def _settle(vertebrae: Sequence[Vertebra], probabilities: list[np.ndarray], starts: np.ndarray, volume: Volume, plan: StagePlan
             ) -> dict[int, Vertebra]:
    """Finished vertebrae by their place in `vertebrae`, without those that repeat others or have no plausible mask."""
    shared = _shared_voxels(probabilities, starts)
    whole, scores = shared.diagonal(), [v.score for v in vertebrae]
    dice = 2 * shared / np.maximum(1, whole[:, None] + whole[None])
    sure = [i for i, v in enumerate(vertebrae) if v.centre_score is not None and shows_centre(
        probabilities[i], starts[i], volume.geometry.world_to_index(np.array(v.known_body_centre)))]   # each has a body of its own
    kept = sorted({*_drop_duplicates(dice, scores, plan.run.overlap_dice, _drop_merged_masks(shared, dice, scores)), *sure})
    while True:
        masks = resolve_ownership([probabilities[i] for i in kept], starts[kept])
        rest = _find_crop_without_vertebra(kept, dice, whole, [int(mask.sum()) for mask in masks], sure)
        if rest is None:
            break
        kept.remove(rest)
    return {i: finished for i, mask in zip(kept, masks, strict=True)
            if (finished := _finish(vertebrae[i], mask, probabilities[i], starts[i], volume, plan)) is not None}


def _probabilities(volume: Volume, centres: np.ndarray, networks: list[torch.nn.Module], plan: StagePlan, device: torch.device,
                   mirror: bool) -> list[np.ndarray]:
    """Foreground probability (z, y, x) float16 per crop, averaged over the folds (and left-right mirror images)."""
    data, sigma = plan.data, plan.network.heatmap_sigma_mm / plan.data.spacing_mm
    engines = [engine_of(network, f"{__package__}.network:foreground", device) for network in networks]
    at_once, result = items_at_once(plan.run.inference_batch, device), list[np.ndarray]()
    for first in range(0, len(centres), at_once):
        crops = np.stack([crop_channels(volume.array, c, plan.network.crop_size, data.windows_hu, data.hu_min, sigma)
                          for c in centres[first:first + at_once]])
        views = [engine(crops) for engine in engines]
        if mirror:
            views += [engine(crops[..., ::-1])[..., ::-1] for engine in engines]
        result += list((sum(views) / len(views)).astype(np.float16))
    return result


def _find_better_centres(centres: np.ndarray, probabilities: list[np.ndarray], size: tuple[int, ...], spacing: float) -> np.ndarray:
    """Middle of each mask's bounding box where it lies far from the located centre, else the located centre."""
    moved = centres.copy()
    for i, crop in enumerate(probabilities):
        mask = largest_component(crop > 0.5)
        if mask.any():
            inside = np.argwhere(mask)
            middle = (inside.min(0) + inside.max(0)) / 2 + crop_start(centres[i], size)
            if np.linalg.norm(middle - centres[i]) * spacing > RECENTRE_MM:
                moved[i] = middle
    return moved


def _overlap(start_a: np.ndarray, start_b: np.ndarray, shape: tuple[int, ...]) -> tuple[tuple[slice, ...], tuple[slice, ...]] | None:
    """Slices of the shared box inside crop a and crop b (equal shapes), None when they do not meet."""
    low = np.maximum(start_a, start_b)
    high = np.minimum(start_a, start_b) + np.array(shape)
    if (high <= low).any():
        return None
    return (tuple(slice(int(p - s), int(q - s)) for p, q, s in zip(low, high, start_a, strict=True)),
            tuple(slice(int(p - s), int(q - s)) for p, q, s in zip(low, high, start_b, strict=True)))


def _shared_voxels(probabilities: list[np.ndarray], starts: np.ndarray) -> np.ndarray:
    """(n, n) voxels that the masks of two crops share; the diagonal holds their sizes."""
    masks = [p > 0.5 for p in probabilities]
    shared = np.diag([int(m.sum()) for m in masks])
    for i in range(len(masks)):
        for j in range(i):
            boxes = _overlap(starts[i], starts[j], masks[i].shape)
            if boxes is not None:
                shared[i, j] = shared[j, i] = int((masks[i][boxes[0]] & masks[j][boxes[1]]).sum())
    return shared


def _drop_merged_masks(shared: np.ndarray, dice: np.ndarray, scores: list[float]) -> list[int]:
    """Indices to keep: a crop whose centre lies between two vertebrae may hold both in one mask; where each has a crop of its own by now,
    it goes. One of the three must be a candidate (score 0), which stands for the room that the row has."""
    share = shared / np.maximum(1, shared.diagonal())[:, None]

    def holds_two(i: int) -> bool:
        parts = [j for j in np.flatnonzero(share[i] >= PART) if j != i]
        return any(dice[j, k] < CONTESTED_DICE and share[i, j] + share[i, k] >= COVERED and min(scores[i], scores[j], scores[k]) <= 0
                   for n, j in enumerate(parts) for k in parts[:n])

    return [i for i in range(len(scores)) if not holds_two(i)]


def _drop_duplicates(dice: np.ndarray, scores: list[float], limit: float, among: list[int]) -> list[int]:
    """Indices to keep of `among`: of two crops whose masks overlap by more than `limit` Dice, the one with the lower score goes."""
    kept: list[int] = []
    for i in sorted(among, key=lambda k: -scores[k]):
        if all(dice[i, j] <= limit for j in kept):
            kept.append(i)
    return sorted(kept)


def _find_crop_without_vertebra(kept: list[int], dice: np.ndarray, whole: np.ndarray, owned: list[int], sure: Sequence[int] = ()
                                ) -> int | None:
    """The crop of `kept` that holds least of its own: neighbours own most of its mask (`whole`, voxels), or what it owns (`owned`, in
    the order of `kept`) is a splinter of a mask that it shares. None where each holds a vertebra, as those of `sure` do."""
    share = {i: own / max(1, whole[i]) for i, own in zip(kept, owned, strict=True)}
    size = dict(zip(kept, owned, strict=True))
    for i in kept:
        others = [size[j] for j in kept if dice[i, j] > CONTESTED_DICE]
        if others and size[i] < SPLINTER * max(others):
            share[i] = 0.0
    least = min((i for i in kept if i not in sure), key=lambda i: share[i], default=None)
    return least if least is not None and share[least] < OWN_FRACTION else None


def resolve_ownership(probabilities: list[np.ndarray], starts: np.ndarray) -> list[np.ndarray]:
    """Boolean masks: where two vertebrae claim a voxel, the higher probability has it (ties: the one whose crop starts higher up).

    All pairs are compared on the untouched probabilities, so the result does not depend on their order.
    """
    masks = [p > 0.5 for p in probabilities]
    for i in range(len(masks)):
        for j in range(i + 1, len(masks)):
            boxes = _overlap(starts[i], starts[j], masks[i].shape)
            if boxes is None:
                continue
            first, second = probabilities[i][boxes[0]], probabilities[j][boxes[1]]
            wins = first >= second if tuple(starts[i]) >= tuple(starts[j]) else first > second
            masks[i][boxes[0]] &= wins
            masks[j][boxes[1]] &= ~wins
    return masks


def _finish(vertebra: Vertebra, mask: np.ndarray, probability: np.ndarray, start: np.ndarray, volume: Volume,
            plan: StagePlan) -> Vertebra | None:
    """Tight mask with its measures, or None when it is empty or smaller than the plan's smallest vertebra."""
    shape = np.array(volume.array.shape)
    low, high = np.maximum(start, 0), np.minimum(start + np.array(mask.shape), shape)
    if (high <= low).any():
        return None
    inner = tuple(slice(int(a - s), int(b - s)) for a, b, s in zip(low, high, start, strict=True))
    mask, probability = mask[inner], probability[inner]
    own = None if vertebra.centre_score is None else volume.geometry.world_to_index(np.array(vertebra.known_body_centre)) - low
    mask = fill_holes(largest_component(mask) if own is None else component_at(mask, own, BELIEVED_MM / plan.data.spacing_mm))
    spacing = plan.data.spacing_mm
    volume_ml = float(mask.sum()) * spacing ** 3 / 1000
    if volume_ml < plan.run.min_volume_ml:
        return None
    inside = np.argwhere(mask)
    first, last = inside.min(0), inside.max(0)
    tight = tuple(slice(int(a), int(b) + 1) for a, b in zip(first, last, strict=True))
    mask = mask[tight]
    origin = low + first
    touches = bool(((origin == 0) | (origin + np.array(mask.shape) == shape)).any())
    to_world = volume.geometry.index_to_world
    return replace(vertebra, mask=np.ascontiguousarray(mask), mask_probability=on_the_masks_side(probability[tight], mask),
                   mask_start=int_triple(origin), mask_centroid=float_triple(to_world(inside.mean(0) + low)),
                   body_centre=_believed(vertebra, to_world(np.asarray(body_centre(mask, (spacing,) * 3)) + origin)),
                   volume_ml=volume_ml, touches_border=touches, extent=float_triple(n * spacing for n in mask.shape))


def _believed(vertebra: Vertebra, in_mask: np.ndarray) -> Floats3:
    """The middle of the body in the mask (LPS mm), or the heat map's where the two are far apart: then the mask holds less or more."""
    known = vertebra.body_centre if vertebra.centre_score is not None else None
    return float_triple(in_mask if known is None or np.linalg.norm(in_mask - known) <= BELIEVED_MM else known)
