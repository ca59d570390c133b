"""Review flags of results, CASE.json against its schema, and pictures that fail without costing the result."""
from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from spineclue_v2.anatomy import LABEL_OF_NAME
from spineclue_v2.anatomy.vertebra import BodyHeights, Vertebra
from spineclue_v2.dataset.preprocessed import PreprocessedDataset
from spineclue_v2.export.case_record import case_record, mr_case_record
from spineclue_v2.export.result_flags import RESULT_CODES, result_flags, with_result_flags
from spineclue_v2.export.schema import case_schema
from spineclue_v2.flags import CODES, Flag, quality_status
from spineclue_v2.imageio.volume import ImageGrid, Volume
from spineclue_v2.inference.scan_flags import scan_flags
from spineclue_v2.results import MRResult, SpineResult
from spineclue_v2.utilities.environment import guard
from spineclue_v2.utilities.files import atomic_path

GRID = ImageGrid((12, 40, 40), (3.0, 1.0, 1.0), (0.0, 0.0, 0.0), np.eye(3))
CHECKER = jsonschema.Draft202012Validator(case_schema())


def vertebra(level: str, place: int, **more: Any) -> Vertebra:
    values: dict[str, Any] = {"volume_ml": 30.0, "level": level, "confidence": 0.99, "mask": np.ones((2, 20, 20), bool),
                              "mask_start": (10 - 2 * place, 10, 10), "body_centre": (20.0, 15.0, 3.0 * (10 - 2 * place)),
                              "probabilities": np.full(24, 1 / 24), "uncertainty": 0.1}
    return Vertebra((20.0, 20.0, 20.0), (6.0, 20.0, 20.0), 1.0, **(values | more))


def spine(*levels: str, **more: Any) -> SpineResult:
    rows = tuple(vertebra(level, place) for place, level in enumerate(levels))
    return replace(SpineResult(rows, True, 6.0, grid=GRID, mask_grid=GRID), **more)


def codes(result: SpineResult) -> list[str]:
    return [flag.code for flag in result_flags(result)]


def changed(result: SpineResult, place: int, **values: Any) -> SpineResult:
    rows = list(result.vertebrae)
    rows[place] = replace(rows[place], **values)
    return replace(result, vertebrae=tuple(rows))


WHOLE = spine("T11", "T12", "L1", "L2", "L3")


@pytest.mark.parametrize(("result", "expected"), [
    (WHOLE, []),
    (SpineResult((), True), ["no_vertebra"]),
    (replace(WHOLE, numbering_anchored=False), ["not_anchored"]),
    (changed(WHOLE, 1, confidence=0.69), ["low_confidence"]),
    (spine("L1", "L2"), ["few_vertebrae"]),
    (spine("L1", "L2", "L2"), ["repeated_level"]),
    (spine("L3", "L2", "L4"), ["repeated_level"]),
    (spine("T11", "L1", "L2"), ["unusual_numbering"]),
    (spine("T12", "T13", "L1"), ["unusual_numbering"]),
    (changed(WHOLE, 2, volume_ml=55.0), ["merged_masks"]),
    (changed(WHOLE, 2, volume_ml=53.0), []),
    (changed(WHOLE, 2, volume_ml=11.0), ["small_mask"]),
    (changed(WHOLE, 0, touches_border=True, volume_ml=5.0), ["cut_vertebrae"]),
    (changed(WHOLE, 3, trabecular_hu=900.0), ["dense_bone"]),
    (replace(WHOLE, extra={"identify": {"rejected": 2, "alone": ["shape: T10 to L2, 5 of 5 differently", "geometry: T11 to L3"]}}),
     ["rejected_detections"]),
    (replace(WHOLE, extra={"identify": {"alone": ["shape: T10 to L2, 3 of 5 differently", "geometry: T12 to L4, 5 of 5 differently"]}}),
     ["disagreement"]),
])
def test_a_result_says_what_is_odd_about_it(result: SpineResult, expected: list[str]) -> None:
    assert codes(result) == expected and set(expected) <= set(RESULT_CODES) <= set(CODES)


def test_the_sentences_of_classifiers_are_those_that_flags_read() -> None:
    from spineclue_v2.stages.identify.reasons import _against

    assert _against(["T12", "L1"], ["L1", "L2"]) == ", 2 of 2 differently"


