"""Formats on demand: tables, Slicer, BIDS, crops, levels; each read back by other means."""
from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from blocks import spine
from hypothesis import given, settings
from hypothesis import strategies as st
from test_predict import QUIET, run, trained, trained_once  # noqa: F401

from spineclue_v2.anatomy import LABEL_OF_NAME, NAME_OF_LABEL, colour
from spineclue_v2.anatomy.label_boxes import label_boxes
from spineclue_v2.anatomy.level_ranges import parse_levels
from spineclue_v2.anatomy.vertebra import BodyHeights, Vertebra
from spineclue_v2.cli._outputs import FORMAT_NAMES
from spineclue_v2.errors import InputError
from spineclue_v2.export.columns import CASE, STRUCTURE, VERTEBRA
from spineclue_v2.export.folder_tables import MEASURE, write_tables
from spineclue_v2.export.formats import FORMATS, check_bids_names, check_formats, write_formats
from spineclue_v2.export.formats.bids import bids_stem
from spineclue_v2.export.formats.crops import upright_grid, upward
from spineclue_v2.export.formats.outlines import outlines
from spineclue_v2.export.run_files import Provenance
from spineclue_v2.flags import Flag
from spineclue_v2.imageio.points import read_points
from spineclue_v2.imageio.volume import Volume, read_labels, read_volume, write_volume
from spineclue_v2.inference import predict_folder
from spineclue_v2.inference.level_selection import select_levels
from spineclue_v2.results import MRResult, SpineResult

ROOT = Path(__file__).parents[1]


def result_of(scan: Volume, labels: np.ndarray, **known: object) -> SpineResult:
    """The result that gives exactly these labels."""
    vertebrae = []
    for value, box in label_boxes(labels).items():
        mask, start = labels[box] == value, tuple(side.start for side in box)
        centre = tuple(float(c) for c in scan.geometry.index_to_world(np.argwhere(mask).mean(axis=0) + start))
        vertebrae.append(Vertebra(centre, (1.0, 1.0, 1.0), 1.0, mask=mask, mask_start=start, body_centre=centre, volume_ml=2.0,
                                  level=NAME_OF_LABEL[value], confidence=0.75, heights=BodyHeights(20.0, 19.0, 21.0), trabecular_hu=140.0))
    return SpineResult(tuple(vertebrae), True, grid=scan.geometry, mask_grid=scan.geometry, scan=scan,
                       provenance=Provenance(files=scan.files), **known)


@pytest.fixture(scope="module")
def made() -> SpineResult:
    ct, labels, _ = spine(("T12", "L1", "L6"))
    return result_of(ct, labels.array)


def save(result: SpineResult, folder: Path, *also: str, case: str = "case") -> dict[str, Path]:
    return result.save(folder, case, report=False, describe=False, also=also)


def test_the_command_offers_what_the_registry_has():
    assert tuple(FORMATS) == FORMAT_NAMES
    with pytest.raises(InputError, match="'dicom' is unknown; there are seg.nrrd"):
        check_formats(["dicom"])


def test_slicer_segmentation_holds_the_label_map_with_names_colours_and_codes(made, tmp_path):
    import SimpleITK as sitk

    image = sitk.ReadImage(str(save(made, tmp_path, "seg.nrrd")["seg.nrrd"]))
    assert np.array_equal(sitk.GetArrayFromImage(image), made.labels)
    for number, name in enumerate(("T12", "L1", "L6")):
        field = {key: image.GetMetaData(f"Segment{number}_{key}") for key in ("Name", "LabelValue", "Color", "Extent", "Tags")}
        assert (field["Name"], int(field["LabelValue"])) == (name, LABEL_OF_NAME[name])
        assert np.allclose([float(c) * 255 for c in field["Color"].split()], colour(name), atol=0.01)
        z, y, x = np.nonzero(made.labels == LABEL_OF_NAME[name])
        assert [int(e) for e in field["Extent"].split()] == [x.min(), x.max(), y.min(), y.max(), z.min(), z.max()]
        code = {"T12": "23215003", "L1": "66794005", "L6": "51282000"}[name]
        assert f"~SCT^91723000^Anatomical Structure~SCT^{code}^" in field["Tags"]


