"""Pins on the windows that `known_levels predict` stored: what one true pin and one wrong pin do, and how long numbering again takes."""
from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .real_scoring import name_at


@dataclass(frozen=True)
class Window:
    """A stored result with its truth: for each found point the detection it lies in, its true name and its place."""

    name: str
    result: Any
    found: tuple[tuple[int, str, tuple[float, float, float]], ...]
    gap: bool                        # a vertebra between two found ones was missed


def windows(folder: Path) -> Iterator[Window]:
    """The stored windows that have points of sure level in found vertebrae."""
    import SimpleITK as sitk

    from spineclue_v2.inference.stored_result import read_result

    for file in sorted(folder.glob("*_truth.txt")):
        truth, name = json.loads(file.read_text(encoding="utf-8")), file.name.removesuffix("_truth.txt")
        if truth is None:
            continue
        result = read_result(folder, name)
        if not result.vertebrae:
            continue
        image = sitk.ReadImage(str(folder / f"{name}.nii.gz"))
        labels = sitk.GetArrayFromImage(image)
        place_of = {level: i for i, level in enumerate(result.basis.names) if level is not None}
        found, inside = [], []
        for point in truth["points"]:
            if point["inside"] and point["name"] in place_of.keys() | set(ALL_LEVELS):
                level = name_at(labels, image, point["place"])
                inside.append((point["name"], level))
                if level in place_of:
                    found.append((place_of[level], point["name"], tuple(point["place"])))
        if found:
            there = [i for i, (_, level) in enumerate(inside) if level is not None]
            # Two points in one detection: two vertebrae that were found as one.
            gap = any(level is None for _, level in inside[there[0]:there[-1]]) or len({i for i, _, _ in found}) < len(found)
            yield Window(name, result, tuple(found), gap)


ALL_LEVELS = tuple(f"{part}{i}" for part, count in (("C", 7), ("T", 13), ("L", 6)) for i in range(1, count + 1))


def right(result: Any, window: Window) -> tuple[int, int]:
    """How many of the found vertebrae have their true name, of how many."""
    names = result.basis.names
    return sum(names[i] == level for i, level, _ in window.found), len(window.found)


def said(result: Any) -> str:
    """"contradicts", "scan", "known" or "unanchored"."""
    return "contradicts" if any(flag.code == "known_contradicts_scan" for flag in result.flags) else result.anchored_by or "unanchored"


def measure(folder: Path) -> str:
    """A table of all windows in `folder`."""
    from spineclue_v2.errors import InputError

    lines, totals, wrong_pins, failed = [], Counter[str](), Counter[str](), []
    for window in windows(folder):
        unpinned = window.result.renumbered()
        before = right(unpinned, window)
        kind = f"{'anchored' if unpinned.numbering_anchored else 'unanchored'}{', a vertebra missed between found ones' * window.gap}"
        totals[f"{kind}: windows"] += 1
        totals[f"{kind}: right before"] += before[0]
        totals[f"{kind}: names"] += before[1]
        for which in sorted({0, len(window.found) // 2, len(window.found) - 1}):
            i, level, place = window.found[which]
            at = ",".join(f"{v:.2f}" for v in place)
            try:
                pinned = window.result.renumbered(f"{level}@{at}")
            except InputError:
                totals[f"{kind}: pins refused, their points lie between masks"] += 1
                continue
            count, of = right(pinned, window)
            totals[f"{kind}: pins"] += 1
            totals[f"{kind}: right"] += count
            totals[f"{kind}: asked"] += of
            totals[f"{kind}: all right"] += count == of
            totals[f"{kind}: {said(pinned)}"] += 1
            totals[f"{kind}: {said(pinned)} but wrong"] += count < of
            if count < of:
                wrong = [f"{true}={pinned.basis.names[j]}" for j, true, _ in window.found if pinned.basis.names[j] != true]
                failed.append(f"  {window.name}, pin {level}: {' '.join(wrong)} ({said(pinned)}{', missed between' * window.gap})")
        i, level, place = window.found[len(window.found) // 2]
        truly = before[0] == before[1]
        for shift in (-1, 1):
            other = ALL_LEVELS.index(level) + shift
            neighbour = SHIFTED.get((level, shift)) or (ALL_LEVELS[other] if 0 <= other < len(ALL_LEVELS) else None)
            if neighbour is None:
                continue
            try:
                pinned = window.result.renumbered(f"{neighbour}@{','.join(f'{v:.2f}' for v in place)}")
            except InputError:
                continue
            wrong_pins[f"{kind}{'' if truly else ' wrongly read'}: {said(pinned)}"] += 1
    lines += [f"{key}: {value}" for key, value in sorted(totals.items()) if value]
    lines += ["one level off, by how the scan was read before:"] + [f"  {key}: {value}" for key, value in sorted(wrong_pins.items())]
    return "\n".join([*lines, "not all right with a true pin:", *failed, seconds(folder)])


SHIFTED = {("C7", 1): "T1", ("T1", -1): "C7", ("T12", 1): "L1", ("L1", -1): "T12", ("L5", 1): "L6", ("C1", -1): None}


def seconds(folder: Path, most: int = 40) -> str:
    """Wall seconds of numbering a case again, all its files read and written, on copies."""
    from spineclue_v2.anatomy.known import known_of
    from spineclue_v2.inference.renumber import renumber_folder

    times = []
    with tempfile.TemporaryDirectory() as copy:
        for file in sorted(folder.glob("*_evidence.npz"))[:most]:
            name = file.name.removesuffix("_evidence.npz")
            for ending in (".json", ".nii.gz", "_ctd.json", "_evidence.npz"):
                shutil.copy(folder / f"{name}{ending}", copy)
            started = (time.perf_counter(), time.process_time())
            renumber_folder(copy, {name: known_of("uppermost=T4")})
            times.append((time.perf_counter() - started[0], time.process_time() - started[1]))
    wall, own = np.array(times).T
    return (f"seconds per case over {len(times)}: median {np.median(wall):.2f}, worst {wall.max():.2f}; of the processor: median "
            f"{np.median(own):.2f}, worst {own.max():.2f}")
