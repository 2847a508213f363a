"""What the scripts do with jobs that say how many may run at the same time, or start in some time."""

from __future__ import annotations

import json
from typing import Any

import pytest

from limpyd_jobs import STATUSES, Cancellation, Job, Queue, admin, lua, recipes, transitions
from limpyd_jobs.exceptions import LeaseLost
from limpyd_jobs.utils import utcnow

NOW = "2026-01-01 00:00:00"
CALLER = transitions.Caller("jobs", "jobs:queue", "x", 30.0, 3, False, ("q",))


class LimitsPlainJob(Job):
    queue_name = "q"


class LimitsOneJob(Job):
    """One at a time."""

    queue_name = "q"
    max_concurrency = 1


class LimitsOtherJob(Job):
    """One that names its key."""

    queue_name = "q"
    max_concurrency = 2
    limit_key = "shared"


class LimitsRateJob(Job):
    """Two in an hour."""

    queue_name = "q"
    rate_limit = "2/h"


@pytest.fixture(autouse=True)
def books(database: Any) -> Any:
    yield
    assert [str(problem) for problem in admin.check()] == []


def client() -> Any:
    return Job.database.connection


def send(call: transitions.Call[Any]) -> Any:
    return transitions.send(client(), call)


def take(token: str, **more: Any) -> transitions.Taken:
    call = transitions.claim("jobs", "jobs:queue", token, token.split("-")[0], 30, NOW, ("q",), **more)
    taken: transitions.Taken = send(call)
    return taken


def claim(token: str, **more: Any) -> transitions.Claim:
    taken = take(token, **more)
    assert taken.claim is not None, taken
    return taken.claim


def finish(holding: transitions.Claim) -> str:
    return str(send(transitions.finish("jobs", holding, NOW)).kind)


def waiting(name: str = "q") -> list[str]:
    found = [ident for queue in Queue.get_all_by_priority(name) for ident in queue.waiting.lmembers()]
    return [str(Job.get_from_ident(ident).identifier.hget()) for ident in found]


def parked(key: str) -> list[str]:
    names = client().zrange(f"jobs:limit:{key}:parked", 0, -1)
    return [str(Job.get_from_ident(name.partition(" ")[2]).identifier.hget()) for name in names]


def held(key: str) -> set[str]:
    return set(client().zrange(f"jobs:limit:{key}:held", 0, -1))


ONE = LimitsOneJob.get_model_repr()
RATE = LimitsRateJob.get_model_repr()


def add(*identifiers: str, model: Any = LimitsOneJob, **options: Any) -> list[Any]:
    return [model.add_job(identifier, **options) for identifier in identifiers]


def end_by_hand(job: Any) -> None:
    """What a program does with a job that is in no place any more."""
    job.status.hset(STATUSES.SUCCESS)
    job.queued.delete()


def lapse() -> None:
    for ident in client().zrange("jobs:leases", 0, -1):
        client().zadd("jobs:leases", {ident: 1})


def recover() -> transitions.Recovered:
    done: transitions.Recovered = send(transitions.recover("jobs", "jobs:queue", "r", "recoverer", 30, 3))
    return done


# --- At the same time


def test_a_job_without_room_is_parked_and_the_next_one_is_taken() -> None:
    add("a", "b")
    add("plain", model=LimitsPlainJob)

    first, second = claim("w-1"), claim("v-1")

    assert (first.identifier, second.identifier) == ("a", "plain")
    assert (waiting(), parked(ONE)) == ([], ["b"])
    assert Queue.count_waiting_jobs("q") == 0
    assert Queue.count_parked_jobs() == {ONE: 1}
    assert LimitsOneJob.get(identifier="b").status.hget() == STATUSES.WAITING


def test_the_end_of_a_job_brings_the_first_parked_one_to_the_head_of_its_list_and_rings() -> None:
    add("a", "b", "c")
    first = claim("w-1")
    assert take("v-1").kind == "EMPTY"
    add("plain", model=LimitsPlainJob)
    client().delete("jobs:doorbell:queue:q")

    assert finish(first) == "OK"

    assert (waiting(), parked(ONE)) == (["b", "plain"], ["c"])
    assert client().llen("jobs:doorbell:queue:q") == 1
    assert finish(first) == "ALREADY"
    assert waiting() == ["b", "plain"]
    assert claim("v-2").identifier == "b"


