"""Fingerprint, plan and preprocessing side by side with nnU-Net: wall and CPU seconds, peak memory of all processes, the error.

    python -m benchmarks.preprocessing_vs_nnunet -o SCRATCH make [--cases 20]
    python -m benchmarks.preprocessing_vs_nnunet -o SCRATCH round [--only 1] [--workers 2]     (three times)
    python -m benchmarks.preprocessing_vs_nnunet -o SCRATCH report

Phantoms at 0.7 x 0.7 x 2 mm and 0.4 x 0.4 x 3 mm, the same raw folder for both programs, both planned to 1 mm. A round runs each
program once from nothing, one after the other; the report gives medians over the rounds. The error is taken against the same
phantom (same seed) rendered at 1 mm: RMS in HU, of both programs within the intensities that nnU-Net's normalisation keeps (it clips at the
foreground's 0.5th and 99.5th percentile), and mean Dice of the labels.
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

GRIDS = {"0.7 x 0.7 x 2 mm": (2.0, 0.7, 0.7), "0.4 x 0.4 x 3 mm": (3.0, 0.4, 0.4)}
PHANTOM = {"first": "T12", "last": "L3", "wide": False, "fractures": 0, "noise": 10.0, "kernel": "medium"}
PROGRAMS = ("nnunet", "spineclue")
EDGE = 6                      # voxels at the border that are left out of the error: both programs extend the image there


def dataset(number: int) -> str:
    return f"Dataset{800 + number}_Bench"


def commands(program: str, number: int, workers: int) -> dict[str, list[list[str]]]:
    """{step: command lines} that start from nothing (--clean)."""
    which, np_ = ["-d", str(800 + number)], ["-np", str(workers)]
    if program == "nnunet":
        plan = [["nnUNetv2_extract_fingerprint", *which, *np_, "--clean"],
                ["nnUNetv2_plan_experiment", *which, "-overwrite_target_spacing", "1", "1", "1", "-overwrite_plans_name", "Iso"]]
        return {"plan": plan, "preprocess": [["nnUNetv2_preprocess", *which, "-plans_name", "Iso", "-c", "3d_fullres", *np_]]}
    plan = [["spineclue_extract_fingerprint", *which, *np_, "--clean"],
            ["spineclue_plan_experiment", *which, "-pl", "SpineCLUEPaperPlanner"]]
    again = ["spineclue_plan_and_preprocess", *which, "-pl", "SpineCLUEPaperPlanner", *np_]
    return {"plan": plan, "preprocess": [["spineclue_preprocess", *which, "-plans_name", "SpineCLUEPaperPlans", *np_, "--clean"]],
            "again": [again]}


def run(line: list[str], environment: dict[str, str]) -> tuple[float, float, float]:
    """(seconds, CPU seconds, peak GB) of a command, the last two of the process and all its children."""
    started, peak, cpu = time.time(), 0.0, {}
    with open(os.devnull, "w") as quiet:
        process = subprocess.Popen([program(line[0]), *line[1:]], env=environment, stdout=quiet, stderr=subprocess.PIPE)
        while process.poll() is None:
            gigabytes, seconds = tree(process.pid)
            peak = max(peak, gigabytes)
            cpu |= seconds
            time.sleep(0.25)
    if process.returncode:
        sys.exit(f"{' '.join(line)} failed:\n{(process.stderr.read() if process.stderr else b'').decode()[-2000:]}")
    return time.time() - started, sum(cpu.values()), peak


def program(name: str) -> str:
    """A command beside this Python, else on the path."""
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    return found or sys.exit(f"{name} is not installed")


def tree(root: int) -> tuple[float, dict[int, float]]:
    """Proportional set size (GB) and CPU seconds so far per process of a process and its descendants."""
    children: dict[int, list[int]] = {}
    ticks: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            except OSError:
                continue
            children.setdefault(int(fields[1]), []).append(int(entry.name))
            ticks[int(entry.name)] = int(fields[11]) + int(fields[12])
    total, waiting, cpu = 0, [root], {}
    while waiting:
        pid = waiting.pop()
        waiting += children.get(pid, [])
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
        cpu[pid] = ticks.get(pid, 0) / os.sysconf("SC_CLK_TCK")
    return total / 1e6, cpu


def make(root: Path, number: int, cases: int) -> None:
    """Phantoms of seeds 1.. on both grids' dataset `number`, and the same at 1 mm in `reference` (complete ones are kept)."""
    from spineclue_v2.anatomy import dataset_labels
    from spineclue_v2.dataset_conversion.phantom import write_case
    from spineclue_v2.phantom import sample

    folder, spacing = root / "raw" / dataset(number), list(GRIDS.values())[number - 1]
    for seed in range(1, cases + 1):
        for place, grid in ((folder, spacing), (root / "reference", (1.0, 1.0, 1.0))):
            if not (place / "imagesTr" / f"case_{seed:03d}_0000.nii.gz").is_file():
                write_case(place, f"case_{seed:03d}", sample(seed, spacing=grid, **PHANTOM))
    content = {"channel_names": {"0": "CT"}, "labels": dataset_labels(), "numTraining": cases, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(content))


