"""What another tool's label map is: its voxels, and the schemes that its values may follow."""
from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ..anatomy import ANATOMICAL_ORDER, ORDER_INDEX
from ..anatomy.label_boxes import label_boxes
from ..anatomy.label_schemes import SACRUM, SCHEMES, LabelScheme, scheme_of_names
from ..errors import InputError
from ..imageio.label_tables import dataset_json_of, label_table, names_of_json, read_mask_folder
from ..imageio.orientation import oriented_view
from ..imageio.volume import Volume, read_labels

FAMILIES = {"totalsegmentator": ("totalsegmentator", "totalsegmentator_v1", "totalsegmentator_mr")}
CHOICES = ("auto", *SCHEMES, "nnunet")
NEVER_GUESSED = ("totalsegmentator_mr",)  # one level beside CADS where the sacrum is not seen
IN_ORDER = 0.8              # of all pairs of vertebrae, those that lie as their values say
MAX_VALUES = 300            # more values are no label map (a CT, noise); the largest known atlas names 117 structures
PARTS = frozenset(range(41, 51))  # values of SPINEPS and TPTBox for arch, processes and body, in maps that know no single vertebra


@dataclass(frozen=True)
class LabelSource:
    """A label map and what its values may mean.

    Attributes:
        labels: the map; of a folder, values by file name.
        schemes: candidates that fit values and order, the likeliest first; empty: no known scheme.
        certain: whether the meaning is written down (by the user, in the file, by file names), not guessed from the values.
        folder: whether one mask per structure was read.
        names: of the values, where the input gives them.
    """

    labels: Volume
    schemes: tuple[LabelScheme, ...]
    certain: bool
    folder: bool = False
    names: dict[int, str] | None = None


def read_source(path: str | Path, wanted: str = "auto", ignore: Collection[int] = ()) -> LabelSource:
    """Read the map (or folder of masks) at `path`.

    Args:
        path: label map, or a folder with one mask per structure.
        wanted: one of `CHOICES`, or a JSON file that names the values.
        ignore: values that are no vertebrae, whatever the scheme says.

    Raises:
        InputError: an unknown scheme, values that the wanted one does not know, a map of parts of vertebrae, no label map.
    """
    path = Path(path)
    if wanted not in CHOICES and not wanted.lower().endswith(".json"):
        raise InputError(f"'{wanted}' is no known label scheme; choose one of {', '.join(CHOICES)}, or a .json file that names the values.")
    if path.is_dir() and any(f.name.lower().endswith((".nii.gz", ".nii", ".nrrd", ".mha")) for f in path.iterdir()):
        labels, stems = read_mask_folder(path)
        scheme = scheme_of_names(stems, "folder", f"the masks of {path.name}")
        if not scheme.levels:
            raise InputError(f"{path} holds no mask that is named after a vertebra; expected files such as vertebrae_L1.nii.gz.")
        return LabelSource(labels, (_without(scheme, ignore),), True, True, stems)
    labels = read_labels(path)
    boxes = label_boxes(oriented_view(labels).array)
    values = [value for value in boxes if value not in ignore]
    if len(values) > MAX_VALUES:
        raise InputError(f"The label map holds {len(values)} different values; expected a map of vertebrae, at most {MAX_VALUES}.")
    found, certain, names = _schemes(path, wanted, labels, values)
    if not found and values and set(values) <= PARTS | {26, *range(60, 64), 100}:
        raise InputError(f"{path} holds the values {_listed(values)}, which are parts of vertebrae (arch, processes, body) without telling "
                         "vertebrae apart; expected the vertebra instance map that the same tool writes.")
    return LabelSource(labels, tuple(_without(scheme, ignore) for scheme in found), certain, names=names)


