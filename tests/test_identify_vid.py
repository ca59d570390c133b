"""The VID benchmark on made scans: reading, metric, folds, prediction format, commands; and the real file's ceilings."""
from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from spineclue_v2.anatomy import LEVELS
from spineclue_v2.cli import _common
from spineclue_v2.errors import InputError
from spineclue_v2.stages.geometry import vid_landmarks
from spineclue_v2.stages.geometry.landmarks import L6, NOT_A_VERTEBRA
from spineclue_v2.utilities.paths import weights_folder
from spineclue_v2.vid import evaluation as vid_evaluation
from spineclue_v2.vid import model as vid_model
from spineclue_v2.vid import origin as vid_origin
from spineclue_v2.vid import scans as vid
from spineclue_v2.vid.candidates import NONE, SIXTH, Seen, candidates
from spineclue_v2.vid.features import features

REAL = Path(__file__).parents[1].parent / "shared" / "data" / "landmarks" / "vid_training.json.gz"


def entry(name, first=14, last=23, seed=0, false=0, missed=(), late=0):
    """A scan of LEVELS[first..last] with noise; `missed` levels are not detected, `false` ones lie below; the reference starts
    the lumbar spine `late` vertebrae below the one that looks lumbar to the detector."""
    generator = np.random.default_rng(seed)
    gaps = np.interp(np.arange(24), [0, 7, 18, 23], [17, 20, 29, 34])
    height = -np.cumsum(gaps)
    truth, detections = [], []
    for level in range(first, last + 1):
        xyz = [float(v) for v in generator.normal([5.0, -90.0, height[level]], 0.5)]
        truth.append({"xyz": xyz, "type": "body", "level": LEVELS[level]})
        if LEVELS[level] in missed:
            continue
        region = 0 if level < 7 else 1 if level < 19 - late else 2
        p = [0.03, 0.03, 0.03]
        p[region] = float(generator.uniform(0.9, 0.995))
        seen = [float(v) for v in generator.normal(xyz, 0.5)]
        detections.append({"xyz": seen, "type": "body", "p_ctl": p})
        for side, sign in (("left", 1), ("right", -1)):
            detections.append({"xyz": [seen[0] + sign * 15, seen[1] + 25, seen[2] + 5], "type": side})
    for k in range(false):
        detections.append({"xyz": [5.0, -90.0, height[last] - 60.0 * (k + 1)], "type": "body", "p_ctl": [0.05, 0.05, 0.3]})
    generator.shuffle(detections)
    return {"scan": name, "collection": "made", "truth": truth, "detections": detections}


def from_corner(raw):
    """Another collection's scan: its coordinates are counted from the image's corner."""
    for point in (*raw["truth"], *raw["detections"]):
        point["xyz"] = [point["xyz"][0] + 200.0, *point["xyz"][1:]]
    return raw | {"collection": "corner"}


def write(path, scans):
    path.write_bytes(gzip.compress(json.dumps(scans).encode()) if path.suffix == ".gz" else json.dumps(scans).encode())
    return path


def numbering(names, shifted=0.0):
    return vid.Answer(tuple(names), np.full(len(names), 0.9), shifted)


@pytest.mark.parametrize("suffix", [".json", ".json.gz"])
def test_reading_sorts_head_to_foot_and_pairs_truth_and_pedicles(tmp_path, suffix):
    raw = entry("a", 17, 20, false=1, missed=("L1",))
    scan = vid_landmarks.read_scans(write(tmp_path / f"scans{suffix}", [raw]))[0]
    assert scan.names == ("T11", "T12", "L1", "L2")
    assert scan.landmarks.targets.tolist() == [17, 18, 20, NOT_A_VERTEBRA]
    assert scan.nearest.tolist() == [0, 1, -1, 2] and not scan.fully_detected
    for place, centre in zip(scan.index, scan.landmarks.centres, strict=True):
        assert raw["detections"][place]["type"] == "body" and raw["detections"][place]["xyz"] == centre.tolist()
    assert (scan.landmarks.left[:3, 0] > scan.landmarks.centres[:3, 0]).all() and np.isnan(scan.landmarks.left[3]).all()


