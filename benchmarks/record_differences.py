"""Two records of `commit_record`, number by number: every difference by file and place, with its size and, where one is given, its reason.

Needs numpy and SimpleITK only, nothing of the package whose commits are compared.
"""
from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np

LABEL_MAP = ".nii.gz"
ARRAYS = ".npz"
COMPARED = (".json", LABEL_MAP, ARRAYS)
NOT_COMPARED = ("record.json", "logs")   # how a record was made, and what the commands said
VARIES = ("seconds", "versions")         # keys whose values say how and when, never what was found
ABSENT = "(absent)"


@dataclass(frozen=True)
class Difference:
    """One difference, or many of one place of a file.

    Attributes:
        file: path in the record, with slashes.
        place: keys of a JSON value joined by slashes, list positions as `[*]`; name of an array; `voxels` or `grid` of a label map.
        kind: `number`, `text`, `only old`, `only new`, `voxels`, `grid`, `file`.
        count: values (voxels) that differ.
        size: largest absolute difference of numbers; 1 - Dice of label maps' foreground and labels (the worst); None where there is none.
        example: the first (or largest) pair of values in words.
        reason: why it differs, from the list of explanations; empty where nothing explains it.
    """

    file: str
    place: str
    kind: str
    count: int
    size: float | None = None
    example: str = ""
    reason: str = ""

    def line(self) -> str:
        size = "" if self.size is None else f", largest {self.size:.6g}"
        said = f"{self.file}: {self.place}: {self.kind}, {self.count}{size}; {self.example}"
        return said + (f"  [{self.reason}]" if self.reason else "")


@dataclass(frozen=True)
class Renames:
    """What the new commit calls otherwise; applied to the old record before anything is compared.

    Attributes:
        keys: JSON keys and array names, old -> new.
        values: whole JSON strings, old -> new.
        places: beginnings of places after `keys` was applied, old -> new (`identify/run/theta` -> `identify/fusion/theta`).
        files: file names in the record, old -> new.
    """

    keys: Mapping[str, str] = field(default_factory=dict)
    values: Mapping[str, str] = field(default_factory=dict)
    places: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, path: str | Path | None) -> Renames:
        """From a JSON file with any of the four tables; a file without them is read as the table of keys."""
        if path is None:
            return cls()
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        tables = ("keys", "values", "places", "files")
        return cls(**content) if any(isinstance(content.get(name), dict) for name in tables) else cls(keys=content)

    def place(self, keys: Sequence[str | int]) -> str:
        text = joined([self.keys.get(key, key) if isinstance(key, str) else key for key in keys])
        for old, new in self.places.items():
            if text == old or text.startswith((f"{old}/", f"{old}[")):
                return new + text[len(old):]
        return text

    def value(self, value: Any) -> Any:
        return self.values.get(value, value) if isinstance(value, str) else value


@dataclass(frozen=True)
class Explanation:
    """A difference that is known: `file` and `place` with wildcards, `why`, and the largest size up to which it holds."""

    file: str
    place: str
    why: str
    largest: float | None = None

    def holds(self, difference: Difference) -> bool:
        within = self.largest is None or difference.size is None or difference.size <= self.largest
        # Only `*` and `?` are wildcards: places hold `[*]` for the positions in a list.
        return within and _fits(difference.file, self.file) and _fits(difference.place, self.place)


def read_explanations(path: str | Path | None) -> list[Explanation]:
    """From a JSON list of {"file": .., "place": .., "why": .., "largest": optional}."""
    if path is None:
        return []
    return [Explanation(**entry) for entry in json.loads(Path(path).read_text(encoding="utf-8"))]


