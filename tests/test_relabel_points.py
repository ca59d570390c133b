"""Naming lists of body centres without masks: formats, axes, order of the points, and lists that are none."""
from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from blocks import spine
from small_model import small_plans, write_results
from test_bad_commands import refused, run
from test_relabel import KnowsTheHeights

from spineclue_v2.anatomy import LABEL_OF_NAME, NUM_LEVELS
from spineclue_v2.errors import InputError
from spineclue_v2.imageio.centroids import DIRECTION, to_voxels
from spineclue_v2.imageio.points import PointName, read_points, write_points
from spineclue_v2.imageio.volume import Volume, write_volume
from spineclue_v2.inference.model import Model, load_trained
from spineclue_v2.inference.pipeline import Options
from spineclue_v2.inference.relabel_points import name_points, relabel_points
from spineclue_v2.stages.appearance import predictor as appearance_predictor
from spineclue_v2.training.stage_model import StageModel

HEIGHTS = {"T11": 150.0, "T12": 122.0, "L1": 92.0, "L2": 60.0, "L3": 27.0}
NAMES = list(HEIGHTS)
POINTS = np.array([[3.0 * i, 5.0 - 2 * i, height] for i, height in enumerate(HEIGHTS.values())])
ORDER = [3, 0, 4, 2, 1]
FALSE = [60.0, 40.0, 76.0]   # beside the spine, at no vertebra's height


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Model:
    """Untrained but for a geometry classifier that knows the heights."""
    folder = write_results(tmp_path_factory.mktemp("results"))
    made = load_trained(folder, ["0"], torch.device("cpu"))
    made.stages["geometry"] = StageModel([KnowsTheHeights(HEIGHTS)], [{}], [{}], [""])
    return made


@pytest.fixture
def shipped(model, monkeypatch) -> Model:
    from spineclue_v2.inference import model as models

    monkeypatch.setattr(models, "load_shipped", lambda device, modality: model)
    return model


def markups(points: np.ndarray, system: str = "LPS") -> dict:
    sign = np.array([1.0, 1.0, 1.0] if system == "LPS" else [-1.0, -1.0, 1.0])
    return {"@schema": "markups-schema-v1.0.3.json#", "markups": [{
        "type": "Fiducial", "coordinateSystem": system, "coordinateUnits": "mm", "display": {"opacity": 0.5},
        "controlPoints": [{"id": str(i), "label": f"F-{i}", "description": "", "position": (sign * point).tolist(), "locked": True}
                          for i, point in enumerate(points)]}]}


def verse(points: np.ndarray, direction: str = "PIR") -> list[dict]:
    """1 mm voxels from a corner far enough away that all are positive."""
    axis = {"L": (0, 1), "R": (0, -1), "P": (1, 1), "A": (1, -1), "S": (2, 1), "I": (2, -1)}
    columns = [500 + axis[side][1] * points[:, axis[side][0]] for side in direction]
    return [{"direction": list(direction)}] + [{"label": 7, "X": x, "Y": y, "Z": z, "by": "me"}
                                               for x, y, z in zip(*(c.tolist() for c in columns), strict=True)]


def write_csv(path: Path, points: np.ndarray) -> Path:
    path.write_text("id,z,x,y,remark\n" + "".join(f'{i},{z},{x},{y},"a, b"\n' for i, (x, y, z) in enumerate(points)))
    return path


def write_json(path: Path, content: object) -> Path:
    path.write_text(json.dumps(content))
    return path


def test_csv_keeps_its_columns_and_order(shipped, tmp_path, capsys):
    given = write_csv(tmp_path / "given.csv", POINTS[ORDER])
    assert run("relabel", "-i", given, "-o", tmp_path / "named.csv", "-device", "cpu") == 0
    assert capsys.readouterr().out.splitlines() == [f"{tmp_path / 'named.csv'}: {' '.join(NAMES)}"]
    before, after = (list(csv.reader(path.open())) for path in (given, tmp_path / "named.csv"))
    assert after[0] == [*before[0], "level", "confidence", "anchored"] and [row[:5] for row in after] == before
    assert [row[5] for row in after[1:]] == [NAMES[i] for i in ORDER]
    assert all(0.5 < float(row[6]) <= 1 and row[7] == "true" for row in after[1:])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["given.csv", "named.csv"]
    relabel_points(tmp_path / "named.csv", tmp_path / "again.csv", shipped)
    assert (tmp_path / "again.csv").read_text() == (tmp_path / "named.csv").read_text()