def test_other_names_bring_other_flags_and_readings_stay() -> None:
    read = Flag("thick_slices", "read", "warning", "Slices are 8 mm apart.")
    before = with_result_flags(replace(spine("L1", "L2", "L2"), flags=(read,)))
    after = with_result_flags(replace(before, vertebrae=spine("L1", "L2", "L3").vertebrae))
    assert [flag.code for flag in before.flags] == ["thick_slices", "repeated_level"] and after.flags == (read,)
    assert with_result_flags(before) == before


def test_quality_is_the_gravest_severity() -> None:
    flags = [Flag("metal", "result", severity, "x") for severity in ("info", "warning", "review")]
    assert [quality_status(flags[:n]) for n in range(4)] == ["ok", "ok", "warning", "review"]


# ---- the schema --------------------------------------------------------------------------------------------------------
def full_record() -> dict[str, Any]:
    heights = BodyHeights(20.0, 19.0, 21.0, (22.0, 22.0, 22.0), "neighbours", 1, "biconcave")
    result = changed(changed(WHOLE, 0, heights=heights, trabecular_hu=150.0, grade_probabilities=(0.1, 0.6, 0.2, 0.1)), 1,
                     height_doubt="the body reaches the border of the scan", level=None, probabilities=None, confidence=float("nan"))
    record: dict[str, Any] = json.loads(json.dumps(case_record(with_result_flags(replace(result, seconds={"total": 1.0})), {"name": "m"})))
    return record


def test_records_of_ct_mr_and_of_nothing_obey_the_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(case_schema())
    rows = [{"structure": "L4/L5", "kind": "disc", "label": 52, "volume_ml": 9.5, "centroid_mm": [1.0, 2.0, 3.0], "touches_border": False}]
    empty = with_result_flags(SpineResult((), True))
    nothing = replace(empty, flags=(Flag("no_vertebra", "result", "review", "No structure was found."),))
    for record in (full_record(), case_record(empty), mr_case_record(nothing, [], "hybrid_2d", {}),
                   mr_case_record(SpineResult((), False, seconds={"total": 1.0}), rows, "hybrid_3d", {})):
        CHECKER.validate(record)
    assert case_record(empty)["review_required"] and case_record(empty)["quality_status"] == "review"


@pytest.mark.parametrize("edit", [
    {"status": "fine"}, {"status": "no vertebra found"}, {"execution_status": "partial"}, {"review_required": True}, {"flags": [{}]},
    {"quality_status": "review"}, {"vertebrae": [{"level": "L9"}]}, {"numbering_anchored": None}, {"notes": "none"},
    {"seconds": {"a": -1}}])
def test_the_schema_refuses_what_contradicts_itself(edit: dict[str, Any]) -> None:
    CHECKER.validate(full_record())
    assert not CHECKER.is_valid(full_record() | edit)


def test_every_code_is_in_the_reference() -> None:
    from spineclue_v2.cli._reference import flag_codes

    page = Path(__file__).parents[1] / "documentation" / "reference" / "flags.md"
    assert page.read_text(encoding="utf-8") == flag_codes() and all(f"`{code}`" in flag_codes() for code in CODES)


# ---- pictures ----------------------------------------------------------------------------------------------------------
def test_labels_are_there_before_the_picture_and_without_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def fail(*_: Any) -> None:
        seen.append(sorted(path.name for path in tmp_path.iterdir()))
        raise RuntimeError("font not found")

    monkeypatch.setattr("spineclue_v2.visualization.report.write_report", fail)
    monkeypatch.setattr("spineclue_v2.visualization.mr_report.write_mr_report", fail)
    scan = Volume(np.zeros(GRID.shape, np.int16), GRID)
    labels = Volume(np.ones(GRID.shape, np.uint8), GRID)
    for name, result in (("ct", replace(WHOLE, scan=scan)),
                         ("mr", MRResult((), False, grid=GRID, scan=scan, label_volume=labels, classes={"L5": 1}, stage="hybrid_2d"))):
        files = result.save(tmp_path, name)
        record = json.loads((tmp_path / f"{name}.json").read_text())
        CHECKER.validate(record)
        assert f"{name}.nii.gz" in seen[-1] and f"{name}.json" not in seen[-1] and "report" not in files
        assert record["execution_status"] == "partial" and "The picture could not be drawn" in " ".join(record["notes"])
        assert record["flags"][-1]["observed"] == "RuntimeError: font not found" and not record["review_required"]