def test_a_repeated_claim_answers_the_same_job_and_takes_one_place() -> None:
    add("a", "b", model=LimitsOtherJob)

    assert claim("w-1") == claim("w-1")

    assert held("shared") == {LimitsOtherJob.get(identifier="a").ident}
    assert claim("v-1").identifier == "b"


def test_a_repeated_claim_that_has_parked_finds_the_same_answer() -> None:
    add("a", "b")
    claim("w-1")

    assert [take("v-1").kind, take("v-1").kind] == ["EMPTY", "EMPTY"]

    assert parked(ONE) == ["b"]


def test_parked_jobs_start_by_priority_and_then_in_their_order() -> None:
    add("a", "b", "c")
    claims = [claim("w-1")]
    assert take("v-1").kind == "EMPTY"
    add("high", "higher", priority=5)
    add("low", priority=-5)
    assert take("v-1").kind == "EMPTY"
    assert parked(ONE) == ["high", "higher", "b", "c", "low"]

    order = []
    for number in range(5):
        finish(claims[-1])
        claims.append(claim(f"v-{number + 2}"))
        order.append(claims[-1].identifier)

    assert order == ["high", "higher", "b", "c", "low"]


def test_a_job_that_was_called_and_finds_no_room_keeps_its_turn() -> None:
    add("a", "b", "c")
    first = claim("w-1")
    assert take("v-1").kind == "EMPTY"
    finish(first)  # b is called
    add("urgent", priority=9)

    assert claim("w-2").identifier == "urgent"
    assert take("v-2").kind == "EMPTY"

    assert parked(ONE) == ["b", "c"]


def test_each_end_of_a_lease_frees_the_place() -> None:
    def fails(holding: transitions.Claim) -> None:
        send(transitions.fail("jobs", holding, NOW, None, ""))

    def fails_and_is_requeued(holding: transitions.Claim) -> None:
        send(transitions.fail("jobs", holding, NOW, 3, ""))
        assert parked(ONE) == ["b"], "its lease is not over yet"
        job = Job.get_from_ident(holding.ident)
        job._claim = holding
        job.requeue("q", delayed_for=100)

    def is_skipped(holding: transitions.Claim) -> None:
        Job.get_from_ident(holding.ident).cancel()
        send(transitions.skip("jobs", holding))

    def moves(holding: transitions.Claim) -> None:
        job = Job.get_from_ident(holding.ident)
        job._claim = holding
        job.enqueue_or_delay("elsewhere", 0)

    def is_exchanged(holding: transitions.Claim) -> None:
        send(transitions.exchange(CALLER, [transitions.End(holding, "", NOW)], 1, 0, NOW, looks_around=False))

    for number, end in enumerate([fails, fails_and_is_requeued, is_skipped, moves, is_exchanged]):
        client().flushdb()
        add("a", "b")
        first = claim(f"w{number}-1")
        assert take(f"v{number}-1").kind == "EMPTY"
        end(first)
        assert claim(f"v{number}-2").identifier == "b", end
        assert held(ONE) == {LimitsOneJob.get(identifier="b").ident}


def test_an_exchange_that_is_made_for_the_class_frees_the_place_and_takes_the_next() -> None:
    made_for = recipes.plain_life(LimitsOneJob, Queue)
    add("a", "b", "c")
    first = claim("x-1")

    call = transitions.exchange(
        CALLER, [transitions.End(first, "", NOW)], 2, 2, NOW, looks_around=False, made_for=made_for, runs_count=2
    )
    done, again = send(call), send(call)

    assert [one.kind for one in done.ends] == ["OK"]
    assert [one.kind for one in again.ends] == ["ALREADY"]
    assert [one.claim.identifier for one in done.claims if one.claim] == ["b"]
    assert [one.claim.identifier for one in again.claims if one.claim] == ["b"]
    assert parked(ONE) == ["c"]


