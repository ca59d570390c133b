"""Measures: blocks of known angles, any pose and grid; what is missing or cut; files, picture and command."""
from __future__ import annotations

import csv
import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from block_spine import DEEP, BlockSpine, Pose, block_spine
from hypothesis import given, settings
from hypothesis import strategies as st

from spineclue_v2.anatomy import LABEL_OF_NAME
from spineclue_v2.anatomy.sacral_segment import first_sacral_segment
from spineclue_v2.cli._common import main
from spineclue_v2.evaluation.files import label_files
from spineclue_v2.export.case_files import export_case
from spineclue_v2.export.measure_files import COLUMNS, export_measures
from spineclue_v2.export.run_files import Provenance
from spineclue_v2.imageio.grid import ImageGrid
from spineclue_v2.imageio.volume import Volume, read_labels, write_volume
from spineclue_v2.inference.measure_labels import measured
from spineclue_v2.measures.parts import PART_VALUES, part_map
from spineclue_v2.results import SpineResult
from spineclue_v2.stages.base import NumberingBasis
from spineclue_v2.visualization.overlay import vertebrae_of

POSES = {"T12": Pose(-4, 6), "L1": Pose(-12, 9), "L2": Pose(-6, 3, 10), "L3": Pose(1, -5), "L4": Pose(10, -9), "L5": Pose(24, -2, 0, 5)}
SLOPE = 38.0


@cache
def lumbar(thick: float = 1.0) -> tuple[BlockSpine, SpineResult]:
    made = block_spine(POSES, (thick, 1.0, 1.0), SLOPE, vessel=40)
    return made, measured(made.labels, {"vertebrae": [{"level": "L1", "confidence": 0.9}, *({"level": n, "confidence": 0.97} for n in (
        "T12", "L2", "L3", "L4", "L5"))]}, made.ct)


def value(result: SpineResult, name: str, levels: str | None = None) -> float | None:
    found = [r for group in result.measures.values() for r in group if r["name"] == name and levels in (None, r.get("disc"), *r["levels"])]
    assert len(found) == 1, (name, levels, len(found))
    return found[0]["value"]


@pytest.mark.parametrize("thick, most", [(1.0, 1.0), (3.0, 2.0)])
def test_known_angles_come_back(thick: float, most: float) -> None:
    _, result = lumbar(thick)
    assert value(result, "lumbar lordosis L1-L5") == pytest.approx(36, abs=most)
    assert value(result, "lumbar lordosis L1-S1") == pytest.approx(50, abs=most + 1)
    assert value(result, "sacral slope") == pytest.approx(SLOPE, abs=most + 1)
    assert value(result, "disc angle", "L4/L5") == pytest.approx(14, abs=most)
    assert value(result, "segmental angle", "L3/L4") == pytest.approx(9, abs=most)
    assert value(result, "wedge angle", "L3") == pytest.approx(0, abs=most)
    assert value(result, "axial rotation", "L2") - value(result, "axial rotation", "L3") == pytest.approx(10, abs=2.5)


def test_the_largest_coronal_curve_has_its_ends_side_and_apex() -> None:
    _, result = lumbar()
    curve = next(r for r in result.measures["alignment"] if r["name"] == "Cobb angle")
    # Going down, the bodies fall to the left, then to the right: the row runs to the right and back, so it is convex to the right.
    assert curve["value"] == pytest.approx(18, abs=1.5) and curve["levels"] == ["L1", "L4"] and curve["convexity"] == "right"
    assert len(curve["lines_mm"]) == 2 and all(len(point) == 3 for line in curve["lines_mm"] for point in line)


def test_a_slip_is_listhesis_and_its_sign_says_where() -> None:
    straight = {"L3": Pose(), "L4": Pose(0, 0, 0, 6), "L5": Pose()}
    result = measured(block_spine(straight).labels)
    assert value(result, "listhesis", "L4/L5") == pytest.approx(6, abs=0.7)
    assert value(result, "listhesis", "L3/L4") == pytest.approx(-6, abs=0.7)
    assert value(result, "listhesis share", "L4/L5") == pytest.approx(100 * 6 / DEEP, abs=3)
    for where in ("anterior", "middle", "posterior"):
        assert value(result, f"disc height {where}", "L3/L4") == pytest.approx(9, abs=0.8)