def test_markups_are_the_body_centres(made, tmp_path):
    path = save(made, tmp_path, "mrk.json")["mrk.json"]
    points = json.loads(path.read_text())["markups"][0]
    assert points["coordinateSystem"] == "LPS"
    assert [p["label"] for p in points["controlPoints"]] == ["T12", "L1", "L6"]
    assert np.allclose([p["position"] for p in points["controlPoints"]], [v.body_centre for v in made.vertebrae], atol=1e-3)
    assert len(read_points(path).centres) == 3  # what spineclue_relabel reads


def test_bids_names_are_those_of_verse_and_its_own_reader_finds_them(made, tmp_path):
    save(made, tmp_path, "bids", case="sub-verse500_dir-ax_ct")
    folder = tmp_path / "derivatives" / "sub-verse500"
    names = ["sub-verse500_dir-ax_seg-subreg_ctd.json", "sub-verse500_dir-ax_seg-vert_msk.nii.gz", "sub-verse500_dir-ax_seg-vert_snp.png"]
    assert sorted(p.name for p in folder.iterdir()) == names[:2]
    assert np.array_equal(read_labels(folder / "sub-verse500_dir-ax_seg-vert_msk.nii.gz").array, made.labels)
    (tmp_path / "sub-verse500_dir-ax_ct.png").write_bytes(b"picture")
    write_formats(["bids"], made, Volume(made.labels, made.grid), tmp_path, "sub-verse500_dir-ax_ct")
    assert sorted(p.name for p in folder.iterdir()) == names
    assert json.loads((tmp_path / "derivatives" / "dataset_description.json").read_text())["DatasetType"] == "derivative"
    assert [bids_stem(n) for n in ("sub-verse004", "Case 1", "sub-a_b-c_ct", "a_ct")] == ["sub-verse004", "sub-Case1", "sub-a_b-c", "sub-a"]
    with pytest.raises(InputError, match="'case_1' and 'case1' would both become sub-case1"):
        check_bids_names(["case_1", "case1"])
    with pytest.raises(InputError, match="no letter or digit"):
        check_bids_names(["_"])


def test_crops_are_the_scan_s_own_voxels_in_their_place(made, tmp_path):
    folder = save(made, tmp_path, "crops")["crops"]
    assert sorted(p.name for p in folder.iterdir()) == sorted(f"case_{n}_{k}.nii.gz" for n in ("T12", "L1", "L6") for k in ("ct", "msk"))
    ct, mask = read_volume(folder / "case_L1_ct.nii.gz"), read_labels(folder / "case_L1_msk.nii.gz")
    assert np.unique(mask.array).tolist() == [0, LABEL_OF_NAME["L1"]]
    start = np.round(made.scan.geometry.world_to_index(ct.geometry.index_to_world((0, 0, 0)))).astype(int)
    box = tuple(slice(a, a + n) for a, n in zip(start, ct.array.shape, strict=True))
    assert np.array_equal(ct.array, made.scan.array[box])
    assert (mask.array > 0).sum() == (made.labels == LABEL_OF_NAME["L1"]).sum()
    assert np.array_equal(mask.array > 0, made.labels[box] == LABEL_OF_NAME["L1"])


def test_upright_crops_turn_a_leaning_spine_upright(tmp_path):
    ct, labels, _ = spine(("T12", "L1", "L2", "L3"), (1.0, 1.0, 1.0))
    angle = np.radians(25)
    lean = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
    leaning = replace(ct, geometry=replace(ct.geometry, direction=lean))
    folder = save(result_of(leaning, labels.array), tmp_path, "crops_upright")["crops_upright"]
    mask = read_labels(folder / "case_L1_msk.nii.gz")
    truth = labels.array == LABEL_OF_NAME["L1"]
    # Upright again, the body is the box that it was before the spine leaned.
    found, expected = np.argwhere(mask.array > 0), np.argwhere(truth)
    assert np.abs(np.ptp(found, axis=0) - np.ptp(expected, axis=0)).max() <= 1
    assert abs((mask.array > 0).sum() / truth.sum() - 1) < 0.03
    assert np.allclose(mask.geometry.direction, lean, atol=1e-6)


