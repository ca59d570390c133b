"""CASE.html without a browser: what stands in it, that nothing in it can act, and that its small volume is the scan."""
from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from page_case import EVIL, LEVELS, blocks
from scipy.spatial.transform import Rotation

from spineclue_v2.imageio.volume import ImageGrid, Volume
from spineclue_v2.stages.identify.decoder import Decoder, Numbering
from spineclue_v2.stages.identify.plan import Penalties
from spineclue_v2.stages.identify.shifts import SHIFTS, shift_probabilities, shift_record
from spineclue_v2.visualization.page import preview
from spineclue_v2.visualization.page import write as page_writing
from spineclue_v2.visualization.page.case_page import case_page
from spineclue_v2.visualization.page.content import page_content, summary
from spineclue_v2.visualization.page.measure_tables import percent, plain, words
from spineclue_v2.visualization.page.preview import make_preview, nifti_gz

PAGE = Path(page_writing.__file__).parent


def visible(text: str) -> str:
    """The page without scripts, styles and tags."""
    return re.sub(r"<[^>]+>", " ", re.sub(r"<(script|style).*?</\1>", " ", text, flags=re.S))


def test_saving_writes_page_and_thumbnail_beside_the_rest(tmp_path):
    name = "case & <b>co"
    files = blocks().save(tmp_path, name)
    assert files["page"] == tmp_path / f"{name}.html" and files["thumbnail"] == tmp_path / "thumbnails" / f"{name}.jpg"
    text = files["page"].read_text(encoding="utf-8")
    assert "<h1>case &amp; &lt;b&gt;co</h1>" in text and 'src="data:image/png;base64,' in text
    assert files["thumbnail"].stat().st_size < 40_000 and (tmp_path / f"{name}.json").is_file()


def test_the_page_says_what_the_record_says():
    text = visible(case_page(blocks().to_dict(), "patient 7"))
    for expected in ("patient 7", "4 vertebrae, T12 to L3", "Numbering not anchored", "40 %", "T11 31 %", "20.0 / 18.0 / 24.0", "22 %",
                     "151", "wedge", "Slices are thick", "Use thinner slices", "observed 6.0", "limit 5.0", "one level higher",
                     "this numbering", "60 %", "another numbering", "4 %", "not possible", "sacrum below L5 (0.97)",
                     "Geometry of the bodies", "4 of 4 differently", "1 detection taken for no vertebra", "find vertebrae", "2.00 s"):
        assert expected in re.sub(r"\s+", " ", text), expected
    for level in LEVELS:
        assert re.search(rf">{level}( \?)?</button>", case_page(blocks().to_dict(), "p"))


def test_an_empty_result_says_so_and_promises_nothing():
    text = visible(case_page(blocks(()).to_dict(), "leg"))
    assert "No vertebra found" in text and "anchored" not in text and "valid result" in text


def test_names_and_notes_cannot_act():
    text = case_page(blocks().to_dict(), EVIL, make_preview(blocks().scan, Volume(blocks().labels, blocks().grid)))
    assert EVIL not in text and text.count("<script>") == 1
    assert "onerror=alert" not in text.replace("&lt;img src=x onerror=alert(1)&gt;", "")
    script = re.search(r"<script>(.*?)</script>", text, re.S).group(1)
    allowed = re.search(r"script-src '([^']+)' blob:", text).group(1)
    assert allowed == "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert "default-src 'none'" in text and not re.search(r"(?:src|href)=\"(?:https?:)?//", text)


def test_the_bundled_viewer_is_the_stated_one_and_holds_no_program_that_pages_do_not_need():
    stated = re.search(r"sha256 ([0-9a-f]{64})", (PAGE / "NIIVUE_LICENSES.txt").read_text(encoding="utf-8")).group(1)
    viewer = (PAGE / "niivue.umd.js").read_bytes()
    assert hashlib.sha256(viewer).hexdigest() == stated and b"AGFzbQ" not in viewer
    text = case_page(blocks().to_dict(), "p", make_preview(blocks().scan, Volume(blocks().labels, blocks().grid)))
    assert text.count('id="viewer-code"') == 1 and len(text) < 2_500_000


