"""The comparison of two commits' records: what is equal, what differs and how it is said, what a rename or a reason covers."""
from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # benchmarks/ lies at the top and is no part of the package

from benchmarks.commit_record import SMALL, RecordError, fingerprints, make_small, name_folders  # noqa: E402
from benchmarks.compare_commits import main  # noqa: E402

CASE = {"vertebrae": [{"level": "L1", "volume_ml": 53.801}, {"level": "L2", "volume_ml": 55.0}], "witnesses": ["shape"],
        "seconds": {"total": 2.0}, "versions": {"torch": "2.6"}}
LOSSES = {"history": {"train_loss": [0.75, 0.5, 0.3333333333333333], "val_loss": [float("nan")] * 3}}


def write(folder: Path, case: Any = CASE, losses: Any = LOSSES, voxels: int = 0, spacing: float = 1.0) -> Path:
    """A small record; `voxels` of label 20 are given label 21."""
    labels = np.zeros((8, 8, 8), np.uint8)
    labels[:4], labels[4:] = 20, 21
    labels[0, 0, :voxels] = 21
    image = sitk.GetImageFromArray(labels)
    image.SetSpacing((spacing, 1.0, 1.0))
    for part in ("real", "training"):
        (folder / part).mkdir(parents=True)
    sitk.WriteImage(image, str(folder / "real" / "case.nii.gz"))
    (folder / "real" / "case.json").write_text(json.dumps(case))
    (folder / "training" / "losses.json").write_text(json.dumps(losses))
    np.savez(folder / "real" / "case.npz", rows=np.eye(3), record=np.array(json.dumps({"kind": "shape"})))
    (folder / "record.json").write_text(json.dumps({"commit": folder.name}))
    return folder


@pytest.fixture
def old(tmp_path: Path) -> Path:
    return write(tmp_path / "old")


def said(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, list[str]]:
    code = main(["compare", *map(str, arguments)])
    return code, capsys.readouterr().out.splitlines()


def test_equal_records_differ_in_seconds_and_versions_alone(old, tmp_path, capsys):
    other = CASE | {"seconds": {"total": 9.0}, "versions": {"torch": "2.7"}}
    code, lines = said(capsys, old, write(tmp_path / "new", other))
    assert code == 0 and lines[-1] == "0 differences without a reason, 0 with one."


def test_a_label_voxel_is_counted_and_costs_dice(old, tmp_path, capsys):
    code, lines = said(capsys, old, write(tmp_path / "new", voxels=1))
    assert code == 1
    (line,) = [line for line in lines if line.startswith("real/case.nii.gz")]
    assert "voxels, 1, largest" in line and "1 of 512 voxels" in line
    assert f"of label 20 {2 * 255 / 511:.6f}" in line and "Dice of the foreground 1.000000" in line


def test_another_grid_is_a_difference(old, tmp_path, capsys):
    code, lines = said(capsys, old, write(tmp_path / "new", spacing=1.5))
    assert code == 1 and any(line.startswith("real/case.nii.gz: grid") and "1.5" in line for line in lines)


def test_a_loss_is_compared_to_the_last_digit(old, tmp_path, capsys):
    losses = copy.deepcopy(LOSSES)
    losses["history"]["train_loss"][2] += 2.0 ** -40
    new = write(tmp_path / "new", losses=losses)
    code, lines = said(capsys, old, new)
    (line,) = [line for line in lines if line.startswith("training/losses.json")]
    assert code == 1 and "history/train_loss[*]: number, 1, largest 9.09495e-13" in line and "history/train_loss[2]" in line
    assert said(capsys, old, new, "--tolerance", "1e-9")[0] == 0


def test_arrays_and_the_json_in_them_are_compared(old, tmp_path, capsys):
    new = write(tmp_path / "new")
    np.savez(new / "real" / "case.npz", rows=np.eye(3) * 1.5, record=np.array(json.dumps({"kind": "geometry"})))
    code, lines = said(capsys, old, new)
    assert code == 1
    assert any("case.npz: rows: number, 3, largest 0.5" in line for line in lines)
    assert any("case.npz: record/kind: text" in line and '"geometry"' in line for line in lines)


