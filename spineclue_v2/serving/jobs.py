"""Uploaded scans and what becomes of them: one is predicted at a time, few may wait, and all files go after a while."""
from __future__ import annotations

import fcntl
import logging
import queue
import secrets
import shutil
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from ..errors import InputError

logger = logging.getLogger(__name__)

PREFIX = "spineclue_serve_"
MAX_KEPT = 32                # uploads and results at one time
SWEEP_S = 30.0
RESULTS_ZIP = "results.zip"
LOCK = ".lock"


@dataclass(frozen=True)
class Limits:
    """What one user may ask of the service. `waiting`: scans that may wait beside the one that is predicted."""

    upload_bytes: int = 2 << 30
    upload_seconds: float = 600.0
    prediction_seconds: float = 1800.0
    kept_seconds: float = 3600.0
    waiting: int = 1


class Busy(Exception):
    """No further scan can be taken now; its text says why."""


@dataclass
class Job:
    """One upload: `folder` holds `upload/`, what is unpacked of it, and `results/`.

    `state`: "uploading", "uploaded" (waits to be asked for), "waiting", "running", "done" or "failed" (then `reason` is a sentence).
    """

    id: str
    folder: Path
    since: float
    state: str = "uploading"
    name: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    step: str = ""
    fraction: float = 0.0
    reason: str = ""
    summary: Mapping[str, Any] = field(default_factory=dict)
    ended: float | None = None
    stop: threading.Event = field(default_factory=threading.Event)
    over: threading.Event = field(default_factory=threading.Event)

    @property
    def upload(self) -> Path:
        return self.folder / "upload" / self.name

    @property
    def results(self) -> Path:
        return self.folder / "results"

    def report(self, step: str, fraction: float) -> None:
        """What the prediction does now, in words, and how much of it is done (0..1)."""
        self.step, self.fraction = step, fraction

    def files(self) -> list[str]:
        """Results that can be fetched, as paths below `results`; none before the job is done."""
        if self.state != "done":
            return []
        found = (path.relative_to(self.results).as_posix() for path in self.results.rglob("*") if path.is_file())
        return sorted(name for name in found if not name.rsplit("/", 1)[-1].startswith("."))


class Runner(Protocol):
    """What predicts: raises InputError with a sentence where it fails, is stopped or takes longer than `seconds`."""

    def run(self, job: Job, seconds: float) -> Mapping[str, Any]:
        """The summary of the job's results."""

    def close(self) -> None:
        """End whatever runs."""


