"""Predictions of several models as one."""
from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_predict import QUIET, record, run, scan, trained, trained_once  # noqa: F401 - fixtures

from spineclue_v2.anatomy.vertebra import Vertebra
from spineclue_v2.cli import _common
from spineclue_v2.imageio.volume import ImageGrid, Volume, read_labels, write_volume
from spineclue_v2.inference.ensemble import merge, named, read_member

GRID = ImageGrid((60, 40, 40), (2.0, 2.0, 2.0), (0.0, 0.0, 0.0), np.eye(3))


def block(z: int, level: int = 3, soft: int = 255, size: tuple[int, int, int] = (8, 10, 10), grid: ImageGrid = GRID) -> Vertebra:
    """A box whose first voxel has row `z`; its mask probability is `soft`, its level probabilities point to number `level`."""
    start = np.array((z, 12, 12))
    centre = tuple(map(float, grid.index_to_world(start + (np.array(size) - 1) / 2)))
    rows = np.full(24, 0.1 / 23)
    rows[level] = 0.9
    logs = np.log(np.append(rows * 0.98, 0.02))
    return Vertebra(centre, tuple(2.0 * n for n in size), 0.9, 5, np.ones(size, bool), tuple(map(int, start)), centre, centre, 1.0,
                    probabilities=rows, log_probabilities=logs, uncertainty=0.5, mask_probability=np.full(size, soft, np.uint8))


def test_who_is_found_by_half_of_the_members_stays():
    alone, both = block(10), [block(40), block(41, level=4)]
    merged, _ = merge([([alone, both[0]], GRID), ([both[1]], GRID)])
    assert len(merged) == 2
    merged, _ = merge([([alone, both[0]], GRID), ([both[1]], GRID), ([block(40)], GRID)])
    assert len(merged) == 1 and merged[0].hits == 15
    np.testing.assert_allclose(merged[0].probabilities, np.mean([both[0].probabilities, both[1].probabilities, both[0].probabilities], 0))
    assert merge([([], GRID), ([], GRID)])[0] == []


def test_masks_are_averaged_where_they_lie_in_space():
    # The same block on a grid that begins elsewhere, and one that is shifted by two voxels and less sure of itself.
    moved = GRID.cropped((-6, 2, 0), (70, 38, 40))
    inside = block(20)
    same = Vertebra(**{**vars(inside), "mask_start": (26, 10, 12)})
    merged, grid = merge([([inside], GRID), ([same], moved)])
    (found,) = merged
    np.testing.assert_allclose(grid.index_to_world(np.array(found.mask_start)), GRID.index_to_world(np.array(inside.mask_start)), atol=1e-6)
    assert found.mask.shape == (8, 10, 10) and found.mask.all()
    merged, grid = merge([([inside], GRID), ([block(22, soft=200)], GRID)])
    # 1.0 alone is 0.5 of two: it stays; 200/255 alone is not half of two.
    assert merged[0].mask.shape == (8, 10, 10)
    assert merged[0].body_centre[2] == pytest.approx((inside.body_centre[2] + block(22).body_centre[2]) / 2)


def test_a_contested_voxel_has_one_owner():
    merged, _ = merge([([block(10, size=(12, 10, 10)), block(20, size=(12, 10, 10), soft=230)], GRID)] * 2)
    upper, lower = merged
    rows = [set(range(v.mask_start[0], v.mask_start[0] + v.mask.shape[0])) for v in (upper, lower)]
    assert not rows[0] & rows[1] and len(rows[0] | rows[1]) == 22


def test_the_names_come_from_what_all_classifieres_of_all_members_said():
    shape = [block(z, level=3 + i) for i, z in enumerate((45, 30, 15))]
    # The same shapes, which other classifiers place among the lumbar vertebrae, surely or less surely than the first member is.
    for share, wanted in ((0.9, ["L1", "L2", "L3"]), (0.3, ["C4", "C5", "C6"])):
        others = [replace(v, log_probabilities=np.log(np.where(np.arange(25) == 19 + i, share, (1 - share) / 24)))
                  for i, v in enumerate(shape)]
        doubtful = [replace(v, log_probabilities=np.log(0.5 * np.exp(v.log_probabilities) + 0.5 / 25)) for v in shape]
        merged, _ = merge([(doubtful, GRID), (others, GRID)])
        assert [v.level for v in named(merged, {}).vertebrae] == wanted
    # A sixth lumbar vertebra, which a member may forbid.
    lowest = [block(z, level=level) for z, level in ((45, 22), (30, 23), (15, 23))]
    merged, _ = merge([(lowest, GRID), (lowest, GRID)])
    assert [v.level for v in named(merged, {"l6": 0.0}).vertebrae] == ["L4", "L5", "L6"]
    assert "L6" not in [v.level for v in named(merged, {"l6": 0.0}, forbid_anomalies=True).vertebrae]


