"""Nothing is lost: workers that die, keys of a wrong type, hostile idents, a Redis that cannot be used for now."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import ModuleType
from typing import Any, ClassVar

import pytest
from redis.exceptions import ConnectionError, OutOfMemoryError, ReadOnlyError, ResponseError

from limpyd_jobs import STATUSES, Error, Job, Queue, Worker, admin, modules, recipes, transitions
from limpyd_jobs.database import is_outage
from limpyd_jobs.exceptions import ConfigurationException, InvalidArgument, JobClassError, WrongKeyType
from limpyd_jobs.models import MAX_CODE, MAX_MESSAGE, MAX_TRACEBACK, BaseJobsModel
from limpyd_jobs.transitions import Claim
from limpyd_jobs.utils import utcnow
from limpyd_jobs.workers import blocking, outage
from limpyd_jobs.workers.base import safe_line
from limpyd_jobs.workers.heartbeat import Heartbeat

from ..base import RedisServer, wait_until
from .base import Log, Running, client, idle, leased, work

pytestmark = pytest.mark.usefixtures("database")


class PromiseJob(Job):
    queue_name = "test"


class OnceJob(Job):
    queue_name = "test"
    max_recoveries = 0


class QuickJob(Job):
    queue_name = "test"
    lease_seconds = 0.3


class SlowJob(Job):
    queue_name = "test"
    lease_seconds = 5000


def nothing(job: Any, queue: Any) -> None:
    pass


def claim(worker: str = "dead", number: int = 1) -> Claim:
    call = transitions.claim("jobs", "jobs:queue", f"{worker}-{number}", worker, 30, str(utcnow()), ["test"])
    taken = transitions.send(client(), call)
    assert taken.claim is not None, taken
    return taken.claim


def die(times: int = 1, **options: Any) -> Worker:
    """Claim the next job and be lost, so many times; the last worker that looks is answered."""
    recoverer = idle(**options)
    for number in range(times):
        held = claim(number=number)
        client().zadd("jobs:leases", {held.ident: 1})
        recoverer._recover_lapsed()
    return recoverer


def problems() -> list[str]:
    return [str(problem) for problem in admin.check()]


# --- Jobs that take their worker down


def test_a_job_is_given_back_as_often_as_allowed_and_then_in_error() -> None:
    job = PromiseJob.add_job("one")

    die(3)
    assert job.hmget("status", "tries", "recoveries") == [STATUSES.WAITING, "3", "3"]
    die(1)

    assert job.hmget("status", "tries", "recoveries", "queued") == [STATUSES.ERROR, "4", "4", None]
    (error,) = Error.collection_for_job(job).instances()
    assert error.hmget("type", "queue_name", "job_pk") == ["WorkerLost", "test", job.pk.get()]
    assert "4 times" in error.message.hget()
    assert Queue.get_queue("test").errors.lmembers() == [job.ident]
    assert leased() == [] and problems() == []


def test_a_class_of_jobs_says_how_often_it_is_given_back() -> None:
    job, other = OnceJob.add_job("one"), PromiseJob.add_job("two")

    die(2, max_recoveries=9)

    assert job.status.hget() == STATUSES.ERROR
    assert other.status.hget() == STATUSES.WAITING


def test_the_count_begins_anew_when_the_job_does() -> None:
    job = PromiseJob.add_job("one")
    die(4)

    job.requeue()

    assert job.hmget("status", "recoveries") == [STATUSES.WAITING, None]


def test_a_job_that_ends_keeps_its_count() -> None:
    job = PromiseJob.add_job("one")
    die(2)

    work(1, callback=nothing)

    assert job.hmget("status", "recoveries") == [STATUSES.SUCCESS, "2"]


def test_a_worker_that_dies_before_it_recorded_a_lost_job_leaves_it_to_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job = OnceJob.add_job("one")
    with monkeypatch.context() as dying:
        dying.setattr(Worker, "_end_doomed", lambda self, doomed: None)
        die(1)
    assert leased() == [job.ident] and problems() == []

    client().zadd("jobs:leases", {job.ident: 1})
    idle()._recover_lapsed()

    assert job.hmget("status", "recoveries") == [STATUSES.ERROR, "2"]
    assert len(Error.collection_for_job(job)) == 1


def test_a_lost_job_without_saved_errors_is_in_error_all_the_same() -> None:
    job = OnceJob.add_job("one")

    die(1, save_errors=False)

    assert job.status.hget() == STATUSES.ERROR
    assert len(Error.collection()) == 0


@pytest.mark.parametrize("recoveries", ["", "many", "-5"])
def test_whatever_stands_in_the_count_a_job_is_given_back(recoveries: str) -> None:
    job = PromiseJob.add_job("one")
    client().hset(job.key, "recoveries", recoveries)

    die(1)

    assert job.status.hget() == STATUSES.WAITING


def test_a_job_that_was_being_deleted_does_not_block_its_identifier() -> None:
    job = PromiseJob.add_job("one")
    held = claim()
    job.status.hdel()
    client().zadd("jobs:leases", {held.ident: 1})

    idle()._recover_lapsed()

    assert problems() == []
    assert PromiseJob.add_job("one").pk.get() != job.pk.get()


@pytest.mark.parametrize(
    ("name", "value"), [("lease_seconds", 0), ("lease_seconds", "x"), ("max_recoveries", -1), ("max_recoveries", 1.5)]
)
def test_a_class_with_an_impossible_option_is_refused(name: str, value: Any) -> None:
    model = type("ImpossibleJob", (Job,), {"abstract": True, name: value})

    with pytest.raises(ConfigurationException, match=f"{name}.*{value!r}"):
        recipes.job_recipe(model)


# --- Leases of a class, heartbeats


def test_a_class_of_jobs_says_how_long_its_lease_is() -> None:
    slow, quick = SlowJob.add_job("slow"), QuickJob.add_job("quick")

    assert claim(number=1).lease_seconds == 5000
    assert claim(number=2).lease_seconds == 0.3
    now = client().time()[0]
    assert client().zscore("jobs:leases", slow.ident) - now > 4000
    assert client().zscore("jobs:leases", quick.ident) - now < 5


def test_a_short_lease_of_a_class_is_renewed_by_a_worker_with_long_ones() -> None:
    QuickJob.add_job("one")
    seen: list[float] = []

    def watch(job: Any, queue: Any) -> None:
        first = client().zscore("jobs:leases", job.ident)
        wait_until(lambda: client().zscore("jobs:leases", job.ident) > first, message="the lease is renewed")
        seen.append(first)

    work(1, callback=watch, lease_seconds=3000)

    assert len(seen) == 1


def test_a_heartbeat_has_a_connection_of_its_own_that_waits_less_than_a_lease() -> None:
    heart = Heartbeat(client(), "jobs", 0.9, {}, print, print)

    assert heart._client.connection_pool is not client().connection_pool
    assert heart._client.connection_pool.connection_kwargs["socket_timeout"] == pytest.approx(0.3)


def test_a_worker_whose_heartbeats_fail_takes_nothing_before_one_succeeds(
    monkeypatch: pytest.MonkeyPatch, log: Log
) -> None:
    is_cut = threading.Event()
    beat = Heartbeat.beat

    def cut_beat(self: Heartbeat) -> None:
        if is_cut.is_set() and self is worker._heartbeat:
            raise ConnectionError("cut")
        beat(self)

    def wait_for_the_lease(job: Any, queue: Any) -> None:
        if job.identifier.hget() == "one":
            is_cut.set()
            wait_until(lambda: worker._heartbeat is not None and worker._heartbeat.is_failing)

    monkeypatch.setattr(Heartbeat, "beat", cut_beat)
    monkeypatch.setattr(blocking, "FAILING_SECONDS", 0.01)
    monkeypatch.setattr(blocking, "POLL_SECONDS", 0.02)
    first, second = PromiseJob.add_job("one"), PromiseJob.add_job("two")
    with Running(idle(callback=wait_for_the_lease, lease_seconds=1)) as worker:
        wait_until(lambda: first.status.hget() == STATUSES.SUCCESS)
        looked: list[Any] = []
        monkeypatch.setattr(Worker, "_look_for_job", _counted(Worker._look_for_job, looked))
        wait_until(lambda: len(looked) > 5, message="it looks several times")
        assert second.status.hget() == STATUSES.WAITING
        is_cut.clear()
        wait_until(lambda: second.status.hget() == STATUSES.SUCCESS)

    assert len([line for line in log.lines if line.startswith("Leases cannot be renewed")]) == 1
    assert len([line for line in log.lines if line == "Leases are renewed again"]) == 1


def _counted(method: Any, calls: list[Any]) -> Any:
    def count(self: Any) -> Any:
        calls.append(self)
        return method(self)

    return count


# --- Giving back


def test_what_is_released_waits_at_the_head_and_its_try_is_not_counted() -> None:
    job, other = PromiseJob.add_job("one"), PromiseJob.add_job("two")
    held = claim()

    first = transitions.send(client(), transitions.release("jobs", "jobs:queue", [held.token, "no-such"]))
    again = transitions.send(client(), transitions.release("jobs", "jobs:queue", [held.token]))

    assert (first, again) == (((job.ident,), ()), ((), ()))
    assert Queue.get_queue("test").waiting.lmembers() == [job.ident, other.ident]
    assert job.hmget("status", "tries", "start", "recoveries") == [STATUSES.WAITING, None, None, None]
    assert problems() == []


def test_a_canceled_job_that_is_released_is_let_go() -> None:
    job = PromiseJob.add_job("one")
    held = claim()
    job.status.hset(STATUSES.CANCELED)

    assert transitions.send(client(), transitions.release("jobs", "jobs:queue", [held.token])) == ((), ())

    assert job.hmget("status", "queued") == [STATUSES.CANCELED, None]
    assert leased() == [] and problems() == []


def test_an_interrupt_of_a_worker_that_is_not_graceful_gives_the_job_back() -> None:
    job = PromiseJob.add_job("one")
    handler = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler)

    def interrupt(job: Any, queue: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        threading.Event().wait(5)

    try:
        with pytest.raises(KeyboardInterrupt):
            Worker("test", terminate_gracefully=False, callback=interrupt).run()
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, handler)

    assert job.hmget("status", "tries") == [STATUSES.WAITING, None]
    assert leased() == []


# --- Keys of a wrong type


@pytest.mark.parametrize("key", ["jobs:queue:1:waiting", "jobs:queue:1:hash", "jobs:ready:queue:broken"])
def test_a_key_of_a_wrong_type_stops_its_queue_and_no_other(key: str, log: Log) -> None:
    Queue.get_queue("broken", 5)
    job = PromiseJob.add_job("one", queue_name="broken", priority=5)
    good = PromiseJob.add_job("two", queue_name="good")
    worker = idle(queues="broken,good", callback=nothing)
    worker.update_keys()
    saved = client().dump(key)
    client().delete(key)
    client().set(key, "something else")

    with Running(worker):
        wait_until(lambda: good.status.hget() == STATUSES.SUCCESS)
        later = PromiseJob.add_job("three", queue_name="good")
        wait_until(lambda: later.status.hget() == STATUSES.SUCCESS)

    assert len([line for line in log.lines if repr(key) in line and "left alone for 60 seconds" in line]) == 1
    assert job.status.hget() == STATUSES.WAITING
    client().restore(key, 0, saved, replace=True)
    work(1, queues="broken", callback=nothing)
    assert job.status.hget() == STATUSES.SUCCESS
    assert problems() == []


def test_delayed_jobs_of_other_queues_are_promoted_while_one_is_broken(log: Log) -> None:
    Queue.get_queue("broken", 5)
    PromiseJob.add_job("one", queue_name="broken", priority=5, delayed_for=0.2)
    client().delete("jobs:queue:1:delayed")
    client().set("jobs:queue:1:delayed", "something else")
    good = PromiseJob.add_job("two", queue_name="good", delayed_for=0.2)

    with Running(idle(queues="broken,good", callback=nothing)):
        wait_until(lambda: good.status.hget() == STATUSES.SUCCESS)

    assert len([line for line in log.lines if "left alone" in line]) == 1


@pytest.mark.parametrize(
    ("key", "delay"),
    [
        ("jobs:queue:1:waiting", None),
        ("jobs:ready:queue:test", None),
        ("jobs:queue:1:delayed", 100),
        ("jobs:due:queue:test", 100),
    ],
)
def test_nothing_is_added_under_a_broken_key_and_nothing_half(key: str, delay: int | None) -> None:
    Queue.get_queue("test")
    client().delete(key)
    client().set(key, "something else")
    before = {key: client().type(key) for key in client().keys("*")}

    with pytest.raises(WrongKeyType, match=key):
        PromiseJob.add_job("one", delayed_for=delay)

    assert {key: client().type(key) for key in client().keys("*")} == before


def test_a_doorbell_of_a_wrong_type_is_replaced() -> None:
    client().set("jobs:doorbell:queue:test", "something else")

    job = PromiseJob.add_job("one")

    work(1, callback=nothing)
    assert job.status.hget() == STATUSES.SUCCESS


def test_a_history_of_a_wrong_type_does_not_keep_a_job_from_its_end(log: Log) -> None:
    job, failing = PromiseJob.add_job("one"), PromiseJob.add_job("two")
    client().set("jobs:queue:1:success", "something else")
    client().set("jobs:queue:1:errors", "something else")

    def fail(job: Any, queue: Any) -> None:
        if job.identifier.hget() == "two":
            raise ValueError

    work(2, callback=fail)

    assert (job.status.hget(), failing.status.hget()) == (STATUSES.SUCCESS, STATUSES.ERROR)
    assert len([line for line in log.lines if "is not a list" in line]) == 2


def test_a_record_of_a_wrong_type_goes_to_the_errors_and_the_next_job_runs() -> None:
    job, good = PromiseJob.add_job("one"), PromiseJob.add_job("two")
    client().delete(job.key)
    client().set(job.key, "something else")

    work(1, callback=nothing)

    assert good.status.hget() == STATUSES.SUCCESS
    assert Queue.get_queue("test").errors.lmembers() == [job.ident]
    (error,) = Error.collection(job_pk=job.pk.get()).instances()
    assert error.type.hget() == "WrongKeyType"
    assert repr(job.key) in error.message.hget()


# --- Idents


HOSTILE = [
    "",
    ":",
    "nonsense",
    "os.system:1",
    "os:1",
    "no.such.Model:1",
    "limpyd_jobs.models.Queue:1",
    "limpyd_jobs.models.BaseJobsModel:1",
    "limpyd_jobs.models.os:1",
    ".x:1",
    "a..b:1",
    "a.b-c:1",
    "tests.workers.test_promises.PromiseJob:",
    "tests.workers.test_promises.PromiseJob:1\n2",
    "tests.workers.test_promises.PromiseJob:" + "9" * 2000,
    "__main__.Nothing:1",
    "x" * 100_000,
    b"\xff\xfe\x00:\x80",
    b"tests.workers.test_promises.PromiseJob:\xff",
]


@pytest.mark.parametrize("ident", HOSTILE, ids=range(len(HOSTILE)))
def test_a_hostile_ident_goes_to_the_errors_with_a_reason_and_the_next_job_runs(ident: Any, log: Log) -> None:
    Queue.get_queue("test")
    client().rpush("jobs:queue:1:waiting", ident)
    good = PromiseJob.add_job("good")

    with Running(idle(callback=nothing)):
        wait_until(lambda: good.status.hget() == STATUSES.SUCCESS)

    errors = client().lrange("jobs:queue:1:errors", 0, -1)
    assert len(errors) == len(Error.collection()) <= 1
    assert errors or [line for line in log.lines if "no record of" in line]
    assert [line for line in log.lines if "\n" in line] == []


@pytest.fixture
def module(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A module with a job, which notes that it was imported."""
    name = f"hostile_module_{os.getpid()}_{time.monotonic_ns()}"
    (tmp_path / f"{name}.py").write_text(
        "import builtins\nfrom limpyd_jobs import Job\nbuiltins.imported_here = True\n"
        f"class FoundJob(Job):\n    queue_name = 'test'\n    namespace = '{name}'\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("builtins.imported_here", False, raising=False)
    monkeypatch.setattr(modules.allowed_modules, "names", set(modules.allowed_modules.names))
    monkeypatch.setattr(modules.allowed_modules, "directories", set())
    yield name
    sys.modules.pop(name, None)


def was_imported() -> bool:
    import builtins

    return bool(getattr(builtins, "imported_here", False))


def test_a_module_that_nobody_named_is_not_imported(module: str) -> None:
    with pytest.raises(JobClassError, match=f"--job-modules={module}"):
        Job.class_of(f"{module}.FoundJob:1")

    assert not was_imported()


@pytest.mark.parametrize("how", ["name", "list", "any", "directory"])
def test_a_module_that_was_allowed_is_imported(how: str, module: str, tmp_path: Any, log: Log) -> None:
    if how == "directory":
        modules.allowed_modules.add_directories([str(tmp_path)])
    else:
        names = {"name": f"other.module, {module}", "list": [module], "any": "*"}[how]
        Worker("test", terminate_gracefully=False, job_modules=names)

    model = Job.class_of(f"{module}.FoundJob:1")

    assert model.__name__ == "FoundJob" and was_imported()
    with pytest.raises(JobClassError, match="not a subclass of Job"):
        Job.class_of(f"{module}.builtins:1")


def test_a_package_includes_its_modules_and_nothing_that_begins_like_it() -> None:
    allowed = modules.AllowedModules()
    allowed.add("shop.jobs")

    assert allowed.allows("shop.jobs") and allowed.allows("shop.jobs.mails")
    assert not allowed.allows("shop.jobsother") and not allowed.allows("shop")


def test_any_module_is_told_of_in_the_log(module: str, log: Log) -> None:
    PromiseJob.add_job("one")

    work(1, callback=nothing, job_modules="*")

    assert len([line for line in log.lines if line.startswith("job_modules is *")]) == 1


@pytest.mark.parametrize("names", ["a,,b", "a b", "../x", ["ok", 3], 7, b"x"])
def test_names_that_no_module_can_have_are_refused(names: Any) -> None:
    with pytest.raises(ConfigurationException, match="job_modules"):
        Worker("test", terminate_gracefully=False, job_modules=names)


# --- Log lines


def test_the_name_of_a_job_cannot_pass_for_a_line_of_the_log(log: Log) -> None:
    PromiseJob.add_job("one\n[123] jobs are all done\x1b[2J\u2028x")

    def fail(job: Any, queue: Any) -> None:
        raise ValueError("two\r\nlines")

    work(1, callback=fail)

    assert [line for line in log.messages if safe_line(line) != line] == []
    assert any("one\\n[123] jobs are all done\\x1b[2J\\u2028x" in line for line in log.lines)
    assert any("two\\r\\nlines" in line for line in log.lines)


# --- Exceptions of jobs


def test_what_is_too_long_is_cut_in_its_middle() -> None:
    class HugeError(Exception):
        code = "c" * 10_000

    job = PromiseJob.add_job("one")

    def fail(job: Any, queue: Any) -> None:
        raise HugeError("a" * 1_000_000 + "z")

    work(1, callback=fail)

    (error,) = Error.collection_for_job(job).instances()
    message, trace, code = error.hmget("message", "traceback", "code")
    assert (len(message), len(trace), len(code)) == (MAX_MESSAGE, MAX_TRACEBACK, MAX_CODE)
    assert message.startswith("aaa") and message.endswith("az") and "characters left out" in message
    assert trace.startswith("Traceback (most recent call last)")


def test_an_exception_that_does_anything_is_recorded() -> None:
    class EvilError(BaseException):
        def __str__(self) -> str:
            raise SystemExit(9)

        @property
        def code(self) -> Any:
            raise KeyError("no")

    job, good = PromiseJob.add_job("one"), PromiseJob.add_job("two")

    def fail(job: Any, queue: Any) -> None:
        if job.identifier.hget() == "one":
            raise EvilError

    work(2, callback=fail)

    assert (job.status.hget(), good.status.hget()) == (STATUSES.ERROR, STATUSES.SUCCESS)
    assert "EvilError" in next(iter(Error.collection_for_job(job).instances())).message.hget()


@pytest.mark.parametrize("hook", ["on_started", "on_success", "on_error"])
@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, GeneratorExit])
def test_a_hook_that_raises_anything_does_not_end_the_worker(
    hook: str, kind: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any) -> None:
        raise kind

    monkeypatch.setattr(PromiseJob, hook, fail, raising=False)
    jobs = [PromiseJob.add_job(str(number)) for number in range(2)]

    work(2, callback=fail if hook == "on_error" else nothing)

    wanted = STATUSES.ERROR if hook == "on_error" else STATUSES.SUCCESS
    assert {job.status.hget() for job in jobs} == {wanted}
    assert leased() == []


