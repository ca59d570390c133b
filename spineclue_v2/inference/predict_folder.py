"""From paths to result folders: list the cases, predict each, go on after a failure, end with a table of what failed."""
from __future__ import annotations

import logging
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from ..anatomy.known import Known
from ..errors import InputError
from ..export.folder_tables import write_tables
from ..export.formats import FORMATS, check_bids_names, check_formats, check_volume, missing_files
from ..export.run_files import check_target, write_run_files
from ..imageio.volume import FILE_ENDINGS, read_volume
from ..results import SpineResult
from ..utilities.files import read_json
from ..utilities.parallel import make_executor, run_tasks, sentence
from .ahead import prepare_ahead
from .cases import Case, case_name, list_cases
from .model import Model, ModelSource, model_of
from .pipeline import Options, stages_of
from .predict_scan import check_mr_options, predict_scan, provenance
from .progress import RunProgress

__all__ = ["Case", "case_name", "cases_without_finding", "list_cases", "predict", "predict_case", "Wanted"]

logger = logging.getLogger(__name__)

INDEX = "index.html"
LEAST_FREE_BYTES = 20_000_000  # one case of a large scan with its picture

_LOADING = threading.Lock()  # threads of one worker begin together: the first loads the model, the others wait for it


@dataclass(frozen=True)
class Wanted:
    """What is written of a case beside labels and record: probabilities for ensembles, pictures and page, further formats by name."""

    probabilities: bool = False
    report: bool = True
    also: tuple[str, ...] = ()


def predict(source: str | Path | Sequence[Case], output: str | Path, model: Model, options: Options | None = None, *,
            continue_prediction: bool = False, num_parts: int = 1, part_id: int = 0, save_probabilities: bool = False, report: bool = True,
            progress: bool = True, executor: Executor | None = None, model_source: ModelSource | None = None,
            known: Mapping[str, Known] | None = None, also: Sequence[str] = (), num_processes: int = 0) -> dict[str, str | None]:
    """Predict every case of `source` (a path, or what `list_cases` gave) into `output`; {case: None or the sentence of its failure}.

    A single bad scan raises; in a folder the others go on. `CASE.json` is written last: a case that has it is complete. Nothing is
    written before a scan was predicted. The tables of the folder are made anew in the end. With an `executor` the cases are predicted
    through it, by processes that load `model_source`; with `num_processes` by so many on this machine, one thread each. `known`: what
    is known of each case's levels. `also`: names of further formats.
    """
    if not 0 <= part_id < num_parts:
        raise InputError(f"-part_id is {part_id}; expected 0..{num_parts - 1} with -num_parts {num_parts}.")
    cases = list_cases(source, modality=model.modality) if isinstance(source, str | Path) else list(source)
    output, shown = Path(output), source if isinstance(source, str | Path) else cases[0].path if len(cases) == 1 else cases[0].path.parent
    single = len(cases) == 1
    check_formats_of_cases(also, cases)
    _check_output(output, cases)
    cases = cases[part_id::num_parts]
    wanted = Wanted(save_probabilities, report, tuple(also))
    outcome: dict[str, str | None] = {}
    own = {case.name: replace(options or Options(), known=(known or {}).get(case.name, Known())) for case in cases}
    if model.modality == "MR":
        for chosen in own.values():
            check_mr_options(chosen, save_probabilities, "--")
    if not single and (executor is not None or num_processes):
        with nullcontext(executor) if executor is not None else make_executor(min(num_processes, len(cases))) as workers:
            if workers is not None:
                outcome = _predict_elsewhere(cases, output, model, own, continue_prediction, wanted, progress and sys.stderr.isatty(),
                                             workers, model_source or ModelSource())
                _write_tables(output)
                _write_index(output, outcome, report)
                return outcome
    given = own[cases[0].name] if single and cases else options
    if cases:
        prepare_ahead(model, report)
    describe = cache(lambda: _describe(output, model, given, shown))  # once, after the first scan was predicted
    with RunProgress(len(cases), progress) as bar:
        for case in cases:
            if continue_prediction and _complete(output, case.name, model.modality == "MR", wanted):
                outcome[case.name] = None
                bar.end()
                continue
            seconds = None
            try:
                seconds = predict_case(case, output, model, own[case.name], wanted, describe, bar).seconds
                outcome[case.name] = None
            except InputError as error:
                if single:
                    raise
                outcome[case.name] = str(error)
            except Exception as error:  # whatever is wrong with one scan, the others are worth having
                if single:
                    raise
                logger.exception("Case %s failed.", case.name)
                outcome[case.name] = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            bar.end(seconds)
    _write_tables(output)
    _write_index(output, outcome, report and (not single or (output / INDEX).exists()))
    return outcome


def _write_index(output: Path, outcome: dict[str, str | None], wanted: bool) -> None:
    """`index.html` over the folder; what is wrong with it is a warning, since the results are there."""
    if not wanted or not output.is_dir():
        return
    from ..visualization.page.batch_index import update_index

    try:
        update_index(output, outcome)
    except Exception as error:
        logger.warning("%s was not written (%s); the results are complete.", output / INDEX, sentence(error))
