"""Other tools' masks: whose values they are, what is mended, which names come out, what is said."""
from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from blocks import spine
from hypothesis import given, settings
from hypothesis import strategies as st
from test_bad_commands import refused

from spineclue_v2.anatomy import ANATOMICAL_ORDER, LABEL_OF_NAME, LEVELS
from spineclue_v2.anatomy.label_schemes import SCHEMES, kind_of_name, scheme_of_names
from spineclue_v2.anatomy.vertebra import Vertebra
from spineclue_v2.errors import InputError
from spineclue_v2.imageio.volume import Volume, read_labels, write_volume
from spineclue_v2.inference.bodies import to_vertebra
from spineclue_v2.inference.foreign_report import decided_flag, difference_flag, level_table
from spineclue_v2.inference.label_source import read_source
from spineclue_v2.inference.mend import mend_values, mended_bodies
from spineclue_v2.inference.model import load_shipped
from spineclue_v2.inference.part_and_join import part_and_join
from spineclue_v2.inference.relabel import relabel
from spineclue_v2.inference.rib_ends import rib_ends
from spineclue_v2.inference.source_map import write_source_map
from spineclue_v2.plans.data import Data
from spineclue_v2.stages.base import Evidence
from spineclue_v2.stages.identify.plan import Penalties
from spineclue_v2.stages.identify.reasons import reasons
from spineclue_v2.stages.identify.tool_levels import RibEnds, tool_evidence, with_tool
from spineclue_v2.stages.identify.trust import REGIONS, EvidenceModel, decode_with_trust

NAMES = ["T10", "T11", "T12", "L1", "L2", "L3", "L4"]


@pytest.fixture(scope="module")
def labels() -> Volume:
    return spine(NAMES, (2.0, 1.5, 1.5))[1]


def in_scheme(labels: Volume, name: str) -> Volume:
    table = np.zeros(256, np.uint8)
    for level in NAMES:
        table[LABEL_OF_NAME[level]] = SCHEMES[name].values[level]
    return Volume(table[labels.array], labels.geometry)


@pytest.mark.parametrize("name", [n for n in SCHEMES if n != "totalsegmentator_mr"])
def test_a_known_scheme_is_among_those_that_fit(labels, tmp_path, name):
    write_volume(in_scheme(labels, name), tmp_path / "map.nii.gz")
    expected = {SCHEMES[name].values[level]: level for level in NAMES}
    for wanted in ("auto", name):
        found = read_source(tmp_path / "map.nii.gz", wanted)
        assert any(all(scheme.levels.get(v) == level for v, level in expected.items()) for scheme in found.schemes)


def test_schemes_are_whole():
    for scheme in SCHEMES.values():
        assert set(LEVELS) <= set(scheme.values) <= set(ANATOMICAL_ORDER)
        assert not set(scheme.levels) & set(scheme.others)


def test_names_tell_vertebrae_from_what_lies_between_them():
    assert [kind_of_name(n) for n in ("vertebrae_L1", "Vertebra T12", "C2", "disc_L5_S", "T12-L1", "sacrum", "vertebrae_S1", "rib_left_1",
                                      "liver")] == ["L1", "T12", "C2", "disc", "other", "sacrum", "sacrum", "rib", "other"]
    assert scheme_of_names({0: "background", 3: "L1", 4: "L1_copy"}, "a", "a").levels == {3: "L1"}


def test_discs_and_end_plates_are_never_bodies(labels, tmp_path):
    array = labels.array.astype(np.uint16)
    for level in NAMES:
        rows = np.flatnonzero((labels.array == LABEL_OF_NAME[level]).any(axis=(1, 2)))
        array[max(rows.min() - 2, 0):rows.min(), 8:20, 14:30] = 200 + LABEL_OF_NAME[level]
    write_volume(Volume(array, labels.geometry), tmp_path / "map.nii.gz")
    source = read_source(tmp_path / "map.nii.gz")
    assert source.schemes[0].name == "spineps"
    assert sorted(b.value for b in mended_bodies(source, 1.0)[0]) == [LABEL_OF_NAME[n] for n in NAMES]
    owners = [(b, LEVELS[LEVELS.index(source.schemes[0].levels[b.value]) + 1]) for b in mended_bodies(source, 1.0)[0]]
    assert write_source_map(source, source.schemes[0], owners, str(tmp_path / "out"), ".nii.gz") == []
    written = read_labels(tmp_path / "out_spineps.nii.gz").array
    assert np.array_equal(written[array > 0], array[array > 0] + 1)


