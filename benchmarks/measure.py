"""The measurements: what is added, run and counted to get each figure."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import probe
from processes import Failed, Setup, end
from servers import PostgresServer, RedisServer, last_lines

Server = RedisServer | PostgresServer

POLL_SECONDS = 0.02
# Until the first job of a worker that starts, and then without any job.
START_TIMEOUT_SECONDS = 40.0
STALL_TIMEOUT_SECONDS = 20.0
# After the last job began: for what is recorded about it.
SETTLE_SECONDS = 0.3
# The jobs of a latency that are not counted: the worker's first ones.
LATENCY_SKIP = 20
# Of two workers: until the second one is up, too.
SKIP_WITH_TWO = 0.2
CALIBRATION_JOBS = 300
FEWEST_JOBS = 300
DEEP_JOBS = 5000

RATES = ("add", "bulk", "run", "run2")
LATENCIES = ("p50", "p99")
COUNTS = (
    "bytes_waiting",
    "bytes_ended",
    "add_trips",
    "run_trips",
    "add_commands",
    "run_commands",
)
FIGURES = (*RATES, *LATENCIES, *COUNTS)


@dataclass(frozen=True)
class Plan:
    """How much is measured.

    Attributes:
        jobs: at most so many in a measurement.
        seconds: about as long as a measurement shall take; a slow contender gets fewer jobs.
        latency_jobs, latency_interval: how many jobs are added to an idle worker, and the seconds between them.
        idle_seconds: for a worker that has connected, until it waits for a job.
        depths: the numbers of waiting jobs for `deep`.
    """

    rounds: int
    jobs: int
    seconds: float
    latency_jobs: int
    latency_interval: float
    idle_seconds: float
    depths: tuple[int, ...]


@dataclass(frozen=True)
class Counters:
    """What the server has counted so far."""

    reads: int = 0
    commands: int = 0
    memory: int = 0

    @classmethod
    def of(cls, server: Server) -> Counters:
        """What it says now; zeros for another server than Redis."""
        if not isinstance(server, RedisServer):
            return cls()
        stats: dict[str, Any] = server.client.info("stats")
        memory: dict[str, Any] = server.client.info("memory")
        return cls(stats["total_reads_processed"], stats["total_commands_processed"], memory["used_memory"])


# What `Counters.of` itself adds between two calls of it: two commands, each a read.
OWN_COMMANDS = 2


class Measurement:
    """One contender on one server; each method is a measurement and answers figures.

    Args:
        database: the number of the only one to be emptied; None for all of the server.
    """

    def __init__(self, setup: Setup, server: Server, plan: Plan, database: int | None = None) -> None:
        self.setup, self.server, self.plan, self.database = setup, server, plan, database
        self.book_path = setup.work / "book"
        self.jobs = plan.jobs
        self.errors: dict[str, str] = {}

    # --- rounds

    def calibrate(self) -> None:
        """Run a few jobs: so that all is compiled and cached, and to know how many fill the time of a measurement."""
        self._empty()
        self._book(CALIBRATION_JOBS)
        added = CALIBRATION_JOBS / self.setup.call("add", CALIBRATION_JOBS, book=self.book_path)
        ran, _ = self._run(1)
        fitting = int(min(added, ran) * self.plan.seconds)
        self.jobs = max(min(fitting, self.plan.jobs), min(FEWEST_JOBS, self.plan.jobs))

    def round(self) -> dict[str, float]:
        """All figures once; one that failed is missing, and is not tried again in later rounds."""
        figures: dict[str, float] = {}
        for step in (self.one_process, self.two_processes, self.latency):
            if step.__name__ not in self.errors:
                try:
                    figures |= step()
                except Failed as error:
                    self.errors[step.__name__] = str(error)
        return figures

    def one_process(self) -> dict[str, float]:
        """Add one at a time, then run with one worker; counted meanwhile: round trips, commands and memory."""
        self._empty()
        self._book(self.jobs)
        empty = Counters.of(self.server)
        seconds = self.setup.call("add", self.jobs, book=self.book_path)
        time.sleep(SETTLE_SECONDS)
        waiting = Counters.of(self.server)
        rate, _ = self._run(1)
        ended = Counters.of(self.server)
        return {"add": self.jobs / seconds, "run": rate, **self._counts(empty, waiting, ended)}

    def _counts(self, empty: Counters, waiting: Counters, ended: Counters) -> dict[str, float]:
        if not isinstance(self.server, RedisServer):
            return {}
        n = self.jobs
        return {
            "bytes_waiting": (waiting.memory - empty.memory) / n,
            "bytes_ended": (ended.memory - empty.memory) / n,
            "add_trips": (waiting.reads - empty.reads - OWN_COMMANDS) / n,
            "run_trips": (ended.reads - waiting.reads - OWN_COMMANDS) / n,
            "add_commands": (waiting.commands - empty.commands - OWN_COMMANDS) / n,
            "run_commands": (ended.commands - waiting.commands - OWN_COMMANDS) / n,
        }

    def two_processes(self) -> dict[str, float]:
        """Add in bulk, if the contender can, then run with two workers."""
        self._empty()
        self._book(self.jobs)
        seconds = self.setup.call("bulk", self.jobs, book=self.book_path) if "bulk" in self.setup.roles else None
        figures = {} if seconds is None else {"bulk": self.jobs / seconds}
        if seconds is None:
            self.setup.call("add", self.jobs, book=self.book_path)
        _, figures["run2"] = self._run(2)
        return figures

    def latency(self) -> dict[str, float]:
        """From add to start, while one worker has nothing else to do."""
        if "latency" not in self.setup.roles:
            return {}
        self._empty()
        n = self.plan.latency_jobs + LATENCY_SKIP
        book = self._book(n)
        self._wait_for_disconnection()
        with self.setup.workers(1, self.book_path) as workers:
            self._wait_for_connection()
            self.setup.call("latency", n, self.plan.latency_interval, book=self.book_path, timeout=120)
            self._wait_for(book, n, workers)
        found = sorted(book.latencies(LATENCY_SKIP))
        return {"p50": quantile(found, 0.5) * 1000, "p99": quantile(found, 0.99) * 1000}

    # --- depth

    def deep_preload(self, depth: int) -> None:
        """Fill the queue."""
        self._empty()
        self._book(depth + (self.plan.rounds + 1) * DEEP_JOBS)
        if self.setup.call("bulk", depth, book=self.book_path, timeout=1200) is None:
            if depth > 100_000:
                raise Failed("no bulk, and too many jobs to add one at a time")
            self.setup.call("add", depth, book=self.book_path, timeout=1200)

    def deep_round(self, depth: int, number: int) -> dict[str, float]:
        """Add some more jobs to the full queue, then run as many."""
        book = probe.Book(self.book_path)
        seconds = self.setup.call("add", DEEP_JOBS, depth + number * DEEP_JOBS, book=self.book_path)
        done, begin = book.marked(), time.monotonic()
        with self.setup.workers(1, self.book_path) as workers:
            self._wait_for(book, done + DEEP_JOBS, workers)
            end(workers, gracefully=True)
        starts = book.starts(begin)[:DEEP_JOBS]
        return {"add": DEEP_JOBS / seconds, "run": (DEEP_JOBS - 1) / (starts[-1] - starts[0])}

    # --- steps

    def _empty(self) -> None:
        self.server.empty(self.database)
        if "setup" in self.setup.roles:
            self.setup.call("setup")

    def _book(self, n: int) -> probe.Book:
        return probe.create(self.book_path, n)

    def _run(self, count: int) -> tuple[float, float]:
        """Run all jobs of the book; gives the rate of all, and that without the first ones."""
        book = probe.Book(self.book_path)
        with self.setup.workers(count, self.book_path) as workers:
            self._wait_for(book, book.n, workers)
            time.sleep(SETTLE_SECONDS)
        self._wait_for_disconnection()
        repeated = book.repeated()
        if repeated:
            self.errors["twice"] = f"{repeated} of {book.n} jobs ran more than once"
        return book.rate(), book.rate(SKIP_WITH_TWO)

    def _wait_for(self, book: probe.Book, wanted: int, workers: list[Any]) -> None:
        """Wait until so many jobs ran.

        Raises:
            Failed: a worker ended, or no job began for a time.
        """
        done, patience = book.marked(), START_TIMEOUT_SECONDS
        deadline = time.monotonic() + patience
        while done < wanted:
            time.sleep(POLL_SECONDS)
            now = book.marked()
            if now > done:
                done, deadline = now, time.monotonic() + STALL_TIMEOUT_SECONDS
            ended = [worker for worker in workers if worker.poll() is not None]
            if ended or time.monotonic() > deadline:
                what = "a worker ended" if ended else "no job began any more"
                raise Failed(f"{what}, {done} of {wanted} jobs ran: {last_lines(self.setup.log_of_worker, 1)}")

    def _clients(self) -> int:
        if not isinstance(self.server, RedisServer):
            return 0
        clients: dict[str, Any] = self.server.client.info("clients")
        return int(clients["connected_clients"])

    def _wait_for_connection(self) -> None:
        """Wait until a worker has connected, and then until it is idle."""
        deadline = time.monotonic() + START_TIMEOUT_SECONDS
        while isinstance(self.server, RedisServer) and self._clients() <= 1 and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        time.sleep(self.plan.idle_seconds)

    def _wait_for_disconnection(self) -> None:
        """Wait until only the harness is connected: the buffers of others are no memory of jobs."""
        deadline = time.monotonic() + SETTLE_SECONDS * 5
        while self._clients() > 1 and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)


def quantile(ordered: list[float], part: float) -> float:
    """The value that `part` of the others are not above."""
    if not ordered:
        raise Failed("no job ran")
    return ordered[min(len(ordered) - 1, math.ceil(len(ordered) * part) - 1)]


def interleaved(
    measurements: list[Measurement], plan: Plan, tell: Callable[[str], None]
) -> dict[str, list[dict[str, float]]]:
    """All rounds, A B C A B C, so that what disturbs the machine for a while disturbs all of them."""
    rounds: dict[str, list[dict[str, float]]] = {}
    for measurement in list(measurements):
        name = measurement.setup.contender.name
        tell(f"warming up {name}")
        try:
            measurement.calibrate()
        except Failed as error:
            measurement.errors["calibrate"] = str(error)
    ready = [measurement for measurement in measurements if "calibrate" not in measurement.errors]
    for number in range(plan.rounds):
        for measurement in ready:
            name = measurement.setup.contender.name
            tell(f"round {number + 1} of {plan.rounds}: {name}, {measurement.jobs} jobs")
            rounds.setdefault(name, []).append(measurement.round())
    return rounds


def deep(
    make: Callable[[int], Measurement], plan: Plan, tell: Callable[[str], None]
) -> tuple[dict[str, list[dict[str, float]]], dict[str, str]]:
    """The rates of one contender at each depth, with the depths interleaved.

    Args:
        make: gives the measurement of a depth, each in a database of its own, by its position.
    Returns: the rounds of each depth, and the errors.
    """
    figures: dict[str, list[dict[str, float]]] = {}
    errors: dict[str, str] = {}
    measurements = {depth: make(position) for position, depth in enumerate(plan.depths)}
    for depth, measurement in measurements.items():
        tell(f"{measurement.setup.contender.name}: filling a queue with {depth} jobs")
        try:
            measurement.deep_preload(depth)
        except Failed as error:
            errors[str(depth)] = str(error)
    for number in range(plan.rounds):
        for depth, measurement in measurements.items():
            if str(depth) in errors:
                continue
            tell(f"{measurement.setup.contender.name}: round {number + 1} at {depth}")
            try:
                figures.setdefault(str(depth), []).append(measurement.deep_round(depth, number))
            except Failed as error:
                errors[str(depth)] = str(error)
    return figures, errors


def folder_for(root: Path, name: str) -> Path:
    """A directory for the files of a contender."""
    folder = root / "".join(letter if letter.isalnum() else "_" for letter in name)
    folder.mkdir(parents=True, exist_ok=True)
    return folder
