"""Other tools' masks: six real ones as the tool left them, and true masks damaged the way tools fail, named before and after mending.

    python -m benchmarks.foreign_masks [--data ../shared/data] [--only real damaged] [--repeats 2] [--masks PART_OF_NAME ...]

"Named": share of vertebra values of the input (of `LEAST_ML` and more) most of whose voxels have the right name in the output. For `real`
the right name is the value itself, but in `CORRECTED`, where the tool's row was counted by hand.
"Right voxels" (damaged only): share of the true vertebrae's voxels with the right name, in
the damaged map and after. Weights: the package's own; the six patients of `masks_foreign` trained none of them, the damaged ones did.
"""
from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from spineclue_v2.anatomy import LEVELS, NAME_OF_LABEL

TRUE = {"ct/verse/sub-verse004_seg-vert_msk": {}, "ct/verse/sub-verse005_seg-vert_msk": {}, "ct/verse/sub-verse008_seg-vert_msk": {},
        "ct/totalsegmentator/example_ct_lumbar_ref": {27 + i: 24 - i for i in range(7)}}   # file: {its value: VerSe's}


LEAST_ML = 0.1      # less is a speck: one lies in the chest with the value of C2
CORRECTED = {"bdmap_26": {5: "L2", 6: "L1", 7: "T12"}}
"""Values that the tool gave wrongly, by file, and the right names: there one body holds L1 and a piece of L2, and the next but two covers
two vertebrae, so the three between them are a level too high. The distances of the bodies (37, 35, 31 mm) leave no room for another L2."""


def stray(array: np.ndarray, values: list[int], rng: np.random.Generator) -> None:
    """Cubes of 4 voxels with vertebra values anywhere in the background."""
    for _ in range(12):
        z, y, x = (int(rng.integers(0, n - 4)) for n in array.shape)
        block = array[z:z + 4, y:y + 4, x:x + 4]
        block[block == 0] = rng.choice(values)


def swapped(array: np.ndarray, values: list[int], rng: np.random.Generator) -> None:
    """Two neighbours have each other's value."""
    i = int(rng.integers(0, len(values) - 1))
    a, b = array == values[i], array == values[i + 1]
    array[a], array[b] = values[i + 1], values[i]


def process(array: np.ndarray, values: list[int], rng: np.random.Generator) -> None:
    """The hind part of a vertebra has its neighbour's value."""
    i = int(rng.integers(0, len(values) - 1))
    mask = array == values[i]
    rows = np.flatnonzero(mask.any(axis=(0, 2)))
    cut = int(rows.min() + 0.6 * (rows.max() - rows.min()))
    mask[:, :cut] = False
    array[mask] = values[i + 1]


def merged(array: np.ndarray, values: list[int], rng: np.random.Generator) -> None:
    """Two neighbours have one value."""
    i = int(rng.integers(0, len(values) - 1))
    array[array == values[i + 1]] = values[i]


def missing(array: np.ndarray, values: list[int], rng: np.random.Generator) -> None:
    """A vertebra between two others has no mask."""
    array[array == values[int(rng.integers(1, max(len(values) - 1, 2)))]] = 0


def shifted(array: np.ndarray, values: list[int], rng: np.random.Generator) -> None:
    """The whole row is one level too high."""
    for value in values:
        array[array == value] = value - 1


def holes(array: np.ndarray, values: list[int], rng: np.random.Generator) -> None:
    """Cavities of 3 voxels in the bodies."""
    inside = np.argwhere(array > 0)
    for z, y, x in inside[rng.integers(0, len(inside), 30)]:
        array[z:z + 3, y:y + 3, x:x + 3] = 0


DAMAGE: dict[str, Callable[[np.ndarray, list[int], np.random.Generator], None] | None] = {
    "none": None, "stray pieces": stray, "two swapped": swapped, "process of a neighbour": process, "two merged": merged,
    "one missing": missing, "row shifted": shifted, "holes": holes}


def majority(named: np.ndarray, where: np.ndarray) -> int:
    """The most frequent value."""
    return int(np.bincount(named[where]).argmax())


