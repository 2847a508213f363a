"""What the tests stand on: a Redis server of their own, worker processes, waiting on a condition."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import redis

from limpyd_jobs import embedded

ROOT = Path(__file__).resolve().parent.parent

# How long to wait for what comes in well under a second, before it is believed not to come at all: a busy machine may
# take long. Less than the 30 seconds of a lease and of a worker's `timeout`, which must not make a condition true.
PATIENCE_SECONDS = 25.0
PROCESS_SECONDS = 60.0  # for what a process is to do: it imports all of it first, and several may start together

T = TypeVar("T")


def wait_until(condition: Callable[[], T], timeout: float = PATIENCE_SECONDS, message: str = "") -> T:
    """The first true value of the condition.

    Args:
        timeout: in seconds.
        message: what was waited for, for the failure.
    Raises:
        AssertionError: it was not true in time.
    """
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(
                f"not within {timeout} seconds: {message or getattr(condition, '__name__', condition)}"
            )
        time.sleep(0.005)


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class RedisServer:
    """A redis-server for tests, in a temporary directory: on a unix socket, and on a free TCP port if asked.

        with RedisServer(tcp=True, options={"requirepass": "secret"}) as server:
            client = server.client(password="secret")

    It is the embedded package's, or what LIMPYD_JOBS_REDIS_SERVER names. It persists nothing, unless `appendonly`.
    """

    def __init__(
        self, *, tcp: bool = False, appendonly: bool = False, options: Mapping[str, str] | None = None
    ) -> None:
        # a short path whatever TMPDIR is: the address of a unix socket holds about 100 bytes
        self.directory = tempfile.mkdtemp(prefix="limpyd-jobs-test-", dir="/tmp")
        self.socket_path = os.path.join(self.directory, "redis.sock")
        self.port = free_port() if tcp else 0
        self.appendonly = appendonly
        self.options = dict(options or {})
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> RedisServer:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def settings(self) -> dict[str, Any]:
        """What a client over the unix socket needs: keyword arguments of `redis.Redis` and of `database.connect`."""
        return {"unix_socket_path": self.socket_path, "db": 0}

    @property
    def tcp_settings(self) -> dict[str, Any]:
        assert self.port, "the server was not asked to listen on TCP"
        return {"host": "127.0.0.1", "port": self.port, "db": 0}

    @property
    def url(self) -> str:
        return f"unix://{self.socket_path}?db=0"

    @property
    def tcp_url(self) -> str:
        return "redis://{host}:{port}/{db}".format(**self.tcp_settings)

    @property
    def log(self) -> str:
        path = Path(self.directory, "redis.log")
        return path.read_text(errors="replace") if path.exists() else ""

    def client(self, **settings: Any) -> redis.Redis:
        """A new client, with text as replies."""
        return redis.Redis(**{"protocol": 2, **self.settings, "decode_responses": True, **settings})

    def start(self) -> None:
        """Start it, and wait until it answers."""
        options = {
            "port": str(self.port),
            "bind": "127.0.0.1",
            "unixsocket": self.socket_path,
            "unixsocketperm": "700",
            "dir": self.directory,
            "logfile": os.path.join(self.directory, "redis.log"),
            "save": "",
            "appendonly": "yes" if self.appendonly else "no",
            **self.options,
        }
        Path(self.socket_path).unlink(missing_ok=True)
        arguments = [word for name, value in options.items() for word in (f"--{name}", value)]
        self.process = subprocess.Popen(
            [embedded.find_binary(), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        wait_until(self._answers, message="the redis-server answers")

    def stop(self) -> None:
        """End it in order: what it persists is complete."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it as a crash would."""
        self._end(signal.SIGKILL)

    def restart(self, how: Callable[[], None] | None = None) -> None:
        """Stop it (or `how`, for instance `self.kill`) and start it again, on the same socket and port."""
        (how or self.stop)()
        self.start()

    def close(self) -> None:
        """End it and remove its directory."""
        self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)

    def _end(self, number: signal.Signals) -> None:
        if self.process is not None:
            self.process.send_signal(number)
            self.process.wait(timeout=20)
            self.process = None

    def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, f"the redis-server ended at its start:\n{self.log}"
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
                connection.settimeout(5)
                connection.connect(self.socket_path)
                connection.sendall(b"PING\r\n")
                return connection.recv(64).startswith((b"+PONG", b"-NOAUTH"))
        except OSError:
            return False


class Process:
    """A program of its own, with what it prints in a file.

        with Process([sys.executable, "-c", "print('hello')"]) as process:
            process.wait_for_output("hello")

    Python finds the checkout; the rest of the environment is ours and `environment`.
    """

    def __init__(
        self, arguments: Sequence[str], *, environment: Mapping[str, str] | None = None, cwd: str | Path = ROOT
    ) -> None:
        self.arguments = list(arguments)
        self.environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
            "PYTHONUNBUFFERED": "1",
            **(environment or {}),
        }
        descriptor, self.output_path = tempfile.mkstemp(prefix="limpyd-jobs-output-")
        with os.fdopen(descriptor, "wb") as output:
            self.process = subprocess.Popen(
                self.arguments,
                cwd=cwd,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def output(self) -> str:
        """All that it has printed so far, both streams."""
        return Path(self.output_path).read_text(errors="replace")

    def is_running(self) -> bool:
        return self.process.poll() is None

    def wait_for_output(self, text: str, timeout: float = PROCESS_SECONDS, times: int = 1) -> str:
        """Wait until it has printed the text (that many times); gives all the output."""

        def printed() -> bool:
            if self.output.count(text) >= times:
                return True
            # it may have printed between the first look and its end: so a second one
            assert self.is_running() or self.output.count(text) >= times, (
                f"ended with {self.process.returncode} without printing {text!r}:\n{self.output}"
            )
            return False

        try:
            wait_until(printed, timeout)
        except AssertionError as error:
            raise AssertionError(f"{text!r} was not printed {times} times ({error}):\n{self.output}") from None
        return self.output

    def wait(self, timeout: float = PROCESS_SECONDS) -> int:
        """The exit code, when it ends by itself."""
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {timeout} seconds:\n{self.output}") from None

    def send_signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def stop(self, number: signal.Signals = signal.SIGTERM, timeout: float = PROCESS_SECONDS) -> int:
        """Ask it to end; gives the exit code."""
        if self.is_running():
            self.send_signal(number)
        return self.wait(timeout)

    def kill(self) -> None:
        """End it as a crash would."""
        if self.is_running():
            self.process.kill()
        self.process.wait()

    def close(self) -> None:
        """End it, whatever it does, and remove its output."""
        self.kill()
        Path(self.output_path).unlink(missing_ok=True)


class WorkerProcess(Process):
    """The command `limpyd-jobs-worker` with these arguments, from the checkout, on the server given.

    `database` is a URL, handed over in the environment (LIMPYD_JOBS_DATABASE), as `--database` is for the test to give.
    """

    def __init__(
        self,
        *arguments: str,
        database: str | None = None,
        environment: Mapping[str, str] | None = None,
        cwd: str | Path = ROOT,
    ) -> None:
        named = {} if database is None else {"LIMPYD_JOBS_DATABASE": database}
        super().__init__(
            [sys.executable, "-m", "limpyd_jobs.scripts.worker", *arguments],
            environment={**named, **(environment or {})},
            cwd=cwd,
        )
