"""What a worker holds beside its running job: claims for which it has asked ahead, and ends that it has yet to send."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

from ..fields import Writes
from ..transitions import Claim, End, Ended, Exchanged, SentCall, Taken

LINGER_SECONDS = 0.02  # how long an end may wait for others, and a job that was claimed ahead run without being noted
AGAIN_SECONDS = 0.5  # after a failure
LOOK_SECONDS = 0.01  # how old what is known of the statuses of jobs that were claimed ahead may be, when one begins


@dataclass(slots=True)
class Done:
    """A job that ended well, whose end is to be sent: with what is needed to tell of it then."""

    job: Any
    queue: Any
    result: Any
    end: End
    outcome: Ended | Exception | None = None
    answer: Any = None  # the future of whoever waits for the outcome in an event loop
    is_last_step: bool = False  # has the job nothing to do once its end is recorded?


class Look(NamedTuple):
    """When the statuses of the claims were seen: after so many writes of this process, and by the monotonic clock."""

    writes: int = -1
    at: float = 0.0


@dataclass
class Fetch:
    """An exchange that is on its way: the ends that it records, and how many claims it asks for."""

    sent: SentCall[Exchanged]
    done: list[Done]
    claims_count: int
    look: Look


class Ahead:
    """The claims that have not begun, and the ends that are not sent.

    Args:
        settle: sends the ends that are there and notes the running job, from the thread of this object.

    A thread sees to it that neither has to wait for a job that takes long. Whoever sends ends does so under `lock`, one
    at a time: so a repeated call finds what it has recorded.
    """

    def __init__(self, settle: Callable[[], None]) -> None:
        self.lock = threading.RLock()
        self.is_sending = False
        self.claims: deque[Taken] = deque()
        self.statuses: dict[str, str] = {}  # of the claims, by ident, as they were seen last
        self.fetch: Fetch | None = None
        self.unsent: list[Done] = []
        self.sent: deque[Done] = deque()  # by the thread: the worker has yet to tell of them
        # claimed ahead, begun, and not noted as RUNNING; and when it began
        self.running: tuple[Claim, str] | None = None
        self.may_have_more = False  # did the last exchange give all the claims that it was asked for?
        self.look = Look()
        self._settle = settle
        self._wake = threading.Event()
        self._must_stop = threading.Event()
        self._thread: threading.Thread | None = None

    @contextmanager
    def sending(self) -> Iterator[None]:
        """Hold the lock for an exchange; whoever comes in between in the same thread, from a handler, finds it so."""
        with self.lock:
            self.is_sending = True
            try:
                yield
            finally:
                self.is_sending = False

    def new_look(self) -> Look:
        """A look that is taken now."""
        return Look(Writes.count, time.monotonic())

    @property
    def must_look(self) -> bool:
        """May a status have changed: was one written here, or is it a while since somebody looked?"""
        return self.look.writes != Writes.count or time.monotonic() - self.look.at > LOOK_SECONDS

    def wake(self) -> None:
        """There is something to settle, if the worker does not come to it before."""
        if not self._wake.is_set():
            if self._thread is None:
                self._thread = threading.Thread(target=self._linger, name="limpyd-jobs-ahead", daemon=True)
                self._thread.start()
            self._wake.set()

    def _linger(self) -> None:
        while True:
            self._wake.wait()
            self._wake.clear()
            waited = self._waits()
            if self._must_stop.wait(LINGER_SECONDS / 2):
                return
            now = self._waits()
            try:
                if any(one is not None and one is other for one, other in zip(waited, now, strict=True)):
                    self._settle()
                elif now != (None, None):
                    self._wake.set()  # these came since, and it may be that nobody wakes
            except Exception:  # the worker will meet it, too, but perhaps not soon
                self._must_stop.wait(AGAIN_SECONDS)
                self._wake.set()

    def _waits(self) -> tuple[Done | None, tuple[Claim, str] | None]:
        """What waits: the oldest of the ends, and the job that runs without being noted."""
        oldest = self.unsent[:1]
        return oldest[0] if oldest else None, self.running

    def stop(self) -> None:
        """End the thread."""
        if self._thread is not None:
            self._must_stop.set()
            self._wake.set()
            self._thread.join()
            self._thread = None
            self._must_stop.clear()
