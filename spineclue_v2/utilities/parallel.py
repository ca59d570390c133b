"""One way to fan work out: in-process, over processes, or through any `concurrent.futures.Executor` (Dask's included).

A task that fails never stops the others: failures come back by name, with a sentence.
"""
from __future__ import annotations

import logging
import os
import queue
import time
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping
from concurrent.futures import Executor, Future
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

from ..errors import InputError
from .threads import usable_cores
from .worker_pool import WorkerPool

logger = logging.getLogger(__name__)

WATCH_S = 5.0         # between two looks at those who are waited for
LOST_AFTER_S = 60.0   # of trouble without a pause: workers come and go, and connections are made again

Name = TypeVar("Name", bound=Hashable)
Result = TypeVar("Result")


@contextmanager
def make_executor(num_processes: int) -> Iterator[Executor | None]:
    """Executor of `num_processes` fresh processes, or None for 0, or where the system gives no processes: the work is then done in this
    one, and the log says so."""
    if num_processes < 0:
        raise InputError(f"The number of processes is {num_processes}; expected 0 (in this process) or more.")
    if num_processes == 0:
        yield None
        return
    try:
        pool = WorkerPool(num_processes, _one_thread)
    except (OSError, ImportError, NotImplementedError) as error:  # how a system without them says so
        logger.warning("No worker processes can be started (%s); everything is done in this process.", error)
        yield None
        return
    with pool as executor:
        yield executor


class WatchedExecutor(Executor):
    """An executor on other machines that can say when nobody is left there to work.

    `trouble() -> str`: why nothing can be expected of it any more, "" while all is well.
    """

    def __init__(self, executor: Executor, trouble: Callable[[], str]) -> None:
        self._executor, self.trouble = executor, trouble

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        return self._executor.submit(fn, *args, **kwargs)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self._executor.shutdown(wait)


@contextmanager
def dask_executor(address: str, timeout_s: float = 20.0) -> Iterator[Executor]:
    """Executor over the Dask cluster whose scheduler is at `address` ('tcp://host:8786').

    Raises InputError where Dask is not installed, no scheduler or no worker answers within `timeout_s`, or the workers run another
    version of this package.
    """
    try:
        from dask.distributed import Client
    except ImportError as error:
        raise InputError("--dask needs Dask; install it with pip install 'spineclue_v2[dask]'.") from error
    try:
        client = Client(address, timeout=timeout_s)
    except (OSError, ValueError) as error:
        raise InputError(f"No Dask scheduler answers at {address} ({error}); start one with 'dask scheduler'.") from error
    with client:
        _check_workers(client, address, timeout_s)
        executor = client.get_executor()
        try:
            yield WatchedExecutor(executor, lambda: _dask_trouble(client, address))
        finally:
            executor.shutdown(wait=False)  # what is still out there may be so for ever


def _dask_trouble(client: Any, address: str) -> str:
    if client.status != "running":
        return f"the Dask scheduler at {address} does not answer any more"
    try:
        return "" if client.scheduler_info(n_workers=-1)["workers"] else f"no Dask worker is left at {address}"
    except Exception as error:  # whatever a lost connection looks like
        return f"the Dask scheduler at {address} does not answer any more ({type(error).__name__})"


def package_version() -> str:
    """Version of this package where the call runs."""
    from ..version import __version__

    return __version__


def _check_workers(client: Any, address: str, timeout_s: float) -> None:
    # Without workers every task would wait for ever, and another version would write other files.
    try:
        client.wait_for_workers(1, timeout=timeout_s)
    except TimeoutError:
        raise InputError(f"The Dask scheduler at {address} has no workers; start some with 'dask worker {address}'.") from None
    try:
        found = client.submit(package_version, pure=False).result(timeout=timeout_s)
    except Exception as error:
        raise InputError(f"The Dask workers at {address} cannot run spineclue_v2 ({sentence(error)}); install it there too.") from error
    if found != package_version():
        raise InputError(f"The Dask workers at {address} run spineclue_v2 {found}, here it is {package_version()}; install the same "
                         "version on both sides.")


