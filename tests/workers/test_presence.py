"""What others see of a worker: its record, its file; and whether all is well."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from limpyd_jobs import Error, Job, Queue, Worker, WorkerInfo, admin, transitions, version
from limpyd_jobs.exceptions import ConfigurationException, InvalidArgument
from limpyd_jobs.models import worker_recipe
from limpyd_jobs.workers import AsyncConsumer, AsyncWorker, doorbell, heartbeat, presence

from ..base import RedisServer, WorkerProcess, wait_until
from .base import Log, Running, client, idle, run, wait_until_idle, work
from .test_budget import counted

pytestmark = pytest.mark.usefixtures("database")


class SeenJob(Job):
    queue_name = "test"
    seen: list[Any] = []

    def run(self, queue: Any) -> None:
        self.seen.append(admin.workers())


class ShopSeenQueue(Queue):
    namespace = "seen-shop"


class ShopSeenError(Error):
    namespace = "seen-shop"


class ShopSeenJob(Job):
    namespace = "seen-shop"
    queue_model = ShopSeenQueue
    queue_name = "test"

    def run(self, queue: Any) -> None:
        SeenJob.seen.append(admin.workers(ShopSeenQueue))


class SecretWorker(Worker):
    more_parameters = (*Worker.more_parameters, "mail_password", "mail_url")
    mail_password = "hush"
    mail_url = "smtp://me:hush@mail"


@pytest.fixture(autouse=True)
def books(database: Any) -> Iterator[None]:
    SeenJob.seen.clear()
    yield
    assert [str(problem) for problem in admin.check()] == []


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Records are written often."""
    monkeypatch.setattr(heartbeat, "BESIDE_SECONDS", 0.01)
    monkeypatch.setattr(presence, "NOTE_SECONDS", 0.01)
    monkeypatch.setattr(presence, "EARLY_SECONDS", 0.01)


def only(found: list[Any]) -> Any:
    [one] = found
    return one


def note_dead(pk: str = "dead", seconds: float = 60, **values: str) -> None:
    """The record of a worker that is somewhere else, or was."""
    texts = dict.fromkeys(("kind", "host", "version", "started", "status"), "x")
    texts |= {"pid": "1", "memory": "1", "queues": '["test"]', "options": "{}", "jobs": "[]", "counts": "{}"}
    transitions.send(client(), transitions.note_worker("jobs", worker_recipe("jobs"), pk, seconds, {**texts, **values}))


# --- The record


@pytest.mark.parametrize(
    ("worker_class", "options"),
    [(Worker, {}), (Worker, {"threads": 2}), (Worker, {"prefetch": 5}), (AsyncWorker, {})],
    ids=["plain", "threads", "prefetch", "event loop"],
)
def test_a_worker_is_seen_with_its_job_while_it_runs_and_no_more_at_its_end(
    worker_class: type[Worker], options: dict[str, Any]
) -> None:
    job = SeenJob.add_job("a")

    work(1, ["test", "other"], worker_class, **options)

    record = only(SeenJob.seen[0])
    assert (record.kind, record.host, record.pid) == (worker_class.__name__, socket.gethostname(), os.getpid())
    assert (record.version, record.queues) == (version.EXACT_VERSION, ("test", "other"))
    assert record.options["threads"] == options.get("threads", 1)
    assert record.options["queue_model"] == "limpyd_jobs.models.Queue"
    assert 0 <= record.heartbeat_age < presence.GONE_SECONDS
    assert record.memory_bytes > 1_000_000
    assert [(one.ident, one.since) for one in record.jobs] == [(job.ident, job.start.hget())]
    assert 0 <= record.jobs[0].seconds < 60
    assert admin.workers() == []
    assert list(WorkerInfo.collection()) == []
    assert client().exists("jobs:workers") == 0


def test_a_consumer_is_seen_too() -> None:
    async def consume() -> str:
        async with AsyncConsumer("test"):
            kind: str = only(await asyncio.to_thread(wait_until, admin.workers)).kind
            return kind

    assert asyncio.run(consume()) == "AsyncConsumer"
    assert admin.workers() == []


def test_the_record_says_some_seconds_later_what_the_worker_does_by_now(quick: None) -> None:
    written: list[dict[str, str]] = []

    def wait(job: Any, queue: Any) -> None:
        record = WorkerInfo.get(only(list(WorkerInfo.collection())))
        wait_until(lambda: job.ident in record.jobs.hget())
        wait_until(lambda: list(WorkerInfo.collection(status="running")) == [record.id.get()])
        written.append(record.hgetall())
        if job.identifier.hget() == "0":
            raise ValueError("boom")

    jobs = [SeenJob.add_job(str(number)) for number in range(2)]
    work(2, callback=wait)

    assert json.loads(written[1]["jobs"]) == [[jobs[1].ident, jobs[1].start.hget()]]
    assert json.loads(written[1]["counts"]) == {"jobs": 1, "errors": 1}
    assert written[0]["heartbeat"] < written[1]["heartbeat"]


