"""What is promised about jobs when everything around them breaks. scripts/soak does the same for hours."""

from __future__ import annotations

import random
import signal
from collections.abc import Callable
from typing import Any

import pytest

from limpyd_jobs import STATUSES, Error, Queue

from ..base import PROCESS_SECONDS, wait_until
from ..proxy import Direction
from . import faults
from .faults import (
    BAD_DEEDS,
    DEADLY_DEEDS,
    IMPATIENT,
    KINDS,
    PLAIN,
    QUEUE,
    BadJob,
    Crew,
    FaultsJob,
    HeldFaultsJob,
    Kind,
    Scenario,
    Stage,
    Tally,
)

# many processes are started one after the other, which takes ten seconds, or a minute where much else runs
pytestmark = [pytest.mark.usefixtures("database"), pytest.mark.timeout(300)]

LONGEST_TEXT = 200_000  # of a message or a traceback in an Error
other_kinds = pytest.mark.parametrize("kind", [kind for kind in KINDS if kind is not PLAIN], ids=lambda kind: kind.name)


def play(scenario: Scenario, size: int | None = None, kind: Kind = PLAIN) -> Tally:
    """Run a scenario in its short form: nothing is lost, stuck, doubled, early or wrong in the books."""
    found = faults.play(scenario, random.Random(20), size, kind=kind)
    print(f"{faults.HEADER}\n{found}")
    assert found.wrong == []
    return found


def errors_of(job: Any) -> list[Any]:
    """The Errors that are about a job, the oldest first."""
    return sorted(Error.collection(job_pk=job.pk.get()).instances(), key=lambda error: int(error.pk.get()))


def runs_of(stage: Stage, job: Any) -> int:
    return sum(1 for ident, _, _ in stage.ledger.runs() if ident == job.ident)


# --- Many jobs, and harm


def test_jobs_are_run_although_requests_and_replies_are_lost_on_their_way() -> None:
    found = play(faults.broken_connections)

    assert found.added >= 500


def test_jobs_are_run_although_workers_are_killed_at_random_moments() -> None:
    found = play(faults.killed_workers)

    assert found.once + found.more == found.added == 2000


def test_jobs_are_run_although_the_children_and_the_parent_of_a_pool_are_killed() -> None:
    found = play(faults.killed_children)

    assert found.once + found.more == found.added == 800


def test_jobs_are_run_although_redis_is_killed_and_restarted() -> None:
    found = play(faults.killed_redis)

    assert found.added >= 500


def test_an_identifier_that_several_programs_add_at_once_is_queued_once() -> None:
    play(faults.doubled_adds)


def test_delayed_jobs_run_once_and_never_before_their_time() -> None:
    found = play(faults.delayed_jobs)

    assert found.once == 1000
    assert found.more == 100  # those that fail in their first run


def test_clocks_that_are_wrong_by_hours_make_no_delayed_job_early_or_lost() -> None:
    found = play(faults.wrong_clocks)

    assert found.once == found.added == 300


def test_jobs_are_run_although_the_scripts_are_flushed_again_and_again() -> None:
    found = play(faults.flushed_scripts)

    assert found.once == found.added == 500


def test_jobs_are_run_when_there_is_memory_again_and_what_was_refused_is_not_written() -> None:
    play(faults.full_memory)


def test_jobs_are_run_although_their_server_is_a_read_only_replica_for_a_while() -> None:
    found = play(faults.read_only_replica)

    assert found.once + found.more == found.added


def test_jobs_are_run_although_all_connections_go_half_open() -> None:
    play(faults.half_open_connections)


# --- The same for workers that run many jobs at a time, or in other processes


@other_kinds
def test_jobs_of_all_kinds_of_workers_are_run_although_each_fault_comes(kind: Kind) -> None:
    found = play(faults.every_fault, kind=kind)

    assert found.once + found.more >= found.added  # one that was added when its reply was lost may be there twice


@pytest.mark.parametrize("kind", [faults.THREADS, faults.ASYNC], ids=lambda kind: kind.name)
def test_jobs_are_run_although_a_pool_of_workers_with_many_jobs_at_a_time_is_killed(kind: Kind) -> None:
    found = play(faults.killed_children, 300, kind)

    assert found.once + found.more == found.added == 300


