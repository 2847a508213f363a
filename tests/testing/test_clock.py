"""A clock that stands still until it is moved: delays, leases, expiries, retries, retention."""

from __future__ import annotations

import re
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from limpyd_jobs import STATUSES, Job, Queue, Worker, lua, testing
from limpyd_jobs.exceptions import InvalidArgument
from limpyd_jobs.fields import InstanceHashField
from limpyd_jobs.utils import datetime_to_score, utcnow
from limpyd_jobs.workers import AsyncWorker

from ..base import wait_until
from ..workers.base import work

START = datetime(2030, 1, 1, 12)


class ClockJob(Job):
    """Fails as often as it is told."""

    queue_name = "mail"
    failures = InstanceHashField(default=0)

    def run(self, queue: Any) -> None:
        if int(self.tries.hget()) <= int(self.failures.hget()):
            raise ValueError("boom")


def test_the_time_stands_still_until_it_is_moved() -> None:
    with testing.fake_clock(START) as clock:
        assert utcnow() == clock.now == START
        assert clock.advance(90) == START + timedelta(seconds=90)
        clock.advance(timedelta(minutes=1), hours=1)
        assert utcnow() == START + timedelta(hours=1, minutes=2, seconds=30)


def test_the_time_goes_on_after_the_block() -> None:
    before = lua.load("claim").sha
    with testing.fake_clock(START):
        assert lua.load("claim").sha != before

    assert lua.load("claim").sha == before
    assert utcnow() < START


def test_a_clock_within_a_clock_gives_the_time_back() -> None:
    with testing.fake_clock(START):
        with testing.fake_clock(START + timedelta(days=1)):
            pass
        assert utcnow() == START


def test_without_a_start_the_clock_starts_now() -> None:
    before = utcnow()
    with testing.fake_clock() as clock:
        assert before <= clock.now < before + timedelta(minutes=5)


def test_an_aware_start_is_converted() -> None:
    with testing.fake_clock(datetime(2030, 1, 1, 14, tzinfo=timezone(timedelta(hours=2)))) as clock:
        assert clock.now == START


@pytest.mark.parametrize("start", ["2030", 5])
def test_a_start_that_is_no_datetime_is_refused(start: Any) -> None:
    with pytest.raises(InvalidArgument, match="start"), testing.fake_clock(start):
        pass


@pytest.mark.parametrize(("duration", "parts"), [(-1, {}), ("1h", {}), (0, {"fortnights": 2}), (0, {"hours": -1})])
def test_the_clock_goes_forward_only(duration: Any, parts: Any) -> None:
    with testing.fake_clock(START) as clock, pytest.raises(InvalidArgument):
        clock.advance(duration, **parts)


@pytest.mark.parametrize("name", [*lua.NAMES, "_common"])
def test_no_script_asks_for_the_time_in_a_way_that_the_clock_does_not_see(name: str) -> None:
    text = re.sub(r"--.*", "", (lua.FOLDER / f"{name}.lua").read_text())

    assert text.count("TIME'") == text.count(lua.TIME)


def test_dates_are_those_of_the_clock() -> None:
    with testing.fake_clock(START) as clock:
        job = ClockJob.add_job("a", failures=1)
        clock.advance(hours=1)
        testing.run_until_empty()

    times = [str(START), str(START + timedelta(hours=1)), str(START + timedelta(hours=1))]
    assert job.hmget("added", "start", "end") == times


def test_a_delayed_job_is_due_when_the_clock_says_so() -> None:
    with testing.fake_clock(START) as clock:
        job = ClockJob.add_job("a", delayed_for=timedelta(days=3))
        assert job.delayed_until.hget() == str(START + timedelta(days=3))
        clock.advance(days=3, seconds=-1)
        assert testing.run_until_empty() == []
        clock.advance(1)
        assert len(testing.run_until_empty()) == 1


def test_a_retry_comes_when_its_delay_is_over() -> None:
    with testing.fake_clock(START) as clock:
        job = ClockJob.add_job("a", failures=2, requeue_times=2, backoff=[60, 600])
        testing.run_until_empty()
        assert job.hmget("status", "tries") == [STATUSES.DELAYED, "1"]
        clock.advance(60)
        testing.run_until_empty()
        clock.advance(599)
        assert testing.run_until_empty() == []
        clock.advance(1)
        testing.run_until_empty()

    assert job.hmget("status", "tries") == [STATUSES.SUCCESS, "3"]


def test_a_job_expires_when_the_clock_says_so() -> None:
    with testing.fake_clock(START) as clock:
        kept, expired = ClockJob.add_job("a", expires=7200), ClockJob.add_job("b", expires=3600)
        clock.advance(hours=1)
        testing.run_until_empty()

    assert kept.status.hget() == STATUSES.SUCCESS
    assert expired.hmget("status", "cancel_reason") == [STATUSES.CANCELED, "expired"]