# --- A Redis that cannot be used


@pytest.mark.parametrize(
    "error",
    [
        ConnectionError("x"),
        ReadOnlyError("You can't write against a read only replica."),
        OutOfMemoryError("command not allowed when used memory > 'maxmemory'."),
        ResponseError("Error running script (call to f_1): @user_script:17: -OOM command not allowed"),
        ResponseError("READONLY You can't write"),
        ResponseError("MISCONF Redis is configured to save RDB snapshots"),
        ResponseError("NOREPLICAS Not enough good replicas to write."),
        ResponseError("BUSY Redis is busy running a script."),
        ResponseError("MASTERDOWN Link with MASTER is down"),
    ],
)
def test_an_outage_is_told_from_an_error_of_the_call(error: Exception) -> None:
    assert is_outage(error)
    assert not is_outage(ResponseError("WRONGTYPE Operation against a key holding the wrong kind of value"))
    assert not is_outage(ValueError("OOM"))


@pytest.fixture
def own_server() -> Iterator[RedisServer]:
    """A server for one test, with the models on it."""
    with RedisServer(tcp=True) as server:
        former = dict(BaseJobsModel.database.connection_settings)
        BaseJobsModel.database.connect(**server.tcp_settings)
        yield server
        BaseJobsModel.database.reset(**former)