@other_kinds
def test_whatever_jobs_raise_beside_each_other_each_is_in_error_and_the_others_succeed(kind: Kind) -> None:
    with Stage("bad jobs", kind=kind) as stage:
        deeds = sorted(BAD_DEEDS.keys() - {*DEADLY_DEEDS, "deletes itself"})
        bad = [stage.add(BadJob, deed) for deed in deeds]
        good = [stage.add(FaultsJob, f"good {number}") for number in range(10)]

        stage.start_workers(1)
        found = stage.tally()

        assert found.wrong == []
        assert [error.type.hget() for job in bad for error in errors_of(job)] == deeds
        assert {job.status.hget() for job in bad} == {STATUSES.ERROR}
        assert {job.status.hget() for job in good} == {STATUSES.SUCCESS}
        assert {runs_of(stage, job) for job in (*bad, *good)} == {1}


# --- Connections that go half-open within a job


@pytest.mark.parametrize(("direction", "new_connections_hang"), [("both", True), ("replies", False)])
def test_a_worker_whose_connections_go_half_open_in_a_job_finishes_it_and_goes_on(
    direction: Direction, new_connections_hang: bool
) -> None:
    with Stage("half-open in a job", is_proxied=True, options=IMPATIENT) as stage:
        crew = stage.start_workers(1)
        job = stage.add(HeldFaultsJob, "held")
        wait_until(stage.runs, PROCESS_SECONDS)

        stage.proxy.half_open(direction, new_connections_hang=new_connections_hang)
        stage.ledger.open("held")
        if new_connections_hang:
            wait_until(
                lambda: stage.proxy.counts["new and hung"], PROCESS_SECONDS, "the worker makes another connection"
            )
        stage.proxy.calm()

        wait_until(lambda: job.status.hget() == STATUSES.SUCCESS, PROCESS_SECONDS, "the job is finished")
        second = stage.add(FaultsJob, "the next one")
        found = stage.tally()

        assert found.wrong == []
        assert second.status.hget() == STATUSES.SUCCESS
        assert crew.deaths == []


def test_a_job_whose_worker_has_only_half_open_connections_is_run_by_another_and_ends_once() -> None:
    with Stage("half-open in a job, and an heir", is_proxied=True, options=IMPATIENT) as stage:
        victims = stage.start_workers(1)
        job = stage.add(HeldFaultsJob, "held")
        wait_until(stage.runs, PROCESS_SECONDS)

        stage.proxy.half_open("both")
        heirs = stage.start_workers(1, url=stage.server.tcp_url)
        wait_until(lambda: runs_of(stage, job) == 2, PROCESS_SECONDS, "another worker runs the job")
        stage.ledger.open("held")
        wait_until(lambda: job.status.hget() == STATUSES.SUCCESS, PROCESS_SECONDS, "the job is finished")
        stage.proxy.calm()
        wait_until(
            lambda: stage.ledger.count("lost leases"), PROCESS_SECONDS, "the first worker learns that it lost the job"
        )
        heirs.stop()
        stage.crews.remove(heirs)
        second = stage.add(FaultsJob, "the next one")
        found = stage.tally()

        assert found.wrong == []
        assert found.lost_leases == 1
        assert second.status.hget() == STATUSES.SUCCESS
        assert victims.deaths == []


# --- Jobs that do bad things


def any_text(message: str) -> bool:
    return True


MESSAGES: dict[str, Callable[[str], bool]] = {
    "UnprintableError": lambda message: "UnprintableError" in message,
    "ValueError": lambda message: "a surrogate" in message,
    "OverflowError": lambda message: message.startswith("xxx") and len(message) < LONGEST_TEXT,
}


@pytest.mark.parametrize(
    "name",
    [
        *("SystemExit", "KeyboardInterrupt", "GeneratorExit", "CancelledError"),
        *("RecursionError", "MemoryError", "UnprintableError", "ValueError", "OverflowError"),
    ],
)
def test_whatever_a_job_raises_it_is_in_error_and_its_worker_runs_the_next(name: str) -> None:
    with Stage(f"a job raises {name}") as stage:
        bad, good = stage.add(BadJob, name), stage.add(FaultsJob, "good")

        crew = stage.start_workers(1, "--max-loops=2")

        assert crew.processes[0].wait() == 0, crew.output
        assert (bad.status.hget(), good.status.hget()) == (STATUSES.ERROR, STATUSES.SUCCESS)
        (error,) = errors_of(bad)
        assert error.type.hget() == name
        assert MESSAGES.get(name, any_text)(error.message.hget())
        assert len(error.traceback.hget()) < LONGEST_TEXT
        stage.crews.clear()
        assert stage.tally().wrong == []


