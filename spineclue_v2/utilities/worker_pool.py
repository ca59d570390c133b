"""Worker processes, each watched for itself: one that dies takes the task it had along, and nothing else.

Python's `ProcessPoolExecutor` gives up the whole pool when one of its processes dies: every case of the folder begins again, and work that
is handed in while the pool falls apart can be left without an answer, so that whoever waits for it waits for ever. Here every process has
a pipe of its own and a thread at the other end of it. Nothing is shared, and the end of a process is the end of its pipe.
"""
from __future__ import annotations

import multiprocessing
import queue
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import Executor, Future
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection, wait
from multiprocessing.reduction import ForkingPickler
from typing import Any

DIED = (EOFError, BrokenPipeError, ConnectionError)   # what a pipe says whose other end is gone
_STARTING = threading.Lock()                          # multiprocessing keeps lists of its own: one start at a time


class WorkerPool(Executor):
    """At most `num_processes` fresh processes, started as they are needed; OSError where the first cannot be.

    `initializer()`, if there is one, runs first in each. A task whose process dies raises BrokenProcessPool, and the next one gets
    another process.
    """

    def __init__(self, num_processes: int, initializer: Callable[[], object] | None = None) -> None:
        # Never forked: torch and ITK hold threads.
        kind = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
        self._context, self._initializer = multiprocessing.get_context(kind), initializer
        self._lock, self._open = threading.Lock(), True
        self._idle = [_Worker(self._context, initializer)]
        self._tasks: queue.SimpleQueue[tuple[Future[Any], tuple[Any, ...]] | None] = queue.SimpleQueue()
        self._threads = [threading.Thread(target=self._serve, name=f"worker {i}", daemon=True) for i in range(num_processes)]
        for thread in self._threads:
            thread.start()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        with self._lock:
            if not self._open:
                raise RuntimeError("cannot schedule new futures after shutdown")
            self._tasks.put((future, (fn, args, kwargs)))
        return future

    def release(self) -> None:
        """End the processes that have nothing to do, with the memory that they hold; the next tasks get new ones."""
        with self._lock:
            idle, self._idle = self._idle, []
        for worker in idle:
            worker.end()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        with self._lock:
            was_open, self._open = self._open, False
        if cancel_futures:
            self._cancel()
        if was_open:
            for _ in self._threads:
                self._tasks.put(None)
        if wait:
            for thread in self._threads:
                thread.join()

    def _cancel(self) -> None:
        kept: list[None] = []
        while True:
            try:
                task = self._tasks.get_nowait()
            except queue.Empty:
                break
            if task is None:
                kept.append(task)
            else:
                task[0].cancel()
        for stop in kept:
            self._tasks.put(stop)

    def _serve(self) -> None:
        """One thread: task after task, each by an idle process or a new one."""
        while (task := self._tasks.get()) is not None:
            future, call = task
            if not future.set_running_or_notify_cancel():
                continue
            try:
                with self._lock:
                    worker = self._idle.pop() if self._idle else None
                worker = worker or _Worker(self._context, self._initializer)
                succeeded, value = worker.run(call)
                if worker.alive:
                    with self._lock:  # before anybody hears of the result, so that `release` finds it
                        self._idle.append(worker)
            except BaseException as error:  # no more processes, or a task that cannot be sent
                succeeded, value = False, error
            if succeeded:
                future.set_result(value)
            else:
                future.set_exception(value)
            del future, task, call, value  # nothing is kept alive while waiting
        self.release()


class _Worker:
    """A process and this end of its pipe."""

    def __init__(self, context: Any, initializer: Callable[[], object] | None) -> None:
        self.alive = True
        self._connection, other = context.Pipe()
        self._process = context.Process(target=_work, args=(other, initializer))
        try:
            with _STARTING:
                self._process.start()
        except BaseException:
            self._connection.close()
            raise
        finally:
            other.close()  # now the process alone holds it

    def run(self, call: tuple[Any, ...]) -> tuple[bool, Any]:
        """(True, result) or (False, exception) of one call."""
        try:
            message = ForkingPickler.dumps(call)
        except Exception as error:
            return False, error
        try:
            self._connection.send_bytes(message)
            wait([self._connection, self._process.sentinel])
            # What it said with its last breath is still in the pipe.
            answer = self._connection.recv_bytes() if self._connection.poll() else None
        except DIED:
            answer = None
        if answer is None:
            self.end()
            return False, BrokenProcessPool("The process that worked on it died.")
        try:
            succeeded, value, told = ForkingPickler.loads(answer)
        except Exception as error:  # made of something that only exists over there
            return False, error
        if not succeeded:
            value.__cause__ = _Remote(told)
        return succeeded, value

    def end(self) -> None:
        """Close the pipe, which ends the process when it has nothing to do, and wait until it has ended."""
        self.alive = False
        self._connection.close()
        self._process.join()


class _Remote(Exception):
    """The traceback of the other process, shown above the one of this."""

    def __str__(self) -> str:
        return f'\n"""\n{self.args[0]}"""'


def _work(connection: Connection, initializer: Callable[[], object] | None) -> None:
    """What a process does: call after call, until the pipe ends."""
    if initializer is not None:
        initializer()
    while True:
        try:
            message = connection.recv_bytes()
        except (*DIED, KeyboardInterrupt):
            return
        try:
            function, args, kwargs = ForkingPickler.loads(message)
            answer = _sendable(True, function(*args, **kwargs))
        except BaseException as error:
            answer = _sendable(False, error, traceback.format_exc())
        try:
            connection.send_bytes(answer)
        except DIED:
            return


def _sendable(succeeded: bool, value: Any, told: str = "") -> Any:
    try:
        return ForkingPickler.dumps((succeeded, value, told))
    except Exception as error:
        kind = f"The result of type {type(value).__name__}" if succeeded else f"{type(value).__name__} ({value})"
        return ForkingPickler.dumps((False, RuntimeError(f"{kind} cannot be sent back: {error}"), told))