def test_measures_of_any_kind_become_tables():
    record = blocks().to_dict() | {"measures": {
        "alignment": [{"name": "lordosis", "value": 41.26, "unit": "deg", "levels": ["L1", "L5"], "lines_mm": [[[0, 0, 0], [1, 1, 1]]],
                       "confidence": 0.9999, "position": "lying"},
                      {"name": "pelvic tilt", "value": None, "unit": "deg", "levels": ["S1"], "note": "not given: no heads",
                       "position": "lying"}],
        "disc_height_mm": [{"name": "L1/L2", "value": 0.5, "note": EVIL}], "strange": 5, "nothing": []}}
    first, second = page_content(record)["measures"]
    assert (first.title, second.title) == ("Alignment", "Disc height (mm)") and "lies" in first.note
    assert [name for name, _ in first.columns] == ["Name", "Value", "Levels", "Confidence"]
    assert first.rows == [["lordosis", "41.3\N{NO-BREAK SPACE}°", "L1, L5", "> 99.9 %"]] and first.missing == [("pelvic tilt", "no heads")]
    text = case_page(record, "p")
    assert EVIL not in text and "41.3\N{NO-BREAK SPACE}°" in text and "pelvic tilt (no heads)" in text


def test_measures_of_vertebrae_and_discs_have_one_row_each():
    def row(name: str, value: float | None, **more: object) -> dict[str, object]:
        record = {"name": name, "value": value, "unit": "mm", "levels": ["L1", "L2"], "confidence": 0.9, "position": "lying", "note": ""}
        return record | more

    discs = [row("listhesis", -2.5, disc="L1/L2"), row("height", 8.0, disc="L1/L2"), row("height", 7.0, disc="L2/L3"),
             row("listhesis", None, disc="L2/L3", note="not given: rough end plates")]
    bone = [row("density", 102.0, unit="HU", levels=["L1"], sd=35.5, volume_ml=2.99)]
    record = blocks().to_dict() | {"measures": {"discs": discs, "bone": bone}}
    density, table = page_content(record)["measures"]
    assert table.columns == [("Disc", ""), ("Listhesis", "mm"), ("Height", "mm")]
    assert table.rows == [["L1/L2", "-2.5", "8.0"], ["L2/L3", "–", "7.0"]] and table.missing == [("L2/L3 listhesis", "rough end plates")]
    assert density.rows == [["L1", "102.0", "35.5", "3.0"]] and density.columns[0] == ("Level", "")
    assert [unit for _, unit in density.columns] == ["", "HU", "HU", "ml"]
    assert '<th scope="row">L1/L2</th>' in case_page(record, "p")


def test_heights_have_one_row_a_vertebra_and_narrow_tables_stand_side_by_side():
    def row(level: str, value: float | None, **more: object) -> dict[str, object]:
        record = {"name": "height loss", "value": value, "unit": "%", "levels": [level], "confidence": 0.9, "position": "lying", "note": ""}
        return record | more

    heights = [row("T3", 2.0, where="anterior", measured_mm=[18.0, 18.7, 20.3], expected_mm=[18.3, 18.0, 19.6], loss=[2.0, -3.9, -3.6],
                   interval=[-11.7, 15.6], reference="neighbours", grade_probabilities={"0": 0.93, "1": 0.07}),
               row("T4", None, note="not measured: cut")]
    angles = [{"name": "wedge angle", "value": 1.0, "unit": "deg", "levels": ["T3"], "note": ""}]
    tables = page_content(blocks().to_dict() | {"measures": {"vertebrae": angles, "heights": heights, "bone": angles}})["measures"]
    assert [table.title for table in tables] == ["Angles of the vertebrae", "Density of bone", "Heights"]
    assert tables[2].rows[0] == ["T3", "2.0", "-11.7 to 15.6", "anterior", "18.0 / 18.7 / 20.3", "18.3 / 18.0 / 19.6", "neighbours",
                                 "0 (93 %)"]
    assert set(tables[2].rows[1][1:]) == {"–"} and tables[2].missing == [("T4 height loss", "not measured: cut")]


