"""Names of the MR stages' levels: what a whole spine says against what single voxels say, and the loss of kinds."""
from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from spineclue_v2.imageio.volume import ImageGrid
from spineclue_v2.plans.data import MRData
from spineclue_v2.stages.mr.labelling import most_likely
from spineclue_v2.stages.mr.level_assignment import best_path, name_levels
from spineclue_v2.stages.mr.network import tissue_classes
from spineclue_v2.stages.mr.positional_prior import fit_positional_prior, pool_positional_priors, vote_by_position
from spineclue_v2.stages.mr.threshold import apply_threshold
from spineclue_v2.stages.mr.trainer import by_kind

CLASSES = ("S", "L5", "L4", "L3", "L5/S", "L4/L5", "L3/L4", "canal")
NUMBER = {name: i for i, name in enumerate(CLASSES, 1)}
DATA = MRData((4.0, 2.0, 2.0), "PIL", (0.5, 99.5), CLASSES, tuple(range(1, 9)))
BODY, DISC, SLICES, COLUMNS = 12, 4, 4, 20      # rows of a body and of a disc: 24 and 8 mm


def column(names: list[str], votes: dict[str, dict[str, float]] | None = None, data: MRData = DATA) -> tuple[np.ndarray, dict[str, slice]]:
    """Probabilities of a straight spine of `names` from below, discs between, and the rows of each body. A body whose name is in `votes`
    has those shares instead of its own name; discs are called L5/S all along."""
    number = {name: i for i, name in enumerate(data.classes, 1)}
    rows = len(names) * (BODY + DISC) + 8
    probability = np.zeros((len(data.classes) + 1, SLICES, rows, COLUMNS), np.float32)
    places, bottom = {}, rows - 4
    for k, name in enumerate(names):
        places[name] = slice(bottom - BODY, bottom)
        for said, share in ((votes or {}).get(name) or {name: 1.0}).items():
            probability[number[said], :, places[name], 5:15] = share
        if k + 1 < len(names) and "L5/S" in number:
            probability[number["L5/S"], :, bottom - BODY - DISC:bottom - BODY, 5:15] = 1.0
        bottom -= BODY + DISC
    probability[0] = 1 - probability[1:].sum(0)
    return probability, places


def named(probability: np.ndarray, data: MRData = DATA) -> np.ndarray:
    found = name_levels(probability, data)
    assert np.allclose(found.sum(0), 1, atol=1e-5)
    return found.argmax(0)


def test_a_body_split_between_two_names_takes_the_one_that_the_others_leave() -> None:
    probability, places = column(["S", "L5", "L4", "L3"])
    rows = places["L4"]
    probability[:, 2:, rows, 5:15] = 0
    probability[NUMBER["L5"], 2:, rows, 5:15] = 1      # half of its slices call L4 by its neighbour's name
    found = named(probability)
    assert all((found[:, place, 5:15] == NUMBER[name]).all() for name, place in places.items())


def test_discs_are_named_by_the_bodies_beside_them() -> None:
    probability, places = column(["S", "L5", "L4", "L3"])
    found = named(probability)
    for lower, upper in (("S", "L5"), ("L5", "L4"), ("L4", "L3")):
        between = found[:, places[upper].stop:places[lower].start, 5:15]
        assert (between == NUMBER[f"{upper}/{lower}"]).all()


def test_scraps_that_hang_together_with_no_body_are_left_out() -> None:
    """Muscle beside a spine that lies off the middle of the scan was given the name of the nearest level (real MR, Dice 0.81)."""
    probability, places = column(["S", "L5", "L4", "L3"])
    probability[:, 0] = np.eye(len(probability))[0][:, None, None]            # the spine is in slices 1 to 3
    apart = (slice(None), 1, places["L4"].start + 4, slice(17, 19))
    attached = (slice(None), 1, places["L4"].start + 4, slice(15, 16))
    for place in (apart, attached):
        probability[place] = 0
        probability[(NUMBER["L4"], *place[1:])] = 1
    found = named(probability)
    assert (found[apart[1:]] == 0).all() and (found[attached[1:]] == NUMBER["L4"]).all()
    assert all((found[1:, place, 5:15] == NUMBER[name]).all() for name, place in places.items())