@given(st.tuples(*[st.floats(-1, 1)] * 3).filter(lambda v: np.linalg.norm(v) > 0.2))
@settings(max_examples=50, deadline=None)
def test_upright_grids_are_right_handed_and_hold_all_points(way):
    up = np.array(way) / np.linalg.norm(way)
    points = np.random.default_rng(0).normal(0, 30, (50, 3))
    grid = upright_grid(points, up, 0.8)
    assert np.allclose(grid.direction.T @ grid.direction, np.eye(3), atol=1e-9) and np.linalg.det(grid.direction) > 0
    assert np.allclose(grid.direction[:, 2], up)
    index = grid.world_to_index(points)
    assert (index > 5).all() and (index < np.array(grid.shape) - 5).all()


def test_upward_runs_from_the_neighbour_below_to_that_above():
    centres = np.array([[0, 0, 100], [0, 10, 70], [0, 0, 40.0]])
    assert np.allclose(upward(centres, 1), [0, 0, 1])
    assert np.allclose(upward(centres, 0), np.array([0, -10, 30]) / np.hypot(10, 30))
    assert np.allclose(upward(centres[:1], 0), [0, 0, 1])


def crossings(polygon: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Even-odd rule at pixel centres, moved by a hair off the vertices' rows."""
    rows, columns = np.mgrid[:shape[0], :shape[1]].astype(float)
    rows, inside = rows + 1e-7, np.zeros(shape, bool)
    for (r0, c0), (r1, c1) in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
        if r0 != r1:
            hit = (r0 > rows) != (r1 > rows)
            inside ^= hit & (columns < (c1 - c0) * (rows - r0) / (r1 - r0) + c0)
    return inside


@given(st.integers(0, 2 ** 32 - 1), st.floats(0.2, 0.8))
@settings(max_examples=60, deadline=None)
def test_outlines_filled_are_the_mask(seed, share):
    """Any mask: holes, islands in holes, pixels that touch at corners, the border."""
    mask = np.random.default_rng(seed).random((9, 12)) < share
    filled = np.zeros(mask.shape, int)
    for polygon in outlines(mask):
        filled += crossings(polygon, mask.shape)
    assert np.array_equal(filled, mask.astype(int))


def test_levels_as_people_write_them():
    assert parse_levels(["L1-L3", "t12"]) == ("T12", "L1", "L2", "L3")
    assert parse_levels(["L2-T12"]) == ("T12", "T13", "L1", "L2")
    assert parse_levels([]) == ()
    for wrong in ("L9", "L1-", "L1-L2-L3", "S1"):
        with pytest.raises(InputError, match=f"'{wrong}' is no level"):
            parse_levels([wrong])


def test_levels_that_were_not_asked_for_are_left_out_and_said(made):
    some = select_levels(made, parse_levels(["L1-L2"]))
    assert [v.level for v in some] == ["L1"] and some.numbering_anchored
    assert np.unique(some.labels).tolist() == [0, LABEL_OF_NAME["L1"]]
    assert [(f.code, f.observed) for f in some.flags] == [("levels_left_out", "T12 L6"), ("levels_not_found", "L2")]
    assert not select_levels(made, ("C1",)).numbering_anchored
    assert select_levels(made, ()) is made


# --- tables --------------------------------------------------------------------------------------------------------------------------

def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_tables_hold_all_cases_of_the_folder_with_the_columns_of_the_data_frame(made, tmp_path):
    flagged = replace(made, flags=(Flag("thick_slices", "read", "review", "Thick."),), notes=("Thick.",), incomplete=("above", "below"))
    save(flagged, tmp_path, case="b")
    save(made, tmp_path, "mrk.json", case="a")
    save(SpineResult((), True, grid=made.grid, mask_grid=made.grid), tmp_path, case="c, empty")
    write_tables(tmp_path)
    vertebrae, cases = rows(tmp_path / "vertebrae.csv"), rows(tmp_path / "cases.csv")
    frame = made.to_dataframe()
    assert list(vertebrae[0]) == ["case", "numbering_anchored", *frame.columns]
    assert [(r["case"], r["level"]) for r in vertebrae] == [(c, n) for c in "ab" for n in ("T12", "L1", "L6")]
    assert float(vertebrae[1]["x_mm"]) == pytest.approx(frame["x_mm"][1]) and vertebrae[1]["height_middle_mm"] == "19.0"
    assert vertebrae[0]["grade"] == "" and vertebrae[0]["touches_border"] == "false"
    assert [r["case"] for r in cases] == ["a", "b", "c, empty"]
    assert cases[1] == {"case": "b", "status": "ok", "vertebrae": "3", "levels": "T12 L1 L6", "numbering_anchored": "true", "margin": "",
                        "lowest_confidence": "0.75", "incomplete": "above; below", "review_required": "true", "flags": "thick_slices",
                        "notes": "Thick.", "seconds": cases[1]["seconds"]}
    assert cases[2]["status"] == "no vertebra found" and cases[2]["levels"] == ""


def test_parquet_has_the_same_values_with_types(made, tmp_path):
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    save(made, tmp_path)
    write_tables(tmp_path)
    frame = pandas.read_parquet(tmp_path / "vertebrae.parquet")
    assert frame["label"].tolist() == [19, 20, 25] and frame["grade"].isna().all()
    assert [str(frame[name].dtype) for name in ("label", "grade", "touches_border", "x_mm")] == ["Int64", "Int64", "boolean", "Float64"]
    assert list(frame.columns) == list(rows(tmp_path / "vertebrae.csv")[0])


def test_tables_of_mr_and_of_measures_and_what_is_no_case(made, tmp_path):
    labels = np.zeros((4, 6, 6), np.uint8)
    labels[1, 1:3, 1:3] = 24
    grid = replace(made.grid, shape=labels.shape)
    mr = MRResult((), False, grid=grid, label_volume=Volume(labels, grid), classes={"L5": 24}, stage="hybrid_2d")
    save(mr, tmp_path, case="mr")
    content = {"status": "ok", "vertebrae": [], "measures": {"alignment": [{"name": "lordosis", "value": 41.5, "unit": "degree",
                                                                           "levels": ["L1", "L5"]}]}}
    (tmp_path / "ct.json").write_text(json.dumps(content))
    (tmp_path / "other.json").write_text("[1, 2]")
    (tmp_path / "broken.json").write_text("{")
    write_tables(tmp_path)
    assert [r["structure"] for r in rows(tmp_path / "structures.csv")] == ["L5"]
    assert rows(tmp_path / "measures.csv") == [{"case": "ct", "group": "alignment", "name": "lordosis", "value": "41.5", "unit": "degree",
                                                "levels": "L1 L5", "confidence": "", "note": ""}]
    assert [r["case"] for r in rows(tmp_path / "cases.csv")] == ["ct", "mr"]
    (tmp_path / "ct.json").unlink()
    write_tables(tmp_path)
    assert not (tmp_path / "measures.csv").exists()


def test_several_processes_end_in_one_complete_table(made, tmp_path):
    """Each writes its cases and then the tables; whoever ends last, all cases are there."""
    def part(number: int) -> None:
        for i in range(3):
            save(made, tmp_path, case=f"case_{number}_{i}")
        subprocess.run([sys.executable, "-c", "import sys; from spineclue_v2.export.folder_tables import write_tables; "
                        "write_tables(sys.argv[1])", str(tmp_path)], check=True)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(part, range(4)))
    assert len(rows(tmp_path / "cases.csv")) == 12 and len(rows(tmp_path / "vertebrae.csv")) == 36
    assert not list(tmp_path.glob(".*"))


