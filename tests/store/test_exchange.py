"""exchange.lua and begin.lua: each reply, repeated calls, and the quick way against the general one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any

import pytest
from limpyd import fields
from redis.exceptions import ResponseError

from limpyd_jobs import STATUSES, Job, Queue, admin, recipes, transitions
from limpyd_jobs.exceptions import LeaseLost
from limpyd_jobs.models import BaseJobsModel
from limpyd_jobs.transitions import Claim, End, Exchanged

GENERAL = "local CLASS = nil\n"
NOW, LATER, LAST = "2026-01-01 00:00:00", "2026-01-01 00:00:01", "2026-01-01 00:00:02"
FAR = datetime(2100, 1, 1)


class ExchangeJob(Job):
    """A plain job of these tests."""

    queue_name = "q"


class OtherExchangeJob(Job):
    """A plain job of another class."""

    queue_name = "q"


class SevenSecondsJob(Job):
    queue_name = "q"
    lease_seconds = 7.5


class NeverBackJob(Job):
    """One that is given back never."""

    queue_name = "q"
    max_recoveries = 0


class OftenBackJob(Job):
    queue_name = "q"
    max_recoveries = 9


class IndexedEndJob(Job):
    queue_name = "q"
    end = fields.InstanceHashField(indexable=True)


class IndexedTriesJob(Job):
    queue_name = "q"
    tries = fields.InstanceHashField(indexable=True)


MODELS = [ExchangeJob, SevenSecondsJob, NeverBackJob, OftenBackJob, IndexedEndJob, IndexedTriesJob]


@pytest.fixture(autouse=True)
def books(database: Any) -> Iterator[None]:
    """After each test no key is without an owner, and the invariants hold."""
    yield
    assert [str(problem) for problem in admin.check()] == []


def client() -> Any:
    return BaseJobsModel.database.connection


def send(call: transitions.Call[Any]) -> Any:
    return transitions.send(client(), call)


def caller(names: Sequence[str] = ("q",), worker: str = "w", max_recoveries: int = 3) -> transitions.Caller:
    return transitions.Caller("jobs", "jobs:queue", worker, 30.0, max_recoveries, False, tuple(names))


def exchange_call(
    ends: Sequence[End] = (),
    claims_count: int = 1,
    number: int = 1,
    *,
    by: transitions.Caller | None = None,
    made_for: str = GENERAL,
    looks_around: bool = False,
    **more: Any,
) -> transitions.Call[Exchanged]:
    return transitions.exchange(
        by or caller(), ends, number, claims_count, NOW, looks_around=looks_around, made_for=made_for, **more
    )


def exchange(*args: Any, **more: Any) -> Exchanged:
    found: Exchanged = send(exchange_call(*args, **more))
    return found


def claim_all(count: int = 1, **more: Any) -> list[Claim]:
    """Take the next jobs as a worker would that the test plays."""
    held = [taken.claim for taken in exchange((), count, **more).claims if taken.claim is not None]
    assert len(held) == count
    return held


def ends_of(held: Sequence[Claim], end: str = LATER) -> list[End]:
    """The first one runs; the others were claimed ahead."""
    return [End(one, NOW if position else "", end) for position, one in enumerate(held)]


def kinds(outcomes: Sequence[Any]) -> list[str]:
    return ["LOST" if isinstance(one, LeaseLost) else one.kind for one in outcomes]


def add(count: int, model: Any = ExchangeJob, **more: Any) -> list[Any]:
    return [model.add_job(f"{model.__name__}-{number}", **more) for number in range(count)]


def waiting(name: str = "q", priority: int = 0) -> list[str]:
    found: list[str] = Queue.get_queue(name, priority).waiting.lmembers()
    return found


def lapse() -> None:
    for ident in client().zrange("jobs:leases", 0, -1):
        client().zadd("jobs:leases", {ident: 1})


def recover(max_recoveries: int = 3) -> Any:
    return send(transitions.recover("jobs", "jobs:queue", "r", "recoverer", 30, max_recoveries))


def snapshot() -> dict[str, Any]:
    """All that Redis holds, but how long leases and notes last."""
    readers: dict[str, Callable[[str], Any]] = {
        "string": client().get,
        "hash": client().hgetall,
        "set": client().smembers,
        "list": lambda key: client().lrange(key, 0, -1),
        "zset": lambda key: client().zrange(key, 0, -1, withscores=True),
    }
    found = {key: readers[client().type(key)](key) for key in client().keys("*")}
    minutes = [found.pop(key) for key in list(found) if key.startswith("jobs:numbers:")]  # a call may begin a new one
    found["jobs:numbers"] = sum(
        (Counter({name: int(text) for name, text in one.items()}) for one in minutes), Counter()
    )
    now = client().time()[0]
    found["jobs:leases"] = sorted((ident, round(score - now, -1)) for ident, score in found.get("jobs:leases", []))
    return found


def ways(model: Any = ExchangeJob) -> tuple[str, str]:
    return GENERAL, recipes.plain_life(model, Queue)


@pytest.fixture
def way(request: pytest.FixtureRequest, database: Any) -> str:
    return ways()[request.param == "quick"]


in_both_ways = pytest.mark.parametrize("way", ["general", "quick"], indirect=True)


def test_the_quick_way_is_there_for_plain_classes_only() -> None:
    found = {model.__name__: recipes.plain_life(model, Queue) != GENERAL for model in MODELS}

    assert [name for name, is_plain in found.items() if not is_plain] == ["IndexedEndJob", "IndexedTriesJob"]


# --- Replies to claims


@in_both_ways
def test_claimed_the_first_one_runs_and_the_others_are_claimed_ahead(way: str) -> None:
    jobs = add(3)

    claims = exchange((), 5, made_for=way).claims

    assert [taken.kind for taken in claims] == ["CLAIMED"] * 3 + ["EMPTY"]
    assert [taken.ident for taken in claims[:3]] == [job.ident for job in jobs]
    assert [taken.is_ahead for taken in claims[:3]] == [False, True, True]
    assert [taken.claim.token for taken in claims[:3] if taken.claim] == ["w-1", "w-2", "w-3"]
    assert [job.hmget("status", "tries", "start") for job in jobs] == [
        [STATUSES.RUNNING, "1", NOW],
        [STATUSES.WAITING, None, None],
        [STATUSES.WAITING, None, None],
    ]
    assert waiting() == []
    assert client().zcard("jobs:leases") == 3


@in_both_ways
def test_claimed_none_runs_when_the_first_does_not(way: str) -> None:
    jobs = add(2)

    claims = exchange((), 2, made_for=way, runs_count=0).claims

    assert [taken.is_ahead for taken in claims] == [True, True]
    assert [job.status.hget() for job in jobs] == [STATUSES.WAITING] * 2


@in_both_ways
def test_claimed_no_more_than_were_asked_for(way: str) -> None:
    jobs = add(5)

    claims = exchange((), 3, made_for=way).claims

    assert [taken.ident for taken in claims] == [job.ident for job in jobs[:3]]
    assert waiting() == [job.ident for job in jobs[3:]]


@in_both_ways
def test_without_claims_only_ends_are_recorded(way: str) -> None:
    jobs = add(3)
    held = claim_all(2)

    done = exchange(ends_of(held), 0, 3, made_for=way)

    assert (kinds(done.ends), list(done.claims)) == (["OK", "OK"], [])
    assert waiting() == [jobs[2].ident]


@in_both_ways
def test_a_claim_after_a_job_whose_lease_has_lapsed_is_not_made(way: str) -> None:
    first, second, third = add(3)
    second.recoveries.hset(1)

    alone = exchange((), 3, made_for=way).claims
    after = exchange((), 3, 4, made_for=way).claims

    assert [taken.ident for taken in alone] == [first.ident]
    assert [taken.ident for taken in after] == [second.ident]
    assert not after[0].is_ahead
    assert waiting() == [third.ident]


@in_both_ways
def test_with_no_recoveries_each_job_is_claimed_alone(way: str) -> None:
    jobs = add(3)

    claims = exchange((), 3, made_for=way, by=caller(max_recoveries=0)).claims

    assert [taken.ident for taken in claims] == [jobs[0].ident]


@pytest.mark.parametrize("runs_count", [1, 0])
@in_both_ways
def test_nothing_is_claimed_after_a_job_of_a_class_that_is_given_back_never(way: str, runs_count: int) -> None:
    alone, others = NeverBackJob.add_job("alone"), add(2)
    made_for = GENERAL if way == GENERAL else recipes.plain_life(NeverBackJob, Queue)

    claims = exchange((), 3, made_for=made_for, runs_count=runs_count).claims

    assert [taken.ident for taken in claims] == ([alone.ident] if runs_count else [])
    assert waiting() == [job.ident for job in ([] if runs_count else [alone]) + others]


@in_both_ways
def test_stale_an_entry_of_a_job_that_has_ended_is_taken_away_and_the_last_reply(way: str) -> None:
    ended, other = add(2)
    ended.status.hset(STATUSES.SUCCESS)

    claims = exchange((), 3, made_for=way).claims

    assert [(taken.kind, taken.ident, taken.status) for taken in claims] == [("STALE", ended.ident, STATUSES.SUCCESS)]
    assert ended.queued.hget() is None
    assert waiting() == [other.ident]


@in_both_ways
def test_stale_a_second_entry_of_a_job_that_is_claimed_ahead_is_taken_away(way: str) -> None:
    jobs = add(2)
    client().rpush(Queue.get_queue("q").waiting.key, jobs[1].ident)

    claims = exchange((), 5, made_for=way).claims

    assert [taken.kind for taken in claims] == ["CLAIMED", "CLAIMED", "STALE"]
    assert (claims[2].ident, claims[2].status) == (jobs[1].ident, STATUSES.RUNNING)
    assert jobs[1].hmget("status", "queued") == [STATUSES.WAITING, "1"]


@in_both_ways
def test_gone_an_entry_without_a_record_is_taken_away(way: str) -> None:
    (job,) = add(1)
    ident = job.ident.replace(":1", ":99")
    client().rpush(Queue.get_queue("q").waiting.key, ident)

    claims = exchange((), 3, made_for=way).claims

    assert [(taken.kind, taken.ident) for taken in claims] == [("CLAIMED", job.ident), ("GONE", ident)]
    assert waiting() == []


@in_both_ways
def test_unknown_a_class_that_is_not_in_the_registry_is_left_where_it_is(way: str) -> None:
    (job,) = add(1)
    client().rpush(Queue.get_queue("q").waiting.key, "a.strange.Class:1")

    claims = exchange((), 3, made_for=way).claims

    assert [(taken.kind, taken.ident) for taken in claims] == [("CLAIMED", job.ident), ("UNKNOWN", "a.strange.Class:1")]
    assert waiting() == ["a.strange.Class:1"]
    Queue.get_queue("q").waiting.delete()


@in_both_ways
def test_unreadable_a_record_that_is_no_hash_is_left_where_it_is(way: str) -> None:
    _, second = add(2)
    key = f"{second._name}:2:hash"
    client().rename(key, "saved")
    client().set(key, "x")

    claims = exchange((), 3, made_for=way).claims

    assert [taken.kind for taken in claims] == ["CLAIMED", "UNREADABLE"]
    assert (claims[1].ident, claims[1].broken_key) == (second.ident, key)
    assert waiting() == [second.ident]
    client().rename("saved", key)


@pytest.mark.parametrize("key", ["jobs:ready:queue:q", "jobs:queue:1:waiting", "jobs:queue:1:hash"])
@in_both_ways
def test_broken_a_key_of_a_queue_that_is_of_another_type_is_named(way: str, key: str) -> None:
    add(1)
    client().rename(key, "saved")
    client().set(key, "x")

    claims = exchange((), 3, made_for=way).claims

    assert [(taken.kind, taken.broken_key) for taken in claims] == [("BROKEN", key)]
    client().rename("saved", key)


@in_both_ways
@pytest.mark.parametrize("index", ["status:w", "status:r", "status:s", "status:e", "queued:1"])
def test_broken_an_index_of_another_type_is_named_by_one_who_looks_around(way: str, index: str) -> None:
    add(1)
    key = f"jobs:exchangejob:{index}"
    if client().exists(key):
        client().rename(key, "saved")
    client().set(key, "x")

    claims = exchange((), 3, made_for=way, looks_around=True).claims

    assert [taken.kind for taken in claims] == ["BROKEN"]
    assert claims[0].broken_key == key
    client().delete(key)
    if client().exists("saved"):
        client().rename("saved", key)


@in_both_ways
def test_one_who_looks_around_hears_when_the_next_job_is_due(way: str) -> None:
    add(2)
    ExchangeJob.add_job("later", delayed_for=100)

    claims = exchange((), 2, made_for=way, looks_around=True).claims

    assert [taken.kind for taken in claims] == ["CLAIMED", "CLAIMED"]
    assert claims[0].next_due is not None and 90 < claims[0].next_due <= 100
    assert claims[1].next_due is None


@in_both_ways
def test_a_queue_that_is_known_to_be_broken_is_passed_over(way: str) -> None:
    add(1, priority=5)
    job = ExchangeJob.add_job("good")
    key = Queue.get_queue("q", 5).waiting.key
    client().rename(key, "saved")
    client().set(key, "x")

    claims = exchange((), 3, made_for=way, broken=[key]).claims

    assert [taken.ident for taken in claims] == [job.ident, ""]
    client().rename("saved", key)


@in_both_ways
def test_empty_says_when_the_first_delayed_job_is_due(way: str) -> None:
    ExchangeJob.add_job("later", delayed_for=100)

    claims = exchange((), 3, made_for=way).claims

    assert [taken.kind for taken in claims] == ["EMPTY"]
    assert claims[0].next_due is not None and 90 < claims[0].next_due <= 100


# --- Replies to ends


@in_both_ways
def test_ok_of_a_running_job_and_of_one_claimed_ahead(way: str) -> None:
    jobs = add(2)
    Queue.get_queue("q").keep_success.hset(3)
    held = claim_all(2)

    done = exchange(ends_of(held), 1, 3, made_for=way)

    assert kinds(done.ends) == ["OK", "OK"]
    assert [(one.history.length, one.history.keep) for one in done.ends] == [(1, "3"), (2, "3")]  # type: ignore[union-attr]
    assert [job.hmget("status", "tries", "start", "end", "queued") for job in jobs] == [
        [STATUSES.SUCCESS, "1", NOW, LATER, None]
    ] * 2
    assert Queue.get_queue("q").success.lmembers() == [job.ident for job in jobs]
    assert client().zcard("jobs:leases") == client().hlen("jobs:claims") == 0


@in_both_ways
def test_a_job_that_is_not_in_the_index_of_its_status_comes_to_that_of_the_next_one(way: str) -> None:
    (job,) = add(1)
    client().delete(f"{ExchangeJob._name}:status:w")
    held = claim_all(made_for=way)
    assert client().smembers(f"{ExchangeJob._name}:status:r") == {job.pk.get()}
    client().delete(f"{ExchangeJob._name}:status:r")

    exchange(ends_of(held), 0, made_for=way)

    assert client().smembers(f"{ExchangeJob._name}:status:s") == {job.pk.get()}


@in_both_ways
def test_lost_the_end_of_a_job_that_somebody_else_holds_is_not_written_and_nothing_is_claimed(way: str) -> None:
    jobs = add(3)
    held = claim_all(2)
    lapse()
    recover()
    other = claim_all(1, by=caller(worker="other"))
    before = snapshot()

    done = exchange([End(held[0], "", LATER)], 2, 3, made_for=way)

    assert (kinds(done.ends), list(done.claims)) == (["LOST"], [])
    assert snapshot() == before
    assert other[0].ident in (jobs[0].ident, jobs[1].ident)


@in_both_ways
def test_a_lost_end_does_not_keep_those_around_it_from_being_recorded(way: str) -> None:
    jobs = add(4)
    held = claim_all(3)
    stolen = replace_token(held[1])

    done = exchange(ends_of([held[0], stolen, held[2]]), 1, 4, made_for=way)

    assert (kinds(done.ends), list(done.claims)) == (["OK", "LOST", "OK"], [])
    assert [job.status.hget() for job in jobs] == ["s", "w", "s", "w"]


def replace_token(held: Claim) -> Claim:
    return held._replace(token="elsewhere-1")


@in_both_ways
def test_gone_the_end_of_a_job_whose_record_was_deleted_drops_its_lease(way: str) -> None:
    jobs = add(2)
    held = claim_all(2)
    jobs[1].delete()

    done = exchange(ends_of(held), 1, 3, made_for=way)

    assert (kinds(done.ends), list(done.claims)) == (["OK", "GONE"], [])
    assert client().zcard("jobs:leases") == client().hlen("jobs:claims") == 0


@pytest.mark.parametrize("status", [STATUSES.CANCELED, STATUSES.DELAYED])
@in_both_ways
def test_changed_a_job_that_was_canceled_or_delayed_is_no_success(way: str, status: str) -> None:
    jobs = add(3)
    held = claim_all(2)
    jobs[1].status.hset(status)

    done = exchange(ends_of(held), 1, 3, made_for=way)

    assert (kinds(done.ends), list(done.claims)) == (["OK", "CHANGED"], [])
    assert done.ends[1].status == status  # type: ignore[union-attr]
    assert jobs[1].hmget("status", "end", "queued") == [status, None, "1"]
    assert client().zrange("jobs:leases", 0, -1) == [jobs[1].ident]


@in_both_ways
def test_an_end_of_a_queue_that_was_deleted_says_so(way: str) -> None:
    (job,) = add(1)
    (held,) = claim_all()
    Queue.get_queue("q").delete()
    client().delete("jobs:ready:queue:q", "jobs:queues:queue:q", "jobs:doorbell:queue:q")

    done = exchange([End(held, "", LATER)], 0, 2, made_for=way)

    assert done.ends[0].history.length == -2  # type: ignore[union-attr]
    assert job.status.hget() == STATUSES.SUCCESS


# --- Repeated calls


@in_both_ways
def test_the_same_call_sent_twice_records_and_claims_nothing_twice(way: str) -> None:
    jobs = add(6)
    held = claim_all(3)
    call = exchange_call(ends_of(held), 2, 4, made_for=way)

    once = send(call)
    before = snapshot()
    twice = send(call)

    assert (kinds(once.ends), kinds(twice.ends)) == (["OK"] * 3, ["ALREADY"] * 3)
    assert [taken.ident for taken in once.claims] == [taken.ident for taken in twice.claims]
    assert [taken.is_ahead for taken in once.claims] == [taken.is_ahead for taken in twice.claims] == [False, True]
    assert [taken.status for taken in twice.claims] == ["w", "w"]
    assert snapshot() == before
    assert [job.tries.hget() for job in jobs] == ["1", "1", "1", "1", None, None]


@in_both_ways
def test_the_same_tokens_asked_for_with_more_get_the_same_jobs_and_others(way: str) -> None:
    jobs = add(6)
    claim_all(2, made_for=way, runs_count=0)

    claims = exchange((), 4, made_for=way).claims

    assert [taken.ident for taken in claims] == [job.ident for job in jobs[:4]]
    assert [taken.is_ahead for taken in claims] == [True] * 4
    assert waiting() == [job.ident for job in jobs[4:]]


@in_both_ways
def test_ends_of_which_some_are_recorded_already_record_the_others(way: str) -> None:
    add(3)
    held = ends_of(claim_all(2))
    exchange(held[:1], 0, 3, made_for=way)

    done = exchange(held, 1, 3, made_for=way)

    assert kinds(done.ends) == ["ALREADY", "OK"]
    assert [taken.kind for taken in done.claims] == ["CLAIMED"]
    assert Queue.get_queue("q").success.llen() == 2


@in_both_ways
def test_ends_that_were_recorded_in_two_steps_are_already_recorded_when_they_are_repeated(way: str) -> None:
    add(3)
    held = ends_of(claim_all(2))
    exchange(held[:1], 0, 3, made_for=way)  # by the thread; its reply was lost
    exchange(held, 1, 3, made_for=way)  # its reply was lost, too

    done = exchange(held, 1, 3, made_for=way)

    assert kinds(done.ends) == ["ALREADY", "ALREADY"]
    assert [taken.kind for taken in done.claims] == ["CLAIMED"]


@in_both_ways
def test_a_job_that_has_begun_by_a_call_whose_reply_was_lost_has_one_try(way: str) -> None:
    jobs = add(2)
    held = claim_all(2)
    send(transitions.begin("jobs", held[1], NOW))

    done = exchange(ends_of(held), 0, 3, made_for=way)

    assert kinds(done.ends) == ["OK", "OK"]
    assert [job.hmget("status", "tries", "start") for job in jobs] == [[STATUSES.SUCCESS, "1", NOW]] * 2


def test_a_claim_repeats_what_an_exchange_has_claimed_and_the_reverse() -> None:
    jobs = add(2)
    (held,) = claim_all()
    claim = transitions.claim("jobs", "jobs:queue", "w-1", "w", 30, NOW, ["q"])

    again = send(claim)
    claims = exchange((), 2).claims

    assert again.ident == claims[0].ident == held.ident == jobs[0].ident
    assert jobs[0].tries.hget() == "1"
    assert claims[1].ident == jobs[1].ident


# --- An end that cannot be recorded


@in_both_ways
def test_an_end_that_cannot_be_recorded_does_not_make_others_look_lost(way: str) -> None:
    jobs = add(3)
    held = ends_of(claim_all(3))
    key = f"{jobs[1]._name}:2:hash"
    client().rename(key, "saved")
    client().set(key, "x")
    with suppress(ResponseError):
        exchange(held, 0, 4, made_for=way)
    client().delete(key)
    client().rename("saved", key)

    done = exchange(held, 0, 4, made_for=way)

    assert "LOST" not in kinds(done.ends)
    assert [job.status.hget() for job in (jobs[0], jobs[2])] == [STATUSES.SUCCESS] * 2


@pytest.mark.parametrize("count", [2, 4])
def test_ends_whose_index_is_of_another_type_leave_the_other_one_as_it_is(count: int) -> None:
    jobs = add(count)
    made_for = ways()[1]
    ends = ends_of(claim_all(count, made_for=made_for))
    key = f"{jobs[0]._name}:status:s"
    client().delete(key)
    client().set(key, "something else")

    found = exchange(ends, 0, count + 1, made_for=made_for).ends
    client().delete(key)

    assert [type(one) for one in found] == [ResponseError] * count
    assert len(client().smembers(f"{jobs[0]._name}:status:w")) == count - 1
    assert kinds(exchange(ends, 0, count + 1, made_for=made_for).ends) == ["OK"] * count


def test_ends_that_are_plain_and_others_in_turn_are_recorded_in_their_order() -> None:
    jobs, made_for = add(9), ways()[1]
    ends = ends_of(claim_all(9, made_for=made_for))
    for job in jobs[1:9:3]:
        client().hset(job.key, "follow_up", "w")

    found = exchange(ends, 0, 10, made_for=made_for).ends

    assert kinds(found) == ["OK"] * 9
    assert client().lrange("jobs:queue:1:success", 0, -1) == [job.ident for job in jobs]


# --- begin


@pytest.fixture
def ahead() -> tuple[Any, Claim]:
    """A job that was claimed ahead, and the claim."""
    jobs = add(2)
    return jobs[1], claim_all(2)[1]


def begin(held: Claim, start: str = LATER) -> Any:
    return send(transitions.begin("jobs", held, start))


def test_begin_ok_the_job_runs(ahead: Any) -> None:
    job, held = ahead

    assert begin(held).kind == "OK"

    assert job.hmget("status", "tries", "start", "queued") == [STATUSES.RUNNING, "1", LATER, "1"]
    assert ExchangeJob.collection(status=STATUSES.RUNNING, pk=job.pk.get())


def test_begin_ok_once_more_for_a_repeated_call(ahead: Any) -> None:
    job, held = ahead
    begin(held)

    assert begin(held, LAST).kind == "OK"

    assert job.hmget("tries", "start") == ["1", LATER]


def test_begin_lost_for_whoever_has_not_the_lease(ahead: Any) -> None:
    _, held = ahead
    before = snapshot()

    with pytest.raises(LeaseLost):
        begin(replace_token(held))

    assert snapshot() == before


def test_begin_lost_while_the_job_waits_again(ahead: Any) -> None:
    _, held = ahead
    lapse()
    recover()
    before = snapshot()

    with pytest.raises(LeaseLost):
        begin(held)

    assert snapshot() == before


@pytest.mark.parametrize("status", [STATUSES.CANCELED, STATUSES.DELAYED])
def test_begin_changed_for_a_job_that_is_not_to_run(ahead: Any, status: str) -> None:
    job, held = ahead
    job.status.hset(status)
    before = snapshot()

    done = begin(held)

    assert (done.kind, done.status) == ("CHANGED", status)
    assert snapshot() == before


def test_begin_gone_for_a_job_whose_record_was_deleted(ahead: Any) -> None:
    job, held = ahead
    job.delete()

    assert begin(held).kind == "GONE"
    assert held.ident in client().hgetall("jobs:claims")  # until its end

    assert send(transitions.skip("jobs", held)).kind == "GONE"
    assert held.ident not in client().hgetall("jobs:claims")


# --- Redis is full


@in_both_ways
def test_what_is_there_is_worked_off_when_the_memory_is_full(way: str) -> None:
    jobs = add(4)
    held = claim_all(2)
    client().config_set("maxmemory", 1)
    try:
        done = exchange(ends_of(held), 2, 3, made_for=way)
        ahead = done.claims[1].claim
        assert ahead is not None
        begun = begin(ahead)
    finally:
        client().config_set("maxmemory", 0)

    assert kinds(done.ends) == ["OK", "OK"]
    assert begun.kind == "OK"
    assert [job.status.hget() for job in jobs] == ["s", "s", "r", "r"]


# --- The quick way writes and answers what the general one does


def plain(model: Any) -> None:
    add(4, model)


def canceled(model: Any) -> None:
    for job in add(4, model)[::2]:
        job.status.hset(STATUSES.CANCELED)


def delayed(model: Any) -> None:
    for job in add(4, model)[1::2]:
        job.hmset(status=STATUSES.DELAYED, delayed_until=str(FAR))
    model.add_job("later", delayed_until=FAR)


def deleted(model: Any) -> None:
    jobs = add(4, model)
    client().delete(f"{model._name}:{jobs[1].pk.get()}:hash")


def lapsed(model: Any) -> None:
    for job in add(4, model)[1:3]:
        job.recoveries.hset(1)


def other_class(model: Any) -> None:
    add(1, OtherExchangeJob)
    add(2, model)
    OtherExchangeJob.add_job("between")
    model.add_job("last")


def first_of_other_class(model: Any) -> None:
    add(1, model)
    add(3, OtherExchangeJob)


def two_priorities(model: Any) -> None:
    add(2, model)
    for number in range(2):
        model.add_job(f"high-{number}", priority=5)


def second_name(model: Any) -> None:
    add(2, model)
    model.add_job("there", queue_name="p", priority=1)
    model.add_job("there too", queue_name="p")


def tried(model: Any) -> None:
    for tries, job in zip(("3", "many", "-1", "2.5"), add(4, model), strict=True):
        job.tries.hset(tries)


def bare(model: Any) -> None:
    """As a program of version 2 may leave them."""
    for job in add(4, model):
        job.hdel("queue_key")
    client().hdel(f"{model._name}:2:hash", "priority")


def run_twice(model: Any) -> None:
    jobs = add(3, model)
    client().rpush(Queue.get_queue("q").waiting.key, jobs[0].ident)


def own_number(model: Any) -> None:
    for job in add(3, model):
        job.cancel_on_error.hset(1)
        client().hset(f"{model._name}:{job.pk.get()}:hash", "start", LAST)


SCENARIOS = [
    plain,
    canceled,
    delayed,
    deleted,
    lapsed,
    other_class,
    first_of_other_class,
    two_priorities,
    second_name,
    tried,
    bare,
    run_twice,
    own_number,
]


def answer(found: Exchanged) -> Any:
    """What was answered, but for indexes that no script knows, which have another way to the same end."""
    claims = [replace_changes(taken) for taken in found.claims]
    return kinds(found.ends), [repr(one) for one in found.ends], claims


def replace_changes(taken: transitions.Taken) -> Any:
    due = taken.next_due
    claim = taken.claim._replace(changes=()) if taken.claim else None
    return taken._replace(claim=claim, next_due=None if due is None else round(due, -4))


def tell(scenario: Any, model: Any, count: int, runs_count: int, made_for: str, names: Any, looks: bool) -> list[Any]:
    """The whole story of a scenario: claim, end those and claim others, with a harm in between, twice; all answers."""
    client().flushall()
    scenario(model)
    story: list[Any] = []
    by, number, ends = caller(names), 1, list[End]()
    for turn in range(6):
        call = exchange_call(ends, count, number, by=by, made_for=made_for, runs_count=runs_count, looks_around=looks)
        found = send(call)
        story += [answer(found), answer(send(call)), normal(snapshot())]
        if found.claims or not count:
            number += max(count, 1)
        ends = []
        for taken in found.claims:
            if taken.claim is None:
                continue
            if taken.status != "w":
                send(transitions.skip("jobs", taken.claim))
            else:
                ends.append(End(taken.claim, LATER if taken.is_ahead else "", LAST))
        if turn == 1 and len(ends) > 1:
            ends[-1] = ends[-1]._replace(held=replace_token(ends[-1].held))
        if turn > 1 and not found.claims:
            break
    call = exchange_call(ends, 0, number, by=by, made_for=made_for)
    return [*story, answer(send(call)), normal(snapshot())]


def normal(found: dict[str, Any]) -> dict[str, Any]:
    """Without what differs from run to run."""
    for key, value in found.items():
        if key.endswith(":hash") and isinstance(value, dict):
            value.pop("added", None)
    return {key: value for key, value in found.items() if "added" not in key}


def tidy() -> None:
    """What the stories leave, on purpose."""
    client().flushall()


@pytest.mark.parametrize(
    ("count", "runs_count", "looks", "names"),
    [
        (1, 1, False, "q"),
        (1, 0, False, "q"),
        (5, 1, False, "q"),
        (5, 0, False, "q"),
        (5, 5, False, "q"),
        (1, 1, True, "q"),
        (5, 1, True, "q"),
        (1, 1, False, "qp"),
    ],
    ids=[
        "it runs",
        "it is ahead",
        "first runs",
        "all ahead",
        "all run",
        "a look",
        "some with a look",
        "two names",
    ],
)
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_the_quick_way_leaves_and_answers_what_the_general_one_does(
    model: Any, scenario: Any, count: int, runs_count: int, looks: bool, names: Any
) -> None:
    general, quick = ways(model)

    expected = tell(scenario, model, count, runs_count, general, names, looks)
    found = tell(scenario, model, count, runs_count, quick, names, looks)

    tidy()
    for turn, (one, other) in enumerate(zip(expected, found, strict=True)):
        assert other == one, f"at step {turn}"
