"""Numbering the cases of a prediction folder again: all their files are rewritten from what the prediction stored."""
from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ..anatomy.known import Known
from ..errors import InputError
from ..results import SpineResult
from ..stages.identify.numbering import check_known
from .stored_result import read_result, stored_cases, with_scan

logger = logging.getLogger(__name__)

Change = Callable[[str, SpineResult], SpineResult]


def renumber_folder(folder: str | Path, known: Mapping[str, Known], scans: str | Path | None = None) -> dict[str, SpineResult | str]:
    """Number the cases of `known` again; {case: its new result, or the sentence of its failure}. A case that fails stays as it is.

    Args:
        folder: of `spineclue_predict`.
        known: of each case; nothing known gives the numbering by the scan alone.
        scans: where the scans lie now, for the pictures; None: where they lay when they were predicted.

    Raises:
        InputError: the failure of the only case.
    """
    def change(name: str, result: SpineResult) -> SpineResult:
        check_known(known[name], result.basis is not None and result.basis.forbid_anomalies)
        return result.renumbered(known[name])

    return change_cases(folder, list(known), change, scans)


def change_cases(folder: str | Path, cases: Sequence[str], change: Change, scans: str | Path | None = None) -> dict[str, SpineResult | str]:
    """Rewrite `cases` of a prediction folder under `change`; see `renumber_folder`."""
    outcome: dict[str, SpineResult | str] = {}
    for name in cases:
        try:
            outcome[name] = save_again(change(name, read_result(folder, name)), folder, name, scans)
        except InputError as error:
            if len(cases) == 1:
                raise
            outcome[name] = str(error)
    return outcome


def save_again(result: SpineResult, folder: str | Path, name: str, scans: str | Path | None = None) -> SpineResult:
    """Write all files of a stored case from its changed result; the picture where there was one and its scan can be read again."""
    picture = (Path(folder) / f"{name}.png").exists()
    if picture:
        try:
            result = with_scan(result, folder, name, scans)
        except InputError as error:
            logger.warning("%s.png is removed, for it shows the old names and cannot be drawn again: %s", name, error)
            picture = False
    result.save(folder, name, report=picture, probabilities=None, describe=False)
    return result.without_scan()


def chosen_cases(folder: str | Path, names: Sequence[str] | None) -> list[str]:
    """The cases of a prediction folder that are meant; InputError for a name that is not there."""
    there = stored_cases(folder)
    if missing := [name for name in names or () if name not in there]:
        raise InputError(f"{folder} holds no case '{missing[0]}'; there are {', '.join(there[:10])}{', ...' if len(there) > 10 else ''}.")
    return list(dict.fromkeys(names)) if names else there