def test_a_full_memory_refuses_additions_whole_and_lets_what_is_there_run(own_server: RedisServer) -> None:
    jobs = [PromiseJob.add_job(str(number)) for number in range(3)]
    due = PromiseJob.add_job("due", delayed_for=0.1)
    failing = PromiseJob.add_job("failing")
    client().config_set("maxmemory", 1)
    before = set(client().keys("*"))

    with pytest.raises(ResponseError, match="memory"):
        PromiseJob.add_job("refused", retry_for=0.2)
    assert set(client().keys("*")) == before

    def run(job: Any, queue: Any) -> None:
        first = client().zscore("jobs:leases", job.ident)
        if job.identifier.hget() == "0":
            wait_until(lambda: client().zscore("jobs:leases", job.ident) > first, message="the lease is renewed")
        if job.identifier.hget() == "failing" and int(job.tries.hget()) == 1:
            raise ValueError

    with Running(idle(callback=run, lease_seconds=0.6, requeue_times=1, requeue_delay_delta=0)):
        wait_until(lambda: all(job.status.hget() == STATUSES.SUCCESS for job in (*jobs, due, failing)))

    client().config_set("maxmemory", 0)
    assert [job.tries.hget() for job in jobs] == ["1"] * 3
    assert PromiseJob.add_job("refused").status.hget() == STATUSES.WAITING