def test_what_is_lost_is_written_again(quick: None) -> None:
    Queue.get_queue("test")
    with Running(idle()):
        wait_until(admin.workers)
        client().flushdb()
        assert only(wait_until(admin.workers)).queues == ("test",)
        wait_until(lambda: only(list(WorkerInfo.collection(host=socket.gethostname()))))


def test_an_idle_worker_is_seen_again_after_a_restart_of_redis(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "BESIDE_SECONDS", 0.01)
    monkeypatch.setattr(presence, "EARLY_SECONDS", 0)
    Queue.get_queue("test")
    with Running(idle()):
        wait_until_idle()
        client().script_flush()
        client().delete("jobs:workers")
        client().rpush("jobs:doorbell:queue:test", "1")  # it waits anew, by a server without scripts

        wait_until(lambda: client().exists("jobs:workers"))


def test_workers_of_another_namespace_are_seen_there() -> None:
    ShopSeenJob.add_job("a")

    work(1, queue_model=ShopSeenQueue, error_model=ShopSeenError)

    assert only(SeenJob.seen[0]).queues == ("test",)
    assert client().keys("*workerinfo*") == []
    assert client().exists("jobs:workers", "seen-shop:workers") == 0
    assert admin.check(ShopSeenQueue) == []


def test_who_was_killed_is_gone_when_somebody_asks_or_works() -> None:
    for number in range(12):
        note_dead(f"dead {number}", seconds=-1)
    note_dead("far away", host="far")
    assert {*WorkerInfo.collection()} >= {"far away"}

    assert [record.host for record in admin.workers()] == ["far"]

    assert list(WorkerInfo.collection()) == ["far away"]
    assert admin.listeners() == {"test": 1}
    note_dead("far away", seconds=-1)
    SeenJob.add_job("a")
    work(1)
    assert client().keys("jobs:workerinfo:*") == []


def test_passwords_of_subclasses_are_not_in_the_record() -> None:
    SeenJob.add_job("a")

    work(1, worker_class=SecretWorker, requeue_delay_delta=5, retry_on=[ValueError])

    options = only(SeenJob.seen[0]).options
    assert "hush" not in json.dumps(options)
    assert (options["mail_password"], options["mail_url"]) == ("***", "smtp://***")
    assert (options["requeue_delay_delta"], options["retry_on"]) == (5, ["builtins.ValueError"])


def test_a_worker_whose_record_cannot_be_written_says_so_once_and_works(quick: None, log: Log) -> None:
    client().set("jobs:workers", "something else")
    job = SeenJob.add_job("a")

    work(1, callback=lambda job, queue: time.sleep(0.05))

    assert job.status.hget() == "s"
    assert len([line for line in log.lines if "cannot be noted" in line]) == 1
    client().delete("jobs:workers")


def test_an_idle_worker_sends_its_news_with_what_it_waits_by() -> None:
    Queue.get_queue("test")
    worker = idle()
    bell = doorbell.Doorbell(worker.connection, ["jobs:doorbell:queue:test"], worker._alarm)
    news = transitions.note_worker("jobs", worker_recipe("jobs"), "idle", 60, {"host": "here"}).command()
    bell.wait(0.01)

    with counted() as count:
        assert not bell.wait(0.01, news=news)
    assert count.reads == 1
    assert client().hget("jobs:workerinfo:idle:hash", "host") == "here"

    client().rpush("jobs:doorbell:queue:test", "1", "1")
    assert bell.wait(5, news=news)
    assert bell.wait(5)
    assert not bell.has_refused_news
    assert not bell.wait(0.01, news=["NOSUCHCOMMAND"])
    assert bell.has_refused_news
    assert not bell.wait(0.01)
    bell.close()


# --- The file


@pytest.mark.parametrize("worker_class", [Worker, AsyncWorker])
def test_the_file_is_renewed_while_a_worker_lives_whatever_it_does(
    quick: None, worker_class: type[Worker], tmp_path: Path
) -> None:
    path = tmp_path / "alive"

    def grow_old() -> bool:
        os.utime(path, (1, 1))
        return bool(wait_until(lambda: path.stat().st_mtime > 1))

    SeenJob.add_job("a")
    with Running(idle(worker_class, heartbeat_file=str(path), callback=lambda job, queue: grow_old())):
        wait_until(lambda: Queue.get_queue("test").success.llen() == 1)
        wait_until_idle()
        grow_old()
    assert path.exists()


