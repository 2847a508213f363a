"""Functions as jobs: what `@task` makes of a function, and what becomes of its calls, on real workers."""

from __future__ import annotations

import asyncio
import inspect
import json
import pickle
import re
import sys
import textwrap
from collections.abc import Callable, Iterator
from datetime import date, datetime
from pathlib import Path
from typing import Any

import pytest

from limpyd_jobs import STATUSES, Error, Job, Queue, Worker, admin, run_options, uniqueness
from limpyd_jobs.exceptions import (
    ConfigurationException,
    InvalidArgument,
    JobAlreadyQueued,
    JobFailed,
    NotSerializable,
    TaskAlreadyDefined,
    TaskNotFound,
    TooLarge,
    WrongArguments,
)
from limpyd_jobs.modules import allowed_modules
from limpyd_jobs.serializers import ResultOf
from limpyd_jobs.tasks import (
    KnownTask,
    TaskJob,
    acall,
    call,
    current_job,
    get_task,
    known_tasks,
    references,
    registry,
    task,
)
from limpyd_jobs.tasks.options import CallOptions, TaskOptions
from limpyd_jobs.workers import AsyncWorker

from ..base import ROOT
from ..workers.base import Log, client, work
from . import sample_tasks as tasks

pytestmark = pytest.mark.usefixtures("database")
MODULE = tasks.__name__


@pytest.fixture(autouse=True)
def _no_calls_yet() -> None:
    tasks.calls.clear()