def test_a_worker_and_a_producer_wait_while_the_server_is_a_replica(own_server: RedisServer, log: Log) -> None:
    job = PromiseJob.add_job("one")
    worker = idle(callback=nothing)

    def promote() -> None:
        time.sleep(0.5)
        own_server.client().replicaof("NO", "ONE")

    own_server.client().config_set("replica-read-only", "yes")
    own_server.client().replicaof("127.0.0.1", "1")
    with Running(worker):
        wait_until(lambda: any("Redis cannot be used" in line for line in log.lines))
        threading.Thread(target=promote).start()
        later = PromiseJob.add_job("two")
        wait_until(lambda: later.status.hget() == STATUSES.SUCCESS)

    assert job.status.hget() == STATUSES.SUCCESS
    assert problems() == []


def test_a_producer_raises_when_its_patience_is_over(own_server: RedisServer) -> None:
    PromiseJob.add_job("one")
    own_server.kill()

    with pytest.raises(ConnectionError):
        PromiseJob.add_job("two", retry_for=0.3)

    own_server.start()


def test_a_producer_goes_on_when_redis_is_back_in_time(own_server: RedisServer) -> None:
    PromiseJob.add_job("one")
    own_server.kill()
    starter = threading.Timer(0.3, own_server.start)
    starter.start()

    job = PromiseJob.add_job("two", retry_for=20)

    starter.join()
    assert job.status.hget() == STATUSES.WAITING