def test_structures_of_an_mr_have_their_table():
    def row(name: str, kind: str, height: float, **more: object) -> dict[str, object]:
        at = {"centroid_mm": (1.0, 2.0, height), "touches_border": False}
        return {"structure": name, "kind": kind, "label": 3, "volume_ml": 9.5} | at | more

    record = {"status": "ok", "stage": "hybrid_3d", "plans": {}, "versions": {}, "seconds": {}, "numbering_anchored": True, "structures": [
        row("S", "body", 0.0, confidence=0.99), row("L5", "body", 30.0, confidence=0.61),
        row("L5/S", "disc", 15.0, touches_border=True, height_mm=8.26, signal=120.0, signal_to_csf=0.413)]}
    assert [entry["name"] for entry in page_content(record)["rows"]] == ["L5", "L5/S", "S"], "from head to foot"
    text = visible(case_page(record, "mr"))
    assert "2 bodies, L5 to S, 1 disc" in text and "9.5" in text and "truncated" in text and "Counted from the sacrum" in text
    assert "61 %" in text and "L5 ?" in text and "8.3" in text and "0.41" in text and "anchored" not in text
    assert "No sacrum to count from" in visible(case_page(record | {"numbering_anchored": False}, "mr"))
    assert summary({"structures": []}) == "No structure found"


@pytest.mark.parametrize("p, said", [(0.0, "0 %"), (0.0004, "< 0.1 %"), (0.013, "1.3 %"), (0.5, "50 %"), (0.995, "99.5 %"),
                                     (0.99999, "> 99.9 %")])
def test_percentages_claim_no_certainty(p, said):
    assert percent(p) == said


def test_cells_and_titles_read_as_words():
    assert [plain(v) for v in (None, True, 0.1234, 12.34, ["a", 1], {"k": 2})] == ["", "yes", "0.1", "12.3", "a, 1", "k: 2"]
    assert words("disc_height_mm") == "Disc height (mm)" and words("mean_hu") == "Mean (HU)"


# -- the small volume ------------------------------------------------------------------------------------------------------------
@settings(max_examples=15, deadline=None)
@given(angles=st.tuples(*[st.floats(-40, 40)] * 3), flips=st.tuples(*[st.sampled_from([1, -1])] * 3))
def test_the_small_volume_lies_where_the_scan_lies(angles, flips):
    """Each block's bright voxels and label, read by another library, have their centre where the vertebra has its own."""
    direction = Rotation.from_euler("xyz", angles, degrees=True).as_matrix() @ np.diag(flips)
    result = blocks(direction=direction)
    made = make_preview(result.scan, Volume(result.labels, result.grid))
    image = nibabel.Nifti1Image.from_bytes(gzip.decompress(nifti_gz(made.labels)))
    scan = nibabel.Nifti1Image.from_bytes(gzip.decompress(nifti_gz(made.scan, made.step, made.low)))
    assert np.allclose(image.affine, scan.affine)
    for number, vertebra in enumerate(result.vertebrae, start=1):
        where = np.argwhere(np.asarray(image.dataobj) == number)
        centre = nibabel.affines.apply_affine(image.affine, where.mean(0)) * (-1, -1, 1)
        assert np.allclose(centre, vertebra.body_centre, atol=0.8)
        assert abs(np.median(scan.get_fdata()[tuple(where.T)]) - (300 + 50 * (number - 1))) < 10


def test_a_huge_field_gets_a_small_preview_that_says_so(monkeypatch):
    monkeypatch.setattr(preview, "VOXELS", 20_000)
    grid = ImageGrid((150, 117, 117), (6.0, 6.0, 6.0), (0.0, 0.0, 0.0), np.eye(3))
    scan, labels = np.zeros(grid.shape, np.int16), np.zeros(grid.shape, np.uint8)
    labels[5:30, 10:30, 10:30], labels[120:140, 90:110, 90:110] = 20, 24
    made = make_preview(Volume(scan, grid), Volume(labels, grid))
    assert made.scan.array.size <= 20_000 * 1.02 and made.coarser and made.scan.array.shape == made.labels.array.shape
    assert made.values == (20, 24) and set(np.unique(made.labels.array)) == {0, 1, 2}
    assert "small preview" in case_page(blocks(()).to_dict(), "p", made)