FOREIGN_BACKEND = """
import os, sys
from spineclue_v2.utilities.pictures import draw_or_say
from spineclue_v2.training.progress import plot_progress
history = dict.fromkeys(("train_loss", "val_loss", "val_score", "ema_score", "learning_rate", "seconds"), [1.0, 2.0])
print(draw_or_say(lambda: plot_progress(history, __import__("pathlib").Path(sys.argv[1]), "x"), "p"), os.environ["MPLBACKEND"])
"""


@pytest.mark.parametrize("backend", ["module://matplotlib_inline.backend_inline", "nobody_knows_this"])
def test_a_backend_of_somebody_elses_environment_is_no_matter(tmp_path: Path, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    done = subprocess.run([sys.executable, "-c", FOREIGN_BACKEND, str(tmp_path / "p.png")], capture_output=True, text=True, timeout=120,
                          env={**os.environ, "MPLBACKEND": backend})
    assert done.stdout.strip() == backend and (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG"), done.stderr
    monkeypatch.setenv("MPLBACKEND", backend)
    guard()
    assert os.environ["MPLBACKEND"] == "agg"  # in a process of the program's own


# ---- files -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("umask", "mode"), [(0o077, 0o600), (0o022, 0o644), (0o002, 0o664)])
def test_files_follow_the_umask_and_are_never_chmod_ed(tmp_path: Path, umask: int, mode: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "chmod", refuse)
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(22, "Invalid argument")))
    before = os.umask(umask)
    try:
        with atomic_path(tmp_path / "new" / "a.json") as temporary:
            temporary.write_text("{}")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "new" / "a.json").stat().st_mode) == mode
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.json"]


# ---- orientation -------------------------------------------------------------------------------------------------------
def phantom_spine(dataset: PreprocessedDataset, case: str, mirrored: int | None) -> tuple[list[Vertebra], ImageGrid, Volume]:
    """The true vertebrae of a phantom, cranio-caudal by the header, with one array axis mirrored."""
    from spineclue_v2.preprocessing.ct import vertebra_properties

    grid = ImageGrid.from_json(dataset.properties(case)["geometry"])
    labels, scan = dataset.labels(case)[:], dataset.image(case)[:]
    if mirrored is not None:
        labels, scan = np.ascontiguousarray(np.flip(labels, mirrored)), np.flip(scan, mirrored)
    found = []
    for name, row in vertebra_properties(Volume(labels, grid)).items():
        box = tuple(slice(a, b) for a, b in zip(row["start"], row["stop"], strict=True))
        x, y, z = grid.index_to_world(np.array(row["body_centre"]))
        found.append(Vertebra((x, y, z), (0.0, 0.0, 0.0), 1.0, mask=labels[box] == LABEL_OF_NAME[name], mask_start=tuple(row["start"]),
                              body_centre=(x, y, z), level=name))
    return sorted(found, key=lambda v: -v.known_body_centre[2]), grid, Volume(scan, grid)


@pytest.mark.parametrize(("mirrored", "expected"), [(None, set()), (0, {"head_foot"}), (1, {"front_back"}), (2, set())])
def test_a_header_that_contradicts_the_body_is_noticed(tiny: Path, mirrored: int | None, expected: set[str]) -> None:
    folder = next(path.parent for path in tiny.glob("*/*_seg.b2nd"))
    dataset = PreprocessedDataset(folder)
    for case in dataset.cases[:2]:
        flags = scan_flags(*phantom_spine(dataset, case, mirrored))
        assert {flag.code for flag in flags} == expected and all(flag.severity == "review" for flag in flags)


def test_metal_beside_the_spine_is_said() -> None:
    scan = np.zeros(GRID.shape, np.int16)
    scan[4:8, 8:20, 8:20] = 3000
    found = scan_flags([vertebra("L1", 0), vertebra("L2", 1)], GRID, Volume(scan, GRID))
    assert [flag.code for flag in found] == ["metal"] and found[0].observed == pytest.approx(4 * 144 * 3 / 1000, abs=0.01)
    assert scan_flags([vertebra("L1", 0)], GRID, Volume(np.zeros(GRID.shape, np.int16), GRID)) == ()