@pytest.mark.parametrize("value", [-1, "5", True])
def test_a_patience_that_is_no_number_of_seconds_is_refused(value: Any) -> None:
    with pytest.raises(InvalidArgument, match="retry_for"):
        PromiseJob.add_job("one", retry_for=value)

    assert len(PromiseJob.collection()) == 0


def test_redis_that_may_evict_is_told_of(own_server: RedisServer, log: Log) -> None:
    PromiseJob.add_job("one")
    client().config_set("maxmemory-policy", "allkeys-lru")

    work(1, callback=nothing)

    assert len([line for line in log.lines if "maxmemory-policy is allkeys-lru" in line]) == 1
    assert log.level_of("maxmemory-policy") == "WARNING"


# --- Records and keys that somebody has written to


@pytest.mark.parametrize("how", ["add", "move", "place", "requeue"])
def test_a_job_leaves_a_queue_whose_other_key_is_broken_and_is_not_lost(how: str) -> None:
    job = PromiseJob.add_job("one")
    if how == "requeue":
        client().hset(job.key, "status", STATUSES.ERROR)
    client().set("jobs:queue:1:delayed", "something else")

    if how == "add":
        PromiseJob.add_job("one", priority=5)
    elif how == "move":
        job.enqueue_or_delay("other")
    elif how == "place":
        Queue.get_queue("other").enqueue_job(job)
    else:
        job.requeue("other")

    client().delete("jobs:queue:1:delayed")
    assert Queue.get_queue("test").waiting.lmembers() == []
    assert job.status.hget() == STATUSES.WAITING
    assert [len(queue.waiting.lmembers()) for queue in Queue.collection().instances()].count(1) == 1


@pytest.mark.parametrize("delayed_for", [None, 0.05])
@pytest.mark.parametrize("status", [None, "z", "", STATUSES.SUCCESS, STATUSES.ERROR])
def test_whatever_status_is_written_to_a_queued_job_its_identifier_is_not_blocked(
    status: str | None, delayed_for: float | None
) -> None:
    job = PromiseJob.add_job("one", delayed_for=delayed_for)
    good = PromiseJob.add_job("good", delayed_for=delayed_for, priority=-1)
    if status is None:
        job.status.hdel()
    else:
        job.status.hset(status)

    with Running(idle(callback=nothing)):
        wait_until(lambda: good.status.hget() == STATUSES.SUCCESS)

    assert job.queued.hget() is None
    assert problems() == []
    assert PromiseJob.add_job("one").pk.get() != job.pk.get()


def test_a_job_whose_status_is_removed_while_it_runs_ends_all_the_same() -> None:
    job = PromiseJob.add_job("one")

    work(1, callback=lambda job, queue: job.status.hdel())

    assert job.hmget("status", "queued") == [STATUSES.SUCCESS, None]
    assert Queue.get_queue("test").success.lmembers() == [job.ident]


def test_a_job_that_asks_to_be_delayed_and_takes_its_worker_down_is_counted() -> None:
    job = PromiseJob.add_job("one")
    recoverer = idle()
    for number in range(4):
        held = claim(number=number)
        job.hmset(status=STATUSES.DELAYED, delayed_until=str(utcnow()))
        client().zadd("jobs:leases", {held.ident: 1})
        recoverer._recover_lapsed()

    assert job.hmget("status", "recoveries") == [STATUSES.ERROR, "4"]
    assert problems() == []