def test_the_file_of_a_stuck_worker_gets_old(tmp_path: Path) -> None:
    path = tmp_path / "alive"
    worker = idle(heartbeat_file=path)
    worker._note_start()
    own = presence.Presence(worker)
    loop_worker = idle(AsyncWorker, heartbeat_file=path)
    loop_worker._note_start()

    own.renew_file()
    assert path.exists()
    for one in (worker, loop_worker):
        one._moved_at -= presence.STILL_SECONDS
    path.unlink()
    own.renew_file()
    assert not path.exists()

    worker._at_work[1] = loop_worker._at_work[1] = object()  # a job may take as long as it wants
    own.renew_file()
    assert path.exists()
    path.unlink()
    presence.Presence(loop_worker).renew_file()
    assert not path.exists()  # but not one that holds up an event loop


def test_a_worker_that_waits_for_redis_at_its_start_lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "alive"
    worker = idle(heartbeat_file=path)

    def connection(self: Any) -> Any:
        worker.end_forced = True
        raise ConnectionError("away")

    monkeypatch.setattr("limpyd_jobs.workers.claiming.is_outage", lambda error: True)
    monkeypatch.setattr(type(worker), "connection", property(connection))
    with pytest.raises(ConnectionError):
        run(worker)
    assert path.exists()


@pytest.mark.parametrize("value", ["", 5, "/nosuch/directory/alive", "/tmp", "a\0b", ["x"]])
def test_a_file_that_cannot_be_written_is_refused(value: Any) -> None:
    with pytest.raises(ConfigurationException, match=r"Invalid heartbeat_file: .*must be the path of a file"):
        Worker("test", heartbeat_file=value)


# --- Processes


def test_processes_are_seen_each_and_one_that_is_killed_loses_its_time(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    Queue.get_queue("test")
    path = tmp_path / "alive"
    arguments = ("--queues=test", "--processes=2", f"--heartbeat-file={path}")
    with WorkerProcess(*arguments, database=redis_server.url) as process:
        found = wait_until(lambda: len(records := admin.workers()) == 2 and records, timeout=60)
        assert process.pid not in {record.pid for record in found}
        assert path.exists()
        assert admin.health(["test"], min_workers=2) == []

        os.kill(found[0].pid, signal.SIGKILL)
        wait_until(lambda: found[0].pid not in running_children(process.pid))
        client().zadd("jobs:workers", {found[0].id: 1})  # as fifteen seconds later
        assert found[0].pid not in {record.pid for record in admin.workers()}
        assert found[0].id not in WorkerInfo.collection()
        process.stop()
    assert admin.workers() == []


def running_children(pid: int) -> set[int]:
    path = Path(f"/proc/{pid}/task/{pid}/children")
    if sys.platform != "linux" or not path.exists():
        return set()
    return {int(text) for text in path.read_text().split()}


# --- Health


def test_all_is_well_where_nothing_is_asked() -> None:
    assert admin.health() == []
    assert client().keys("*health*") and client().pttl(only(client().keys("*health*"))) > 0


def test_too_few_workers_are_told_for_each_queue_or_for_all() -> None:
    note_dead("one", queues='["test"]')

    assert admin.health(min_workers=1) == []
    assert admin.health(["test"], min_workers=1) == []
    assert admin.health(min_workers=2) == ["1 worker listens, not 2"]
    assert admin.health(["test", "other"], min_workers=1) == ["no workers listen on the queue 'other', not 1"]


def test_a_job_that_waits_for_too_long_is_told_unless_its_queue_is_paused() -> None:
    old = SeenJob.add_job("a", priority=3)
    SeenJob.add_job("b")
    old.added.hset("2001-02-03 04:05:06")

    [problem] = admin.health(max_oldest_age=100)
    assert problem.startswith("the first job of the queue 'test' with priority 3 has waited for ")
    assert len(admin.health(["test"], max_oldest_age=100)) == 1
    assert admin.health(["other"], max_oldest_age=100) == []
    admin.pause("test")
    assert admin.health(max_oldest_age=100) == []
    admin.resume("test")


def test_a_redis_that_takes_no_writes_is_told() -> None:
    client().config_set("maxmemory", "1")
    try:
        [problem] = admin.health()
    finally:
        client().config_set("maxmemory", "0")
    assert problem.startswith("Redis cannot be used: ")


@pytest.mark.parametrize("arguments", [{"min_workers": -1}, {"max_oldest_age": "x"}, {"queues": [""]}])
def test_bad_arguments_of_health_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument):
        admin.health(**arguments)


def test_a_broken_entry_of_the_registry_hides_nothing() -> None:
    SeenJob.add_job("a")
    client().hset("jobs:models", mapping={"broken.Job": "{", "empty.Job": "{}"})

    work(1)

    assert [[current.ident for current in worker.jobs] for worker in SeenJob.seen[0]] == [[f"{__name__}.SeenJob:1"]]
    assert admin.health() == []
    assert [queue.name for queue in admin.status().queues] == ["test"]