def test_a_lease_lapses_when_the_clock_says_so() -> None:
    with testing.fake_clock(START) as clock:
        job = ClockJob.add_job("a")
        Worker("mail", terminate_gracefuly=False)._take_job()  # and nobody hears of it again
        clock.advance(29)
        assert testing.run_until_empty() == []
        clock.advance(1)
        ClockJob.add_job("b")
        testing.run_until_empty()

    assert job.hmget("status", "recoveries") == [STATUSES.SUCCESS, "1"]


def test_ended_jobs_go_when_the_clock_says_so() -> None:
    with testing.fake_clock(START) as clock:
        ClockJob.add_job("a")
        testing.run_until_empty(keep_success="1h")
        clock.advance(hours=2)
        ClockJob.add_jobs(["b", "c"])
        testing.run_until_empty(keep_success="1h")

    assert len(Queue.get_queue("mail").success.lmembers()) == 2


def test_a_job_that_is_kept_for_a_time_of_its_own_goes_when_the_clock_says_so() -> None:
    with testing.fake_clock(START) as clock:
        job = ClockJob.add_job("a", keep_success="1h")
        testing.run_until_empty()
        clock.advance(minutes=59)
        testing.run_until_empty()
        assert job.status.hget() == STATUSES.SUCCESS
        clock.advance(minutes=2)
        testing.run_until_empty()

    assert list(ClockJob.collection()) == []


def test_a_rate_lets_the_next_job_start_when_the_clock_says_so() -> None:
    with testing.fake_clock(START) as clock:
        first, second = (ClockJob.add_job(name, rate_limit="1/m") for name in "ab")
        testing.run_until_empty()
        assert [job.status.hget() for job in (first, second)] == [STATUSES.SUCCESS, STATUSES.WAITING]
        clock.advance(minutes=1)
        testing.run_until_empty()

    assert second.status.hget() == STATUSES.SUCCESS


@pytest.mark.parametrize("worker_class", [None, AsyncWorker])
def test_a_worker_in_the_background_sees_that_the_clock_was_moved(worker_class: Any) -> None:
    options = {"worker_class": worker_class} if worker_class else {}
    with testing.fake_clock(START) as clock:
        job = ClockJob.add_job("a", delayed_for=3600)
        with testing.background_worker("mail", **options) as worker:
            wait_until(lambda: worker.status == "waiting")
            clock.advance(hours=1)
            wait_until(lambda: job.status.hget() == STATUSES.SUCCESS)


class ClockBlockingJob(Job):
    """Runs until it is let go."""

    queue_name = "mail"
    runs: list[str] = []
    may_end = threading.Event()

    def run(self, queue: Any) -> None:
        self.runs.append(self.identifier.hget())
        assert self.may_end.wait(30)


@pytest.mark.parametrize("is_at_once", [False, True])
def test_what_runs_here_keeps_its_lease_when_the_clock_is_moved(is_at_once: bool) -> None:
    ClockBlockingJob.runs.clear()
    ClockBlockingJob.may_end.clear()
    with ThreadPoolExecutor() as thread, testing.background_worker("mail", threads=2) as worker:
        if is_at_once:
            executed = thread.submit(ClockBlockingJob.execute_now, "a")
        else:
            ClockBlockingJob.add_job("a")
        wait_until(lambda: ClockBlockingJob.runs)

        with testing.fake_clock(START) as clock:
            clock.advance(hours=1)
            worker.look_around()
            ClockJob.add_job("b")
            wait_until(lambda: ClockJob.get(identifier="b").status.hget() == STATUSES.SUCCESS)
            ClockBlockingJob.may_end.set()
            job = ClockBlockingJob.get(identifier="a")
            wait_until(lambda: job.status.hget() == STATUSES.SUCCESS)
        if is_at_once:
            assert executed.result().ident == job.ident

    assert (ClockBlockingJob.runs, job.tries.hget()) == (["a"], "1")


def test_a_worker_of_another_program_keeps_its_own_time() -> None:
    with testing.fake_clock(START):
        job = ClockJob.add_job("a", delayed_until=START)
        assert job.status.hget() == STATUSES.WAITING
        later = ClockJob.add_job("b", delayed_for=3600)
        testing.run_until_empty()
    assert Queue.get_queue("mail").first_delayed_time == datetime_to_score(START + timedelta(hours=1))

    ClockJob.add_job("c")
    work(1, "mail")  # by the clock of the machine

    assert later.status.hget() == STATUSES.DELAYED
