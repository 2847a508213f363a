"""Jobs under faults: what is promised about them, counted.

A scenario starts a server, workers and producers as real processes, does them harm, waits until all is quiet again,
and gives a `Tally`. Each run of a job is noted in a *ledger*, a second server that nothing happens to. `SCENARIOS` are
run in short by test_faults.py, and again and again by scripts/soak, with each of the `KINDS` of workers.
"""

from __future__ import annotations

import asyncio
import ctypes
import math
import os
import random
import resource
import signal
import sys
import threading
import time
from asyncio import CancelledError
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import cache
from pathlib import Path
from typing import Any
from zlib import crc32

import redis
from redis.exceptions import OutOfMemoryError, RedisError, ResponseError

from limpyd_jobs import STATUSES, Error, Job, Queue, admin
from limpyd_jobs.database import default_database
from limpyd_jobs.exceptions import DatabaseException
from limpyd_jobs.models import BaseJobsModel

from ..base import PROCESS_SECONDS, Process, RedisServer, wait_until
from ..proxy import Fault, Proxy

QUEUE = "faults"
LEASE_SECONDS = 2
LEDGER_VARIABLE = "FAULTS_LEDGER"
NOT_ANSWERED = (RedisError, DatabaseException)
# Where no worker comes to harm, and each job is to run once: a busy machine may hold one up for longer than above.
LONG_LEASE = "--lease-seconds=30"
IMPATIENT = "?socket_timeout=3"  # where connections hang: ten seconds, by default, are long for a test
CANNOT_START = 2  # the exit code of a worker that doesn't reach its database
ENDED = (STATUSES.SUCCESS, STATUSES.ERROR, STATUSES.CANCELED)
WORKER_OPTIONS = (
    f"--queues={QUEUE}",
    "--job-modules=tests.acceptance.faults",
    f"--lease-seconds={LEASE_SECONDS}",
    "--max-loops=1000000",
    "--no-title",
)


# --- The ledger, and the jobs that write in it