class Jobs:
    """All uploads of a service, in a folder of its own that goes with it.

    Args:
        runner: predicts one job.
        limits: what users may ask.
        parent: folder for the service's own; None: the system's for temporary files.
        clock: seconds that only grow.
    """

    def __init__(self, runner: Runner, limits: Limits, parent: str | Path | None = None, clock: Callable[[], float] = time.monotonic):
        self.limits, self._runner, self._clock = limits, runner, clock
        place = Path(parent or tempfile.gettempdir())
        try:
            place.mkdir(parents=True, exist_ok=True)
            _remove_left_over(place)
            self.folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=place))
            self._lock_file = _locked(self.folder / LOCK)
        except OSError as error:
            raise InputError(f"Uploads cannot be kept in {place}: {error.strerror}; give another --folder that can be written.") from error
        self._jobs: dict[str, Job] = {}
        self._lock = threading.Lock()
        self._queue: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._closed = threading.Event()
        self._threads = [threading.Thread(target=target, daemon=True) for target in (self._work, self._sweep_now_and_then)]
        for thread in self._threads:
            thread.start()

    def begin(self, queued: bool = True) -> Job:
        """A job for an upload that begins. Raises Busy: the queue (for one that is `queued`), the disk or the list of uploads is full."""
        with self._lock:
            if queued and self._ahead() > self.limits.waiting:
                raise Busy("A scan is predicted and no more may wait; try again in a minute.")
            if len(self._jobs) >= MAX_KEPT:
                raise Busy(f"{MAX_KEPT} uploads are kept already; delete some or wait until they expire.")
            if shutil.disk_usage(self.folder).free < self.limits.upload_bytes:
                raise Busy("The disk of the service is full; try again when older results have expired.")
            job = Job(secrets.token_urlsafe(16), self.folder, self._clock(), "uploading" if queued else "uploaded")
            job.folder = self.folder / job.id
            job.upload.mkdir(parents=True)
            self._jobs[job.id] = job
            return job

    def _ahead(self) -> int:
        return sum(job.state in ("uploading", "waiting", "running") for job in self._jobs.values())

    def submit(self, job: Job, options: Mapping[str, Any]) -> None:
        """Put a job whose upload is there into the queue. Raises Busy where it was only kept so far and the queue is full."""
        with self._lock:
            if job.state not in ("uploading", "uploaded"):
                raise Busy("This upload is predicted already, or was.")
            if job.state == "uploaded" and self._ahead() > self.limits.waiting:
                raise Busy("A scan is predicted and no more may wait; try again in a minute.")
            job.state, job.options = "waiting", options
        self._queue.put(job)

    def get(self, name: str) -> Job | None:
        """The job of an id; None where there is none, or it is too old."""
        self.sweep()
        with self._lock:
            return self._jobs.get(name)

    def remove(self, job: Job) -> None:
        """Stop a job and remove its files."""
        job.stop.set()
        with self._lock:
            self._jobs.pop(job.id, None)
            running = job.state == "running"
        if running:  # its files go when it has stopped
            return
        shutil.rmtree(job.folder, ignore_errors=True)
        job.reason = job.reason or "The scan was removed."
        job.over.set()

    def sweep(self) -> None:
        """Remove what is older than `kept_seconds`, counted from the end of the prediction, else of the upload's begin."""
        now, kept = self._clock(), self.limits.kept_seconds
        with self._lock:
            old = [job for job in self._jobs.values()
                   if (job.ended is not None and now - job.ended > kept) or (job.state == "uploaded" and now - job.since > kept)]
        for job in old:
            self.remove(job)

    def expires_in(self, job: Job) -> float | None:
        """Seconds until a job that has ended is removed."""
        return None if job.ended is None else max(0.0, job.ended + self.limits.kept_seconds - self._clock())

    def close(self) -> None:
        """Stop all work and remove all files."""
        self._closed.set()
        with self._lock:
            jobs = list(self._jobs.values())
        for job in jobs:
            job.stop.set()
        self._queue.put(None)
        self._runner.close()
        for thread in self._threads:
            thread.join(10)
        shutil.rmtree(self.folder, ignore_errors=True)
        self._lock_file.close()

    def _work(self) -> None:
        while (job := self._queue.get()) is not None:
            with self._lock:
                if job.stop.is_set() or self._closed.is_set():
                    continue
                job.state = "running"
            self._predict(job)

    def _predict(self, job: Job) -> None:
        state = "failed"
        try:
            job.summary = self._runner.run(job, self.limits.prediction_seconds)
            _pack(job)
            state = "done"
        except InputError as error:
            job.reason = str(error)
        except Exception as error:  # the service goes on whatever is wrong with one scan
            logger.exception("A prediction failed.")
            job.reason = f"The prediction failed ({type(error).__name__}); the service's log has the details."
        for part in job.folder.iterdir():
            # The scan itself goes at once: nobody needs it any more.
            if part.is_dir() and (part != job.results or state == "failed"):
                shutil.rmtree(part, ignore_errors=True)
        with self._lock:
            job.state, job.ended = state, self._clock()
            removed = job.stop.is_set()
        if removed:
            shutil.rmtree(job.folder, ignore_errors=True)
        job.over.set()

    def _sweep_now_and_then(self) -> None:
        while not self._closed.wait(SWEEP_S):
            self.sweep()


def _pack(job: Job) -> None:
    """All results in one archive, beside the folder of results."""
    names = [path for path in sorted(job.results.rglob("*")) if path.is_file() and not path.name.startswith(".")]
    with zipfile.ZipFile(job.folder / RESULTS_ZIP, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for path in names:
            archive.write(path, path.relative_to(job.results).as_posix())


def _locked(path: Path) -> Any:
    """A file that stays locked while this process lives, however it ends."""
    file = open(path, "w")  # noqa: SIM115  (open is what it is for)
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return file


def _remove_left_over(place: Path) -> None:
    """Remove the folders of services in `place` that ended without tidying up: nobody holds their locks."""
    for lock in place.glob(f"{PREFIX}*/{LOCK}"):
        try:
            with _locked(lock):
                shutil.rmtree(lock.parent, ignore_errors=True)
        except OSError:  # it is in use, or somebody else's
            continue
