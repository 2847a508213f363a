"""Each reason why a job does not run, brought about as it comes about; and the page that names them all."""

from __future__ import annotations

import json
import os
import re
import time
from datetime import datetime, timedelta
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from limpyd_jobs import Job, Queue, admin, transitions
from limpyd_jobs.admin import sight
from limpyd_jobs.admin.explaining import REASONS
from limpyd_jobs.admin.numbers import Rates
from limpyd_jobs.exceptions import JobNotFound
from limpyd_jobs.transitions import Caller
from limpyd_jobs.utils import datetime_to_score, utcnow

from ..base import ROOT, wait_until
from ..workers.base import DEADLINE_SECONDS, Running, client, idle, wait_until_lapsed, work
from .support import see_worker, take

pytestmark = pytest.mark.usefixtures("database")


class ExplainedJob(Job):
    """Fails when its identifier says so."""

    queue_name = "test"

    def run(self, queue: Any) -> None:
        if self.identifier.hget().startswith("bad"):
            raise ValueError("no paper\nat all")


class ExplainedLimited(ExplainedJob):
    max_concurrency = 1


class ExplainedQueue(Queue):
    """Holds its jobs while it places them."""

    namespace = "explained"

    def enqueue_job(self, job: Any, prepend: bool = False) -> None:
        raise KeyboardInterrupt


def explain(job: Any, reason: str, queue_model: Any = Queue) -> admin.Explanation:
    """The explanation of a job, which must be for this reason and can be made JSON of."""
    found = admin.explain(job.ident, queue_model=queue_model)
    assert (found.reason, found.sentence) == (reason, found.sentence)
    assert re.fullmatch(r"It .*[^.]\.", found.sentence), found.sentence
    assert json.loads(json.dumps(found.evidence)) == found.evidence
    return found


def test_the_page_has_a_row_for_each_reason_in_this_order() -> None:
    text = (ROOT / "docs/explain.md").read_text()

    assert tuple(re.findall(r"^\| `([a-z-]+)` \|", text, re.MULTILINE)) == REASONS


def test_a_row_of_the_page_names_what_is_in_the_evidence() -> None:
    see_worker()
    job = ExplainedJob.add_job("a")
    take()
    text = (ROOT / "docs/explain.md").read_text()
    [row] = re.findall(r"^\| `running` \|.*\| (.*) \|$", text, re.MULTILINE)

    assert set(re.findall(r"`(\w+)`", row)) == set(explain(job, "running").evidence) - {"status"}


def test_each_reason_has_a_test_here() -> None:
    source = Path(__file__).read_text()

    assert [reason for reason in REASONS if f'"{reason}"' not in source] == []


@pytest.mark.parametrize("name", ["pk", "identifier"])
def test_a_job_may_be_named_as_everywhere(name: str) -> None:
    job = ExplainedJob.add_job("report:1")

    found = admin.explain(job.pk.get() if name == "pk" else "report:1")

    assert (found.ident, str(found)) == (job.ident, found.sentence)


def test_a_job_that_is_not_there_is_not_found() -> None:
    with pytest.raises(JobNotFound):
        admin.explain("limpyd_jobs.models.Job:77")


# --- in the hands of a process


def test_a_job_that_runs_is_told_with_its_worker_and_the_time() -> None:
    see_worker()
    job = ExplainedJob.add_job("a")
    take()

    found = explain(job, "running")

    assert " ago) on box:42 (last heartbeat " in found.sentence
    assert (found.evidence["host"], found.evidence["pid"], found.evidence["worker"]) == ("box", 42, "somebody")


def test_the_worker_of_a_running_job_is_known_as_soon_as_it_works() -> None:
    first, second = ExplainedJob.add_job("a"), ExplainedJob.add_job("b")
    has_begun, may_end = Event(), Event()

    def wait(job: Any, queue: Any) -> None:
        has_begun.set()
        may_end.wait(DEADLINE_SECONDS)

    with Running(idle(callback=wait, prefetch=2)):
        assert has_begun.wait(DEADLINE_SECONDS)
        wait_until(lambda: first.status.hget() == "r", message="that it runs is noted")
        running, ahead = explain(first, "running"), explain(second, "claimed-ahead")
        may_end.set()

    assert running.evidence["pid"] == os.getpid()
    assert [job["ident"] for job in ahead.evidence["jobs"]] == [first.ident]