def test_claims_of_many_in_one_call_obey() -> None:
    add("a", "b", "c", "d", model=LimitsOtherJob)
    made_for = recipes.plain_life(LimitsOtherJob, Queue)

    call = transitions.exchange(CALLER, [], 1, 4, NOW, made_for=made_for, runs_count=4)
    taken = send(call).claims

    assert [one.kind for one in taken] == ["CLAIMED", "CLAIMED", "EMPTY"]
    assert parked("shared") == ["c", "d"]


def test_a_job_with_limits_is_never_claimed_ahead() -> None:
    add("plain", model=LimitsPlainJob)
    add("a")

    taken = send(transitions.exchange(CALLER, [], 1, 4, NOW, runs_count=1)).claims

    assert [one.claim.identifier for one in taken if one.claim] == ["plain"]
    assert (waiting(), parked(ONE)) == (["a"], [])


def test_each_job_counts_by_its_own_number_under_a_key() -> None:
    (narrow,) = add("narrow", limit_key="shared")
    (wide,) = add("wide", model=LimitsOtherJob)
    assert claim("w-1").ident == narrow.ident
    assert claim("v-1").ident == wide.ident
    add("narrow again", limit_key="shared")
    add("wide again", model=LimitsOtherJob)

    assert take("u-1").kind == "EMPTY"
    lone = transitions.Claim(narrow.ident, "w-1", "w", narrow.queue_key.hget())
    assert finish(lone) == "OK"

    assert claim("u-2").identifier == "wide again", "one runs: too many for the narrow one, not for this"
    assert parked("shared") == ["narrow again"]


def test_a_free_place_is_not_kept_by_those_that_want_more() -> None:
    add("a", "b", model=LimitsPlainJob, max_concurrency=2, limit_key="one")
    first = claim("w-1")
    claim("w-2")
    add(*(f"alone {number}" for number in range(50)), model=LimitsPlainJob, max_concurrency=1, limit_key="one")
    add("c", "d", model=LimitsPlainJob, max_concurrency=2, limit_key="one")
    assert take("v-1").kind == "EMPTY"

    finish(first)

    assert waiting() == ["c"]


def test_keys_are_apart() -> None:
    add("a", "b")
    add("c", limit_key="user:7")

    assert {claim("w-1").identifier, claim("v-1").identifier} == {"a", "c"}
    assert parked(ONE) == ["b"]


def test_a_hundred_jobs_are_parked_in_a_call_which_then_asks_to_be_made_again() -> None:
    LimitsOneJob.add_jobs([f"a{number}" for number in range(150)])
    add("plain", model=LimitsPlainJob)
    claim("w-1")

    assert take("v-1").kind == "PARKED"
    assert len(parked(ONE)) == 100
    assert take("v-1").claim.identifier == "plain"  # type: ignore[union-attr]
    assert len(parked(ONE)) == 149


# --- Leases


def test_a_lapsed_lease_frees_the_place_and_its_job_has_it_first() -> None:
    (first, *_) = add("a", "b")
    claim("w-1")
    assert take("v-1").kind == "EMPTY"
    lapse()

    assert recover().idents == (first.ident,)

    assert held(ONE) == set()
    assert claim("v-2").identifier == "a"
    assert take("u-1").kind == "EMPTY"
    assert parked(ONE) == ["b"]


def test_a_job_that_was_given_back_is_parked_before_the_others() -> None:
    add("a", "b")
    claim("w-1")
    assert take("v-1").kind == "EMPTY"
    send(transitions.release("jobs", "jobs:queue", ["w-1"]))
    add("urgent", priority=9)

    assert claim("w-2").identifier == "urgent"
    assert take("v-2").kind == "EMPTY"

    assert parked(ONE) == ["a", "b"]


def test_a_doomed_job_frees_its_place() -> None:
    (first, *_) = add("a", "b")
    claim("w-1")
    assert take("v-1").kind == "EMPTY"
    first.recoveries.hset(3)
    lapse()

    (doomed,) = recover().doomed

    assert claim("v-2").identifier == "b"
    send(transitions.fail("jobs", doomed.held, NOW, None, ""))


def test_a_holder_whose_lease_was_lost_ends_nothing_of_another_one() -> None:
    add("a")
    lost = claim("w-1")
    lapse()
    recover()
    claim("v-1")

    with pytest.raises(LeaseLost):
        finish(lost)

    assert held(ONE) == {lost.ident}