@pytest.mark.parametrize(("content", "message"), [
    (b"{", "readable JSON"), (b"[]", "at least one scan"), (b'{"a": 1}', "list of scans"), (b'[{"scan": "a"}]', "scan 0"),
    (b'[{"scan": "a", "detections": [{"type": "body", "xyz": [1, 2], "p_ctl": [0, 0, 1]}]}]', "three finite numbers"),
    (b'[{"scan": "a", "detections": []}, {"scan": "a", "detections": []}]', "two scans of one name"),
    (b'[{"scan": "a", "detections": [], "truth": [{"type": "body", "xyz": [1, 2, 3], "level": "L7"}]}]', "L7")])
def test_broken_files_are_named(tmp_path, content, message):
    file = tmp_path / "broken.json"
    file.write_bytes(content)
    with pytest.raises(InputError, match=message):
        vid_landmarks.read_scans(file)
    with pytest.raises(InputError, match="does not exist"):
        vid_landmarks.read_scans(tmp_path / "none.json")


def test_identification_rate_known_answers(tmp_path):
    scans = vid_landmarks.read_scans(write(tmp_path / "s.json", [entry("a", 17, 20), entry("b", 17, 20, false=1, missed=("L1",))]))
    right = [numbering(["T11", "T12", "L1", "L2"]), numbering(["T11", "T12", "L2", None])]
    figures = vid_evaluation.evaluate(scans, right)
    assert figures["identification_rate"] == figures["identification_rate_ceiling"] == 7 / 8
    assert figures["all_right"] == figures["all_right_ceiling"] == 0.5 and figures["all_right_fully_detected"] == 1.0
    shifted = [numbering(["T12", "L1", "L2", "L3"], 0.4), numbering(["T11", "T12", "L2", "L3"])]
    figures = vid_evaluation.evaluate(scans, shifted)
    assert figures["identification_rate"] == 3 / 8         # a false detection that is named costs nothing here
    half, *_, whole = figures["risk_coverage"]
    assert half["error"] == 0.0 and whole["error"] == 4 / 7 and whole["scan_error"] == 0.5
    assert "37.50 %" in vid_evaluation.report(figures)


def test_a_nearer_false_detection_takes_the_hit(tmp_path):
    raw = entry("a", 20, 20)
    x, y, z = raw["truth"][0]["xyz"]
    raw["detections"] = [{"xyz": xyz, "type": "body", "p_ctl": [0, 0, 1]} for xyz in ([x, y, z], [x + 5, y, z])]
    scan = vid_landmarks.read_scans(write(tmp_path / "s.json", [raw]))
    nearest = int(scan[0].nearest[0])
    names = [None, None]
    names[1 - nearest] = "L2"                              # the level sits on the detection 5 mm away
    assert vid_evaluation.evaluate(scan, [numbering(names)])["identification_rate"] == 0.0
    names[nearest] = "L2"
    assert vid_evaluation.evaluate(scan, [numbering(names)])["identification_rate"] == 1.0


def test_anomalies_are_counted_apart(tmp_path):
    raw = entry("a", 19, 23, false=1)
    below = next(d for d in raw["detections"] if d["type"] == "body" and max(d["p_ctl"]) < 0.5)
    raw["truth"].append({"xyz": below["xyz"], "type": "body", "level": "L6"})
    scans = vid_landmarks.read_scans(write(tmp_path / "s.json", [raw]))
    assert scans[0].landmarks.targets[-1] == L6
    row = vid_evaluation.evaluate(scans, [numbering(["L1", "L2", "L3", "L4", "L5", None])])["anomalies"]
    assert row["L6"] == {"scans": 1, "all_right": 0, "named": 0} and row["T11-L1"]["scans"] == 0
    row = vid_evaluation.evaluate(scans, [numbering(["L1", "L2", "L3", "L4", "L5", "L6"])])["anomalies"]
    assert row["L6"] == {"scans": 1, "all_right": 1, "named": 1}


def test_folds_keep_repeated_truth_together(tmp_path):
    raws = [entry(f"s{k}", seed=k % 10) for k in range(30)]
    scans = vid_landmarks.read_scans(write(tmp_path / "s.json", raws))
    fold = vid.folds(scans)
    assert all(len(set(fold[k::10])) == 1 for k in range(10))
    assert sorted(np.bincount(fold)) == [6] * 5


