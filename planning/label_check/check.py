"""Checking all labelled cases of a raw dataset."""
from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Executor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from spineclue_v2.dataset.raw import RawDataset
from spineclue_v2.imageio.orientation import check_same_grid
from spineclue_v2.imageio.volume import Volume, read_labels, read_volume
from spineclue_v2.utilities.parallel import run_tasks

from .masks import check_masks
from .numbering import check_numbering
from .row import measure_row
from .scan import check_scan
from .suspicion import Suspicion, worst_first

if TYPE_CHECKING:
    from spineclue_v2.inference.model import Model, ModelSource

KNOWN = 0.8        # `sure` of what others reported


def check_labels(case: str, labels: Volume, scan: Volume | None = None, model: Model | None = None) -> list[Suspicion]:
    """All suspicions about one label map.

    Args:
        case: name of the case.
        labels: VerSe's values, any orientation; the sacrum (26) counts, all other values do not.
        scan: its CT, on the same grid.
        model: one that names masks.
    """
    row = measure_row(case, labels)
    found = check_masks(row)
    if scan is not None:
        beside = check_scan(case, labels, scan)
        agreed = {entry.correction for entry in beside}
        # The labels alone are turned only where they fit the scan better the other way round; else the scan is turned with them.
        found = [entry if entry.kind != "flip" or entry.correction in agreed else _scan_too(entry) for entry in found]
        found += [entry for entry in beside if entry.correction not in {e.correction for e in found if e.kind == "flip"}]
    if model is not None and row.vertebrae and not any(entry.kind == "flip" for entry in found):
        found += check_numbering(row, model)
    return found


def check_dataset(raw: RawDataset, model: ModelSource | None = None, num_processes: int = 0, executor: Executor | None = None,
                  progress: bool = False) -> tuple[list[Suspicion], dict[str, str]]:
    """Suspicions about all training cases, worst first, and {case: why it could not be checked}."""
    tasks = {case: (case, raw.image(case), raw.label(case), raw.verse_value, model) for case in raw.cases}
    found, failed = run_tasks(_check_case, tasks, executor, num_processes, "checking labels", progress)
    reports = [Suspicion(case, "known", (), KNOWN, f"Reported by others: {why}.") for case, why in known_reports().items()
               if case in raw.cases]
    return worst_first([*reports, *(entry for entries in found.values() for entry in entries)]), failed


def known_reports() -> dict[str, str]:
    """{case: what was reported about its labels} of the public datasets, by the names that the converters give."""
    from spineclue_v2.dataset_conversion import ctspine1k, totalsegmentator

    return {**dict.fromkeys(totalsegmentator.KNOWN_ERRORS, "wrong labels in the public release"), **ctspine1k.KNOWN_ERRORS}


def _check_case(case: str, image: Path, label: Path, verse_value: Mapping[int, int], model: ModelSource | None) -> list[Suspicion]:
    from spineclue_v2.inference.model import model_of

    scan, stored = read_volume(image), read_labels(label)
    check_same_grid(scan.geometry, stored.geometry, case, label)
    labels = verse_labels(stored, verse_value)
    turned = scan.reoriented(labels.geometry.orientation)
    return check_labels(case, labels, Volume(turned.array, labels.geometry), None if model is None else model_of(model))


def verse_labels(stored: Volume, verse_value: Mapping[int, int]) -> Volume:
    """The map with VerSe's values; values without a meaning become background."""
    table = np.zeros(65536, np.uint8)
    for value, verse in verse_value.items():
        table[value] = verse
    return Volume(table[stored.array], stored.geometry)


def _scan_too(entry: Suspicion) -> Suspicion:
    message = f"{entry.message} The scan is turned with the labels, so the header of both is wrong."
    return Suspicion(entry.case, entry.kind, entry.levels, entry.sure, message)
