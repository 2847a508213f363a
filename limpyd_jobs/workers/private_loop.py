"""The event loop of a worker that has none: for jobs that are coroutines, one at a time in each thread."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import Coroutine, Iterator
from typing import Any


class PrivateLoop(threading.local):
    """As `asyncio.run`, but the loop is kept for the next coroutine, and with it what belongs to it: connections.

    It is kept as long as all goes well: one that was left in the middle of a step, or with tasks in it, is closed.
    """

    def __init__(self) -> None:
        self._runner: _Runner | None = None

    def run(self, steps: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine to its end, in this thread."""
        if asyncio._get_running_loop() is not None:
            return asyncio.run(steps)  # it raises, and says why
        runner, self._runner = self._runner, None
        if runner is None or runner.pid != os.getpid():  # a fork shares what the loop waits with
            runner = _Runner()
        with runner.closed_unless_well():
            result = runner.loop.run_until_complete(steps)
        self._runner = runner if not runner.loop.is_closed() else None
        return result

    def close(self) -> None:
        """Close the loop of this thread, if there is one."""
        runner, self._runner = self._runner, None
        if runner is not None and runner.pid == os.getpid():
            runner.close()


class _Runner:
    """A loop that is closed with it: also when its thread has ended."""

    def __init__(self) -> None:
        self.loop, self.pid = asyncio.new_event_loop(), os.getpid()

    def __del__(self) -> None:
        if self.pid == os.getpid() and not self.loop.is_running():
            self.loop.close()

    @contextlib.contextmanager
    def closed_unless_well(self) -> Iterator[None]:
        is_well = False
        try:
            yield
            is_well = not asyncio.all_tasks(self.loop)
        finally:
            if not is_well:
                self.close()

    def close(self) -> None:
        """Cancel what is left, and close it, as `asyncio.run` does."""
        loop = self.loop
        try:
            tasks = asyncio.all_tasks(loop)
            for task in tasks:
                task.cancel()
            loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True) if tasks else asyncio.sleep(0))
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.run_until_complete(loop.shutdown_default_executor())
        finally:
            loop.close()


private_loop = PrivateLoop()
"""That of each thread."""