def test_a_level_counted_twice_moves_those_above() -> None:
    probability, places = column(["S", "L5", "L4", "L3"], {"L4": {"L5": 0.6, "L4": 0.4}, "L3": {"L4": 0.55, "L3": 0.45}})
    assert (probability.argmax(0)[:, places["L4"], 5:15] == NUMBER["L5"]).all()
    found = named(probability)
    assert all((found[:, place, 5:15] == NUMBER[name]).all() for name, place in places.items())


def test_a_body_too_many_is_left_out_and_other_classes_stay() -> None:
    probability, places = column(["S", "L5", "L4", "L3", "canal"], {"canal": {"L3": 0.6, "canal": 0.4}})
    probability[NUMBER["canal"], :, :, 17:] = 1.0
    probability[0] = 1 - probability[1:].sum(0)
    found = named(probability)
    assert (found[:, places["L3"], 5:15] == NUMBER["L3"]).all() and (found[:, places["canal"], 5:15] == 0).all()
    assert (found[:, :, 17:] == NUMBER["canal"]).all()


def test_what_the_sacrum_says_outweighs_a_wrong_size_repeated_all_the_way_up() -> None:
    """A tall spine: from L4 on every body is called by the name above, which is one level too far for the space there is."""
    data = MRData((4.0, 2.0, 2.0), "PIL", (0.5, 99.5), ("S", "L5", "L4", "L3", "L2", "L1"), (1, 2, 3, 4, 5, 6))
    names = ["S", "L5", "L4", "L3", "L2"]
    wrong = {"L5": {"L5": 0.6, "L4": 0.4}} | {name: {above: 0.95, name: 0.05} for name, above in (("L4", "L3"), ("L3", "L2"), ("L2", "L1"))}
    probability, places = column(names, wrong, data)
    found = named(probability, data)
    assert all((found[:, place, 5:15] == data.classes.index(name) + 1).all() for name, place in places.items())


def case(rows: dict[str, float], length: int = 72) -> dict[str, object]:
    """Properties of a labelled case whose bodies are centred on these rows."""
    return {"geometry": {"shape": [SLICES, length, COLUMNS]},
            "structures": {name: {"locations": [[0, row - 1, 3], [0, row + 1, 3]]} for name, row in rows.items()}}


def test_where_levels_lay_in_training_decides_where_no_sacrum_is_seen() -> None:
    """T12 above, which is no class, and bodies that look like their upper neighbours: counted from L1 down, every name is one too low."""
    data = MRData((4.0, 2.0, 2.0), "PIL", (0.5, 99.5), ("L5", "L4", "L3", "L2"), (1, 2, 3, 4))
    names = ["L5", "L4", "L3", "L2"]
    wrong = {"L4": {"L5": 0.7, "L4": 0.3}, "L3": {"L4": 0.7, "L3": 0.3}, "L2": {"L3": 0.7, "L2": 0.3}, "T12": {"L2": 1.0}}
    probability, places = column([*names, "T12"], wrong, data)
    probability[:, 2:, places["L5"]] = np.eye(len(probability))[0][:, None, None, None]      # half missed: cheap to leave out
    rows = {name: (places[name].start + places[name].stop - 1) / 2 for name in names}
    found = named(probability, data)
    assert (found[:, places["T12"], 5:15] == data.classes.index("L2") + 1).all()     # without places they are believed
    length = probability.shape[2]
    learned = fit_positional_prior([case({n: r + shift for n, r in rows.items()}, length) for shift in (-1, 0, 1)], data)
    assert learned["spread_mm"] == 8.0 and learned["anchor"] == 0.5
    assert learned["from_anchor_mm"]["L5"] == pytest.approx((rows["L5"] - (length - 1) / 2) * 2)
    found = name_levels(probability, data, learned).argmax(0)
    assert all((found[:2, places[name], 5:15] == data.classes.index(name) + 1).all() for name in names)
    assert (found[:, places["T12"], 5:15] == 0).all()


