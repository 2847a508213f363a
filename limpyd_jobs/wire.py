"""Sends a command and reads its reply, with nothing around it.

redis-py takes a connection out of its pool and puts it back for each command, watches the server for maintenance and
counts for its metrics: about as long as the command itself takes in Redis. Here a few connections stay out of the pool,
for whoever comes next. All else is redis-py's: making a connection, its settings, encoding, health checks, replies.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any

import redis
from redis.exceptions import ConnectionError, ResponseError, TimeoutError

MAX_SPARES = 10
SHARE = 10  # of the connections that a pool may have, one in so many may be a spare
_SPARES = "_limpyd_jobs_spares"
# redis-py wants to know the command before its version 5.3, and says that it does not since
_NAME = ("EVALSHA",) if tuple(map(int, redis.__version__.split(".")[:2])) < (5, 3) else ()


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
        if packed is None:
            connection.send_command(*command())
        else:
            connection.send_packed_command((packed,))
        reply = connection.read_response()
    except ResponseError:  # an answer: the connection is as good as before
        _keep(pool, spares, connection)
        raise
    except BaseException as error:  # what comes next on this connection may be the reply that was not read
        connection.disconnect()
        pool.release(connection)
        if isinstance(error, ConnectionError):
            return client.execute_command(*command())
        raise
    _keep(pool, spares, connection)
    return reply


class Sent:
    """Commands that were sent in one go, and are safe to repeat: their replies are read later.

    Meanwhile Redis works on them. When the connection breaks they are sent again.

    Args:
        behind: others, whose replies are read before: Redis runs these after them.
    """

    def __init__(self, client: Any, commands: Sequence[bytes | Sequence[Any]], behind: Sent | None = None) -> None:
        self._commands = commands
        self._pool = client.connection_pool
        self._spares = self._pool.__dict__.setdefault(_SPARES, [])
        self._connection: Any = None
        self._follower: Sent | None = None
        with suppress(ConnectionError, TimeoutError):  # they are sent again when their replies are asked for
            if behind is not None and behind._connection is not None:
                self._connection, behind._follower = behind._connection, self
            else:
                self._connection = _take(self._pool, self._spares)
            self._send()

    def _send(self) -> None:
        try:
            for command in self._commands:
                packed = [command] if isinstance(command, bytes) else self._connection.pack_command(*command)
                self._connection.send_packed_command(packed)
        except BaseException:
            self._connection.disconnect()  # whoever is before reads nothing from it any more, and gives it back
            raise

    def replies(self) -> list[Any]:
        """A reply to each command; of one that failed, its ResponseError.

        Raises:
            RedisError: the connection broke twice, or no reply came in time.
        """
        try:
            if self._connection is not None:
                return self._read()
        except ConnectionError:
            release_spares(self._pool)  # they may have broken together
        self._connection = _take(self._pool, self._spares)
        try:
            self._send()
        except BaseException:
            self._pool.release(self._connection)
            raise
        return self._read()

    def _read(self) -> list[Any]:
        connection, follower = self._connection, self._follower
        self._connection = self._follower = None
        try:
            replies = [_reply(connection) for _ in self._commands]
        except BaseException:  # what comes next on this connection may be a reply that was not read
            connection.disconnect()
            self._pool.release(connection)
            if follower is not None:
                follower._connection = None
            raise
        if follower is None:
            _keep(self._pool, self._spares, connection)
        return replies


def _reply(connection: Any) -> Any:
    try:
        return connection.read_response()
    except ResponseError as error:
        return error


def pack(texts: Iterable[Any]) -> bytes:
    """Some arguments of a command as Redis reads them."""
    encoded = [text if isinstance(text, bytes) else str(text).encode() for text in texts]
    return b"".join([b"$%d\r\n%b\r\n" % (len(one), one) for one in encoded])


def pack_command(command: Sequence[Any], more: int = 0) -> bytes:
    """A command as Redis reads it, or its beginning when `more` arguments follow."""
    return b"*%d\r\n" % (len(command) + more) + pack(command)


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