def test_every_column_is_documented():
    text = (ROOT / "documentation" / "reference" / "outputs.md").read_text()
    for columns in (VERTEBRA, CASE, STRUCTURE, MEASURE):
        for column in columns:
            assert f"| `{column.name}` | {column.unit} |".replace("|  |", "| |") in text, column.name


# --- the command ---------------------------------------------------------------------------------------------------------------------

def test_predict_writes_what_is_asked_for_and_an_earlier_run_leaves_nothing(trained, tmp_path):  # noqa: F811
    ct, _, _ = spine(("T12", "L1", "L2"))
    write_volume(ct, tmp_path / "scans" / "one_0000.nii.gz")
    out, call = tmp_path / "out", ("-i", tmp_path / "scans", "-o", tmp_path / "out", "-m", trained, "-f", 0, *QUIET)
    assert run(*call, "--also", "seg.nrrd", "mrk.json", "--bids", "--crops") == 0
    assert {"one.seg.nrrd", "one.mrk.json", "one_crops", "derivatives", "vertebrae.csv", "cases.csv"} <= set(os.listdir(out))
    found = [r["level"] for r in rows(out / "vertebrae.csv")]
    assert len(found) == 3
    assert run(*call, "--levels", found[1]) == 0
    assert not {"one.seg.nrrd", "one.mrk.json", "one_crops"} & set(os.listdir(out)) and not list(out.glob("derivatives/*/*"))
    assert [r["level"] for r in rows(out / "vertebrae.csv")] == found[1:2]
    before = (out / "one.json").stat().st_mtime_ns
    assert run(*call, "--c") == 0 and (out / "one.json").stat().st_mtime_ns == before
    assert run(*call, "--c", "--also", "mrk.json") == 0 and (out / "one.mrk.json").exists()