@pytest.mark.parametrize("deed", ["exits", "crashes"])
def test_a_job_that_takes_its_worker_with_it_is_given_up_after_some_tries_and_others_run(deed: str) -> None:
    with Stage(f"a job {deed}") as stage:
        stage.deaths_are_expected = True
        bad = stage.add(BadJob, deed)
        good = [stage.add(FaultsJob, f"good {number}") for number in range(5)]

        crew = stage.start_workers(1, "--lease-seconds=1")
        stage.settle()

        tries = 1 + 3  # the default of max_recoveries
        assert bad.status.hget() == STATUSES.ERROR
        assert [error.type.hget() for error in errors_of(bad)] == ["WorkerLost"]
        assert runs_of(stage, bad) == tries
        last = stage.add(FaultsJob, "the last")
        found = stage.tally()
        assert found.wrong == []
        assert runs_of(stage, bad) == tries == len(crew.deaths)
        assert {job.status.hget() for job in (*good, last)} == {STATUSES.SUCCESS}


def test_a_job_that_deletes_its_own_record_leaves_nothing_and_the_next_runs() -> None:
    with Stage("a job deletes itself") as stage:
        bad, good = stage.add(BadJob, "deletes itself"), stage.add(FaultsJob, "good")

        crew = stage.start_workers(1, "--max-loops=2")

        assert crew.processes[0].wait() == 0, crew.output
        assert good.status.hget() == STATUSES.SUCCESS
        assert not BadJob.exists(pk=bad.pk.get())
        stage.crews.clear()
        assert stage.tally().wrong == []


# --- Being told to end


def start_held(stage: Stage, *options: str) -> tuple[Crew, Any, Any]:
    """A worker within a job, and another job that waits."""
    held, second = stage.add(HeldFaultsJob, "held"), stage.add(FaultsJob, "second")
    crew = stage.start_workers(1, *options)
    wait_until(stage.runs, PROCESS_SECONDS, "the job runs")
    return crew, held, second


def assert_given_back(stage: Stage, crew: Crew, held: Any, second: Any) -> None:
    """The job is at the head of its queue, as if it had never been taken; then another worker runs it."""
    assert crew.processes[0].wait() == 3, crew.output
    assert held.status.hget() == STATUSES.WAITING
    assert Queue.get_queue(QUEUE).waiting.lmembers() == [held.ident, second.ident]
    assert int(held.tries.hget() or 0) == 0
    assert stage.client.zcard("jobs:leases") == stage.client.hlen("jobs:claims") == 0

    stage.deaths_are_expected = True
    stage.ledger.open("held")
    found = stage.tally(allowed_repeats=1)

    assert found.wrong == []
    assert (held.status.hget(), held.tries.hget(), runs_of(stage, held)) == (STATUSES.SUCCESS, "1", 2)
    assert second.status.hget() == STATUSES.SUCCESS


def test_sigterm_lets_the_running_job_end_and_the_worker_ends_with_zero() -> None:
    with Stage("SIGTERM") as stage:
        crew, held, second = start_held(stage)
        (worker,) = crew.processes

        worker.send_signal(signal.SIGTERM)
        worker.wait_for_output("Caught SIGTERM")
        stage.ledger.open("held")

        assert worker.wait() == 0
        stage.deaths_are_expected = True
        assert (held.status.hget(), second.status.hget()) == (STATUSES.SUCCESS, STATUSES.WAITING)
        assert stage.tally().wrong == []


def test_sigquit_gives_the_running_job_back_at_once() -> None:
    with Stage("SIGQUIT") as stage:
        crew, held, second = start_held(stage)

        crew.processes[0].send_signal(signal.SIGQUIT)

        assert_given_back(stage, crew, held, second)


def test_a_job_that_runs_on_after_sigterm_is_given_back_after_the_stop_timeout() -> None:
    with Stage("SIGTERM and --stop-timeout") as stage:
        crew, held, second = start_held(stage, "--stop-timeout=1")

        crew.processes[0].send_signal(signal.SIGTERM)

        assert_given_back(stage, crew, held, second)