@pytest.mark.parametrize("count", ["nan", "-inf", "inf", "-5", "x", "1e300"])
def test_no_count_makes_a_job_run_for_ever(count: str) -> None:
    job = PromiseJob.add_job("one")
    client().hset(job.key, mapping={"tries": count, "recoveries": count})

    def fail(job: Any, queue: Any) -> None:
        raise ValueError

    work(3, callback=fail, requeue_times=2, requeue_delay_delta=0)
    assert job.hmget("status", "tries", "queued") == [STATUSES.ERROR, "3", None]
    job.requeue()
    client().hset(job.key, "recoveries", count)
    die(4)
    assert job.status.hget() == STATUSES.ERROR


@pytest.mark.parametrize("recipe", ["{bad", "[]", "7", '"x"', "{}", '{"key": 1, "repr": "x", "indexes": {}}'])
def test_a_recipe_that_cannot_be_read_is_written_anew(recipe: str) -> None:
    job = PromiseJob.add_job("one")
    client().hset("jobs:models", PromiseJob.get_model_repr(), recipe)

    work(1, callback=nothing)

    assert job.status.hget() == STATUSES.SUCCESS


@pytest.mark.parametrize("priority", ["nan", "inf", "-inf", "x", "1.5"])
def test_a_queue_with_an_impossible_priority_does_not_stop_the_others(priority: str) -> None:
    bad, good = PromiseJob.add_job("bad", "bad"), PromiseJob.add_job("good", "good")
    client().hset("jobs:queue:1:hash", "priority", priority)
    client().delete("jobs:ready:queue:bad")

    def fail_once(job: Any, queue: Any) -> None:
        if job.tries.hget() == "1":
            raise ValueError

    with Running(idle(queues="bad,good", callback=fail_once, requeue_times=1, requeue_delay_delta=0)):
        wait_until(lambda: bad.status.hget() == good.status.hget() == STATUSES.SUCCESS)


def test_an_unknown_ident_does_not_stop_the_queue_while_memory_is_full(own_server: RedisServer) -> None:
    Queue.get_queue("test")
    client().rpush("jobs:queue:1:waiting", "no.such.Model:1")
    jobs = [PromiseJob.add_job(str(number)) for number in range(2)]
    client().delete("jobs:models")
    client().config_set("maxmemory", 1)

    with Running(idle(callback=nothing)):
        wait_until(lambda: all(job.status.hget() == STATUSES.SUCCESS for job in jobs))


def test_an_error_that_cannot_be_written_does_not_keep_a_job_from_its_requeue() -> None:
    job = PromiseJob.add_job("one")
    client().rpush("jobs:error:max_pk", "something else")

    def fail_once(job: Any, queue: Any) -> None:
        if job.tries.hget() == "1":
            raise ValueError

    work(2, callback=fail_once, requeue_times=1, requeue_delay_delta=0)

    assert job.status.hget() == STATUSES.SUCCESS
    assert Queue.get_queue("test").errors.lmembers() == [job.ident]


def test_a_broken_index_of_a_class_stops_its_queue_for_a_while_and_no_other(log: Log) -> None:
    bad = PromiseJob.add_job("bad", "bad")
    good = OnceJob.add_job("good", "good")
    saved = client().dump("jobs:promisejob:status:w")
    client().delete("jobs:promisejob:status:w")
    client().set("jobs:promisejob:status:w", "something else")

    with Running(idle(queues="bad,good", callback=nothing)):
        wait_until(lambda: good.status.hget() == STATUSES.SUCCESS)
    client().restore("jobs:promisejob:status:w", 0, saved, replace=True)

    assert bad.hmget("status", "tries") == [STATUSES.WAITING, None]
    assert len([line for line in log.lines if "'jobs:promisejob:status:w'" in line]) == 1
    assert problems() == []


def test_a_broken_index_of_queue_names_does_not_stop_the_others(log: Log) -> None:
    Queue.get_queue("bad")
    good = PromiseJob.add_job("good", "good")
    client().delete("jobs:queue:name:bad")
    client().set("jobs:queue:name:bad", "something else")

    with Running(idle(queues="bad,good", callback=nothing)):
        wait_until(lambda: good.status.hget() == STATUSES.SUCCESS)


def test_outages_that_come_and_go_are_told_of_once_a_minute() -> None:
    lines: list[str] = []
    flapping = outage.Outage(lines.append)
    for _ in range(10):
        flapping.next_pause(ConnectionError("away"))
        flapping.end()

    assert lines == ["Redis cannot be used, trying again: away", "Redis can be used again"]


def test_another_outage_is_told_of_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outage, "SECONDS_BETWEEN_OUTAGES", -1)
    lines: list[str] = []
    twice = outage.Outage(lines.append)
    for _ in range(2):
        twice.next_pause(ConnectionError("away"))
        twice.next_pause(ConnectionError("away"))
        twice.end()

    assert lines == ["Redis cannot be used, trying again: away", "Redis can be used again"] * 2


def test_a_hook_that_writes_to_a_record_that_was_removed_does_not_begin_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def remove_and_write(self: Any, queue: Any, result: Any) -> None:
        PromiseJob.get(self.pk.get()).delete()
        self.identifier.hset("again")

    monkeypatch.setattr(PromiseJob, "on_success", remove_and_write, raising=False)
    PromiseJob.add_job("one")

    work(1, callback=nothing)

    assert client().keys("jobs:promisejob:1:*") == []
    assert problems() == []


@pytest.mark.parametrize("key", ["jobs:queue:1:hash", "jobs:queues:queue:test", "jobs:queue:name:test"])
def test_a_producer_is_told_which_key_keeps_its_queue_from_being_found(key: str) -> None:
    job = PromiseJob.add_job("one")
    if "name" in key:
        client().delete("jobs:queues:queue:test")
    client().delete(key)
    client().set(key, "something else")
    before = {name: client().dump(name) for name in client().keys("*")}

    for act in (lambda: PromiseJob.add_job("two"), job.enqueue_or_delay, lambda: Queue.get_queue("test")):
        with pytest.raises(WrongKeyType, match=key):
            act()

    assert {name: client().dump(name) for name in client().keys("*")} == before


