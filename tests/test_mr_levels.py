"""MR: how sure levels are, and what discs measure."""
from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from spineclue_v2.imageio.volume import ImageGrid, Volume
from spineclue_v2.stages.mr.discs import measure_discs
from spineclue_v2.stages.mr.level_assignment import LevelAssignment
from spineclue_v2.stages.mr.mr_flags import flags_of
from spineclue_v2.stages.mr.path_marginals import level_marginals


def by_enumeration(votes: np.ndarray, variants: list[bool], jumps: list[float], drops: list[float]) -> np.ndarray:
    """Marginals by listing every path: which bodies have a level, and which levels those are."""
    count, levels = votes.shape
    total, found = 0.0, np.zeros((count, levels))
    for used in range(min(count, levels) + 1):
        for bodies in combinations(range(count), used):
            for given in combinations(range(levels), used):
                score = -sum(drop for k, drop in enumerate(drops) if k not in bodies)
                for place, (k, j) in enumerate(zip(bodies, given, strict=True)):
                    between = given[place - 1] + 1 if place else j
                    score += votes[k, j] - jumps[k] * sum(not variants[i] for i in range(between, j))
                total += np.exp(score)
                for k, j in zip(bodies, given, strict=True):
                    found[k, j] += np.exp(score)
    return found / total


@pytest.mark.parametrize("seed", range(4))
def test_marginals_are_those_of_all_paths(seed: int) -> None:
    rng = np.random.default_rng(seed)
    votes, variants = rng.normal(0, 2, (4, 5)), [False, True, False, False, False]
    jumps, drops = rng.uniform(0, 4, 4).tolist(), rng.uniform(0, 4, 4).tolist()
    expected = by_enumeration(votes, variants, jumps, drops)
    assert level_marginals(votes, variants, jumps, drops, temperature=1.0) == pytest.approx(expected, abs=1e-9)


def test_a_higher_temperature_is_less_sure() -> None:
    votes = np.log(np.array([[0.9, 0.05, 0.05], [0.05, 0.9, 0.05]]))
    cold, warm = (level_marginals(votes, [False] * 3, [1.0, 1.0], [5.0, 5.0], temperature=t)[0, 0] for t in (1.0, 4.0))
    assert 0.5 < warm < cold < 1


def test_flags_say_what_names_rest_on() -> None:
    def codes(**given: object) -> set[str]:
        return {flag.code for flag in flags_of(LevelAssignment(np.zeros(1), **given))}     # type: ignore[arg-type]

    assert flags_of(LevelAssignment(np.zeros(1), {}, False), found=False) == ()
    assert codes(confidence={}, anchored=False) == {"no_sacrum"}       # scraps alone: their names rest on single voxels
    assert codes(confidence={"S": 1.0, "L5": 0.99}, anchored=True) == {"counted_from_sacrum"}
    assert codes(confidence={"L2": 0.99, "L1": 0.5}, anchored=False, unnamed=1) == {"no_sacrum", "unsure_level", "unnamed_body"}


def spine(fluid: float, disc: float, thick: int = 8) -> tuple[Volume, Volume]:
    """Two bodies (value 100) 20 mm high with a disc of `thick` rows of 1 mm between, `fluid` 6 mm behind; grid (z, y, x), 4 mm slices."""
    image, labels = np.full((80, 80, 11), 30, np.int16), np.zeros((80, 80, 11), np.uint8)
    lower, upper = slice(10, 30), slice(30 + thick, 50 + thick)
    for rows, value, signal in ((lower, 1, 100), (slice(30, 30 + thick), 3, disc), (upper, 2, 100)):
        labels[rows, 20:52, 1:10] = value
        image[rows, 20:52, 1:10] = signal
    image[:, 58:66] = fluid
    grid = ImageGrid(image.shape, (1.0, 1.0, 4.0), (0.0, 0.0, 0.0), np.eye(3))
    return Volume(image, grid), Volume(labels, grid)


CLASSES = {"L5": 1, "L4": 2, "L4/L5": 3}


@pytest.mark.parametrize("thick", [4, 8, 11])
def test_height_and_signal_of_a_disc_are_those_of_the_model(thick: int) -> None:
    found = measure_discs(*spine(fluid=400, disc=120, thick=thick), CLASSES, "PIL")
    assert found == {"L4/L5": {"height_mm": pytest.approx(thick, rel=0.08), "signal": 120.0, "signal_to_csf": pytest.approx(0.3)}}


def test_fluid_that_is_not_bright_is_no_measure() -> None:
    assert measure_discs(*spine(fluid=60, disc=50), CLASSES, "PIL")["L4/L5"]["signal_to_csf"] is None


def test_a_scrap_of_a_disc_has_no_height() -> None:
    scan, labels = spine(fluid=400, disc=120)
    scrap = np.where((labels.array == 3) & (np.arange(80)[None, :, None] > 22), 0, labels.array)
    found = measure_discs(scan, Volume(scrap.astype(np.uint8), labels.geometry), CLASSES, "PIL")
    assert found["L4/L5"] == {"height_mm": None, "signal": None, "signal_to_csf": None}