def test_places_of_leases_that_somebody_has_deleted_block_nobody() -> None:
    add("a", "b", "c")
    first = claim("w-1")
    assert take("v-1").kind == "EMPTY"
    client().delete("jobs:leases", "jobs:claims")
    client().zadd(f"jobs:limit:{ONE}:held", {first.ident: 1})
    client().zadd("jobs:limits:due", {ONE: 1})

    assert claim("v-2").identifier == "b"

    assert parked(ONE) == ["c"]
    end_by_hand(Job.get_from_ident(first.ident))


# --- Starts in a time


def test_a_rate_lets_so_many_start_and_says_when_the_next_may() -> None:
    add("a", "b", "c", model=LimitsRateJob)
    finish(claim("w-1"))
    finish(claim("w-2"))

    taken = take("w-3")

    assert taken.kind == "EMPTY"
    assert taken.next_due is not None and 3590 < taken.next_due <= 3600
    assert parked(RATE) == ["c"]
    assert client().zcard(f"jobs:limit:{RATE}:rate") == 3
    assert 3590 < client().ttl(f"jobs:limit:{RATE}:rate") <= 3600


def make_starts_older(key: str, seconds: float) -> None:
    """As if all that was noted of a rate had happened before."""
    for name in (f"jobs:limit:{key}:rate", "jobs:limits:due"):
        for member, at in client().zrange(name, 0, -1, withscores=True):
            if at > 100_000_000:
                client().zadd(name, {member: at - seconds})


@pytest.mark.parametrize("looks_around", [True, False])
def test_when_their_time_has_come_parked_jobs_start(looks_around: bool) -> None:
    add("a", "b", "c", "d", "e", model=LimitsRateJob)
    finish(claim("w-1"))
    finish(claim("w-2"))
    assert take("w-3").kind == "EMPTY"

    make_starts_older(RATE, 3590)
    assert take("w-3", looks_around=looks_around).kind == "EMPTY"
    make_starts_older(RATE, 10)

    assert claim("w-3", looks_around=looks_around).identifier == "c"
    assert claim("w-4").identifier == "d"
    assert take("w-5").kind == "EMPTY"
    assert parked(RATE) == ["e"]


def test_a_start_within_the_longest_time_that_is_asked_for_is_remembered() -> None:
    add("a", model=LimitsRateJob)
    finish(claim("w-1"))
    add("short", model=LimitsRateJob, rate_limit="5/s")
    make_starts_older(RATE, 100)
    finish(claim("w-2"))
    add("b", model=LimitsRateJob)

    assert take("w-3").kind == "EMPTY"
    make_starts_older(RATE, 3500)
    assert claim("w-4").identifier == "b"
    assert client().zcard(f"jobs:limit:{RATE}:rate") == 3  # of a, nothing is left


def test_a_repeated_claim_is_one_start() -> None:
    add("a", "b", model=LimitsRateJob)

    assert claim("w-1") == claim("w-1")

    assert claim("v-1").identifier == "b"


def test_a_retry_is_a_start_and_a_job_that_is_given_back_has_started() -> None:
    add("a", model=LimitsRateJob)
    claim("w-1")
    send(transitions.release("jobs", "jobs:queue", ["w-1"]))
    claim("w-2")
    send(transitions.release("jobs", "jobs:queue", ["w-2"]))

    assert take("w-3").kind == "EMPTY"
    assert parked(RATE) == ["a"]


def test_both_limits_hold_together() -> None:
    add("a", "b", "c", "d", model=LimitsRateJob, max_concurrency=1)
    first = claim("w-1")
    assert take("v-1").kind == "EMPTY"
    finish(first)
    finish(claim("v-2"))

    assert take("v-3").kind == "EMPTY"
    assert parked(RATE) == ["c", "d"]
    make_starts_older(RATE, 3600)
    claim("v-3")
    assert take("w-2").kind == "EMPTY"
    assert parked(RATE) == ["d"]


# --- Leaving


