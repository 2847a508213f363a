"""What the harness and the adapters of all peers share: the book of jobs that ran, and the command line of an adapter.

The book is a file with a line for each of N jobs: when it was added, when it began first, and how many times it ran.
Every process maps it into its memory, so that a job notes its run in less than a microsecond, whatever library runs it,
in which process or thread.

    BENCH_BOOK    the path of the book
    BENCH_N       the number of jobs in it
    BENCH_URL     the database: redis://127.0.0.1:PORT/0, or a DSN of PostgreSQL
    BENCH_WORK    a directory for files of this run

Times are those of `time.monotonic()`, which all processes of a machine share on Linux. Only the standard library is
imported here, as each peer has an environment of its own.
"""

from __future__ import annotations

import inspect
import json
import mmap
import os
import sys
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import Any

URL = os.environ.get("BENCH_URL", "")
WORK = os.environ.get("BENCH_WORK", "")
N = int(os.environ.get("BENCH_N", "0"))
# The directory of this file, for the PYTHONPATH of processes that a peer starts.
ROOT = str(Path(__file__).resolve().parent)

_FLOAT = 8
_LINE = 2 * _FLOAT + 1

_added: memoryview | None = None
_started: memoryview | None = None
_count: memoryview | None = None


# --- what jobs and adapters call ---


def mark(i: int) -> None:
    """Note that job `i` runs: the body of every job."""
    if _count is None:
        _open()
    if not _count[i]:
        _started[i] = monotonic()
    if _count[i] < 255:
        _count[i] += 1


def added(i: int) -> None:
    """Note that job `i` is added now: right before the call that adds it."""
    if _count is None:
        _open()
    _added[i] = monotonic()


def _open() -> None:
    """Map the book: at the first use, so that it works in processes that were forked and in those that were spawned."""
    global _added, _started, _count
    views = _views(os.environ["BENCH_BOOK"])
    _added, _started, _count = views


def _views(path: str) -> tuple[memoryview, memoryview, memoryview]:
    with open(path, "r+b") as file:
        view = memoryview(mmap.mmap(file.fileno(), 0))
    n = len(view) // _LINE
    return (
        view[: n * _FLOAT].cast("d"),
        view[n * _FLOAT : 2 * n * _FLOAT].cast("d"),
        view[2 * n * _FLOAT : n * _LINE],
    )


# --- what the harness calls ---


def create(path: str | os.PathLike[str], n: int) -> Book:
    """A new book of `n` jobs, none of which has run."""
    with open(path, "wb") as file:
        file.truncate(n * _LINE)
    return Book(path)


class Book:
    """Reads a book, also while jobs are being run."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        self._added, self._started, self._count = _views(self.path)
        self.n = len(self._count)

    def marked(self) -> int:
        """How many jobs ran."""
        return self.n - bytes(self._count).count(0)

    def repeated(self) -> int:
        """How many jobs ran more than once."""
        counts = bytes(self._count)
        return self.n - counts.count(0) - counts.count(1)

    def span(self) -> float:
        """From the start of the first job to that of the last, in seconds."""
        starts = self.starts()
        return starts[-1] - starts[0] if starts else 0.0

    def rate(self, skip: float = 0.0) -> float:
        """Jobs started a second, between the first and the last.

        Args:
            skip: the part of the jobs, from the first on, to leave out: until all workers are up.
        """
        starts = self.starts()
        starts = starts[int(len(starts) * skip) :]
        span = starts[-1] - starts[0] if starts else 0.0
        return (len(starts) - 1) / span if span else 0.0

    def starts(self, since: float = 0.0) -> list[float]:
        """When jobs started, the first one first; those from the time `since` on."""
        return sorted(start for start in self._started if start and start >= since)

    def latencies(self, skip: int = 0) -> list[float]:
        """From add to start, in seconds, of the jobs that ran, without the first `skip`."""
        lines = list(zip(self._added, self._started, strict=True))[skip:]
        return [start - add for add, start in lines if start and add]


# --- the command line of an adapter ---


def main(**roles: Callable[..., Any]) -> None:
    """Run one role of an adapter: `python peers/NAME.py ROLE [ARGUMENT...]`.

    The roles are:
        describe() -> dict: "name", "version", "configuration" and "guarantees" ("ack", "lease", "record", "result").
        setup(): makes what the peer needs before its first job, for example tables. Optional.
        add(n) -> seconds: adds the jobs 0..n-1, one call each; the time of the calls only, without imports and the
            first connection.
        bulk(n) -> seconds: the same by the peer's own means to add many at once; None when it has none.
        work(): runs one worker process in the foreground, until it is killed. It may replace itself (`os.exec...`).
        latency(n, interval): adds the jobs 0..n-1, one each `interval` seconds, with `added(i)` right before.

    The last line on the standard output is the result, as JSON.
    """
    name, *words = sys.argv[1:] or ["help"]
    if name not in roles:
        sys.exit(f"usage: {sys.argv[0]} {'|'.join(roles)} [argument...]")
    role = roles[name]
    parameters = list(inspect.signature(role).parameters)
    values = [float(word) if name == "interval" else int(word) for name, word in zip(parameters, words, strict=False)]
    result = role(*values)
    if name == "describe":
        result["roles"] = sorted(roles)
    sys.stdout.flush()
    print(json.dumps(result))