def _schemes(path: Path, wanted: str, labels: Volume, values: Sequence[int]
             ) -> tuple[tuple[LabelScheme, ...], bool, dict[int, str] | None]:
    if wanted == "nnunet" or wanted.lower().endswith(".json"):
        file = Path(wanted) if wanted != "nnunet" else dataset_json_of(path)
        if file is None:
            raise InputError(f"No dataset.json lies in the folder of {path} or above it; give it: --from PATH/dataset.json.")
        names = names_of_json(file)
        scheme = scheme_of_names(names, "nnunet", file.name)
        _check_known(path, scheme, values)
        return (scheme,), True, names
    if wanted != "auto":
        family = [SCHEMES[name] for name in FAMILIES.get(wanted, (wanted,))]
        fitting = [scheme for scheme in family if scheme.knows(values)]
        if not fitting:
            _check_known(path, family[0], values)
        ordered = in_order(fitting, oriented_view(labels), values)
        return tuple(ordered or fitting), True, None
    table = label_table(path)
    if table and set(values) <= set(table):
        scheme = scheme_of_names(table, "totalsegmentator", "the file's label table")
        same = [known for known in SCHEMES.values() if scheme.levels and all(known.levels.get(v) == n for v, n in scheme.levels.items())
                and known.knows(values)]
        if scheme.levels:
            return (same[0] if same else replace(scheme, name="named"),), True, table
    fitting = [scheme for scheme in SCHEMES.values() if scheme.name not in NEVER_GUESSED and scheme.knows(values)
               and any(v in scheme.levels for v in values)]
    return tuple(_distinct(in_order(fitting, oriented_view(labels), values), values)), False, None


def in_order(schemes: Sequence[LabelScheme], view: Volume, values: Sequence[int]) -> list[LabelScheme]:
    """The schemes whose vertebrae lie in their order along the body (view: LPS), and whose sacrum lies below them; best first."""
    heights = mean_heights(view.array, values)
    scored = []
    for scheme in schemes:
        row = [(heights[v], ORDER_INDEX[scheme.levels[v]]) for v in values if v in scheme.levels]
        pairs = [(a, b) for i, a in enumerate(row) for b in row[i + 1:] if a[1] != b[1]]
        if not pairs:
            continue
        score = float(np.mean([(a[0] > b[0]) == (a[1] < b[1]) for a, b in pairs]))
        sacrum = [heights[v] for v in values if scheme.others.get(v) == SACRUM]
        if score >= IN_ORDER and (not sacrum or min(sacrum) < min(h for h, _ in row)):
            scored.append((score, scheme))
    return [scheme for _, scheme in sorted(scored, key=lambda pair: -pair[0])]


def mean_heights(array: np.ndarray, values: Collection[int]) -> dict[int, float]:
    """Mean index along z of each value of a map (z, y, x); a few loose voxels far away hardly move it."""
    counts = {}
    for value, box in label_boxes(array).items():
        if value in values:
            rows = (array[box] == value).sum(axis=(1, 2))
            counts[value] = box[0].start + float((rows * np.arange(len(rows))).sum() / rows.sum())
    return counts


def _distinct(schemes: Sequence[LabelScheme], values: Sequence[int]) -> list[LabelScheme]:
    """One of those that read these values alike; only those that take the same values for vertebrae as the first."""
    kept: list[LabelScheme] = []
    readings: list[dict[int, str]] = []
    for scheme in schemes:
        reading = {v: scheme.levels[v] for v in values if v in scheme.levels}
        if reading not in readings and (not readings or set(reading) == set(readings[0])):
            kept.append(scheme)
            readings.append(reading)
    return kept


def _without(scheme: LabelScheme, ignore: Collection[int]) -> LabelScheme:
    return replace(scheme, levels={v: n for v, n in scheme.levels.items() if v not in ignore}) if ignore else scheme


def _check_known(path: Path, scheme: LabelScheme, values: Sequence[int]) -> None:
    unknown = [value for value in values if value not in scheme.levels and value not in scheme.others]
    if unknown:
        known = sorted(scheme.levels, key=lambda v: ANATOMICAL_ORDER.index(scheme.levels[v]))
        raise InputError(f"{path} holds the values {_listed(unknown)}, which {scheme.title} does not have ({scheme.levels[known[0]]} to "
                         f"{scheme.levels[known[-1]]} are {known[0]} to {known[-1]}); choose another --from, or --ignore them.")


def _listed(values: Sequence[int]) -> str:
    return ", ".join(map(str, sorted(values)[:12])) + (" ..." if len(values) > 12 else "")