@pytest.mark.parametrize("wanted, said", [
    (("--dicom",), "DICOM objects cannot be written for one_0000.nii.gz: they belong to the DICOM files of a scan"),
    (("--levels", "L7"), "'L7' is no level and no range of levels"),
])
def test_what_cannot_be_written_is_said_before_networks_are_loaded(tmp_path, capsys, monkeypatch, wanted, said):
    monkeypatch.setattr("spineclue_v2.cli.predict.load_model", lambda args: pytest.fail("networks were loaded"))
    write_volume(spine(("L1",))[0], tmp_path / "one_0000.nii.gz")
    assert run("-i", tmp_path / "one_0000.nii.gz", "-o", tmp_path / "out", *wanted) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_missing_package_is_said_with_what_to_install(monkeypatch):
    monkeypatch.setattr("spineclue_v2.export.formats.registry.find_spec", lambda name: None if name == "highdicom" else object())
    with pytest.raises(InputError, match=r"dicom_seg needs the package highdicom; install it with pip install 'spineclue_v2\[dicom\]'"):
        check_formats(["dicom_seg"])


def test_a_full_disk_is_said_before_anything_is_predicted(trained, tmp_path, capsys, monkeypatch):  # noqa: F811
    write_volume(spine(("L1",))[0], tmp_path / "one.nii.gz")
    monkeypatch.setattr(predict_folder.shutil, "disk_usage", lambda place: shutil._ntuple_diskusage(10 ** 9, 10 ** 9, 5_000_000))
    assert run("-i", tmp_path / "one.nii.gz", "-o", tmp_path / "out", "-m", trained, "-f", 0, *QUIET) == 2
    assert "is on a full disk (5 MB free" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_crops_need_the_scan_and_say_so_before_anything_is_written(made, tmp_path):
    with pytest.raises(InputError, match="Crops of case cannot be cut"):
        save(made.without_scan(), tmp_path / "out", "crops")
    assert not (tmp_path / "out").exists()


def test_an_empty_result_has_empty_markups_and_no_crops(made, tmp_path):
    empty = SpineResult((), True, grid=made.grid, mask_grid=made.grid, scan=made.scan)
    written = write_formats(("seg.nrrd", "mrk.json", "crops"), empty, Volume(empty.labels, made.grid), tmp_path, "case")
    assert sorted(written) == ["mrk.json", "seg.nrrd"]
    assert json.loads(written["mrk.json"].read_text())["markups"][0]["controlPoints"] == []