class Ledger:
    """What happened, noted where no fault comes to: a server of its own."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.client: Any = redis.Redis.from_url(url, protocol=2, decode_responses=True, socket_timeout=None)

    def now(self) -> float:
        """The clock of Redis: it is that of the machine, as for the server of the jobs."""
        seconds, micros = self.client.time()
        return float(seconds + micros / 1_000_000)

    def note(self, kind: str, text: str) -> None:
        """Write a line down under `kind`."""
        self.client.rpush(kind, text)

    def notes(self, kind: str) -> list[str]:
        """All that is noted under `kind`, in its order."""
        found: list[str] = self.client.lrange(kind, 0, -1)
        return found

    def count(self, kind: str) -> int:
        """How much is noted under `kind`."""
        return int(self.client.llen(kind))

    def note_run(self, ident: str) -> None:
        """A run begins: what is run, when, and by whom."""
        self.note("runs", f"{ident} {self.now():.6f} {os.getpid()}")

    def runs(self) -> list[tuple[str, float, int]]:
        """All runs so far: the ident, when it began, the process."""
        found = (text.split() for text in self.notes("runs"))
        return [(ident, float(when), int(pid)) for ident, when, pid in found]

    def note_due(self, name: str, when: float) -> None:
        """No run of this identifier (or the last one of this ident) may begin before `when`."""
        self.client.hset("due", name, repr(when))

    def wait_for(self, door: str) -> None:
        """Wait until `open` is called for a door."""
        while not self.client.exists(f"open:{door}"):
            self.client.blpop([f"door:{door}"], 1)

    def open(self, door: str) -> None:
        """Let all through, those of later too."""
        self.client.set(f"open:{door}", "1")
        self.client.rpush(f"door:{door}", *["go"] * 10)


@cache
def own_ledger() -> Ledger:
    """The ledger of this process, which its environment names."""
    return Ledger(os.environ[LEDGER_VARIABLE])


class SilentJob(Job):
    """A short piece of work, which asks nothing of the server of the jobs.

    It has no `on_success`: nobody looks at its end, which may be recorded with those of others.
    """

    queue_name = QUEUE

    def run(self, queue: Any) -> Any:
        own_ledger().note_run(self.ident)
        return self.act()

    def act(self) -> Any:
        """What it does, after its run was noted."""
        time.sleep(0.002)

    def on_lease_lost(self, queue: Any) -> None:
        own_ledger().note("lost leases", self.ident)


class FaultsJob(SilentJob):
    """One that notes its success."""

    def on_success(self, queue: Any, result: Any) -> None:
        own_ledger().note("results", self.ident)


class HeldFaultsJob(FaultsJob):
    """Runs until the door is opened."""

    def act(self) -> None:
        own_ledger().wait_for("held")


class AloneJob(FaultsJob):
    """Looks whether another one with its identifier runs beside it."""

    def act(self) -> None:
        ledger, name = own_ledger(), self.identifier.hget()
        if ledger.client.hincrby("alone", name, 1) != 1:
            ledger.note("problems", f"two jobs with the identifier {name} run at once")
        super().act()
        ledger.client.hincrby("alone", name, -1)


class FailsOnceJob(FaultsJob):
    """Fails in its first run."""

    def act(self) -> None:
        if self.tries.hget() == "1":
            raise ValueError("the first time it fails")


class TwiceJob(FailsOnceJob):
    """Fails in its first run, and may not run again before a second is over.

    That is so as long as its worker lives and keeps its lease: else it is given back, and runs at once.
    """

    def act(self) -> None:
        if self.tries.hget() == "1":
            own_ledger().note_due(self.ident, own_ledger().now() + 1)
        super().act()


class InLoop:
    """What jobs have that are coroutines."""

    async def run(self, queue: Any) -> None:
        job: Any = self
        own_ledger().note_run(job.ident)
        await job.act()

    async def act(self) -> None:
        await asyncio.sleep(0.002)


class LoopJob(InLoop, FaultsJob):
    """A coroutine that notes its success."""


class SilentLoopJob(InLoop, SilentJob):
    """A coroutine at whose end nobody looks."""


class HeldLoopJob(InLoop, FaultsJob):
    """A coroutine that waits until the door is opened."""

    async def act(self) -> None:
        while not own_ledger().client.exists("open:held"):
            await asyncio.sleep(0.05)


class FailsOnceLoopJob(InLoop, FaultsJob):
    """A coroutine that fails in its first run."""

    async def act(self) -> None:
        await asyncio.sleep(0.002)
        if self.tries.hget() == "1":
            raise ValueError("the first time it fails")


class UnprintableError(Exception):
    """Its text cannot be had."""

    def __str__(self) -> str:
        raise ValueError("no text")


def _raise(error: BaseException) -> Callable[[Any], None]:
    def act(job: Any) -> None:
        raise error

    return act


def _recurse(job: Any) -> None:
    _recurse(job)


def _crash(job: Any) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    ctypes.string_at(0)


BAD_DEEDS: dict[str, Callable[[Any], Any]] = {
    "SystemExit": _raise(SystemExit(3)),
    "KeyboardInterrupt": _raise(KeyboardInterrupt()),
    "GeneratorExit": _raise(GeneratorExit()),
    "RecursionError": _recurse,
    "MemoryError": _raise(MemoryError()),
    "CancelledError": _raise(CancelledError()),
    "UnprintableError": _raise(UnprintableError()),
    "ValueError": _raise(ValueError("a surrogate \udc80, a NUL \0, both \ud800\0")),
    "OverflowError": _raise(OverflowError("x" * 2**20)),
    "exits": lambda job: os._exit(1),
    "crashes": _crash,
    "deletes itself": lambda job: job.delete(),
}


class BadJob(FaultsJob):
    """Does what its identifier says, up to the first colon."""

    def act(self) -> None:
        BAD_DEEDS[str(self.identifier.hget()).partition(":")[0]](self)


IN_LOOP: dict[Any, Any] = {
    FaultsJob: LoopJob,
    SilentJob: SilentLoopJob,
    HeldFaultsJob: HeldLoopJob,
    FailsOnceJob: FailsOnceLoopJob,
}
JOB_MODELS: tuple[Any, ...] = (*IN_LOOP, *IN_LOOP.values(), AloneJob, TwiceJob, BadJob)
FAIL_ONCE = {model.get_model_repr() for model in (FailsOnceJob, FailsOnceLoopJob, TwiceJob)}
DEADLY_DEEDS = ("exits", "crashes")


# --- Kinds of workers


@dataclass(frozen=True)
class Kind:
    """A way to run jobs.

    Attributes:
        options: of the command, beside `WORKER_OPTIONS`.
        jobs_at_once: how many jobs its death may make run once more, at most.
        has_loop: are half of its jobs coroutines?
        is_pool: is its process a parent that runs no job?
    """

    name: str
    options: tuple[str, ...] = ()
    jobs_at_once: int = 1
    has_loop: bool = False
    is_pool: bool = False

    def model_for(self, model: Any, identifier: str) -> Any:
        """The class of a job: always the same for one identifier."""
        return IN_LOOP.get(model, model) if self.has_loop and crc32(identifier.encode()) % 2 else model


IN_LOOP_OPTIONS = ("--async", "--concurrency=20")
PLAIN = Kind("plain")
PREFETCH = Kind("prefetch", ("--prefetch=20",), jobs_at_once=20)
THREADS = Kind("threads", ("--threads=8",), jobs_at_once=8)
ASYNC = Kind("async", IN_LOOP_OPTIONS, jobs_at_once=20, has_loop=True)
POOL = Kind("pool", ("--processes=2",), is_pool=True)
ASYNC_POOL = Kind("async pool", ("--processes=2", *IN_LOOP_OPTIONS), jobs_at_once=20, has_loop=True, is_pool=True)
ISOLATED = Kind("isolated", ("--isolate",))
KINDS = (PLAIN, PREFETCH, THREADS, ASYNC, POOL, ASYNC_POOL, ISOLATED)


# --- What came of it


@dataclass(frozen=True)
class Tally:
    """What became of the jobs of a scenario.

    Attributes:
        added: the jobs for which `add_job` returned.
        once, more: the jobs that ran once, and more than once.
        failed: those that ended in ERROR, with an Error that says why.
        extra_runs: all runs but the first one of each job, and but those that jobs asked for.
        lost_leases: how often a worker was told that its job belongs to another by now.
        lost: jobs that never ran, and didn't fail with a reason.
        stuck: jobs that are queued or leased when all is quiet, or whose status says so.
        doubled: jobs with more than one recorded result.
        early: runs before the time of the job.
        problems: what else is wrong, `admin.check()` first.
    """

    scenario: str
    added: int
    once: int
    more: int
    failed: int
    extra_runs: int
    lost_leases: int
    lost: tuple[str, ...] = ()
    stuck: tuple[str, ...] = ()
    doubled: tuple[str, ...] = ()
    early: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()

    @property
    def wrong(self) -> list[str]:
        """All that may not be, a sentence each."""
        kinds = ("lost", "stuck", "doubled", "early", "problems")
        return [f"{kind}: {text}" for kind in kinds for text in getattr(self, kind)]

    def __str__(self) -> str:
        """The tally as a row of a table, under `HEADER`."""
        return ROW.format(
            *(self.scenario, self.added, self.once, self.more, self.failed, len(self.lost), len(self.stuck)),
            *(len(self.doubled), len(self.early), len(self.problems)),
        )


ROW = "{:<36}{:>8}{:>8}{:>8}{:>8}{:>8}{:>8}{:>9}{:>8}{:>10}"
HEADER = ROW.format("scenario", "added", "once", "more", "failed", "lost", "stuck", "doubled", "early", "problems")


@dataclass(frozen=True)
class _Record:
    status: str | None
    queued: str | None
    identifier: str | None


def _records(client: Any) -> dict[str, _Record]:
    """The jobs that there are, by ident."""
    found = {}
    for model in JOB_MODELS:
        pks = sorted(client.smembers(f"{model._name}:collection"))
        pipeline = client.pipeline(transaction=False)
        for pk in pks:
            pipeline.hmget(f"{model._name}:{pk}:hash", "status", "queued", "identifier")
        for pk, values in zip(pks, pipeline.execute(), strict=True):
            found[f"{model.get_model_repr()}:{pk}"] = _Record(*values)
    return found


def _explained(client: Any) -> set[str]:
    """The idents of the jobs that an Error is about."""
    pipeline = client.pipeline(transaction=False)
    for pk in client.smembers(f"{Error._name}:collection"):
        pipeline.hmget(f"{Error._name}:{pk}:hash", "job_model_repr", "job_pk")
    return {f"{model}:{pk}" for model, pk in pipeline.execute()}


def _history(client: Any, field: str) -> Counter[str]:
    """How often each job is in this list of the queues."""
    keys = (f"{Queue._name}:{pk}:{field}" for pk in client.smembers(f"{Queue._name}:collection"))
    return Counter(ident for key in keys for ident in client.lrange(key, 0, -1))


def _planned_repeats(ident: str, count: int) -> int:
    """How many of the runs of a job but the first are its own doing."""
    model = ident.partition(":")[0]
    if model == BadJob.get_model_repr():
        return count - 1
    return min(count - 1, 1) if model in FAIL_ONCE else 0


def _count_deaths(runs: Iterable[tuple[str, float, int]], records: Mapping[str, _Record]) -> int:
    """How many runs took their process with them."""
    names = {ident: str(record.identifier) for ident, record in records.items()}
    bad = BadJob.get_model_repr()
    return sum(names.get(ident, "").startswith(DEADLY_DEEDS) for ident, _, _ in runs if ident.startswith(f"{bad}:"))


def tally(
    scenario: str,
    client: Any,
    ledger: Ledger,
    *,
    kind: Kind = PLAIN,
    allowed_repeats: int = 0,
    more_problems: Iterable[str] = (),
) -> Tally:
    """Count, when all is quiet.

    Args:
        client: of the server of the jobs, with no fault between; the models must be on this server, too.
        allowed_repeats: how many jobs may run once more as their worker died; so may one for each lease that is lost,
            and those beside a job that took its worker with it.
    """
    records, explained = _records(client), _explained(client)
    added, runs = set(ledger.notes("added")), ledger.runs()
    counts = Counter(ident for ident, _, _ in runs)
    extra = sum(count - 1 - _planned_repeats(ident, count) for ident, count in counts.items())
    lost_leases = ledger.count("lost leases")
    allowed_repeats += _count_deaths(runs, records) * (kind.jobs_at_once - 1)
    successes, errors = _history(client, "success"), _history(client, "errors")
    told = Counter(ledger.notes("results"))
    leased = {*client.zrange("jobs:leases", 0, -1), *client.hkeys("jobs:claims")}
    failed = {ident for ident, record in records.items() if record.status == STATUSES.ERROR and ident in explained}

    def results(ident: str) -> int:
        requeued = 1 if ident.partition(":")[0] in {*FAIL_ONCE, BadJob.get_model_repr()} else 0
        return max(successes[ident] + errors[ident] - requeued, successes[ident], told[ident])

    problems = [str(problem) for problem in admin.check()]
    for ident, record in records.items():
        if record.status == STATUSES.ERROR and ident not in explained:
            problems.append(f"{ident} is in ERROR, and no Error says why")
        if record.status == STATUSES.SUCCESS and not counts[ident]:
            problems.append(f"{ident} is in SUCCESS, and never ran")
    if extra > lost_leases + allowed_repeats:
        reasons = f"{lost_leases} leases were lost, and there are {allowed_repeats} other reasons"
        problems.append(f"{extra} runs were repeated; {reasons}")
    everyone = added | records.keys()
    return Tally(
        scenario=scenario,
        added=len(added),
        once=sum(1 for count in counts.values() if count == 1),
        more=sum(1 for count in counts.values() if count > 1),
        failed=len(failed),
        extra_runs=extra,
        lost_leases=lost_leases,
        lost=tuple(sorted(ident for ident in everyone if not counts[ident] and ident not in failed)),
        stuck=tuple(
            f"{ident}: status {record.status}, queued {record.queued}"
            for ident, record in records.items()
            if record.status not in ENDED or record.queued or ident in leased
        ),
        doubled=tuple(sorted(ident for ident in everyone if results(ident) > 1)),
        early=tuple(_early_runs(runs, records, ledger.client.hgetall("due"))),
        problems=(*problems, *ledger.notes("problems"), *more_problems),
    )


def _early_runs(
    runs: Sequence[tuple[str, float, int]], records: Mapping[str, _Record], due: Mapping[str, str]
) -> Iterator[str]:
    last = {ident: when for ident, when, _ in runs}
    for ident, when, _ in runs:
        record = records.get(ident)
        name = (record and record.identifier) or ""
        if name in due and when < float(due[name]):
            yield f"{ident} began {float(due[name]) - when:.6f} seconds before its time"
    for ident, when in last.items():
        if ident in due and when < float(due[ident]):
            yield f"{ident} was run again {float(due[ident]) - when:.6f} seconds before its time"


# --- Processes whose clocks are wrong

SHIFT_CLOCK = """
import datetime, sys, time
shift, read_clock = float(sys.argv.pop(1)), time.time
class ShiftedDatetime(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls.fromtimestamp(read_clock() + shift, tz)
    @classmethod
    def utcnow(cls):
        return cls.now(datetime.timezone.utc).replace(tzinfo=None)
datetime.datetime = ShiftedDatetime
time.time = lambda: read_clock() + shift
"""
RUN_WORKER = """
import runpy
runpy.run_module("limpyd_jobs.scripts.worker", run_name="__main__", alter_sys=True)
"""
RUN_PRODUCER = """
from tests.acceptance.faults import produce
produce()
"""


@dataclass(frozen=True)
class Clock:
    """What a process believes about the time: its clock is so many seconds off, in this time zone."""

    shift: float = 0
    zone: str = "UTC"


def libfaketime() -> str | None:
    """The library that shifts the clock of a whole process, where it is installed."""
    found = sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))
    return str(found[0]) if found else None


def start_program(program: str, arguments: Sequence[str], environment: Mapping[str, str], clock: Clock) -> Process:
    """A Python program with a clock of its own."""
    environment = {**environment, "TZ": clock.zone}
    if not clock.shift:
        return Process([sys.executable, "-c", program, *arguments], environment=environment)
    library = libfaketime()
    if library:
        faked = {"LD_PRELOAD": library, "FAKETIME": f"{clock.shift:+.0f}"}
        return Process([sys.executable, "-c", program, *arguments], environment={**environment, **faked})
    shifted = [sys.executable, "-c", SHIFT_CLOCK + program, str(clock.shift), *arguments]
    return Process(shifted, environment=environment)


def produce() -> None:
    """A program that adds jobs: `class prefix count delay`, where a delay of 0 is none.

    It begins when the door `start` is open, and repeats what raised.
    """
    name, prefix, count, delay = sys.argv[1:]
    BaseJobsModel.database.connect(default_database())
    ledger = own_ledger()
    ledger.wait_for("start")
    for number in range(int(count)):
        add_until_it_returns(globals()[name], f"{prefix}{number}", ledger, delay=float(delay))


def add_until_it_returns(model: Any, identifier: str, ledger: Ledger, *, delay: float = 0, **options: Any) -> Any:
    """Add a job, again when that raises because Redis doesn't answer, and note that it was added."""
    if delay:
        ledger.note_due(identifier, ledger.now() + delay)
        options["delayed_for"] = delay

    def add() -> Any:
        try:
            return model.add_job(identifier, **options)
        except NOT_ANSWERED:
            return None

    job = wait_until(add, 60, f"{identifier} is added")
    ledger.note("added", job.ident)
    return job


# --- The stage of a scenario


class Crew:
    """Worker processes; each that ends is replaced.

    Attributes:
        processes: those that run now.
        kills: how many were killed.
        deaths: the exit codes of those that ended by themselves.
    """

    def __init__(self, count: int, start: Callable[[int], Process]) -> None:
        self._start = start
        self._ended: list[Process] = []
        self.processes = [start(number) for number in range(count)]
        self.kills = 0
        self.deaths: list[int] = []

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *exception: object) -> None:
        for process in (*self._ended, *self.processes):
            process.close()

    @property
    def output(self) -> str:
        """All that they have printed, also those that have ended."""
        return "\n".join(process.output for process in (*self._ended, *self.processes))

    def wait_until_ready(self) -> None:
        """Wait until all of them take jobs."""
        for process in self.processes:
            process.wait_for_output("Run started.")

    def kill(self, number: int) -> None:
        """Kill one at once, and start another in its place."""
        self.processes[number].kill()
        self.kills += 1
        self._replace(number)

    def revive(self) -> None:
        """Start those again that have ended by themselves."""
        for number, process in enumerate(self.processes):
            if not process.is_running():
                self.deaths.append(process.wait())
                self._replace(number)

    def stop(self) -> list[int]:
        """End all in order; gives their exit codes.

        One that has just taken the place of another is left time to start: before it has handlers, a signal kills it.
        """
        for process in self.processes:
            if process.is_running():
                with suppress(AssertionError):  # one that cannot start ends by itself
                    process.wait_for_output("Run started.")
            if process.is_running():
                process.send_signal(signal.SIGTERM)
        return [process.wait() for process in self.processes]

    def _replace(self, number: int) -> None:
        self._ended.append(self.processes[number])
        self.processes[number] = self._start(number)


