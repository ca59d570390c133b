"""Does `spineclue_check_labels` find planted errors, and does it leave good labels alone?

    python -m benchmarks.label_errors [--phantoms 100] [--planted 48] [--kinds KIND ...] [--with_model 20]
        [--foreign ../shared/data/masks_foreign] [--cache FOLDER]
    python -m benchmarks.label_errors --real ../shared/data

Phantoms (3 mm grids, seeds 880001 and on) are synthetic; each error is planted in one of them, the kinds in turn, so that no phantom holds
two. On masks of another tool (`--foreign`, no CT) two errors each are planted. Found: at least one alarm that the map did not have before.
A false alarm: a phantom without error that has one. The model, which is slow,
counts in the first `--with_model` clean phantoms and wherever a shifted row is planted.
`--real` lists what is said of the labels of real scans as they are.
"""
from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.planted import PLANTS
from spineclue_v2.imageio.grid import ImageGrid
from spineclue_v2.imageio.orientation import oriented_view
from spineclue_v2.imageio.volume import Volume, read_labels, read_volume
from spineclue_v2.planning.label_check.check import check_labels
from spineclue_v2.planning.label_check.suspicion import Suspicion

if TYPE_CHECKING:
    from spineclue_v2.inference.model import Model

FIRST = 880_001              # 770_001 and on: the limits were chosen with these, so they measure nothing any more
SPACING = (3.0, 3.0, 3.0)
WITHOUT_CT = [kind for kind in PLANTS if kind != "sacrum"]
REAL = {"ct/verse/sub-verse005": ("ct/verse/sub-verse005_seg-vert_msk", "ct/verse/sub-verse005_ct", {}),
        "ct/verse/sub-verse008": ("ct/verse/sub-verse008_seg-vert_msk", "ct/verse/sub-verse008_ct", {}),
        "ct/verse/sub-verse004": ("ct/verse/sub-verse004_seg-vert_msk", None, {}),
        "ct/totalsegmentator": ("ct/totalsegmentator/example_ct_lumbar_ref", "ct/totalsegmentator/example_ct",
                                {27 + i: 24 - i for i in range(7)} | {26: 26}),
        "ct/tptbox": ("ct/tptbox/sub-ct_seg-vert_label-22_msk", "ct/tptbox/sub-ct_label-22_ct", {})}


def phantom(seed: int, cache: Path | None) -> tuple[Volume, Volume]:
    """Labels and CT."""
    from spineclue_v2.phantom import sample

    file = None if cache is None else cache / f"{seed}.npz"
    if file is not None and file.is_file():
        stored = np.load(file)
        ct, labels, spacing, direction = (stored[key] for key in ("ct", "labels", "spacing", "direction"))
    else:
        case = sample(seed, spacing=SPACING, spine=True)
        ct, labels, spacing, direction = case.ct, case.labels, case.spacing, case.direction
        if file is not None:
            np.savez_compressed(file, ct=ct, labels=labels, spacing=spacing, direction=direction)
    grid = ImageGrid(ct.shape, tuple(float(s) for s in spacing), (0.0, 0.0, 0.0), direction)
    return Volume(labels, grid), Volume(ct, grid)


def foreign(folder: Path) -> Iterator[tuple[str, Volume]]:
    """Maps of another tool with VerSe's values, thinned to about 1.5 mm."""
    for file in sorted(folder.glob("*.nii.gz")):
        view = oriented_view(read_labels(file))
        steps = [max(1, round(1.5 / s)) for s in view.spacing]
        part = np.ascontiguousarray(view.array[:: steps[0], :: steps[1], :: steps[2]])
        z, y, x = (float(s * k) for s, k in zip(view.spacing, steps, strict=True))
        grid = ImageGrid(part.shape, (z, y, x), view.geometry.origin, view.geometry.direction)
        yield file.name[:8], Volume(np.where(part > 0, 25 - part.astype(np.int16), 0).astype(np.uint8), grid)


def planted(kind: str, labels: Volume, ct: Volume | None, seed: int) -> Volume | None:
    given = PLANTS[kind](labels.array, None if ct is None else ct.array, np.array(labels.spacing), np.random.default_rng(seed))
    return None if given is None else Volume(np.ascontiguousarray(given), labels.geometry)


def alarms(found: list[Suspicion]) -> set[tuple[str, tuple[str, ...]]]:
    return {(s.kind, s.levels) for s in found if s.alarm}