def test_a_folder_of_masks_is_read_and_written(labels, tmp_path):
    for level in NAMES:
        write_volume(Volume((labels.array == LABEL_OF_NAME[level]).astype(np.uint8), labels.geometry),
                     tmp_path / "in" / f"vertebrae_{level}.nii.gz")
    write_volume(Volume(np.zeros_like(labels.array), labels.geometry), tmp_path / "in" / "sacrum.nii.gz")
    source = read_source(tmp_path / "in")
    assert source.folder and sorted(source.schemes[0].levels.values()) == sorted(NAMES)
    owners = [(b, LEVELS[LEVELS.index(source.schemes[0].levels[b.value]) + 1]) for b in mended_bodies(source, 1.0)[0]]
    write_source_map(source, source.schemes[0], owners, str(tmp_path / "out"), ".nii.gz")
    assert sorted(p.name for p in (tmp_path / "out_masks").iterdir()) == sorted(
        ["sacrum.nii.gz", *(f"vertebrae_{LEVELS[LEVELS.index(n) + 1]}.nii.gz" for n in NAMES)])
    moved = read_labels(tmp_path / "out_masks" / "vertebrae_L5.nii.gz").array
    assert np.array_equal(moved > 0, labels.array == LABEL_OF_NAME["L4"])


def test_dataset_json_names_the_values(labels, tmp_path):
    write_volume(labels, tmp_path / "labelsTr" / "case.nii.gz")
    with pytest.raises(InputError, match=r"No dataset\.json"):
        read_source(tmp_path / "labelsTr" / "case.nii.gz", "nnunet")
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": {"background": 0} | {n: LABEL_OF_NAME[n] for n in NAMES}}))
    assert set(read_source(tmp_path / "labelsTr" / "case.nii.gz", "nnunet").schemes[0].levels.values()) == set(NAMES)


def test_what_does_not_fit_is_refused(labels, tmp_path):
    write_volume(in_scheme(labels, "totalsegmentator"), tmp_path / "map.nii.gz")
    with pytest.raises(InputError, match="which VerSe does not have"):
        read_source(tmp_path / "map.nii.gz", "verse")
    with pytest.raises(InputError, match="no known label scheme"):
        read_source(tmp_path / "map.nii.gz", "other")
    parts = Volume(np.where(labels.array > 0, 41 + labels.array % 8, 0).astype(np.uint8), labels.geometry)
    write_volume(parts, tmp_path / "parts.nii.gz")
    with pytest.raises(InputError, match="parts of vertebrae"):
        read_source(tmp_path / "parts.nii.gz")


def test_the_input_is_never_written_over(labels, tmp_path):
    write_volume(labels, tmp_path / "out_verse.nii.gz")
    with pytest.raises(InputError, match="it is the input"):
        relabel(tmp_path / "out_verse.nii.gz", tmp_path / "out.nii.gz", load_shipped(torch.device("cpu")), scheme="verse")
    assert [p.name for p in tmp_path.iterdir()] == ["out_verse.nii.gz"]


def test_the_command_refuses_options_of_maps_for_points(tmp_path, capsys):
    (tmp_path / "points.csv").write_text("x,y,z\n0,0,0\n")
    assert "--from" in refused(capsys, "relabel", "-i", tmp_path / "points.csv", "-o", tmp_path / "o.csv", "--from", "verse",
                               "-device", "cpu")


@settings(max_examples=6, deadline=None)
@given(st.integers(1, len(NAMES) - 2), st.sampled_from([-1, 1]))
def test_a_process_with_the_neighbours_value_comes_back(place, step):
    labels = spine(NAMES, (2.0, 1.5, 1.5))[1]
    own, other = (LABEL_OF_NAME[NAMES[i]] for i in (place, place + step))
    damaged = labels.array.copy()
    process = (labels.array == own) & (np.arange(labels.array.shape[1]) * 1.5 > 31)[None, :, None]
    damaged[process] = other
    mended, done = mend_values(damaged, (2.0, 1.5, 1.5), [LABEL_OF_NAME[n] for n in NAMES])
    assert (mended[process] == own).mean() > 0.99 and done.moved_ml > 0
    assert np.array_equal(mended[~process], labels.array[~process])


def test_true_masks_are_not_touched_and_strays_go(labels):
    values = [LABEL_OF_NAME[n] for n in NAMES]
    assert np.array_equal(mend_values(labels.array, labels.spacing, values)[0], labels.array)
    damaged = labels.array.copy()
    damaged[1:3, 1:3, 1:3] = values[0]
    mended, done = mend_values(damaged, labels.spacing, values)
    assert np.array_equal(mended, labels.array) and done.dropped_ml == pytest.approx(8 * 4.5 / 1000)
    damaged[1:3, 3:5, 1:3] = values[1]              # strays that touch, or lie near each other, do not keep each other
    damaged[1:3, 6:8, 1:3] = values[0]
    assert np.array_equal(mend_values(damaged, labels.spacing, values)[0], labels.array)


def test_neighbours_that_share_a_value_are_parted_and_a_torn_one_is_joined(labels, tmp_path):
    array = labels.array.copy()
    joint = [LABEL_OF_NAME["L1"], LABEL_OF_NAME["L2"]]
    rows = [np.flatnonzero((array == value).any(axis=(1, 2))) for value in joint]
    array[rows[1].max():rows[0].min() + 1, 16:24, 18:26] = joint[0]         # a bridge over the disc
    array[array == joint[1]] = joint[0]
    torn = array == LABEL_OF_NAME["T11"]
    upper = torn & (np.arange(len(array)) > np.argwhere(torn).mean(0)[0])[:, None, None]
    array[upper] = 9
    write_volume(Volume(array, labels.geometry), tmp_path / "map.nii.gz")
    source = read_source(tmp_path / "map.nii.gz", "verse")
    bodies = mended_bodies(source, 1.0)[0]
    fixed, parted, joined = part_and_join(bodies, labels.spacing, lambda body: to_vertebra(body, labels.geometry, Data(2.0)))
    assert parted == [joint[0]] and len(fixed) == len(NAMES)
    assert [set(pair) for pair in joined] == [{9, LABEL_OF_NAME["T11"]}]


