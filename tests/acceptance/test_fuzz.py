"""Anything as names, identifiers, idents and field values, while worker processes run."""

from __future__ import annotations

import string
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from limpyd_jobs import STATUSES, Error, Job, Queue, admin
from limpyd_jobs.exceptions import InvalidArgument
from limpyd_jobs.fields import InstanceHashField

from ..base import PROCESS_SECONDS, RedisServer, WorkerProcess, wait_until

pytestmark = pytest.mark.usefixtures("database")

FUZZ = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
NAMES = ["fuzz", "fuzz two", "f:u:z:z", "é☃", "*[a]?"]


class FuzzJob(Job):
    queue_name = "fuzz"
    colour = InstanceHashField(indexable=True)

    def run(self, queue: Any) -> None:
        pass


anything = st.one_of(
    st.text(max_size=50),
    st.binary(max_size=50),
    st.integers(),
    st.floats(),
    st.booleans(),
    st.none(),
    st.lists(st.text(max_size=3), max_size=2),
    st.sampled_from(["", " ", "\0", "\n", "a,b", "é", "\ud800", "nan", "1e400", "-0", "x" * 5000, b"\xff"]),
)
# such a job is delayed for a minute, or waits for others that there are not
NOT_AS_STATUS = (b"d", b"b")
raw = st.one_of(
    st.binary(max_size=40).filter(lambda value: value not in NOT_AS_STATUS),
    st.sampled_from([b"", b"w", b"c", b"r", b"1", b"-1", b"nan", b"9" * 400, b"a:b"]),
)


@contextmanager
def working(server: RedisServer, *options: str) -> Iterator[WorkerProcess]:
    arguments = [f"--queues={','.join(NAMES)}", "--job-modules=tests.acceptance.test_fuzz", "--no-title"]
    with WorkerProcess(*arguments, "--max-loops=1000000", *options, database=server.url) as worker:
        worker.wait_for_output("Run started")
        yield worker
        assert worker.is_running(), worker.output
        assert worker.stop() == 0, worker.output


def client() -> Any:
    return Job.get_connection()


def everything() -> dict[str, Any]:
    """All keys, with what is under them."""
    return {key: client().dump(key) for key in client().keys("jobs:*")}


def is_all_done() -> bool:
    return len(FuzzJob.collection(queued="1")) == 0


def problems() -> list[str]:
    return [str(problem) for problem in admin.check()]


@FUZZ
@given(
    identifier=anything,
    queue_name=st.one_of(st.sampled_from(NAMES), anything),
    priority=st.one_of(st.integers(-3, 3), anything),
    colour=anything,
    delayed_for=st.one_of(st.none(), st.floats(-1, 0.01), anything),
)
def test_what_is_added_is_stored_as_it_was_given_or_refused_whole(
    identifier: Any, queue_name: Any, priority: Any, colour: Any, delayed_for: Any
) -> None:
    client().flushdb()
    before = everything()

    try:
        job = FuzzJob.add_job(identifier, queue_name, priority, colour=colour, delayed_for=delayed_for)
    except (InvalidArgument, ValueError, TypeError) as error:
        assert isinstance(error, InvalidArgument), error
        assert everything() == before
        return

    assert job.identifier.hget() == _as_stored(identifier)
    assert job.colour.hget() == _as_stored(colour)
    assert list(FuzzJob.collection(colour=_as_stored(colour))) == [job.pk.get()]
    assert problems() == []


def _as_stored(value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode()
    return value if isinstance(value, str) else repr(value)


def test_whatever_is_added_is_run(redis_server: RedisServer) -> None:
    added: list[Any] = []

    @FUZZ
    @given(identifier=st.text(max_size=50), queue_name=st.sampled_from(NAMES), priority=st.integers(-3, 3))
    def add(identifier: str, queue_name: str, priority: int) -> None:
        try:
            added.append(FuzzJob.add_job(identifier, queue_name, priority))
        except InvalidArgument:
            assert "\\ud" in ascii(identifier)

    for name in NAMES:
        Queue.get_queue(name)
    with working(redis_server) as worker:
        add()
        wait_until(is_all_done, PROCESS_SECONDS, "all jobs are done")
        output = worker.output

    assert {job.status.hget() for job in added} == {STATUSES.SUCCESS}
    assert set(output.replace("\n", "")) & set(map(chr, range(32))) == set()
    assert problems() == []


def test_whatever_is_pushed_is_cleared_away_and_no_job_is_lost(redis_server: RedisServer) -> None:
    queue = Queue.get_queue("fuzz")
    alphabet = string.ascii_letters + string.digits + ".:_-\n\0 é"
    idents = st.one_of(
        raw,
        st.text(alphabet, max_size=60).map(str.encode),
        st.from_regex(rb"\A(os|sys|limpyd_jobs\.models|tests\.acceptance\.test_fuzz)\.[A-Za-z_]{1,12}:[0-9]{1,3}\Z"),
    )
    good: list[Any] = []

    @FUZZ
    @given(ident=idents, delayed=st.booleans())
    def push(ident: bytes, delayed: bool) -> None:
        if delayed:
            client().zadd(queue.delayed.key, {ident: 1})
        else:
            client().rpush(queue.waiting.key, ident)
        good.append(FuzzJob.add_job(str(len(good))))

    with working(redis_server, "--fetch-delayed-delay=0.2"):
        push()
        wait_until(is_all_done, PROCESS_SECONDS, "all jobs are done")
        wait_until(
            lambda: not queue.delayed.zcard() and not queue.waiting.llen(),
            PROCESS_SECONDS,
            "all that was pushed is gone",
        )

    assert {job.status.hget() for job in good} == {STATUSES.SUCCESS}
    assert queue.errors.llen() == len(Error.collection())
    assert {error.type.hget() for error in Error.collection().instances()} <= {"JobClassError"}
    assert problems() == []


def test_whatever_stands_in_the_fields_of_a_job_the_others_run(redis_server: RedisServer) -> None:
    names = ["identifier", "priority", "tries", "start", "end", "added", "recoveries", "cancel_on_error"]
    good: list[Any] = []
    spoilt: list[Any] = []

    @FUZZ
    @given(name=st.sampled_from([*names, "status", "queued", "delayed_until", "queue_key"]), value=raw)
    def spoil(name: str, value: bytes) -> None:
        job = FuzzJob.add_job(f"spoilt {len(spoilt)}", delayed_for=0.05 if len(spoilt) % 2 else None)
        client().hset(job.key, name, value)
        spoilt.append((name, job))
        good.append(FuzzJob.add_job(f"good {len(good)}"))

    Queue.get_queue("fuzz")
    with working(redis_server, "--fetch-delayed-delay=0.2"):
        spoil()
        wait_until(
            lambda: all(job.status.hget() == STATUSES.SUCCESS for job in good),
            PROCESS_SECONDS,
            "all good jobs are done",
        )
        queue = Queue.get_queue("fuzz")
        wait_until(lambda: not queue.delayed.zcard() and not queue.waiting.llen(), PROCESS_SECONDS, "nothing is left")
        wait_until(lambda: not client().zcard("jobs:leases"), PROCESS_SECONDS, "nothing runs")

    plain = [job for name, job in spoilt if name in names]
    assert {client().hget(job.key, "status") for job in plain} == {STATUSES.SUCCESS}