class Stage:
    """Where a scenario is played: the server of the jobs, the ledger, a proxy before the server.

    The models of this process are on the server while it is entered.

    Args:
        scenario: its name, for the tally.
        is_proxied: do workers and producers go through the proxy?
        options: of the database that workers and producers are given, as in its URL.
        server: the server, when it must have options.
        kind: of the workers.
    """

    def __init__(
        self,
        scenario: str,
        *,
        is_proxied: bool = False,
        server: RedisServer | None = None,
        options: str = "",
        kind: Kind = PLAIN,
    ) -> None:
        self.scenario = scenario if kind is PLAIN else f"{scenario}, {kind.name}"
        self.kind = kind
        self.is_proxied = is_proxied
        self.options = options
        self.server = server or RedisServer(tcp=True)
        self.crews: list[Crew] = []
        self.problems: list[str] = []
        self.deaths_are_expected = False
        self._stack = ExitStack()

    def __enter__(self) -> Stage:
        with ExitStack() as stack:
            stack.enter_context(self.server)
            self.ledger = Ledger(stack.enter_context(RedisServer()).url)
            self.proxy = stack.enter_context(Proxy("127.0.0.1", self.server.port))
            self.url = (self.proxy.url if self.is_proxied else self.server.tcp_url) + self.options
            self.client: Any = self.server.client()
            self.use(self.server.tcp_url)
            Queue.get_queue(QUEUE)  # so that workers have something to wait for
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    @staticmethod
    def use(url: str) -> None:
        """Bring the models of this process to another address of the server."""
        wait_until(lambda: _connect(url), PROCESS_SECONDS, "the database can be used")

    @property
    def environment(self) -> dict[str, str]:
        """For the processes of the scenario."""
        return {"LIMPYD_JOBS_DATABASE": self.url, LEDGER_VARIABLE: self.ledger.url}

    def start_workers(
        self, count: int, *options: str, clocks: Sequence[Clock] = (Clock(),), url: str | None = None
    ) -> Crew:
        """So many workers, with the clocks in turn."""
        environment = {**self.environment, **({"LIMPYD_JOBS_DATABASE": url} if url else {})}

        def start(number: int) -> Process:
            clock = clocks[number % len(clocks)]
            return start_program(RUN_WORKER, [*WORKER_OPTIONS, *self.kind.options, *options], environment, clock)

        crew = self._stack.enter_context(Crew(count, start))
        self.crews.append(crew)
        return crew

    def start_producer(
        self, model: Any, prefix: str, count: int, *, delay: float = 0, clock: Clock = Clock()
    ) -> Process:
        """A program that adds so many jobs, when the door `start` is open."""
        arguments = [model.__name__, prefix, str(count), str(delay)]
        return self._stack.enter_context(start_program(RUN_PRODUCER, arguments, self.environment, clock))

    def add(self, model: Any, identifier: str, **options: Any) -> Any:
        """Add a job, and note it; where workers have an event loop, some are coroutines."""
        return add_until_it_returns(self.kind.model_for(model, identifier), identifier, self.ledger, **options)

    @contextmanager
    def producing(self, count: int, prefix: str = "") -> Iterator[threading.Thread]:
        """Plain jobs are added in a thread, which has ended when the block is left."""
        with self._adding(lambda: [self.add(FaultsJob, f"{prefix}{number}") for number in range(count)]) as thread:
            yield thread

    @contextmanager
    def producing_all_kinds(
        self, count: int, rng: random.Random, prefix: str = "", *, deadly: bool = True
    ) -> Iterator[threading.Thread]:
        """As `producing`: plain jobs, delayed ones, some that fail once or do bad things, some added twice.

        Args:
            deadly: are there some that take their worker with them? Each costs several leases.
        """
        kinds: list[Any] = [FaultsJob] * 5 + [SilentJob] * 3 + [FailsOnceJob, HeldFaultsJob]
        # limpyd deletes a record in several commands: half of it is left when the connection breaks between two
        deeds = sorted(BAD_DEEDS.keys() - {"deletes itself", *(() if deadly else DEADLY_DEEDS)})
        own = random.Random(rng.random())  # the thread must not take from the numbers of the other

        def add_all() -> None:
            for number in range(count):
                name = f"{prefix}{number}"
                if own.random() < 0.02:
                    self.add(BadJob, f"{own.choice(deeds)}:{name}")
                    continue
                model, delay = own.choice(kinds), own.choice((0, 0, 0, 0.5, 2))
                self.add(model, name, delay=delay)
                if own.random() < 0.3:
                    self.add(model, name)

        with self._adding(add_all) as thread:
            yield thread

    @contextmanager
    def _adding(self, action: Callable[[], Any]) -> Iterator[threading.Thread]:
        errors: list[BaseException] = []

        def add_all() -> None:
            try:
                action()
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=add_all, daemon=True)
        thread.start()
        yield thread
        thread.join(60)
        if thread.is_alive() or errors:
            raise AssertionError(f"not all jobs could be added: {errors}")

    def find_worker(self, rng: random.Random) -> int:
        """The process id of a worker that there is: of a pool, that of a child."""
        if not self.kind.is_pool:
            return rng.choice(self.crews[0].processes).pid
        self.wait_for_runs(1)
        _, _, pid = rng.choice(self.ledger.runs()[-10:])
        return pid

    def send_signal_to_runner(self, rng: random.Random, number: signal.Signals) -> bool:
        """Send a signal to a process that has run one of the last jobs; False when it has ended since."""
        try:
            os.kill(self.find_worker(rng), number)
        except ProcessLookupError:
            return False
        return True

    def runs(self) -> int:
        """How many runs began so far."""
        return self.ledger.count("runs")

    def wait_for_runs(self, count: int, producer: threading.Thread | None = None) -> None:
        """Wait until so many runs began, or until the producer given has ended."""
        self._wait_with_workers(
            lambda: self.runs() >= count or (producer is not None and not producer.is_alive()), f"{count} runs"
        )

    def settle(self, timeout: float = 60) -> None:
        """Wait until nothing is left to do. When that takes too long, the tally says what is stuck."""
        with suppress(AssertionError):
            self._wait_with_workers(self._is_quiet, "all is quiet", timeout)

    def _wait_with_workers(self, condition: Callable[[], bool], message: str, timeout: float = 60) -> None:
        def is_true() -> bool:
            for crew in self.crews:
                crew.revive()
            try:
                return condition()
            except RedisError:  # the server is down at this moment
                return False

        wait_until(is_true, timeout, message)

    def _is_quiet(self) -> bool:
        queued = sum(self.client.scard(f"{model._name}:queued:1") for model in JOB_MODELS)
        return not (queued or self.client.zcard("jobs:leases") or self.client.hlen("jobs:claims"))

    def tally(self, *, allowed_repeats: int = 0) -> Tally:
        """Wait until all is quiet, end the workers, and count."""
        self.use(self.server.tcp_url)
        self.settle()
        for crew in self.crews:
            codes = crew.stop()
            bad = [code for code in crew.deaths if code != CANNOT_START and not self.deaths_are_expected]
            self.problems += [f"a worker ended with {code}:\n{crew.output[-3000:]}" for code in bad]
            self.problems += [f"a worker stopped with {code}" for code in codes if code not in (0, CANNOT_START)]
        repeats = allowed_repeats + sum(crew.kills for crew in self.crews) * self.kind.jobs_at_once
        return tally(
            self.scenario,
            self.client,
            self.ledger,
            kind=self.kind,
            allowed_repeats=repeats,
            more_problems=self.problems,
        )


