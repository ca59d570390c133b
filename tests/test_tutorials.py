"""The README and the tutorials are run, not only read.

Here on miniature scans; the slow ones (`.ci/nightly`) run every command as it stands.
"""
from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from page_script import ROOT, blocks, put_commands, script

from spineclue_v2.imageio.volume import ImageGrid, Volume, write_volume
from spineclue_v2.phantom import sample
from spineclue_v2.stages.registry import CORE_STAGES
from spineclue_v2.utilities import paths

README = ROOT / "README.md"
TUTORIALS = ROOT / "documentation" / "tutorials"
PAGES = [README, *sorted(TUTORIALS.glob("*.md")), *sorted((ROOT / "documentation" / "how_to").glob("*.md"))]
LABEL, TRAIN = "Label your own scans", "Train on your own data"

needs_weights = pytest.mark.skipif(not all((paths.weights_folder() / f"{stage}.pth").is_file() for stage in CORE_STAGES),
                                   reason="no shipped weights here")


def run(text: str, folder: Path, **variables: str) -> str:
    """Output of a script that is run in `folder` as a reader would run it; fails with that output where the script does."""
    place = put_commands(folder / "bin")
    environment = os.environ | {"PATH": f"{place}{os.pathsep}{os.environ['PATH']}"} | variables
    done = subprocess.run(["bash", "-c", text], cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          encoding="utf-8")
    assert done.returncode == 0, done.stdout[-6000:]
    return done.stdout


def write_scan(scan: Path, labels: Path) -> None:
    """A small synthetic scan of L1 to L4 and its label map."""
    case = sample(9042, first="L1", last="L4", spacing=(3.0, 2.0, 2.0), margin=10.0, oblique=0, streaks=0, variant=None, wide=False)
    grid = ImageGrid(case.ct.shape, case.spacing, (0.0, 0.0, 0.0), np.eye(3))
    for path, array in ((scan, case.ct), (labels, case.labels)):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_volume(Volume(array, grid), path)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_python_block_compiles(page: Path) -> None:
    for language, text in blocks(page):
        if language == "python":
            compile(text, page.name, "exec")


@needs_weights
def test_the_readmes_label_section_runs(tmp_path: Path) -> None:
    write_scan(tmp_path / "SCANS" / "CASE.nii.gz", tmp_path / "LABELS" / "CASE.nii.gz")
    (tmp_path / "scan.nii.gz").symlink_to(tmp_path / "SCANS" / "CASE.nii.gz")
    shown = run(script(blocks(README, LABEL)), tmp_path)
    promised = {line.split("`")[1] for line in README.read_text(encoding="utf-8").splitlines() if line.startswith("| `CASE")}
    assert promised == {"CASE.nii.gz", "CASE_ctd.json", "CASE.json", "CASE.png", "CASE.html", "CASE_measures.csv"}
    assert promised <= {path.name for path in (tmp_path / "RESULTS").iterdir()}
    levels = [v["level"] for v in json.loads((tmp_path / "RESULTS" / "CASE.json").read_text())["vertebrae"]]
    assert len(levels) >= 3 and str(levels) in shown  # the Python lines name what the command wrote


@needs_weights
def test_the_first_tutorial_runs(tmp_path: Path) -> None:
    first, *rest = blocks(TUTORIALS / "first_scan.md")
    assert first == ("bash", "spineclue_demo -o demo\n")  # test_demo.py runs it; here a smaller scan takes its place
    write_scan(tmp_path / "demo" / "demo.nii.gz", tmp_path / "demo" / "truth" / "demo.nii.gz")
    shown = run(script(rest), tmp_path)
    assert "numbering anchored: " in shown and " ml\n" in shown and "ID-rate" in shown
    figures = json.loads((tmp_path / "labelled" / "summary.json").read_text())["spineclue"]
    assert figures["detection"]["f1"] >= 0.7
    assert (tmp_path / "labelled" / "labels_slicer.ctbl").is_file() and (tmp_path / "labelled" / "labels_itksnap.txt").is_file()