@pytest.mark.parametrize("key", ["status:s", "status:e", "queued:1"])
def test_a_job_whose_end_could_not_be_written_is_not_begun(key: str, log: Log) -> None:
    job = PromiseJob.add_job("one")
    saved = client().dump(f"jobs:promisejob:{key}")
    client().delete(f"jobs:promisejob:{key}")
    client().set(f"jobs:promisejob:{key}", "something else")

    with Running(idle(callback=nothing)):
        wait_until(lambda: any("left alone" in line for line in log.lines))

    assert job.tries.hget() is None
    client().delete(f"jobs:promisejob:{key}")
    if saved:
        client().restore(f"jobs:promisejob:{key}", 0, saved)
    work(1, callback=nothing)
    assert job.status.hget() == STATUSES.SUCCESS


def test_an_error_that_is_not_saved_is_told_of(log: Log) -> None:
    job = PromiseJob.add_job("one")
    client().rpush("jobs:error:max_pk", "something else")

    def fail(job: Any, queue: Any) -> None:
        raise ValueError

    work(1, callback=fail)

    assert job.status.hget() == STATUSES.ERROR
    assert len([line for line in log.lines if f"The error of {job.ident} is not saved" in line]) == 1


class PlacingQueue(Queue):
    """Has its own way of placing."""

    fails: ClassVar[list[Exception]] = []

    def _stumble(self) -> None:
        if self.fails:
            raise self.fails.pop()

    def enqueue_job(self, job: Any, prepend: bool = False) -> None:
        self._stumble()
        super().enqueue_job(job, prepend)

    def delay_job(self, job: Any, delayed_until: Any) -> None:
        self._stumble()
        super().delay_job(job, delayed_until)


class PlacedJob(Job):
    queue_name = "test"
    queue_model = PlacingQueue