@settings(max_examples=4, deadline=None, derandomize=True)
@given(st.floats(-15, 15), st.floats(-15, 15), st.floats(-25, 25))
def test_how_the_patient_lies_does_not_change_the_angles(nod: float, tilt: float, turn: float) -> None:
    made, result = lumbar()
    up, back, left = Pose(nod, tilt, turn).axes()
    grid = made.labels.geometry
    turned = ImageGrid(grid.shape, grid.spacing, (3.0, -200.0, 70.0), np.stack([left, back, up], axis=1))
    again = measured(Volume(made.labels.array, turned), None, Volume(made.ct.array, turned))
    for name, levels in (("lumbar lordosis L1-S1", None), ("Cobb angle", None), ("disc angle", "L4/L5"), ("axial rotation", "L2")):
        assert value(again, name, levels) == pytest.approx(value(result, name, levels), abs=0.6)


def test_what_is_missing_or_cut_is_not_given_and_says_why() -> None:
    made, whole = lumbar()
    labels = made.labels.array.copy()
    labels[labels == LABEL_OF_NAME["L3"]] = 0
    without = {r["name"]: r for r in measured(Volume(labels, made.labels.geometry)).measures["alignment"]}
    assert without["lumbar lordosis L1-L5"]["value"] == pytest.approx(value(whole, "lumbar lordosis L1-L5"), abs=0.5)
    assert without["lumbar lordosis L1-S1"]["value"] is None and "without the CT" in without["lumbar lordosis L1-S1"]["note"]
    assert without["thoracic kyphosis T4-T12"]["value"] is None and "T4 is not in view" in without["thoracic kyphosis T4-T12"]["note"]
    assert not [r for r in measured(Volume(labels, made.labels.geometry)).measures["discs"] if "L3" in r["disc"]]
    middle = int(round(made.labels.geometry.world_to_index(made.centres["L1"])[0]))
    cut = measured(Volume(made.labels.array[:middle + 4], made.labels.geometry.cropped((0, 0, 0), (middle + 4, *labels.shape[1:]))))
    row = next(r for r in cut.measures["alignment"] if r["name"] == "lumbar lordosis L1-L5")
    assert row["value"] is None and "L1 is cut" in row["note"]


def test_a_value_is_as_sure_as_its_least_sure_level() -> None:
    rows = {r["name"]: r for r in lumbar()[1].measures["alignment"]}
    assert rows["lumbar lordosis L1-L5"]["confidence"] == 0.9 and rows["sacral slope"]["confidence"] == 0.97
    assert all(r["position"] == "lying" for r in rows.values())


def test_a_mask_of_the_sacrum_serves_without_a_ct() -> None:
    made, _ = lumbar()
    low = made.centres["L5"][2]
    z = made.labels.geometry.index_to_world(np.stack(np.indices(made.labels.array.shape), -1))[..., 2]
    labels = np.where((made.ct.array == 300) & (made.labels.array == 0) & (z < low), LABEL_OF_NAME["sacrum"], made.labels.array)
    assert value(measured(Volume(labels.astype(np.uint8), made.labels.geometry)), "lumbar lordosis L1-S1") == pytest.approx(50, abs=2)


def test_bone_is_measured_and_bright_vessels_are_said() -> None:
    made, plain = lumbar()
    assert [f.code for f in plain.flags] == [] and value(plain, "trabecular density", "L1") == pytest.approx(300, abs=2)
    bright = measured(made.labels, None, block_spine(POSES, sacrum=SLOPE, vessel=220).ct)
    assert [f.code for f in bright.flags] == ["vessels_bright"] and bright.flags[0].observed == pytest.approx(220, abs=15)
    assert all("contrast" in r["note"] for r in bright.measures["bone"])