def test_places_fall_silent_where_fields_differ_and_never_outvote_a_plain_spine() -> None:
    data = MRData((4.0, 2.0, 2.0), "PIL", (0.5, 99.5), ("L5", "L4", "L3", "L2"), (1, 2, 3, 4))
    probability, places = column(["L5", "L4", "L3", "L2"], data=data)
    rows = {name: (place.start + place.stop - 1) / 2 for name, place in places.items()}
    elsewhere = fit_positional_prior([case({n: r + 16 for n, r in rows.items()}, probability.shape[2])] * 3, data)    # a level lower
    found = name_levels(probability, data, elsewhere).argmax(0)
    assert all((found[:, place, 5:15] == data.classes.index(name) + 1).all() for name, place in places.items())
    differing = fit_positional_prior([case({n: r + shift for n, r in rows.items()}) for shift in (-20, 0, 20)], data)
    assert differing["spread_mm"] == pytest.approx(40.0)
    bodies = [(np.array([0]), np.array([row]), np.array([0])) for row in rows.values()]
    # fields end alike
    below = fit_positional_prior([case({n: r + more for n, r in rows.items()}, 72 + more) for more in (0, 9, 30)], data)
    assert below["anchor"] == 1.0 and below["from_anchor_mm"]["L4"] == pytest.approx((rows["L4"] - 71) * 2)
    assert vote_by_position(bodies, 72, data.classes, below, data)[0].argmax(1).tolist() == [0, 1, 2, 3]
    votes, beyond = vote_by_position(bodies, 72, data.classes, differing, data)
    assert votes.shape == (4, 4) and -0.1 < votes.diagonal().max() <= 0 and votes.min() > -1.0 and not beyond.any()
    assert fit_positional_prior([case(rows)] * 2, data) == {} and not vote_by_position(bodies, 72, data.classes, {}, data)[0].any()
    assert pool_positional_priors([{}, below, elsewhere, elsewhere]) == elsewhere and pool_positional_priors([{}]) == {}


@pytest.mark.parametrize("longer", [0, 20])
def test_a_sacrum_in_view_outweighs_a_spine_counted_from_above(longer: int) -> None:
    """A scan that ends one level lower than those of training: all above the sacrum is called one too high (synthetic scans: VB Dice 0
    in two of four). A long sacrum, whose centre lies far down, leaves no room for a level between."""
    data = MRData((4.0, 2.0, 2.0), "PIL", (0.5, 99.5), ("S", "L5", "L4", "L3", "L2", "L1"), (1, 2, 3, 4, 5, 6))
    names = ["S", "L5", "L4", "L3", "L2"]
    above = dict(zip(names[1:], [*names[2:], "L1"], strict=True))
    wrong = {"S": {"S": 0.75, "L5": 0.25}} | {name: {other: 0.95, name: 0.05} for name, other in above.items()}
    probability, places = column(names, wrong, data)
    lowest = probability[:, :, places["S"].start:places["S"].start + 1]
    found = named(np.concatenate([probability[:, :, :-4], np.repeat(lowest, longer, 2), probability[:, :, -4:]], 2), data)
    assert all((found[:, place, 5:15] == data.classes.index(name) + 1).all() for name, place in places.items())


