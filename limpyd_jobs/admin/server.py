"""The embedded server of a directory, for who operates it: start, stop, and how it is."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis

from .. import embedded
from ..database import new_client, show_database

APPEND_ONLY = ("appendonly.aof", "appendonlydir/*")  # of Redis 6 and 7


@dataclass(frozen=True)
class ServerStatus:
    """The embedded server of a directory.

    Attributes:
        state: `running`; `loading` (it is alive, and does not answer yet); `stopped`.
        database: its name, for `--database`.
        pid, version, uptime_seconds, memory_bytes: of the server; None unless it is running.
        data_bytes: the size of its data on the disk.
    """

    directory: str
    state: str
    database: str
    socket: str
    pid: int | None
    version: str | None
    uptime_seconds: int | None
    memory_bytes: int | None
    data_bytes: int


def start_server(directory: str | os.PathLike[str]) -> ServerStatus:
    """Make sure that the server of a directory runs. It stays when this process ends; a second start finds the first.

    Raises:
        EmbeddedServerError: there is no binary, or the server does not come up.
    """
    embedded.start(directory)
    return server_status(directory)


def stop_server(directory: str | os.PathLike[str], timeout_seconds: float = embedded.STOP_TIMEOUT_SECONDS) -> bool:
    """End the server of a directory, and wait until it has; its data stays. False: none ran.

    Raises:
        EmbeddedServerError: it did not end in time.
    """
    return embedded.stop(directory, timeout_seconds)


def server_status(directory: str | os.PathLike[str]) -> ServerStatus:
    """How the server of a directory is; nothing is started or written."""
    root = embedded.real_directory(directory)
    info = _info(root)
    state = "running" if info else "loading" if embedded.is_alive(root) else "stopped"
    return ServerStatus(
        directory=str(root),
        state=state,
        database=show_database({"embedded": str(root)}),
        socket=embedded.socket_path(root),
        pid=info.get("process_id"),
        version=info.get("redis_version"),
        uptime_seconds=info.get("uptime_in_seconds"),
        memory_bytes=info.get("used_memory"),
        data_bytes=_data_bytes(root),
    )


def _info(root: Path) -> dict[str, Any]:
    """What the server says of itself; nothing when it does not answer."""
    client = new_client({"unix_socket_path": embedded.socket_path(root)})
    try:
        return dict(client.info())
    except (redis.RedisError, OSError):  # nobody is there, or it loads its data
        return {}
    finally:
        client.close()


def _data_bytes(root: Path) -> int:
    sizes = 0
    for path in (found for pattern in APPEND_ONLY for found in root.glob(pattern)):
        with suppress(OSError):  # a rewrite has replaced it
            sizes += path.stat().st_size
    return sizes