def test_a_job_that_is_executed_at_once_runs_in_no_queue() -> None:
    seen = []

    class ExplainedAtOnce(Job):
        def run(self, queue: Any) -> None:
            seen.append(explain(self, "running").sentence)

    ExplainedAtOnce.execute_now("a")

    assert seen[0].endswith("executed at once by the process that made it.")


def test_a_job_whose_worker_is_gone_is_given_back_when_its_lease_lapses() -> None:
    job = ExplainedJob.add_job("a")
    take("killed-1")
    see_worker()

    found = explain(job, "worker-lost")

    assert "it is given back when its lease lapses, in 2" in found.sentence.replace("30", "29")
    assert 0 < found.starts_in <= 30


def test_a_lapsed_lease_waits_for_any_worker() -> None:
    job = ExplainedJob.add_job("a")
    take("killed-1", lease_seconds=0.001)
    wait_until_lapsed(job.ident)

    assert "no worker is alive to give it back" in explain(job, "worker-lost").sentence
    see_worker()
    assert "the next worker that looks gives it back" in explain(job, "worker-lost").sentence


def test_a_running_job_without_a_lease_is_one_of_version_2_or_wrong() -> None:
    job = ExplainedJob.add_job("a")
    client().delete("jobs:queue:1:waiting")
    job.status.hset("r")

    assert "nobody has a lease on it" in explain(job, "no-lease").sentence


def test_a_job_that_was_claimed_ahead_begins_after_the_one_that_runs() -> None:
    see_worker()
    first, second = ExplainedJob.add_job("a"), ExplainedJob.add_job("b")
    caller = Caller("jobs", "jobs:queue", "somebody", 30.0, 3, False, ("test",))
    transitions.send(client(), transitions.exchange(caller, (), 1, 2, str(utcnow())))

    found = explain(second, "claimed-ahead")

    assert f"ago), which runs {first.ident} (" in found.sentence


def test_a_job_that_is_held_is_on_its_way_to_its_queue() -> None:
    with pytest.raises(KeyboardInterrupt):
        ExplainedJob.add_job("a", queue_model=ExplainedQueue)
    job = ExplainedJob.get(identifier="a")

    found = explain(job, "moving", ExplainedQueue)

    assert "being put in its queue by the process that has it" in found.sentence


def test_a_job_that_failed_and_is_to_be_requeued_is_on_its_way() -> None:
    job = ExplainedJob.add_job("a")
    taken = take()
    call = transitions.fail("jobs", taken.claim, str(utcnow()), 3, "")
    transitions.send(client(), call)

    assert "was taken by a worker that is gone" in explain(job, "worker-lost").sentence
    see_worker()
    assert " ago) is about to put it in its queue again" in explain(job, "moving").sentence


def test_a_job_that_asks_to_be_delayed_is_on_its_way() -> None:
    see_worker()
    job = ExplainedJob.add_job("a")
    take()
    job.status.hset("d")

    assert "asked to be delayed, which box:42" in explain(job, "moving").sentence


def test_a_running_job_that_was_canceled_is_to_be_ended_by_its_worker() -> None:
    see_worker()
    job = ExplainedJob.add_job("a")
    take()
    job.cancel("not needed")

    assert "was canceled (not needed), and is still with box:42" in explain(job, "canceled").sentence


# --- its queue


def test_a_job_in_a_paused_queue_is_told_with_who_paused_it_and_why() -> None:
    see_worker()
    job = ExplainedJob.add_job("a")
    admin.pause("test", "a new printer", by="ann@box")

    found = explain(job, "paused")

    assert " UTC by ann@box (a new printer); besides, it is the next one of 'test'." in found.sentence
    assert (found.evidence["by"], found.evidence["also"], found.starts_in) == ("ann@box", ["next"], None)


def test_without_any_worker_a_job_waits() -> None:
    job = ExplainedJob.add_job("a")

    assert "waits in 'test', and no worker is alive" in explain(job, "no-workers").sentence


def test_a_queue_on_which_no_worker_listens_is_told_with_what_they_listen_on() -> None:
    see_worker("one", "mails", "reports")
    job = ExplainedJob.add_job("a")

    found = explain(job, "not-heard")

    assert "no worker listens: the one that is alive listens on mails, reports" in found.sentence
    assert found.evidence["heard"] == ["mails", "reports"]


def test_workers_that_are_about_to_end_take_nothing() -> None:
    see_worker(status="ending")
    job = ExplainedJob.add_job("a")

    assert "are about to end: box:42" in explain(job, "workers-stop").sentence