def test_parts_meet_at_the_posterior_wall_and_discs_fill_the_gaps() -> None:
    made = block_spine({"L3": Pose(), "L4": Pose()})
    result = measured(made.labels)
    parts, labels = part_map(made.labels, result.bodies), made.labels.array
    world = made.labels.geometry.index_to_world(np.stack(np.indices(labels.shape), -1))
    behind = world[..., 1]
    assert set(np.unique(parts[labels > 0])) <= set(PART_VALUES.values()) - {PART_VALUES["disc"]}
    assert (parts[(labels > 0) & (behind < DEEP / 2 - 1)] == PART_VALUES["body"]).all()
    assert (parts[(labels > 0) & (behind > DEEP / 2 + 2)] != PART_VALUES["body"]).all()
    tip = (labels > 0) & (behind > DEEP / 2 + 30)
    assert (parts[tip] == PART_VALUES["spinous process"]).all()
    disc = world[parts == PART_VALUES["disc"]]
    gap = made.centres["L3"][2] - 13, made.centres["L4"][2] + 13
    assert len(disc) > 0.8 * DEEP * 44 * 8 * 0.9 and disc[:, 2].max() <= gap[0] + 1 and disc[:, 2].min() >= gap[1] - 1
    for side, sign in (("left", 1), ("right", -1)):
        named = [world[parts == value][:, 0] for name, value in PART_VALUES.items() if name.endswith(side)]
        assert all((sign * x > 0).all() or (x == 0).any() for x in named)


def test_the_command_measures_a_label_map(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made, _ = lumbar()
    write_volume(made.labels, tmp_path / "spine.nii.gz")
    write_volume(made.ct, tmp_path / "ct.nii.gz")
    assert main("measure", ["-i", str(tmp_path / "spine.nii.gz"), "-ct", str(tmp_path / "ct.nii.gz"), "-o", str(tmp_path / "out")]) == 0
    assert "lumbar lordosis L1-S1" in capsys.readouterr().out
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"spine_measures.csv", "spine_measures.json", "spine_measures.png",
                                                              "spine_parts.nii.gz"}
    rows = list(csv.DictReader((tmp_path / "out" / "spine_measures.csv").open()))
    assert tuple(rows[0]) == COLUMNS and {r["group"] for r in rows} == {"alignment", "vertebrae", "heights", "discs", "bone"}
    assert read_labels(tmp_path / "out" / "spine_parts.nii.gz").geometry.same_grid(made.labels.geometry)


def test_a_prediction_gets_its_measures_into_its_record(tmp_path: Path) -> None:
    made, result = lumbar()
    result.without_scan().save(tmp_path, "case", report=False)
    record = json.loads((tmp_path / "case.json").read_text())
    assert record["measures"]["alignment"] and (tmp_path / "case_parts.nii.gz").is_file()
    del record["measures"]
    (tmp_path / "case.json").write_text(json.dumps(record))
    assert main("measure", ["-i", str(tmp_path)]) == 0
    again = json.loads((tmp_path / "case.json").read_text())
    assert again["vertebrae"] == record["vertebrae"]
    lordosis = next(r for r in again["measures"]["alignment"] if r["name"] == "lumbar lordosis L1-L5")
    assert lordosis["confidence"] == 0.9 and lordosis["value"] == pytest.approx(36, abs=1)


@pytest.mark.parametrize("wrong", ["missing", "text", "empty folder", "no vertebra", "other grid"])
def test_bad_input_is_one_sentence_and_writes_nothing(wrong: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels = np.zeros((20, 20, 20), np.uint8)
    labels[5:10, 5:10, 5:10] = 77 if wrong == "no vertebra" else 20
    grid = ImageGrid((20, 20, 20), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), np.eye(3))
    source, extra = tmp_path / "map.nii.gz", []
    if wrong in ("no vertebra", "other grid"):
        write_volume(Volume(labels, grid), source)
    if wrong == "text":
        source = tmp_path / "map.txt"
        source.write_text("no map")
    if wrong == "empty folder":
        source = tmp_path / "results"
        source.mkdir()
    if wrong == "other grid":
        write_volume(Volume(np.zeros((20, 20, 21), np.int16) - 500, ImageGrid((20, 20, 21), (1.0, 1.0, 1.0), (9.0, 0.0, 0.0), np.eye(3))),
                     tmp_path / "ct.nii.gz")
        extra = ["-ct", str(tmp_path / "ct.nii.gz")]
    assert main("measure", ["-i", str(source), "-o", str(tmp_path / "out"), *extra]) == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith("error: ") and said.count("\n") == 0 and not (tmp_path / "out").exists()


def test_a_single_body_and_nonsense_are_measured_without_a_crash() -> None:
    labels = block_spine({"L3": Pose()}).labels
    assert [r["name"] for r in measured(labels).measures["vertebrae"]] == ["wedge angle", "lateral wedge angle", "axial rotation"]
    noise = np.random.default_rng(0).integers(0, 26, (30, 30, 30)).astype(np.uint8)
    rows = measured(Volume(noise, ImageGrid((30, 30, 30), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), np.eye(3)))).measures["alignment"]
    assert all(r["value"] is None for r in rows)