def test_voxels_are_never_finer_than_the_scan():
    result = blocks()
    made = make_preview(result.scan, Volume(result.labels, result.grid))
    assert made.scan.spacing == result.grid.spacing and not made.coarser


def test_no_name_of_the_scan_gets_into_the_volume():
    text = gzip.decompress(nifti_gz(blocks().scan))[:352]
    assert text[4:40].strip(b"\0") == b"" and text[148:252].strip(b"\0") == b""      # db_name, descrip, aux_file


# -- trouble ---------------------------------------------------------------------------------------------------------------------
def test_a_page_that_fails_is_a_warning(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(page_writing, "make_preview", lambda *_: 1 / 0)
    files = blocks().save(tmp_path, "case")
    assert "page" not in files and (tmp_path / "case.json").is_file() and not (tmp_path / "case.html").exists()
    assert "case.html was not written" in caplog.text and not list(tmp_path.glob(".part*"))


def test_without_a_report_there_is_no_page(tmp_path):
    files = replace(blocks(), scan=None).save(tmp_path, "case", report=False)
    assert set(files) & {"page", "thumbnail", "report"} == set() and not list(tmp_path.rglob("*.html"))


# -- shifts ----------------------------------------------------------------------------------------------------------------------
def test_shifts_and_the_numbering_share_the_probability():
    """Two equally good numberings one level apart: half each; and what is not shifted is what `shifted` says."""
    rows = np.full((6, 25), np.log(1e-6))
    for i in range(6):
        rows[i, [10 + i, 11 + i]] = np.log(0.5)
    decoder = Decoder(Penalties(evidence=1.0))
    numbering = decoder.decode(rows, np.ones(5))
    found = shift_probabilities(numbering.names, [decoder.lattice(rows, np.ones(5), None)], np.zeros(1))
    named = dict(zip(SHIFTS, found, strict=True))
    assert named[0] == pytest.approx(1 - numbering.shifted, abs=1e-6) == pytest.approx(0.5, abs=0.02)
    assert max(named[1], named[-1]) == pytest.approx(0.5, abs=0.02) and sum(found) <= 1 + 1e-9
    record = shift_record(replace(numbering, shifts=found))
    assert json.loads(json.dumps(record)) == record and len(record["other_levels"]) == 6
    first = numbering.names[0]
    assert record["shifts"][2]["levels"].startswith(f"{first} to ") and all(0.4 < max(o.values()) < 0.6 for o in record["other_levels"])
    assert shift_record(replace(numbering, names=(None,) * 6)) == {}


def test_shifts_beyond_the_spine_have_no_probability():
    rows = np.full((2, 25), np.log(0.02))
    rows[0, 0] = rows[1, 1] = 0.0
    decoder = Decoder(Penalties())
    numbering = decoder.decode(rows, np.ones(1))
    found = shift_probabilities(numbering.names, [decoder.lattice(rows, np.ones(1), None)], np.zeros(1))
    record = shift_record(replace(numbering, shifts=found))
    assert numbering.names == ("C1", "C2") and [entry["levels"] for entry in record["shifts"][:2]] == [None, None]


@pytest.mark.parametrize("names, spans", [(("T11", "T12"), ["T9 to T10", "T10 to T11", "T11 to T12", "T12 to L1", "L1 to L2"]),
                                          (("L4", "L5"), ["L2 to L3", "L3 to L4", "L4 to L5", "L5 to L6", None]),
                                          (("T12", "T13", "L1"), ["T10 to T12", "T11 to T13", "T12 to L1", "T13 to L2", "L1 to L3"]),
                                          (("C1",), [None, None, "C1", "C2", "C3"])])
def test_shifts_are_named_by_their_levels(names, spans):
    numbering = Numbering(names, np.zeros((len(names), 27)), np.ones(len(names)), None, 0.0, 0.0, True, shifts=(0.0,) * 5)
    assert [entry["levels"] for entry in shift_record(numbering)["shifts"]] == spans
