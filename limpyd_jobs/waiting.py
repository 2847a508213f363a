"""Waiting for jobs, one or thousands: Redis tells of their ends, nobody asks again and again.

Each job has a channel, where the scripts that begin or end it publish its status if its field `follow_up` says that
somebody waits (see note_end in lua/_common.lua). Who waits subscribes first, then has watch.lua write that field and
say how the jobs are: so no end falls between the two. A slow look from time to time finds what nobody has published:
the ends of jobs that workers of version 2 run, and records that were deleted.

What is called from coroutines has the name of the plain function with an `a` before it, as `Job.aadd_job` has:
`wait_all`, `await_all`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Coroutine, Iterable, Iterator
from contextlib import aclosing, closing
from datetime import timedelta
from typing import Any, TypeVar

from redis import Redis
from redis.exceptions import NoPermissionError, RedisError

from . import aio, recipes, transitions
from .database import is_outage
from .exceptions import DatabaseException, InvalidArgument, LimpydJobsException, WaitTimeout
from .retries import seconds_of
from .statuses import ENDS
from .utils import pauses

__all__ = ["as_completed", "await_all", "await_any", "await_completed", "wait_all", "wait_any"]

T = TypeVar("T")
LOOK_SECONDS = 5.0  # between two looks at the records, although somebody would tell
# where nobody may: the user of Redis has no channels, or `follow_up` is a field of the user's
UNTOLD_LOOK_SECONDS = 0.5
CHUNK_JOBS = 500  # of one subscription, and of one look
UNTIL = ("done", "started")


def wait_all(jobs: Iterable[Any], timeout: float | timedelta | None = None, until: str = "done") -> bool:
    """Wait until all these jobs have ended. Returns whether they have.

    A job has ended when it is in SUCCESS, CANCELED, or in ERROR and not about to be tried again; or when its record is
    gone, as retention removes it some time after.

    Args:
        jobs: of any classes, on one database.
        timeout: in seconds, or a timedelta; None: without end. Redis may be down meanwhile, but not at the beginning.
        until: "started": until each runs, or has ended.
    Raises:
        InvalidArgument: a value is not accepted. LimpydJobsException: one of them waits for its own end.
        RedisError: Redis cannot be used, for `Job.retry_for` seconds from the beginning on.
    Redis: watch.lua, and a connection of its own while it waits.
    """
    with closing(_Waiting(_Ears, jobs, timeout, until)) as waiting:
        while _at_once(waiting.some()):
            pass
        return waiting.is_over


def wait_any(jobs: Iterable[T], timeout: float | timedelta | None = None, until: str = "done") -> list[T]:
    """Wait until one of these jobs has ended. Returns those that have; none after the timeout. See `wait_all`."""
    with closing(_Waiting(_Ears, jobs, timeout, until)) as waiting:
        return _at_once(waiting.some())


def as_completed(jobs: Iterable[T], timeout: float | timedelta | None = None) -> Iterator[T]:
    """The jobs in the order in which they end, each as soon as it has; one that is given twice comes once.

    Those that have ended before come first, in the order of their fields `end`. Arguments and errors as for `wait_all`.

    Raises:
        WaitTimeout: not all have ended in time, counted from this call.
    """
    return _in_turn(_Waiting(_Ears, jobs, timeout, "done"))


def _in_turn(waiting: _Waiting) -> Iterator[Any]:
    with closing(waiting):
        while found := _at_once(waiting.some()):
            yield from found
        waiting.check_over()


async def await_all(jobs: Iterable[Any], timeout: float | timedelta | None = None, until: str = "done") -> bool:
    """As `wait_all`, for a coroutine."""
    async with aclosing(_Waiting(_LoopEars, jobs, timeout, until)) as waiting:
        while await waiting.some():
            pass
        return waiting.is_over


async def await_any(jobs: Iterable[T], timeout: float | timedelta | None = None, until: str = "done") -> list[T]:
    """As `wait_any`, for a coroutine."""
    async with aclosing(_Waiting(_LoopEars, jobs, timeout, until)) as waiting:
        return await waiting.some()


def await_completed(jobs: Iterable[T], timeout: float | timedelta | None = None) -> AsyncIterator[T]:
    """As `as_completed`, for `async for`."""
    return _awaited_in_turn(_Waiting(_LoopEars, jobs, timeout, "done"))


async def _awaited_in_turn(waiting: _Waiting) -> AsyncIterator[Any]:
    async with aclosing(waiting):
        while found := await waiting.some():
            for job in found:
                yield job
        waiting.check_over()


# --- How it is done


class _Ears:
    """What is sent and heard while somebody waits: here by plain means, so that no coroutine is ever suspended."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._subscription: Any = None

    async def send(self, call: transitions.Call[T], retry_for: float) -> T:
        answer: T = self._model._send(call, retry_for)
        return answer

    async def subscribe(self, channels: list[str]) -> None:
        """Listen to channels, with a connection of its own; each is confirmed by a message, in this order."""
        client: Any = Redis(connection_pool=self._model.database.connection.connection_pool)
        self._subscription = client.pubsub()
        for start in range(0, len(channels), CHUNK_JOBS):
            self._subscription.subscribe(*channels[start : start + CHUNK_JOBS])

    async def hear(self, seconds: float) -> Any:
        """The next message; None: there was none for so long."""
        # it waits by `select`, so the timeout of the socket does not cut it
        return self._subscription.get_message(timeout=seconds)

    async def pause(self, seconds: float) -> None:
        time.sleep(seconds)

    async def close(self) -> None:
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            subscription.close()


