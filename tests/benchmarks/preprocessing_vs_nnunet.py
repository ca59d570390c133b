"""Preprocessing side by side with nnU-Net: cases per minute, peak memory of all processes, and the error it makes.

    python tests/benchmarks/preprocessing_vs_nnunet.py -o SCRATCH [--cases 20] [--repeats 3] [--workers 2]

Phantoms at 0.7 x 0.7 x 2 mm and 0.4 x 0.4 x 3 mm are preprocessed to 1 mm by both programs in turn. The error is taken against
the same phantom (same seed) rendered at 1 mm: RMS in HU and mean Dice of the labels. Prints one line per spacing as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

SPACINGS = {"0.7 x 0.7 x 2 mm": (2.0, 0.7, 0.7), "0.4 x 0.4 x 3 mm": (3.0, 0.4, 0.4)}
PHANTOM = {"first": "T12", "last": "L3", "wide": False, "fractures": 0, "noise": 10.0, "kernel": "medium"}
PLANS = {"nnunet": "Iso", "spineclue": "SpineCLUEPaperPlans"}
EDGE = 6                      # voxels at the border that are left out of the error: both programs extend the image there


def run(command: list[str], environment: dict[str, str]) -> tuple[float, float]:
    """(seconds, peak GB of the process and all its children) of a command."""
    started, peak = time.time(), 0.0
    with open(os.devnull, "w") as quiet:
        process = subprocess.Popen(command, env=environment, stdout=quiet, stderr=subprocess.PIPE)
        while process.poll() is None:
            peak = max(peak, tree_gb(process.pid))
            time.sleep(0.05)
    if process.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{(process.stderr.read() if process.stderr else b'').decode()[-2000:]}")
    return time.time() - started, peak


def tree_gb(root: int) -> float:
    """Proportional set size of a process and its descendants, GB."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            except OSError:
                continue
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    total, waiting = 0, [root]
    while waiting:
        pid = waiting.pop()
        waiting += children.get(pid, [])
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 1e6


def make_dataset(folder: Path, spacing: tuple[float, float, float], cases: int, reference: Path) -> None:
    """Phantoms of seeds 1.. at `spacing`, and the same at 1 mm in `reference`."""
    from spineclue_v2.anatomy import dataset_labels
    from spineclue_v2.dataset_conversion.phantom import write_case
    from spineclue_v2.phantom import sample

    for seed in range(1, cases + 1):
        for place, grid in ((folder, spacing), (reference, (1.0, 1.0, 1.0))):
            if not (place / "imagesTr" / f"case_{seed:03d}_0000.nii.gz").is_file():
                write_case(place, f"case_{seed:03d}", sample(seed, spacing=grid, **PHANTOM))
    content = {"channel_names": {"0": "CT"}, "labels": dataset_labels(), "numTraining": cases, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(content))


def error(image: np.ndarray, labels: np.ndarray, case: str, reference: Path, grid: Any) -> tuple[float, float]:
    """(RMS HU, mean Dice) of a preprocessed case on the geometry `grid` against the phantom rendered at 1 mm."""
    import SimpleITK as sitk

    from spineclue_v2.volume import Volume, read_labels, read_volume

    def on_grid(volume: Volume, interpolator: int) -> np.ndarray:
        target = Volume(np.zeros(grid.shape, np.uint8), grid).to_sitk()
        return sitk.GetArrayFromImage(sitk.Resample(volume.to_sitk(), target, sitk.Transform(), interpolator))

    scan = read_volume(reference / "imagesTr" / f"{case}_0000.nii.gz")
    wanted = on_grid(Volume(scan.array.astype(np.float32), scan.geometry), sitk.sitkBSpline)
    truth = on_grid(read_labels(reference / "labelsTr" / f"{case}.nii.gz"), sitk.sitkNearestNeighbor)
    inner = tuple(slice(EDGE, n - EDGE) for n in grid.shape)
    rms = float(np.sqrt(np.mean((image[inner].astype(float) - wanted[inner]) ** 2)))
    shared = [v for v in np.unique(truth) if v]
    dice = [2 * ((labels == v) & (truth == v)).sum() / ((labels == v).sum() + (truth == v).sum()) for v in shared]
    return rms, float(np.mean(dice))


