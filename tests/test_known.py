"""What the user knows of the levels: how it is said, what it does to the numbering, and when it contradicts the scan."""
from __future__ import annotations

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spineclue_v2.anatomy import ANATOMICAL_ORDER, LEVEL_INDEX, LEVELS, ORDER_INDEX
from spineclue_v2.anatomy.known import Known, known_by_case, known_of, parse_pin
from spineclue_v2.anatomy.vertebra import Vertebra
from spineclue_v2.errors import InputError
from spineclue_v2.imageio.grid import ImageGrid
from spineclue_v2.stages.base import Evidence, NumberingBasis
from spineclue_v2.stages.identify.constraints import Constraints
from spineclue_v2.stages.identify.decoder import Decoder
from spineclue_v2.stages.identify.numbering import decode, number, probability_of
from spineclue_v2.stages.identify.plan import Penalties

GRID = ImageGrid((200, 100, 100), (1.0, 1.0, 1.0), (-50.0, -50.0, 0.0), np.eye(3))
PART = {"cervical": 1.0, "thoracic": 1.0, "lumbar": 1.0}
MODEL = {"scale": {"geometry": PART}, "power": {"geometry": 0.5}, "trust": {"geometry": 0.95}}


def spine(count: int, step: float = 25.0) -> tuple[Vertebra, ...]:
    """Balls of 10 mm, `step` apart, the first 180 mm above the lower end of GRID."""
    ball = np.linalg.norm(np.indices((21, 21, 21)) - 10.0, axis=0) <= 10
    return tuple(Vertebra((0.0, 0.0, 180 - step * i), (21.0, 21.0, 21.0), 1.0, mask=ball, mask_start=(170 - round(step * i), 40, 40),
                          body_centre=(0.0, 0.0, 180 - step * i)) for i in range(count))


def rows(first: str, count: int, sure: float = 0.9) -> np.ndarray:
    out = np.full((count, 25), (1 - sure) / 24)
    out[np.arange(count), LEVEL_INDEX[first] + np.arange(count)] = sure
    return np.log(out)


def basis(first: str, count: int = 6, sure: float = 0.9, model=None) -> NumberingBasis:
    nothing = (None,) * count
    return NumberingBasis(spine(count), nothing, nothing, {"geometry": Evidence(rows(first, count, sure))},
                          model=MODEL if model is None else model)


def names(first: str, count: int) -> tuple[str, ...]:
    return LEVELS[LEVEL_INDEX[first]:LEVEL_INDEX[first] + count]


def numbered(known, *args, **more):
    return number(basis(*args, **more), known_of(known), GRID, GRID)


@pytest.mark.parametrize("text, level, point, voxel, position", [
    ("L5@1,-2.5,3e1", "L5", (1.0, -2.5, 30.0), False, 0), ("l5@ 4, 5 ,6:voxel", "L5", (4.0, 5.0, 6.0), True, 0),
    ("3=L1", "L1", None, False, 3), ("lowest=L5", "L5", None, False, -1), ("Uppermost = C1", "C1", None, False, 1)])
def test_a_pin_says_what_it_says(text, level, point, voxel, position):
    pin = parse_pin(text)
    assert (pin.level, pin.point, pin.voxel, pin.position) == (level, point, voxel, position)
    assert known_of(known_of(text).to_json()) == known_of(text)


@pytest.mark.parametrize("text", ["L5", "L5@1,2", "L5@1,2,x", "S1@1,2,3", "0=L1", "-1=L1", "3=Q4", "", "L5@nan,1,2", "3=L1=L2"])
def test_what_is_no_pin_is_said_in_one_sentence(text):
    with pytest.raises(InputError, match="expected|counts from 0"):
        parse_pin(text)


def test_known_json_per_case_and_for_one(tmp_path):
    file = tmp_path / "known.json"
    file.write_text(json.dumps({"a": ["3=L1"], "b": {"known": "lowest=L5", "lumbar": 6}}))
    known = known_by_case([str(file)], None, None, ["a", "b", "c"])
    assert known["a"].pins[0].level == "L1" and known["b"].lumbar == 6 and not known["c"]
    with pytest.raises(InputError, match="case 'b'"):
        known_by_case([str(file)], None, None, ["a"])
    file.write_text(json.dumps(["3=L1"]))
    assert known_by_case([str(file)], 5, None, ["a"])["a"] == known_of("3=L1", lumbar=5)


def test_a_place_is_not_meant_for_many_scans():
    with pytest.raises(InputError, match="one scan"):
        known_by_case(["3=L1"], None, None, ["a", "b"])
    assert known_by_case(["lowest=L5"], None, None, ["a", "b"])["b"] == known_of("lowest=L5")


@pytest.mark.parametrize("content", ["{", "3", '{"known": 3}', '[3]', '{"known": ["3=L1"], "lumbar": 7}'])
def test_a_broken_known_json_is_said(tmp_path, content):
    file = tmp_path / "known.json"
    file.write_text(content)
    with pytest.raises(InputError):
        known_by_case([str(file)], None, None, ["a"])


def brute_force(logs: np.ndarray, gaps: np.ndarray, penalties: Penalties, allowed: np.ndarray | None) -> float:
    """Log sum over all numberings that obey, one by one."""
    decoder = Decoder(penalties)
    total = -np.inf
    whole = decoder.decode(logs, gaps).log_total
    for path in itertools.product([*ANATOMICAL_ORDER, None], repeat=len(logs)):
        if allowed is not None and not all(allowed[i, 26 if n is None else ORDER_INDEX[n]] for i, n in enumerate(path)):
            continue
        order = [ORDER_INDEX[n] for n in path if n is not None]
        if order == sorted(set(order)):
            total = np.logaddexp(total, decoder.log_posterior(path, logs, gaps) + whole)
    return total


