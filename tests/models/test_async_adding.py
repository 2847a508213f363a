"""`await Job.aadd_job(...)`: what `add_job` does, without keeping the event loop waiting."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
import tempfile
import warnings
from typing import Any

import pytest
import redis
from limpyd import fields
from limpyd.contrib.indexes import SimpleDateTimeIndex
from redis import asyncio as redis_asyncio

from limpyd_jobs import STATUSES, Job, Queue, aio, embedded, transitions
from limpyd_jobs.database import new_client
from limpyd_jobs.exceptions import InvalidArgument, WrongKeyType
from limpyd_jobs.models import BaseJobsModel

from ..base import RedisServer, wait_until
from .support import connection, dump


class AsyncQueue(Queue):
    def enqueue_job(self, job: Job, prepend: bool = False) -> None:
        connection().rpush("placed", job.ident)
        super().enqueue_job(job, prepend)


class AsyncJob(Job):
    queue_name = "async"

    size = fields.InstanceHashField(indexable=True)
    when = fields.InstanceHashField(indexable=True, indexes=[SimpleDateTimeIndex])


def without_clock(found: dict[str, Any]) -> dict[str, Any]:
    """A dump, without when the jobs were added."""
    for value in found.values():
        if isinstance(value, dict):
            value.pop("added", None)
    return found


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"size": 3},
        {"priority": 5, "prepend": True},
        {"delayed_for": -1},
        {"when": "2026-01-02 03:04:05"},
        {"size": "é\n"},
        {"job_timeout": 5, "backoff": [1, 10]},
    ],
)
def test_a_job_is_stored_as_add_job_stores_it(database: Any, arguments: dict[str, Any]) -> None:
    AsyncJob.add_job("a", **arguments)
    expected = without_clock(dump())
    connection().flushall()

    job = asyncio.run(AsyncJob.aadd_job("a", **arguments))

    assert isinstance(job, AsyncJob)
    assert without_clock(dump()) == expected


def test_a_job_is_delayed(database: Any) -> None:
    job = asyncio.run(AsyncJob.aadd_job("a", delayed_for=100))
    assert job.status.hget() == STATUSES.DELAYED


def test_an_identifier_that_is_queued_is_not_added_again(database: Any) -> None:
    async def add_twice() -> list[Any]:
        return [await AsyncJob.aadd_job("a"), await AsyncJob.aadd_job("a")]

    first, second = asyncio.run(add_twice())

    assert first.ident == second.ident


def test_an_existing_job_moves_to_a_queue_of_its_priority_that_has_to_be_made(database: Any) -> None:
    job = AsyncJob.add_job("a", "other", priority=3)

    asyncio.run(AsyncJob.aadd_job("a", "new", prepend=True))

    assert Queue.get_queue("new", 3).waiting.lmembers() == [job.ident]


def test_own_placing_of_a_queue_is_called(database: Any) -> None:
    job = asyncio.run(AsyncJob.aadd_job("a", queue_model=AsyncQueue))
    assert connection().lrange("placed", 0, -1) == [job.ident]


def test_a_bad_argument_is_refused_before_anything_is_written(database: Any) -> None:
    with pytest.raises(InvalidArgument, match="priority"):
        asyncio.run(AsyncJob.aadd_job("a", priority="high"))
    assert dump() == {}


def test_a_broken_queue_is_told_of(database: Any) -> None:
    queue = Queue.get_queue("async")
    connection().set(queue.waiting.key, "text")
    with pytest.raises(WrongKeyType):
        asyncio.run(AsyncJob.aadd_job("a"))


def test_hundreds_are_added_at_the_same_time_through_few_connections(database: Any) -> None:
    async def add_all() -> list[Any]:
        return await asyncio.gather(*[AsyncJob.aadd_job(str(number)) for number in range(300)])

    before = connection().info("stats")["total_connections_received"]
    jobs = asyncio.run(add_all())

    assert len({job.ident for job in jobs}) == 300
    assert connection().info("stats")["total_connections_received"] - before <= aio.MAX_CONNECTIONS + 5


def test_many_are_added_at_once(database: Any) -> None:
    added = asyncio.run(AsyncJob.aadd_jobs(["a", {"identifier": "b", "size": 2}, "a"], "many", delayed_for=100))
    assert added == (2, 1)
    assert Queue.count_delayed_jobs("many") == 2


def test_each_event_loop_has_a_client_that_is_closed_with_it(database: Any) -> None:
    async def add() -> Any:
        await AsyncJob.aadd_job("a")
        return await aio.async_connection(database)

    gc.collect()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        first, second = asyncio.run(add()), asyncio.run(add())
        gc.collect()

    assert first is not second
    assert not aio._clients
    assert not [str(one.message) for one in told if "unclosed" in str(one.message)]


def test_a_loop_that_was_left_open_is_forgotten(database: Any) -> None:
    loop = asyncio.new_event_loop()
    loop.run_until_complete(AsyncJob.aadd_job("a"))
    client = aio._clients[loop][1]
    loop.run_until_complete(client.aclose())
    loop.close()

    asyncio.run(AsyncJob.aadd_job("b"))

    assert loop not in aio._clients


def test_a_database_that_was_connected_elsewhere_gets_another_client(database: Any, redis_server: Any) -> None:
    async def add() -> tuple[Any, Any]:
        first = await AsyncJob.aadd_job("a")
        database.connect(**{**redis_server.settings, "db": 3})
        return first, await AsyncJob.aadd_job("a")

    asyncio.run(add())

    assert redis_server.client(db=3).exists("jobs:asyncjob:1:hash")
    redis_server.client(db=3).flushdb()


def test_a_script_that_the_server_does_not_know_is_sent_in_full(database: Any) -> None:
    connection().script_flush()
    assert asyncio.run(AsyncJob.aadd_job("a")).identifier.hget() == "a"


def test_texts_that_are_not_utf8_are_sent_as_they_were_read(database: Any) -> None:
    job = AsyncJob.add_job("a")
    text = b"\xff".decode("utf-8", "surrogateescape")
    recipe = AsyncJob._class_subject().recipe
    call = transitions.write(job.key, recipe, job.pk.get(), True, "hset", ["start", text])

    async def send() -> Any:
        client = aio.async_client(connection())
        try:
            return await transitions.asend(client, call)
        finally:
            await client.aclose()

    asyncio.run(send())

    assert job.start.hget() == text


def test_adding_waits_for_a_server_that_comes_back(database: Any) -> None:
    server = RedisServer(tcp=True)
    server.start()
    try:
        BaseJobsModel.database.connect(**server.settings)

        async def add() -> Any:
            await AsyncJob.aadd_job("a")
            server.kill()
            adding = asyncio.create_task(AsyncJob.aadd_job("b", retry_for=30))
            await asyncio.sleep(0)
            await asyncio.to_thread(server.start)
            return await adding

        job = asyncio.run(add())
        assert job.identifier.hget() == "b"
    finally:
        server.close()


@pytest.mark.parametrize("kind", ["unix", "password"])
def test_the_settings_of_the_database_are_used(database: Any, kind: str) -> None:
    with RedisServer(tcp=True, options={"requirepass": "secret"} if kind == "password" else None) as server:
        settings = {"unix_socket_path": server.socket_path, "db": 0} if kind == "unix" else server.settings
        BaseJobsModel.database.connect(**settings, **({"password": "secret"} if kind == "password" else {}))
        job = asyncio.run(AsyncJob.aadd_job("a"))
        assert job.identifier.hget() == "a"


def test_an_embedded_server_that_was_killed_is_started_again(database: Any) -> None:
    with tempfile.TemporaryDirectory(prefix="limpyd-jobs-test-", dir="/tmp") as directory:
        BaseJobsModel.database.connect(f"embedded://{directory}")
        try:

            async def add() -> Any:
                await AsyncJob.aadd_job("a")
                pid = BaseJobsModel.database.connection.info("server")["process_id"]
                os.kill(pid, signal.SIGKILL)
                await asyncio.to_thread(wait_until, lambda: not os.path.exists(f"/proc/{pid}"))
                return await AsyncJob.aadd_job("b")

            assert asyncio.run(add()).identifier.hget() == "b"
        finally:
            embedded.stop(directory)


@pytest.mark.parametrize("is_tls", [True, False])
def test_a_client_has_the_settings_of_the_plain_one(is_tls: bool) -> None:
    more = {"ssl": True, "ssl_ca_certs": "/ca.pem"} if is_tls else {}
    plain = new_client({"host": "jobs", "port": 7000, "db": 2, "username": "me", "password": "secret", **more})

    connection = aio.async_client(plain, 3).connection_pool.make_connection()

    assert isinstance(connection, redis_asyncio.SSLConnection) == is_tls
    assert (connection.host, connection.port, connection.db, connection.password) == ("jobs", 7000, 2, "secret")
    assert connection.socket_timeout == 5


@pytest.mark.skipif(sys.version_info < (3, 11), reason="redis-py reads by timeouts, which 3.10 takes for cancellations")
def test_no_cancellation_is_lost(database: Any) -> None:
    async def ping_for_ever(client: Any) -> None:
        while True:
            await client.ping()

    async def main() -> None:
        client = await aio.async_connection(database)
        for steps in range(100):
            task = asyncio.create_task(ping_for_ever(client))
            for _ in range(steps):
                await asyncio.sleep(0)
            task.cancel()
            assert await asyncio.wait([task], timeout=5) == ({task}, set())
            assert task.cancelled()

    asyncio.run(main())


def test_a_write_that_does_not_go_on_times_out(database: Any) -> None:
    async def main() -> None:
        connection = aio.async_client(database.connection).connection_pool.make_connection()
        await connection.connect()
        connection.socket_timeout = 0.01
        connection._writer.drain = lambda: asyncio.sleep(60)  # the server reads no more
        with pytest.raises(redis.TimeoutError, match="writing"):
            await connection.send_command("PING")
        assert not connection.is_connected
        assert connection.socket_timeout == 0.01

    asyncio.run(main())
