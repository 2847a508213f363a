"""What programs put around jobs, in each kind of worker."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Any, ClassVar

import pytest
from limpyd import fields

from limpyd_jobs import STATUSES, Job, Workflow
from limpyd_jobs.instruments import Instrument, add_instrument, instruments, remove_instrument
from limpyd_jobs.tasks import task
from limpyd_jobs.workers import AsyncConsumer, AsyncWorker

from .base import Log, work

pytestmark = pytest.mark.usefixtures("database")

request: ContextVar[str] = ContextVar("request", default="")


class InstrumentedJob(Job):
    queue_name = "test"
    requests: ClassVar[list[str]] = []

    def run(self, queue: Any) -> str:
        self.requests.append(request.get())
        if self.identifier.hget() == "bad":
            raise ValueError("no")
        return request.get()


class InstrumentedAsyncJob(Job):
    queue_name = "test"

    async def run(self, queue: Any) -> None:
        await asyncio.sleep(0)
        InstrumentedJob.requests.append(request.get())


class InstrumentedOwnFieldJob(Job):
    queue_name = "test"
    run_options = fields.InstanceHashField()


@task(queue="test")
def instrumented_task() -> None:
    InstrumentedJob.requests.append(request.get())


class Requests(Instrument):
    """Brings the request of whoever adds a job to its run."""

    def __init__(self) -> None:
        self.events: list[Any] = []

    @contextmanager
    def adding(self, model: Any, queue_name: str | None, identifier: str | None) -> Iterator[None]:
        self.events.append(("adding", model.__name__, queue_name, identifier))
        yield

    def carry(self, carried: dict[str, Any]) -> None:
        carried["request"] = request.get()

    @contextmanager
    def around(self, job: Any, queue: Any, worker: Any) -> Iterator[None]:
        token = request.set(job.get_carried().get("request", "none"))
        self.events.append(("begin", job.identifier.hget()))
        try:
            yield
        except BaseException as error:
            self.events.append(type(error).__name__)
            raise
        finally:
            request.reset(token)


class Outside(Requests):
    stays_outside = True


class Broken(Instrument):
    def __init__(self, place: str) -> None:
        self.place = place

    def adding(self, model: Any, queue_name: str | None, identifier: str | None) -> Any:
        return self._fail("adding") or super().adding(model, queue_name, identifier)

    def carry(self, carried: dict[str, Any]) -> None:
        carried["unfit"] = object()
        self._fail("carry")

    @contextmanager
    def around(self, job: Any, queue: Any, worker: Any) -> Iterator[None]:
        self._fail("before")
        yield
        self._fail("after")

    def _fail(self, place: str) -> None:
        if self.place == place:
            raise RuntimeError(f"broken, {place}")


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    InstrumentedJob.requests.clear()
    yield
    instruments.clear()


@pytest.fixture
def requests() -> Requests:
    one = Requests()
    add_instrument(one)
    return one


def from_request(name: str, action: Any, *args: Any, **kwargs: Any) -> Any:
    token = request.set(name)
    try:
        return action(*args, **kwargs)
    finally:
        request.reset(token)


# --- what comes along


@pytest.mark.parametrize("options", [{}, {"threads": 2}, {"prefetch": 5}], ids=["plain", "threads", "prefetch"])
def test_what_is_carried_is_known_where_the_job_runs(requests: Requests, options: dict[str, Any]) -> None:
    from_request("A", InstrumentedJob.add_job, "a")
    from_request("B", InstrumentedJob.add_job, "b")

    work(2, **options)

    assert sorted(InstrumentedJob.requests) == ["A", "B"]
    assert request.get() == ""


def test_it_is_known_in_coroutines_and_in_the_threads_of_a_loop(requests: Requests) -> None:
    from_request("A", InstrumentedAsyncJob.add_job, "a")
    from_request("B", InstrumentedJob.add_job, "b")

    work(2, worker_class=AsyncWorker)

    assert sorted(InstrumentedJob.requests) == ["A", "B"]


def test_it_is_entered_in_the_thread_of_a_plain_function_of_a_loop() -> None:
    entered, ran = [], []

    class Threads(Instrument):
        @contextmanager
        def in_thread(self, worker: Any) -> Iterator[None]:
            entered.append(threading.get_ident())
            yield

    class InThreadJob(Job):
        queue_name = "test"

        def run(self, queue: Any) -> None:
            ran.append(threading.get_ident())

    one = Threads()
    add_instrument(one)
    try:
        InThreadJob.add_job("a")
        work(1, worker_class=AsyncWorker)
    finally:
        remove_instrument(one)

    assert ran and ran[0] in entered
    assert threading.get_ident() not in entered


def test_it_comes_along_however_a_job_is_added(requests: Requests) -> None:
    def add_all() -> None:
        InstrumentedJob.add_jobs(["many", {"identifier": "later", "delayed_for": 0}])
        asyncio.run(InstrumentedJob.aadd_job("coroutine"))
        instrumented_task.add()
        workflow = Workflow()
        workflow.plan(InstrumentedJob, "planned")
        workflow.add()
        InstrumentedJob.execute_now("now")

    from_request("A", add_all)
    work(5)

    assert InstrumentedJob.requests == ["A"] * 6


def test_an_instrument_learns_of_each_call_that_adds_once(requests: Requests) -> None:
    InstrumentedJob.add_job("one")
    InstrumentedJob.add_job(identifier="two", queue_name="other")
    InstrumentedJob.add_jobs(["many"], "other", 1)
    asyncio.run(InstrumentedJob.aadd_job("coroutine", "new", 3))

    assert requests.events == [
        ("adding", "InstrumentedJob", None, "one"),
        ("adding", "InstrumentedJob", "other", "two"),
        ("adding", "InstrumentedJob", "other", None),
        ("adding", "InstrumentedJob", "new", "coroutine"),
    ]


def test_it_stays_beside_the_options_of_a_run(requests: Requests) -> None:
    job = from_request("A", InstrumentedJob.add_job, "a", job_timeout=50, expires=60)

    assert (job.run_option("job_timeout"), job.get_carried()) == (50, {"request": "A"})
    assert [*json.loads(job.run_options.hget())][-1] == "carried"


def test_a_job_keeps_it_when_it_is_requeued(requests: Requests) -> None:
    from_request("A", InstrumentedJob.add_job, "bad", requeue_times=1, requeue_delay_delta=0)

    work(2)

    assert InstrumentedJob.requests == ["A", "A"]


def test_a_job_that_replaces_another_ones_fields_leaves_its_options(requests: Requests) -> None:
    job = InstrumentedJob.add_job("a", job_timeout=50)

    from_request("B", InstrumentedJob.add_job, "a", if_queued="replace")

    assert job.run_option("job_timeout") == 50


def test_a_class_with_a_field_of_that_name_carries_nothing(requests: Requests) -> None:
    job = InstrumentedOwnFieldJob.add_job("a")

    assert (job.run_options.hget(), job.get_carried()) == (None, {})


def test_without_instruments_nothing_is_stored() -> None:
    add_instrument(one := Requests())
    remove_instrument(one)

    assert InstrumentedJob.add_job("a").run_options.hget() is None


# --- what is around a run


@pytest.mark.parametrize("worker_class", [None, AsyncWorker], ids=["plain", "async"])
def test_an_instrument_sees_what_a_job_raises(requests: Requests, worker_class: Any) -> None:
    job = InstrumentedJob.add_job("bad")

    work(1, **({"worker_class": worker_class} if worker_class else {}))

    assert requests.events[1:] == [("begin", "bad"), "ValueError"]
    assert job.status.hget() == STATUSES.ERROR


def test_it_is_in_the_process_of_an_isolated_job_unless_it_stays_outside(requests: Requests) -> None:
    add_instrument(outside := Outside())
    from_request("A", InstrumentedJob.add_job, "bad", save_result=True)
    del requests.events[:], outside.events[:]

    work(1, isolate=True)

    assert (requests.events, outside.events) == ([], [("begin", "bad"), "ValueError"])


def test_what_it_sets_is_known_in_the_process_of_an_isolated_job(requests: Requests) -> None:
    job = from_request("A", InstrumentedJob.add_job, "a", save_result=True)

    work(1, isolate=True)

    assert job.get_result() == "A"


def test_it_is_around_the_block_of_a_consumer(requests: Requests) -> None:
    from_request("A", InstrumentedJob.add_job, "a")

    async def consume() -> tuple[str, str]:
        async with AsyncConsumer("test") as jobs, await anext(jobs):
            inside = request.get()
        return inside, request.get()

    assert asyncio.run(asyncio.wait_for(consume(), 10)) == ("A", "")


def test_a_process_that_a_job_forks_does_not_leave_it(requests: Requests) -> None:
    class Forking(Requests):
        @contextmanager
        def around(self, job: Any, queue: Any, worker: Any) -> Iterator[None]:
            yield
            os.write(writer, b"left")

    reader, writer = os.pipe()
    add_instrument(Forking())
    InstrumentedJob.add_job("a")

    def fork(job: Any, queue: Any) -> None:
        pid = os.fork()
        if pid:
            os.waitpid(pid, 0)

    work(1, callback=fork, threads=2)  # there such a process ends as soon as it comes back

    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        assert pipe.read() == b"left"


# --- one that is broken


@pytest.mark.parametrize("place", ["adding", "carry", "before", "after", "nowhere"])
def test_an_instrument_that_raises_is_logged_and_harms_no_job(log: Log, place: str) -> None:
    add_instrument(Broken(place))
    add_instrument(Requests())
    job = from_request("A", InstrumentedJob.add_job, "a")

    work(1)

    assert (job.status.hget(), InstrumentedJob.requests) == (STATUSES.SUCCESS, ["A"])
    said = [record.getMessage() for record in log.records if record.levelname == "ERROR"]
    expected = {"adding": "adding", "before": "around", "after": "around"}.get(place)
    carrying = "Broken raised, in carry: nothing comes along"  # what it puts there cannot be written
    assert sorted(said) == sorted([carrying, *([f"Broken raised, in {expected}"] if expected else [])])


def test_it_cannot_hide_what_a_job_raises() -> None:
    class Hiding(Instrument):
        @contextmanager
        def around(self, job: Any, queue: Any, worker: Any) -> Iterator[None]:
            with suppress(ValueError):
                yield

    add_instrument(Hiding())
    job = InstrumentedJob.add_job("bad")

    work(1)

    assert job.status.hget() == STATUSES.ERROR