def test_a_queue_that_was_deleted_has_lost_its_jobs() -> None:
    job = ExplainedJob.add_job("a")
    Queue.get_queue("test").delete()

    assert "jobs:queue:1, a queue that has been deleted" in explain(job, "no-queue").sentence


def test_a_queue_with_a_key_of_another_type_is_left_alone() -> None:
    job = ExplainedJob.add_job("a")
    client().set("jobs:queue:1:waiting", "x")

    assert "something of another type is under jobs:queue:1:waiting" in explain(job, "broken").sentence


# --- its turn


def test_the_first_job_of_a_queue_is_the_next_one() -> None:
    see_worker()
    job = ExplainedJob.add_job("a")

    assert explain(job, "next").starts_in == 0


def test_the_first_job_waits_for_workers_that_are_busy() -> None:
    see_worker()
    running, job = ExplainedJob.add_job("a"), ExplainedJob.add_job("b")
    take()

    found = explain(job, "busy")

    assert f"the worker that listens is busy: box:42 with {running.ident} (" in found.sentence


def test_a_worker_with_threads_is_not_busy_with_one_job() -> None:
    see_worker(options='{"threads": 2}')
    ExplainedJob.add_job("a")
    job = ExplainedJob.add_job("b")
    take()

    explain(job, "next")


def test_a_job_is_behind_those_of_its_own_and_of_higher_priority(monkeypatch: pytest.MonkeyPatch) -> None:
    see_worker()
    monkeypatch.setattr(sight, "rates", lambda *args, **kwargs: {"test": Rates(started=0.5)})
    for number in range(4):
        ExplainedJob.add_job(f"low:{number}", priority=-1)
        ExplainedJob.add_job(f"before:{number}", priority=1 if number else 0)
    job = ExplainedJob.add_job("a")

    found = explain(job, "behind")

    assert "is behind 4 jobs of its own and higher priorities in 'test'" in found.sentence
    assert "one is started every 2 s: it starts in about 8 s" in found.sentence
    assert (found.evidence["ahead"], found.evidence["higher"], found.starts_in) == (4, 3, 8)


def test_nobody_can_say_when_a_job_starts_where_nothing_was_started() -> None:
    see_worker()
    ExplainedJob.add_job("b")
    job = ExplainedJob.add_job("a")

    assert "nobody can say when it starts" in explain(job, "behind").sentence


def test_how_fast_jobs_start_is_what_was_counted_of_late() -> None:
    see_worker()
    jobs = [ExplainedJob.add_job(f"a:{number}") for number in range(4)]
    take("somebody-1")
    take("somebody-2")

    found = explain(jobs[3], "behind")

    assert found.evidence["started_per_second"] == pytest.approx(2 / 330, rel=0.1)
    assert found.starts_in == pytest.approx(330 / 2, rel=0.1)


def test_a_job_deep_in_a_long_list_is_not_looked_for_to_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sight, "DEEPEST", 2)
    see_worker()
    jobs = [ExplainedJob.add_job(f"a:{number}") for number in range(7)]

    found = explain(jobs[3], "behind")

    assert "is behind more than 100,000 jobs" in found.sentence
    assert found.evidence["ahead"] is None
    assert explain(jobs[6], "behind").evidence["ahead"] == 6


def test_a_job_of_version_2_is_found_where_it_waits() -> None:
    see_worker()
    job = ExplainedJob.add_job("a", priority=3)
    client().hdel(job.key, "queue_key")

    assert explain(job, "next").evidence["queue"] == "test"


def test_a_class_that_the_registry_does_not_have_is_told() -> None:
    see_worker()
    job = ExplainedJob.add_job("a")
    client().delete("jobs:models")

    assert "one must be able to import it; besides, it is the next one" in explain(job, "unknown-class").sentence


def test_a_job_that_waits_past_its_expiry_ends_when_a_worker_comes() -> None:
    see_worker()
    job = ExplainedJob.add_job("a", expires=utcnow() - timedelta(hours=1))

    assert "and ends when a worker comes to it" in explain(job, "expired").sentence


# --- limits


