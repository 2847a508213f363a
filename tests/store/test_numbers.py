"""What the scripts count, how it is added up, and what is read of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from limpyd import fields
from redis.exceptions import ResponseError

from limpyd_jobs import Job, Queue, Worker, admin, transitions
from limpyd_jobs.admin.numbers import BOUNDS, MINUTES_KEPT
from limpyd_jobs.exceptions import InvalidArgument, LeaseLost, WrongKeyType
from limpyd_jobs.tasks import TaskJob
from limpyd_jobs.transitions import Call, Claim
from limpyd_jobs.utils import parse_datetime, utcnow

START = "2026-01-01 10:20:30.500000"

pytestmark = pytest.mark.usefixtures("database")


class TalliedJob(Job):
    queue_name = "counted"

    def run(self, queue: Any) -> None:
        if self.identifier.hget().startswith("bad"):
            raise ValueError("boom")


class CountedTaskJob(TaskJob[None]):
    """One that names its tasks."""

    queue_name = "counted"

    def run(self, queue: Any) -> None:
        pass


class OwnSinceJob(TalliedJob):
    """One of a program that had a field of this name before."""

    waiting_since = fields.InstanceHashField()


@pytest.fixture(autouse=True)
def books(database: Any) -> Iterator[None]:
    yield
    assert [str(problem) for problem in admin.check()] == []


def client() -> Any:
    return Job.database.connection


def send(call: Call[Any]) -> Any:
    return transitions.send(client(), call)


def work(jobs: int, **options: Any) -> None:
    options = {"terminate_gracefuly": False, "logger_level": 100, **options}
    Worker("counted", max_loops=jobs, **options).run()


def counts(model: Any = TalliedJob, queue: str = "counted") -> dict[str, int]:
    """What was counted of a class, without what was not."""
    found = [one for one in admin.totals() if (one.task, one.queue) == (model.get_model_repr(), queue)]
    names = ("added", "started", "succeeded", "failed", "requeued", "recovered", "canceled")
    assert all(one.wait.count == one.started and one.run.count == one.succeeded + one.failed for one in found)
    return {name: number for one in found for name in names if (number := getattr(one, name))}


def claim(start: str = START, token: str = "w-1") -> Claim:
    call = transitions.claim("jobs", "jobs:queue", token, "w", 30, start, ["counted"])
    held: Claim | None = send(call).claim
    assert held is not None
    return held


def make_past(minutes: int = 3) -> None:
    """Let what was counted until now have been counted some minutes ago."""
    for key in client().keys("jobs:numbers:[0-9]*"):
        client().rename(key, f"jobs:numbers:{client().time()[0] // 60 - minutes}")


# --- What is counted


@pytest.mark.parametrize("options", [{}, {"prefetch": 3}, {"threads": 2}], ids=str)
def test_jobs_are_counted_when_they_are_added_started_and_ended(options: Any) -> None:
    TalliedJob.add_jobs(["a", "b", "bad"])
    TalliedJob.add_job("a")  # queued already
    TalliedJob.add_job("c", priority=1)

    work(4, **options)

    assert counts() == {"added": 4, "started": 4, "succeeded": 3, "failed": 1}


def test_each_try_is_counted() -> None:
    TalliedJob.add_job("bad")

    work(3, requeue_times=2, requeue_delay_delta=0)

    assert counts() == {"added": 1, "started": 3, "failed": 3, "requeued": 2}


def test_a_job_is_counted_as_canceled_when_it_is_in_no_place_any_more() -> None:
    waiting, running, late = (TalliedJob.add_job(name) for name in ("waiting", "running", "late"))
    waiting.cancel()
    waiting.cancel()
    late.run_options.hset('{"expires":1}')
    held = claim()
    running.cancel()

    assert counts() == {"added": 3, "started": 1, "canceled": 1}
    send(transitions.skip("jobs", held))
    work(1)
    assert counts() == {"added": 3, "started": 1, "canceled": 3}


def test_jobs_that_wait_for_one_that_fails_are_counted_as_canceled() -> None:
    first = TalliedJob.add_job("bad")
    second = TalliedJob.add_job("second", after=[first])
    work(1)

    TalliedJob.add_job("third", after=[second])

    assert counts() == {"added": 3, "started": 1, "failed": 1, "canceled": 2}


def test_a_job_that_is_given_back_is_counted_as_recovered() -> None:
    TalliedJob.add_job("a")
    claim()
    client().zadd("jobs:leases", dict.fromkeys(client().zrange("jobs:leases", 0, -1), 1))

    for _ in range(2):
        send(transitions.recover("jobs", "jobs:queue", "r", "recoverer", 30, 3))

    assert counts() == {"added": 1, "started": 1, "recovered": 1}


def test_a_job_that_a_program_puts_in_a_queue_again_is_counted_as_requeued() -> None:
    job, other, third = (TalliedJob.add_job(name) for name in ("a", "b", "bad"))
    work(3)

    job.enqueue_or_delay("counted")
    Queue.get_queue("counted").enqueue_job(other)
    third.requeue(queue_name="counted")
    job.enqueue_or_delay("counted", priority=5)  # it waits already

    assert counts() == {"added": 3, "started": 3, "succeeded": 2, "failed": 1, "requeued": 3}


def test_a_job_that_is_executed_at_once_is_counted_in_the_queue_that_it_names() -> None:
    TalliedJob.execute_now("a")
    TalliedJob.execute_now("bad", requeue_times=1, requeue_delay_delta=0)

    found = {"added": 2, "started": 3, "succeeded": 1, "failed": 2, "requeued": 1}
    assert counts() == found
    assert {one.wait.sum for one in admin.totals()} == {0}


def test_a_job_whose_class_cannot_be_had_is_counted_as_failed() -> None:
    queue = Queue.get_queue("counted")
    client().rpush(queue.waiting.key, "no.such.Thing:1")

    for _ in range(2):
        send(transitions.reject("jobs", f"jobs:queue:{queue.pk.get()}", "no.such.Thing:1", "", START))

    (found,) = admin.totals()
    assert (found.queue, found.task, found.failed) == ("counted", "no.such.Thing", 1)
    client().delete(queue.errors.key)


@pytest.mark.parametrize("many", [False, True], ids=["one", "many"])
def test_calls_of_a_task_are_counted_under_its_name(many: bool) -> None:
    calls: list[dict[str, Any]] = [
        {"identifier": str(number), "task": f"shop:{number % 2}", "arguments": "[[],{}]"} for number in range(4)
    ]
    if many:
        CountedTaskJob.add_jobs(calls)
    else:
        for one in calls:
            CountedTaskJob.add_job(**one)

    work(2)
    work(2, prefetch=2)

    found = {one.task: (one.added, one.started, one.succeeded) for one in admin.totals()}
    assert found == {"shop:0": (2, 2, 2), "shop:1": (2, 2, 2)}


def test_what_is_sent_twice_is_counted_once() -> None:
    TalliedJob.add_job("a")
    TalliedJob.add_job("bad")
    first = claim()
    assert claim() == first
    for _ in range(2):
        send(transitions.finish("jobs", first, START))
    second = claim(token="w-2")
    call = transitions.fail("jobs", second, START, 1, "")
    for _ in range(2):
        send(call)
    subject, target = TalliedJob._class_subject(second.ident.partition(":")[2]), Queue._target("counted", 0)[0]
    delay, hold = transitions.Delay(), transitions.Hold()
    for _ in range(2):
        send(transitions.requeue(subject, target, True, delay, second.token, hold, second.worker))

    assert counts() == {"added": 2, "started": 2, "succeeded": 1, "failed": 1, "requeued": 1}


def test_an_exchange_that_is_sent_twice_is_counted_once() -> None:
    TalliedJob.add_jobs(["a", "b", "c"])
    caller = transitions.Caller("jobs", "jobs:queue", "w", 30.0, 3, False, ("counted",))
    (taken,) = send(transitions.exchange(caller, [], 1, 1, START)).claims
    call = transitions.exchange(caller, [transitions.End(taken.claim, "", START, "")], 2, 1, START)

    for _ in range(2):
        send(call)

    assert counts() == {"added": 3, "started": 2, "succeeded": 1}


def test_what_is_refused_is_not_counted() -> None:
    TalliedJob.add_job("a")
    held = claim()

    with pytest.raises(LeaseLost):
        send(transitions.finish("jobs", held._replace(token="other"), START))

    assert counts() == {"added": 1, "started": 1}


def test_something_else_under_the_key_of_a_minute_is_left_alone() -> None:
    minute = client().time()[0] // 60
    for number in (minute, minute + 1):
        client().set(f"jobs:numbers:{number}", "mine", ex=1000)

    TalliedJob.add_job("a")
    work(1)

    with pytest.raises(ResponseError):
        admin.totals()
    assert TalliedJob.get(identifier="a").status.hget() == "s"


def test_what_holds_no_number_keeps_no_job_from_its_end() -> None:
    minute = client().time()[0] // 60
    for number in (minute, minute + 1):
        fields = {f"a {other} x": 1 for other in range(1000)}
        client().hset(f"jobs:numbers:{number}", mapping={**fields, "a * *": "x", "w0 * *": "x", "s0 * *": "x"})

    job = TalliedJob.add_job("a")
    held = claim(START)
    send(transitions.finish("jobs", held, START))

    assert job.status.hget() == "s"
    for number in (minute, minute + 1):
        client().delete(f"jobs:numbers:{number}")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("mine", "1"),
        ("x5 t q", "1"),
        ("a x", "1"),
        ("wx t q", "1"),
        ("w99 t q", "1"),
        ("a t q", "no"),
        ("w3 t q", "-5"),
    ],
)
def test_what_somebody_else_has_written_among_the_numbers_counts_nothing(field: str, value: str) -> None:
    TalliedJob.add_job("a")
    minute = client().time()[0] // 60
    keys = [f"jobs:numbers:{name}" for name in ("total", f"hour:{minute // 60}", minute - 2, minute)]
    for key in keys:
        client().hset(key, field, value)

    found = [admin.totals(), admin.series(5), admin.by_hour()]
    assert [[one.added for one in numbers] for numbers in found] == [[1], [1], []]
    assert admin.rates()["counted"].rate_in > 0
    client().delete(*keys)


def test_numbers_can_be_read_when_the_memory_is_full() -> None:
    TalliedJob.add_job("a")
    client().config_set("maxmemory", 1)
    try:
        assert [one.added for one in admin.totals()] == [1]
        work(1)
        assert counts() == {"added": 1, "started": 1, "succeeded": 1}
    finally:
        client().config_set("maxmemory", 0)


# --- How long it took


def durations(seconds: float, way: str) -> tuple[float, float]:
    """The bucket and the sum of a run that took so long."""
    TalliedJob.add_job("a")
    held = claim()
    end = str(parse_datetime(START) + timedelta(seconds=seconds))
    if way == "finish":
        send(transitions.finish("jobs", held, end))
    else:
        send(transitions.fail("jobs", held, end, None, ""))
    (found,) = admin.series(2)
    ((bound, count),) = found.run.buckets.items()
    assert count == 1
    return bound, found.run.sum


@pytest.mark.parametrize("way", ["finish", "fail"])
@pytest.mark.parametrize(
    ("seconds", "bound"),
    [
        (0, 0.001),
        (-5, 0.001),
        (0.0004, 0.001),
        (0.001, 0.001),
        (0.0011, 0.002),
        (0.5, 0.512),
        (29.5, 32.768),
        (3000, 4194.304),
        (86400, 134217.728),
        (400 * 86400, BOUNDS[-1]),
    ],
)
def test_the_bucket_of_a_run_is_the_first_that_holds_it(seconds: float, bound: float, way: str) -> None:
    found, total = durations(seconds, way)

    assert found == bound
    assert total == pytest.approx(min(max(seconds, 0), BOUNDS[-1]), rel=0.001, abs=0.000001)


@pytest.mark.parametrize("start", ["", "yesterday", "2026-01-01 10:20", "2026-01-01 10:20:xx", "2026-13-77 99:99:99"])
def test_a_time_that_cannot_be_read_counts_as_none(start: str) -> None:
    job = TalliedJob.add_job("a")
    held = claim()
    client().hset(job.key, "start", start)

    send(transitions.finish("jobs", held, START))

    assert counts() == {"added": 1, "started": 1, "succeeded": 1}


def waited(start: str) -> float:
    """How long a job has waited that starts now."""
    client().delete(*client().keys("jobs:numbers:*"))
    claim(start)
    (found,) = admin.totals()
    return found.wait.sum


def test_a_job_waits_since_it_was_added() -> None:
    job = TalliedJob.add_job("a")
    job.added.hset("2026-01-01 10:20:20.500000")

    assert waited(START) == pytest.approx(10, rel=0.001)
    assert job.waiting_since.hget() is None


def test_a_delayed_job_waits_since_it_was_due() -> None:
    job = TalliedJob.add_job("a", delayed_for=100)
    due = utcnow() - timedelta(seconds=20)
    queue = Queue.get_queue("counted")
    job.delayed_until.hset(str(due))
    client().zadd(queue.delayed.key, {job.ident: 1})
    send(transitions.promote("jobs", "jobs:queue", queue.pk.get()))
    client().hset(job.key, "added", "2026-01-01 00:00:00")

    since = parse_datetime(job.waiting_since.hget())
    assert waited(str(since + timedelta(seconds=30))) == pytest.approx(30, rel=0.001)


@pytest.mark.parametrize(
    "again",
    [
        lambda job: job.requeue(queue_name="counted"),
        lambda job: job.enqueue_or_delay("counted"),
        lambda job: Queue.get_queue("counted").enqueue_job(job),
    ],
    ids=["requeue", "move", "place"],
)
def test_a_job_that_is_put_in_a_queue_again_waits_since_then(again: Callable[[Any], None]) -> None:
    job = TalliedJob.add_job("bad")
    client().hset(job.key, "added", "2020-01-01 00:00:00")
    work(1)

    again(job)

    since = parse_datetime(job.waiting_since.hget())
    assert waited(str(since + timedelta(seconds=7))) == pytest.approx(7, rel=0.001)


def test_a_field_waiting_since_of_a_program_is_left_alone() -> None:
    job = OwnSinceJob.add_job("bad", waiting_since="2020-01-01 00:00:00")
    work(1, requeue_times=1, requeue_delay_delta=0)

    work(1)

    assert job.waiting_since.hget() == "2020-01-01 00:00:00"
    assert all(one.wait.sum < 1000 for one in admin.totals())


def test_a_quantile_lies_in_its_bucket() -> None:
    one = admin.Histogram({0.001: 50, 0.008: 40, 1.024: 10}, 5.0, 100)

    assert one.quantile(0.5) == pytest.approx(0.001)
    assert one.quantile(0.7) == pytest.approx(0.006)
    assert one.quantile(1) == pytest.approx(1.024)
    assert one.quantile(0) == 0
    assert one.mean == 0.05


def test_nothing_has_no_quantile_and_no_mean() -> None:
    assert admin.Histogram().quantile(0.5) is None
    assert admin.Histogram().mean is None
    with pytest.raises(InvalidArgument, match="part"):
        admin.Histogram().quantile(95)


# --- Adding up


def test_minutes_that_are_over_are_added_once_to_hour_and_total() -> None:
    TalliedJob.add_jobs(["a", "bad"])
    work(2)
    new = admin.totals()
    make_past()
    client().delete("jobs:numbers:total")

    assert admin.totals() == new == admin.totals()
    assert [replace(one, time=None) for one in admin.by_hour()] == new
    assert client().ttl(client().keys("jobs:numbers:hour:*")[0]) > 30 * 86400


def test_what_is_counted_later_is_added_to_the_total() -> None:
    TalliedJob.add_job("a")
    make_past()
    admin.totals()

    TalliedJob.add_job("b")

    assert counts() == {"added": 2}
    assert sum(one.added for one in admin.by_hour()) == 1  # the minute is not over


def test_a_call_adds_a_bounded_number_of_minutes() -> None:
    minute = client().time()[0] // 60
    for number in range(1, 6):
        client().hset(f"jobs:numbers:{minute - number}", mapping={f"a x.{one} q": 1 for one in range(300)})
        client().expire(f"jobs:numbers:{minute - number}", 1000)

    done = [send(transitions.roll_up("jobs")) for _ in range(3)]

    assert [one.rolled - minute for one in done] == [-4, -2, -1]
    assert [one.has_more for one in done] == [True, True, False]
    assert sum(one.added for one in admin.totals()) == 1500


def test_a_clock_that_was_put_back_stops_nothing() -> None:
    minute = client().time()[0] // 60
    client().hset("jobs:numbers:total", "rolled", minute + 1000)

    assert send(transitions.roll_up("jobs")).rolled == minute - 1


def test_something_else_under_the_key_of_the_total_is_told() -> None:
    client().set("jobs:numbers:total", "mine")

    with pytest.raises(WrongKeyType, match="jobs:numbers:total"):
        admin.totals()


def test_a_worker_adds_up_from_time_to_time() -> None:
    TalliedJob.add_job("a")
    make_past()
    worker = Worker("counted", terminate_gracefuly=False, logger_level=100)
    worker._roll_up_at = 0

    worker._do_rounds()
    assert client().hget("jobs:numbers:total", f"a {TalliedJob.get_model_repr()} counted") == "1"

    client().delete("jobs:numbers:total")
    worker._do_rounds()  # not again at once
    assert not client().exists("jobs:numbers:total")


def test_too_many_names_are_counted_as_one() -> None:
    minute = client().time()[0] // 60
    for number in (minute, minute + 1):
        client().hset(f"jobs:numbers:{number}", mapping={f"a x.{one} q": 1 for one in range(1000)})
        client().expire(f"jobs:numbers:{number}", 1000)

    TalliedJob.add_jobs(["a", "b"])
    work(2)

    found = [one for one in admin.totals() if one.queue == "*"]
    assert [(one.task, one.added, one.succeeded) for one in found] == [("*", 2, 2)]
    assert TalliedJob.get_model_repr() not in {one.task for one in admin.totals()}


# --- Reading


def test_a_minute_is_kept_for_a_day_and_more() -> None:
    TalliedJob.add_job("a")

    (key,) = client().keys("jobs:numbers:*")
    assert 24 * 3600 < client().ttl(key) <= MINUTES_KEPT * 60


def test_the_series_tells_minutes_apart_and_is_in_order() -> None:
    TalliedJob.add_job("a")
    make_past(2)
    TalliedJob.add_jobs(["b", "c"], "other")
    minute = client().time()[0] // 60

    found = [(one.queue, one.added) for one in admin.series(10)]

    assert found == [("counted", 1), ("other", 2)]
    first, last = (one.time for one in admin.series(10))
    assert first == (minute - 2) * 60 and last is not None and last >= minute * 60
    assert [one.queue for one in admin.series(2)] == ["other"]


def test_rates_are_of_the_last_minutes() -> None:
    TalliedJob.add_jobs(str(number) for number in range(120))
    work(60, prefetch=30)
    make_past(4)

    (found,) = admin.rates(5).values()

    assert 120 / 360 <= found.rate_in <= 120 / 300
    assert found.rate_out == found.started == found.rate_in / 2
    assert admin.rates(2) == {}


@pytest.mark.parametrize("value", [0, -1, True, 2.5, "5", 10**6])
@pytest.mark.parametrize("ask", [admin.series, admin.by_hour, admin.rates], ids=lambda ask: ask.__name__)
def test_how_much_is_wanted_is_checked(ask: Any, value: Any) -> None:
    with pytest.raises(InvalidArgument, match="an integer from 1 to"):
        ask(value)
