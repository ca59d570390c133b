"""What a commit gives: label maps, JSON values, losses of the first 20 steps of every trainer, plans. See `compare_commits`.

Everything is made by the public commands, so that one script serves commits whose modules lie elsewhere. Three things of a commit are
known here and may have to follow a rename: the stages' names on the command line (`TRAININGS`), a few flags (`SWITCHES`), and the names
of the numbers of a plan that are made small (`SMALL`); each of them lists the older and the newer spelling.
"""
from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
STEPS = 20
BAD_INPUT = 2
REAL = {  # name in the record: file below the folder of real data
    "verse005": "ct/verse/sub-verse005_ct.nii.gz", "verse008": "ct/verse/sub-verse008_ct.nii.gz",
    "tptbox": "ct/tptbox/sub-ct_label-22_ct.nii.gz", "totalsegmentator": "ct/totalsegmentator/example_ct.nii.gz",
    "rider_chest": "ct/unlabelled/rider_chest_1p5mm.nii.gz", "cmb_chest": "ct/unlabelled/cmb_chest_1p5x2p5mm.nii.gz",
    "elastix_lung": "ct/unlabelled/elastix_lung_baseline.nii.gz", "lungdx_8mm": "ct/unlabelled/lungdx_A0002_chest_ct_8mm.nii.gz",
    "sts_002": "ct/unlabelled/STS_002_CT_image.nii.gz", "sts_010_leg": "ct/negative/STS_010_CT_image.nii.gz",
    "sts_019_hand": "ct/negative/STS_019_CT_image.nii.gz", "neck_004": "ct/necks_coarse/pt_004.nii.gz",
    "neck_133": "ct/necks_coarse/pt_133.nii.gz"}
MASKS = {"verse004": ("ct/verse/sub-verse004_seg-vert_msk.nii.gz", None),   # label map to name anew, and its scan
         "verse005": ("ct/verse/sub-verse005_seg-vert_msk.nii.gz", REAL["verse005"])}
SWITCHED = ("verse005", "tptbox")        # real scans predicted with every switch
SWITCHES: dict[str, list[list[str]]] = {  # name: the flags, in each spelling that some commit accepts
    "regular_numbering": [["--forbid_anomalies"]], "mirrored": [["--mirror"]],
    "shape_alone": [["--classifiers", "shape"], ["--witnesses", "shape"]]}
PHANTOMS = {  # name: (dataset id, cases, seed, pathology); C1-C4, T9-T12, L2-L5 and L3-L6 with screws
    "regions": (631, 3, 19, "short=4"), "extra_lumbar_screws": (632, 1, 9, "L6,screws=2,short=4")}
TRAININGS: dict[str, tuple[int, list[list[str]]]] = {  # name: (dataset, the stage's arguments in each spelling)
    "localize": (641, [["localize"]]), "segment": (641, [["segment"]]), "identify": (641, [["identify"]]),
    "appearance": (641, [["appearance"], ["identify", "-tr", "AppearanceTrainer"]]), "grade": (641, [["grade"]]),
    "hybrid_2d": (642, [["hybrid_2d"]]), "hybrid_3d": (642, [["hybrid_3d"]]), "geometry": (641, [["geometry"]])}