class _LoopEars(_Ears):
    """The same through `redis.asyncio`; its client is not the shared one, whose connections are few."""

    _client: Any = None

    async def send(self, call: transitions.Call[T], retry_for: float) -> T:
        answer: T = await self._model._asend(call, retry_for)
        return answer

    async def subscribe(self, channels: list[str]) -> None:
        self._client = aio.async_client(await asyncio.to_thread(lambda: self._model.database.connection), 1)
        self._subscription = self._client.pubsub()
        for start in range(0, len(channels), CHUNK_JOBS):
            await self._subscription.subscribe(*channels[start : start + CHUNK_JOBS])

    async def hear(self, seconds: float) -> Any:
        return await self._subscription.get_message(timeout=seconds)

    async def pause(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def close(self) -> None:
        subscription, self._subscription = self._subscription, None
        client, self._client = self._client, None
        if subscription is not None:
            await subscription.aclose()
        if client is not None:
            await client.aclose()


class _Waiting:
    """The jobs that somebody waits for and that have not got there yet.

    Written once, as coroutines: with plain ears they go through at once, see `_at_once`.

    Args, errors: as for `wait_all`.
    """

    def __init__(self, ears: type[_Ears], jobs: Iterable[Any], timeout: float | timedelta | None, until: str) -> None:
        self._give_up_at = float("inf") if timeout is None else time.monotonic() + seconds_of("timeout", timeout)
        if until not in UNTIL:
            raise InvalidArgument("until", until, "'done' or 'started'")
        self._is_started_enough = until == "started"
        self._open = {_channel_of(job): job for job in _checked(jobs)}
        self._count = len(self._open)
        self._model = type(next(iter(self._open.values()))) if self._open else None
        self._ears = ears(self._model)
        self._last_channel = next(reversed(self._open), "")  # it is confirmed after all others
        self._is_listening = self._has_looked = False
        self._may_listen = all(recipes.has_follow_up(type(job)) for job in self._open.values())
        self._look_at = 0.0
        self._pauses: Iterator[float] | None = None

    @property
    def is_over(self) -> bool:
        """Have all of them got there?"""
        return not self._open

    def check_over(self) -> None:
        """Raise WaitTimeout if some have not."""
        if self._open:
            raise WaitTimeout(len(self._open), self._count)

    async def some(self) -> list[Any]:
        """The next ones that get there; none at the deadline, or when all have."""
        while self._open:
            is_last = time.monotonic() >= self._give_up_at
            if is_last:  # what nobody has told of counts, too
                self._look_at = 0.0
            found = await self._listen_or_look()
            if found or is_last:
                return found
        return []

    async def _listen_or_look(self) -> list[Any]:
        try:
            return await self._next()
        except NoPermissionError:
            if not self._is_listening:
                raise  # it is about the script
            await self._stop_listening()
            self._may_listen = False
        except (RedisError, DatabaseException) as error:
            if not self._has_looked or not is_outage(error):
                raise
            await self._stop_listening()
            self._pauses = self._pauses or pauses(longest=1)
            await self._ears.pause(min(next(self._pauses), self._left()))
        return []

    async def _next(self) -> list[Any]:
        """One step: look at the records, listen from now on, or hear what is told."""
        seconds = self._look_at - time.monotonic()
        if seconds <= 0:
            return await self._look()
        seconds = min(seconds, self._left())
        if not self._may_listen:
            await self._ears.pause(seconds)
            return []
        if not self._is_listening:
            await self._ears.subscribe(list(self._open))
            self._is_listening = True
            return []
        message = await self._ears.hear(seconds)
        return self._told(message) if message is not None else []

    def _told(self, message: dict[str, Any]) -> list[Any]:
        """What a message says: that a job has got there, or that one is told of everything from now on."""
        channel, text = message["channel"], message["data"]
        if message["type"] == "subscribe" and channel == self._last_channel:
            self._look_at = 0.0  # for the first time, or because the connection was lost and made again
        kind, _, status = str(text).partition(" ")
        is_there = kind == "status" and (status in ENDS or self._is_started_enough)
        job = self._open.pop(channel, None) if message["type"] == "message" and is_there else None
        return [] if job is None else [job]

    async def _look(self) -> list[Any]:
        """Ask Redis about all that are open; also, to be told of them."""
        wanted = ("ENDED", "GONE", "RUNNING") if self._is_started_enough else ("ENDED", "GONE")
        patience = 0 if self._has_looked or self._model is None else min(self._model.retry_for, self._left())
        found: list[tuple[str, str]] = []
        channels = list(self._open)
        for start in range(0, len(channels), CHUNK_JOBS):
            chunk = channels[start : start + CHUNK_JOBS]
            call = _watch(self._open[channel] for channel in chunk)
            answers = await self._ears.send(call, patience)
            for channel, (state, end) in zip(chunk, answers, strict=True):
                if state in wanted:
                    found.append((end, channel))
        self._has_looked, self._pauses = True, None
        self._look_at = time.monotonic() + (LOOK_SECONDS if self._may_listen else UNTOLD_LOOK_SECONDS)
        return [self._open.pop(channel) for _, channel in sorted(found, key=lambda pair: pair[0])]

    def _left(self) -> float:
        return max(self._give_up_at - time.monotonic(), 0)

    async def _stop_listening(self) -> None:
        self._is_listening, self._look_at = False, 0.0
        await self._ears.close()

    def close(self) -> None:
        """Leave no subscription behind."""
        _at_once(self._ears.close())

    async def aclose(self) -> None:
        """The same, for a coroutine."""
        await self._ears.close()


def _checked(jobs: Iterable[Any]) -> Iterator[Any]:
    if not isinstance(jobs, Iterable):
        raise InvalidArgument("jobs", jobs, "an iterable of jobs")
    database = None
    for job in jobs:
        if not callable(getattr(job, "_subject", None)):  # a Job, which this module cannot know
            raise InvalidArgument("jobs", job, "an iterable of jobs")
        if database is not None and type(job).database is not database:
            raise InvalidArgument("jobs", job, "an iterable of jobs on one database")
        if job._claim is not None and job._claim.worker:
            raise LimpydJobsException(f"{job.ident} runs in this process: it cannot wait for its own end")
        database = type(job).database
        yield job


def _channel_of(job: Any) -> str:
    return f"{job._name}:{job.pk.get()}:events"


def _watch(jobs: Iterable[Any]) -> transitions.Call[list[tuple[str, str]]]:
    asked = list(jobs)
    marks = [(job.key, recipes.has_follow_up(type(job))) for job in asked]
    return transitions.watch(asked[0].queue_model.namespace or "", marks)


def _at_once(coroutine: Coroutine[Any, Any, T]) -> T:
    """What a coroutine returns that never waits."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        value: T = done.value
        return value
    raise RuntimeError("it waits for an event loop")