def errors(root: Path, name: str, fingerprint: str, reference: Path) -> dict[str, tuple[float, float]]:
    """Mean error of both programs' files. nnU-Net's image is turned back from its normalisation to HU."""
    import blosc2

    from spineclue_v2.dataset import PreprocessedDataset
    from spineclue_v2.geometry import Geometry

    ours = PreprocessedDataset(root / "ours" / name / fingerprint)
    theirs = root / "theirs" / name
    plan = json.loads((theirs / "Iso.json").read_text())
    norm = plan["foreground_intensity_properties_per_channel"]["0"]
    found: dict[str, list[tuple[float, float]]] = {"spineclue": [], "nnunet": []}
    for case in ours.cases:
        grid = Geometry.from_json(ours.properties(case)["geometry"])
        found["spineclue"].append(error(ours.image(case)[:], ours.labels(case)[:], case, reference, grid))
        image = blosc2.open(str(theirs / "Iso_3d_fullres" / f"{case}.b2nd"))[0] * norm["std"] + norm["mean"]
        labels = blosc2.open(str(theirs / "Iso_3d_fullres" / f"{case}_seg.b2nd"))[0]
        if image.shape == grid.shape:
            found["nnunet"].append(error(image, labels, case, reference, grid))
    return {program: tuple(np.mean(rows, axis=0).round(4).tolist()) for program, rows in found.items() if rows}  # type: ignore[misc]


def compare(
    root: Path, number: int, spacing: tuple[float, float, float], cases: int, repeats: int, workers: int
) -> dict[str, Any]:
    """Interleaved runs of both programs on one dataset."""
    name = f"Dataset{number:03d}_Bench"
    reference = root / "reference"
    make_dataset(root / "raw" / name, spacing, cases, reference)
    bin_folder = Path(sys.executable).parent
    environment = os.environ | {
        "nnUNet_raw": str(root / "raw"), "nnUNet_preprocessed": str(root / "theirs"), "nnUNet_results": str(root / "results"),
        "spineclue_raw": str(root / "raw"), "spineclue_preprocessed": str(root / "ours")}  # fmt: skip
    planning = {
        "nnunet": [["nnUNetv2_extract_fingerprint", "-d", str(number), "-np", str(workers)],
                   ["nnUNetv2_plan_experiment", "-d", str(number), "-overwrite_target_spacing", "1", "1", "1",
                    "-overwrite_plans_name", "Iso"]],
        "spineclue": [["spineclue_extract_fingerprint", "-d", str(number), "-np", str(workers), "--no_pbar"],
                      ["spineclue_plan_experiment", "-d", str(number), "-pl", "SpineCLUEPaperPlanner"]],
    }  # fmt: skip
    commands = {
        "nnunet": ["nnUNetv2_preprocess", "-d", str(number), "-plans_name", "Iso", "-c", "3d_fullres", "-np", str(workers)],
        "spineclue": ["spineclue_preprocess", "-d", str(number), "-plans_name", PLANS["spineclue"], "-np", str(workers),
                      "--clean", "--no_pbar"],
    }  # fmt: skip
    result: dict[str, Any] = {program: {"seconds": [], "peak_gb": [], "plan_seconds": 0.0} for program in commands}
    for program, steps in planning.items():
        for step in steps:
            result[program]["plan_seconds"] += run([str(bin_folder / step[0]), *step[1:]], environment)[0]
    for _ in range(repeats):
        for program, command in commands.items():
            seconds, peak = run([str(bin_folder / command[0]), *command[1:]], environment)
            result[program]["seconds"].append(seconds)
            result[program]["peak_gb"].append(peak)
    plan = json.loads((root / "ours" / name / f"{PLANS['spineclue']}.json").read_text())
    means = errors(root, name, plan["fingerprints"]["segment"]["data"], reference)
    return {program: {"cases_per_minute": round(60 * cases / statistics.median(r["seconds"]), 1),
                      "peak_gb": round(statistics.median(r["peak_gb"]), 2), "fingerprint_and_plan_s": round(r["plan_seconds"], 1),
                      "rms_hu": means[program][0], "dice": means[program][1]} for program, r in result.items()}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", type=Path, required=True, help="scratch folder")
    parser.add_argument("--cases", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    for number, (label, spacing) in enumerate(SPACINGS.items(), start=801):
        for part in ("ours", "theirs"):
            shutil.rmtree(args.o / part / f"Dataset{number:03d}_Bench", ignore_errors=True)
        result = compare(args.o, number, spacing, args.cases, args.repeats, args.workers)
        sys.stdout.write(json.dumps({"phantoms": label, "cases": args.cases} | result) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
