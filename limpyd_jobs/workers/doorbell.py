"""Waiting: for a ring from Redis, or for somebody of this process who wants the worker to look up."""

from __future__ import annotations

import contextlib
import os
import selectors
import threading
from collections.abc import Sequence
from typing import Any

from redis.exceptions import ConnectionError, RedisError, ResponseError

ANSWER_SECONDS = 5  # after the timeout of a BLPOP; a server that has not answered by then is gone
SHORTEST_SECONDS = 0.002  # of a BLPOP: Redis 6.2 takes a millisecond for none, and waits for ever


class Alarm:
    """Wakes whoever waits, from a signal handler or another thread."""

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._reader, False)
        os.set_blocking(self._writer, False)

    def __del__(self) -> None:
        for descriptor in (self._reader, self._writer):
            with contextlib.suppress(OSError):
                os.close(descriptor)

    def fileno(self) -> int:
        """What becomes readable with a ring."""
        return self._reader

    def ring(self) -> None:
        """Wake them; safe in a signal handler."""
        with contextlib.suppress(BlockingIOError):  # the pipe is full: they are awake
            os.write(self._writer, b"!")

    def wait(self, seconds: float) -> None:
        """Wait for a ring, `seconds` at most."""
        with selectors.DefaultSelector() as selector:
            selector.register(self, selectors.EVENT_READ)
            if selector.select(seconds):
                self.clear()

    def clear(self) -> None:
        """Forget the rings so far."""
        with contextlib.suppress(BlockingIOError):
            while os.read(self._reader, 4096):
                pass


class Doorbell:
    """Waits for the doorbells of some queue names, with a connection of its own.

    The wait happens here, not in redis-py: so an alarm ends it at once, and no socket timeout of the user cuts it.
    """

    def __init__(self, client: Any, keys: list[str], alarm: Alarm) -> None:
        pool = client.connection_pool
        self._connection = pool.connection_class(**pool.connection_kwargs)  # not one that the pool counts
        self._keys = keys
        self._alarm = alarm
        self._lock = threading.Lock()
        self.has_refused_news = False  # those that were sent last

    def wait(self, seconds: float, is_exact: bool = False, news: Sequence[Any] = ()) -> bool:
        """Wait for a ring, `seconds` at most. Returns whether there was one.

        Args:
            news: a command that is sent along, in the same round trip. Was it refused: see `has_refused_news`.
            is_exact: come back on time. Redis looks at its own timeouts ten times a second only, so this costs a
                new connection.
        Raises:
            RedisError: the connection failed; the next call makes a new one.
        """
        with self._lock:
            try:
                return self._wait(max(seconds, SHORTEST_SECONDS), 0 if is_exact else ANSWER_SECONDS, news)
            except BaseException:
                self._connection.disconnect()
                raise

    def _wait(self, seconds: float, patience: float, news: Sequence[Any]) -> bool:
        self._connection.connect()
        wait = ("BLPOP", *self._keys, f"{seconds:.3f}")
        self._connection.send_packed_command(self._connection.pack_commands([news, wait] if news else [wait]))
        if news:
            if not self._is_answered(ANSWER_SECONDS, ANSWER_SECONDS):
                return False
            self._read_news()
            if self._connection.can_read(timeout=0):  # a ring that came with that may be read from the socket already
                return self._connection.read_response() is not None
        if not self._is_answered(seconds + patience, patience):
            return False
        return self._connection.read_response() is not None

    def _is_answered(self, seconds: float, patience: float) -> bool:
        """Wait for an answer; False when an alarm comes first, or none came and that is good.

        Raises:
            ConnectionError: it should have come.
        """
        with selectors.DefaultSelector() as selector:
            selector.register(self._connection._sock, selectors.EVENT_READ)
            selector.register(self._alarm, selectors.EVENT_READ)
            ready = [key.fileobj for key, _ in selector.select(seconds)]
        if self._alarm in ready or not (ready or patience):
            self._alarm.clear()
            self._connection.disconnect()  # what Redis may answer now is a token, no job
            return False
        if not ready:
            raise ConnectionError("Redis does not answer")
        return True

    def _read_news(self) -> None:
        try:
            self._connection.read_response()
            self.has_refused_news = False
        except ResponseError:
            self.has_refused_news = True

    def close(self) -> None:
        """Give up the connection."""
        with contextlib.suppress(RedisError):
            self._connection.disconnect()
