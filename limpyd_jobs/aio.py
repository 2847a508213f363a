"""Clients of `redis.asyncio` for a database: with the settings of the plain one, and one for each event loop."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator
from typing import Any, cast

import redis
from redis import asyncio as redis_asyncio
from redis.asyncio import connection as async_connections
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from . import embedded
from .database import embedded_directory_of, is_replica_error
from .exceptions import EmbeddedServerError

MAX_CONNECTIONS = 50  # whoever comes when all are in use waits for one

async_timeout: Any = cast(Any, async_connections).async_timeout  # Python's, or for 3.10 that of a package

# What the connections of one kind of client have, and those of the other cannot use, or make for themselves.
NOT_SHARED = {"event_dispatcher", "himport_registry", "parser_class", "redis_connect_func", "retry"}
NOT_SHARED_BEGINNINGS = ("maint", "orig_", "oss_")


def async_client(client: Any, max_connections: int = MAX_CONNECTIONS) -> redis_asyncio.Redis:
    """A client of `redis.asyncio` with the settings of a plain one; it has no connection yet.

    It belongs to the event loop that uses it first; close it by `await client.aclose()`.

    Args:
        max_connections: at most so many, and not more than the plain client may have.
    """
    pool = client.connection_pool
    kind = _connection_class(pool.connection_class)
    accepted = _parameters(kind)
    settings = {name: value for name, value in pool.connection_kwargs.items() if name in accepted}
    pool = redis_asyncio.BlockingConnectionPool(
        connection_class=kind,
        max_connections=max(min(max_connections, pool.max_connections), 1),
        timeout=None,
        retry=Retry(NoBackoff(), 1, supported_errors=(redis.ConnectionError,)),  # type: ignore[no-untyped-call,unused-ignore]
        **settings,
    )
    return redis_asyncio.Redis.from_pool(pool)  # it closes its pool


def _connection_class(plain: type) -> Any:
    directory = embedded_directory_of(plain)
    if directory is not None:
        return type("AsyncEmbeddedConnection", (_AsyncEmbeddedConnection,), {"embedded_directory": directory})
    if issubclass(plain, redis.UnixDomainSocketConnection):
        return _AsyncUnixConnection
    return _AsyncSSLConnection if issubclass(plain, redis.SSLConnection) else _AsyncConnection


def _parameters(kind: type) -> set[str]:
    """The settings of a kind of connection that a plain one has, too."""
    makers = (vars(base)["__init__"] for base in kind.__mro__[:-1] if "__init__" in vars(base))
    names = {name for maker in makers for name in inspect.signature(maker).parameters} - NOT_SHARED
    return {name for name in names if not name.startswith(NOT_SHARED_BEGINNINGS)}


class _Cancelable:
    """A connection that loses no cancellation.

    redis-py sends by `asyncio.wait_for`, which until Python 3.11 swallows a cancellation that comes when the command
    has just been written: whoever was to be ended would wait for ever.
    """

    async def send_packed_command(self, command: Any, check_health: bool = True) -> None:
        """See redis-py."""
        connection, redis_pys = cast(Any, self), cast(Any, super())
        if not connection.is_connected:
            await connection.connect()
        if check_health:
            await connection.check_health()
        seconds, connection.socket_timeout = connection.socket_timeout, None  # without it `wait_for` is not used
        try:
            async with async_timeout(seconds):
                await redis_pys.send_packed_command(command, check_health=False)
        except asyncio.TimeoutError:
            raise redis.TimeoutError("Timeout writing to socket") from None
        finally:
            connection.socket_timeout = seconds


class _AsyncConnection(_Cancelable, redis_asyncio.Connection):
    """Over TCP."""


class _AsyncSSLConnection(_Cancelable, redis_asyncio.SSLConnection):
    """Over TLS."""


class _AsyncUnixConnection(_Cancelable, redis_asyncio.UnixDomainSocketConnection):
    """Over a Unix socket."""


class _AsyncEmbeddedConnection(_AsyncUnixConnection):
    """Starts the server of an embedded database again when it was killed, as the plain one does."""

    embedded_directory = ""

    async def _connect(self) -> None:
        try:
            await super()._connect()  # type: ignore[no-untyped-call,unused-ignore]
        except ConnectionRefusedError:
            try:
                await asyncio.to_thread(embedded.start, self.embedded_directory)
            except EmbeddedServerError as error:
                raise redis.ConnectionError(str(error)) from error
            await super()._connect()  # type: ignore[no-untyped-call,unused-ignore]


# By event loop: the plain client, the one for it, and what closes that when the loop ends.
_clients: dict[Any, tuple[Any, redis_asyncio.Redis, AsyncIterator[None]]] = {}


async def async_connection(database: Any) -> redis_asyncio.Redis:
    """The client of a `JobsDatabase` for the running event loop; the same until the database connects elsewhere.

    It is closed when the loop shuts down its asynchronous generators, as `asyncio.run` does.

    Raises:
        DatabaseException: at the first use, as `JobsDatabase.connect`.
    """
    plain = database._direct_connection or await asyncio.to_thread(lambda: database.connection)
    loop = asyncio.get_running_loop()
    known = _clients.get(loop)
    if known is not None and known[0] is plain:
        return known[1]
    for other in [one for one in list(_clients) if one.is_closed()]:
        _clients.pop(other, None)
    client = async_client(plain)
    closer = _close_with_loop(client)
    _clients[loop] = plain, client, closer
    await anext(closer)
    return client


async def close_async_connection() -> None:
    """Close the client of the running event loop, if it has one; the next use makes another."""
    known = _clients.get(asyncio.get_running_loop())
    if known is not None:
        await cast(Any, known[2]).aclose()


async def _close_with_loop(client: redis_asyncio.Redis) -> AsyncIterator[None]:
    """A generator that is begun and never ended: its loop does that, when it shuts down, or is replaced."""
    loop = asyncio.get_running_loop()
    try:
        yield
    finally:
        known = _clients.get(loop)
        if known is not None and known[1] is client:
            del _clients[loop]
        await client.aclose()


async def leave_replica(client: redis_asyncio.Redis, error: BaseException) -> None:
    """Close the connections to a replica, as `database.leave_replica`."""
    if is_replica_error(error):
        await client.connection_pool.disconnect(inuse_connections=False)