def compare(old: str | Path, new: str | Path, renames: Renames | None = None, explanations: Sequence[Explanation] = (),
            tolerance: float = 0.0) -> list[Difference]:
    """All differences of two records, those that an explanation covers with their reason.

    Args:
        tolerance: numbers that differ by no more count as equal; 0: bit by bit.
    """
    old, new, renames = Path(old), Path(new), renames or Renames()
    before = {renames.files.get(name, name): path for name, path in _files(old).items()}
    after = _files(new)
    found: list[Difference] = []
    for name in sorted(before.keys() | after.keys()):
        if name not in before or name not in after:
            kind = "only new" if name not in before else "only old"
            found.append(Difference(name, "file", kind, 1, example="the other record has no such file"))
        else:
            found += _compare_file(name, before[name], after[name], renames, tolerance)
    return [_explained(difference, explanations) for difference in found]


def condensed(differences: Sequence[Difference]) -> list[Difference]:
    """The same with one entry for what differs alike in several files of one part of the record; its `count` is that of all files."""
    groups: dict[tuple[str, ...], list[Difference]] = {}
    for difference in differences:
        part, ending = difference.file.split("/")[0], difference.file.rpartition(".")[2]
        groups.setdefault((part, ending, difference.place, difference.kind, difference.reason), []).append(difference)
    found = []
    for (part, *_), group in groups.items():
        largest = max(group, key=lambda difference: -1.0 if difference.size is None else difference.size)
        if len(group) > 1:
            where = f"{part}/.. ({len(group)} files)"
            largest = replace(largest, file=where, count=sum(difference.count for difference in group),
                              example=f"{largest.file}: {largest.example}")
        found.append(largest)
    return found


def unused(explanations: Sequence[Explanation], differences: Sequence[Difference]) -> list[Explanation]:
    """Explanations that no difference needed."""
    return [entry for entry in explanations if not any(entry.holds(difference) for difference in differences)]


def joined(keys: Sequence[str | int]) -> str:
    """('vertebrae', 3, 'level') -> 'vertebrae[3]/level'."""
    text = ""
    for key in keys:
        text += f"[{key}]" if isinstance(key, int) else f"/{key}" if text else key
    return text


def _files(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise SystemExit(f"{folder} is no folder; expected a record made by: python benchmarks/compare_commits.py record -o {folder}")
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name.endswith(COMPARED)]
    names = {path.relative_to(folder).as_posix(): path for path in paths}
    return {name: path for name, path in names.items() if name.split("/")[0] not in NOT_COMPARED}


def _compare_file(name: str, old: Path, new: Path, renames: Renames, tolerance: float) -> list[Difference]:
    if name.endswith(LABEL_MAP):
        return _compare_label_maps(name, old, new)
    if name.endswith(ARRAYS):
        return _compare_arrays(name, old, new, renames, tolerance)
    before, after = (json.loads(path.read_text(encoding="utf-8")) for path in (old, new))
    return _compare_json(name, before, after, renames, tolerance)


def _compare_json(name: str, old: Any, new: Any, renames: Renames, tolerance: float, prefix: tuple[str, ...] = ()) -> list[Difference]:
    before = {renames.place(keys): renames.value(value) for keys, value in _leaves(old, prefix)}
    after = {joined(keys): value for keys, value in _leaves(new, prefix)}
    groups: dict[tuple[str, str], list[tuple[float | None, str]]] = {}
    for place in dict.fromkeys([*before, *after]):
        kind, size = _judge(before.get(place, ABSENT), after.get(place, ABSENT), tolerance)
        if kind:
            pair = f"{place}: {_short(before.get(place, ABSENT))} -> {_short(after.get(place, ABSENT))}"
            groups.setdefault((re.sub(r"\[\d+\]", "[*]", place), kind), []).append((size, pair))
    found = []
    for (place, kind), rows in groups.items():
        size, example = max(rows, key=lambda row: -1.0 if row[0] is None else row[0])
        found.append(Difference(name, place, kind, len(rows), size, example))
    return found


