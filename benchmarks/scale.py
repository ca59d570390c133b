"""How do fingerprint, plan, preprocessing and prediction grow with the number of scans, and does a killed worker lose anything?

    python -m benchmarks.scale [-n 100 300] [--workers 4] [--kill 20] [--predict 20] [-o FOLDER]
    python -m benchmarks.scale --headers 1000 10000

Makes a dataset of N small synthetic scans (a few drawn spines of coarse and unequal spacings, copied with other values) and works on it
through a Dask cluster of this computer. `--kill S` kills a worker every S seconds meanwhile. `--predict P` lets the shipped weights predict
the first P of them, too. Prints per N: seconds of each step, processor seconds of this process (which holds the scheduler), the most
memory of all workers together and of this process, and how many cases are missing in the end; exit code 1 when one is.

`--headers` alone: N cases whose measurements are remembered, with sizes and spacings as public CT datasets have them, so that what is left
is reading the list, pooling and planning.

It shows how the program's own bookkeeping grows. It does not show what full-size scans cost, nor a network file system.
"""
from __future__ import annotations

import argparse
import logging
import os
import random
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SPACINGS = ((3.0, 3.0, 3.0), (5.0, 2.5, 2.5), (4.0, 3.0, 3.0), (2.5, 3.5, 3.5))
LEVELS: dict[str, Any] = {"first": "L2", "last": "L4", "margin": 6.0, "variant": None, "cobb": 0.0, "fractures": {}, "screws": 0,
                          "cement": 0, "wide": False}
SEED = 731
IN_PLANE, SLICES = (0.55, 0.98), (0.7, 1.0, 1.25, 2.0, 2.5, 3.0, 5.0)      # mm, as a chest or abdomen CT has them
SLICE_SHARES = (0.1, 0.35, 0.2, 0.1, 0.1, 0.05, 0.1)