def run_phantoms(count: int, errors: int, kinds: list[str], cache: Path | None, model: Model | None,
                 with_model: int) -> tuple[dict[str, list[bool]], int]:
    results: dict[str, list[bool]] = {kind: [] for kind in PLANTS}
    false, left, kinds = 0, errors, [kind for kind in kinds if model is not None or kind != "shifted"]
    for seed in range(FIRST, FIRST + count):
        labels, ct = phantom(seed, cache)
        started = time.perf_counter()
        clean = check_labels(str(seed), labels, ct, model if seed < FIRST + with_model else None)
        seconds = time.perf_counter() - started
        loud = [f"{s.kind} {' '.join(s.levels[:2])} {s.sure:.2f}" for s in clean if s.alarm]
        false += bool(loud)
        print(f"{seed} clean, {seconds:.1f} s: {', '.join(loud) or '-'}", flush=True)
        for kind in [] if not left else sorted(kinds, key=lambda k: len(results[k])):
            bad = planted(kind, labels, ct, seed)
            if bad is not None:
                found = check_labels(str(seed), bad, ct, model if kind == "shifted" else None)
                results[kind].append(bool(alarms(found) - alarms(clean)))
                if not results[kind][-1]:
                    print(f"{seed} {kind} not found: {[(s.kind, s.levels[:2], round(s.sure, 2)) for s in found][:4]}", flush=True)
                left -= 1
                break
    return results, false


def run_foreign(folder: Path, kinds: list[str], model: Model | None) -> dict[str, list[bool]]:
    results: dict[str, list[bool]] = {kind: [] for kind in kinds if kind in WITHOUT_CT and (model is not None or kind != "shifted")}
    number = FIRST
    for name, labels in foreign(folder):
        as_is = check_labels(name, labels)
        print(f"{name} as it is: {[(s.kind, s.levels[:2], round(s.sure, 2)) for s in as_is if s.alarm]}", flush=True)
        for _ in range(2):
            for kind in (list(results) * 2)[number % len(results):]:
                number += 1
                bad = planted(kind, labels, None, number)
                if bad is not None:
                    found = check_labels(name, bad, None, model if kind == "shifted" else None)
                    results[kind].append(bool(alarms(found) - alarms(as_is)))
                    if not results[kind][-1]:
                        print(f"{name} {kind} not found: {[(s.kind, s.levels[:2], round(s.sure, 2)) for s in found][:4]}", flush=True)
                    break
    return results


def run_real(data: Path, model: Model | None) -> None:
    for name, (label, scan, table) in REAL.items():
        stored = read_labels(data / f"{label}.nii.gz")
        array = np.zeros(stored.array.shape, np.uint8)
        for value in np.unique(stored.array):
            array[stored.array == value] = table.get(int(value), 0) if table else int(value) if value <= 28 else 0
        ct = None if scan is None else read_volume(data / f"{scan}.nii.gz").reoriented(stored.geometry.orientation)
        found = check_labels(name, Volume(array, stored.geometry), None if ct is None else Volume(ct.array, stored.geometry), model)
        print(name, "nothing" if not found else "")
        for s in sorted(found, key=lambda s: -s.sure):
            print(f"  {'ALARM' if s.alarm else 'note '} {s.kind} {s.sure:.2f} {s.message}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--phantoms", type=int, default=100)
    parser.add_argument("--planted", type=int, default=48)
    parser.add_argument("--kinds", nargs="+", choices=PLANTS, default=list(PLANTS))
    parser.add_argument("--foreign", type=Path, default=None)
    parser.add_argument("--real", type=Path, default=None)
    parser.add_argument("--cache", type=Path, default=None)
    parser.add_argument("--with_model", type=int, default=20, help="clean phantoms in which the model counts; 0: no model at all")
    args = parser.parse_args()
    model = None
    if args.with_model:
        import torch

        from spineclue_v2.inference.model import load_shipped

        model = load_shipped(torch.device("cpu"))
    if args.real is not None:
        run_real(args.real, model)
        return
    results, false = {}, 0
    if args.phantoms:
        results, false = run_phantoms(args.phantoms, args.planted, args.kinds, args.cache, model, args.with_model)
    other = run_foreign(args.foreign, args.kinds, model) if args.foreign is not None else {}
    print("kind | phantoms | masks_foreign")
    for kind in PLANTS:
        a, b = results.get(kind, []), other.get(kind, [])
        print(f"{kind} | {sum(a)}/{len(a)} | {sum(b)}/{len(b)}")
    everything = [ok for part in (results, other) for rows in part.values() for ok in rows]
    print(f"found {sum(everything)}/{len(everything)} = {np.mean(everything):.3f}; false alarms {false} of {args.phantoms} clean phantoms")


if __name__ == "__main__":
    main()