def test_grades_and_density_are_means_of_who_has_them():
    plain = block(20)
    known = [replace(plain, trabecular_hu=hu, grade_probabilities=grades)
             for hu, grades in ((100.0, (1.0, 0.0, 0.0, 0.0)), (200.0, (0.0, 1.0, 0.0, 0.0)))]
    (found,), _ = merge([([v], GRID) for v in (*known, plain)])
    assert (found.trabecular_hu, found.grade_probabilities) == (150.0, (0.5, 0.5, 0.0, 0.0))
    (found,), _ = merge([([plain], GRID)] * 2)
    assert (found.trabecular_hu, found.grade_probabilities) == (None, None)


@pytest.fixture
def members(trained, tmp_path, scan) -> list[Path]:  # noqa: F811
    """One folder per fold, with saved probabilities."""
    folders = [tmp_path / f"fold_{fold}" for fold in (0, 1)]
    for fold, folder in enumerate(folders):
        assert run("-i", scan.parent, "-o", folder, "-m", trained, "-f", fold, "--save_probabilities", *QUIET) == 0
    return folders


def test_an_ensemble_of_folds_is_what_predict_gives_for_them(members, trained, tmp_path, scan, capsys):  # noqa: F811
    out = tmp_path / "merged"
    assert _common.main("ensemble", ["-i", *map(str, members), "-o", str(out), "--save_npz"]) == 0
    assert "1 of 1 scans are merged" in capsys.readouterr().out
    assert run("-i", scan, "-o", tmp_path / "both", "-m", trained, "-f", 0, 1, *QUIET) == 0
    merged, both = record(out, "one"), record(tmp_path / "both", "one")
    assert [v["level"] for v in merged["vertebrae"]] == [v["level"] for v in both["vertebrae"]]
    for a, b in zip(merged["vertebrae"], both["vertebrae"], strict=True):
        np.testing.assert_allclose(list(a["probabilities"].values()), list(b["probabilities"].values()), atol=1e-4)
        np.testing.assert_allclose(a["body_centre_mm"], b["body_centre_mm"], atol=1.0)
    a, b = (read_labels(folder / "one.nii.gz") for folder in (out, tmp_path / "both"))
    shared = 2 * ((a.array > 0) & (b.array > 0)).sum() / ((a.array > 0).sum() + (b.array > 0).sum())
    assert a.geometry.same_grid(b.geometry) and shared > 0.97
    # What was saved can be merged again, with itself: nothing changes.
    shutil.copytree(out, tmp_path / "again")
    assert _common.main("ensemble", ["-i", str(out), str(tmp_path / "again"), "-o", str(tmp_path / "twice")]) == 0
    np.testing.assert_array_equal(read_labels(tmp_path / "twice" / "one.nii.gz").array, a.array)


def test_members_with_other_options_are_refused(members, trained, tmp_path, scan, capsys):  # noqa: F811
    for option in (["--classifiers", "shape"], ["--forbid_anomalies"]):
        assert run("-i", scan.parent, "-o", members[1], "-m", trained, "-f", 1, "--save_probabilities", *option, *QUIET) == 0
        capsys.readouterr()
        assert _common.main("ensemble", ["-i", *map(str, members), "-o", str(tmp_path / "out")]) == 2
        assert "other --classifiers or --forbid_anomalies" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_what_cannot_be_merged_says_why(members, tmp_path, capsys):
    def refused(*folders: Path) -> str:
        assert _common.main("ensemble", ["-i", *map(str, folders), "-o", str(tmp_path / "out")]) == 2
        assert not (tmp_path / "out").exists()
        return capsys.readouterr().err

    assert "at least two different folders" in refused(members[0], members[0])
    assert "does not exist" in refused(members[0], tmp_path / "nowhere")
    labels = read_labels(members[1] / "one.nii.gz")
    write_volume(Volume(labels.array[1:], labels.geometry.cropped((1, 0, 0), np.array(labels.array.shape) - (1, 0, 0))),
                 members[1] / "one.nii.gz")
    assert _common.main("ensemble", ["-i", *map(str, members), "-o", str(tmp_path / "out")]) == 1
    assert "another grid" in capsys.readouterr().out and not (tmp_path / "out" / "one.json").exists()
    with np.load(members[1] / "one.npz") as content:
        np.savez(members[1] / "one.npz", probabilities=content["probabilities"])
    with pytest.raises(_common.InputError, match="no saved probabilities of this version"):
        read_member(members[1] / "one.npz")
    np.savez(members[1] / "one.npz", record=np.array([{"a": 1}], dtype=object))  # a pickle inside
    with pytest.raises(_common.InputError, match="ValueError"):
        read_member(members[1] / "one.npz")
    (members[1] / "one.npz").unlink()
    assert "holds no saved probabilities" in refused(*members)
