"""The process that predicts uploads. It has the model loaded; it can be stopped at any moment, and the service outlives its death."""
from __future__ import annotations

import logging
import multiprocessing
import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from functools import cache, partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from ..utilities.environment import guard
from .jobs import Job

if TYPE_CHECKING:
    from ..inference.model import Model

logger = logging.getLogger(__name__)

POLL_S = 0.2
LOADING_S = 300.0
MAX_CASES = 20        # scans of one upload


class PredictionProcess:
    """Predicts jobs one after the other in a process of its own, which is started anew after it had to be stopped or died.

    Only that process imports PyTorch. `load` gives the model there, so it has to be a function that can be pickled.
    """

    def __init__(self, load: Callable[[], Model]) -> None:
        self._load = load
        self._lock = threading.Lock()
        self._process: Any = None
        self._connection: Connection | None = None
        self.about: Mapping[str, Any] = {}

    def start(self) -> Mapping[str, Any]:
        """Start the process and wait for its model: `modality` and `labels` of it. InputError where it cannot be loaded."""
        if self._process is None or not self._process.is_alive():
            self.close()
            # Fresh, never forked: torch and ITK hold threads.
            context = multiprocessing.get_context("spawn")
            here, there = context.Pipe()
            process = context.Process(target=_serve, args=(there, self._load), daemon=True)
            process.start()
            there.close()
            self._process, self._connection = process, here
            try:
                self.about = self._wait(lambda *_: None, threading.Event(), LOADING_S)
            except InputError:
                self.close()
                raise
        return self.about

    def run(self, job: Job, seconds: float) -> Mapping[str, Any]:
        with self._lock:
            self.start()
            assert self._connection is not None
            try:
                self._connection.send((job.upload, job.results, dict(job.options)))
            except OSError as error:
                raise self._died() from error
            return self._wait(job.report, job.stop, seconds)

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._process = None
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _wait(self, report: Callable[[str, float], object], stop: threading.Event, seconds: float) -> Mapping[str, Any]:
        end, connection = time.monotonic() + seconds, self._connection
        assert connection is not None
        while True:
            try:
                message = connection.recv() if connection.poll(POLL_S) else None
            except (EOFError, OSError) as error:
                raise self._died() from error
            if message is None:
                if stop.is_set():
                    self.close()
                    raise InputError("The prediction was stopped.")
                if time.monotonic() > end:
                    self.close()
                    raise InputError(f"The prediction took longer than {seconds:.0f} s and was stopped; give a smaller scan, or start the "
                                     "service with a longer --seconds.")
            elif message[0] == "step":
                report(*message[1:])
            elif message[0] == "done":
                found: Mapping[str, Any] = message[1]
                return found
            else:
                raise InputError(message[1])

    def _died(self) -> InputError:
        self.close()
        return InputError("The process that predicts died (out of memory, or a crash in a library); give a smaller scan.")