def check_formats_of_cases(also: Sequence[str], cases: Sequence[Case]) -> None:
    """InputError, before networks are loaded, for formats that cannot be written for any of the cases."""
    check_formats(also)
    if any(FORMATS[name].dicom for name in also) and all(case.path.name.lower().endswith(FILE_ENDINGS) for case in cases):
        raise InputError(f"DICOM objects cannot be written for {cases[0].path.name}: they belong to the DICOM files of a scan; give the "
                         "folder of the DICOM series as input, or leave DICOM out.")
    if "bids" in also:
        check_bids_names([case.name for case in cases])


def _write_tables(output: Path) -> None:
    """The tables of the folder, if anything was ever written into it."""
    if output.is_dir():
        write_tables(output)


def _predict_elsewhere(cases: list[Case], output: Path, model: Model, options: Mapping[str, Options], continue_prediction: bool,
                       wanted: Wanted, progress: bool, executor: Executor, source: ModelSource) -> dict[str, str | None]:
    """The same through an executor; what the output was made with is written before the first case is sent out."""
    mr = model.modality == "MR"
    waiting = [case for case in cases if not (continue_prediction and _complete(output, case.name, mr, wanted))]
    if waiting:
        _describe(output, model, replace(options[cases[0].name], known=Known()), cases[0].path.parent)
    tasks: dict[Hashable, tuple[Any, ...]] = {
        case.name: (replace(case, path=case.path.absolute()), output.absolute(), source, options[case.name], wanted) for case in waiting}
    _, failures = run_tasks(_predict_remote, tasks, executor, description="predicting", progress=progress)
    return {case.name: failures.get(case.name) for case in cases}


def _predict_remote(case: Case, output: Path, source: ModelSource, options: Options | None, wanted: Wanted) -> None:
    with _LOADING:
        model = model_of(source)
    predict_case(case, output, model, options, wanted)


def predict_case(case: Case, output: Path, model: Model, options: Options | None = None, wanted: Wanted = Wanted(),
                 on_predicted: Callable[[], object] | None = None, bar: RunProgress | None = None) -> SpineResult:
    """Predict one case and write its files; CASE.json last. `on_predicted` is called when there is a result and nothing written yet."""
    started = time.perf_counter()
    if bar is not None:
        bar.begin(case.name, ["read", *(stage.name for stage in stages_of(model)), "report"])
    volume = read_volume(case.path, series=case.series, modality=model.modality)
    read = time.perf_counter() - started
    check_volume(wanted.also, volume, case.name)
    keep_scan = wanted.report or any(FORMATS[name].scan for name in wanted.also)
    progress = bar.step if bar is not None else None
    result = predict_scan(volume, model, options, progress, str(case.path), {"read": read}, keep_scan=keep_scan)
    if on_predicted is not None:
        on_predicted()  # a scan that is refused leaves nothing behind
    if bar is not None:
        bar.step("report")
    result.save(output, case.name, wanted.report, wanted.probabilities, describe=False, also=wanted.also)
    return result.without_scan()


def cases_without_finding(output: str | Path, names: Iterable[str]) -> list[str]:
    """The cases of `names` whose `CASE.json` in `output` says that nothing was found."""
    return [name for name in names if read_json(Path(output) / f"{name}.json", "prediction").get("status") != "ok"]


def _complete(output: Path, name: str, mr: bool, wanted: Wanted) -> bool:
    """Whether every file that is asked for is there."""
    endings = [".json", ".nii.gz"] + [".png"] * wanted.report + ([] if mr else ["_ctd.json"] + [".npz"] * wanted.probabilities)
    if not all((output / f"{name}{ending}").exists() for ending in endings):
        return False
    return not wanted.also or not missing_files(wanted.also, output, name, bool(cases_without_finding(output, [name])))


def _check_output(output: Path, cases: list[Case]) -> None:
    """InputError, before time is spent, when `output` cannot be written to or a result would replace a scan."""
    place = output.absolute()
    while not place.exists():
        place = place.parent
    if not place.is_dir():
        raise InputError(f"Output {output} cannot be made: {place} is a file; give a folder.")
    if not os.access(place, os.W_OK | os.X_OK):
        raise InputError(f"Output {output} cannot be written: {place} is not writable; give another folder.")
    if (free := shutil.disk_usage(place).free) < LEAST_FREE_BYTES:
        raise InputError(f"Output {output} is on a full disk ({free / 1e6:.0f} MB free, {LEAST_FREE_BYTES / 1e6:.0f} MB wanted); make "
                         "space, or give another folder.")
    for case in cases:
        check_target(output, case.name, case.path)


def _describe(output: Path, model: Model, options: Options | None, source: str | Path) -> None:
    """predict_args.json and plans.json, once for the whole run."""
    write_run_files(output, provenance(model, options or Options(), str(source)))