def measure(root: Path, number: int, workers: int) -> None:
    """One round of both programs on dataset `number`, appended to rounds.jsonl."""
    environment = os.environ | {
        "nnUNet_raw": str(root / "raw"), "nnUNet_preprocessed": str(root / "theirs"), "nnUNet_results": str(root / "results"),
        "spineclue_raw": str(root / "raw"), "spineclue_preprocessed": str(root / "ours")}  # fmt: skip
    row: dict[str, Any] = {"number": number, "workers": workers}
    for name in PROGRAMS:
        shutil.rmtree(root / {"nnunet": "theirs", "spineclue": "ours"}[name] / dataset(number), ignore_errors=True)
    for name in PROGRAMS:
        for step, lines in commands(name, number, workers).items():
            figures = [run(line, environment) for line in lines]
            row[f"{name} {step}"] = [round(sum(f[0] for f in figures), 2), round(sum(f[1] for f in figures), 2),
                                     round(max(f[2] for f in figures), 3)]
    with open(root / "rounds.jsonl", "a") as file:
        file.write(json.dumps(row) + "\n")
    sys.stdout.write(json.dumps(row) + "\n")


def error(image: np.ndarray, labels: np.ndarray, case: str, reference: Path, grid: Any, limits: tuple[float, float]) -> tuple[float, float]:
    """(RMS HU within `limits`, mean Dice) of a preprocessed case on the geometry `grid` against the phantom rendered at 1 mm."""
    import SimpleITK as sitk

    from spineclue_v2.imageio.volume import Volume, read_labels, read_volume

    def on_grid(volume: Volume, interpolator: int) -> np.ndarray:
        target = Volume(np.zeros(grid.shape, np.uint8), grid).to_sitk()
        return sitk.GetArrayFromImage(sitk.Resample(volume.to_sitk(), target, sitk.Transform(), interpolator))

    scan = read_volume(reference / "imagesTr" / f"{case}_0000.nii.gz")
    wanted = on_grid(Volume(scan.array.astype(np.float32), scan.geometry), sitk.sitkBSpline)
    truth = on_grid(read_labels(reference / "labelsTr" / f"{case}.nii.gz"), sitk.sitkNearestNeighbor)
    inner = tuple(slice(EDGE, n - EDGE) for n in grid.shape)
    rms = float(np.sqrt(np.mean((np.clip(image[inner].astype(float), *limits) - np.clip(wanted[inner], *limits)) ** 2)))
    shared = [v for v in np.unique(truth) if v]
    dice = [2 * ((labels == v) & (truth == v)).sum() / ((labels == v).sum() + (truth == v).sum()) for v in shared]
    return rms, float(np.mean(dice))