def run_tasks(function: Callable[..., Result], tasks: Mapping[Name, tuple[Any, ...]], executor: Executor | None = None,
              num_processes: int = 0, description: str = "", progress: bool = True) -> tuple[dict[Name, Result], dict[Name, str]]:
    """Run `function(*arguments)` for each name in `tasks`; results and failures (name -> sentence), in the order of `tasks`.

    `executor` wins over `num_processes`; 0 processes run everything in this process. `function` and its arguments must be
    picklable unless everything runs in-process. KeyboardInterrupt cancels what has not begun.
    """
    results: dict[Name, Result] = {}
    failures: dict[Name, str] = {}
    if not tasks:
        return results, failures
    if executor is None:
        with make_executor(min(num_processes, len(tasks))) as own:
            _collect(function, tasks, own, results, failures, description, progress)
    else:
        _collect(function, tasks, executor, results, failures, description, progress)
    order = {name: i for i, name in enumerate(tasks)}
    return ({name: results[name] for name in sorted(results, key=order.__getitem__)},
            {name: failures[name] for name in sorted(failures, key=order.__getitem__)})


def _collect(function: Callable[..., Result], tasks: Mapping[Name, tuple[Any, ...]], executor: Executor | None,
             results: dict[Name, Result], failures: dict[Name, str], description: str, progress: bool) -> None:
    from tqdm import tqdm

    def run(name: Name, call: Callable[[], Result]) -> None:
        try:
            results[name] = call()
        except Exception as error:
            failures[name] = sentence(error)
        bar.update()

    with tqdm(total=len(tasks), desc=description, disable=not progress, unit="case") as bar:
        if executor is None:
            for name, arguments in tasks.items():
                run(name, partial(function, *arguments))
            return
        futures: dict[Future[Result], Name] = {}
        broken: list[Name] = []
        for name, arguments in tasks.items():
            try:
                futures[executor.submit(function, *arguments)] = name
            except BrokenProcessPool:
                broken.append(name)
        try:
            for future in _completed(futures, getattr(executor, "trouble", lambda: "")):
                if not future.cancelled() and isinstance(future.exception(), BrokenProcessPool):
                    broken.append(futures[future])
                else:
                    run(futures[future], future.result)
            if broken:
                # Memory may have run out because there were several. Alone, one after another, they have all of it.
                if isinstance(executor, WorkerPool):
                    executor.release()
                with make_executor(1) as own:
                    assert own is not None  # there were processes a moment ago
                    for name in sorted(broken, key=list(tasks).index):
                        run(name, own.submit(function, *tasks[name]).result)
        except ExecutorLost as error:
            for future, name in futures.items():
                future.cancel()
                if name not in results and name not in failures:
                    failures[name] = f"not done: {error}; run again, finished cases are kept"
        except KeyboardInterrupt:
            for future in futures:
                future.cancel()
            raise


class ExecutorLost(Exception):
    """Nobody is left to work on what was sent out."""


def _completed(futures: Collection[Future[Result]], trouble: Callable[[], str]) -> Iterator[Future[Result]]:
    """The futures as they end; ExecutorLost where `trouble` lasts, for then none of the others ever will."""
    ended: queue.SimpleQueue[Future[Result]] = queue.SimpleQueue()
    for future in futures:
        future.add_done_callback(ended.put)
    since = 0.0
    for _ in futures:
        while True:
            try:
                future = ended.get(timeout=WATCH_S)
                break
            except queue.Empty:
                reason = trouble()
            if not reason:
                since = 0.0
            elif not since:
                since = time.monotonic()
            elif time.monotonic() - since > LOST_AFTER_S:
                raise ExecutorLost(reason)
        since = 0.0
        yield future


def sentence(error: BaseException) -> str:
    """An exception as one sentence for a table of failures; unexpected kinds carry their type and are logged in full."""
    if isinstance(error, InputError):
        return str(error)
    if isinstance(error, BrokenProcessPool):
        return ("its worker process died (out of memory, or a crash in a library); run again with fewer processes (-np), finished cases "
                "are kept")
    if isinstance(error, MemoryError):
        return "out of memory; run again with fewer processes (-np)"
    logger.debug("unexpected failure", exc_info=error)
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def default_processes(memory_gb_each: float = 3.0) -> int:
    """Worker count from usable cores and free memory (`memory_gb_each` GB per worker), at most 8."""
    try:
        free_gb = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9
    except (AttributeError, OSError, ValueError):
        free_gb = 8.0
    return max(1, min(8, int(usable_cores()), int(free_gb / memory_gb_each)))


def _one_thread() -> None:
    # Workers fill the cores by being many: one thread each, for ITK, blosc2 and the linear algebra behind numpy.
    os.environ["ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"] = "1"
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["BLOSC_NTHREADS"] = "1"
