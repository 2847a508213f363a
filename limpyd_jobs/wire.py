"""Sends a command and reads its reply, with nothing around it.

redis-py takes a connection out of its pool and puts it back for each command, watches the server for maintenance and
counts for its metrics: about as long as the command itself takes in Redis. Here a few connections stay out of the pool,
for whoever comes next. All else is redis-py's: making a connection, its settings, encoding, health checks, replies.
"""

from __future__ import annotations

import os
import select
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import redis
from redis.exceptions import ConnectionError, NoScriptError, RedisError, ResponseError, TimeoutError

hiredis: Any
try:
    import hiredis
except ImportError:  # it comes with redis[hiredis]; without it all is done in Python
    hiredis = None

MAX_SPARES = 10
SHARE = 10  # of the connections that a pool may have, one in so many may be a spare
AWAKE_SECONDS = 0.0002  # what a worker may wait for a reply without sleeping
MOST_MISSES = 5  # in a row, after which it sleeps
PAUSED_REPLIES = 500  # for so many
_SPARES = "_limpyd_jobs_spares"
# redis-py wants to know the command before its version 5.3, and says that it does not since
_NAME = ("EVALSHA",) if tuple(map(int, redis.__version__.split(".")[:2])) < (5, 3) else ()


class Vigil:
    """Waits for replies awake: to be woken takes a process longer than most scripts take.

    It lets others run meanwhile that want to, ends after a moment, and pauses where replies take longer than that.
    """

    def __init__(self) -> None:
        self._misses = self._pause = 0
        self._poll: Any = None
        self._socket: Any = None  # that it looks at

    def wait(self, connection: Any) -> None:
        """Wait until a reply begins to come, for `AWAKE_SECONDS` at most; it is not read."""
        if self._pause:
            self._pause -= 1
            return
        try:
            if connection._sock is not self._socket:
                self._poll = select.poll()
                self._poll.register(connection._sock, select.POLLIN)
                self._socket = connection._sock
            poll = self._poll.poll
        except (AttributeError, TypeError, ValueError):  # no socket, or a closed one: reading says what is wrong
            return
        end = time.perf_counter() + AWAKE_SECONDS
        while not poll(0):
            if time.perf_counter() > end:
                self._note_miss()
                return
            os.sched_yield()
        self._misses = 0

    def _note_miss(self) -> None:
        self._misses += 1
        if self._misses == MOST_MISSES:
            self._misses, self._pause = 0, PAUSED_REPLIES


CAN_BE_AWAKE = hasattr(select, "poll") and hasattr(os, "sched_yield")  # not on Windows


class _Thread(threading.local):
    """What holds for the commands of a thread.

    Attributes:
        vigil: waits for the replies, where nothing else has to run in the process.
    """

    vigil: Vigil | None = None


this_thread = _Thread()


def execute(client: Any, command: Callable[[], Sequence[Any]], packed: bytes | None = None) -> Any:
    """The reply to a command that is safe to repeat: it is sent again when the connection breaks, as redis-py does.

    Args:
        command: gives it.
        packed: it as Redis reads it, where that is known.
    Raises:
        RedisError: as `client.execute_command`.
    """
    pool = client.connection_pool
    spares = pool.__dict__.setdefault(_SPARES, [])
    connection = _take(pool, spares)
    try:
        connection.send_packed_command((packed or pack_command(command()),))
        if this_thread.vigil is not None:
            this_thread.vigil.wait(connection)
        reply = connection.read_response()
    except ResponseError:  # an answer: the connection is as good as before
        _keep(pool, spares, connection)
        raise
    except BaseException as error:  # what comes next on this connection may be the reply that was not read
        connection.disconnect()
        pool.release(connection)
        if _is_repeated(error, connection):
            return client.execute_command(*command())
        raise
    _keep(pool, spares, connection)
    return reply


class Sent:
    """A command that was sent, and whose reply is read later."""

    def __init__(self, client: Any, command: Callable[[], Sequence[Any]]) -> None:
        self._pool = client.connection_pool
        self._spares = self._pool.__dict__.setdefault(_SPARES, [])
        self._connection: Any = _take(self._pool, self._spares)
        try:
            self._connection.send_packed_command((pack_command(command()),))
        except BaseException as error:
            self._give_up()
            if not isinstance(error, (RedisError, UnicodeError)):
                raise

    def reply(self) -> Any:
        """The reply; None: the command is to be sent again, as the connection broke, or Redis has not the script."""
        if self._connection is None or self._connection.pid != os.getpid():  # another process waits for it
            return None
        try:
            reply = self._connection.read_response()
        except NoScriptError:
            self._keep()
            return None
        except ResponseError:
            self._keep()
            raise
        except BaseException as error:
            is_repeated = _is_repeated(error, self._connection)
            self._give_up()
            if is_repeated:
                return None
            raise
        self._keep()
        return reply

    def drop(self) -> None:
        """Leave the reply unread: its connection is closed."""
        if self._connection is not None and self._connection.pid == os.getpid():
            self._give_up()

    def _keep(self) -> None:
        connection, self._connection = self._connection, None
        _keep(self._pool, self._spares, connection)

    def _give_up(self) -> None:
        connection, self._connection = self._connection, None
        connection.disconnect()
        self._pool.release(connection)


def pack(texts: Iterable[Any]) -> bytes:
    """Some arguments of a command as Redis reads them."""
    encoded = [text if isinstance(text, bytes) else str(text).encode() for text in texts]
    return b"".join([b"$%d\r\n%b\r\n" % (len(one), one) for one in encoded])


def pack_command(command: Sequence[Any]) -> bytes:
    """A command as Redis reads it."""
    if hiredis is not None:
        packed: bytes = hiredis.pack_command(tuple(command))
        return packed
    return b"*%d\r\n" % len(command) + pack(command)


def _is_repeated(error: BaseException, connection: Any) -> bool:
    """Is a command sent again after an error, by the settings of its connection?"""
    if not isinstance(error, TimeoutError):
        return isinstance(error, ConnectionError)
    return bool(connection.retry_on_timeout) or TimeoutError in getattr(connection.retry, "_supported_errors", ())


def release_spares(pool: Any) -> None:
    """Give the spare connections of a pool back to it."""
    spares = pool.__dict__.get(_SPARES, [])
    while spares:
        pool.release(spares.pop())


def _take(pool: Any, spares: list[Any]) -> Any:
    while spares:
        try:
            connection = spares.pop()
        except IndexError:  # another thread was quicker
            break
        if connection.pid == os.getpid():  # else it belongs to the process that forked this one
            return connection
    return pool.get_connection(*_NAME)


def _keep(pool: Any, spares: list[Any], connection: Any) -> None:
    if len(spares) < MAX_SPARES and len(spares) < pool.max_connections // SHARE:
        spares.append(connection)
    else:
        pool.release(connection)