SMALL: dict[str, dict[str, Any]] = {  # numbers of a plan by their name: of every stage, and of one
    "*": {"epochs": STEPS, "contrastive_epochs": STEPS // 2, "classifier_epochs": STEPS // 2, "iterations_per_epoch": 1, "mc_samples": 4},
    "localize": {"spacing_mm": 4.0, "slice_size": [64, 64], "batch_size": 2},
    "segment": {"spacing_mm": 4.0, "features": [4, 8], "blocks": [1, 1], "crop_size": [24, 32, 32], "batch_size": 2},
    "identify": {"spacing_mm": 4.0, "width": 4, "hidden": 16, "projection_dim": 8, "crop_size": [16, 32, 32], "pool_grid": [1, 1, 1],
                 "batch_size": 4, "contrastive_batch_size": 4, "classifier_batch_size": 4},
    "appearance": {"spacing_mm": 4.0, "batch_size": 4},
    "geometry": {"batch_size": 8, "sampled_spines": 20},
    "grade": {"spacing_mm": 4.0, "features": [4, 8], "blocks": [1, 1], "crop_size": [16, 32, 32], "projection_dim": 8, "batch_size": 4},
    "hybrid_2d": {"spacing_mm": [7.0, 3.0, 3.0], "encoder": "tu-resnet10t", "decoder_channels": 8, "crop_size": [32, 32], "batch_size": 2,
                  "unlabelled_batch_size": 2, "lr_drop_epochs": [5, 10]},
    "hybrid_3d": {"spacing_mm": [7.0, 3.0, 3.0], "patch_size": [4, 32, 32], "context": [16, 16], "width": 4, "decoder_channels": 8,
                  "attention_channels": 4, "batch_size": 2, "lr_drop_epochs": [5, 10]}}
FINGERPRINTS: dict[str, dict[str, Any]] = {  # arguments of tests/example_fingerprint.fingerprint
    "Spine": {}, "Lumbar": {"levels": ("T12", "L3", "L5"), "spacing": (28, 33, 42), "fov": (230, 180, 180), "voxel": 0.8},
    "Cervical": {"levels": ("C2", "C5", "T1"), "spacing": (14, 17, 24), "fov": (180, 200, 200), "voxel": 0.6},
    "Thoracic": {"levels": ("T1", "T6", "T12"), "spacing": (18, 24, 32), "fov": (330, 350, 350), "voxel": 1.3},
    "LumbarT2": {"levels": ("T12", "L3", "L5"), "spacing": (28, 33, 42), "fov": (300, 80, 250), "voxel": 1.6, "channel": "T2"}}
MR_FINGERPRINT = {"num_cases": 20, "num_unlabelled": 5, "slice_mm_p50": 4.4, "in_plane_mm_p50": 0.345, "slices_p50": 15.0,
                  "fov_mm_p95": [300.0, 280.0], "structures": {"S": {"value": 7}, "L5": {"value": 1}, "L5/S": {"value": 9}}}
BUDGETS = {"cpu_2gb": ["-device", "cpu", "-gpu_memory_target", "2"], "cuda_8gb": ["-device", "cuda", "-gpu_memory_target", "8"],
           "cuda_80gb": ["-device", "cuda", "-gpu_memory_target", "80"]}
PAPER_PLANNERS = {"ct": "SpineCLUEPaperPlanner", "mr": "SSHSNetPaperPlanner"}


class RecordError(Exception):
    """A command of the commit did not do what the record needs."""


@dataclass
class Program:
    """The commands of one commit.

    Attributes:
        python: interpreter with the dependencies.
        packages: folder that the commit is installed in; None: the interpreter's own installation is meant.
        home: folder of data sets and trainings.
        log: where the commands' own words go.
    """

    python: str
    packages: Path | None
    home: Path
    log: Path
    failures: list[str] = field(default_factory=list)

    def __call__(self, command: str, *arguments: object) -> None:
        """Run `spineclue_COMMAND`; RecordError unless it succeeds."""
        self.first_accepted(command, [arguments])

    def first_accepted(self, command: str, spellings: Sequence[Sequence[object]]) -> None:
        """Run the command with the first spelling of its arguments that it does not refuse as bad input."""
        for arguments in spellings:
            line = [self.python, "-m", "spineclue_v2.cli", command, *map(str, arguments)]
            done = subprocess.run(line, cwd=self.home, env=self.environment(), capture_output=True, text=True)
            with open(self.log, "a", encoding="utf-8") as log:
                log.write(f"$ spineclue_{command} {' '.join(map(str, arguments))}\n{done.stdout}{done.stderr}[{done.returncode}]\n")
            if done.returncode != BAD_INPUT:
                break
        if done.returncode:
            said = (done.stderr or done.stdout).strip().splitlines()
            raise RecordError(f"spineclue_{command} {' '.join(map(str, arguments))}: exit code {done.returncode}, "
                              f"{said[-1] if said else 'nothing said'}")

    def environment(self) -> dict[str, str]:
        """One thread, no GPU, no network, batches made in the training's own process: nothing depends on the machine's load."""
        own = ("PYTHONPATH", "spineclue_raw", "spineclue_preprocessed", "spineclue_results", "nnUNet_raw", "nnUNet_n_proc_DA")
        kept = {key: value for key, value in os.environ.items() if key not in own}
        threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"), "1")
        path = {} if self.packages is None else {"PYTHONPATH": str(self.packages)}
        return kept | threads | path | {"OMP_WAIT_POLICY": "PASSIVE", "CUDA_VISIBLE_DEVICES": "", "SPINECLUE_HOME": str(self.home),
                                        "spineclue_n_proc_DA": "0", "PYTHONHASHSEED": "0", "HF_HUB_OFFLINE": "1"}


def record(output: Path, python: str = sys.executable, checkout: Path | None = None, data: Path | None = None,
           only: Sequence[str] = ()) -> dict[str, Any]:
    """Write the record of a commit into `output`; returns what record.json says of it.

    Args:
        checkout: working tree to install and record; None: what is installed in `python`'s environment.
        data: folder of real scans; items that need them are left out where there is none.
        only: names of `ITEMS`; none: all. Items of an earlier record in `output` that are not named stay as they are.
    """
    items = {name: ITEMS[name] for name in only or ITEMS}
    # The commands run in a folder of their own.
    data, python = data and data.absolute(), os.path.abspath(python) if os.sep in python else python
    (output / "logs").mkdir(parents=True, exist_ok=True)
    about = _read_json(output / "record.json") if (output / "record.json").is_file() else {"items": {}}
    with tempfile.TemporaryDirectory(prefix="compare_commits_") as place:
        packages = install(checkout, Path(place) / "packages", python) if checkout else None
        about |= {"commit": commit_of(checkout) if checkout else f"installed in {python}", "made_by": versions()}
        for name, make in items.items():
            log = output / "logs" / f"{name}.txt"
            log.unlink(missing_ok=True)
            shutil.rmtree(output / name, ignore_errors=True)
            home = Path(place) / "home"
            home.mkdir(exist_ok=True)
            program, started, worked = Program(python, packages, home, log), time.perf_counter(), cpu_seconds()
            try:
                make(program, output / name, data)
            except RecordError as error:
                program.failures.append(str(error))
            name_folders(output / name, {home: "HOME", data: "DATA"})
            about["items"][name] = {"seconds": round(time.perf_counter() - started, 1), "failures": program.failures,
                                    "cpu_seconds": round(cpu_seconds() - worked, 1)}
            sys.stderr.write(f"{name}: {about['items'][name]['seconds']} s{''.join(f'; FAILED {why}' for why in program.failures)}\n")
            _write_json(output / "record.json", about)
    return about


def install(checkout: Path, target: Path, python: str) -> Path:
    """Install a working tree into the folder `target`, without its dependencies, which `python` has; returns `target`."""
    # From a copy: a build/ that lies in the tree would bring modules back that the commit no longer has.
    with tempfile.TemporaryDirectory(prefix="compare_commits_") as place:
        for name in git(checkout, "ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0"):
            if (checkout / name).is_file():
                _copy(checkout / name, Path(place) / name)
        line = [python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--target", str(target), place]
        done = subprocess.run(line, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{checkout} cannot be installed beside {python}; its setuptools may be older than pyproject.toml asks for "
                         f"(pip install -U setuptools). pip says:\n{done.stderr.strip()}")
    return target


def commit_of(checkout: Path) -> str:
    """Commit of a working tree, with '+' where files differ from it."""
    return git(checkout, "rev-parse", "HEAD").strip() + ("+" if git(checkout, "status", "--porcelain").strip() else "")


def git(folder: Path, *arguments: str) -> str:
    """What git prints in `folder`; its own sentence ends the program when it fails."""
    done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr.strip())
    return done.stdout


def cpu_seconds() -> float:
    """Of all commands that have ended so far."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def versions() -> dict[str, str]:
    """Of what decides numbers beside the commit itself."""
    from importlib.metadata import version

    return {"python": sys.version.split()[0]} | {name: version(name) for name in ("torch", "numpy", "scipy", "SimpleITK", "ultralytics")}


# ---- items ---------------------------------------------------------------------------------------------------------------
def record_plans(program: Program, output: Path, data: Path | None) -> None:
    """Plans of six fingerprints, by the default and the paper's planner and for several budgets."""
    folders = {}
    for number, (name, content) in enumerate(fingerprints(), 651):
        folder = program.home / "preprocessed" / f"Dataset{number}_{name}"
        _write_json(folder / "dataset_fingerprint.json", content | {"dataset_name": folder.name})
        folders[number] = (folder, PAPER_PLANNERS["mr" if "mr" in content else "ct"])
    for budget, flags in BUDGETS.items():
        program("plan_experiment", "-d", *folders, *flags, "-overwrite_plans_name", budget)
    for planner in PAPER_PLANNERS.values():
        chosen = [number for number, (_, own) in folders.items() if own == planner]
        program("plan_experiment", "-d", *chosen, "-pl", planner, *BUDGETS["cuda_80gb"], "-overwrite_plans_name", "paper")
    for folder, _ in folders.values():
        for name in (*BUDGETS, "paper"):
            _copy(folder / f"{name}.json", output / folder.name / f"{name}.json")


def fingerprints() -> Iterator[tuple[str, dict[str, Any]]]:
    """Names and contents of the six: five of CT's measures, one of MR's."""
    spec = importlib.util.spec_from_file_location("example_fingerprint", ROOT / "tests" / "example_fingerprint.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name, arguments in FINGERPRINTS.items():
        yield name, module.fingerprint(**arguments)
    yield "MR", {"dataset_name": "", "dataset_hash": "0", "mr": MR_FINGERPRINT}


def record_phantoms(program: Program, output: Path, data: Path | None) -> None:
    """Four synthetic scans (voxels as digests, label maps, centroids), what is found in them, and the figures of that."""
    for name, (number, cases, seed, pathology) in PHANTOMS.items():
        program("convert_dataset", "phantom", "-d", number, "-name", "Phantom", "--cases", cases, "--seed", seed, "--pathology", pathology,
                "-np", 0)
        raw, found = program.home / "raw" / f"Dataset{number}_Phantom", program.home / f"found_{name}"
        _write_json(output / name / "images.json", {path.name: _digest(path) for path in sorted((raw / "imagesTr").iterdir())})
        for part in ("labelsTr", "centroidsTr", "gradesTr"):
            _copy_results(raw / part, output / name / part)
        _predict(program, raw / "imagesTr", found)
        _copy_results(found, output / name / "found")
        program("evaluate", "-ref", raw / "labelsTr", "-pred", found, "-o", program.home / f"{name}.json", "-np", 0)
        _copy(program.home / f"{name}.json", output / name / "evaluation.json")


def record_real(program: Program, output: Path, data: Path | None) -> None:
    """What is found in the real scans, by default and with each switch."""
    scans = _linked(program, data, REAL, "real")
    _predict(program, scans, program.home / "found_real")
    _copy_results(program.home / "found_real", output / "default")
    few = _linked(program, data, {name: REAL[name] for name in SWITCHED}, "switched")
    for name, spellings in SWITCHES.items():
        _predict(program, few, program.home / f"found_{name}", spellings)
        _copy_results(program.home / f"found_{name}", output / name)


def record_relabel(program: Program, output: Path, data: Path | None) -> None:
    """Names for the vertebrae of label maps, with and without the scan."""
    for name, (mask, scan) in MASKS.items():
        if data is None or not (data / mask).is_file():
            raise RecordError(f"{data}/{mask} does not exist")
        target = program.home / "relabelled" / f"{name}.nii.gz"
        target.parent.mkdir(exist_ok=True)
        program("relabel", "-i", data / mask, "-o", target, "-device", "cpu", *(["-ct", data / scan] if scan else []))
    _copy_results(program.home / "relabelled", output)


def record_demo(program: Program, output: Path, data: Path | None) -> None:
    """The demonstration: its scan's truth, labels, record and figures."""
    program("demo", "-o", program.home / "demo", "-device", "cpu")
    _copy_results(program.home / "demo", output)


def record_training(program: Program, output: Path, data: Path | None) -> None:
    """20 steps of every trainer on small data sets: losses, what was learned, validation; then a prediction with these weights."""
    program("convert_dataset", "phantom", "-d", 641, "-name", "Tiny", "--cases", 6, "--seed", 4, "--pathology", "short=4,fracture=2",
            "-np", 0)
    program("convert_dataset", "phantom_mr", "-d", 642, "-name", "TinyMR", "--cases", 5, "--unlabelled", 2, "--test", 1, "--seed", 3,
            "-np", 0)
    for number, name in ((641, "Dataset641_Tiny"), (642, "Dataset642_TinyMR")):
        program("plan_and_preprocess", "-d", number, "-device", "cpu", "-gpu_memory_target", 1, "--no_pp", "-np", 0)
        folder = program.home / "preprocessed" / name
        for file in ("dataset_fingerprint.json", "SpineCLUEPlans.json"):
            _copy(folder / file, output / name / file)
        make_small(folder / "SpineCLUEPlans.json")
        program("preprocess", "-d", number, "-np", 0)
    for name, (number, stage) in TRAININGS.items():
        try:
            _train(program, number, stage, output / name)
        except RecordError as error:   # the other trainers are worth having
            program.failures.append(str(error))
    for number, test in ((641, "imagesTr/phantom_0001_0000.nii.gz"), (642, "imagesTs")):
        (raw,) = (program.home / "raw").glob(f"Dataset{number}_*")
        source = raw / test
        program("predict", "-d", number, "-i", source, "-o", program.home / f"found_{number}", "-device", "cpu", "--no_report")
        _copy_results(program.home / f"found_{number}", output / f"found_{raw.name}")


def make_small(path: Path) -> None:
    """Make the numbers of the plan at `path` those of `SMALL`; names it does not have are passed over, but not all of a stage."""
    plan = _read_json(path)
    for stage, groups in plan["stages"].items():
        wanted = SMALL["*"] | SMALL.get(stage, {})
        changed = 0
        for group, numbers in groups.items():
            # A network's own spacing belongs to its crop size; only that of the preprocessed scans is made coarse.
            for name in {name for name in wanted if name in numbers and (name != "spacing_mm" or group == "data")}:
                held = numbers[name]
                numbers[name] = held | {"value": wanted[name]} if isinstance(held, dict) and "value" in held else wanted[name]
                changed += 1
        if not changed:
            raise RecordError(f"{path.name}: none of the numbers that make a training small is in stage {stage}")
    _write_json(path, plan)


def _train(program: Program, number: int, stages: list[list[str]], output: Path) -> None:
    results = program.home / "results"
    before = set(results.rglob("checkpoint_final.pth"))
    program.first_accepted("train", [[number, stage[0], 0, *stage[1:], "-device", "cpu"] for stage in stages])
    (checkpoint,) = set(results.rglob("checkpoint_final.pth")) - before
    _write_json(output / "losses.json", learned(checkpoint))
    summary = checkpoint.parent / "validation" / "summary.json"
    if summary.is_file():
        _copy(summary, output / "validation.json")


def learned(checkpoint: Path) -> dict[str, Any]:
    """Losses and figures per epoch (of one step each), and sums over the weights, which no renamed tensor changes."""
    import torch

    content = torch.load(checkpoint, map_location="cpu", weights_only=True)
    meta = content["meta"] if isinstance(content["meta"], dict) else json.loads(content["meta"])
    tensors = [value.double() for value in content["network_weights"].values() if value.is_floating_point()]
    return {"history": {key: values for key, values in meta["history"].items() if key != "seconds"}, "tensors": len(tensors),
            "numbers": sum(t.numel() for t in tensors), "sum_of_absolute_weights": float(sum(t.abs().sum() for t in tensors)),
            "fitted": {key: value for key, value in (meta.get("fitted") or {}).items() if key != "upstream"}}


ITEMS: dict[str, Callable[[Program, Path, Path | None], None]] = {
    "plans": record_plans, "phantoms": record_phantoms, "real": record_real, "relabel": record_relabel, "demo": record_demo,
    "training": record_training}


# ---- files ---------------------------------------------------------------------------------------------------------------
def _predict(program: Program, source: Path, output: Path, spellings: Sequence[Sequence[str]] = ((),)) -> None:
    common = ["-i", source, "-o", output, "-device", "cpu", "--no_report", "--save_probabilities", "--disable_progress_bar"]
    program.first_accepted("predict", [[*common, *flags] for flags in spellings])


def _linked(program: Program, data: Path | None, files: dict[str, str], name: str) -> Path:
    """A folder of links to those of `files` that exist, under the names of the record."""
    folder = program.home / f"scans_{name}"
    folder.mkdir()
    for case, file in files.items():
        if data is not None and (data / file).is_file():
            (folder / f"{case}.nii.gz").symlink_to((data / file).absolute())
        else:
            program.failures.append(f"{file} does not exist")
    if not any(folder.iterdir()):
        raise RecordError(f"none of the real scans lies in {data}; name their folder with --data")
    return folder


def _copy_results(source: Path, target: Path) -> None:
    """Label maps, JSON and arrays; scans are left out, and files that say how they were made (they name folders)."""
    for path in sorted(source.rglob("*")):
        scan = path.parent == source and path.name == "demo.nii.gz"
        if path.is_file() and path.name.endswith((".json", ".nii.gz", ".npz")) and not scan and path.name != "predict_args.json":
            _copy(path, target / path.relative_to(source))


def _digest(path: Path) -> dict[str, Any]:
    """Grid, sha256 and mean of a scan: its voxels are not worth their room in a record."""
    import SimpleITK as sitk

    image = sitk.ReadImage(str(path))
    voxels = np.ascontiguousarray(sitk.GetArrayFromImage(image))
    return {"size": image.GetSize(), "spacing": image.GetSpacing(), "direction": image.GetDirection(), "mean": float(voxels.mean()),
            "sha256": hashlib.sha256(voxels.tobytes()).hexdigest()}


def name_folders(record: Path, names: dict[Path | None, str]) -> None:
    """Replace folders that every record has of its own by their name in all JSON files."""
    for path in record.rglob("*.json"):
        text = path.read_text(encoding="utf-8")
        for folder, name in names.items():
            text = text if folder is None else text.replace(str(folder), name)
        path.write_text(text, encoding="utf-8")


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
