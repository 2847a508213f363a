"""A job belongs to one worker at a time: claims, leases, heartbeats, recovery."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from types import ModuleType
from typing import Any, ClassVar

import pytest
from limpyd import fields
from redis.exceptions import ConnectionError

from limpyd_jobs import STATUSES, Error, Job, Queue, Worker, lua, recipes, transitions, wire
from limpyd_jobs.exceptions import JobNotInStatus, LeaseLost
from limpyd_jobs.transitions import Claim, Delay, Hold
from limpyd_jobs.utils import utcnow
from limpyd_jobs.workers.heartbeat import Heartbeat

from ..base import wait_until
from .base import Log, Running, beats_on_demand, claim_call, client, idle, leased, run, wait_until_lapsed, work

pytestmark = pytest.mark.usefixtures("database")

TOKEN = "somebody-1"


class LeasesJob(Job):
    queue_name = "test"
    lost: ClassVar[list[tuple[str, str]]] = []

    def run(self, queue: Any) -> str:
        return "done"

    def on_lease_lost(self, queue: Any) -> None:
        self.lost.append((self.identifier.hget(), queue.name.hget()))


class WithoutHooksJob(Job):
    queue_name = "test"


class NewerJob(Job):
    queue_name = "test"
    start = fields.InstanceHashField(indexable=True)


@pytest.fixture(autouse=True)
def lost() -> list[tuple[str, str]]:
    LeasesJob.lost.clear()
    return LeasesJob.lost


def send(call: Any) -> Any:
    return transitions.send(client(), call)


def claim(token: str = TOKEN, lease_seconds: float = 30) -> Claim:
    """Take the next job as a worker would that the test plays."""
    taken = send(claim_call(token, lease_seconds))
    assert taken.claim is not None, taken
    held: Claim = taken.claim
    return held


def vanish(job: Any) -> None:
    """Take the next job and be never heard of again."""
    held = claim("dead-1", lease_seconds=0.2)
    assert held.ident == job.ident
    wait_until_lapsed(job.ident)


def recover() -> tuple[str, ...]:
    recovered: tuple[str, ...] = send(transitions.recover("jobs", "jobs:queue", "r", "recoverer", 30, 3)).idents
    return recovered


def take_away(job: Any) -> None:
    """Let the lease of a job lapse, and another worker claim it."""
    client().zadd("jobs:leases", {job.ident: 1})
    assert recover() == (job.ident,)
    assert claim("other-1").ident == job.ident


def snapshot() -> dict[str, Any]:
    """All that Redis holds, but for what is said of the worker itself."""
    readers = {"string": "get", "hash": "hgetall", "set": "smembers"}
    found = {}
    for key in client().keys("*"):
        if key.startswith("jobs:worker"):
            continue
        kind = client().type(key)
        if kind == "list":
            found[key] = client().lrange(key, 0, -1)
        elif kind == "zset":
            found[key] = client().zrange(key, 0, -1, withscores=True)
        else:
            found[key] = getattr(client(), readers[kind])(key)
    return found


# --- Claims


def test_a_claimed_job_is_running_and_leased() -> None:
    job = LeasesJob.add_job("one")

    held = claim()

    assert (held.ident, held.token, held.identifier, held.queue_name) == (job.ident, TOKEN, "one", "test")
    assert job.hmget("status", "tries", "queued") == [STATUSES.RUNNING, "1", "1"]
    assert Queue.get_queue("test").waiting.lmembers() == []
    assert leased() == [job.ident]


def test_the_same_claim_sent_twice_gets_the_same_job_and_counts_one_try() -> None:
    first, second = LeasesJob.add_job("one"), LeasesJob.add_job("two")
    call = claim_call()

    once, twice = send(call), send(call)

    assert once.claim.ident == twice.claim.ident == first.ident
    assert twice.status == once.status == STATUSES.WAITING
    assert (twice.queue_key, twice.queue_name, twice.claim.tries) == (once.queue_key, once.queue_name, 1)
    assert first.tries.hget() == "1"
    assert second.status.hget() == STATUSES.WAITING


def test_the_same_claim_sent_twice_gets_a_canceled_job_with_its_status() -> None:
    job = LeasesJob.add_job("one")
    job.status.hset(STATUSES.CANCELED)
    call = claim_call()

    once, twice = send(call), send(call)

    assert (once.status, twice.status) == (STATUSES.CANCELED, STATUSES.CANCELED)
    assert once.claim.ident == twice.claim.ident == job.ident


def test_another_claim_gets_another_job() -> None:
    first, second = LeasesJob.add_job("one"), LeasesJob.add_job("two")

    assert [claim("a-1").ident, claim("b-1").ident] == [first.ident, second.ident]


def test_a_second_entry_of_a_running_job_is_not_run() -> None:
    job = LeasesJob.add_job("one")
    claim()
    client().rpush(Queue.get_queue("test").waiting.key, job.ident)
    ran: list[str] = []

    work(1, callback=lambda job, queue: ran.append("ran"))

    assert ran == []
    assert job.hmget("status", "tries", "queued") == [STATUSES.RUNNING, "1", "1"]
    assert leased() == [job.ident]


# --- Ends


def test_a_finish_sent_twice_is_recorded_once() -> None:
    job = LeasesJob.add_job("one")
    call = transitions.finish("jobs", claim(), str(utcnow()))

    kinds = [send(call).kind, send(call).kind]

    assert kinds == ["OK", "ALREADY"]
    assert Queue.get_queue("test").success.lmembers() == [job.ident]
    assert leased() == []


def test_a_failure_sent_twice_is_recorded_once() -> None:
    job = LeasesJob.add_job("one")
    call = transitions.fail("jobs", claim(), str(utcnow()), None, "")

    kinds = [send(call).kind, send(call).kind]

    assert kinds == ["OK", "ALREADY"]
    assert Queue.get_queue("test").errors.lmembers() == [job.ident]
    assert leased() == []


def test_a_failure_to_be_requeued_sent_twice_says_so_twice() -> None:
    job = LeasesJob.add_job("one")
    call = transitions.fail("jobs", claim(), str(utcnow()), 1, "")

    once, twice = send(call), send(call)

    assert (once.kind, twice.kind) == ("OK", "ALREADY")
    assert once.to_be_requeued is twice.to_be_requeued is True
    assert leased() == [job.ident]


def test_a_skip_sent_twice_is_recorded_once() -> None:
    job = LeasesJob.add_job("one")
    job.status.hset(STATUSES.CANCELED)
    call = transitions.skip("jobs", claim())

    kinds = [send(call).kind, send(call).kind]

    assert kinds == ["OK", "ALREADY"]
    assert job.queued.hget() is None
    assert leased() == []


def endings(held: Claim) -> dict[str, Any]:
    return {
        "finish": transitions.finish("jobs", held, str(utcnow())),
        "fail": transitions.fail("jobs", held, str(utcnow()), 5, ""),
        "skip": transitions.skip("jobs", held),
    }


@pytest.mark.parametrize("ending", ["finish", "fail", "skip"])
def test_an_end_is_refused_to_whoever_has_lost_the_lease(ending: str) -> None:
    job = LeasesJob.add_job("one")
    held = claim()
    take_away(job)
    before = snapshot()

    with pytest.raises(LeaseLost):
        send(endings(held)[ending])

    assert snapshot() == before


@pytest.mark.parametrize("ending", ["finish", "fail", "skip"])
def test_an_end_is_refused_while_the_job_waits_again(ending: str) -> None:
    job = LeasesJob.add_job("one")
    held = claim()
    client().zadd("jobs:leases", {job.ident: 1})
    recover()
    before = snapshot()

    with pytest.raises(LeaseLost):
        send(endings(held)[ending])

    assert snapshot() == before


@pytest.mark.parametrize("ending", ["finish", "fail", "skip"])
def test_an_end_without_a_token_is_refused_while_somebody_holds_the_job(ending: str) -> None:
    job = LeasesJob.add_job("one")
    held = claim()
    before = snapshot()

    with pytest.raises(LeaseLost):
        send(endings(Claim(job.ident, "", "", held.queue_key))[ending])

    assert snapshot() == before


# --- A worker that has lost a lease


def losing(then: Any = None) -> Any:
    """A callback that loses its job to another worker."""

    def callback(job: Any, queue: Any) -> str:
        take_away(job)
        if then is not None:
            raise then
        return "too late"

    return callback


@pytest.fixture(params=["success", "error"])
def loser(request: pytest.FixtureRequest, log: Log) -> Iterator[Any]:
    """A worker that has run a job which belonged to somebody else before it ended."""
    job = LeasesJob.add_job("one")
    states: list[dict[str, Any]] = []

    class LosingWorker(Worker):
        def job_error(self, *args: Any, **kwargs: Any) -> None:
            states.append(snapshot())
            super().job_error(*args, **kwargs)

        def job_success(self, *args: Any, **kwargs: Any) -> None:
            states.append(snapshot())
            super().job_success(*args, **kwargs)

    error = ValueError("boo") if request.param == "error" else None
    work(1, worker_class=LosingWorker, callback=losing(error), requeue_times=5)
    yield job, states[0]


def test_a_worker_that_has_lost_its_lease_writes_nothing(loser: Any) -> None:
    job, before = loser

    assert snapshot() == before
    assert job.hmget("status", "tries") == [STATUSES.RUNNING, "2"]
    assert len(Error.collection()) == 0


def test_a_worker_that_has_lost_its_lease_tells_the_job_and_the_log(loser: Any, lost: list[Any], log: Log) -> None:
    job, _ = loser

    assert lost == [("one", "test")]
    assert any(f"The lease of {job.ident} is lost" in line for line in log.lines)
    assert not any("success" in line or "error:" in line for line in log.lines)


@pytest.mark.parametrize("error", [None, ValueError("boo")])
def test_a_beat_after_the_end_of_a_job_that_the_worker_has_not_heard_of_takes_no_lease_for_lost(
    error: Exception | None, log: Log
) -> None:
    beats: list[bool] = []

    class BeatingWorker(Worker):
        def _send_call(self, call: Any) -> Any:
            value = super()._send_call(call)
            if call.script in ("finish", "fail") and self._held_claims and self._heartbeat is not None:
                self._heartbeat.beat()
                beats.append(True)
            return value

    def callback(job: Any, queue: Any) -> None:
        if error is not None:
            raise error

    LeasesJob.add_job("one")
    work(1, worker_class=BeatingWorker, callback=callback, requeue_times=0)

    assert beats
    assert not any("is lost" in line for line in log.lines)


def test_a_worker_goes_on_after_a_lost_lease() -> None:
    LeasesJob.add_job("one")
    other = LeasesJob.add_job("two")

    def lose_the_first(job: Any, queue: Any) -> None:
        if job.identifier.hget() == "one":
            take_away(job)

    work(2, callback=lose_the_first)

    assert other.status.hget() == STATUSES.SUCCESS


def test_a_job_without_the_hook_may_lose_its_lease_too(log: Log) -> None:
    job = WithoutHooksJob.add_job("one")

    work(1, callback=losing())

    assert job.status.hget() == STATUSES.RUNNING
    assert log.tracebacks == []


@pytest.mark.parametrize("error", [None, ValueError("boo")], ids=["success", "error"])
def test_a_job_whose_hook_does_not_call_super_is_told_of_its_lost_lease(error: Any, lost: list[Any]) -> None:
    class QuietWorker(Worker):
        def job_success(self, *args: Any) -> None:
            pass

        def job_error(self, *args: Any) -> None:
            pass

    LeasesJob.add_job("one")

    work(1, worker_class=QuietWorker, callback=losing(error))

    assert lost == [("one", "test")]


# --- Recovery


def test_a_job_of_a_worker_that_vanished_is_back_at_the_head_of_its_list() -> None:
    job, second, third = [LeasesJob.add_job(identifier, priority=3) for identifier in ("one", "two", "three")]
    vanish(job)

    assert recover() == (job.ident,)

    assert Queue.get_queue("test", 3).waiting.lmembers() == [job.ident, second.ident, third.ident]
    assert job.hmget("status", "queued", "start", "priority") == [STATUSES.WAITING, "1", None, "3"]
    assert leased() == []


def test_a_lease_that_has_not_lapsed_is_not_recovered() -> None:
    job = LeasesJob.add_job("one")
    claim()

    assert recover() == ()

    assert job.status.hget() == STATUSES.RUNNING


def test_a_worker_recovers_the_job_of_one_that_vanished_and_runs_it_once(log: Log) -> None:
    job = LeasesJob.add_job("one")
    vanish(job)

    work(1)

    assert job.hmget("status", "tries", "queued") == [STATUSES.SUCCESS, "2", None]
    assert Queue.get_queue("test").success.lmembers() == [job.ident]
    assert leased() == []
    assert f"{job.ident} is given back: the lease of its worker lapsed" in log.lines


def test_an_idle_worker_recovers_a_lease_that_lapses_while_it_waits() -> None:
    job = LeasesJob.add_job("one")
    claim("dead-1", lease_seconds=0.2)

    with Running(idle(lease_seconds=0.3)):
        wait_until(lambda: job.status.hget() == STATUSES.SUCCESS)

    assert job.tries.hget() == "2"


def test_a_canceled_job_of_a_worker_that_vanished_is_not_run() -> None:
    job = LeasesJob.add_job("one")
    vanish(job)
    job.status.hset(STATUSES.CANCELED)

    assert recover() == ()

    assert job.hmget("status", "queued") == [STATUSES.CANCELED, None]
    assert Queue.get_queue("test").waiting.lmembers() == []
    assert leased() == []


def test_a_job_that_failed_and_whose_worker_vanished_before_the_requeue_waits_again() -> None:
    job = LeasesJob.add_job("one")
    held = claim(lease_seconds=0.2)
    assert send(transitions.fail("jobs", held, str(utcnow()), 1, "")).to_be_requeued
    wait_until_lapsed(job.ident)

    assert recover() == (job.ident,)

    assert job.hmget("status", "queued", "start", "end") == [STATUSES.WAITING, "1", None, None]
    assert Queue.get_queue("test").waiting.lmembers() == [job.ident]


def test_a_worker_that_slept_between_error_and_requeue_leaves_alone_what_has_ended_since() -> None:
    job = LeasesJob.add_job("one")
    sleeping = claim("sleeping-1", lease_seconds=0.2)
    send(transitions.fail("jobs", sleeping, str(utcnow()), 1, ""))
    wait_until_lapsed(job.ident)
    recover()
    send(transitions.fail("jobs", claim("awake-1"), str(utcnow()), 1, ""))
    target = Queue._target_for_jobs("test", 0)

    with pytest.raises(LeaseLost):
        subject = LeasesJob._class_subject(job.pk.get())
        send(transitions.requeue(subject, target, False, Delay(), sleeping.token, Hold(), sleeping.worker))

    assert job.hmget("status", "queued") == [STATUSES.ERROR, None]
    assert Queue.get_queue("test").waiting.lmembers() == []


def test_a_job_that_delayed_itself_and_whose_worker_vanished_is_delayed() -> None:
    job = LeasesJob.add_job("one")
    until = "2999-01-01 00:00:00"
    claim(lease_seconds=0.2)
    job.hmset(status=STATUSES.DELAYED, delayed_until=until)
    wait_until_lapsed(job.ident)

    assert recover() == (job.ident,)

    assert job.hmget("status", "delayed_until") == [STATUSES.DELAYED, until]
    assert [member for member, _ in Queue.get_queue("test").delayed.zrange(0, -1, withscores=True)] == [job.ident]
    assert leased() == []


def test_the_loser_of_a_recovered_job_that_ended_writes_nothing() -> None:
    job = LeasesJob.add_job("one")
    held = claim("dead-1", lease_seconds=0.2)
    wait_until_lapsed(job.ident)
    work(1)
    before = snapshot()

    with pytest.raises(LeaseLost):
        send(transitions.finish("jobs", held, str(utcnow())))

    assert snapshot() == before


def test_a_job_that_is_put_back_before_its_second_entry_is_skipped_stays_queued() -> None:
    job, queue = LeasesJob.add_job("one"), Queue.get_queue("test")
    work(1)
    queue.waiting.rpush(job.ident)  # of a job that has ended by now

    class PuttingBackWorker(Worker):
        def job_skipped(self, job: Any, queue: Any) -> None:
            LeasesJob.get(job.pk.get()).enqueue_or_delay()  # as another client may, between the claim and the skip
            super().job_skipped(job, queue)

    work(1, worker_class=PuttingBackWorker)

    assert job.hmget("status", "queued") == [STATUSES.WAITING, "1"]
    assert queue.waiting.lmembers() == [job.ident]
    assert LeasesJob.add_job("one").pk.get() == job.pk.get()


# --- Replies that are lost on the wire


class ForgetfulWire:
    """Loses the reply to the first run of a script."""

    def __init__(self, script: str) -> None:
        self._script = script
        self._send = wire.execute
        self.has_lost = False

    def execute(self, client: Any, command: Any, packed: bytes | None = None) -> Any:
        result = self._send(client, command, packed)
        made_for = recipes.plain_life(LeasesJob, Queue) if self._script == "exchange" else ""
        if command()[1] == lua.load(self._script, made_for).sha and not self.has_lost:
            self.has_lost = True
            raise ConnectionError("the connection broke")
        return result


@pytest.mark.parametrize(("script", "error"), [("claim", None), ("exchange", None), ("fail", ValueError("boo"))])
def test_a_job_whose_reply_is_lost_is_run_and_recorded_once(
    script: str, error: Exception | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not held until its lease lapses: the same call is sent again."""
    forgetful = ForgetfulWire(script)
    runs: list[str] = []

    def callback(job: Any, queue: Any) -> None:
        runs.append(job.identifier.hget())
        if error is not None:
            raise error

    job, second = LeasesJob.add_job("one"), LeasesJob.add_job("two")
    monkeypatch.setattr(wire, "execute", forgetful.execute)
    with Running(idle(callback=callback, save_errors=False)):
        wait_until(lambda: len(runs) == 2 and not leased(), message="both jobs are done")

    queue = Queue.get_queue("test")
    assert forgetful.has_lost
    assert runs == ["one", "two"]
    assert (queue.errors if error else queue.success).lmembers() == [job.ident, second.ident]
    assert job.hmget("tries", "queued") == ["1", None]