def _connect(url: str) -> bool:
    try:
        BaseJobsModel.database.connect(url)
    except DatabaseException:
        return False
    return True


def moments(rng: random.Random, count: int, end: int) -> list[int]:
    """So many numbers of runs, in order: when to do harm."""
    return sorted(rng.sample(range(end // 20, end), count))


# --- The scenarios: each takes its random numbers, how many jobs and workers there are, and which kind these are


def broken_connections(rng: random.Random, size: int, workers: int, kind: Kind = PLAIN) -> Tally:
    """Requests that are lost, replies that are lost, delays, on all commands of workers and of a producer."""
    chances: dict[Fault, float] = {"drop": 0.02, "reset": 0.03, "delay": 0.05}
    with Stage("broken connections", is_proxied=True, kind=kind) as stage:
        stage.start_workers(workers).wait_until_ready()
        stage.use(stage.url)
        stage.proxy.fail_at_random(chances, rng)
        with stage.producing(size):
            stage.wait_for_runs(size * 9 // 10)
        stage.proxy.calm()
        stage.problems += [f"no request met the fault {fault!r}" for fault in chances if not stage.proxy.counts[fault]]
        return stage.tally()


def killed_workers(rng: random.Random, size: int, workers: int, kind: Kind = PLAIN) -> Tally:
    """SIGKILL of workers at random moments; each runs one job at most, so each kill repeats one at most."""
    kills = max(size // 100, 2)
    with Stage("killed workers", kind=kind) as stage:
        crew = stage.start_workers(workers)
        with stage.producing(size):
            for moment in moments(rng, kills, size):
                stage.wait_for_runs(moment)
                crew.kill(rng.randrange(len(crew.processes)))
        return stage.tally()


def killed_children(rng: random.Random, size: int, workers: int, kind: Kind = PLAIN) -> Tally:
    """Workers in one pool: SIGKILL of its children at random moments, SIGHUP in between, and SIGKILL of the parent.

    A child that is killed repeats one job at most. The children of a parent that is killed end after their jobs.
    """
    kills = min(max(size // 100, 2), 12)  # the pool waits longer after each
    with Stage("killed children", kind=kind) as stage:
        crew = stage.start_workers(1, f"--processes={workers}")
        crew.wait_until_ready()  # before that, SIGHUP would end it
        with stage.producing(size):
            for number, moment in enumerate(moments(rng, kills, size)):
                stage.wait_for_runs(moment)
                if number == kills // 2:
                    crew.kill(0)
                    crew.wait_until_ready()
                elif number % 2:
                    crew.processes[0].send_signal(signal.SIGHUP)
                else:
                    _, _, pid = rng.choice(stage.ledger.runs()[-workers:])
                    with suppress(ProcessLookupError):  # it has been replaced meanwhile
                        os.kill(pid, signal.SIGKILL)
        return stage.tally(allowed_repeats=kills * kind.jobs_at_once)


def killed_redis(rng: random.Random, size: int, workers: int, kind: Kind = PLAIN) -> Tally:
    """SIGKILL of the server, which writes each command to its disk before it replies."""
    server = RedisServer(tcp=True, appendonly=True, options={"appendfsync": "always"})
    with Stage("killed Redis", server=server, kind=kind) as stage:
        stage.start_workers(workers).wait_until_ready()
        with stage.producing(size):
            for moment in moments(rng, 6, size * 9 // 10):
                stage.wait_for_runs(moment)
                server.restart(server.kill)
        return stage.tally()


def doubled_adds(rng: random.Random, size: int, workers: int, kind: Kind = PLAIN) -> Tally:
    """Several programs and threads add the same identifiers at the same moment, before workers run and meanwhile."""
    half = size // 2
    with Stage("doubled adds", kind=kind) as stage:
        producers = [stage.start_producer(AloneJob, "before ", half) for _ in range(3)]
        _together(stage, producers, lambda: [stage.add(AloneJob, f"before {number}") for number in range(half)])
        waiting, different = Queue.count_waiting_jobs(QUEUE), len(set(stage.ledger.notes("added")))
        if (waiting, different) != (half, half):
            stage.problems.append(f"{half} identifiers were added as {different} jobs, of which {waiting} wait")

        stage.ledger.client.delete("open:start", "door:start")
        stage.start_workers(workers).wait_until_ready()
        producers = [stage.start_producer(AloneJob, "meanwhile ", half) for _ in range(3)]
        _together(stage, producers, lambda: [stage.add(AloneJob, f"meanwhile {number}") for number in range(half)])
        return stage.tally()


def _together(stage: Stage, producers: Sequence[Process], also: Callable[[], Any]) -> None:
    """Let programs begin at the same moment, and a thread of ours with them."""
    blocked = len(producers)
    wait_until(
        lambda: stage.ledger.client.info("clients")["blocked_clients"] >= blocked,
        PROCESS_SECONDS,
        "all are at the door",
    )
    stage.ledger.open("start")
    also()
    codes = [producer.wait(60) for producer in producers]
    stage.problems += [f"a producer ended with {code}: {producers[0].output}" for code in codes if code]


def delayed_jobs(rng: random.Random, size: int, workers: int, kind: Kind = PLAIN) -> Tally:
    """Many jobs that are due at the same moment, and jobs that fail and are delayed a second time."""
    with Stage("delayed jobs", kind=kind) as stage:
        stage.start_workers(workers, LONG_LEASE, "--requeue-times=1", "--requeue-delay-delta=1").wait_until_ready()
        begin = stage.ledger.now()
        twice = [stage.add(TwiceJob, f"twice {number}").ident for number in range(size // 10)]
        a_tenth = stage.ledger.now() - begin  # of what it takes to add the others
        due = math.ceil(stage.ledger.now() + 3 * 10 * a_tenth) + 1
        until = datetime.fromtimestamp(due, timezone.utc)
        for number in range(size):
            stage.ledger.note_due(str(number), due)
            stage.add(FaultsJob, str(number), delayed_until=until)
        if stage.ledger.now() >= due:
            stage.problems.append("the jobs were due before the last was added: the machine is too slow for this size")
        stage.settle()
        runs = Counter(ident for ident, _, _ in stage.ledger.runs())
        stage.problems += [f"{ident} ran once only, and failed then" for ident in twice if runs[ident] < 2]
        return stage.tally()


CLOCKS = (
    Clock(5 * 3600, "Asia/Kolkata"),
    Clock(-7 * 3600, "America/Los_Angeles"),
    Clock(26 * 3600, "Pacific/Auckland"),
)


def wrong_clocks(rng: random.Random, size: int, workers: int, kind: Kind = PLAIN) -> Tally:
    """Workers and producers whose clocks are off by hours, in three time zones."""
    with Stage("wrong clocks", kind=kind) as stage:
        stage.start_workers(workers, LONG_LEASE, clocks=CLOCKS).wait_until_ready()
        producers = [
            stage.start_producer(FaultsJob, f"{clock.zone} {delay} ", size // 6, delay=delay, clock=clock)
            for clock in CLOCKS
            for delay in (0, 1)
        ]
        stage.ledger.open("start")
        codes = [producer.wait(60) for producer in producers]
        stage.problems += [f"a producer ended with {code}" for code in codes if code]
        stage.settle()
        hours = {_hours_off(job.added.hget()) for job in FaultsJob.collection().instances()}
        wanted = {clock.shift / 3600 for clock in CLOCKS}
        if hours != wanted:
            stage.problems.append(f"the clocks were off by {hours} hours, not by {wanted}")
        return stage.tally()


def _hours_off(text: str) -> int:
    seconds = (datetime.fromisoformat(text).replace(tzinfo=timezone.utc) - datetime.now(timezone.utc)).total_seconds()
    return round(seconds / 3600)


def flushed_scripts(rng: random.Random, size: int, workers: int, kind: Kind = PLAIN) -> Tally:
    """SCRIPT FLUSH again and again."""
    with Stage("flushed scripts", kind=kind) as stage:
        stage.start_workers(workers, LONG_LEASE).wait_until_ready()
        with stage.producing(size):
            wait_until(lambda: stage.client.script_flush() and stage.runs() >= size * 9 // 10, 60, "the runs")
        return stage.tally()


def full_memory(rng: random.Random, size: int, workers: int, kind: Kind = PLAIN) -> Tally:
    """No memory left, in the middle: what is refused is not half written, and all goes on when there is room again."""
    limits = {"maxmemory": "24mb", "maxmemory-policy": "noeviction"}
    with Stage("full memory", server=RedisServer(tcp=True, options=limits), kind=kind) as stage:
        stage.start_workers(workers).wait_until_ready()
        held = stage.add(HeldFaultsJob, "held")
        wait_until(stage.runs, message="the held job runs")
        with stage.producing(size // 2, "before "):
            pass
        refused = _fill_memory(stage)
        stage.ledger.open("held")  # Redis may refuse its end now, or accept it: what it needs room for comes later
        _meet_errors(stage, or_else=lambda: held.status.hget() == STATUSES.SUCCESS)
        try:
            wait_until(lambda: not admin.check())
        except AssertionError:
            stage.problems += [f"in between: {problem}" for problem in admin.check()]
        stage.problems += [
            f"{name} was refused and written" for name in refused if FaultsJob.collection(identifier=name)
        ]
        stage.client.delete("full")
        for name in refused:
            stage.add(FaultsJob, name)
        with stage.producing(size // 2, "after "):
            pass
        stage.settle()
        if held.status.hget() != STATUSES.SUCCESS:
            stage.problems.append("the job that ended meanwhile is not in SUCCESS")
        return stage.tally()


def _fill_memory(stage: Stage) -> list[str]:
    """Fill it until jobs are refused; the identifiers of those."""
    refused: list[str] = []

    def add(identifier: str) -> None:
        try:
            job = FaultsJob.add_job(identifier)
        except ResponseError as error:  # before Redis 7, what a script meets is not an OutOfMemoryError
            if isinstance(error, OutOfMemoryError) or "OOM" in str(error):
                refused.append(identifier)
            else:
                stage.problems.append(f"{identifier} was refused: {error}")
        else:
            stage.ledger.note("added", job.ident)

    with suppress(OutOfMemoryError):
        while True:
            stage.client.rpush("full", "x" * 2**16)
    # what comes and goes by itself, buffers for instance, must not make room again
    stage.client.config_set("maxmemory", stage.client.info("memory")["used_memory"] - 2**20)
    # all at once: each may be tried for some seconds
    threads = [threading.Thread(target=add, args=(f"full {number}",)) for number in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if not refused:
        stage.problems.append("the memory was full, and no job was refused")
    return refused


def _meet_errors(stage: Stage, or_else: Callable[[], bool] = lambda: False) -> None:
    """Wait until the server has refused some commands (`or_else`): else the scenario has no sense, and says so."""
    before = _count_errors(stage.client)
    try:
        wait_until(lambda: _count_errors(stage.client) >= before + 3 or or_else())
    except AssertionError:
        stage.problems.append("no worker met the errors of the server")


def _count_errors(client: Any) -> int:
    """How often the server replied with an error. (By kind it doesn't count those of scripts before Redis 7.)"""
    return int(client.info("stats")["total_error_replies"])


def read_only_replica(rng: random.Random, size: int, workers: int, kind: Kind = PLAIN) -> Tally:
    """The server becomes the replica of another one for a moment, and then a master again."""
    options = {"repl-diskless-sync": "yes", "repl-diskless-sync-delay": "0"}
    with Stage("read-only replica", server=RedisServer(tcp=True, options=options), kind=kind) as stage:
        stage.start_workers(workers).wait_until_ready()
        with RedisServer(tcp=True, options=options) as other, stage.producing(size):
            for moment in moments(rng, 2, size * 9 // 10):
                stage.wait_for_runs(moment)
                _swap_roles(stage.client, stage.server, other)
                _meet_errors(stage)
                stage.client.execute_command("REPLICAOF", "NO", "ONE")
        return stage.tally()


def _swap_roles(client: Any, server: RedisServer, other: RedisServer) -> None:
    """Make the server a replica of the other one, which gets its data first. No write is lost."""
    successor: Any = other.client()
    successor.execute_command("REPLICAOF", "127.0.0.1", server.port)
    wait_until(
        lambda: successor.info("replication")["master_link_status"] == "up", PROCESS_SECONDS, "the other has the data"
    )
    client.execute_command("CLIENT", "PAUSE", "20000", "WRITE")
    wait_until(
        lambda: _offset(successor, "slave_repl_offset") >= _offset(client, "master_repl_offset"), PROCESS_SECONDS
    )
    successor.execute_command("REPLICAOF", "NO", "ONE")
    client.execute_command("REPLICAOF", "127.0.0.1", other.port)
    client.execute_command("CLIENT", "UNPAUSE")
    wait_until(lambda: client.info("replication")["master_link_status"] == "up", PROCESS_SECONDS, "it is a replica")
    successor.close()


def _offset(client: Any, name: str) -> int:
    return int(client.info("replication")[name])


def half_open_connections(rng: random.Random, size: int, workers: int, kind: Kind = PLAIN) -> Tally:
    """All connections go dead while jobs run, and new ones too, for a while."""
    with Stage("half-open connections", is_proxied=True, options=IMPATIENT, kind=kind) as stage:
        stage.start_workers(workers).wait_until_ready()
        with stage.producing(size):
            stage.wait_for_runs(rng.randrange(size // 10, size // 2))
            stage.proxy.half_open(rng.choice(("both", "requests", "replies")))
            _wait_for_hung_connection(stage)
            stage.proxy.calm()
        return stage.tally()


def _wait_for_hung_connection(stage: Stage) -> None:
    """Wait until somebody gave a dead connection up, and made another one, as dead."""
    hung = stage.proxy.counts["new and hung"]
    wait_until(lambda: stage.proxy.counts["new and hung"] > hung, PROCESS_SECONDS, "another connection is made")


def mixed_faults(rng: random.Random, size: int, workers: int, kind: Kind = PLAIN) -> Tally:
    """All kinds of harm, one after the other, on all kinds of jobs, by workers with wrong clocks."""
    with harmed("mixed faults", rng, workers, kind) as (stage, harms):
        with stage.producing_all_kinds(size, rng) as producer:
            while producer.is_alive():
                harm = rng.choice(harms)
                harm()
                reached = stage.runs() + rng.randrange(1, max(size // 20, 2))
                stage.wait_for_runs(reached, producer)
        stage.proxy.calm()
        return stage.tally()


def every_fault(rng: random.Random, size: int, workers: int, kind: Kind = PLAIN) -> Tally:
    """As `mixed_faults`, and each kind of harm comes once; no job takes its worker with it."""
    with harmed("every fault", rng, workers, kind) as (stage, harms):
        for harm in rng.sample(harms, len(harms)):
            with stage.producing_all_kinds(size // len(harms), rng, f"{harm.__name__} ", deadly=False):
                harm()
        stage.proxy.calm()
        return stage.tally()


@contextmanager
def harmed(
    scenario: str, rng: random.Random, workers: int, kind: Kind
) -> Iterator[tuple[Stage, list[Callable[[], Any]]]]:
    """A stage with workers whose clocks are wrong, and what can be done to them."""
    options = {"appendfsync": "always", "repl-diskless-sync": "yes", "repl-diskless-sync-delay": "0"}
    server = RedisServer(tcp=True, appendonly=True, options=options)
    with (
        Stage(scenario, is_proxied=True, server=server, options=IMPATIENT, kind=kind) as stage,
        RedisServer(tcp=True, options=options) as other,
    ):
        stage.deaths_are_expected = True  # of jobs that take their worker with them
        requeue = ("--requeue-times=1", "--requeue-delay-delta=1")
        crew = stage.start_workers(workers, *requeue, clocks=(Clock(), *CLOCKS))
        crew.wait_until_ready()
        stage.ledger.open("held")
        stage.use(stage.url)
        yield stage, _harms(stage, crew, other, rng)


def _harms(stage: Stage, crew: Crew, other: RedisServer, rng: random.Random) -> list[Callable[[], Any]]:
    """What may happen at any moment; all is well again after each, or after `calm`."""

    def break_at_random() -> None:
        stage.proxy.fail_at_random({"drop": 0.02, "reset": 0.03, "delay": 0.05}, rng)

    def hang() -> None:
        stage.proxy.half_open(rng.choice(("both", "requests", "replies")))
        _wait_for_hung_connection(stage)
        stage.proxy.calm()

    def refuse() -> None:
        stage.proxy.refuse()
        stage.proxy.break_all()
        number = rng.randrange(len(crew.processes))
        crew.kill(number)
        wait_until(lambda: not crew.processes[number].is_running(), PROCESS_SECONDS, "a worker that cannot connect")
        stage.proxy.accept()

    def fill() -> None:
        stage.client.config_set("maxmemory", 1)
        _meet_errors(stage)
        stage.client.config_set("maxmemory", 0)

    def swap() -> None:
        _swap_roles(stage.client, stage.server, other)
        _meet_errors(stage)
        stage.client.execute_command("REPLICAOF", "NO", "ONE")

    def restart() -> None:
        stage.server.restart(stage.server.kill)

    def flush_scripts() -> None:
        stage.client.script_flush()

    def kill() -> None:
        crew.kill(rng.randrange(len(crew.processes)))

    def kill_one_that_ran() -> None:
        crew.kills += stage.send_signal_to_runner(rng, signal.SIGKILL)

    def freeze() -> None:
        """Stop a worker until its jobs have been given to others, or could have been."""
        begin = stage.ledger.now()
        pid = stage.find_worker(rng)
        with suppress(ProcessLookupError):  # it has ended meanwhile
            os.kill(pid, signal.SIGSTOP)
            try:
                wait_until(lambda: stage.ledger.now() > begin + 1.5 * LEASE_SECONDS, PROCESS_SECONDS)
            finally:
                os.kill(pid, signal.SIGCONT)

    def roll() -> None:
        """Replace the workers of a pool."""
        process = rng.choice(crew.processes)
        if "Run started." in process.output:  # before that, SIGHUP would end it
            process.send_signal(signal.SIGHUP)

    for_pools = [kill_one_that_ran, roll] if stage.kind.is_pool else []
    return [
        break_at_random,
        stage.proxy.calm,
        hang,
        refuse,
        fill,
        swap,
        restart,
        flush_scripts,
        kill,
        freeze,
        *for_pools,
    ]


Scenario = Callable[[random.Random, int, int, Kind], Tally]
# In short: how many jobs there are, and how many workers.
SCENARIOS: dict[Scenario, tuple[int, int]] = {
    broken_connections: (500, 2),
    killed_workers: (2000, 3),
    killed_children: (800, 3),
    killed_redis: (500, 2),
    doubled_adds: (1000, 2),
    delayed_jobs: (1000, 3),
    wrong_clocks: (300, 3),
    flushed_scripts: (500, 2),
    full_memory: (200, 2),
    read_only_replica: (300, 2),
    half_open_connections: (200, 2),
    mixed_faults: (500, 3),
    every_fault: (150, 2),
}


def play(
    scenario: Scenario,
    rng: random.Random,
    size: int | None = None,
    workers: int | None = None,
    kind: Kind = PLAIN,
) -> Tally:
    """Run a scenario, in short unless sizes are given."""
    short = SCENARIOS[scenario]
    return scenario(rng, size or short[0], workers or short[1], kind)


def summed(tallies: Sequence[Tally]) -> Tally:
    """Several tallies of one scenario as one."""

    def total(name: str) -> Any:
        first, *others = (getattr(found, name) for found in tallies)
        for other in others:
            first += other
        return first

    names = (name for name in Tally.__dataclass_fields__ if name != "scenario")
    return Tally(scenario=tallies[0].scenario, **{name: total(name) for name in names})
