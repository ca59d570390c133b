"""`spineclue_renumber` on stored results: what is rewritten, what stays, priors and series, and what is refused with nothing written."""
from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_known import MODEL, names, rows

from spineclue_v2.anatomy import LABEL_OF_NAME, LEVELS
from spineclue_v2.anatomy.known import Known
from spineclue_v2.anatomy.vertebra import BodyHeights, Vertebra
from spineclue_v2.cli import _common
from spineclue_v2.export.evidence_file import read_evidence
from spineclue_v2.export.folder_tables import write_tables
from spineclue_v2.flags import Flag
from spineclue_v2.imageio.grid import ImageGrid
from spineclue_v2.imageio.volume import Volume, read_labels
from spineclue_v2.inference.prior import row_of
from spineclue_v2.inference.renumber import save_again
from spineclue_v2.inference.row_match import match_rows
from spineclue_v2.inference.stored_result import read_result
from spineclue_v2.results import SpineResult
from spineclue_v2.stages.base import Evidence, NumberingBasis
from spineclue_v2.stages.identify.numbering import apply_numbering, number

COUNT = 6


def run(*arguments: object) -> int:
    try:
        return _common.main("renumber", [str(a) for a in arguments])
    except SystemExit as stop:
        return int(stop.code or 0)


def body(size: float, seed: int, frame: np.ndarray, centre: np.ndarray, grid: ImageGrid) -> tuple[np.ndarray, tuple[int, int, int]]:
    """A body with an arch behind and two bumps where `seed` says: no two seeds are alike. Mask and first index on `grid`."""
    random = np.random.default_rng(seed)
    bumps = random.uniform(-1, 1, (3, 3)) * (size, size, 0.6 * size)
    index = grid.world_to_index(centre)
    reach = np.ceil(2.6 * size / np.array(grid.spacing)).astype(int)
    low = np.floor(index).astype(int) - reach
    places = np.stack(np.meshgrid(*[np.arange(a, a + 2 * r + 1) for a, r in zip(low, reach, strict=True)], indexing="ij"), -1)
    own = (grid.index_to_world(places) - centre) @ frame
    mask = ((own[..., :2] / size) ** 2).sum(-1) ** 2 + (own[..., 2] / (0.45 * size)) ** 4 <= 1
    mask |= (np.abs(own[..., 0]) < 0.2 * size) & (own[..., 1] > 0) & (own[..., 1] < 2.0 * size) & (np.abs(own[..., 2]) < 0.2 * size)
    for bump in bumps:
        mask |= np.linalg.norm(own - bump, axis=-1) < 0.4 * size
    inside = np.argwhere(mask)
    first, last = inside.min(0), inside.max(0) + 1
    box = tuple(slice(a, b) for a, b in zip(first, last, strict=True))
    return np.ascontiguousarray(mask[box]), tuple(int(v) for v in first + low)


def result(first: str = "T7", sure: float = 0.06, seeds: range = range(COUNT), patient: int = 0, turn: float = 0.0,
           shift: tuple[float, float, float] = (0, 0, 0), spacing: float = 2.0) -> SpineResult:
    """A spine whose vertebrae have shapes of their own; the last detection but none is a false one beside the row."""
    random = np.random.default_rng(100 + patient)
    gaps = 26 + 1.2 * np.arange(30) + random.uniform(-2, 2, 30)
    sizes = 13 + 0.3 * np.arange(30) + random.uniform(-1, 1, 30)
    c, s = np.cos(turn), np.sin(turn)
    motion = np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    centres = np.array([motion @ np.array([0.0, 6 * np.sin(0.6 * k), -gaps[:k].sum()]) + shift for k in seeds])
    grid = ImageGrid((int((np.ptp(centres[:, 2]) + 90) / spacing), int((np.ptp(centres[:, 1]) + 100) / spacing), int(90 / spacing)),
                     (spacing,) * 3, (centres[0, 0] - 45, float(centres[:, 1].min()) - 45, float(centres[:, 2].min()) - 45), np.eye(3))
    vertebrae = []
    for k, centre in zip(seeds, centres, strict=True):
        mask, start = body(float(sizes[k]), 1000 * patient + k, motion, centre, grid)
        vertebrae.append(Vertebra(tuple(centre), (20.0, 20.0, 20.0), 1.0, mask=mask, mask_start=start, body_centre=tuple(centre),
                                  heights=BodyHeights(20.0 + k, 20.0 + k, 21.0 + k), probabilities=np.full(24, 1 / 24)))
    nothing = (None,) * len(vertebrae)
    basis = NumberingBasis(tuple(vertebrae), nothing, nothing, {"geometry": Evidence(rows(first, len(vertebrae), sure))}, model=MODEL)
    numbered = number(basis, Known(), grid, grid)
    flag = Flag("incomplete", "result", "review", f"The spine goes on below {numbered.basis.names[-1]}.", "below")
    found = SpineResult(apply_numbering(numbered, {}), numbered.numbering.numbering_anchored, notes=("A note.", flag.message),
                        flags=(flag,), grid=grid, mask_grid=grid, basis=numbered.basis, scan=Volume(np.zeros(grid.shape, np.int16), grid))
    return found.renumbered()


