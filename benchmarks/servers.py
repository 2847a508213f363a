"""The servers of a run, which are its own and end with it: Redis, and PostgreSQL for the peers that need it."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import redis

START_TIMEOUT_SECONDS = 30.0
POLL_SECONDS = 0.05
# Whose processes PostgreSQL may be: it refuses to run as root.
UNPRIVILEGED = ("postgres", "nobody")


class ServerError(Exception):
    """A server is not there or does not start."""


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_until_it_answers(process: subprocess.Popen[bytes], answers: Any, log: Path) -> None:
    """Wait for a server that was started.

    Raises:
        ServerError: it ended, or does not answer in time.
    """
    deadline = time.monotonic() + START_TIMEOUT_SECONDS
    while not answers():
        if process.poll() is not None or time.monotonic() > deadline:
            raise ServerError(f"{process.args} does not answer: {last_lines(log)}")
        time.sleep(POLL_SECONDS)


def last_lines(path: Path, count: int = 4) -> str:
    """The end of a log, on one line; without frames and rules."""
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        return ""
    telling = [line.strip(" |│") for line in lines if any(letter.isalnum() for letter in line)]
    return " / ".join(telling[-count:])


class RedisServer:
    """A redis-server on a free TCP port, which persists nothing."""

    def __init__(self, folder: Path) -> None:
        # imported here, so that a broken package is an error of this server only
        from limpyd_jobs import embedded

        folder.mkdir(parents=True, exist_ok=True)
        self.port, self.log = free_port(), folder / "redis.log"
        options = {
            "port": str(self.port),
            "bind": "127.0.0.1",
            "dir": str(folder),
            "logfile": str(self.log),
            "save": "",
            "appendonly": "no",
        }
        words = [word for name, value in options.items() for word in (f"--{name}", value)]
        self.process = subprocess.Popen(
            [embedded.find_binary(), *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        self.client = redis.Redis(port=self.port, decode_responses=True)
        try:
            wait_until_it_answers(self.process, self._answers, self.log)
        except ServerError:
            self.stop()
            raise
        self.version: str = self.client.info("server")["redis_version"]

    def _answers(self) -> bool:
        try:
            return bool(self.client.ping())
        except redis.RedisError:
            return False

    def url(self, database: int = 0) -> str:
        """The address of one of its databases."""
        return f"redis://127.0.0.1:{self.port}/{database}"

    def empty(self, database: int | None = None) -> None:
        """Remove all keys of one database, or of all."""
        client = redis.Redis(port=self.port, db=database or 0)
        with client:
            client.flushall() if database is None else client.flushdb()
            client.memory_purge()

    def stop(self) -> None:
        """End it; there is nothing to save."""
        self.process.kill()
        self.process.wait()


class PostgresServer:
    """A PostgreSQL with the settings that its `initdb` writes, on a free TCP port of 127.0.0.1."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port, self.log = folder, free_port(), folder / "postgres.log"
        binaries = find_postgres()
        self.user = _user_to_run_as()
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        if self.user:
            os.chown(folder, self.user.pw_uid, self.user.pw_gid)
        data = folder / "data"
        self._call([binaries / "initdb", "-D", data, "-U", "bench", "-A", "trust", "--no-sync"])
        with open(self.log, "wb") as log:
            self.process = self._popen(
                [binaries / "postgres", "-D", data, "-p", self.port, "-h", "127.0.0.1", "-k", folder], log
            )
        try:
            wait_until_it_answers(self.process, lambda: self._answers(binaries), self.log)
        except ServerError:
            self.stop()
            raise
        text = subprocess.run([binaries / "postgres", "--version"], capture_output=True, text=True, check=True).stdout
        self.version = re.sub(r"^\D*", "", text).split()[0]

    def url(self, database: int = 0) -> str:
        """The DSN of its database; there is one."""
        return f"postgresql://bench@127.0.0.1:{self.port}/postgres"

    def stop(self) -> None:
        """End it at once, and remove its data."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def empty(self, database: int | None = None) -> None:
        """Remove all tables."""
        self._sql("DROP SCHEMA public CASCADE; CREATE SCHEMA public;")

    def _sql(self, text: str) -> str:
        psql = find_postgres() / "psql"
        done = subprocess.run([psql, "-qAt", self.url(), "-c", text], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise ServerError(done.stderr.strip())
        return done.stdout.strip()

    def _answers(self, binaries: Path) -> bool:
        words = [binaries / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(self.port)]
        return subprocess.run(words, check=False).returncode == 0

    def _as_user(self) -> dict[str, Any]:
        if not self.user:
            return {}
        return {"user": self.user.pw_uid, "group": self.user.pw_gid, "extra_groups": []}

    def _popen(self, words: list[Any], log: Any) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            list(map(str, words)),
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            **self._as_user(),
        )

    def _call(self, words: list[Any]) -> None:
        done = subprocess.run(
            list(map(str, words)), cwd=self.folder, capture_output=True, text=True, check=False, **self._as_user()
        )
        if done.returncode != 0:
            raise ServerError(f"{words[0]}: {done.stderr.strip()[-300:]}")


def find_postgres() -> Path:
    """The directory with the programs of PostgreSQL.

    Raises:
        ServerError: there is none.
    """
    candidates = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    on_path = shutil.which("postgres")
    if on_path:
        candidates.insert(0, Path(on_path).resolve().parent)
    pg_config = shutil.which("pg_config")
    if pg_config:
        done = subprocess.run([pg_config, "--bindir"], capture_output=True, text=True, check=False)
        candidates.append(Path(done.stdout.strip()))
    for folder in candidates:
        if all(os.access(folder / name, os.X_OK) for name in ("postgres", "initdb", "psql", "pg_isready")):
            return folder
    raise ServerError("there is no PostgreSQL on this machine (postgres, initdb, psql and pg_isready are needed)")


def _user_to_run_as() -> pwd.struct_passwd | None:
    """Somebody who is not root, when we are; None for ourselves."""
    if os.getuid() != 0:
        return None
    known = {entry.pw_name: entry for entry in pwd.getpwall()}
    for name in UNPRIVILEGED:
        if name in known:
            return known[name]
    sys.exit("PostgreSQL cannot run as root, and there is no other user to run it as")
