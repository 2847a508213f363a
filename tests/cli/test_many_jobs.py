"""The command against a database with 100,000 jobs, which are loaded once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from limpyd_jobs import Job, Queue, Worker, admin
from limpyd_jobs.models import BaseJobsModel

from ..base import ROOT, RedisServer, wait_until
from .support import Command

JOBS = 100_000
FAILED = 3_000
SLOW_MICROSECONDS = 100_000  # of one command or script: it would keep all others waiting


class ManyFailed(Exception):
    pass


def fail(job: Any, queue: Any) -> None:
    raise ManyFailed(job.identifier.hget())


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    """A server with jobs that wait in ten queues, are delayed in one, and have failed in another."""
    before = BaseJobsModel.database._settings()
    with RedisServer(options={"slowlog-log-slower-than": str(SLOW_MICROSECONDS)}) as server:
        BaseJobsModel.database.connect(**server.settings)
        Job.add_jobs(({"identifier": f"failed:{number}"} for number in range(FAILED)), queue_name="failed")
        Worker(queues="failed", callback=fail, max_loops=FAILED, logger_level="CRITICAL").run()
        for place in range(9):
            names = ({"identifier": f"user:{place}:{number}"} for number in range(10_000))
            Job.add_jobs(names, queue_name=f"queue-{place}", priority=place)
        rest = JOBS - FAILED - 90_000
        Job.add_jobs(
            ({"identifier": f"later:{number}", "delayed_for": 3600} for number in range(rest)), queue_name="later"
        )
        server.client().slowlog_reset()
        yield server
        BaseJobsModel.database.reset(**before)


@pytest.fixture
def database(server: RedisServer) -> Iterator[Any]:
    """That server, in place of the one that is emptied for each test."""
    jobs_database = BaseJobsModel.database
    before = jobs_database._settings()
    jobs_database.connect(**server.settings)
    yield jobs_database
    jobs_database.reset(**before)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("jobs --count", "100000"),
        ("jobs --limit=1000", "later:6999"),
        ("jobs --status=error --queue=failed", "failed:2999"),
        ("jobs --identifier=user:3:77*", "user:3:7799"),
        ("show user:4:1234", "status      waiting"),
        ("explain user:4:9999", "limpyd_jobs.models.Job:"),
        ("errors --limit=1000", "ManyFailed"),
        ("errors --groups", "test_many_jobs.py:fail"),
        ("errors --by=type", "ManyFailed\t3000"),
        ("status", "queue-8\t8\t10000"),
        ("status --json", '"waiting": 10000'),
        ("workers", "worker\thost"),
        ("health", "All is well"),
        ("doctor", "level\tsubject"),
        ("requeue --all --dry-run", "3000 jobs"),
        ("delete --queue=queue-1 --dry-run", "10,000 jobs would be deleted"),
        ("pause queue-1", "queue-1 is paused"),
        ("resume queue-1", "queue-1 is resumed"),
        ("drain queue-1 --timeout=0.01", "10,000 jobs left"),
        ("move user:1:5 --to=other", "moved"),
        ("cancel user:1:6", "canceled"),
        ("delete user:1:7", "deleted"),
    ],
)
def test_each_command_ends_and_none_keeps_redis_busy(
    command: Command, server: RedisServer, arguments: str, expected: str
) -> None:
    server.client().slowlog_reset()
    server.client().config_resetstat()

    outcome = command(*arguments.split())

    assert expected.replace("3000 jobs", "3,000 jobs") in outcome.out, outcome.err
    assert [entry["command"][:200] for entry in server.client().slowlog_get()] == []
    commands = {name.partition("_")[2] for name in server.client().info("commandstats")}
    assert not commands & {"keys", "flushall", "debug"}


def test_all_that_are_found_are_one_json_document(command: Command, server: RedisServer) -> None:
    server.client().slowlog_reset()

    found = command("jobs", "--all", "--json", "--status=error").json

    assert len({job["ident"] for job in found["jobs"]}) == FAILED and found["next"] is None
    assert server.client().slowlog_len() == 0


def test_a_requeue_that_is_killed_and_interrupted_does_each_job_exactly_once(
    server: RedisServer, database: Any
) -> None:
    """kill -9 in the middle, then Ctrl-C, then to the end."""

    def waiting() -> int:
        return int(Queue.count_waiting_jobs("again"))

    with requeue(server, "--queue=failed", "--to=again", "--yes", "--rate=2000/s") as first:
        wait_until(lambda: waiting() > 300)
        first.send_signal(signal.SIGKILL)
        first.wait(20)
    after_kill = waiting()
    [operation] = admin.operations()

    with requeue(server, "--resume", operation.id, "--rate=2000/s") as second:
        wait_until(lambda: waiting() > after_kill + 300)
        second.send_signal(signal.SIGINT)
        assert second.wait(20) == 130
        assert f"--resume {operation.id}" in second.communicate()[1]
    assert after_kill < waiting() < FAILED

    with requeue(server, "--resume", operation.id) as third:
        assert third.wait(60) == 0

    idents = Queue.get_queue("again").waiting.lmembers()
    assert len(idents) == len(set(idents)) == FAILED
    assert admin.operations() == []


def requeue(server: RedisServer, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "limpyd_jobs", "requeue", *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT), "LIMPYD_JOBS_DATABASE": server.url},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_what_was_done_to_many_jobs_leaves_the_books_in_order(command: Command, server: RedisServer) -> None:
    """The last test of this module: `check` reads all that the others have left."""
    outcome = command("check")

    assert (outcome.code, outcome.out) == (0, "kind\tsubject\tdetail\n")
