"""spineclue_doctor: what it looks at, what it says to do, its exit code; and a batch in which some scans are bad."""
from __future__ import annotations

import json
import sys
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bad_scans import BAD_SCANS, ct, save

from spineclue_v2.cli._common import main
from spineclue_v2.doctor import checks
from spineclue_v2.doctor.checks import BROKEN, OK, WARNING, Check
from spineclue_v2.doctor.examine import examine
from spineclue_v2.export.result_flags import with_result_flags
from spineclue_v2.imageio.volume import ImageGrid, Volume
from spineclue_v2.results import SpineResult
from spineclue_v2.training import distributed


def by_name(found: list[Check]) -> dict[str, Check]:
    return {check.name: check for check in found}


def test_this_installation_works(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """With the self-test: the whole program on the crop that comes with it."""
    assert main("doctor", ["--json", "-o", str(tmp_path / "new")]) == 0
    content = json.loads(capsys.readouterr().out)
    found = {check["name"]: check for check in content["checks"]}
    assert content["broken"] is False and {"python", "torch", "threads", "memory", "weights", "gpu", "opencv", "output"} <= set(found)
    assert found["self-test"]["status"] == OK and "three vertebrae" in found["self-test"]["found"]
    assert not (tmp_path / "new").exists() and not list(tmp_path.iterdir())


def test_what_is_broken_is_said_with_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
                                                capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("SPINECLUE_WEIGHTS", str(tmp_path))
    (tmp_path / "file").write_text("")
    assert main("doctor", ["-o", str(tmp_path / "file")]) == 1
    said = capsys.readouterr().out
    assert "0 files of your own" in said and "-> Unset SPINECLUE_WEIGHTS" in said and "self-test" not in said
    assert "Something is broken" in said


def test_changed_weights_and_missing_packages_are_noticed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tmp_path / "weights"
    folder.mkdir()
    (folder / "localize.pth").write_bytes(b"other")
    (folder / checks.HASHES).write_text("00  localize.pth\n11  segment.pth\n")
    monkeypatch.setattr(checks, "__file__", str(tmp_path / "doctor" / "checks.py"))
    monkeypatch.setenv("SPINECLUE_WEIGHTS", str(folder))
    (weights,) = checks.check_weights()
    assert weights.status == BROKEN and weights.found == "missing or changed: localize.pth, segment.pth"
    monkeypatch.setattr(checks.metadata, "requires", lambda _: ["numpy>=99", "no-such-package", "numpy; extra == 'x'"])
    found = by_name(list(checks.check_versions()))
    assert found["numpy"].status == WARNING and found["no-such-package"].what_to_do == "pip install 'no-such-package'"


def test_containers_are_seen_through(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(checks.shutil, "disk_usage", lambda _: usage(64 << 20, 0, 64 << 20))
    monkeypatch.setattr(checks, "free_memory_gb", lambda: 1.0)
    monkeypatch.setattr(checks, "usable_cores", lambda: 0.5)
    found = by_name([*checks.check_memory(), *checks.check_threads()])
    assert {check.status for check in found.values()} == {WARNING} and "--shm-size" in found["shared memory"].what_to_do
    assert "OMP_NUM_THREADS=1" in found["threads"].what_to_do


def test_a_missing_system_library_names_the_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    found = by_name(examine(with_self_test=True))
    assert found["opencv"].status == BROKEN and "apt-get install libgl1" in found["opencv"].what_to_do and "self-test" not in found


def test_a_check_that_fails_is_a_finding() -> None:
    def look() -> Any:
        yield Check("a", OK, "")
        raise RuntimeError("no\nway")

    assert [check.status for check in checks.run_check("b", look)] == [OK, BROKEN]
    assert checks.run_check("b", look)[1].found == "RuntimeError: no way"


def test_left_over_variables_of_other_launchers_are_no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for size in ("8", "many", ""):
        monkeypatch.setenv("WORLD_SIZE", size)
        assert not distributed.under_launcher() and distributed.rank_of_environment() == 0
    for name, value in {"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    assert distributed.under_launcher() and distributed.rank_of_environment() == 1


BAD = ("empty file", "text called nii.gz", "gzipped text", "truncated gzip", "damaged gzip", "truncated nrrd", "text called mha", "2D",
       "4D", "zero spacing", "NaN voxel", "3 slices")


def test_a_batch_of_40_with_12_bad_scans_gives_28_results_and_12_reasons(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                                         capsys: pytest.CaptureFixture[str]) -> None:
    """Reading, the loop and the files are the program's own; the networks are not asked."""
    folder = tmp_path / "scans"
    folder.mkdir()
    for number, name in enumerate(BAD):
        (tmp_path / f"bad_{number}").mkdir()
        path = BAD_SCANS[name][0](tmp_path / f"bad_{number}")
        path.rename(folder / f"bad_{number:02d}{''.join(path.suffixes)}")
    for number in range(28):
        save(ct(), folder / f"good_{number:02d}.nii.gz")

    def nothing(volume: Volume, *_: object, **__: object) -> SpineResult:
        grid = ImageGrid(volume.geometry.shape, volume.geometry.spacing, volume.geometry.origin, np.eye(3))
        return with_result_flags(SpineResult((), True, grid=grid, mask_grid=grid))

    monkeypatch.setattr("spineclue_v2.inference.predict_folder.predict_scan", nothing)
    assert main("predict", ["-i", str(folder), "-o", str(tmp_path / "out"), "--no_report", "-device", "cpu", "--disable_progress_bar"]) == 1
    said = capsys.readouterr().out.splitlines()
    results = sorted((tmp_path / "out").glob("good_*.json"))
    assert len([path for path in results if not path.stem.endswith("_ctd")]) == 28 and not list((tmp_path / "out").glob("bad_*"))
    assert said[0].startswith("0 of 40 scans are labelled in ") and "no vertebra was found in 28" in said[0]
    table = [line.split(None, 1) for line in said[said.index("Failed:") + 1:]]
    assert [name for name, _ in table] == [f"bad_{number:02d}" for number in range(12)]
    for (_, reason), name in zip(table, BAD, strict=True):
        assert any(part in reason for part in BAD_SCANS[name][1].split("|")), (name, reason)