def make_dataset(folder: Path, count: int) -> None:
    """A raw dataset of `count` cases: every scan has values of its own, every fourth the same labels."""
    from spineclue_v2 import anatomy
    from spineclue_v2.imageio.volume import ImageGrid, Volume, write_volume
    from spineclue_v2.phantom import sample
    from spineclue_v2.utilities.files import write_json

    drawn = []
    for number, spacing in enumerate(SPACINGS):
        case = sample(SEED + number, spacing=spacing, **LEVELS)
        drawn.append((case, ImageGrid(case.ct.shape, tuple(case.spacing), (0.0, 0.0, 0.0), case.direction)))
    names = [f"case_{number:05d}" for number in range(count)]
    for number, name in enumerate(names):
        case, grid = drawn[number % len(drawn)]
        write_volume(Volume(case.labels, grid), folder / "labelsTr" / f"{name}.nii.gz")
        write_volume(Volume(case.ct + case.ct.dtype.type(number // len(drawn) % 50), grid), folder / "imagesTr" / f"{name}_0000.nii.gz")
    write_json(folder / "dataset.json", {"channel_names": {"0": "CT"}, "labels": anatomy.dataset_labels(), "numTraining": count,
                                         "file_ending": ".nii.gz", "patients": {name: name for name in names}})


class Watch:
    """The most memory that this process and its workers had, looked at every half second."""

    def __init__(self, pids: Callable[[], list[int]]) -> None:
        self.workers_gb = self.own_gb = 0.0
        self._pids, self._end = pids, threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        while not self._end.wait(0.5):
            self.workers_gb = max(self.workers_gb, sum(map(resident_gb, self._pids())))
            self.own_gb = max(self.own_gb, resident_gb(os.getpid()))

    def close(self) -> None:
        self._end.set()
        self._thread.join()


def resident_gb(pid: int) -> float:
    try:
        with open(f"/proc/{pid}/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e9
    except OSError:  # it has just been killed
        return 0.0


@contextmanager
def killing(pids: Callable[[], list[int]], every_s: float) -> Iterator[list[int]]:
    """Kill a worker every `every_s` seconds (0: none); yields the list of those killed."""
    killed: list[int] = []
    end = threading.Event()

    def kill() -> None:
        draw = random.Random(SEED)
        while not end.wait(every_s):
            if found := pids():
                killed.append(draw.choice(found))
                os.kill(killed[-1], 9)

    thread = threading.Thread(target=kill, daemon=True)
    if every_s:
        thread.start()
    try:
        yield killed
    finally:
        end.set()
        if every_s:
            thread.join()


def measure(home: Path, count: int, cluster: Any, kill_s: float, predicted: int) -> dict[str, Any]:
    """One dataset of `count` cases: seconds, memory, what is missing."""
    from spineclue_v2.planning.fingerprint import load_fingerprint
    from spineclue_v2.planning.plan_and_preprocess import fingerprint_dataset, plan_experiment, preprocess_plans
    from spineclue_v2.utilities.parallel import dask_executor

    def pids() -> list[int]:
        return [nanny.pid for nanny in list(cluster.workers.values()) if nanny.pid]

    name, row = f"Dataset{800 + count % 100:03d}_Scale{count}", {"N": count}
    started = time.perf_counter()
    make_dataset(home / "raw" / name, count)
    row["made_s"] = time.perf_counter() - started
    watch, own, lost = Watch(pids), time.process_time(), 0
    with dask_executor(cluster.scheduler_address) as executor, killing(pids, kill_s) as killed:
        for step, work in (("fingerprint_s", lambda: fingerprint_dataset(name, executor=executor, progress=False)),
                           ("plan_s", lambda: plan_experiment(name, device="cpu", gpu_memory_target=4.0)),
                           ("preprocess_s", lambda: preprocess_plans(name, executor=executor, progress=False))):
            started = time.perf_counter()
            failed = work()
            row[step] = time.perf_counter() - started
        row["own_cpu_s"] = time.process_time() - own
        if predicted:
            row["predict_s"], lost = predict_some(home, home / "raw" / name, min(predicted, count), executor)
    watch.close()
    measured = load_fingerprint(home / "preprocessed" / name)["cases"]
    missing = count - len(measured) + len(failed) + lost
    first = {"first": next(iter(failed.values()))} if failed else {}
    return row | {"workers_gb": watch.workers_gb, "own_gb": watch.own_gb, "killed": len(killed), "missing": missing} | first


def remember_cases(raw_folder: Path, preprocessed: Path, count: int) -> None:
    """A raw dataset of `count` cases that share four small files, and the measurements of each as if it were a scan of its own."""
    import numpy as np

    from spineclue_v2.dataset.raw import RawDataset
    from spineclue_v2.planning import fingerprint
    from spineclue_v2.utilities.files import read_json, write_json

    make_dataset(raw_folder, len(SPACINGS))
    names, content = [f"case_{number:05d}" for number in range(count)], read_json(raw_folder / "dataset.json")
    for number, name in enumerate(names[len(SPACINGS):], len(SPACINGS)):
        source = names[number % len(SPACINGS)]
        for place, ending in (("imagesTr", "_0000.nii.gz"), ("labelsTr", ".nii.gz")):
            (raw_folder / place / f"{name}{ending}").hardlink_to(raw_folder / place / f"{source}{ending}")
    write_json(raw_folder / "dataset.json", content | {"numTraining": count, "patients": {name: name for name in names}})
    raw, draw = RawDataset(raw_folder), np.random.default_rng(SEED)
    measured = [fingerprint.measure_case(raw.image(name), raw.label(name), name, raw.verse_value) for name in names[:len(SPACINGS)]]
    records = {}
    for number, name in enumerate(names):
        plane = round(float(draw.uniform(*IN_PLANE)), 4)
        slices = float(draw.choice(SLICES, p=SLICE_SHARES))
        spacing, shape = [slices, plane, plane], [int(draw.uniform(250, 700) / slices), 512, 512]
        grid = {"digest": f"{raw.case_digest(name)}-{fingerprint.VERSION}", "shape": shape, "spacing": spacing,
                "fov_mm": [round(n * s, 2) for n, s in zip(shape, spacing, strict=True)]}
        records[name] = measured[number % len(SPACINGS)] | grid
    write_json(preprocessed / fingerprint.CACHE_NAME, records)


def plan_headers(home: Path, count: int) -> dict[str, Any]:
    """Seconds and memory of pooling `count` remembered measurements and planning from them, in this process."""
    from spineclue_v2.planning.plan_and_preprocess import fingerprint_dataset, plan_experiment

    name, row = f"Dataset{700 + len(str(count)):03d}_Headers{count}", {"headers": count}
    remember_cases(home / "raw" / name, home / "preprocessed" / name, count)
    watch = Watch(lambda: [])
    for step, work in (("fingerprint_s", lambda: fingerprint_dataset(name, progress=False)),
                       ("plan_s", lambda: plan_experiment(name, device="cpu", gpu_memory_target=4.0))):
        started = time.process_time()
        work()
        row[step] = time.process_time() - started
    watch.close()
    return row | {"own_gb": watch.own_gb}


def predict_some(home: Path, raw: Path, count: int, executor: Any) -> tuple[float, int]:
    """Seconds in which the cluster predicts the first `count` scans, and how many of them have no finished result."""
    import torch

    from spineclue_v2.inference.cases import Case
    from spineclue_v2.inference.model import ModelSource, load_shipped
    from spineclue_v2.inference.predict_folder import predict

    model, out = load_shipped(torch.device("cpu")), home / "predicted" / raw.name
    cases = [Case(path.name[:-12], path) for path in sorted((raw / "imagesTr").iterdir())[:count]]
    started = time.perf_counter()
    predict(cases, out, model, report=False, progress=False, executor=executor, model_source=ModelSource("cpu"))
    return time.perf_counter() - started, sum(not (out / f"{case.name}.json").is_file() for case in cases)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", nargs="+", type=int, default=[100, 300], help="numbers of scans")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--kill", type=float, default=0.0, metavar="S", help="kill a worker every S seconds")
    parser.add_argument("--predict", type=int, default=0, metavar="P", help="predict the first P scans of each dataset")
    parser.add_argument("--headers", nargs="+", type=int, default=None, metavar="N", help="numbers of remembered cases; nothing else runs")
    parser.add_argument("-o", type=Path, default=None, help="folder for the datasets; default: a temporary one")
    args = parser.parse_args()
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        home = args.o or Path(temporary)
        os.environ["SPINECLUE_HOME"] = str(home)  # the workers inherit it
        if args.headers is not None:
            for count in args.headers:
                say(plan_headers(home, count))
            return
        from dask.distributed import LocalCluster

        with LocalCluster(n_workers=args.workers, threads_per_worker=1, processes=True, dashboard_address=None) as cluster:
            for count in args.n:
                rows.append(measure(home, count, cluster, args.kill, args.predict))
                say(rows[-1])
    sys.exit(any(row["missing"] for row in rows))


def say(row: dict[str, Any]) -> None:
    print("  ".join(f"{key} {value:.2f}" if isinstance(value, float) else f"{key} {value}" for key, value in row.items()), flush=True)


if __name__ == "__main__":
    main()