@pytest.fixture
def _own_registry() -> Iterator[None]:
    """What a test defines is forgotten afterwards."""
    before = dict(registry._tasks)
    yield
    registry._tasks.clear()
    registry._tasks.update(before)


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, _own_registry: None) -> Callable[[str, str], None]:
    """Writes a module that can be imported."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(allowed_modules, "names", set(allowed_modules.names))

    def write(name: str, source: str) -> None:
        monkeypatch.delitem(sys.modules, name, raising=False)
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(source))

    return write


def errors() -> list[tuple[str, str]]:
    return [(error.type.hget(), error.message.hget()) for error in Error.collection().instances()]


def status_of(job: Job) -> str:
    return str(STATUSES.by_value(job.status.hget()))


# --- The function


def test_a_task_is_still_the_plain_function() -> None:
    assert tasks.send("a@b.c") == 1
    assert tasks.calls == [("a@b.c", "hi")]
    assert TaskJob.collection().instances() == []


def test_a_task_looks_like_its_function() -> None:
    assert tasks.send.__name__ == "send"
    assert tasks.send.__doc__ == "Send a mail."
    assert tasks.send.__module__ == MODULE
    assert str(inspect.signature(tasks.send)) == "(to: 'str', subject: 'str' = 'hi') -> 'int'"
    assert inspect.isfunction(tasks.send.__wrapped__)


def test_a_coroutine_function_is_called_as_one() -> None:
    calling = tasks.bound_later(None, 3)

    assert inspect.iscoroutine(calling) and asyncio.run(calling) == 3


def test_a_task_is_pickled_by_its_name() -> None:
    assert pickle.loads(pickle.dumps(tasks.send)) is tasks.send


def test_a_task_has_a_name_and_is_found_by_it() -> None:
    assert tasks.send.name == f"{MODULE}:send"
    assert tasks.fail.name == "sample.fail"
    assert registry[f"{MODULE}:send"] is get_task(f"{MODULE}:send") is tasks.send


@pytest.mark.parametrize(
    ("made_of", "reason"),
    [
        (lambda: task(lambda: None), "a lambda"),
        (lambda: task(_nested()), "inside another function"),
        (lambda: task(_Class.method), "is a method"),
        (lambda: task(staticmethod(_plain)), "is a method"),
        (lambda: task(_Class), "must be a function"),
        (lambda: task(len), "must be a function"),
        (lambda: task(_generator), "generator function"),
        (lambda: task(3), "must be a function"),
    ],
)
def test_what_no_worker_can_import_is_refused(made_of: Callable[[], Any], reason: str) -> None:
    with pytest.raises(ConfigurationException, match=reason):
        made_of()


def _plain() -> None: ...


def _generator() -> Iterator[int]:
    yield 1


def _nested() -> Any:
    def inner() -> None: ...

    return inner


class _Class:
    def method(self) -> None: ...


@pytest.mark.usefixtures("_own_registry")
def test_a_nested_function_can_be_a_task_with_a_name() -> None:
    nested = task(name="nested", queue="test")(_nested())

    nested.add()
    work(1)

    assert status_of(nested.jobs().instances()[0]) == "SUCCESS"


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"requeue_tims": 3}, "did you mean requeue_times"),
        ({"requeue_times": -1}, "requeue_times"),
        ({"queue": "a,b"}, "queue_name"),
        ({"queue": "a", "queue_name": "b"}, "queue is short for queue_name"),
        ({"retry_for": "x"}, "retry_for"),
        ({"timeout": 0}, "job_timeout"),
        ({"backoff": "slowly"}, "backoff"),
        ({"isolate": 1}, "isolate"),
        ({"priority": "high"}, "priority"),
        ({"serializer": "pickle"}, "serializer"),
        ({"unique": "all"}, "unique"),
        ({"identifier": "a:{b}"}, "no parameter 'b'"),
        ({"identifier": "a:{"}, "identifier"),
        ({"identifier": "a", "unique": "args"}, "exclusive"),
        ({"delayed_until": "tomorrow"}, "no such option"),
        ({"name": "with space"}, "name"),
        ({"max_size": 0}, "max_size"),
        ({"bind": True}, "first parameter"),
    ],
)
def test_options_that_cannot_work_are_refused_at_once(options: dict[str, Any], reason: str) -> None:
    with pytest.raises((ConfigurationException, InvalidArgument), match=reason):
        task(**options)(_plain)

    assert f"{__name__}:_plain" not in registry


@pytest.mark.usefixtures("_own_registry")
def test_two_functions_cannot_have_one_name() -> None:
    with pytest.raises(TaskAlreadyDefined, match=r"sample\.fail.*sample_tasks\.py:\d+.*_plain"):
        task(name="sample.fail")(_plain)


def test_a_module_can_be_loaded_again(module: Callable[[str, str], None]) -> None:
    module("loadedtwice", "from limpyd_jobs.tasks import task\n@task\ndef f(): ...\n")
    import importlib

    first = importlib.import_module("loadedtwice")
    before = first.f
    module("loadedtwice", "from limpyd_jobs.tasks import task\n\n\n@task\ndef f(a): ...\n")
    sys.modules["loadedtwice"] = first
    importlib.invalidate_caches()
    Path(first.__spec__.cached).unlink(missing_ok=True)

    importlib.reload(first)

    assert first.f is not before and get_task("loadedtwice:f") is first.f


# --- Adding


def test_add_gives_a_job_that_can_be_queried() -> None:
    job = tasks.send.add("a@b.c", subject="x")

    assert isinstance(job, TaskJob)
    assert (job.task_name, job.args, job.kwargs) == (f"{MODULE}:send", ["a@b.c"], {"subject": "x"})
    assert [found.pk.get() for found in tasks.send.jobs(status=STATUSES.WAITING).instances()] == [job.pk.get()]
    assert Queue.count_waiting_jobs("test") == 1


def test_a_call_stores_no_more_than_it_says() -> None:
    job = tasks.send.add("a@b.c")

    stored = client().hgetall(job.key)
    assert set(stored) == {"identifier", "status", "priority", "added", "queued", "queue_key", "task", "arguments"}
    assert json.loads(stored["arguments"]) == [["a@b.c"], {}]


@pytest.mark.parametrize(
    ("args", "kwargs"), [((), {}), (("a", "b", "c"), {}), (("a",), {"subjetc": "x"}), (("a",), {"to": "b"})]
)
def test_wrong_arguments_fail_in_the_producer(args: Any, kwargs: Any) -> None:
    with pytest.raises(TypeError, match=r"sample_tasks:send\(to: str, subject: str = 'hi'\) -> int") as caught:
        tasks.send.add(*args, **kwargs)

    assert isinstance(caught.value, WrongArguments)
    assert client().keys("*taskjob*") == []


def test_what_cannot_be_encoded_fails_in_the_producer_with_its_path() -> None:
    with pytest.raises(NotSerializable, match=r"arguments\.what\[1\]"):
        tasks.once.add(what=[1, object()])

    assert client().keys("*taskjob*") == []


def test_arguments_that_are_too_large_are_refused() -> None:
    with pytest.raises(TooLarge, match="100 at most"):
        tasks.pack.add(b"x" * 200)
    with pytest.raises(TooLarge, match="10 at most"):
        tasks.send.options(max_size=10).add("someone@example.org")


def test_options_hold_for_one_call() -> None:
    job = tasks.send.options(queue="other", priority=5, delayed_for=60, timeout=9, requeue_times=1).add("a")

    assert job.priority.hget() == "5" and status_of(job) == "DELAYED"
    assert Queue.count_delayed_jobs("other") == 1
    assert json.loads(job.run_options.hget()) == {"job_timeout": 9, "requeue_times": 1}
    assert tasks.send.add("b").run_options.hget() is None


def test_options_can_be_said_in_steps() -> None:
    urgent = tasks.send.options(priority=5, queue="other")

    job = urgent.options(priority=7).add("a")

    assert (job.priority.hget(), Queue.count_waiting_jobs("other")) == ("7", 1)


@pytest.mark.parametrize(
    "options",
    [
        {"quue": "a"},
        {"name": "x"},
        {"isolate": True},
        {"timeout": -1},
        {"queue": ""},
        {"unique": 1},
        {"after": "x"},
        {"retry_for": -1},
        {"delayed_for": 1, "delayed_until": datetime(2030, 1, 1)},
    ],
)
def test_an_option_of_a_call_that_cannot_work_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument):
        tasks.send.options(**options)


def test_what_is_said_last_wins_over_what_excludes_it() -> None:
    delayed = tasks.send.options(delayed_until=datetime(2099, 1, 1), identifier="x").options(delayed_for=0)
    job = delayed.options(unique="args").add("a")
    again = delayed.s("b").set(delayed_until=datetime(2099, 1, 1)).add()

    assert (status_of(job), status_of(again)) == ("WAITING", "DELAYED")
    assert job.identifier.hget() != again.identifier.hget() == f"{tasks.send.name}:x"


def test_what_a_call_comes_after_is_kept_for_each_use() -> None:
    parents = [tasks.send.add("a"), tasks.send.add("b")]
    later = tasks.send.options(after=iter(parents))

    assert [len(later.add("c").parents.smembers()) for _ in range(2)] == [2, 2]


def test_a_job_goes_back_to_the_queue_that_it_was_in() -> None:
    job = tasks.send.options(queue="other").add("a", subject="x")
    failed = call("no:task", queue="other")
    work(2, queues="other")
    failed.requeue()
    job.enqueue_or_delay()

    assert Queue.count_waiting_jobs("other") == 2

    Queue.get_queue("other").delete()
    job.enqueue_or_delay()
    assert Queue.count_waiting_jobs("test") == 1


def test_options_of_the_task_hold_for_each_call() -> None:
    job = tasks.late.add()

    assert (job.priority.hget(), status_of(job)) == ("3", "DELAYED")
    assert list(json.loads(job.run_options.hget())) == ["expires"]


def test_many_are_added_in_few_round_trips(monkeypatch: pytest.MonkeyPatch) -> None:
    def calls() -> Iterator[Any]:
        yield from (("a",), ["b", "x"], {"to": "c", "subject": "y"})

    assert tasks.send.add_many(calls()) == (3, 0)

    work(3)
    assert tasks.calls == [("a", "hi"), ("b", "x"), ("c", "y")]


@pytest.mark.parametrize("calls", ["ab", {"to": "a"}, ["a"], [3], 3])
def test_what_are_no_arguments_of_many_calls_is_refused(calls: Any) -> None:
    with pytest.raises(InvalidArgument, match="calls"):
        tasks.send.add_many(calls)


def test_coroutines_add_too() -> None:
    async def add() -> Any:
        job = await tasks.send.aadd("a")
        added = await tasks.send.options(priority=1).aadd_many([("b",)])
        called = await acall(tasks.send.name, ["c"])
        return job, added, called

    job, added, called = asyncio.run(add())

    assert (job.args, added, called.args) == (["a"], (1, 0), ["c"])


# --- Identifiers


def test_each_call_has_an_identifier_of_its_own() -> None:
    first, second = tasks.send.add("a"), tasks.send.add("a")

    assert first.pk.get() != second.pk.get()
    assert first.identifier.hget().startswith("send:")


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (lambda: tasks.refresh.add(3), "refresh:user:3"),
        (lambda: tasks.refresh.add(user=3, depth=2), "refresh:user:3"),
        (lambda: tasks.refresh_deep.add(3), "refresh_deep:3/1"),
        (lambda: tasks.send.options(identifier="to {to}").add("a"), "send:to a"),
        (lambda: tasks.send.options(identifier="{subject}").add("a"), "send:hi"),
    ],
)
def test_an_identifier_is_made_of_the_arguments(made: Callable[[], Any], expected: str) -> None:
    first, second = made(), made()

    assert first.identifier.hget() == f"{MODULE}:{expected}"
    assert first.pk.get() == second.pk.get()


def test_an_identifier_that_does_not_fit_the_arguments_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="identifier"):
        tasks.send.options(identifier="{to.name}").add("a")
    with pytest.raises(InvalidArgument, match="identifier"):
        tasks.send.options(identifier=lambda to: "").add("a")


def test_equal_arguments_are_unique_however_they_are_given() -> None:
    jobs = [
        tasks.once.add({"a": 1, "b": 2}),
        tasks.once.add(what={"b": 2, "a": 1}),
        tasks.once.add({"a": 1, "b": 2}, 1),
        tasks.once.add({"a": 1, "b": 2}, times=2),
    ]

    assert len({job.pk.get() for job in jobs[:3]}) == 1
    assert jobs[3].pk.get() != jobs[0].pk.get()


def test_a_call_that_is_unique_for_a_time_is_made_once_in_it() -> None:
    once = tasks.once.options(unique_for=60)
    first = once.add("a")
    work(1)

    assert once.add(what="a").pk.get() == first.pk.get()
    assert once.add("b").pk.get() != first.pk.get()


def test_a_call_that_waits_can_get_the_arguments_of_another() -> None:
    first = tasks.refresh.options(serializer="msgpack").add(3, depth=1)
    second = tasks.refresh.options(if_queued="replace").add(3, depth=2)

    work(1)

    assert first.pk.get() == second.pk.get()
    assert tasks.calls == [(3, 2)]


def test_a_call_like_one_that_waits_can_be_refused() -> None:
    tasks.refresh.add(3)

    with pytest.raises(JobAlreadyQueued):
        tasks.refresh.options(if_queued="raise").add(3)


@pytest.mark.parametrize("options", [{"unique_for": 60}, {"if_queued": "raise"}])
def test_calls_that_are_never_alike_cannot_be_unique(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument, match="given with identifier or unique"):
        tasks.send.options(**options).add("a")


# --- Running


def test_a_worker_calls_the_function() -> None:
    job = tasks.send.add("a@b.c", subject="x")

    work(1)

    assert tasks.calls == [("a@b.c", "x")]
    assert status_of(job) == "SUCCESS"
    assert admin.check() == []


@pytest.mark.parametrize("worker_class", [Worker, AsyncWorker])
def test_a_coroutine_task_runs_in_both_kinds_of_workers(worker_class: type[Worker]) -> None:
    job = tasks.fetch.add("/", tries=2)

    work(1, worker_class=worker_class)

    assert tasks.calls == [("/", 2, True, job.ident)]
    assert status_of(job) == "SUCCESS"


def test_a_plain_task_runs_in_a_thread_of_an_async_worker() -> None:
    job = tasks.where.add()

    work(1, worker_class=AsyncWorker)

    ((thread, ident),) = tasks.calls
    assert thread.startswith("limpyd-jobs-hand") and ident == job.ident


def test_many_of_both_kinds_run_at_a_time_in_an_async_worker() -> None:
    jobs = [tasks.fetch.add(str(number)) for number in range(20)] + [tasks.where.add() for _ in range(20)]

    work(40, worker_class=AsyncWorker)

    assert sorted(call[-1] for call in tasks.calls) == sorted(job.ident for job in jobs)


@pytest.mark.parametrize("bound", [tasks.bound, tasks.bound_later])
@pytest.mark.parametrize("worker_class", [Worker, AsyncWorker])
def test_a_bound_task_gets_its_job(bound: Any, worker_class: type[Worker]) -> None:
    added = bound.add(3)

    work(1, worker_class=worker_class)

    ((job, up_to),) = tasks.calls
    assert (job.ident, up_to) == (added.ident, 3)


def test_a_bound_task_does_not_take_its_job_from_the_caller() -> None:
    with pytest.raises(WrongArguments, match=r"\(up_to: int\)"):
        tasks.bound.add("job", 3)


def test_the_hints_of_the_function_restore_its_arguments() -> None:
    parcel = tasks.Parcel(2, tasks.Size.LARGE)
    tasks.ship.add(parcel, {tasks.Size.SMALL}, date(2026, 11, 21), 1, 2, other=parcel)

    work(1)

    ((found, sizes, day, rest, more),) = tasks.calls
    assert (found, sizes, day) == (parcel, {tasks.Size.SMALL}, date(2026, 11, 21))
    assert (rest, more) == ((1.0, 2.0), {"other": parcel}) and type(rest[0]) is float


def test_arguments_can_be_packed_otherwise() -> None:
    job = tasks.pack.add(b"\x00\xff")

    work(1)

    assert job.serializer.hget() == "msgpack"
    assert tasks.calls == [b"\x00\xff"]


def test_a_task_adds_another() -> None:
    @task(name="adding", queue="test")
    def adding() -> None:
        tasks.send.add("a")

    try:
        adding.add()
        work(2)
    finally:
        registry.remove("adding")

    assert tasks.calls == [("a", "hi")]


# --- Options of runs


def test_the_options_of_the_task_hold_in_the_worker() -> None:
    job = tasks.fail.add()

    work(3)

    assert tasks.calls == ["ValueError"] * 3
    assert status_of(job) == "ERROR"


def test_the_retries_of_the_task_are_for_some_exceptions() -> None:
    tasks.fail.add("KeyError")

    work(1)

    assert Queue.count_waiting_jobs("test") == Queue.count_delayed_jobs("test") == 0


def test_what_the_call_says_wins_over_the_task() -> None:
    tasks.fail.options(requeue_times=0).add()

    work(1)

    assert Queue.count_waiting_jobs("test") == Queue.count_delayed_jobs("test") == 0


def test_what_the_task_says_wins_over_the_worker() -> None:
    tasks.fail.add()

    work(1, requeue_times=0, no_retry_on=None)

    assert Queue.count_waiting_jobs("test") + Queue.count_delayed_jobs("test") == 1


@pytest.mark.parametrize("worker_class", [Worker, AsyncWorker])
def test_the_timeout_of_a_task_ends_it(worker_class: type[Worker]) -> None:
    tasks.slow.add()

    work(1, worker_class=worker_class)

    assert [kind for kind, _ in errors()] == ["JobTimeout"]


def test_a_task_can_be_isolated(log: Log) -> None:
    results: list[Any] = []

    class IsolatingTaskWorker(Worker):
        def job_success(self, job: Any, queue: Any, job_result: Any) -> Any:
            results.append(job_result)
            return super().job_success(job, queue, job_result)

    job = tasks.alone.add()

    work(1, worker_class=IsolatingTaskWorker)

    assert results == [job.pk.get()]


def test_an_option_is_found_by_the_job() -> None:
    job = tasks.fail.options(job_timeout=7).add()

    assert (job.run_option("requeue_times"), job.run_option("job_timeout")) == (2, 7)


# --- Results


@pytest.mark.parametrize("worker_class", [Worker, AsyncWorker])
def test_what_a_task_returns_is_kept_if_it_says_so(worker_class: type[Worker]) -> None:
    kept, other = tasks.weigh.add(2), tasks.send.add("a")
    called = call(tasks.fetch.name, ["b"], save_result="1h")

    work(3, worker_class=worker_class)

    assert kept.get_result() == tasks.Parcel(2.0, tasks.Size.LARGE)
    assert other.get_result(default="nothing") == "nothing"
    assert called.get_result() == "b"


def test_the_hints_of_the_function_restore_its_result_for_whoever_asks() -> None:
    job = tasks.weigh.add(2)
    work(1)

    async def ask(found: Any) -> Any:
        return await found.aget_result()

    found = TaskJob.get(job.pk.get())
    assert asyncio.run(ask(job)) == asyncio.run(ask(found)) == tasks.Parcel(2.0, tasks.Size.LARGE)
    assert found.get_result(annotation=dict) == {"weight": 2.0, "size": "l"}


def test_a_result_is_packed_as_the_arguments() -> None:
    job = tasks.pack.options(save_result=True).add(b"x")

    work(1)

    assert client().get(job.saved_result.key).startswith("msgpack:")
    assert job.get_result() == b"xx"


def test_the_record_of_a_call_is_kept_for_a_time_only() -> None:
    kept, longer, failed = (
        tasks.send.add("a"),
        tasks.send.options(keep_success="7d").add("b"),
        tasks.fail.add("KeyError"),
    )
    of_the_task = [tasks.leave.add(), tasks.leave.add(True), tasks.leave.options(keep_success="8d").add()]
    canceled = tasks.leave.add()
    canceled.cancel()

    work(6)

    seconds, _ = client().time()
    jobs = (kept, longer, failed, *of_the_task, canceled)
    days = [round((client().zscore("jobs:expiring", job.ident) - seconds) / 86400) for job in jobs]
    assert days == [1, 7, 30, 2, 3, 8, 3]


@pytest.mark.parametrize("worker_class", [Worker, AsyncWorker])
def test_the_result_of_a_job_can_be_an_argument_of_another(worker_class: type[Worker]) -> None:
    first, second = tasks.weigh.add(2), tasks.weigh.add(3)
    work(2)

    tasks.note.add([ResultOf(first.ident), 7], parcel=ResultOf(second.ident))
    tasks.note_later.add(ResultOf(first.ident))
    work(2, worker_class=worker_class)

    light, heavy = tasks.Parcel(2.0, tasks.Size.LARGE), tasks.Parcel(3.0, tasks.Size.LARGE)
    assert ([{"weight": 2.0, "size": "l"}, 7], heavy) in tasks.calls and ("later", light) in tasks.calls


def test_many_results_are_read_together(monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[int] = []
    read = references._read_together
    monkeypatch.setattr(references, "CHUNK", 30)
    monkeypatch.setattr(
        references, "_read_together", lambda model, jobs, *args: (reads.append(len(jobs)), read(model, jobs, *args))[1]
    )
    tasks.weigh.add_many((number,) for number in range(70))
    work(70)

    tasks.note.add([ResultOf(job.ident) for job in tasks.weigh.jobs().instances()])
    work(1)

    ((found, _),) = tasks.calls
    assert sorted(one["weight"] for one in found) == list(range(70))
    assert reads == [30, 30, 10]


def test_a_reference_to_a_job_without_a_result_is_an_error() -> None:
    job = tasks.send.add("a")
    work(1)

    tasks.note.add([ResultOf(job.ident)])
    work(1)

    assert [kind for kind, _ in errors()] == ["NoResult"]


# --- Limits


def test_a_limit_of_a_task_counts_its_calls() -> None:
    keys = [tasks.limited.add(number).run_option("limit_key") for number in range(2)]
    other = tasks.limited_each.add("ann")

    assert keys == [tasks.limited.name] * 2
    assert other.run_option("limit_key") == "of ann"


def test_the_calls_of_a_limited_task_run_one_after_the_other() -> None:
    tasks.limited.add_many((number,) for number in range(10))

    work(10, worker_class=AsyncWorker)

    assert sorted(number for number, _ in tasks.calls) == list(range(10))
    assert {count for _, count in tasks.calls} == {1}


def test_a_task_that_fails_has_no_result() -> None:
    job = tasks.fail.add("KeyError")

    work(1)

    with pytest.raises(JobFailed, match="KeyError") as caught:
        job.get_result(None)
    assert "sample_tasks.py" in caught.value.traceback


# --- Unknown tasks


@pytest.mark.parametrize("worker_class", [Worker, AsyncWorker])
def test_an_unknown_task_is_an_error_and_the_worker_lives(worker_class: type[Worker]) -> None:
    lost = call("no.where:send", ["a"], queue="test")
    tasks.send.add("b")

    work(2, worker_class=worker_class, requeue_times=3)

    assert status_of(lost) == "ERROR"
    assert [kind for kind, _ in errors()] == ["TaskNotFound"]
    assert tasks.calls == [("b", "hi")]


def test_an_unknown_task_is_tried_again_if_that_is_said() -> None:
    call("no.where:send", queue="test", requeue_times=2, requeue_delay_delta=0, retry_on=TaskNotFound)

    work(3)

    assert [kind for kind, _ in errors()] == ["TaskNotFound"] * 3


def test_the_module_of_a_task_is_imported_if_it_may_be(module: Callable[[str, str], None]) -> None:
    module("latetasks", "from limpyd_jobs.tasks import task\n@task\ndef f(a): print('f', a)\n")
    job = call("latetasks:f", [1], queue="test")

    work(1, job_modules="latetasks")

    assert status_of(job) == "SUCCESS"


def test_the_module_of_a_task_is_not_imported_if_nobody_allowed_it(module: Callable[[str, str], None]) -> None:
    module("forbiddentasks", "from limpyd_jobs.tasks import task\n@task\ndef f(a): ...\n")
    call("forbiddentasks:f", [1], queue="test")

    work(1)

    assert "forbiddentasks" not in sys.modules
    ((kind, message),) = errors()
    assert kind == "TaskNotFound" and "--tasks=forbiddentasks" in message


def test_a_task_whose_module_fails_says_so(module: Callable[[str, str], None]) -> None:
    module("brokentasks", "raise OSError('no licence')\n")
    call("brokentasks:f", queue="test")

    work(1, job_modules="brokentasks")

    ((kind, message),) = errors()
    assert kind == "TaskNotFound" and "OSError: no licence" in message


def test_arguments_that_the_task_takes_no_more_are_an_error() -> None:
    job = TaskJob.add_job("old", "test", task=tasks.send.name, arguments='[[],{"too":"a"}]')

    work(1, requeue_times=3)

    assert status_of(job) == "ERROR"
    assert [kind for kind, _ in errors()] == ["WrongArguments"]


# --- Calls by name


def test_a_task_is_called_by_its_name() -> None:
    call(tasks.send.name, ["a"], {"subject": "x"})

    work(1)

    assert tasks.calls == [("a", "x")]


def test_a_call_by_name_is_checked_if_the_code_is_here() -> None:
    with pytest.raises(WrongArguments):
        call(tasks.send.name)


def test_a_call_without_the_code_goes_where_it_says() -> None:
    job = call("else.where:f", [1], {"b": 2}, queue="other", identifier="x", timeout=3)

    assert (job.args, job.kwargs, job.identifier.hget()) == ([1], {"b": 2}, "else.where:f:x")
    assert Queue.count_waiting_jobs("other") == 1


@pytest.mark.parametrize(
    "wrong",
    [{"name": ""}, {"name": 3}, {"name": "a", "args": "ab"}, {"name": "a", "kwargs": [1]}, {"name": "a", "x": 1}],
)
def test_a_call_that_makes_no_sense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument):
        call(**wrong)


def test_workers_register_their_tasks() -> None:
    tasks.send.add("a")

    work(1)

    found = known_tasks()[tasks.send.name]
    assert (found.doc, found.queue) == ("Send a mail.", "test")
    assert found.signature == "(to: str, subject: str = 'hi') -> int"
    assert not found.is_coroutine and known_tasks()[tasks.fetch.name].is_coroutine
    assert known_tasks()["sample.fail"].options["requeue_times"] == 2
    assert admin.check() == []


def test_a_verified_call_needs_a_registered_task() -> None:
    with pytest.raises(TaskNotFound, match="no worker has registered it"):
        call(tasks.send.name, ["a"], verify=True)

    tasks.send.add("a")
    work(1)
    call(tasks.send.name, ["b"], verify=True)
    with pytest.raises(TaskNotFound, match=r"did you mean '.*sample_tasks:send'") as caught:
        call(f"{MODULE}:sned", ["c"], verify=True)

    assert caught.value.near[0] == tasks.send.name
    assert Queue.count_waiting_jobs("test") == 1


def test_a_verified_call_goes_to_the_queue_of_the_task() -> None:
    TaskJob.register_tasks([KnownTask("else.where:f", queue="far")])

    call("else.where:f", verify=True)

    assert Queue.count_waiting_jobs("far") == 1


def test_what_another_version_has_registered_can_be_read() -> None:
    client().hset("jobs:tasks", mapping={"a:f": '{"queue":"q","new":1}', "b:f": "[", "c:f": "[1]"})

    assert [(name, found.queue) for name, found in known_tasks().items()] == [("a:f", "q"), ("b:f", ""), ("c:f", "")]


# --- Signatures


def test_a_signature_is_a_call_to_be_made_later() -> None:
    whole, rest = tasks.send.si("a", subject="x"), tasks.send.s(subject="y")

    whole.add()
    rest.add("b")
    tasks.send.options(priority=2).s("c").set(queue="other").add()

    work(2)
    assert tasks.calls == [("a", "x"), ("b", "y")]
    assert Queue.count_waiting_jobs("other") == 1


def test_an_immutable_signature_takes_no_more_arguments() -> None:
    assert tasks.send.si("a").add("ignored").args == ["a"]
    assert tasks.send.s("a").add("first").args == ["first", "a"]


def test_a_signature_with_wrong_arguments_is_refused() -> None:
    with pytest.raises(WrongArguments):
        tasks.send.si()
    with pytest.raises(WrongArguments):
        tasks.send.s(subjetc="x")
    with pytest.raises(WrongArguments):
        tasks.send.s("a", "b", "c")


def test_there_is_no_current_job_outside() -> None:
    assert current_job() is None


# --- What there is


def test_what_can_be_said_of_a_job_can_be_said_of_a_call() -> None:
    arguments = set(inspect.signature(Job.add_job).parameters) - {"queue_model", "fields_if_new"}

    assert {*arguments, *run_options.NAMES, *uniqueness.NAMES} <= set(CallOptions.__annotations__)


def test_the_chapter_has_each_option() -> None:
    chapter = (ROOT / "docs" / "tasks.md").read_text().partition("\n## Options\n")[2].partition("\n## ")[0]
    named = {name for line in chapter.splitlines() if line.startswith("| `") for name in re.findall(r"`(\w+)`", line)}

    assert {*TaskOptions.__annotations__, "bind"} <= named