@pytest.fixture
def stored(tmp_path) -> Path:
    result().save(tmp_path, "a", report=False)
    return tmp_path


def levels(folder: Path, name: str = "a") -> tuple[str, ...]:
    return tuple(v["level"] for v in record(folder, name)["vertebrae"])


def record(folder: Path, name: str = "a") -> dict:
    return json.loads((folder / f"{name}.json").read_text())


def content(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_measures_tables_and_other_formats_follow(tmp_path):
    result().with_measures().save(tmp_path, "a", report=False, also=["mrk.json"])
    write_tables(tmp_path)
    measured = [row["levels"] for row in record(tmp_path)["measures"]["discs"]]
    assert measured and run(tmp_path, "--known", "lowest=L2") == 0
    assert (tmp_path / "a_measures.csv").exists() and (tmp_path / "a_parts.nii.gz").exists()
    one_up = [[LEVELS[LEVELS.index(level) + 2] for level in row] for row in measured]
    assert [row["levels"] for row in record(tmp_path)["measures"]["discs"]] == one_up
    assert [line.split(",")[2] for line in (tmp_path / "vertebrae.csv").read_text().splitlines()[1:]] == list(names("T9", COUNT))
    assert names("T9", COUNT)[0] in (tmp_path / "a.mrk.json").read_text()


def test_an_interruption_leaves_the_case_as_it_was(stored, monkeypatch):
    before = content(stored)

    def stop(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("spineclue_v2.results.write_json", stop)     # CASE.json is what is written last
    with pytest.raises(KeyboardInterrupt):
        read_and_save = read_result(stored, "a").renumbered("lowest=L2")
        save_again(read_and_save, stored, "a")
    assert content(stored) == before


def test_a_pin_renames_all_files(stored):
    before = read_labels(stored / "a.nii.gz").array
    assert run(stored, "--known", "lowest=L2") == 0
    assert levels(stored) == names("T9", COUNT)
    after = read_labels(stored / "a.nii.gz").array
    values = {LABEL_OF_NAME[name] for name in names("T9", COUNT)}
    assert set(np.unique(after)) == {0} | values and ((after > 0) == (before > 0)).all()
    assert {row["label"] for row in json.loads((stored / "a_ctd.json").read_text())[1:]} == values
    written = record(stored)
    assert written["anchored_by"] == "known" and written["numbering_anchored"] and written["known"]["given"] == "lowest=L2"
    assert written["notes"] == ["A note.", "The spine goes on below L2."] and written["flags"][0]["message"].endswith("below L2.")
    assert written["vertebrae"][3]["heights"]["measured_mm"] == [23.0, 23.0, 24.0]


def test_expected_heights_follow_the_level(stored):
    before = record(stored)["vertebrae"][3]["heights"]
    run(stored, "--known", "lowest=T9")
    after = record(stored)["vertebrae"][3]["heights"]
    assert after["measured_mm"] == before["measured_mm"] and after["expected_mm"] != before["expected_mm"]


def test_what_is_forgotten_is_as_it_was(stored):
    before = content(stored)
    assert run(stored, "--known", "3=L1") == 0
    assert run(stored, "--scan_alone") == 0
    after = content(stored)
    assert after["a.nii.gz"] == before["a.nii.gz"] and after["a_ctd.json"] == before["a_ctd.json"]
    changed = {"seconds"}
    assert {k: v for k, v in json.loads(after["a.json"]).items() if k not in changed} == {
        k: v for k, v in json.loads(before["a.json"]).items() if k not in changed}


def test_a_detection_that_was_no_vertebra_comes_back_with_its_mask(tmp_path):
    """Its classifier says "not a vertebra"; a pin at its place says otherwise."""
    spine = result("T7", 0.9)
    logs = spine.basis.evidence["geometry"].logs.copy()
    logs[3] = np.log([1e-7] * 24 + [1.0])
    detections = list(spine.basis.detections)               # off its place in the row: one in its place is not left out
    x, y, z = detections[3].body_centre
    detections[3] = replace(detections[3], body_centre=(x, y, z + 9.0))
    basis = replace(spine.basis, names=(None,) * COUNT, evidence={"geometry": Evidence(logs)}, detections=tuple(detections))
    numbered = number(basis, Known(), spine.grid, spine.grid)
    assert numbered.basis.names[3] is None
    first = replace(spine, vertebrae=apply_numbering(numbered, {}), basis=numbered.basis)
    first.save(tmp_path, "a", report=False)
    assert run(tmp_path, "--known", f"T10@{x},{y},{z}") == 0
    assert levels(tmp_path) == names("T7", COUNT)
    labels = read_labels(tmp_path / "a.nii.gz").array
    mask = spine.basis.detections[3].mask
    assert (labels == LABEL_OF_NAME["T10"]).sum() == mask.sum()
    assert run(tmp_path, "--scan_alone") == 0 and "T10" not in levels(tmp_path)[3:4]
    vertebrae, again, _ = read_evidence(tmp_path / "a_evidence.npz", read_labels(tmp_path / "a.nii.gz"))
    assert again.detections[3].mask.sum() == mask.sum() and len(vertebrae) == COUNT - 1


def test_what_was_seen_below_the_row_is_kept(tmp_path):
    spine = result("T7")
    *rest, last = spine.basis.detections
    shorter = replace(spine, vertebrae=spine.vertebrae[:-1], basis=replace(
        spine.basis, detections=tuple(rest), names=spine.basis.names[:-1], free=spine.basis.free[:-1], below=replace(last, level=None),
        evidence={name: Evidence(found.logs[:-1]) for name, found in spine.basis.evidence.items()}))
    shorter.save(tmp_path, "a", report=False)
    for _ in range(2):      # as it was stored, and as it is stored again under other names
        below = read_result(tmp_path, "a").basis.below
        assert below.mask.sum() == last.mask.sum() and np.allclose(below.body_centre, last.body_centre)
        assert run(tmp_path, "--known", "lowest=L2") == 0


def test_the_same_in_memory_and_stored(stored):
    assert [v.level for v in result().renumbered("lowest=L2")] == [v.level for v in read_result(stored, "a").renumbered("lowest=L2")]
    assert repr(result().renumbered("lowest=L2")).endswith("anchored by what was said>")


def test_the_picture_is_drawn_again_or_taken_away(stored, capsys):
    (stored / "a.png").write_bytes(b"old")
    assert run(stored, "--known", "lowest=L2") == 0
    assert not (stored / "a.png").exists() and "is removed (a.png)" in capsys.readouterr().err


@pytest.mark.parametrize("words, said", [
    (["--known", "L1@0,0,9999"], "outside the scan"), (["--known", "3=L1", "4=L3", "5=L2"], "exclude each other"),
    (["--known", "7=L1"], "not found"), (["--known", "S1"], "expected"), ([], "--scan_alone"),
    (["--known", "3=L1", "--prior", "x"], "one of"), (["--prior", "none.json"], "does not exist"),
    (["-case", "b", "--scan_alone"], "no case 'b'"), (["--one_patient"], "do not fit together")])
def test_bad_input_is_one_sentence_and_nothing_is_written(stored, capsys, words, said):
    before = content(stored)
    assert run(stored, *words) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert content(stored) == before


@pytest.mark.parametrize("broken, said", [("a_evidence.npz", "evidence"), ("a.json", "JSON"), ("a.nii.gz", "a.nii.gz")])
def test_broken_files_are_said(stored, capsys, broken, said):
    (stored / broken).write_bytes(b"nothing of the kind")
    assert run(stored, "--known", "lowest=L2") == 2
    assert said in capsys.readouterr().err


def test_an_older_result_is_told_to_be_predicted_again(stored, capsys):
    (stored / "a_evidence.npz").unlink()
    assert run(stored, "--known", "lowest=L2") == 2
    assert "predict it again" in capsys.readouterr().err


def test_one_bad_case_of_two_leaves_the_other(stored, capsys):
    result().save(stored, "b", report=False)
    (stored / "b_evidence.npz").write_bytes(b"")
    assert run(stored, "--known", "lowest=L2") == 1
    assert levels(stored, "a") == names("T9", COUNT) and "b: unchanged" in capsys.readouterr().out


@pytest.fixture(scope="module")
def earlier(tmp_path_factory) -> Path:
    """The same patient, the four vertebrae T9..L1 of which are shown with L2 and L3, sure of their levels."""
    folder = tmp_path_factory.mktemp("earlier")
    result("T9", 0.97, range(2, 2 + COUNT)).save(folder, "first", report=False)
    return folder


def test_a_prior_in_the_same_place(stored, earlier):
    assert run(stored, "--prior", earlier / "first.json") == 0
    written = record(stored)
    assert levels(stored) == names("T7", COUNT) and written["anchored_by"] == "prior"
    assert "same place" in written["known"]["given"] and written["known"]["prior_anchored"]


def test_a_prior_in_another_place_is_registered(tmp_path, earlier):
    result("T7", 0.06, turn=0.2, shift=(30, -80, 400), spacing=2.5).save(tmp_path, "a", report=False)
    assert run(tmp_path, "--prior", earlier) == 0
    assert levels(tmp_path) == names("T7", COUNT)
    assert "fits" in record(tmp_path)["known"]["given"] and record(tmp_path)["known"]["confidence"] >= 0.95


def test_a_centroid_file_with_its_label_map_is_a_prior(stored, earlier, tmp_path):
    for name in ("first_ctd.json", "first.nii.gz"):
        (tmp_path / name).write_bytes((earlier / name).read_bytes())
    assert run(stored, "--prior", tmp_path / "first_ctd.json") == 0
    assert levels(stored) == names("T7", COUNT)
    (tmp_path / "first.nii.gz").unlink()
    assert run(stored, "--prior", tmp_path / "first_ctd.json") == 2


def test_a_prior_of_another_patient_is_refused(tmp_path, earlier, capsys):
    result("T7", 0.06, patient=5, shift=(30, -80, 400)).save(tmp_path, "a", report=False)
    before = content(tmp_path)
    assert run(tmp_path, "--prior", earlier) == 2
    assert "does not fit" in capsys.readouterr().err and content(tmp_path) == before


def test_a_prior_that_the_scan_contradicts_is_said(tmp_path, earlier):
    result("T8", 0.97, turn=0.2, shift=(30, -80, 400)).save(tmp_path, "a", report=False)
    assert run(tmp_path, "--prior", earlier) == 0
    written = record(tmp_path)
    assert levels(tmp_path) == names("T7", COUNT) and not written["numbering_anchored"]
    assert "prior_contradicts_scan" in [flag["code"] for flag in written["flags"]] and written["review_required"]


def test_scans_of_one_patient_are_numbered_jointly(tmp_path, capsys):
    """One is sure, one unsure, one sure of something else; the joint numbering is that of the evidence together."""
    result("T9", 0.99, range(2, 2 + COUNT)).save(tmp_path, "sure", report=False)
    result("T7", 0.06, turn=0.2, shift=(30, -80, 400)).save(tmp_path, "unsure", report=False)
    result("T8", 0.30, turn=-0.1, shift=(0, 50, -300)).save(tmp_path, "wrong", report=False)
    assert run(tmp_path, "--one_patient") == 0
    assert levels(tmp_path, "sure") == names("T9", COUNT)
    assert levels(tmp_path, "unsure") == levels(tmp_path, "wrong") == names("T7", COUNT)
    messages = {flag["code"]: flag["message"] for flag in record(tmp_path, "wrong")["flags"]}
    assert "T8" in messages["series_contradicts_scan"]
    assert record(tmp_path, "unsure")["anchored_by"] == "prior"


def test_rows_match_whatever_the_motion():
    first = result("T7", 0.06)
    for offset, turn in ((0, 0.4), (2, -0.3), (3, 0.0)):
        second = result("T7", 0.06, range(offset, offset + COUNT), turn=turn, shift=(10, 20, 30))
        match = match_rows(row_of(first), row_of(second))
        assert match.pairs == tuple((i + offset, i) for i in range(COUNT - offset)) and match.confidence > 0.95


def test_levels_are_those_of_the_package():
    assert set(names("T7", COUNT)) <= set(LEVELS)
