"""The fingerprint and what the anatomy says about the labels."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from blocks import BODY, STEP, lumbar_dataset, spine, write_dataset

from spineclue_v2.dataset.raw import RawDataset
from spineclue_v2.errors import InputError
from spineclue_v2.imageio.grid import ImageGrid
from spineclue_v2.imageio.orientation import oriented_view
from spineclue_v2.imageio.volume import Volume, read_labels, read_volume
from spineclue_v2.planning.fingerprint import extract_fingerprint, load_fingerprint, measure_case
from spineclue_v2.planning.integrity import are_neighbours, check_case, missing_levels, table

LUMBAR = ["T12", "L1", "L2", "L3", "L4", "L5"]


def test_the_fingerprint_knows_the_blocks(tmp_path: Path) -> None:
    raw = RawDataset(lumbar_dataset(tmp_path / "Dataset501_Lumbar"))
    found = extract_fingerprint(raw, tmp_path / "pp", progress=False)
    assert found == load_fingerprint(tmp_path / "pp")
    assert found["spacings"][1] == pytest.approx([2.1, 1.5, 1.5]) and found["dataset_hash"] == raw.content_hash()
    part = found["spine"]
    assert (part["num_cases"], part["num_vertebrae"], part["num_touching_border"]) == (3, 18, 0)
    assert part["spacing_between_mm"]["p50"] == pytest.approx(STEP, abs=1)
    assert part["body_height_mm"]["p50"] == pytest.approx(BODY[0], abs=2.2)
    assert part["extent_mm"]["lr"]["p50"] == pytest.approx(BODY[2], abs=2) and set(part["levels"]) == set(LUMBAR)
    assert part["pairs"]["L1-L2"]["count"] == part["pairs"]["T12-L1"]["count"] == 3 and part["transitions"] == {}
    assert found["cases"]["case_00"]["levels"] == LUMBAR and found["checks"] == []
    hu = found["foreground_intensity_properties_per_channel"]["0"]
    assert hu["mean"] == pytest.approx(400, abs=1) and hu["std"] == pytest.approx(8, abs=1)
    assert hu["percentile_00_5"] == pytest.approx(400 - 2.58 * 8, abs=3)


def test_one_new_case_costs_one_case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from spineclue_v2.planning import fingerprint as module

    measured: list[str] = []
    original = module.measure_case
    monkeypatch.setattr(module, "measure_case", lambda *a: (measured.append(a[2]), original(*a))[1])
    folder = lumbar_dataset(tmp_path / "Dataset501_Lumbar", 2)
    first = extract_fingerprint(RawDataset(folder), tmp_path / "pp", progress=False)
    assert measured == ["case_00", "case_01"]
    lumbar_dataset(folder, 3)
    extract_fingerprint(RawDataset(folder), tmp_path / "pp", progress=False)
    assert measured[2:] == ["case_00", "case_01", "case_02"] or measured[2:] == ["case_02"]
    count = len(measured)
    again = extract_fingerprint(RawDataset(folder), tmp_path / "pp", progress=False)
    assert len(measured) == count and again["spine"]["num_cases"] == 3 and first["spine"]["num_cases"] == 2


@pytest.mark.parametrize("orientation", ["RAI", "PIR", "ASL"])
def test_measures_do_not_depend_on_the_storage_order(tmp_path: Path, orientation: str) -> None:
    ct, labels, _ = spine(LUMBAR[:3])
    names = {i: i for i in range(29)}
    write_dataset(
        tmp_path / "Dataset501_A", {"a": (ct, labels), "b": (ct.reoriented(orientation), labels.reoriented(orientation))}
    )
    raw = RawDataset(tmp_path / "Dataset501_A")
    a, b = (measure_case(raw.image(c), raw.label(c), c, names) for c in ("a", "b"))
    assert b["orientation"] == orientation and a["fov_mm"] == pytest.approx(b["fov_mm"])
    for name in LUMBAR[:3]:
        assert a["vertebrae"][name]["extent_mm"] == pytest.approx(b["vertebrae"][name]["extent_mm"])
        assert a["vertebrae"][name]["body_centre_mm"] == pytest.approx(b["vertebrae"][name]["body_centre_mm"], abs=1.01)


def flipped(volume: Volume, axis: int) -> Volume:
    return Volume(np.ascontiguousarray(np.flip(volume.array, axis)), volume.geometry)


def erased(labels: Volume, value: int) -> Volume:
    return Volume(np.where(labels.array == value, 0, labels.array), labels.geometry)


def islands(labels: Volume, value: int, size: int) -> Volume:
    array = labels.array.copy()
    array[4 : 4 + size, 2 : 2 + size, 2 : 2 + size] = value
    return Volume(array, labels.geometry)


CHECKS = [
    ("gap", "warning", lambda lab: erased(lab, 22), "L3 missing between T12 and L5"),
    ("flip", "error", lambda lab: flipped(lab, 0), "head and feet are swapped.*left and right"),
    ("flip", "error", lambda lab: flipped(lab, 1), "front and back are swapped"),
    ("flip", "error", lambda lab: flipped(flipped(lab, 0), 1), "head and feet are swapped: T12 lies below L5$"),
    ("island", "warning", lambda lab: islands(lab, 20, 4), "L1 has 1 island"),
    ("duplicate", "warning", lambda lab: islands(lab, 20, 9), "L1 names two bodies"),
    ("labels", "error", lambda lab: Volume(np.where(lab.array == 22, 77, lab.array).astype(np.uint8), lab.geometry), r"\[77\]"),
    (
        "cut",
        "note",
        lambda lab: Volume(lab.array[:, :, 14:], ImageGrid(lab.array[:, :, 14:].shape, *dataclasses.astuple(lab.geometry)[1:])),
        "cut by the border",
    ),
]


def with_lung(ct: Volume, labels: Volume, left: bool) -> Volume:
    """Air on one side of everything: x runs to the left."""
    half = np.arange(ct.array.shape[2]) > ct.array.shape[2] / 2
    return Volume(np.where((half == left) & (labels.array == 0), -850, ct.array).astype(np.int16), ct.geometry)


@pytest.mark.parametrize(("left", "names", "found"), [(True, ["T11", *LUMBAR], ["T11", "T12"]), (False, ["T11", *LUMBAR], []),
                                                      (True, LUMBAR, [])])
def test_lung_beside_the_lower_thoracic_bodies_tells_the_sides(tmp_path: Path, left: bool, names: list[str], found: list) -> None:
    """Lung right of them, aorta left: the other way round is a warning; of a single thoracic body nothing is said."""
    ct, labels, _ = spine(names)
    wide = [(0, 0), (0, 0), (20, 20)]
    geometry = ImageGrid(tuple(n + sum(w) for n, w in zip(ct.array.shape, wide, strict=True)), ct.spacing, ct.geometry.origin, np.eye(3))
    ct, labels = (Volume(np.pad(v.array, wide), geometry) for v in (ct, labels))
    raw = RawDataset(write_dataset(tmp_path / "Dataset501_A", {"a": (with_lung(ct, labels, left), labels)}))
    findings = measure_case(raw.image("a"), raw.label("a"), "a", raw.verse_value)["findings"]
    assert [f["severity"] for f in findings if f["check"] == "sides"] == ["warning"] * bool(found)
    assert all(name in f["detail"] for f in findings if f["check"] == "sides" for name in found)


REAL = Path(__file__).parents[1].parent / "shared" / "data" / "ct" / "verse"


@pytest.mark.skipif(not REAL.is_dir(), reason="the real scans are not here")
@pytest.mark.parametrize(("axis", "severity", "message"), [
    (None, "", ""), (0, "error", "head and feet are swapped"), (1, "error", "front and back are swapped"),
    (2, "", ""),  # it shows one thoracic body, which tells too little
])  # fmt: skip
def test_flips_of_a_real_scan_are_seen(tmp_path: Path, axis: int | None, severity: str, message: str) -> None:
    case = {}
    for name, read, ending in (("ct", read_volume, "ct"), ("mask", read_labels, "seg-vert_msk")):
        volume = oriented_view(read(REAL / f"sub-verse008_{ending}.nii.gz"))
        case[name] = Volume(np.ascontiguousarray(volume.array if axis is None else np.flip(volume.array, axis)), volume.geometry)
    raw = RawDataset(write_dataset(tmp_path / "Dataset501_A", {"a": (case["ct"], case["mask"])}))
    findings = measure_case(raw.image("a"), raw.label("a"), "a", raw.verse_value)["findings"]
    flips = [(f["severity"], f["detail"]) for f in findings if f["check"] in ("flip", "sides", "order")]
    assert [s for s, _ in flips] == ([severity] if severity else []) and all(message in detail for _, detail in flips)


@pytest.mark.parametrize(("check", "severity", "spoil", "message"), CHECKS)
def test_the_anatomy_tells_what_is_wrong(tmp_path: Path, check: str, severity: str, spoil: Any, message: str) -> None:
    import re

    _, labels, _ = spine(LUMBAR)
    labels = spoil(labels)
    ct = Volume(np.where(labels.array > 0, 400, 0).astype(np.int16), labels.geometry)
    raw = RawDataset(write_dataset(tmp_path / "Dataset501_A", {"bad": (ct, labels), "good": spine(LUMBAR)[:2]}))
    findings = measure_case(raw.image("bad"), raw.label("bad"), "bad", raw.verse_value)["findings"]
    hits = [f for f in findings if f["check"] == check and f["severity"] == severity]
    assert hits and re.search(message, hits[0]["detail"])
    if severity == "error":
        with pytest.raises(InputError, match="case 'bad'"):
            extract_fingerprint(raw, tmp_path / "pp", progress=False)
        assert not (tmp_path / "pp" / "dataset_fingerprint.json").exists()
    else:
        assert extract_fingerprint(raw, tmp_path / "pp", progress=False)["checks"]


def test_labels_on_another_grid_and_unreadable_files_stop(tmp_path: Path) -> None:
    ct, labels, _ = spine(LUMBAR[:2])
    moved = ImageGrid(labels.geometry.shape, labels.geometry.spacing, (50.0, 0.0, 0.0), np.eye(3))
    raw = RawDataset(write_dataset(tmp_path / "Dataset501_A", {"a": (ct, Volume(labels.array, moved)), "b": (ct, labels)}))
    raw.image("b").write_bytes(b"nothing")
    with pytest.raises(InputError, match="2 error.s. that would spoil training .first: case 'a', .*another grid"):
        extract_fingerprint(raw, tmp_path / "pp", progress=False)


@pytest.mark.parametrize(("change", "said"), [
    (lambda ct: ct + 1024, "a_0000.nii.gz: All values look like HU . 1024"),
    (lambda ct: np.clip((ct + 200) / 4, 0, 255).astype(np.int16), r"a_0000.nii.gz: values 0 to \d+, a picture of one window"),
    (lambda ct: np.abs(ct) * 2 + 100, "a_0000.nii.gz: values that look like MR"),
])
def test_scans_that_are_no_ct_in_hu_are_named(tmp_path: Path, change: Any, said: str) -> None:
    import re

    ct, labels, _ = spine(LUMBAR[:2])
    body = np.random.default_rng(2).normal(40, 120, ct.array.shape)
    body[: len(body) // 3] -= 1000
    body = np.where(labels.array > 0, 400, body).clip(-1023, 1500).astype(np.int16)
    write_dataset(tmp_path / "Dataset501_A", {"a": (Volume(change(body).astype(np.int16), ct.geometry), labels),
                                              "b": (Volume(body, ct.geometry), labels)})
    raw = RawDataset(tmp_path / "Dataset501_A")
    checks = {case: [f["detail"] for f in measure_case(raw.image(case), raw.label(case), case, raw.verse_value)["findings"]
                     if f["check"] == "values"] for case in "ab"}
    assert len(checks["a"]) == 1 and re.search(said, checks["a"][0]) and checks["b"] == []


@pytest.mark.parametrize(("array", "said"), [(lambda labels: labels, "is a label map"),
                                             (lambda labels: labels / 25.0, "normalised values")])
def test_images_that_hu_windows_make_nothing_of_stop_the_planning(tmp_path: Path, array: Any, said: str) -> None:
    _, labels, _ = spine(LUMBAR[:2])
    write_dataset(tmp_path / "Dataset501_A", {"a": (Volume(array(labels.array).astype(np.float32), labels.geometry), labels)})
    with pytest.raises(InputError, match=f"case 'a', .*{said}"):
        extract_fingerprint(RawDataset(tmp_path / "Dataset501_A"), tmp_path / "pp", progress=False)


def test_variants_are_no_gaps() -> None:
    assert (
        missing_levels(["T11", "L1"]) == [] and missing_levels(["T12", "T13", "L1"]) == [] and missing_levels(["L5", "L6"]) == []
    )
    assert are_neighbours("T12", "L1") and are_neighbours("T13", "L1") and not are_neighbours("T11", "L1")
    assert missing_levels(["T10", "T12"]) == ["T11"] and missing_levels(["C7", "T3"]) == ["T1", "T2"]
    assert check_case("x", {})[0].check == "empty"


def test_a_skipped_level_shows_in_the_distances() -> None:
    def vertebra(z: float) -> dict[str, Any]:
        return {
            "centroid_mm": [z, 0, 0],
            "body_centre_mm": [z, 0, 0],
            "touches_border": False,
            "thick_in_front_mm": 5.0,
            "component_ml": [30.0],
        }

    heights = {"T10": 200, "T11": 175, "T12": 150, "L1": 100, "L2": 72, "L3": 44}
    findings = check_case("x", {name: vertebra(z) for name, z in heights.items()})
    assert [f.check for f in findings] == ["distance"] and "T12 to L1 50 mm" in findings[0].detail
    assert "T12 to L1" in table(findings)
