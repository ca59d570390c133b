"""Cross-validation splits: nnU-Net's, and never one patient on both sides."""
from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..errors import InputError
from ..utilities.files import read_json, write_json

logger = logging.getLogger(__name__)



def load_splits(preprocessed_dataset_folder: str | Path, cases: Sequence[str],
                patients: Mapping[str, str] | None = None) -> list[dict[str, list[str]]]:
    """Cross-validation folds [{"train": [...], "val": [...]}, ...] from `splits_final.json`, made as nnU-Net does when absent.

    With `patients` (case -> patient) folds are drawn over patients, so that none is in both parts. Fewer than five cases
    (or patients) give that many folds; a single one serves as both parts. An existing file wins, but cases it lacks are an
    InputError: nnU-Net would silently never train on them.
    """
    path = Path(preprocessed_dataset_folder) / "splits_final.json"
    cases = sorted(cases)
    if path.is_file():
        return _read_splits(path, cases, patients)
    if not cases:
        raise InputError("There is no case to split; run spineclue_plan_and_preprocess first.")
    splits = make_splits(cases, patients)
    write_json(path, splits)
    return splits


def make_splits(cases: Sequence[str], patients: Mapping[str, str] | None = None) -> list[dict[str, list[str]]]:
    """The folds themselves, nothing read or written; equal to nnU-Net's when `patients` is empty and there are five cases."""
    from ..adapters import NUM_FOLDS, crossval_splits

    cases = sorted(cases)
    groups = _groups(cases, patients)
    if len(groups) == 1:
        logger.warning("There is only one %s: it is used for training and validation alike.", "patient" if patients else "case")
        return [{"train": list(cases), "val": list(cases)}]
    splits = crossval_splits(list(groups), min(NUM_FOLDS, len(groups)))
    return [{part: sorted(case for group in split[part] for case in groups[group]) for part in ("train", "val")}
            for split in splits]


def fold_cases(splits: Sequence[Mapping[str, list[str]]], fold: int | str, cases: Sequence[str] = (),
               patients: Mapping[str, str] | None = None) -> tuple[list[str], list[str]]:
    """(train, validation) cases of `fold`: 0..n-1, or 'all' (every case in both parts).

    A fold beyond the splits is nnU-Net's seeded 80:20 split of `cases` (default: all cases of the splits), by patient.
    """
    from ..adapters import random_split

    everything = sorted(cases or {case for split in splits for part in ("train", "val") for case in split[part]})
    if fold == "all":
        return everything, everything
    if not isinstance(fold, int) and not str(fold).isdigit():
        raise InputError(f"Fold '{fold}' is neither a number nor 'all'.")
    number = int(fold)
    if number < 0:
        raise InputError(f"Fold {number} is negative; expected 0..{len(splits) - 1} or 'all'.")
    if number < len(splits):
        return list(splits[number]["train"]), list(splits[number]["val"])
    groups = _groups(everything, patients)
    if len(groups) < 2:
        raise InputError(f"Fold {number} is beyond the {len(splits)} fold(s) and there is only one case to draw from.")
    logger.warning("Fold %d is beyond the %d folds of splits_final.json; a random 80:20 split is drawn.", number, len(splits))
    train, val = random_split(list(groups), number)
    return [case for group in train for case in groups[group]], [case for group in val for case in groups[group]]


def _groups(cases: Sequence[str], patients: Mapping[str, str] | None) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for case in cases:
        groups.setdefault((patients or {}).get(case, case), []).append(case)
    return {name: groups[name] for name in sorted(groups)}


def _read_splits(path: Path, cases: Sequence[str], patients: Mapping[str, str] | None) -> list[dict[str, list[str]]]:
    content = read_json(path, "splits")
    try:
        splits = [{part: [str(case) for case in split[part]] for part in ("train", "val")} for split in content]
    except (KeyError, TypeError) as error:
        raise InputError(f"{path} is no split file; expected [{{\"train\": [...], \"val\": [...]}}, ...]; delete it to draw "
                         "new folds.") from error
    if not splits:
        raise InputError(f"{path} holds no fold; delete it to draw new ones.")
    known = set(cases)
    for number, split in enumerate(splits):
        listed = set(split["train"]) | set(split["val"])
        if known - listed:
            raise InputError(f"{path}: fold {number} lacks {len(known - listed)} of the {len(known)} cases (e.g. "
                             f"'{min(known - listed)}') and would never train on them; delete the file to draw new folds, or add "
                             "the cases to it.")
        if listed - known:
            raise InputError(f"{path}: fold {number} names {len(listed - known)} cases that are not preprocessed (e.g. "
                             f"'{min(listed - known)}'); run spineclue_preprocess, or delete the file to draw new folds.")
        owner = patients or {}
        shared = {owner.get(c, c) for c in split["train"]} & {owner.get(c, c) for c in split["val"]}
        if shared and len(_groups(cases, patients)) > 1:
            what = "patient" if patients else "case"
            raise InputError(f"{path}: fold {number} has {what} '{min(shared)}' among its training and its validation cases, which "
                             f"flatters every metric; move that {what} to one side, or delete the file to draw folds over {what}s.")
    return splits


def parse_fold(fold: int | str) -> int | str:
    """0, '0' or 'all'; anything else is an InputError."""
    if str(fold) == "all":
        return "all"
    if not str(fold).isdigit():
        raise InputError(f"Fold '{fold}' is unknown; expected a number or all.")
    return int(fold)


def patients_of(base: Path) -> dict[str, str]:
    """case -> patient from the preprocessed folder's dataset.json; empty when it names none."""
    return read_json(base / "dataset.json", "dataset description").get("patients") or {}