def test_the_tools_row_counts_as_one_opinion_however_long():
    for n in (3, 12):
        evidence = tool_evidence(LEVELS[:n])
        assert evidence.logs[:, :24].argmax(1).tolist() == list(range(n))
        right = evidence.logs[range(n), range(n)].sum() * evidence.weight
        shifted = evidence.logs[range(n), range(1, n + 1)].sum() * evidence.weight
        assert right - shifted == pytest.approx(2.0, abs=0.1)
    assert np.ptp(tool_evidence([None, "L1"]).logs[0, :24]) == 0


def with_ribs(labels: Volume, carriers: list[str]) -> Volume:
    """TotalSegmentator's values, with a rib on both sides of each carrier: 92 + i left, 104 + i right."""
    array = in_scheme(labels, "totalsegmentator").array.copy()
    columns = np.flatnonzero((labels.array > 0).any(axis=(0, 1)))
    for i, level in enumerate(carriers):
        body = labels.array == LABEL_OF_NAME[level]
        row, depth = (int(np.median(np.flatnonzero(body.any(axis=other)))) for other in ((1, 2), (0, 2)))
        for value, side in ((92 + i, slice(columns.max() + 2, columns.max() + 9)), (104 + i, slice(columns.min() - 8, columns.min() - 1))):
            array[row - 1:row + 2, depth - 6:depth - 2, side] = value
    return Volume(array, labels.geometry)


@pytest.mark.parametrize("carriers, last, first", [(["T10", "T11", "T12"], 2, None), (NAMES[2:], None, 2), (["L1"], 0, 0)])
def test_the_row_of_ribs_ends_at_a_vertebra(labels, tmp_path, carriers, last, first):
    write_volume(with_ribs(labels, carriers), tmp_path / "map.nii.gz")
    source = read_source(tmp_path / "map.nii.gz", "totalsegmentator")
    scheme = source.schemes[0]
    order = sorted(mended_bodies(source, 1.0)[0], key=lambda body: NAMES.index(scheme.levels[body.value]))
    ends = rib_ends(order, source.labels.reoriented("LPS"), scheme.values_of("rib"))
    if len(carriers) == 1:
        assert ends is None                       # a stray value is no row of ribs
        return
    assert (ends.last and ends.last[0], ends.first and ends.first[0]) == (last, first)
    assert rib_ends(order, source.labels.reoriented("LPS"), ()) is None


def test_the_last_and_the_first_rib_are_a_hint_of_the_level():
    """A row that nothing else names: the vertebra that carries the last rib is T12, that with the first one T1; never surely."""
    n, quiet = 6, Penalties()
    nothing = Evidence(np.log(np.full((n, 25), 1 / 25)))
    model = with_tool(EvidenceModel({"shape": dict.fromkeys(REGIONS, 1.0)}, {"shape": 1.0}, {"shape": 0.9}))
    for ribs, place, level in ((RibEnds(last=(2, 0.9)), 2, "T12"), (RibEnds(first=(3, 0.9)), 3, "T1")):
        told = tool_evidence([None] * n, None, ribs)
        heard, deaf = (decode_with_trust({"shape": nothing, "tool": hint}, np.ones(n - 1), model, quiet)
                       for hint in (told, tool_evidence([None] * n)))
        assert heard.names[place] == level and not heard.numbering_anchored
        assert heard.posterior[place, ANATOMICAL_ORDER.index(level)] > 2.5 * deaf.posterior[place, ANATOMICAL_ORDER.index(level)]
        assert reasons({"tool": told}, heard.names, np.ones(n - 1), quiet)["landmarks"] == [
            f"{'last' if level == 'T12' else 'first'} rib at {level} (0.90)"]


def test_names_that_rest_on_the_tool_are_told():
    row = [Vertebra((0.0, 0.0, z), (0.0, 0.0, 0.0), 1.0, hits, level=level) for hits, (z, level) in enumerate([(50.0, "L1"), (20.0, "L2")])]
    flags = decided_flag(row, {0: "T12", 1: "L1"})
    assert flags[0].code == "levels_from_tool" and "2 of 2" in flags[0].message
    assert decided_flag(row, {0: "L1", 1: "L2"}) == []


def test_another_row_of_names_asks_for_a_person():
    flags = difference_flag(level_table([(27, "L5", "L4"), (28, "L4", "L3"), (99, None, None)]), "TotalSegmentator 2")
    assert flags[0].severity == "review" and "2 of 2" in flags[0].message and "shifted by 1" in flags[0].message
    assert difference_flag(level_table([(27, "L5", "L5")]), "TotalSegmentator 2") == []