def test_a_canceled_job_is_not_parked_any_more() -> None:
    _, job = add("a", "b")
    claim("w-1")
    take("v-1")

    assert job.cancel() is Cancellation.CANCELED

    assert (parked(ONE), job.queued.hget()) == ([], None)
    assert client().exists("jobs:limits:due") == 0


def test_a_parked_job_can_be_moved_delayed_and_raised() -> None:
    _, job = add("a", "b")
    claim("w-1")
    take("v-1")

    job.enqueue_or_delay("other", 3)
    assert (parked(ONE), waiting("other")) == ([], ["b"])
    job.enqueue_or_delay("q", 0)
    take("v-2")
    assert parked(ONE) == ["b"]
    assert LimitsOneJob.add_job("b", priority=7) == job
    assert (parked(ONE), waiting()) == ([], ["b"])
    take("v-3")
    Queue.get_queue("q", 7).delay_job(job, utcnow().replace(year=2200))
    assert (parked(ONE), Queue.count_delayed_jobs("q")) == ([], 1)


def test_when_the_job_that_was_called_is_canceled_the_next_one_is_called() -> None:
    _, second, _ = add("a", "b", "c")
    first = claim("w-1")
    take("v-1")
    finish(first)
    assert waiting() == ["b"]

    second.cancel()

    assert (waiting(), parked(ONE)) == (["c"], [])


def test_when_the_record_of_the_job_that_was_called_is_gone_the_next_one_is_called() -> None:
    _, second, _ = add("a", "b", "c")
    first = claim("w-1")
    take("v-1")
    finish(first)
    second.delete()

    assert take("v-2").kind == "GONE"

    assert claim("v-3").identifier == "c"


OTHER_LIMITS = {"max_concurrency": 1, "limit_key": "other"}


@pytest.mark.parametrize("options", [OTHER_LIMITS, {"job_timeout": 5}])
@pytest.mark.parametrize("is_called", [False, True])
def test_a_job_that_gets_other_limits_obeys_these(options: dict[str, Any], is_called: bool) -> None:
    add("a", "b", "c", model=LimitsPlainJob, max_concurrency=1, limit_key="one")
    first = claim("w-1")
    assert take("v-1").kind == "EMPTY"
    if is_called:
        finish(first)

    LimitsPlainJob.add_job("b", if_queued="replace", **options)

    assert claim("v-2").identifier == ("c" if is_called else "b")
    if not is_called:
        assert parked("one") == ["c"]
        finish(first)
    assert claim("v-3").identifier == ("b" if is_called else "c")
    assert (waiting(), parked("one")) == ([], [])


def test_a_parked_job_that_gets_another_number_keeps_its_turn() -> None:
    add("a", "b", "c", model=LimitsPlainJob, max_concurrency=2, limit_key="one")
    add("d", "e", model=LimitsPlainJob, max_concurrency=2, limit_key="one")
    first, second = claim("w-1"), claim("v-1")
    assert take("v-2").kind == "EMPTY"

    LimitsPlainJob.add_job("c", if_queued="replace", max_concurrency=1, limit_key="one")
    LimitsPlainJob.add_job("d", if_queued="replace", max_concurrency=3, limit_key="one")

    third = claim("v-3")
    assert (third.identifier, take("v-4").kind, parked("one")) == ("d", "EMPTY", ["c", "e"])
    for holding in (first, second, third):
        finish(holding)
    assert [claim("v-5").identifier, claim("v-6").identifier] == ["c", "e"]


def test_a_parked_job_that_gets_other_limits_is_left_alone_when_its_queue_cannot_be_written() -> None:
    add("a", "b", model=LimitsPlainJob, max_concurrency=1, limit_key="one")
    first = claim("w-1")
    assert take("v-1").kind == "EMPTY"
    key = f"{Queue.get_queue('q').waiting.key}"
    client().set(key, "something else")

    LimitsPlainJob.add_job("b", if_queued="replace", **OTHER_LIMITS)

    assert parked("one") == ["b"]
    client().delete(key)
    finish(first)
    assert claim("v-2").identifier == "b"