def _serve(connection: Connection, load: Callable[[], Model]) -> None:
    """Load the model, say so, then predict what comes until the other side is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; who started this one ends it
    guard()
    model = cache(load)

    def answer(call: Callable[[], Any]) -> None:
        from ..utilities.parallel import sentence

        try:
            message: tuple[Any, ...] = ("done", call())
        except InputError as error:
            message = ("failed", str(error))
        except Exception as error:  # one scan, not the service
            logger.exception("A prediction failed.")
            message = ("failed", sentence(error))
        connection.send(message)

    def report(step: str, fraction: float) -> None:
        connection.send(("step", step, fraction))

    try:
        answer(lambda: _about(model()))
        while True:
            upload, results, options = connection.recv()
            answer(partial(predict_upload, upload, results, options, model(), report))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return


def _about(model: Model) -> dict[str, Any]:
    """What clients are told of the model."""
    from .. import anatomy

    labels = dict(anatomy.LABEL_OF_NAME) if model.modality == "CT" else {}
    return {"modality": model.modality, "labels": labels, "source": Path(model.source).name}


def predict_upload(upload: Path, results: Path, options: Mapping[str, Any], model: Model,
                   report: Callable[[str, float], object]) -> dict[str, Any]:
    """Predict every scan of an upload into `results`; the summary of `run_summary` without paths of this machine.

    The working folder and the folder of temporary files are set meanwhile, so that records hold no path of the service and what is
    unpacked goes with the upload: for a process of its own. InputError where no scan could be predicted.
    """
    home, temporary = os.getcwd(), results.parent / "unpacked"
    temporary.mkdir()
    before, tempfile.tempdir = tempfile.tempdir, str(temporary)
    os.chdir(upload.parent)
    try:
        check_own_voxels(Path(upload.name))
        return _predict_cases(Path(upload.name), results, options, model, report)
    except InputError as error:
        raise InputError(_without_paths(str(error), results.parent)) from error
    finally:
        os.chdir(home)
        tempfile.tempdir = before
        shutil.rmtree(temporary, ignore_errors=True)


def _predict_cases(upload: Path, results: Path, options: Mapping[str, Any], model: Model,
                   report: Callable[[str, float], object]) -> dict[str, Any]:
    from ..anatomy.known import known_of
    from ..export.folder_tables import write_tables
    from ..inference.cases import list_cases
    from ..inference.pipeline import Options
    from ..inference.predict_folder import Wanted, check_formats_of_cases, predict_case
    from ..inference.progress import RunProgress
    from ..inference.run_summary import run_summary
    from ..utilities.parallel import sentence
    from ..visualization.page.batch_index import update_index

    cases, also = list_cases(upload, modality=model.modality), tuple(options.get("also", ()))
    if len(cases) > MAX_CASES:
        raise InputError(f"{upload} holds {len(cases)} scans; expected {MAX_CASES} at most.")
    check_formats_of_cases(also, cases)
    known = known_of(None, options.get("lumbar"), options.get("thoracic"))
    chosen = Options(bool(options.get("forbid_anomalies")), bool(options.get("mirror")), known=known)
    outcome: dict[str, str | None] = {}
    results.mkdir(exist_ok=True)
    with RunProgress(len(cases), False, report) as bar:
        for case in cases:
            seconds: Mapping[str, float] | None = None
            outcome[case.name] = None
            try:
                seconds = predict_case(case, results, model, chosen, Wanted(also=also), bar=bar).seconds
            except Exception as error:
                if not isinstance(error, InputError):
                    logger.exception("Case %s failed.", case.name)
                outcome[case.name] = _without_paths(sentence(error), results.parent)
            bar.end(seconds)
    if all(outcome.values()):
        raise InputError(" ".join(str(why) for why in outcome.values()))
    write_tables(results)
    if len(cases) > 1:
        update_index(results, outcome)
    summary = run_summary(results, outcome)
    for part in (summary, *summary["cases"].values()):
        part["files"] = {kind: str(Path(path).relative_to(results)) for kind, path in part.get("files", {}).items()}
    return {key: value for key, value in summary.items() if key != "output"}


def check_own_voxels(upload: Path) -> None:
    """InputError where a header of MetaImage or NRRD in an upload takes its voxels from another place than the upload."""
    from ..imageio.archives import real_path
    from ..imageio.header_checks import check_header

    place = real_path(upload)
    for path in [place] if place.is_file() else sorted(place.rglob("*")):
        if not path.is_file() or not path.name.lower().endswith((".mha", ".mhd", ".nrrd", ".nhdr")):
            continue
        fields = check_header(path)
        named = fields.get("elementdatafile") or fields.get("data file") or fields.get("datafile") or "LOCAL"
        if named.upper() == "LOCAL":
            continue
        if named.split()[0].upper() == "LIST" or "%" in named or Path(named).name != named or not (path.parent / named).is_file():
            raise InputError(f"{path.name} takes its voxels from {named[:80]!r}; expected a file beside it in the same upload.")


def _without_paths(text: str, folder: Path) -> str:
    return text.replace(f"{folder}{os.sep}", "")
