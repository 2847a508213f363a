"""The processes of adapters: started in sessions of their own, watched, and ended with all that they have started."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from contenders import HERE, Contender
from servers import last_lines

# Carried in the environment by each process of this run, and by what these start: so that none is left behind.
MARK = f"BENCH_RUN={uuid.uuid4().hex}"

END_TIMEOUT_SECONDS = 5.0


class Failed(Exception):
    """A measurement has no figure; says why."""


@dataclass
class Setup:
    """A contender, ready to be run.

    Attributes:
        work: its directory: the books, the logs, what it writes.
        url: of its database.
        roles: what its adapter can do.
    """

    contender: Contender
    python: str
    work: Path
    url: str
    roles: tuple[str, ...] = ()

    def call(self, role: str, *arguments: float, book: Path | None = None, timeout: float = 600) -> Any:
        """What a role of the adapter answers.

        Raises:
            Failed: it ended with an error, or not in time.
        """
        log = self.work / f"{role}.log"
        with open(log, "wb") as errors:
            process = self._start([role, *map(str, arguments)], book, subprocess.PIPE, errors)
            try:
                output, _ = process.communicate(timeout=timeout)
            except subprocess.TimeoutExpired:
                raise Failed(f"{role}: not done after {timeout:g} s") from None
            finally:
                end([process])
        if process.returncode != 0:
            raise Failed(f"{role}: {last_lines(log, 1) or f'exit code {process.returncode}'}")
        return json.loads(output.splitlines()[-1])

    @contextmanager
    def workers(self, count: int, book: Path) -> Iterator[list[subprocess.Popen[bytes]]]:
        """Run worker processes meanwhile."""
        running: list[subprocess.Popen[bytes]] = []
        try:
            for _ in range(count):
                with open(self.log_of_worker, "wb") as log:
                    running.append(self._start(["work"], book, log, log))
            yield running
        finally:
            end(running)

    @property
    def log_of_worker(self) -> Path:
        """What a worker writes to its output."""
        return self.work / "work.log"

    def _start(self, words: list[str], book: Path | None, output: Any, errors: Any) -> subprocess.Popen[bytes]:
        name, value = MARK.split("=")
        environment = {key: value for key, value in os.environ.items() if not key.startswith("LIMPYD_JOBS_")}
        environment |= {
            name: value,
            "BENCH_URL": self.url,
            "BENCH_BOOK": str(book or ""),
            "BENCH_N": str(book.stat().st_size // 17 if book else 0),
            "BENCH_WORK": str(self.work),
            "PYTHONPATH": os.pathsep.join(filter(None, [self.contender.source, str(HERE)])),
            "PYTHONWARNINGS": "ignore",
        }
        return subprocess.Popen(
            [self.python, str(self.contender.adapter), *words],
            cwd=self.work,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=errors,
            start_new_session=True,
        )


def end(processes: list[subprocess.Popen[bytes]], gracefully: bool = False) -> None:
    """End processes and what they have started.

    Args:
        gracefully: ask first, and wait some seconds.
    """
    if gracefully:
        for process in processes:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
        deadline = time.monotonic() + END_TIMEOUT_SECONDS
        while time.monotonic() < deadline and any(process.poll() is None for process in processes):
            time.sleep(0.01)
    for process in processes:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    for pid in _marked():  # those that have left the group
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _marked() -> list[int]:
    """The processes that carry the mark of this run; none where there is no /proc."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if MARK.encode() in (folder / "environ").read_bytes().split(b"\0") and int(folder.name) != os.getpid():
                found.append(int(folder.name))
    return found