def test_a_renamed_key_needs_the_table_of_renames(old, tmp_path, capsys):
    case = {("classifiers" if key == "witnesses" else key): value for key, value in CASE.items()}
    new = write(tmp_path / "new", case)
    code, lines = said(capsys, old, new)
    assert code == 1 and sum("only old" in line or "only new" in line for line in lines) == 2
    renames = tmp_path / "renames.json"
    for content in ({"witnesses": "classifiers"}, {"keys": {"witnesses": "classifiers"}}, {"places": {"witnesses": "classifiers"}}):
        renames.write_text(json.dumps(content))
        assert said(capsys, old, new, "--renames", renames)[0] == 0
    renames.write_text(json.dumps({"vertebrae": "found"}))
    assert said(capsys, old, new, "--renames", renames)[0] == 1


def test_a_reason_covers_what_it_names_up_to_its_size(old, tmp_path, capsys):
    case = copy.deepcopy(CASE)
    case["vertebrae"][0]["volume_ml"] += 0.25
    new, file = write(tmp_path / "new", case), tmp_path / "explained.json"
    entry = {"file": "real/*.json", "place": "vertebrae[*]/volume_ml", "why": "rounded elsewhere", "largest": 0.3}
    file.write_text(json.dumps([entry, {"file": "demo/*", "place": "*", "why": "stale"}]))
    code, lines = said(capsys, old, new, "--explained", file)
    assert code == 0 and "0 differences without a reason, 1 with one." in lines
    assert any(line.endswith("[rounded elsewhere]") for line in lines) and "not needed: demo/*: *  [stale]" in lines
    file.write_text(json.dumps([entry | {"largest": 0.2}]))
    assert said(capsys, old, new, "--explained", file)[0] == 1


def test_what_differs_alike_in_several_files_is_one_line(old, tmp_path, capsys):
    new = write(tmp_path / "new")
    for folder, volume in ((old, 1.0), (new, 1.5)):
        for case in "ab":
            (folder / "real" / f"{case}.json").write_text(json.dumps({"volume_ml": volume}))
    code, lines = said(capsys, old, new)
    assert code == 1 and lines[0].startswith("real/.. (2 files): volume_ml: number, 2, largest 0.5; real/a.json: volume_ml: 1.0 -> 1.5")
    assert [line.split(":")[0] for line in said(capsys, old, new, "--all")[1][:2]] == ["real/a.json", "real/b.json"]


def test_a_file_of_one_record_alone_is_a_difference(old, tmp_path, capsys):
    new = write(tmp_path / "new")
    (new / "real" / "case.npz").unlink()
    code, lines = said(capsys, old, new)
    assert code == 1 and any(line.startswith("real/case.npz: file: only old") for line in lines)


def test_six_fingerprints_are_planned():
    names = [name for name, _ in fingerprints()]
    assert len(names) == len(set(names)) == 6


def test_a_plan_is_made_small_in_old_and_new_words(tmp_path):
    path = tmp_path / "plan.json"
    run = {"epochs": {"value": 500, "rule": "r"}, "classifier_batch_size": 64, "temperature": 0.07}
    spacings = {"data": {"spacing_mm": 1.0}, "network": {"spacing_mm": 5.0}}
    path.write_text(json.dumps({"stages": {"identify": spacings | {"run": run}}}))
    make_small(path)
    small = json.loads(path.read_text())["stages"]["identify"]
    assert small["data"]["spacing_mm"] == SMALL["identify"]["spacing_mm"] and small["network"]["spacing_mm"] == 5.0
    assert small["run"] == {
        "epochs": {"value": 20, "rule": "r"}, "classifier_batch_size": SMALL["identify"]["classifier_batch_size"], "temperature": 0.07}
    path.write_text(json.dumps({"stages": {"identify": {"run": {"rounds": 500}}}}))
    with pytest.raises(RecordError, match="stage identify"):
        make_small(path)


def test_folders_of_one_run_are_not_in_its_record(tmp_path):
    path = tmp_path / "summary.json"
    path.write_text(json.dumps({"reference_file": "/somewhere/run_1/labels/a.nii.gz", "rows": 3}))
    name_folders(tmp_path, {Path("/somewhere/run_1"): "HOME", None: "DATA"})
    assert json.loads(path.read_text()) == {"reference_file": "HOME/labels/a.nii.gz", "rows": 3}


def test_it_runs_as_a_file_from_anywhere(old, tmp_path):
    line = [sys.executable, str(ROOT / "benchmarks" / "compare_commits.py"), "compare", str(old), str(old)]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, encoding="utf-8")
    assert done.returncode == 0 and "0 differences" in done.stdout, done.stderr
