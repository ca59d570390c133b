"""Numbering the cases of a prediction folder again: all their files are rewritten from what the prediction stored."""
from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ..anatomy.known import Known
from ..errors import InputError
from ..export.case_files import remove_earlier
from ..export.folder_tables import write_tables
from ..export.formats import FORMATS, format_files
from ..results import SpineResult
from ..stages.identify.numbering import check_known
from ..utilities.files import move_files, staged_folder
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
    _renew_overviews(Path(folder))
    return outcome


def save_again(result: SpineResult, folder: str | Path, name: str, scans: str | Path | None = None) -> SpineResult:
    """Write all files of a stored case from its changed result: those that are there, pictures and what else shows the scan where that can
    be read again."""
    folder = Path(folder)
    picture, measured = (folder / f"{name}.png").exists(), (folder / f"{name}_measures.csv").exists()
    also = [kind for kind, file in zip(FORMATS, format_files(FORMATS, folder, name), strict=True) if file.exists()]
    of_the_scan = [kind for kind in also if FORMATS[kind].dicom or FORMATS[kind].scan]
    if picture or measured or of_the_scan:
        try:
            result = with_scan(result, folder, name, scans)
        except InputError as error:
            gone = [*([f"{name}.png"] if picture else []), *(["density of bone"] if measured else []), *of_the_scan]
            logger.warning("What shows the scan of %s is removed (%s), for it has the old names and cannot be made again: %s", name,
                           ", ".join(gone), error)
            picture, also = False, [kind for kind in also if kind not in of_the_scan]
    if measured:
        result = result.with_measures()
    with staged_folder(folder, name) as made:
        written = result.save(made, name, report=picture, probabilities=None, describe=False, also=also)
        remove_earlier(folder, name, probabilities=False)
        move_files(made, folder, last=written["record"])
    return result.without_scan()


def _renew_overviews(folder: Path) -> None:
    """The tables and the page over all cases, where there are any."""
    if (folder / "cases.csv").exists():
        write_tables(folder)
    if (folder / "index.html").exists():
        from ..visualization.page.batch_index import update_index

        update_index(folder, {})


def chosen_cases(folder: str | Path, names: Sequence[str] | None) -> list[str]:
    """The cases of a prediction folder that are meant; InputError for a name that is not there."""
    there = stored_cases(folder)
    if missing := [name for name in names or () if name not in there]:
        raise InputError(f"{folder} holds no case '{missing[0]}'; there are {', '.join(there[:10])}{', ...' if len(there) > 10 else ''}.")
    return list(dict.fromkeys(names)) if names else there