def test_a_full_limit_is_told_with_who_holds_it() -> None:
    see_worker()
    first = ExplainedLimited.add_job("a")
    parked = [ExplainedLimited.add_job(f"b:{number}") for number in range(2)]
    take("somebody-1")
    take("somebody-2")

    found = explain(parked[1], "limit")

    assert f"1 may run at the same time, and {first.ident} (box:42, " in found.sentence
    assert "behind 1 job that came before it" in found.sentence
    assert found.evidence["holders"][0]["ident"] == first.ident
    assert (found.evidence["held"], found.evidence["parked_before"]) == (1, 1)


def test_a_limit_that_has_room_again_brings_the_job_back() -> None:
    see_worker()
    ExplainedLimited.add_job("a")
    job = ExplainedLimited.add_job("b")
    take("somebody-1")
    take("somebody-2")
    client().delete(f"jobs:limit:{ExplainedLimited.get_model_repr()}:held")

    assert explain(job, "limit").starts_in == 30


def test_a_rate_that_is_used_up_says_when_the_next_job_may_start() -> None:
    see_worker()
    jobs = [ExplainedJob.add_job(f"a:{number}", rate_limit="1/m") for number in range(3)]
    take("somebody-1")
    take("somebody-2")

    found = explain(jobs[1], "rate")

    assert "it allows 1 start in 1 min, and the next one in" in found.sentence
    assert 0 < found.starts_in <= 60 < explain(jobs[2], "rate").starts_in <= 120


# --- later


def test_a_delayed_job_says_until_when(monkeypatch: pytest.MonkeyPatch) -> None:
    see_worker()
    monkeypatch.setenv("TZ", "Europe/Paris")
    time.tzset()
    try:
        job = ExplainedJob.add_job("a", delayed_until=datetime(2100, 1, 1, 12))
        found = explain(job, "delayed")
    finally:
        monkeypatch.undo()
        time.tzset()

    assert "until 2100-01-01 12:00:00 UTC, 2100-01-01 13:00:00 CET here (in " in found.sentence
    assert found.starts_in == pytest.approx(datetime_to_score(datetime(2100, 1, 1, 12)) - time.time(), abs=60)


def test_a_job_that_is_tried_again_later_says_what_it_failed_with() -> None:
    job = ExplainedJob.add_job("bad", requeue_times=3, requeue_delay_delta=1000)
    work(1)
    see_worker()

    assert "after try 1 failed with ValueError: no paper." in explain(job, "delayed").sentence


def test_what_is_due_waits_for_a_worker_that_looks() -> None:
    job = ExplainedJob.add_job("a", delayed_for=100)
    client().zadd("jobs:queue:1:delayed", {job.ident: time.time() - 10})

    assert explain(job, "no-workers").evidence["also"] == ["due"]
    see_worker()
    assert " s ago): a worker that looks lets it wait" in explain(job, "due").sentence


def test_a_waiting_job_that_was_told_to_wait_is_delayed_when_its_turn_comes() -> None:
    see_worker()
    job = ExplainedJob.add_job("a")
    job.status.hset("d")
    job.delayed_until.hset("2100-01-01 12:00:00")

    assert "the worker that takes it delays it" in explain(job, "delayed").sentence


# --- other jobs


def test_a_blocked_job_says_what_the_one_that_it_waits_for_is_doing() -> None:
    see_worker()
    parent, other = ExplainedJob.add_job("a"), ExplainedJob.add_job("b", delayed_for=100)
    job = ExplainedJob.add_job("c", after=[parent, other])
    take()

    found = explain(job, "waits-for")

    assert f"It waits for {parent.ident} and 1 other, which has been running since" in found.sentence
    assert found.evidence["last"]["reason"] == "running"


def test_a_chain_is_followed_to_its_end() -> None:
    jobs = [ExplainedJob.add_job("0")]
    for number in range(1, 5):
        jobs.append(ExplainedJob.add_job(f"{number}", after=jobs[-1]))

    found = explain(jobs[4], "waits-for")

    assert (
        f"waits for {jobs[3].ident}, and so, through 2 more jobs, for {jobs[0].ident}, which waits in" in found.sentence
    )
    assert found.evidence["chain"] == [job.ident for job in reversed(jobs[:4])]


def test_jobs_that_wait_for_each_other_are_told_once() -> None:
    first = ExplainedJob.add_job("a")
    second = ExplainedJob.add_job("b", after=ExplainedJob.add_job("x"))
    third = ExplainedJob.add_job("c", after=second)
    client().sadd(f"jobs:explainedjob:{first.pk.get()}:waits_for", third.ident)
    client().sadd(f"jobs:explainedjob:{second.pk.get()}:waits_for", third.ident)
    client().srem(f"jobs:explainedjob:{second.pk.get()}:waits_for", f"{ExplainedJob.get_model_repr()}:2")

    explain(third, "waits-for")