def test_a_parked_job_that_was_canceled_by_hand_takes_no_place() -> None:
    _, second, _ = add("a", "b", "c")
    first = claim("w-1")
    take("v-1")
    second.status.hset(STATUSES.CANCELED)
    finish(first)

    skipped = claim("v-2")
    assert (skipped.identifier, skipped.status) == ("b", "c")
    assert claim("u-2").identifier == "c"
    send(transitions.skip("jobs", skipped))


def test_a_job_whose_expiry_is_past_when_it_is_called_takes_no_place() -> None:
    add("a")
    (late,) = add("b", expires=1000)
    add("c")
    first = claim("w-1")
    take("v-1")
    text = json.loads(late.run_options.hget())
    late.run_options.hset(json.dumps({**text, "expires": 1}))
    finish(first)

    skipped = claim("v-2")
    assert (skipped.identifier, skipped.status) == ("b", "c")
    assert claim("u-2").identifier == "c"
    send(transitions.skip("jobs", skipped))


def test_a_parked_job_that_has_expired_does_not_stand_for_a_new_one() -> None:
    add("a")
    (late,) = add("b", expires=1000)
    claim("w-1")
    take("v-1")
    late.run_options.hset(json.dumps({**json.loads(late.run_options.hget()), "expires": 1}))

    assert LimitsOneJob.add_job("b") != late

    assert (parked(ONE), late.status.hget()) == ([], STATUSES.CANCELED)


def test_a_parked_job_whose_queue_was_deleted_stands_in_nobodys_way() -> None:
    add("a")
    (lost,) = add("b", priority=-1)
    add("c", priority=-2)
    first = claim("w-1")
    take("v-1")
    Queue.get_queue("q", -1).delete()

    finish(first)

    assert claim("v-2").identifier == "c"
    end_by_hand(lost)


# --- What is wrong in Redis


@pytest.mark.parametrize("part", ["held", "parked", "rate"])
def test_something_else_under_a_key_of_a_limit_is_answered_before_anything_is_written(part: str) -> None:
    add("a")
    client().set(f"jobs:limit:{ONE}:{part}", "x", ex=100)

    taken = take("w-1")

    assert (taken.kind, taken.broken_key) == ("BROKEN", f"jobs:limit:{ONE}:{part}")
    assert waiting() == ["a"]
    client().delete(f"jobs:limit:{ONE}:{part}")


def test_the_end_of_a_job_is_recorded_whatever_is_under_the_keys_of_its_limit() -> None:
    add("a")
    holding = claim("w-1")
    client().delete(f"jobs:limit:{ONE}:held")
    client().set(f"jobs:limit:{ONE}:held", "x")

    assert finish(holding) == "OK"

    client().delete(f"jobs:limit:{ONE}:held", "jobs:limits:jobs")


@pytest.mark.parametrize(
    "text", ['{"limits":3}', '{"limits":{"limit_key":5}}', '{"limits"', '{"limits":{"limit_key":"k"}}']
)
def test_limits_that_cannot_be_read_say_nothing(text: str) -> None:
    (job,) = add("a", model=LimitsPlainJob)
    job.run_options.hset(text)

    assert claim("w-1").identifier == "a"


def test_the_check_of_the_books_sees_what_is_wrong_with_a_limit() -> None:
    add("a", "b")
    first = claim("w-1")
    take("v-1")
    note = client().hget("jobs:limits:jobs", first.ident)

    client().hdel("jobs:limits:jobs", first.ident)
    assert [problem.kind for problem in admin.check()] == ["limit"]
    client().hset("jobs:limits:jobs", first.ident, note)
    client().zrem("jobs:limits:due", ONE)
    assert [problem.kind for problem in admin.check()] == ["limit"]
    client().zadd("jobs:limits:due", {ONE: 1})
    client().hdel("jobs:claims", f"*{first.ident}")
    assert [problem.kind for problem in admin.check()] == ["limit"]
    client().hset("jobs:claims", f"*{first.ident}", "1")


@pytest.mark.parametrize("name", ["claim", "exchange", "fail", "finish"])
def test_what_is_done_with_limits_is_made_for_jobs_that_have_some(name: str) -> None:
    before, mark, after = lua.load(name).text.partition(lua.HERE)

    assert mark
    assert "function call_parked" not in before
    assert "function call_parked" in after