def test_a_failure_whose_reply_is_lost_is_requeued_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    forgetful = ForgetfulWire("fail")
    runs: list[str] = []

    def callback(job: Any, queue: Any) -> None:
        runs.append(job.tries.hget())
        raise ValueError("boo")

    # so that the script is loaded, and the first failure below is the one whose reply is lost
    with pytest.raises(LeaseLost):
        send(transitions.fail("jobs", Claim(f"{LeasesJob.get_model_repr()}:12345", "no", "", ""), "", None, ""))
    job = LeasesJob.add_job("one")
    monkeypatch.setattr(wire, "execute", forgetful.execute)
    with Running(idle(callback=callback, save_errors=False, requeue_times=1, requeue_delay_delta=0)):
        wait_until(lambda: len(runs) == 2 and not leased(), message="the job ran twice")

    assert runs == ["1", "2"]
    assert job.hmget("status", "queued", "priority") == [STATUSES.ERROR, None, "-1"]
    assert len(Queue.get_queue("test").errors.lmembers()) == 1


# --- Heartbeats


def test_the_heartbeat_keeps_a_job_of_three_leases() -> None:
    lease_seconds = 0.6
    job = LeasesJob.add_job("one")
    runs: list[str] = []

    def take_long(job: Any, queue: Any) -> None:
        runs.append(job.tries.hget())
        time.sleep(3 * lease_seconds)

    with Running(idle(lease_seconds=lease_seconds, callback=take_long)):
        wait_until(lambda: runs)
        with Running(idle(lease_seconds=lease_seconds, callback=take_long)):
            wait_until(lambda: job.status.hget() == STATUSES.SUCCESS)

    assert runs == ["1"]
    assert job.tries.hget() == "1"