def errors(root: Path, number: int) -> dict[str, tuple[float, float]]:
    """Mean (RMS HU, Dice) of both programs' files. nnU-Net's image is turned back from its normalisation to HU."""
    import blosc2

    from spineclue_v2.dataset.preprocessed import PreprocessedDataset
    from spineclue_v2.imageio.grid import ImageGrid

    plan = json.loads((root / "ours" / dataset(number) / "SpineCLUEPaperPlans.json").read_text())
    ours = PreprocessedDataset(root / "ours" / dataset(number) / plan["fingerprints"]["segment"]["data"])
    theirs = root / "theirs" / dataset(number)
    norm = json.loads((theirs / "Iso.json").read_text())["foreground_intensity_properties_per_channel"]["0"]
    limits = norm["percentile_00_5"], norm["percentile_99_5"]
    found: dict[str, list[tuple[float, float]]] = {program: [] for program in PROGRAMS}
    for case in ours.cases:
        grid = ImageGrid.from_json(ours.properties(case)["geometry"])
        found["spineclue"].append(error(ours.image(case)[:], ours.labels(case)[:], case, root / "reference", grid, limits))
        image = blosc2.open(str(theirs / "Iso_3d_fullres" / f"{case}.b2nd"))[0] * norm["std"] + norm["mean"]
        labels = blosc2.open(str(theirs / "Iso_3d_fullres" / f"{case}_seg.b2nd"))[0]
        if image.shape != grid.shape:
            sys.exit(f"{case}: nnU-Net's grid {image.shape} is not ours {grid.shape}; the two cannot be compared.")
        found["nnunet"].append(error(image, labels, case, root / "reference", grid, limits))
    return {program: tuple(np.mean(rows, axis=0).tolist()) for program, rows in found.items()}  # type: ignore[misc]


def report(root: Path) -> None:
    """Medians of all rounds, and the error of the files that the last one left."""
    rounds = [json.loads(line) for line in (root / "rounds.jsonl").read_text().splitlines()]
    for number, label in enumerate(GRIDS, start=1):
        rows = [row for row in rounds if row["number"] == number]
        if not rows:
            continue
        cases = len(list((root / "raw" / dataset(number) / "imagesTr").glob("*.nii.gz")))
        means = errors(root, number)
        sys.stdout.write(f"{label}, {cases} cases, median of {len(rows)} rounds, {rows[0]['workers']} workers\n")
        figures = {key: [statistics.median(row[key][i] for row in rows) for i in range(3)] for key in rows[0] if " " in key}
        for name in PROGRAMS:
            (plan_s, plan_cpu, _), (seconds, cpu, peak) = figures[f"{name} plan"], figures[f"{name} preprocess"]
            sys.stdout.write(f"  {name:10s} fingerprint and plan {plan_s:6.1f} s (CPU {plan_cpu:6.1f}), preprocess {seconds:6.1f} s "
                             f"(CPU {cpu:6.1f}; {60 * cases / seconds:6.1f} cases a minute), peak {peak:.2f} GB, "
                             f"RMS {means[name][0]:.2f} HU, Dice {means[name][1]:.4f}\n")
        sys.stdout.write(f"  spineclue_plan_and_preprocess again, nothing changed: {figures['spineclue again'][0]:.1f} s\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("make", "round", "report"))
    parser.add_argument("-o", type=Path, required=True, help="scratch folder")
    parser.add_argument("--cases", type=int, default=20)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", type=int, choices=(1, 2), help="one of the two grids")
    args = parser.parse_args()
    for number in [args.only] if args.only else range(1, len(GRIDS) + 1):
        if args.part == "make":
            make(args.o, number, args.cases)
        elif args.part == "round":
            measure(args.o, number, args.workers)
    if args.part == "report":
        report(args.o)


if __name__ == "__main__":
    main()