def real(data: Path, masks: Sequence[str]) -> None:
    from spineclue_v2.inference.label_source import read_source

    print("map | named | anchored | scheme | seconds | other names")
    right = total = 0
    for file in sorted((data / "masks_foreign").glob("*.nii.gz")):
        if not any(part in file.name for part in masks):
            continue
        started = time.perf_counter()
        source = read_source(file)
        named, result = relabelled(source)
        sizes = np.bincount(source.labels.array.ravel()) * float(np.prod(source.labels.spacing)) / 1000
        values = [v for v, ml in enumerate(sizes) if v and ml >= LEAST_ML]
        true = {v: LEVELS[24 - v] for v in values} | CORRECTED.get(file.name[:8], {})
        got = {v: NAME_OF_LABEL.get(majority(named, source.labels.array == v), "-") for v in values}
        wrong = [f"{true[v]} -> {got[v]}" for v in values if got[v] != true[v]]
        right, total = right + len(values) - len(wrong), total + len(values)
        print(f"{file.name[:8]} | {len(values) - len(wrong)}/{len(values)} | {result.numbering_anchored} | "
              f"{result.extra['source']['scheme']} | {time.perf_counter() - started:.0f} | {', '.join(wrong)}", flush=True)
    print(f"together {right}/{total} = {right / total:.3f}")


def relabelled(source):
    """Label map (VerSe's values, native grid) and result."""
    import torch

    from spineclue_v2.inference.model import load_shipped
    from spineclue_v2.inference.relabel import draw, relabel_map

    if not hasattr(relabelled, "model"):
        relabelled.model = load_shipped(torch.device("cpu"))
    result, owners, _ = relabel_map(source, relabelled.model)
    return draw(source.labels, owners), result


def damaged(data: Path, repeats: int, masks: Sequence[str]) -> None:
    from spineclue_v2.anatomy.label_schemes import SCHEMES
    from spineclue_v2.imageio.orientation import oriented_view
    from spineclue_v2.imageio.volume import Volume, read_labels
    from spineclue_v2.inference.label_source import LabelSource

    figures: dict[str, list[tuple[float, float, int, int, bool, bool]]] = {}
    for name, table in TRUE.items():
        if not any(part in name for part in masks):
            continue
        view = oriented_view(read_labels(data / f"{name}.nii.gz"))
        truth = np.zeros(view.array.shape, np.uint8)
        for value in np.unique(view.array):
            if value and (not table or value in table):
                truth[view.array == value] = table.get(int(value), int(value))
        values = [int(v) for v in np.unique(truth) if v]
        for kind, change in DAMAGE.items():
            for seed in range(repeats if change else 1):
                given = truth.copy()
                if change:
                    change(given, values, np.random.default_rng(seed))
                source = LabelSource(Volume(given, view.geometry), (SCHEMES["verse"],), True)
                named, result = relabelled(source)
                there = [v for v in values if kind != "one missing" or (given[truth == v] > 0).any()]
                where = np.isin(truth, there)
                names = sum(majority(named, truth == v) == v for v in there)
                before, after = (float((array[where] == truth[where]).mean()) for array in (given, named))
                figures.setdefault(kind, []).append((before, after, names, len(there), bool(result.numbering_anchored),
                                                     names == len(there)))
    print("damage | right voxels before | after | named | anchored | anchored but wrong")
    for kind, rows in figures.items():
        before, after = (np.mean([row[i] for row in rows]) for i in (0, 1))
        print(f"{kind} | {before:.4f} | {after:.4f} | {sum(r[2] for r in rows)}/{sum(r[3] for r in rows)} | "
              f"{sum(r[4] for r in rows)}/{len(rows)} | {sum(r[4] and not r[5] for r in rows)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--only", nargs="+", default=["real", "damaged"], choices=["real", "damaged"])
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--masks", nargs="+", default=[""], help="only those whose file names hold one of these")
    args = parser.parse_args()
    if "damaged" in args.only:
        damaged(args.data, args.repeats, args.masks)
    if "real" in args.only:
        real(args.data, args.masks)


if __name__ == "__main__":

    main()