def test_a_job_may_wait_for_one_that_failed() -> None:
    parent = ExplainedJob.add_job("bad")
    job = ExplainedJob.add_job("b", after=parent, if_parent_fails="wait")
    work(1)

    found = explain(job, "parent-failed")

    assert f"waits for {parent.ident}, which failed with ValueError: no paper: requeue that one" in found.sentence
    assert found.evidence["error"]["type"] == "ValueError"


def test_a_job_whose_parent_failed_was_canceled() -> None:
    parent = ExplainedJob.add_job("bad")
    job = ExplainedJob.add_job("b", after=parent)
    work(1)

    assert (
        f"was canceled because {parent.ident}, which it waited for, failed with"
        in explain(job, "parent-failed").sentence
    )


def test_a_blocked_job_whose_parent_has_ended_is_about_to_be_told_or_forgotten() -> None:
    parent = ExplainedJob.add_job("a")
    job = ExplainedJob.add_job("b", after=parent)
    client().hset(parent.key, "status", "s")

    assert "will not hear of it" in explain(job, "lost").sentence
    client().zadd("jobs:followups", {parent.ident: 0})
    assert "workers are telling the jobs that wait for it" in explain(job, "telling").sentence


def test_a_blocked_job_that_waits_for_none_is_wrong_in_the_books() -> None:
    job = ExplainedJob.add_job("b", after=ExplainedJob.add_job("a"))
    job.waits_for.delete()

    assert "waits for no job; the books are wrong" in explain(job, "lost").sentence


# --- ended


def test_a_job_that_ended_well_says_when() -> None:
    job = ExplainedJob.add_job("a")
    work(1)

    assert " UTC, after a run of " in explain(job, "succeeded").sentence


def test_a_job_that_failed_says_with_what() -> None:
    job = ExplainedJob.add_job("bad")
    work(1)

    found = explain(job, "failed")

    assert ", in try 1 with ValueError: no paper, and is not tried again." in found.sentence
    assert found.evidence["error"]["message"] == "no paper\nat all"


def test_a_canceled_job_says_why() -> None:
    job = ExplainedJob.add_job("a")
    job.cancel("not needed")

    assert explain(job, "canceled").sentence == "It was canceled: not needed."


def test_a_job_that_a_program_canceled_is_in_its_queue_until_a_worker_comes() -> None:
    job = ExplainedJob.add_job("a")
    job.status.hset("c")

    assert "leaves its queue when a worker comes to it" in explain(job, "canceled").sentence


def test_a_job_that_expired_says_when() -> None:
    job = ExplainedJob.add_job("a", expires=utcnow() - timedelta(hours=1))
    work(1)

    assert "UTC, before a worker came to it." in explain(job, "expired").sentence


def test_a_job_in_no_place_is_lost() -> None:
    job = ExplainedJob.add_job("a")
    client().delete("jobs:queue:1:waiting")

    assert explain(job, "lost").sentence == (
        "It is WAITING, and in no place; the books are wrong: run `limpyd-jobs check`."
    )


def test_a_job_without_a_status_is_lost() -> None:
    job = ExplainedJob.add_job("a")
    client().hset(job.key, "status", "?")

    explain(job, "lost")


def test_looking_changes_nothing() -> None:
    job = ExplainedJob.add_job("a")
    client().delete("jobs:doorbell:queue:test")
    before = {key: client().dump(key) for key in client().scan_iter()}

    explain(job, "no-workers")

    assert {key: client().dump(key) for key in client().scan_iter()} == before


def test_a_record_that_is_no_hash_is_lost() -> None:
    job = ExplainedJob.add_job("a")
    client().set(job.key, "x")

    assert explain(job, "lost").sentence == "It has no record that can be read."


@pytest.mark.usefixtures("database")
def test_it_is_said_also_when_the_memory_of_redis_is_full() -> None:
    job = Job.add_job("a", "mail")
    client().config_set("maxmemory", 1)
    try:
        explained = admin.explain(job.ident)
        found = admin.find_jobs(admin.JobFilter(queues=("mail",))).items
    finally:
        client().config_set("maxmemory", 0)

    assert explained.reason == "no-workers"
    assert [one.ident for one in found] == [job.ident]