@pytest.mark.parametrize("system", ["LPS", "RAS"])
def test_markups_keep_everything_but_label_and_description(model, tmp_path, system):
    content = markups(POINTS[ORDER], system)
    relabel_points(write_json(tmp_path / "given.mrk.json", content), tmp_path / "named.mrk.json", model)
    named = json.loads((tmp_path / "named.mrk.json").read_text())
    points = named["markups"][0]["controlPoints"]
    assert [point["label"] for point in points] == [NAMES[i] for i in ORDER]
    assert all("numbering anchored" in point["description"] and "confidence" in point["description"] for point in points)
    for point, old in zip(points, content["markups"][0]["controlPoints"], strict=True):
        point.update(label=old["label"], description=old["description"])
    assert named == content


@pytest.mark.parametrize("direction", ["PIR", "ASL", "LPS", "IRP"])
def test_verse_axes_without_a_scan(direction, tmp_path):
    points = read_points(write_json(tmp_path / "a.json", verse(POINTS, direction)))
    assert np.diff(points.centres, axis=0) == pytest.approx(np.diff(POINTS, axis=0))


def test_verse_gets_numbers_and_the_scan_gives_its_voxels(model, tmp_path, monkeypatch):
    ct = spine(NAMES, (2.0, 1.5, 1.5))[0].reoriented("RAS")
    grid = ct.geometry
    corners = grid.index_to_world(np.array([np.zeros(3), np.array(grid.shape) - 1]))
    places = np.linspace(corners.max(0) - 1, corners.min(0) + 1, len(NAMES))
    heights = StageModel([KnowsTheHeights(dict(zip(NAMES, places[:, 2], strict=True)))], [{}], [{}], [""])
    monkeypatch.setitem(model.stages, "geometry", heights)
    write_volume(ct, tmp_path / "ct.nii.gz")
    rows = [{"direction": list(DIRECTION)}, *({"label": 1, **dict(zip("XYZ", voxel.tolist(), strict=True)), "by": "me"}
                                              for voxel in to_voxels(places[ORDER], grid, DIRECTION))]
    given = write_json(tmp_path / "given_ctd.json", rows)
    assert read_points(given, grid).centres == pytest.approx(places[ORDER])
    relabel_points(given, tmp_path / "named_ctd.json", model, Options(classifiers=("geometry",)), tmp_path / "ct.nii.gz")
    head, *named = json.loads((tmp_path / "named_ctd.json").read_text())
    assert head == rows[0] and [row["label"] for row in named] == [LABEL_OF_NAME[NAMES[i]] for i in ORDER]
    assert all(isinstance(row["anchored"], bool) and 0 < row["confidence"] <= 1 and row["by"] == "me" for row in named)


def test_appearance_counts_where_the_scan_is_given(model, monkeypatch):
    grid = spine(["L1"], (2.0, 1.5, 1.5))[0]
    by_height = KnowsTheHeights(HEIGHTS)
    monkeypatch.setattr(appearance_predictor, "log_probabilities",
                        lambda scan, centres, *_: np.log(by_height.probabilities(centres)[:, :NUM_LEVELS + 1]))
    monkeypatch.setitem(model.stages, "appearance", StageModel(
        [], [{"weight": dict.fromkeys(appearance_predictor.REGIONS, 1.0)}], [{}], []))
    monkeypatch.setitem(model.plans.stages, "appearance", small_plans().stage("appearance"))
    only = Options(classifiers=("appearance",))
    _, names = name_points(POINTS[ORDER], model, only, Volume(grid.array, grid.geometry))
    assert [name.level for name in names] == [NAMES[i] for i in ORDER]
    with pytest.raises(InputError, match="without masks"):
        name_points(POINTS, model, only)