def test_the_lower_half_of_a_sacrum_says_what_it_is() -> None:
    """The first sacral body is taken for L5 and all above follow: one level too high from end to end (a synthetic scan: Dice 0)."""
    data = MRData((4.0, 2.0, 2.0), "PIL", (0.5, 99.5), ("S", "L5", "L4", "L3", "L2", "L1"), (1, 2, 3, 4, 5, 6))
    names = ["S", "L5", "L4", "L3", "L2"]
    above = dict(zip(names[1:], [*names[2:], "L1"], strict=True))
    wrong = {"S": {"S": 0.9, "L5": 0.1}} | {name: {other: 0.8, name: 0.2} for name, other in above.items()}
    probability, places = column(names, wrong, data)
    first = slice(places["S"].start, places["S"].start + BODY // 2)
    probability[1, :, first, 5:15], probability[2, :, first, 5:15] = 0.1, 0.9
    found = named(probability, data)
    assert all((found[:, place, 5:15] == data.classes.index(name) + 1).all() for name, place in places.items())


@pytest.mark.parametrize("disc", [False, True])
def test_a_sacrum_in_two_pieces_is_one_unless_a_disc_lies_between(disc: bool) -> None:
    """The upper piece is taken for L5 and all above follow (a synthetic scan: Dice 0). With a disc between it is a level."""
    data = MRData((4.0, 2.0, 2.0), "PIL", (0.5, 99.5), ("S", "L5", "L4", "L3", "L2", "L5/S"), (1, 2, 3, 4, 5, 6))
    names = ["S", "L5", "L4", "L3"] if disc else ["S", "first", "L5", "L4", "L3"]
    votes = {} if disc else {"first": {"S": 0.25, "L5": 0.75}, "L5": {"L5": 0.4, "L4": 0.6}, "L4": {"L4": 0.4, "L3": 0.6},
                             "L3": {"L3": 0.3, "L2": 0.7}}
    probability, places = column(names, votes, data)
    if not disc:
        gap = slice(places["first"].stop, places["S"].start)
        probability[:, :, gap] = np.eye(len(probability))[0][:, None, None, None]
    found = named(probability, data)
    expected = {name: "S" if name == "first" else name for name in names}
    assert all((found[:, place, 5:15] == data.classes.index(expected[name]) + 1).all() for name, place in places.items())


def test_l5_in_one_piece_with_the_sacrum_is_a_level_of_its_own() -> None:
    """Else all above takes the name below (a synthetic scan: VB Dice 0.08). A long sacrum alone stays whole."""
    data = MRData((4.0, 2.0, 2.0), "PIL", (0.5, 99.5), ("S", "L5", "L4", "L3", "L2"), (1, 2, 3, 4, 5))
    doubt = {"L4": {"L4": 0.4, "L5": 0.6}, "L3": {"L3": 0.4, "L4": 0.6}, "L2": {"L2": 0.4, "L3": 0.6}}
    probability, places = column(["S", "L5", "L4", "L3", "L2"], doubt, data)
    bottom = places["S"].stop
    lowest = np.repeat(probability[:, :, places["S"].start:places["S"].start + 1], 20, 2)
    probability = np.concatenate([probability[:, :, :bottom], lowest, probability[:, :, bottom:]], 2)
    merged = probability.copy()
    merged[:, :, places["L5"].stop:places["S"].start, 5:15] = np.array([0, 0.6, 0.4, 0, 0, 0])[:, None, None, None]
    found = named(merged, data)
    for name, place in places.items():
        assert (found[:, place, 5:15] == data.classes.index(name) + 1).mean() > (0.8 if name in ("S", "L5") else 0.99)
    alone = probability[:, :, places["L5"].stop:]
    assert (named(np.concatenate([probability[:, :, :4], alone], 2), data)[:, 8:-4, 5:15] == 1).all()


def test_a_body_above_all_others_is_left_out_before_a_small_one_between() -> None:
    data = MRData((4.0, 2.0, 2.0), "PIL", (0.5, 99.5), ("S", "L5", "L4", "L3"), (1, 2, 3, 4))
    probability, places = column(["S", "L5", "L4", "L3", "T12"], {"L3": {"L3": 0.4, "L4": 0.6}, "T12": {"L3": 1.0}}, data)
    probability[:, :, places["L4"], 11:15] = np.eye(len(probability))[0][:, None, None, None]      # three fifths of it are seen
    found = named(probability, data)
    assert all((found[:, places[name], 5:11] == data.classes.index(name) + 1).all() for name in data.classes)
    assert (found[:, places["T12"], 5:15] == 0).all()


def test_places_are_not_heard_where_a_sacrum_is_found() -> None:
    data = MRData((4.0, 2.0, 2.0), "PIL", (0.5, 99.5), ("S", "L5", "L4", "L3", "L2"), (1, 2, 3, 4, 5))
    doubt = {"S": {"S": 0.55, "L5": 0.45}} | {name: {name: 0.5, up: 0.5} for name, up in (("L5", "L4"), ("L4", "L3"), ("L3", "L2"))}
    probability, places = column(["S", "L5", "L4", "L3"], doubt, data)
    rows = {name: (place.start + place.stop - 1) / 2 for name, place in places.items()}
    elsewhere = fit_positional_prior([case({n: r + 16 for n, r in rows.items()}, probability.shape[2])] * 3, data)    # a level lower
    found = name_levels(probability, data, elsewhere).argmax(0)
    assert all((found[:, place, 5:15] == data.classes.index(name) + 1).all() for name, place in places.items())


@pytest.mark.parametrize("bridge", [(slice(None), slice(13, 15)), (slice(1, 2), slice(5, 15)), (slice(0, 2), slice(5, 15))])
def test_a_disc_missed_in_part_does_not_join_two_bodies(bridge: tuple[slice, slice]) -> None:
    """Behind, in all slices; in one slice of four; in two, so that the bodies part only further inside."""
    data = replace(DATA, spacing_mm=(3.5, 2.0, 2.0))
    probability, places = column(["L5", "L4"])
    between = (bridge[0], slice(places["L4"].stop, places["L5"].start), bridge[1])
    probability[(slice(None), *between)] = 0
    probability[(NUMBER["L5"], *between)] = 1
    found = named(probability, data)
    assert (found[:, places["L4"], 5:13] == NUMBER["L4"]).all() and (found[:, places["L5"], 5:13] == NUMBER["L5"]).all()


def test_two_bodies_in_one_piece_are_two_levels() -> None:
    data = MRData((4.0, 2.0, 2.0), "PIL", (0.5, 99.5), ("S", "L5", "L4", "L3", "L2", "L1"), (1, 2, 3, 4, 5, 6))
    probability, places = column(["S", "L5", "L4", "L3", "L2"], data=data)
    merged = slice(places["L3"].start, places["L4"].stop)
    probability[:, :, merged, 5:15] = 0
    probability[4, :, merged, 5:15] = 1                # L3 throughout, its disc missed
    found = named(probability, data)
    for name in ("L5", "L2"):
        assert (found[:, places[name], 5:15] == data.classes.index(name) + 1).all()
    for name in ("L4", "L3"):
        assert (found[:, places[name], 5:15] == data.classes.index(name) + 1).mean() > 0.8


def test_a_faint_disc_still_parts_two_bodies() -> None:
    probability, places = column(["L5", "L4"])
    between = slice(places["L4"].stop, places["L5"].start)
    probability[NUMBER["L5/S"], :, between, 5:15] = 0.4
    probability[NUMBER["L5"], :, between, 5:15] = 0.6
    found = named(probability)
    assert (found[:, places["L4"], 5:15] == NUMBER["L4"]).all() and (found[:, places["L5"], 5:15] == NUMBER["L5"]).all()


def test_names_stay_where_there_is_nothing_to_order() -> None:
    empty = np.zeros((len(CLASSES) + 1, SLICES, 20, COLUMNS), np.float32)
    empty[0] = 1
    assert np.array_equal(name_levels(empty, DATA), empty)
    one = MRData((4.0, 2.0, 2.0), "PIL", (0.5, 99.5), ("L5", "L5/S"), (1, 2))
    probability, _ = column(["L5"], data=one)
    assert np.array_equal(name_levels(probability, one), probability)


def test_a_disc_keeps_its_name_where_its_lower_body_is_no_class() -> None:
    data = MRData((4.0, 2.0, 2.0), "PIL", (0.5, 99.5), ("L5", "L4", "L5/S", "L4/L5"), (1, 2, 3, 4))
    probability, places = column(["L5", "L4"], data=data)
    below = slice(places["L5"].stop, places["L5"].stop + 3)
    probability[:, :, below, 5:15] = 0
    probability[4, :, below, 5:15] = 1                 # called L4/L5
    found = named(probability, data)
    assert (found[:, below, 5:15] == 3).all()


@pytest.mark.parametrize(("said", "expected"), [
    ([0, 1, 2], [0, 1, 2]), ([0, None, 2], [0, 1, 2]), ([1, 2, 2], [0, 1, 2]), ([0, 2, 3], [0, 1, 2]), ([2, 3], [2, 3])])
def test_paths_follow_one_another(said: list[int | None], expected: list[int]) -> None:
    """Votes as names of single bodies (None: never heard of): levels of the best path."""
    votes = np.log(np.array([[0.1 if s is None else 0.7 if s == j else 0.1 for j in range(4)] for s in said]))
    if said == [1, 2, 2]:
        votes[0, 0] = np.log(0.6)                      # the second choice of one body decides
        votes[1, 1] = np.log(0.6)
    if said == [0, 2, 3]:
        votes[1, 1] = votes[2, 2] = np.log(0.5)        # a jump is dear
    assert best_path(votes, ["S", "L5", "L4", "L3"], [10.0] * len(said), [10.0] * len(said)) == expected


def test_a_small_part_is_dropped_before_a_whole_body() -> None:
    """A sixth body at the upper border, where five have names: votes speak for shifting all, sizes against it."""
    votes = np.log(np.array([[0.2, 0.4, 0.4], [0.1, 0.3, 0.6], [0.1, 0.2, 0.7], [0.1, 0.1, 0.8]]))
    assert best_path(votes, ["L5", "L4", "L3"], [30.0] * 4, [10.0, 10.0, 10.0, 1.0]) == [0, 1, 2, -1]
    assert best_path(votes, ["L5", "L4", "L3"], [30.0] * 4, [1.0, 10.0, 10.0, 10.0]) == [-1, 0, 1, 2]


def test_levels_that_most_people_lack_are_jumped_for_nothing() -> None:
    votes = np.log(np.array([[0.9, 0.05, 0.05], [0.05, 0.05, 0.9]]))
    assert best_path(votes, ["S", "L6", "L5"], [10.0, 10.0], [10.0, 10.0]) == [0, 2]


def test_a_missed_body_leaves_a_gap_in_the_names_only_where_it_leaves_one_in_space() -> None:
    said = {"L4": {"L3": 1.0}}
    probability, places = column(["S", "L5", "L4"], said)
    assert (named(probability)[:, places["L4"], 5:15] == NUMBER["L4"]).all()
    names = ["S", "L5", "L4", "L3"]
    probability, places = column(names)
    hole = slice(places["L4"].start - DISC, places["L4"].stop + DISC)
    probability[1:, :, hole], probability[0, :, hole] = 0, 1
    assert (named(probability)[:, places["L3"], 5:15] == NUMBER["L3"]).all()


def test_probability_of_a_kind_is_the_sum_of_its_classes() -> None:
    kinds = tissue_classes(CLASSES)
    assert kinds.tolist() == [0, 1, 1, 1, 1, 2, 2, 2, 3] and tissue_classes(("L5", "canal")).tolist() == [0, 1, 2]
    logits = torch.randn(2, 9, 3, 4, generator=torch.Generator().manual_seed(0))
    share = logits.softmax(1)
    expected = torch.stack([share[:, kinds == k].sum(1) for k in range(4)], 1)
    assert torch.allclose(by_kind(logits, kinds).softmax(1), expected, atol=1e-6)


def test_structures_win_from_two_fifths_on_wherever_labels_are_made() -> None:
    shares = np.array([[0.62, 0.38, 0.0], [0.58, 0.42, 0.0], [0.5, 0.25, 0.25], [0.3, 0.3, 0.4], [1.0, 0.0, 0.0]], np.float32).T
    assert apply_threshold(shares).tolist() == [0, 1, 0, 2, 0]
    grid = ImageGrid((1, 1, 5), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), np.eye(3))
    assert most_likely(shares[:, None, None], grid, grid, grid.orientation)[0, 0].tolist() == apply_threshold(shares).tolist()