@pytest.mark.parametrize("delay", [0, 60])
def test_a_requeue_that_an_outage_interrupts_before_the_placing_goes_on(
    delay: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = PlacedJob.add_job("one")
    PlacingQueue.fails[:] = [ConnectionError("cut"), ConnectionError("cut")]

    def fail_once(job: Any, queue: Any) -> None:
        if job.tries.hget() == "1":
            raise ValueError

    options: dict[str, Any] = {"queue_model": PlacingQueue, "requeue_times": 1, "requeue_delay_delta": delay}
    work(1, callback=fail_once, **options)

    assert PlacingQueue.fails == []
    assert job.hmget("status", "queued") == [STATUSES.DELAYED if delay else STATUSES.WAITING, "1"]
    assert leased() == [] and problems() == []


def test_a_requeue_whose_placing_raises_is_placed_when_its_lease_lapses() -> None:
    job = PlacedJob.add_job("one")
    PlacingQueue.fails[:] = [ValueError("no")]

    def fail(job: Any, queue: Any) -> None:
        raise ValueError

    work(1, callback=fail, queue_model=PlacingQueue, requeue_times=1, requeue_delay_delta=0)
    assert leased() == [job.ident] and problems() == []

    client().zadd("jobs:leases", {job.ident: 1})
    idle(queue_model=PlacingQueue)._recover_lapsed()

    assert job.hmget("status", "queued") == [STATUSES.WAITING, "1"]
    assert leased() == [] and problems() == []


# --- Modules that are not what they seem


class Proxy:
    """A lazy object, as frameworks have them: whoever looks at it makes it do something."""

    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError(f"{name} was looked at")


@pytest.fixture
def strange_module(monkeypatch: pytest.MonkeyPatch) -> str:
    module = ModuleType("strange_module")
    vars(module).update(settings=Proxy(), function=nothing, number=3)
    monkeypatch.setitem(sys.modules, "strange_module", module)
    monkeypatch.setitem(sys.modules, "strange_entry", Proxy())  # type: ignore[arg-type]
    return "strange_module"


@pytest.mark.parametrize(
    "name", ["strange_module.settings", "strange_module.function", "strange_module.number", "strange_entry.x"]
)
def test_nothing_is_done_with_what_is_no_class_of_jobs(name: str, strange_module: str) -> None:
    with pytest.raises(JobClassError):
        Job.class_of(f"{name}:1")


def test_a_directory_without_a_module_does_not_open_a_package_of_its_name(tmp_path: Any) -> None:
    (tmp_path / "wsgiref").mkdir()
    (tmp_path / "own.py").write_text("")
    allowed = modules.AllowedModules()
    allowed.add_directories([str(tmp_path)])
    sys.path.insert(0, str(tmp_path))
    try:
        assert allowed.allows("own")
        assert not allowed.allows("wsgiref.handlers") and not allowed.allows("os") and not allowed.allows("nowhere")
    finally:
        sys.path.remove(str(tmp_path))


def test_a_worker_that_may_not_import_a_class_goes_on(module: str, monkeypatch: pytest.MonkeyPatch, log: Log) -> None:
    changes = (transitions.Change(f"{module}.FoundJob", "1", "status", "w", "r"),)
    good = PromiseJob.add_job("good")
    recovered = transitions.Recovered((), (), (), changes)
    send_call = Worker._send_call
    monkeypatch.setattr(
        Worker,
        "_send_call",
        lambda self, call: recovered if call.script == "recover" else send_call(self, call),
    )

    work(1, callback=nothing)

    assert good.status.hget() == STATUSES.SUCCESS
    assert any("has to be rebuilt" in message for message in log.messages)


# --- What is logged


def test_a_traceback_cannot_pass_for_a_line_of_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger("limpyd-jobs")
    logger.addHandler(handler)

    def fail(self: Any, *args: Any) -> None:
        raise ValueError("hook of one\n[123] one success\x1b[2J")

    monkeypatch.setattr(PromiseJob, "on_success", fail, raising=False)
    PromiseJob.add_job("one")
    try:
        work(1, callback=nothing)
    finally:
        logger.removeHandler(handler)

    lines = stream.getvalue().splitlines()
    assert "    [123] one success\\x1b[2J" in lines
    assert [line for line in lines if line.startswith("[123]")] == []


def test_a_line_of_the_log_is_not_endless(log: Log) -> None:
    PromiseJob.add_job("x" * 1_000_000)

    work(1, callback=nothing)

    assert max(map(len, log.messages)) < 30_000


def test_an_exception_whose_class_does_anything_is_recorded() -> None:
    class Meta(type):
        @property
        def __name__(cls) -> str:
            raise SystemExit(4)

    class Text(str):
        def encode(self, *args: Any) -> bytes:
            raise SystemExit(5)

    class WorstError(Exception, metaclass=Meta):
        def __str__(self) -> str:
            return Text("bad")

    job = PromiseJob.add_job("one")

    def fail(job: Any, queue: Any) -> None:
        raise WorstError

    work(1, callback=fail)

    (error,) = Error.collection_for_job(job).instances()
    assert error.hmget("type", "message") == ["WorstError", "bad"]


def test_the_type_of_an_error_is_cut() -> None:
    job = PromiseJob.add_job("one")

    def fail(job: Any, queue: Any) -> None:
        raise type("E" * 100_000, (Exception,), {})

    work(1, callback=fail)

    (error,) = Error.collection_for_job(job).instances()
    assert len(error.type.hget()) == MAX_CODE


def test_a_hook_that_raises_is_logged_by_a_logger_of_another_kind(monkeypatch: pytest.MonkeyPatch, log: Log) -> None:
    class AdapterWorker(Worker):
        def set_logger(self) -> None:
            super().set_logger()
            self.logger = logging.LoggerAdapter(self.logger, {})

    def fail(self: Any, *args: Any) -> None:
        raise ValueError("no")

    monkeypatch.setattr(PromiseJob, "on_success", fail, raising=False)
    jobs = [PromiseJob.add_job(str(number)) for number in range(2)]

    work(2, worker_class=AdapterWorker, callback=nothing)

    assert {job.status.hget() for job in jobs} == {STATUSES.SUCCESS}
    assert len([line for line in log.lines if "on_success" in line and "ValueError: no" in line]) == 2


def test_a_signal_to_a_worker_that_does_not_run_ends_no_process_later() -> None:
    worker = Worker("test", stop_timeout=0.001)
    try:
        worker.catch_end_signal(signal.SIGTERM, None)
    finally:
        worker.stop_handling_end_signal()

    assert worker._stopping is None
    assert worker.must_stop()


def test_a_stop_timeout_that_has_no_effect_is_told_of(log: Log) -> None:
    PromiseJob.add_job("one")

    work(1, callback=nothing, stop_timeout=5)

    assert len([line for line in log.lines if line.startswith("stop_timeout has no effect")]) == 1


# --- Databases that are away from the start


def test_a_producer_waits_for_a_database_that_it_has_not_used_yet(own_server: RedisServer) -> None:
    own_server.kill()
    BaseJobsModel.database._connections.clear()
    starter = threading.Timer(0.4, own_server.start)
    starter.start()

    job = PromiseJob.add_job("one", retry_for=20)

    starter.join()
    assert job.status.hget() == STATUSES.WAITING


def test_a_worker_waits_for_a_database_that_it_has_not_used_yet(own_server: RedisServer, log: Log) -> None:
    own_server.kill()
    BaseJobsModel.database._connections.clear()
    worker = idle(callback=nothing)

    with Running(worker):
        wait_until(lambda: any("Redis cannot be used" in line for line in log.lines))
        own_server.start()
        job = PromiseJob.add_job("one", retry_for=20)
        wait_until(lambda: job.status.hget() == STATUSES.SUCCESS)


def test_a_replica_without_its_master_is_an_outage(own_server: RedisServer) -> None:
    PromiseJob.add_job("one")
    client().config_set("replica-serve-stale-data", "no")
    own_server.client().replicaof("127.0.0.1", "1")
    promoter = threading.Timer(0.4, lambda: own_server.client().replicaof("NO", "ONE"))
    promoter.start()

    job = PromiseJob.add_job("two", retry_for=20)

    promoter.join()
    assert job.status.hget() == STATUSES.WAITING


# --- Leases of a class, again


def test_beats_that_fail_for_a_short_lease_bar_the_worker_although_its_own_are_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(self: Heartbeat) -> None:
        raise ConnectionError("cut")

    held: dict[str, Claim] = {}
    heart = Heartbeat(client(), "jobs", 3000, held, print, lambda line: None)
    monkeypatch.setattr(Heartbeat, "beat", fail)
    held["x:1"] = Claim("x:1", "t", "w", "q", lease_seconds=0.1)
    heart._interval()
    heart._try_to_beat()

    wait_until(lambda: heart.is_failing)


def test_an_interrupt_that_a_job_swallowed_does_not_make_an_interrupt_of_the_next_error() -> None:
    first, second = PromiseJob.add_job("one"), PromiseJob.add_job("two")
    handler = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, signal.default_int_handler)

    def run(job: Any, queue: Any) -> None:
        if job.identifier.hget() == "two":
            raise KeyboardInterrupt
        with contextlib.suppress(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            threading.Event().wait(5)

    try:
        work(2, callback=run)
    finally:
        signal.signal(signal.SIGINT, handler)

    assert (first.status.hget(), second.status.hget()) == (STATUSES.SUCCESS, STATUSES.ERROR)