# What pip would do, without its network and without touching this environment: an editable layout below `site`, which PYTHONPATH names.
INSTALL = {"pip install -q --no-deps ./my_spine": "mkdir -p site; (cd my_spine; python -c 'import setuptools; setuptools.setup()' "
                                                  "-q build --build-lib ../site egg_info --egg-base ../site)"}


def trained_by_tutorials(tmp_path: Path, replaced: Mapping[str, str]) -> None:
    """The tutorials on own data and on an own trainer, which begins where the other ends."""
    data = script(blocks(TUTORIALS / "own_data_in_15_minutes.md"), replaced)
    own = script(blocks(TUTORIALS / "own_trainer.md"), INSTALL)
    path = os.pathsep.join(filter(None, [str(tmp_path / "site"), os.environ.get("PYTHONPATH", "")]))
    run(f"{data}\n{own}", tmp_path, PYTHONPATH=path)
    results = tmp_path / "home" / "results" / "Dataset500_SpinePhantom"
    assert (results / "SegmentTrainerCosine__SpineCLUEPlans__segment" / "fold_0" / "checkpoint_final.pth").is_file()
    for folder in ("predicted", "predicted_cosine"):
        assert len(list((tmp_path / folder).glob("*.png"))) == 3
    assert (tmp_path / "predicted" / "summary.json").is_file()


SHORT = {"--cases 40": "--cases 5", '{"epochs": 24}': '{"epochs": 1, "iterations_per_epoch": 2}',
         '{"epochs": 7}': '{"epochs": 1, "iterations_per_epoch": 2}',
         '"contrastive_epochs": 1, "classifier_epochs": 2': '"contrastive_epochs": 1, "classifier_epochs": 1, "iterations_per_epoch": 2'}


@pytest.mark.slow
@needs_weights
def test_own_data_and_own_trainer_run_in_short(tmp_path: Path) -> None:
    trained_by_tutorials(tmp_path, SHORT)


@pytest.mark.slow
@needs_weights
def test_a_dataset_like_ctspine1k_runs_as_it_stands(tmp_path: Path) -> None:
    """All stages of the first fold, predicted, evaluated, exported, installed elsewhere: equal labels there, and some to be equal."""
    shown = run(script(blocks(TUTORIALS / "ctspine1k_like_dataset.md")), tmp_path)
    assert len(list((tmp_path / "home" / "raw" / "Dataset531_CTSpine1K" / "imagesTr").iterdir())) == 5
    cases = json.loads((tmp_path / "predicted" / "summary.json").read_text())["spineclue"]["cases"]
    assert {row["case"] for row in cases} == {"liver_5", "liver_6"}
    trained = {place.name.rpartition("__")[2] for place in (tmp_path / "home" / "results" / "Dataset531_CTSpine1K").glob("*__*__*")}
    assert trained == {"localize", "centres", "segment", "appearance", "ribs", "geometry", "identify"}
    for case in ("liver_5", "liver_6"):
        [line] = [line for line in shown.splitlines() if line.startswith(f"{case}.nii.gz ")]
        assert line.endswith(", 0 voxels differ") and int(line.split()[1]) >= 3, line


@pytest.mark.slow
@needs_weights
def test_own_data_and_own_trainer_run_as_they_stand(tmp_path: Path) -> None:
    trained_by_tutorials(tmp_path, {})


@pytest.mark.slow
@needs_weights
def test_the_whole_readme_and_first_tutorial_run_as_they_stand(tmp_path: Path) -> None:
    """But for the set-up, which `.ci/run` does in an environment of its own."""
    write_scan(tmp_path / "SCANS" / "CASE.nii.gz", tmp_path / "LABELS" / "CASE.nii.gz")
    (tmp_path / "scan.nii.gz").symlink_to(tmp_path / "SCANS" / "CASE.nii.gz")
    run(script(blocks(TUTORIALS / "first_scan.md") + blocks(README, LABEL) + blocks(README, TRAIN)), tmp_path,
        SPINECLUE_HOME=str(tmp_path / "home"))
    assert (tmp_path / "PREDICTED" / "summary.json").is_file()