def test_any_order_and_side_give_the_same_names(model, tmp_path):
    _, sorted_names = name_points(POINTS, model)
    rng = np.random.default_rng(0)
    for _ in range(5):
        order = rng.permutation(len(POINTS))
        _, names = name_points(POINTS[order], model)
        assert names == [sorted_names[i] for i in order]
    left = read_points(write_json(tmp_path / "l.mrk.json", markups(POINTS)))
    right = read_points(write_json(tmp_path / "r.mrk.json", markups(POINTS, "RAS")))
    assert np.array_equal(left.centres, right.centres)


def test_a_false_point_gets_no_level_and_says_so(shipped, tmp_path, capsys):
    points = np.vstack([POINTS[:2], FALSE, POINTS[2:]])
    given = write_csv(tmp_path / "given.csv", points)
    assert run("relabel", "-i", given, "-o", tmp_path / "named.csv", "-device", "cpu") == 0
    said = capsys.readouterr().out
    assert "1 of 6 points are no vertebra" in said and "number 3 of the list" in said
    rows = list(csv.DictReader((tmp_path / "named.csv").open()))
    assert rows[2]["level"] == rows[2]["confidence"] == rows[2]["anchored"] == ""
    assert [row["level"] for row in rows if row["level"]] == NAMES
    relabel_points(write_json(tmp_path / "a.json", verse(points)), tmp_path / "b.json", shipped)
    assert json.loads((tmp_path / "b.json").read_text())[3]["label"] == 0
    relabel_points(write_json(tmp_path / "a.mrk.json", markups(points)), tmp_path / "b.mrk.json", shipped)
    assert json.loads((tmp_path / "b.mrk.json").read_text())["markups"][0]["controlPoints"][2]["label"] == "no vertebra"


def test_anchored_is_what_the_decoder_says(model, monkeypatch):
    """A classifier that knows nothing anchors nothing, nor does one point."""
    result, names = name_points(POINTS, model)
    assert result.numbering_anchored and all(name.anchored for name in names)
    vague = StageModel([KnowsTheHeights(HEIGHTS)], [{}], [{}], [""])
    vague.networks[0].probabilities = lambda centres: np.full((len(centres), NUM_LEVELS + 2), 1 / (NUM_LEVELS + 2))
    monkeypatch.setitem(model.stages, "geometry", vague)
    for points in (POINTS, POINTS[:1]):
        result, names = name_points(points, model)
        assert not result.numbering_anchored and not any(name.anchored for name in names)


def test_names_are_written_for_every_point(tmp_path):
    points = read_points(write_csv(tmp_path / "a.csv", POINTS))
    with pytest.raises(ValueError, match="5 points"):
        write_points(tmp_path / "b.csv", points, [PointName("L1", 0.5, False)])