def test_the_posterior_under_a_pin_is_the_exact_one():
    """Conditioned by enumeration of all numberings of two detections."""
    random = np.random.default_rng(3)
    logs = np.log(random.dirichlet(np.ones(25), 2))
    gaps, constraints = np.array([1.1]), Constraints.free(2).pinned(1, "L2")
    pinned = Decoder(known=constraints).decode(logs, gaps)
    assert pinned.log_total == pytest.approx(brute_force(logs, gaps, Penalties(), constraints.allowed), abs=1e-9)
    free = Decoder().decode(logs, gaps)
    assert np.exp(pinned.log_total - free.log_total) == pytest.approx(free.posterior[1, ORDER_INDEX["L2"]], abs=1e-9)
    assert pinned.posterior[1, ORDER_INDEX["L2"]] == pytest.approx(1.0)
    assert pinned.posterior.sum(axis=1) == pytest.approx(1.0)


@given(st.integers(0, 5), st.sampled_from(["T9", "T12", "L2"]))
def test_the_probability_of_a_pin_is_the_posterior_of_its_level(which, level):
    given_basis = basis("T8", 6, 0.3)
    free = decode(given_basis)
    found = probability_of(given_basis, Constraints.free(6).pinned(which, level))
    assert found == pytest.approx(free.posterior[which, ORDER_INDEX[level]], abs=2e-3)     # sets of little weight are left out of it


@pytest.mark.parametrize("model", [MODEL, {}])
def test_a_true_pin_names_all_and_anchors(model):
    unsure = numbered(None, "T7", sure=0.06, model=model)
    assert unsure.anchored_by is None
    pinned = numbered("3=T9", "T7", sure=0.06, model=model)
    assert pinned.numbering.names == names("T7", 6)
    assert pinned.anchored_by == "known" and pinned.numbering.numbering_anchored and pinned.flags == ()


def test_a_pin_that_the_scan_knew_leaves_it_anchored_by_the_scan():
    pinned = numbered("lowest=T12", "T7", sure=0.97)
    assert pinned.anchored_by == "scan" and pinned.known["probability"] > 0.9


def test_a_wrong_pin_is_followed_and_called_contradictory():
    pinned = numbered("uppermost=T8", "T7", sure=0.97)
    assert pinned.numbering.names == names("T8", 6)
    assert pinned.anchored_by is None and not pinned.numbering.numbering_anchored
    [flag] = pinned.flags
    assert flag.code == "known_contradicts_scan" and flag.severity == "review" and flag.observed < 0.05
    assert "uppermost=T8" in flag.message and "T7 to T12" in flag.message


def test_places_find_their_vertebra():
    for text in ("T9@0,0,130", "T9@50,50,130:voxel", "T9@8,3,128"):
        assert numbered(text, "T7", sure=0.06).numbering.names == names("T7", 6), text


@pytest.mark.parametrize("known, said", [
    ("T9@0,0,400", "outside the scan"), ("T9@0,0,142.5", "no vertebra"), ("T9@40,0,130", "no vertebra"), ("9=T9", "not found"),
    (["3=T9", "3=T10"], "exclude each other"), (["3=T9", "4=T9"], "exclude each other"), (["3=T9", "5=T8"], "exclude each other"),
    ({"known": ["6=L6"], "lumbar": 5}, "exclude each other")])
def test_what_cannot_be_is_one_sentence(known, said):
    with pytest.raises(InputError, match=said) as error:
        numbered(known, "T7")
    assert "\n" not in str(error.value)


def test_a_place_in_ras_is_told():
    grid = replace(GRID, origin=(20.0, 20.0, 0.0))
    with pytest.raises(InputError, match="RAS"):
        number(basis("T7"), known_of("T9@-60,-60,100"), grid, grid)


def test_six_lumbar_vertebrae_make_the_one_above_the_sacrum_l6():
    """The sacrum is seen below the last of six: L1 to L6 once six are known, T12 to L5 else."""
    landmarks = np.full((6, 2), np.nan)
    landmarks[-1, 0] = 0.98
    unsure = replace(basis("T12", 6, 0.06, {**MODEL, "landmark": {"sacrum": 0.97}}),
                     evidence={"geometry": Evidence(rows("T12", 6, 0.06), landmarks=landmarks)})
    assert number(unsure, Known(), GRID, GRID).numbering.names == names("T12", 6)
    assert number(unsure, known_of(None, lumbar=6), GRID, GRID).numbering.names == (*names("L1", 5), "L6")
    assert number(unsure, known_of(None, lumbar=5), GRID, GRID).numbering.names == names("T12", 6)


def test_numbers_of_thoracic_vertebrae():
    assert numbered({"known": "6=L2", "thoracic": 13}, "T9").numbering.names == ("T10", "T11", "T12", "T13", "L1", "L2")
    assert numbered({"known": "6=L2", "thoracic": 11}, "T9").numbering.names == ("T8", "T9", "T10", "T11", "L1", "L2")
    assert numbered({"known": "6=L2", "thoracic": 12}, "T9").numbering.names == ("T9", "T10", "T11", "T12", "L1", "L2")
