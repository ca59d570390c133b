"""One way to fan work out: in-process, over processes, or through any `concurrent.futures.Executor` (Dask's included).

A task that fails never stops the others: failures come back by name, with a sentence.
"""
from __future__ import annotations

import logging
import multiprocessing
import os
from collections.abc import Callable, Hashable, Iterator, Mapping
from concurrent.futures import Executor, Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, TypeVar

from ..errors import InputError

logger = logging.getLogger(__name__)

Name = TypeVar("Name", bound=Hashable)
Result = TypeVar("Result")


@contextmanager
def make_executor(num_processes: int) -> Iterator[Executor | None]:
    """Executor of `num_processes` fresh processes (never forked: torch and ITK hold threads), or None for 0."""
    if num_processes < 0:
        raise InputError(f"The number of processes is {num_processes}; expected 0 (in this process) or more.")
    if num_processes == 0:
        yield None
        return
    kind = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    with ProcessPoolExecutor(num_processes, multiprocessing.get_context(kind), initializer=_one_thread) as executor:
        yield executor


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
        with client.get_executor() as executor:
            yield executor


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

    with tqdm(total=len(tasks), desc=description, disable=not progress, unit="case") as bar:
        if executor is None:
            for name, arguments in tasks.items():
                try:
                    results[name] = function(*arguments)
                except Exception as error:
                    failures[name] = sentence(error)
                bar.update()
            return
        futures: dict[Future[Result], Name] = {executor.submit(function, *arguments): name for name, arguments in tasks.items()}
        try:
            for future in as_completed(futures):
                name = futures[future]
                try:
                    results[name] = future.result()
                except Exception as error:
                    failures[name] = sentence(error)
                bar.update()
        except KeyboardInterrupt:
            for future in futures:
                future.cancel()
            raise


def sentence(error: BaseException) -> str:
    """An exception as one sentence for a table of failures; unexpected kinds carry their type and are logged in full."""
    if isinstance(error, InputError):
        return str(error)
    if isinstance(error, BrokenProcessPool):
        return "a worker process died (out of memory?); run again with fewer processes (-np), finished cases are kept"
    if isinstance(error, MemoryError):
        return "out of memory; run again with fewer processes (-np)"
    logger.debug("unexpected failure", exc_info=error)
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def default_processes(memory_gb_each: float = 3.0) -> int:
    """Worker count from cores and free memory (`memory_gb_each` GB per worker), at most 8."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        free_gb = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9
    except (AttributeError, OSError, ValueError):
        free_gb = 8.0
    return max(1, min(8, cores, int(free_gb / memory_gb_each)))


def _one_thread() -> None:
    # Workers fill the cores by being many: one thread each, for ITK, blosc2 and the linear algebra behind numpy.
    os.environ["ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"] = "1"
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["BLOSC_NTHREADS"] = "1"
