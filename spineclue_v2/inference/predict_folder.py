"""From paths to result folders: list the cases, predict each, go on after a failure, end with a table of what failed."""
from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from ..anatomy.vertebra import vertebra_record
from ..errors import InputError
from ..export.case_files import export_case
from ..imageio.volume import FILE_ENDINGS, ImageGrid, is_dicom_folder, read_volume
from ..results import SpineResult
from ..utilities.files import atomic_path, write_json
from ..utilities.parallel import run_tasks
from .model import Model, ModelSource, model_of
from .mr_pipeline import predict_mr_case
from .pipeline import Options, predict_volume

logger = logging.getLogger(__name__)


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
    written before a scan could be read. With an `executor` the cases are predicted through it, by processes that load `model_source`.
    """
    from tqdm import tqdm

    if not 0 <= part_id < num_parts:
        raise InputError(f"-part_id is {part_id}; expected 0..{num_parts - 1} with -num_parts {num_parts}.")
    cases, output = list_cases(source), Path(output)
    single = len(cases) == 1
    _check_output(output, cases)
    cases = cases[part_id::num_parts]
    outcome: dict[str, str | None] = {}
    is_mr = model.modality == "MR"
    if is_mr:
        _check_mr_options(options or Options(), save_probabilities)
    if executor is not None and not single:
        return _predict_elsewhere(cases, output, model, options, continue_prediction, save_probabilities, report, progress, executor,
                                  model_source or ModelSource())
    describe = cache(lambda: _describe(output, model, options, source))  # once, after the first scan could be read
    for case in tqdm(cases, desc="predicting", disable=not progress or single, unit="scan"):
        if continue_prediction and _complete(output, case.name, is_mr, save_probabilities, report):
            outcome[case.name] = None
            continue
        try:
            if is_mr:
                predict_mr_case(case.path, case.name, output, model, (options or Options()).mirror, report, describe)
            else:
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
    is_mr = model.modality == "MR"
    waiting = [case for case in cases if not (continue_prediction and _complete(output, case.name, is_mr, save_probabilities, report))]
    if waiting:
        _describe(output, model, options, cases[0].path.parent)
    tasks = {case.name: (replace(case, path=case.path.absolute()), output.absolute(), source, options, save_probabilities, report)
             for case in waiting}
    _, failures = run_tasks(_predict_remote, tasks, executor, description="predicting", progress=progress)
    return {case.name: failures.get(case.name) for case in cases}


def _predict_remote(case: Case, output: Path, source: ModelSource, options: Options | None, save_probabilities: bool, report: bool) -> None:
    model = model_of(source)
    if model.modality == "MR":
        predict_mr_case(case.path, case.name, output, model, (options or Options()).mirror, report, lambda: None)
    else:
        predict_case(case, output, model, options, save_probabilities, report)


def predict_case(case: Case, output: Path, model: Model, options: Options | None = None, save_probabilities: bool = False,
                 report: bool = True, on_read: Callable[[], object] | None = None) -> SpineResult:
    """Predict one case and write its files; CASE.json last. `on_read` is called when the scan is read and nothing written yet."""
    started = time.perf_counter()
    volume = read_volume(case.path)
    read = time.perf_counter() - started
    if on_read is not None:
        on_read()
    result = predict_volume(volume, model, options)
    geometry = result.mask_grid
    assert geometry is not None
    result.seconds["read"] = read
    remove_earlier(output, case.name)
    if report:
        from ..visualization.report import write_report

        drawing = time.perf_counter()
        write_report(result, geometry, volume, output / f"{case.name}.png", case.name)
        result.seconds["report"] = time.perf_counter() - drawing
    if save_probabilities:
        save_probabilities_of(result, geometry, output / f"{case.name}.npz", options or Options())
    result.seconds["total"] = time.perf_counter() - started
    export_case(result, geometry, volume.geometry, output, case.name, model.record)
    return result


def remove_earlier(output: Path, name: str) -> None:
    """Take away what an earlier run left of a case and this one may not write again: CASE.json first, which vouches for the rest."""
    for ending in (".json", ".npz", ".png"):
        (output / f"{name}{ending}").unlink(missing_ok=True)


def _complete(output: Path, name: str, is_mr: bool, save_probabilities: bool, report: bool) -> bool:
    """Whether every file that is asked for is there."""
    endings = [".json", ".nii.gz"] + [".png"] * report + ([] if is_mr else ["_ctd.json"] + [".npz"] * save_probabilities)
    return all((output / f"{name}{ending}").exists() for ending in endings)


def save_probabilities_of(result: SpineResult, geometry: ImageGrid, path: Path, options: Options) -> None:
    """`probabilities` (n, 24) over C1..L5 and `body_centre_mm` (n, 3), one row per vertebra in cranio-caudal order; for `ensemble` also
    `log_probabilities` (n, 25) of all classifiers together and `mask_0`, ... (uint8, 255 = 1) on tight crops of the grid that `record`
    (JSON) describes with the vertebrae's other values and the options that decide what the classifiers' rows mean."""
    rows = {name: np.array([getattr(v, name) for v in result.vertebrae], dtype=np.float32).reshape(-1, width)
            for name, width in (("probabilities", 24), ("log_probabilities", 25))}
    masks = {f"mask_{i}": v.mask_probability if v.mask_probability is not None else v.mask.astype(np.uint8) * 255
             for i, v in enumerate(result.vertebrae) if v.mask is not None}
    record = json.dumps({"geometry": geometry.to_json(), "vertebrae": [vertebra_record(v) for v in result.vertebrae],
                         "options": {"classifiers": sorted(options.classifiers), "forbid_anomalies": options.forbid_anomalies}})
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **masks, **rows, record=np.array(record),
                            body_centre_mm=np.array([v.body_centre for v in result.vertebrae], dtype=np.float32).reshape(-1, 3))


def _check_mr_options(options: Options, save_probabilities: bool) -> None:
    """InputError for what only the vertebrae of CT know."""
    given = {"--save_probabilities": save_probabilities, "--forbid_anomalies": options.forbid_anomalies,
             "--classifiers": set(options.classifiers) != set(Options().classifiers)}
    for flag, wanted in given.items():
        if wanted:
            raise InputError(f"{flag} has no meaning for a model of MR, which writes labels alone; leave it out.")


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
        target = output / f"{case.name}.nii.gz"
        if target.exists() and target.samefile(case.path):
            raise InputError(f"The labels of {case.path} would replace the scan itself; give another output folder than {output}.")


def _describe(output: Path, model: Model, options: Options | None, source: str | Path) -> None:
    """predict_args.json and plans.json: what was asked for, and by which numbers it was done."""
    arguments: dict[str, Any] = {"input": str(source), "model": model.record, "options": vars(options or Options())}
    write_json(output / "predict_args.json", arguments)
    model.plans.save(output / "plans.json")