def test_a_renewal_prolongs_a_lease() -> None:
    job = LeasesJob.add_job("one")
    held = claim(lease_seconds=5)
    before = client().zscore("jobs:leases", job.ident)

    lost = send(transitions.renew("jobs", [held._replace(lease_seconds=500)])).lost

    assert lost == ()
    assert client().zscore("jobs:leases", job.ident) > before + 400


def test_a_renewal_answers_what_is_lost_and_leaves_it_alone() -> None:
    job, kept = LeasesJob.add_job("one"), LeasesJob.add_job("two")
    held, other = claim("somebody-1"), claim("somebody-2")
    client().zadd("jobs:leases", {job.ident: 1})
    recover()
    claim("another-1")
    before = client().zscore("jobs:leases", job.ident)

    lost = send(transitions.renew("jobs", [claim._replace(lease_seconds=500) for claim in (held, other)])).lost

    assert lost == (job.ident,)
    assert client().zscore("jobs:leases", job.ident) == before
    assert client().zscore("jobs:leases", kept.ident) > before + 400


def test_a_heartbeat_tells_once_of_a_job_that_was_canceled_while_it_runs() -> None:
    canceled, other = LeasesJob.add_job("one"), LeasesJob.add_job("two")
    held = {one.ident: one for one in (claim("somebody-1"), claim("somebody-2"))}
    told: list[Claim] = []
    heartbeat = Heartbeat(client(), "jobs", 30, held, lambda claim: None, print, told.append)
    canceled.status.hset(STATUSES.CANCELED)

    heartbeat.beat()
    heartbeat.beat()

    assert [one.ident for one in told] == [canceled.ident]
    assert set(held) == {canceled.ident, other.ident}


