"""Threads that an interrupted program does not wait for.

The pools of `concurrent.futures` are waited for at the end of the program, so Ctrl-C would have to
wait for every endpoint that has not answered.
"""

import queue
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import Any


class Workers:
    """A pool of daemon threads; leaving its `with` block drops what has not begun."""

    def __init__(self, count: int) -> None:
        self._jobs: queue.SimpleQueue[tuple[Future, Callable[[], Any]] | None] = queue.SimpleQueue()
        self._count = count
        for _ in range(count):
            threading.Thread(target=self._work, daemon=True).start()

    def submit(self, function: Callable[..., Any], *args: Any) -> Future:
        """Have a thread call the function."""
        future: Future = Future()
        self._jobs.put((future, lambda: function(*args)))
        return future

    def map(self, function: Callable[..., Any], *arguments: Iterable[Any]) -> list[Any]:
        """Return the function's results in order; raises what the first failing call raised."""
        futures = [self.submit(function, *args) for args in zip(*arguments, strict=True)]
        return [future.result() for future in futures]

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            future, call = job
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(call())
                except BaseException as error:
                    future.set_exception(error)
            del job, future, call  # a thread that waits keeps nothing alive

    def __enter__(self) -> "Workers":
        """Return the pool."""
        return self

    def __exit__(self, *_error: object) -> None:
        """Let the threads end after what they are at."""
        try:
            while (job := self._jobs.get_nowait()) is not None:
                job[0].cancel()
        except queue.Empty:
            pass
        for _ in range(self._count):
            self._jobs.put(None)