def test_look_alikes_stay_together_when_asked(tmp_path):
    raws = [entry(f"s{k}", seed=k) for k in range(40)]
    for raw in raws:                                       # every patient has a size and two scans, 300 mm apart
        size = 1.0 + 0.02 * (int(raw["scan"][1:]) % 20)
        moved = 300.0 * (int(raw["scan"][1:]) // 20)
        for point in (*raw["truth"], *raw["detections"]):
            point["xyz"] = [size * v + moved for v in point["xyz"]]
    scans = vid_landmarks.read_scans(write(tmp_path / "s.json", raws))
    pairs = vid.look_alikes(scans)
    assert len(pairs) >= 10 and np.mean([abs(i - j) == 20 for i, j in pairs]) > 0.7
    fold = vid.folds(scans, keep_look_alikes=True)
    assert all(fold[i] == fold[j] for i, j in pairs) and len(set(fold)) == 5


def with_thirteenth(raw):
    """T12's name off the truth: what was T12 lies, unlabelled, between a T12 and L1."""
    raw["truth"] = [t for t in raw["truth"] if t["level"] != "T12"]
    for t in raw["truth"]:
        if t["level"].startswith("T"):
            t["level"] = f"T{int(t['level'][1:]) + 1}"
    return raw


def with_far_point(raw):
    """A false detection 120 mm beside the spine, at the height of the fifth body."""
    x, y, z = raw["truth"][4]["xyz"]
    raw["detections"].append({"xyz": [x + 120.0, y, z - 3.0], "type": "body", "p_ctl": [0.03, 0.97, 0.03]})
    return raw


@pytest.mark.parametrize("raw", [
    entry("plain"), entry("neck", 0, 12), entry("short", 20, 22), entry("false", false=2), entry("missed", missed=("L2",)),
    entry("missed_in_neck", 0, 23, missed=("C5",)), entry("missed_in_chest", 5, 23, missed=("T3",)),
    with_thirteenth(entry("T13")), with_far_point(entry("far", 12, 22))], ids=lambda raw: raw["scan"])
def test_the_right_numbering_is_among_the_candidates(tmp_path, raw):
    scan = vid_landmarks.read_scans(write(tmp_path / "s.json", [raw]))[0]
    case = vid_model.Case.of(scan)
    assert case.exact.sum() == 1 and case.right[case.exact].all()
    assert len(np.unique(case.classes, axis=0)) == len(case.classes) <= 24
    for row in case.classes:
        named = row[row != NONE]
        assert (np.diff(named) > 0).all() and named.max() <= SIXTH
    assert case.features.shape[0] == len(case.classes) and np.isfinite(case.features).any(axis=0).sum() > 80


def test_features_do_not_depend_on_the_name_of_the_collection_or_truth(tmp_path):
    raw = entry("a", false=1)
    bare = {"scan": "a", "detections": raw["detections"]}
    tables = []
    for content in (raw, bare):
        seen = Seen(vid_landmarks.read_scans(write(tmp_path / "s.json", [content]))[0])
        tables.append(features(seen, *candidates(seen)))
    np.testing.assert_array_equal(*tables)


def test_the_answer_is_the_likeliest_candidate_with_its_doubt():
    classes = np.array([[17, 18, 19], [17, 18, NONE], [18, 19, 20]])
    nothing = np.zeros(3, dtype=bool)
    case = vid_model.Case(classes, np.zeros((3, 1)), nothing, nothing, np.zeros((3, 25, 8)), np.zeros(0), "")
    said = vid_model.answer(case, np.log([0.45, 0.25, 0.3]))
    assert said.names == ("T11", "T12", "L1")
    np.testing.assert_allclose(said.confidence, [0.7, 0.7, 0.45], atol=1e-9)
    assert said.shifted == pytest.approx(0.3)              # the second rejects one and shifts none
    assert vid_model.answer(case, np.log([0.3, 0.45, 0.25])).names == ("T11", "T12", None)
    empty = vid_model.Case(np.zeros((0, 2), dtype=int), np.zeros((0, 1)), nothing[:0], nothing[:0], np.zeros((0, 25, 8)), np.zeros(0), "")
    assert vid_model.answer(empty, np.zeros(0)).names == (None, None)


def test_temperature_matches_how_often_the_scores_are_right():
    """Scores say 0.99 : 0.01 but are right in three of four: the best temperature turns 0.99 into 0.75."""
    scores = [np.log([0.99, 0.01])] * 40
    right = [np.array([k % 4 != 0, k % 4 == 0]) for k in range(40)]
    cases = [vid_model.Case(np.zeros((2, 1), dtype=int), np.zeros((2, 1)), row, row, np.zeros((2, 25, 8)), np.zeros(0), "")
             for row in right]
    temperature = vid_model.fit_temperature(scores, cases)
    assert temperature == pytest.approx(np.log(99) / np.log(3), rel=0.03)


def cases_of(tmp_path, raws):
    return [vid_model.Case.of(scan) for scan in vid_landmarks.read_scans(write(tmp_path / "cases.json", raws))]


def two_collections(name, count, seed):
    """Turn and turn about: one collection starts the lumbar spine where the detector does, the other one vertebra lower. No scan shows
    L5."""
    raws = [entry(f"{name}{k}", 12 + k % 3, 20 + k % 3, seed + k, late=k % 2) for k in range(count)]
    return [from_corner(raw) if k % 2 else raw for k, raw in enumerate(raws)]


def test_the_origin_is_guessed_from_the_scan_not_from_its_name(tmp_path):
    cases = cases_of(tmp_path, two_collections("a", 60, 0))
    whole, names = np.stack([case.whole for case in cases]), [case.collection for case in cases]
    origin = vid_origin.Origin.fit(whole, names, 0)
    crossed = vid_origin.Origin.cross_fit(whole, names, 0)
    assert origin.names == ("corner", "made") and crossed.shape == (60, 2)
    np.testing.assert_allclose(crossed.sum(axis=1), 1.0, atol=1e-5)
    assert (crossed.argmax(axis=1) == [origin.names.index(name) for name in names]).mean() > 0.9
    new = cases_of(tmp_path, [raw | {"collection": "made"} for raw in two_collections("b", 10, 900)])
    assert (origin.guess(np.stack([case.whole for case in new])).argmax(axis=1) == [1, 0] * 5).all()
    alone = vid_origin.Origin.fit(whole[::2], names[::2], 0)
    assert alone.guess(whole).tolist() == [[1.0]] * 60


def test_collections_that_name_the_same_looks_differently_are_both_named_right(tmp_path):
    model = vid_model.VidModel.fit(cases_of(tmp_path, two_collections("a", 80, 0)), vid_model.Schedule(epochs=30), 1)
    raws = [raw | {"collection": ""} for raw in two_collections("b", 20, 900)]
    scans = vid_landmarks.read_scans(write(tmp_path / "new.json", raws))
    right = [said.names == scan.names for said, scan in zip(model.number(scans), scans, strict=True)]
    assert np.mean(right[::2]) >= 0.8 and np.mean(right[1::2]) >= 0.8


@pytest.fixture(scope="module")
def model_file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vid")
    raws = [entry(f"s{k}", first=10 + k % 6, last=23 - k % 2, seed=k, false=k % 3 == 0) for k in range(60)]
    raws = [from_corner(raw) if k % 4 == 1 else raw for k, raw in enumerate(raws)]
    data = write(folder / "train.json.gz", raws)
    assert _common.main("benchmark_vid", ["train", str(data), "-m", str(folder / "m.pth"), "-epochs", "12", "-members", "1"]) == 0
    return folder / "m.pth"


def test_train_then_predict_writes_the_format(model_file, tmp_path, capsys):
    raws = [entry("x", 12, 23, seed=500, false=1), entry("y", 15, 23, seed=501)]
    raws[1].pop("truth")
    out = tmp_path / "OUT.json"
    file = write(tmp_path / "f.json", raws)
    assert _common.main("benchmark_vid", ["predict", str(file), "-m", str(model_file), "-o", str(out)]) == 0
    answer = json.loads(out.read_text())
    assert list(answer) == ["x", "y"]
    for raw in raws:
        bodies = [i for i, d in enumerate(raw["detections"]) if d["type"] == "body"]
        assert [row["index"] for row in answer[raw["scan"]]] == bodies
        assert all(set(row) == {"index", "level", "confidence"} and 0 <= row["confidence"] <= 1 for row in answer[raw["scan"]])
        assert all(row["level"] is None or row["level"] in (*LEVELS, "L6") for row in answer[raw["scan"]])
    assert "identification rate" in capsys.readouterr().out
    named = {row["index"]: row["level"] for row in answer["x"]}
    scan = vid_landmarks.read_scans(tmp_path / "f.json")[0]
    right = [named[int(scan.index[k])] == name for k, name in zip(scan.nearest, scan.names, strict=True)]
    assert np.mean(right) > 0.7


def test_predicting_without_truth_or_bodies(model_file, tmp_path):
    out = tmp_path / "OUT.json"
    file = write(tmp_path / "f.json", [{"scan": "empty", "detections": [], "truth": []}])
    assert _common.main("benchmark_vid", ["predict", str(file), "-m", str(model_file), "-o", str(out)]) == 0
    assert json.loads(out.read_text()) == {"empty": []}


def test_saved_model_answers_the_same_and_foreign_files_are_refused(model_file, tmp_path, capsys):
    model = vid_model.VidModel.load(model_file)
    scan = vid_landmarks.read_scans(write(tmp_path / "s.json", [entry("x", 12, 23, seed=7)]))[0]
    model.save(tmp_path / "again.pth")
    one, other = (m.number([scan])[0] for m in (model, vid_model.VidModel.load(tmp_path / "again.pth")))
    assert one.names == other.names
    np.testing.assert_allclose(one.confidence, other.confidence, atol=1e-6)
    assert model.origin.names == ("corner", "made") and len(model.origin.networks) > 0
    whole = vid_model.Case.of(scan).whole[None]
    np.testing.assert_array_equal(*(m.origin.guess(whole) for m in (model, vid_model.VidModel.load(tmp_path / "again.pth"))))
    content = torch.load(model_file, weights_only=True)
    content["tensors"]["0.layers.0.weight"] = torch.zeros(3, 3)
    torch.save(content, tmp_path / "wrong.pth")
    file = str(tmp_path / "s.json")
    assert _common.main("benchmark_vid", ["predict", file, "-m", str(tmp_path / "wrong.pth"), "-o", str(tmp_path / "o.json")]) == 2
    assert "wrong.pth" in capsys.readouterr().err and not (tmp_path / "o.json").exists()


@pytest.mark.skipif(not (weights_folder() / "vid.pth").exists(), reason="this version comes without VID weights")
def test_shipped_weights_name_a_regular_scan(tmp_path):
    """Without -m the weights of the package answer; a made scan is not their kind, but a clear one is named."""
    raw = entry("x", 14, 23, seed=3)
    out = tmp_path / "OUT.json"
    assert _common.main("benchmark_vid", ["predict", str(write(tmp_path / "f.json", [raw])), "-o", str(out)]) == 0
    levels = {row["level"] for row in json.loads(out.read_text())["x"]}
    assert {"T9", "T12", "L1", "L5"} <= levels


def test_crossval_reports_every_scan(tmp_path, capsys):
    file = write(tmp_path / "f.json", [entry(f"s{k}", first=14, seed=k) for k in range(20)])
    out = tmp_path / "figures.json"
    assert _common.main("benchmark_vid", ["crossval", str(file), "-epochs", "2", "-members", "1", "-o", str(out)]) == 0
    figures = json.loads(out.read_text())
    assert figures["scans"] == 20 and figures["identification_rate_ceiling"] == 1.0
    assert "ceiling" in capsys.readouterr().out


@pytest.mark.parametrize(("arguments", "message"), [
    (["train", "F"], "needs -m"), (["predict", "F"], "needs -o"), (["crossval", "F", "-epochs", "0"], "-epochs"),
    (["crossval", "F"], "at least 10"), (["predict", "F", "-o", "o.json", "-m", "none.pth"], "none.pth")])
def test_bad_calls_end_with_a_sentence_and_code_2(tmp_path, capsys, arguments, message):
    file = write(tmp_path / "f.json", [entry("a")])
    assert _common.main("benchmark_vid", [str(file) if a == "F" else a for a in arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.skipif(not REAL.exists(), reason="the real landmarks are not at hand")
def test_real_file_has_the_known_ceilings():
    scans = vid_landmarks.read_scans(REAL)
    nothing = [numbering([None] * len(scan.index)) for scan in scans]
    figures = vid_evaluation.evaluate(scans, nothing)
    assert figures["scans"] == 1944 and figures["identification_rate"] == 0.0
    assert figures["identification_rate_ceiling"] == pytest.approx(0.990, abs=0.0005)
    assert figures["all_right_ceiling"] == pytest.approx(0.921, abs=0.0005)
    assert figures["anomalies"]["L6"]["scans"] == 46 and figures["anomalies"]["T11-L1"]["scans"] == 8
    fold = vid.folds(scans)
    assert len(set(zip(fold, (scan.name for scan in scans), strict=True))) == 1944 and np.bincount(fold).min() > 380