def test_a_heartbeat_that_asks_for_canceled_jobs_beats_once_a_second_however_long_the_leases_are() -> None:
    job = LeasesJob.add_job("one")
    held: dict[str, Claim] = {}
    told: list[Claim] = []
    heartbeat = Heartbeat(client(), "jobs", 3000, held, lambda claim: None, print, told.append)
    heartbeat.start()
    try:
        held[job.ident] = claim("somebody-1")
        job.status.hset(STATUSES.CANCELED)
        wait_until(lambda: told)
    finally:
        heartbeat.stop()


def test_a_running_worker_tells_of_a_lost_lease_before_the_job_ends(log: Log) -> None:
    job = LeasesJob.add_job("one")
    go = threading.Event()

    def wait(job: Any, queue: Any) -> None:
        take_away(job)
        go.wait(60)

    with Running(idle(lease_seconds=0.3, callback=wait)) as worker:
        wait_until(lambda: any(f"The lease of {job.ident} is lost" in line for line in log.lines))
        assert worker.status == "running"
        go.set()

    assert job.status.hget() == STATUSES.RUNNING


@pytest.mark.parametrize("hook", ["on_success", "on_error", "on_requeued", "on_skipped", "on_delayed"])
def test_a_slow_hook_after_the_end_of_a_job_is_not_told_of_a_lost_lease(
    hook: str, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    let_it_beat = beats_on_demand(monkeypatch)

    def be_slow(*args: Any) -> None:
        let_it_beat()
        called.append(hook)

    def run_job(job: Any, queue: Any) -> None:
        if hook != "on_success":
            raise ValueError("boo")

    called: list[str] = []
    monkeypatch.setattr(LeasesJob, hook, be_slow, raising=False)
    job = LeasesJob.add_job("one")
    if hook in ("on_skipped", "on_delayed"):
        job.status.hset(STATUSES.CANCELED if hook == "on_skipped" else STATUSES.DELAYED)

    work(1, callback=run_job, requeue_times=1)

    assert called == [hook]
    assert [line for line in log.lines if "lease" in line.lower()] == []


def test_a_job_that_puts_itself_in_a_queue_again_is_not_told_of_a_lost_lease(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    let_it_beat = beats_on_demand(monkeypatch)

    def go_later(job: Any, queue: Any) -> None:
        job.enqueue_or_delay(delayed_until=utcnow() + timedelta(hours=1))
        let_it_beat()

    job = LeasesJob.add_job("one")

    work(1, callback=go_later)

    assert job.status.hget() == STATUSES.DELAYED
    assert [line for line in log.lines if "lease" in line.lower()] == []


# --- A class that moved to another module, and is still to be had from the old one


OLD_HOME = "a_module_that_was_left"


@pytest.fixture
def old_home(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType(OLD_HOME)
    module.LeasesJob = LeasesJob  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, OLD_HOME, module)


def under_the_old_name(job: Any) -> str:
    """What a program that had the class in the old module has written."""
    return f"{OLD_HOME}.LeasesJob:{job.pk.get()}"


def test_a_job_under_the_old_name_of_its_class_is_leased_and_recorded_under_the_new_one(old_home: None) -> None:
    job, queue = LeasesJob.add_job("one"), Queue.get_queue("test")
    queue.waiting.delete()
    queue.waiting.rpush(under_the_old_name(job))
    seen: list[list[str]] = []

    work(1, callback=lambda job, queue: seen.append(leased()))

    assert seen == [[job.ident]]
    assert queue.success.lmembers() == [job.ident]
    assert leased() == []


def test_a_job_that_is_due_under_the_old_name_of_its_class_runs_once_under_the_new_one(old_home: None) -> None:
    job, queue = LeasesJob.add_job("one", delayed_for=100), Queue.get_queue("test")
    queue.delayed.delete()
    queue.delayed.zadd({under_the_old_name(job): 1})
    runs: list[str] = []

    work(1, callback=lambda job, queue: runs.append(job.ident))

    assert runs == [job.ident]
    assert queue.success.lmembers() == [job.ident]
    assert (queue.waiting.lmembers(), queue.delayed.zmembers()) == ([], [])


def test_a_job_under_both_names_of_its_class_runs_once(old_home: None) -> None:
    job, queue = LeasesJob.add_job("one"), Queue.get_queue("test")
    queue.waiting.rpush(under_the_old_name(job))
    runs: list[str] = []

    with Running(idle(callback=lambda job, queue: runs.append(job.ident))):
        wait_until(lambda: not queue.waiting.llen() and not leased(), message="both entries are taken")

    assert runs == [job.ident]
    assert job.hmget("status", "tries") == [STATUSES.SUCCESS, "1"]


def test_a_job_that_is_leased_cannot_be_moved_under_any_name_of_its_class(old_home: None) -> None:
    job, queue = LeasesJob.add_job("one"), Queue.get_queue("test")
    queue.waiting.delete()
    queue.waiting.rpush(under_the_old_name(job))
    LeasesJob.register("jobs", under_the_old_name(job).partition(":")[0])
    claim()
    job.status.hset(STATUSES.CANCELED)

    with pytest.raises(JobNotInStatus):
        job.enqueue_or_delay()

    assert queue.waiting.lmembers() == []
    assert leased() == [job.ident]


def test_a_worker_with_newer_code_of_a_class_keeps_the_indexes_that_the_code_wants() -> None:
    job = NewerJob.add_job("one")
    recipe = json.loads(client().hget("jobs:models", NewerJob.get_model_repr()))
    del recipe["indexes"]["start"]  # as the program that added it knows the class
    client().hset("jobs:models", NewerJob.get_model_repr(), json.dumps(recipe))

    work(1, callback=lambda job, queue: None)

    assert NewerJob.collection(start=job.start.hget()) == [job.pk.get()]


# --- wait_for_job of a subclass: jobs without a claim, as in version 2


class PoppingWorker(Worker):
    """Takes jobs as a program of version 2 may: pops them by itself."""

    def wait_for_job(self) -> Any:
        self.update_keys()
        for key in self.keys:
            ident = self.connection.lpop(key)
            if ident:
                return self.get_queue(key), self.get_job(ident)
        self.end_forced = True
        return None


def test_w37_an_unclaimed_job_is_run_and_recorded() -> None:
    job = LeasesJob.add_job("one")
    seen: list[Any] = []

    def callback(job: Any, queue: Any) -> None:
        seen.append([*job.hmget("status", "tries", "queued"), bool(job.start.hget())])

    work(1, worker_class=PoppingWorker, callback=callback)

    assert seen == [[STATUSES.RUNNING, "1", "1", True]]
    assert job.hmget("status", "queued") == [STATUSES.SUCCESS, None]
    assert job.duration is not None
    assert Queue.get_queue("test").success.lmembers() == [job.ident]


def test_w37_an_unclaimed_job_that_fails_is_recorded() -> None:
    job = WithoutHooksJob.add_job("one")

    work(1, worker_class=PoppingWorker)

    assert job.hmget("status", "queued") == [STATUSES.ERROR, None]
    assert Queue.get_queue("test").errors.lmembers() == [job.ident]
    assert len(Error.collection_for_job(job)) == 1


def test_w37_w63_an_unclaimed_job_that_fails_is_requeued() -> None:
    job = WithoutHooksJob.add_job("one")

    work(2, worker_class=PoppingWorker, requeue_times=1, requeue_delay_delta=0)

    assert job.hmget("status", "tries", "priority", "queued") == [STATUSES.ERROR, "2", "-1", None]


def test_w37_an_unclaimed_job_that_is_canceled_is_skipped() -> None:
    job = LeasesJob.add_job("one")
    job.status.hset(STATUSES.CANCELED)

    work(1, worker_class=PoppingWorker)

    assert job.hmget("status", "queued", "tries") == [STATUSES.CANCELED, None, None]


@pytest.mark.parametrize("status", [STATUSES.CANCELED, STATUSES.DELAYED])
def test_w37_an_unclaimed_job_canceled_or_delayed_while_it_runs_is_no_success(status: str) -> None:
    job = LeasesJob.add_job("one")

    work(1, worker_class=PoppingWorker, callback=lambda job, queue: job.status.hset(status))

    assert job.status.hget() == status
    assert job.queued.hget() == (None if status == STATUSES.CANCELED else "1")
    assert Queue.get_queue("test").success.lmembers() == []


def test_w37_a_wait_for_job_that_returns_a_claimed_job_keeps_its_lease() -> None:
    class LookingWorker(Worker):
        def wait_for_job(self) -> Any:
            found = super().wait_for_job()
            held.append(leased())
            return found

    held: list[Any] = []
    job = LeasesJob.add_job("one")

    run(LookingWorker("test", max_loops=1, terminate_gracefully=False))

    assert held == [[job.ident]]
    assert leased() == []