def test_sub_regions_are_no_label_maps_to_evaluate(tmp_path: Path) -> None:
    labels = block_spine({"L3": Pose()}).labels
    for name in ("a.nii.gz", "a_parts.nii.gz", "b_parts.nii.gz"):
        write_volume(labels, tmp_path / name)
    assert [path.name for path in label_files(tmp_path)] == ["a.nii.gz", "b_parts.nii.gz"]


def test_what_an_ensemble_wrote_is_measured_in_one_call(tmp_path: Path) -> None:
    made, _ = lumbar()
    bare = tuple(replace(v, confidence=0.9, heights=None, height_doubt=None, frame=None) for v in measured(made.labels).vertebrae)
    result = SpineResult(bare, True, grid=made.labels.geometry, mask_grid=made.labels.geometry.reoriented("LPS")[0])
    export_case(result, tmp_path, "case", {"name": "ensemble", "members": []})
    assert all(v["heights"] is None for v in json.loads((tmp_path / "case.json").read_text())["vertebrae"])
    assert main("measure", ["-i", str(tmp_path)]) == 0
    record = json.loads((tmp_path / "case.json").read_text())
    assert all(v["heights"] for v in record["vertebrae"]) and record["plans"]["name"] == "ensemble"
    assert [row["levels"] for row in record["measures"]["heights"]] == [[v["level"]] for v in record["vertebrae"]]
    assert {row["confidence"] for row in record["measures"]["heights"]} == {0.9}


def sacral(made: BlockSpine, result: SpineResult) -> SpineResult:
    """The result with a detection below L5 that the numbering names none: what the block spine has as its sacrum."""
    view = made.labels.reoriented("LPS")
    low = made.centres["L5"][2]
    z = view.geometry.index_to_world(np.stack(np.indices(view.array.shape), -1))[..., 2]
    bone = (made.ct.reoriented("LPS").array == 300) & (view.array == 0) & (z < low) & (z > low - 60)
    first = vertebrae_of(Volume(np.where(bone, LABEL_OF_NAME["L5"], 0).astype(np.uint8), view.geometry))[0]
    names = tuple(v.level for v in result.vertebrae)
    basis = NumberingBasis((*result.vertebrae, replace(first, level=None)), (*names, None), (*names, None), {})
    return replace(result, basis=basis, mask_grid=view.geometry)


def test_the_first_sacral_segment_serves_without_a_ct_and_can_be_left_out(tmp_path: Path) -> None:
    made, _ = lumbar()
    found = sacral(made, measured(made.labels)).with_measures()
    assert found.sacrum is not None and value(found, "lumbar lordosis L1-S1") == pytest.approx(50, abs=2)
    parts = read_labels(export_measures(found, made.labels, tmp_path, "case")["parts"]).array
    assert (parts == LABEL_OF_NAME["sacrum"]).sum() > 1000 and not (parts[made.labels.array > 0] == LABEL_OF_NAME["sacrum"]).any()
    without = replace(found, provenance=Provenance(options={"sacrum": False})).with_measures()
    assert without.sacrum is None and value(without, "lumbar lordosis L1-S1") is None


def test_only_what_follows_the_last_lumbar_vertebra_is_the_sacrum() -> None:
    made, _ = lumbar()
    basis = sacral(made, measured(made.labels)).basis
    assert basis is not None and first_sacral_segment(basis.names, basis.detections) is basis.detections[-1]
    assert first_sacral_segment((*basis.names[:-2], "L4", None), basis.detections) is None
    far = replace(basis.detections[-1], body_centre=tuple(np.array(basis.detections[-1].known_body_centre) - [0, 0, 60]))
    assert first_sacral_segment(basis.names, (*basis.detections[:-1], far)) is None
    assert first_sacral_segment(basis.names, (*basis.detections[:-1], replace(basis.detections[-1], volume_ml=1.0))) is None
    row = basis.names[:-1], basis.detections[:-1]
    assert first_sacral_segment(*row, basis.detections[-1]) is basis.detections[-1] and first_sacral_segment(*row, far) is None
    assert first_sacral_segment(basis.names, (*basis.detections[:-1], far), basis.detections[-1]) is basis.detections[-1]
