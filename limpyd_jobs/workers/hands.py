"""Threads that do what is handed to them, one thing each at a time."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any


class Hands:
    """Up to `count` threads, started when they are needed.

    They are daemons: a process that ends at once does not wait for them, as for those of `concurrent.futures`.
    """

    def __init__(self, count: int, name: str) -> None:
        self.count = count
        self._name = name
        self._work: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._changed = threading.Condition()
        self._busy = 0  # what is being done, and what waits

    def submit(self, work: Callable[[], Any]) -> Future[Any]:
        """Hand something over; more than there are threads waits for one."""
        future: Future[Any] = Future()
        with self._changed:
            self._busy += 1
            if self._busy > len(self._threads) < self.count:
                name = f"{self._name}-{len(self._threads) + 1}"
                thread = threading.Thread(target=self._serve, name=name, daemon=True)
                self._threads.append(thread)
                thread.start()
        self._work.put((future, work))
        return future

    def _serve(self) -> None:
        while (found := self._work.get()) is not None:
            future, work = found
            result, error = None, None
            try:
                result = work()
            except BaseException as raised:  # of every kind: it is for whoever asked
                error = raised
            with self._changed:
                self._busy -= 1
                self._changed.notify_all()
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)
            del future, work, result, error, found  # else what they hold lives until the next one comes

    @property
    def free(self) -> int:
        """How many things can be handed over that are begun at once."""
        return self.count - self._busy

    def wait_until_free(self, count: int, seconds: float) -> bool:
        """Wait until so many threads have nothing to do, `seconds` at most; answers whether they have."""
        with self._changed:
            return self._changed.wait_for(lambda: self.free >= count, seconds)

    def close(self) -> None:
        """End the threads that have nothing to do, and the others when they are done."""
        with self._changed:
            threads, self._threads = self._threads, []
        for _ in threads:
            self._work.put(None)