def _leaves(content: Any, keys: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    """(keys, scalar) of nested JSON; empty lists and objects are values of their own."""
    if isinstance(content, dict) and content:
        for key, value in content.items():
            if key not in VARIES:
                yield from _leaves(value, (*keys, key))
    elif isinstance(content, list) and content:
        for position, value in enumerate(content):
            yield from _leaves(value, (*keys, position))
    else:
        yield keys, content


def _judge(old: Any, new: Any, tolerance: float) -> tuple[str, float | None]:
    """(kind of difference or "", its size)."""
    if old is ABSENT or new is ABSENT:
        return ("only new" if old is ABSENT else "only old"), None
    if _is_number(old) and _is_number(new):
        if old == new or (old != old and new != new):
            return "", None
        size = abs(float(old) - float(new))
        return ("", None) if size <= tolerance else ("number", size if size == size else float("inf"))
    return ("", None) if type(old) is type(new) and old == new else ("text", None)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _compare_arrays(name: str, old: Path, new: Path, renames: Renames, tolerance: float) -> list[Difference]:
    found: list[Difference] = []
    with np.load(old, allow_pickle=False) as a, np.load(new, allow_pickle=False) as b:
        before, after = {renames.keys.get(key, key): a[key] for key in a.files}, {key: b[key] for key in b.files}
    for key in sorted(before.keys() | after.keys()):
        if key not in before or key not in after:
            found.append(Difference(name, key, "only new" if key not in before else "only old", 1, example="array"))
            continue
        x, y = before[key], after[key]
        if x.dtype.kind == y.dtype.kind == "U" and x.ndim == y.ndim == 0:   # JSON in a string
            found += _compare_json(name, json.loads(str(x)), json.loads(str(y)), renames, tolerance, (key,))
        elif x.shape != y.shape:
            found.append(Difference(name, key, "grid", 1, example=f"shape {x.shape} -> {y.shape}"))
        else:
            distance = np.abs(x.astype(float) - y.astype(float))
            distance[(x == y) | (np.isnan(x.astype(float)) & np.isnan(y.astype(float)))] = 0
            differ = ~(distance <= tolerance)
            if differ.any():
                size = float(np.nan_to_num(distance[differ], nan=np.inf).max())
                found.append(Difference(name, key, "number", int(differ.sum()), size, f"{differ.sum()} of {x.size} values"))
    return found


def _compare_label_maps(name: str, old: Path, new: Path) -> list[Difference]:
    (x, grid_x), (y, grid_y) = (_read_label_map(path) for path in (old, new))
    found = []
    if grid_x != grid_y:
        found.append(Difference(name, "grid", "grid", 1, example=f"{grid_x} -> {grid_y}"))
    if x.shape != y.shape:
        return found
    differ = x != y
    if not differ.any():
        return found
    values = [int(value) for value in np.union1d(x, y) if value]
    scores = {value: dice(x == value, y == value) for value in values}
    foreground = dice(x > 0, y > 0)
    worst = min(scores, key=lambda value: scores[value])
    example = (f"{int(differ.sum())} of {x.size} voxels; Dice of the foreground {foreground:.6f}, of {len(values)} labels on average "
               f"{np.mean(list(scores.values())):.6f}, of label {worst} {scores[worst]:.6f}")
    return [*found, Difference(name, "voxels", "voxels", int(differ.sum()), 1 - min(foreground, scores[worst]), example)]


def dice(a: np.ndarray, b: np.ndarray) -> float:
    """Dice of two masks; 1 where both are empty."""
    both = int(a.sum()) + int(b.sum())
    return 2 * int((a & b).sum()) / both if both else 1.0


def _read_label_map(path: Path) -> tuple[np.ndarray, tuple[Any, ...]]:
    import SimpleITK as sitk

    image = sitk.ReadImage(str(path))
    return sitk.GetArrayFromImage(image), (image.GetSize(), image.GetSpacing(), image.GetOrigin(), image.GetDirection())


def _fits(text: str, pattern: str) -> bool:
    return fnmatchcase(text, pattern.replace("[", "[[]"))


def _explained(difference: Difference, explanations: Sequence[Explanation]) -> Difference:
    for entry in explanations:
        if entry.holds(difference):
            return replace(difference, reason=entry.why)
    return difference


def _short(value: Any, width: int = 60) -> str:
    text = value if value is ABSENT else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= width else text[:width - 4] + " ..."
