"""Event loops and threads in several processes, with a hundred jobs at a time: signals, and races with cancel."""

from __future__ import annotations

import random
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest

from limpyd_jobs import STATUSES, Cancellation
from limpyd_jobs.exceptions import JobAlreadyQueued, JobNotInStatus

from ..base import PROCESS_SECONDS, wait_until
from .faults import ASYNC_POOL, ENDED, FailsOnceJob, FailsOnceLoopJob, FaultsJob, HeldLoopJob, LoopJob, Stage

pytestmark = pytest.mark.usefixtures("database")

HELD = 100


@contextmanager
def held_in_a_pool(scenario: str) -> Iterator[tuple[Stage, list[Any]]]:
    """Two processes with fifty running jobs each."""
    with Stage(scenario, kind=ASYNC_POOL) as stage:
        crew = stage.start_workers(1, f"--concurrency={HELD // 2}")
        crew.processes[0].wait_for_output("Run started.", times=2)
        jobs = [stage.add(HeldLoopJob, str(number)) for number in range(HELD)]
        wait_until(lambda: stage.runs() == HELD, PROCESS_SECONDS, "all jobs run")
        yield stage, jobs


def statuses(jobs: list[Any]) -> set[str]:
    return {job.status.hget() for job in jobs}


def processes_of_runs(runs: list[tuple[str, float, int]]) -> set[int]:
    return {pid for _, _, pid in runs}


def test_sighup_rolls_a_pool_of_event_loops_while_its_jobs_run_on() -> None:
    with held_in_a_pool("SIGHUP") as (stage, held):
        (pool,) = stage.crews[0].processes
        pool.send_signal(signal.SIGHUP)
        pool.wait_for_output("Run started.", times=4)

        later = [stage.add(LoopJob, f"later {number}") for number in range(20)]
        wait_until(lambda: statuses(later) == {STATUSES.SUCCESS}, PROCESS_SECONDS, "the new workers run jobs")

        assert statuses(held) == {STATUSES.RUNNING}
        assert not processes_of_runs(stage.ledger.runs()[:HELD]) & processes_of_runs(stage.ledger.runs()[HELD:])
        stage.ledger.open("held")
        pool.wait_for_output("Run terminated", times=2)
        found = stage.tally()
        assert found.wrong == []
        assert (found.once, found.more, stage.crews[0].deaths) == (HELD + 20, 0, [])


def test_the_jobs_of_event_loops_whose_parent_is_killed_end_and_no_other_begins() -> None:
    with held_in_a_pool("a killed parent") as (stage, held):
        (pool,) = stage.crews[0].processes
        pool.kill()
        wait_until(lambda: pool.output.count("stopping after current job") == 2, PROCESS_SECONDS, "the children know")
        waiting = stage.add(LoopJob, "waiting")

        stage.ledger.open("held")
        wait_until(lambda: statuses(held) == {STATUSES.SUCCESS}, PROCESS_SECONDS, "all jobs have ended")

        assert waiting.status.hget() == STATUSES.WAITING
        stage.deaths_are_expected = True
        found = stage.tally()
        assert found.wrong == []
        assert (found.once, found.more) == (HELD + 1, 0)


def test_sigterm_lets_all_jobs_of_a_pool_of_event_loops_end() -> None:
    with held_in_a_pool("SIGTERM") as (stage, held):
        (pool,) = stage.crews[0].processes
        pool.send_signal(signal.SIGTERM)
        pool.wait_for_output("Caught SIGTERM", times=2)
        waiting = stage.add(LoopJob, "waiting")

        stage.ledger.open("held")

        assert pool.wait() == 0, pool.output
        assert (statuses(held), waiting.status.hget()) == ({STATUSES.SUCCESS}, STATUSES.WAITING)
        stage.deaths_are_expected = True
        found = stage.tally()
        assert found.wrong == []
        assert (found.once, found.more) == (HELD + 1, 0)


def test_jobs_that_are_canceled_and_requeued_while_many_workers_take_them_end_once() -> None:
    rng = random.Random(20)
    models: list[Any] = [FaultsJob, LoopJob, FailsOnceJob, FailsOnceLoopJob]
    with Stage("races") as stage:
        crews = [stage.start_workers(2, "--async", "--concurrency=20"), stage.start_workers(1, "--threads=8")]
        for crew in crews:
            crew.wait_until_ready()
        jobs, canceled, stopped = [], set(), set()
        for number in range(200):
            jobs.append(stage.add(models[number % 4], str(number), priority=number % 3))
            job = rng.choice(jobs[-20:])
            if rng.random() < 0.3:
                stopped.add(job.ident)  # or it had ended
                if job.cancel() is Cancellation.CANCELED:
                    canceled.add(job.ident)
            elif job.status.hget() == STATUSES.ERROR:
                with suppress(JobAlreadyQueued, JobNotInStatus):
                    job.requeue()
        found = stage.tally()

        assert (found.stuck, found.doubled, found.problems, found.extra_runs) == ((), (), (), 0)
        # one that a worker had taken, and whose code had not begun, has not run either
        assert set(found.lost) <= stopped
        assert {job.status.hget() for job in jobs if job.ident in found.lost} <= {STATUSES.CANCELED}
        assert statuses(jobs) <= set(ENDED)
        assert {job.status.hget() for job in jobs if job.ident in canceled} == {STATUSES.CANCELED}
