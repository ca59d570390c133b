"""From paths to result folders: list the cases, predict each, go on after a failure, end with a table of what failed."""
from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Hashable, Iterable
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..export.run_files import check_target, write_run_files
from ..imageio.volume import FILE_ENDINGS, is_dicom_folder, read_volume
from ..results import SpineResult
from ..utilities.files import read_json
from ..utilities.parallel import run_tasks
from .model import Model, ModelSource, model_of
from .pipeline import Options
from .predict_scan import check_mr_options, predict_scan, provenance

logger = logging.getLogger(__name__)

_LOADING = threading.Lock()  # threads of one worker begin together: the first loads the model, the others wait for it


@dataclass(frozen=True)
class Case:
    """A scan to predict: its name in the output folder and where it lies."""

    name: str
    path: Path


def list_cases(source: str | Path) -> list[Case]:
    """Cases behind `source`: a scan file, a folder with one DICOM series, or a folder of such (any names; nnU-Net's `_0000` is cut)."""
    source = Path(source)
    if not source.exists():
        raise InputError(f"Input {source} does not exist.")
    if source.is_file():
        return [Case(case_name(source), source)]
    if is_dicom_folder(source):
        return [Case(case_name(source), source)]
    entries = sorted(e for e in source.iterdir() if not e.name.startswith("."))
    cases = [Case(case_name(e), e) for e in entries if e.is_file() and e.name.lower().endswith(FILE_ENDINGS)]
    cases += [Case(case_name(e), e) for e in entries if e.is_dir() and is_dicom_folder(e)]
    if not cases:
        raise InputError(f"Input folder {source} holds no scan ({', '.join(FILE_ENDINGS)}, or DICOM folders).")
    names = [case.name for case in cases]
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        files = ", ".join(case.path.name for case in cases if case.name == doubled[0])
        raise InputError(f"Input folder {source}: {files} would both become case '{doubled[0]}'; rename one.")
    return cases


def case_name(path: Path) -> str:
    """Name of a case: the file name without its ending and without nnU-Net's channel number."""
    # Links keep their own name: what they point to may be called after its hash.
    name = os.path.basename(os.path.abspath(path))
    if path.is_file():
        for ending in FILE_ENDINGS:
            if name.lower().endswith(ending):
                name = name[:-len(ending)]
                break
    return name[:-5] if name.endswith("_0000") else name


def predict(source: str | Path, output: str | Path, model: Model, options: Options | None = None, continue_prediction: bool = False,
            num_parts: int = 1, part_id: int = 0, save_probabilities: bool = False, report: bool = True,
            progress: bool = True, executor: Executor | None = None, model_source: ModelSource | None = None) -> dict[str, str | None]:
    """Predict every case of `source` into `output`; {case: None or the sentence of its failure}.

    A single bad scan raises; in a folder the others go on. `CASE.json` is written last: a case that has it is complete. Nothing is
    written before a scan was predicted. With an `executor` the cases are predicted through it, by processes that load `model_source`.
    """
    from tqdm import tqdm

    if not 0 <= part_id < num_parts:
        raise InputError(f"-part_id is {part_id}; expected 0..{num_parts - 1} with -num_parts {num_parts}.")
    cases, output = list_cases(source), Path(output)
    single = len(cases) == 1
    _check_output(output, cases)
    cases = cases[part_id::num_parts]
    outcome: dict[str, str | None] = {}
    if model.modality == "MR":
        check_mr_options(options or Options(), save_probabilities, "--")
    if executor is not None and not single:
        return _predict_elsewhere(cases, output, model, options, continue_prediction, save_probabilities, report, progress, executor,
                                  model_source or ModelSource())
    describe = cache(lambda: _describe(output, model, options, source))  # once, after the first scan was predicted
    for case in tqdm(cases, desc="predicting", disable=not progress or single, unit="scan"):
        if continue_prediction and _complete(output, case.name, model.modality == "MR", save_probabilities, report):
            outcome[case.name] = None
            continue
        try:
            predict_case(case, output, model, options, save_probabilities, report, describe)
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
    return outcome


def _predict_elsewhere(cases: list[Case], output: Path, model: Model, options: Options | None, continue_prediction: bool,
                       save_probabilities: bool, report: bool, progress: bool, executor: Executor,
                       source: ModelSource) -> dict[str, str | None]:
    """The same through an executor; what the output was made with is written before the first case is sent out."""
    mr = model.modality == "MR"
    waiting = [case for case in cases if not (continue_prediction and _complete(output, case.name, mr, save_probabilities, report))]
    if waiting:
        _describe(output, model, options, cases[0].path.parent)
    tasks: dict[Hashable, tuple[Any, ...]] = {
        case.name: (replace(case, path=case.path.absolute()), output.absolute(), source, options, save_probabilities, report)
        for case in waiting}
    _, failures = run_tasks(_predict_remote, tasks, executor, description="predicting", progress=progress)
    return {case.name: failures.get(case.name) for case in cases}


def _predict_remote(case: Case, output: Path, source: ModelSource, options: Options | None, save_probabilities: bool, report: bool) -> None:
    with _LOADING:
        model = model_of(source)
    predict_case(case, output, model, options, save_probabilities, report)


def predict_case(case: Case, output: Path, model: Model, options: Options | None = None, save_probabilities: bool = False,
                 report: bool = True, on_predicted: Callable[[], object] | None = None) -> SpineResult:
    """Predict one case and write its files; CASE.json last. `on_predicted` is called when there is a result and nothing written yet."""
    started = time.perf_counter()
    volume = read_volume(case.path)
    read = time.perf_counter() - started
    result = predict_scan(volume, model, options, None, str(case.path), {"read": read}, keep_scan=report)
    if on_predicted is not None:
        on_predicted()  # a scan that is refused leaves nothing behind
    result.save(output, case.name, report, save_probabilities, describe=False)
    return result.without_scan()


def cases_without_finding(output: str | Path, names: Iterable[str]) -> list[str]:
    """The cases of `names` whose `CASE.json` in `output` says that nothing was found."""
    return [name for name in names if read_json(Path(output) / f"{name}.json", "prediction").get("status") != "ok"]


def _complete(output: Path, name: str, mr: bool, save_probabilities: bool, report: bool) -> bool:
    """Whether every file that is asked for is there."""
    endings = [".json", ".nii.gz"] + [".png"] * report + ([] if mr else ["_ctd.json"] + [".npz"] * save_probabilities)
    return all((output / f"{name}{ending}").exists() for ending in endings)


def _check_output(output: Path, cases: list[Case]) -> None:
    """InputError, before time is spent, when `output` cannot be written to or a result would replace a scan."""
    place = output.absolute()
    while not place.exists():
        place = place.parent
    if not place.is_dir():
        raise InputError(f"Output {output} cannot be made: {place} is a file; give a folder.")
    if not os.access(place, os.W_OK | os.X_OK):
        raise InputError(f"Output {output} cannot be written: {place} is not writable; give another folder.")
    for case in cases:
        check_target(output, case.name, case.path)


def _describe(output: Path, model: Model, options: Options | None, source: str | Path) -> None:
    """predict_args.json and plans.json, once for the whole run."""
    write_run_files(output, provenance(model, options or Options(), str(source)))