GOOD = markups(POINTS)
BAD = {
    "empty csv": ("a.csv", "", "x, y and z"),
    "header alone": ("a.csv", "x,y,z\n", "no points"),
    "missing column": ("a.csv", "x,y,w\n1,2,3\n", "not z"),
    "column twice": ("a.csv", "x,y,z,Z\n1,2,3,4\n", "not z"),
    "semicolons": ("a.csv", "x;y;z\n1;2;3\n", "separated by commas"),
    "words": ("a.csv", "x,y,z\n1,2,three\n", "1, 2, three"),
    "nan": ("a.csv", "x,y,z\n1,2,3\n1,nan,33\n", "point 2"),
    "infinite": ("a.csv", "x,y,z\n1,2,inf\n", "finite"),
    "short line": ("a.csv", "x,y,z\n1,2\n", "2 columns"),
    "same place": ("a.csv", "x,y,z\n1,2,3\n1,2,30\n1,2,3.1\n", "points 1 and 3"),
    "bytes": ("a.csv", b"\xff\xfe\x00x", "UTF-8"),
    "too many": ("a.csv", "x,y,z\n" + "".join(f"0,0,{20 * i}\n" for i in range(61)), "61 points"),
    "no json": ("a.json", "{", "not valid JSON"),
    "other json": ("a.json", "{}", "no VerSe centroid file"),
    "empty verse": ("a.json", "[]", "no points"),
    "no direction": ("a.json", '[{"label": 20, "X": 1, "Y": 2, "Z": 3}]', "along which axes"),
    "two axes": ("a.json", '[{"direction": ["P", "A", "R"]}, {"X": 1, "Y": 2, "Z": 3}]', "three different axes"),
    "verse nan": ("a.json", '[{"direction": ["P", "I", "R"]}, {"label": 20, "X": 1, "Y": NaN, "Z": 3}]', "point 1"),
    "verse without z": ("a.json", '[{"direction": ["P", "I", "R"]}, {"label": 20, "X": 1, "Y": 2}]', "point 1"),
    "markups by name": ("a.json", json.dumps(GOOD), "ends with .mrk.json"),
    "no markups": ("a.mrk.json", "[]", "no markups file"),
    "no control points": ("a.mrk.json", json.dumps({"markups": [{**GOOD["markups"][0], "controlPoints": []}]}), "no points"),
    "unknown system": ("a.mrk.json", json.dumps({"markups": [{**GOOD["markups"][0], "coordinateSystem": "IJK"}]}), "IJK"),
    "no system": ("a.mrk.json", json.dumps({"markups": [{"controlPoints": []}]}), "LPS or RAS"),
    "other units": ("a.mrk.json", json.dumps({"markups": [{**GOOD["markups"][0], "coordinateUnits": "um"}]}), "expected mm"),
    "unset point": ("a.mrk.json", json.dumps({"markups": [{"coordinateSystem": "LPS", "controlPoints": [{"id": "1"}]}]}), "point 1"),
    "point not placed": ("a.mrk.json", json.dumps({"markups": [{"coordinateSystem": "LPS", "controlPoints": [
        {"position": [0, 0, 0], "positionStatus": "undefined"}]}]}), "point 1"),
    "unknown format": ("a.fcsv", "x", "no known format"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_lists_are_refused_in_one_sentence(name, shipped, tmp_path, capsys):
    file, text, said = BAD[name]
    given = tmp_path / file
    given.write_bytes(text if isinstance(text, bytes) else text.encode())
    out = tmp_path / f"out{''.join(given.suffixes)}"
    sentence = refused(capsys, "relabel", "-i", given, "-o", out, "-device", "cpu")
    assert said in sentence and str(given) in sentence
    assert list(tmp_path.iterdir()) == [given]


def test_bad_places_are_refused_in_one_sentence(shipped, tmp_path, capsys):
    given = write_csv(tmp_path / "a.csv", POINTS)
    ct = spine(["L1"], (2.0, 1.5, 1.5))[0]
    write_volume(ct, tmp_path / "ct.nii.gz")
    command = ("relabel", "-device", "cpu", "-i", given, "-o")
    assert "ends with .csv" in refused(capsys, *command, tmp_path / "b.json")
    assert "it is the input" in refused(capsys, *command, given)
    assert "lie outside" in refused(capsys, *command, tmp_path / "b.csv", "-ct", tmp_path / "ct.nii.gz")
    assert "leave it out" in refused(capsys, *command, tmp_path / "b.csv", "--ignore", "3")
    assert "does not exist" in refused(capsys, "relabel", "-device", "cpu", "-i", tmp_path / "no.csv", "-o", tmp_path / "b.csv")
    assert not list(tmp_path.glob("b.*"))


def test_wrong_units_are_noticed(model, tmp_path):
    result = relabel_points(write_csv(tmp_path / "a.csv", POINTS / 10), tmp_path / "b.csv", model)
    assert any("check the units" in note for note in result.notes)
