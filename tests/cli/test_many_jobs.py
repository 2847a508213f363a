"""The command against a database with 100,000 jobs, and operations on thousands that are interrupted."""

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
FAILED = 1_000
SLOW_MICROSECONDS = 250_000  # of one command or script, on a machine that does much besides


class ManyFailed(Exception):
    pass


def fail(job: Any, queue: Any) -> None:
    raise ManyFailed(job.identifier.hget())


def add_failed(count: int, **options: Any) -> None:
    Job.add_jobs(({"identifier": f"failed:{number}"} for number in range(count)), queue_name="failed")
    Worker(queues="failed", callback=fail, max_loops=count, logger_level="CRITICAL", **options).run()


@pytest.fixture
def large(database: Any) -> Iterator[RedisServer]:
    """A server with jobs that wait in nine queues, are delayed in one, and have failed in another."""
    before = BaseJobsModel.database._settings()
    with RedisServer(options={"slowlog-log-slower-than": str(SLOW_MICROSECONDS)}) as server:
        database.connect(**server.settings)
        add_failed(FAILED)
        for place in range(9):
            names = ({"identifier": f"user:{place}:{number}"} for number in range(10_000))
            Job.add_jobs(names, queue_name=f"queue-{place}", priority=place)
        rest = JOBS - FAILED - 90_000
        Job.add_jobs(
            ({"identifier": f"later:{number}", "delayed_for": 3600} for number in range(rest)), queue_name="later"
        )
        yield server
        database.reset(**before)


# What is typed, and what is to be seen then.
COMMANDS = [
    ("jobs --count", "100000"),
    ("jobs --limit=1000", "later:8999"),
    ("jobs --all --status=error --json", '"failed:0"'),
    ("jobs --identifier=user:3:77*", "user:3:7799"),
    ("show user:4:1234", "status      waiting"),
    ("explain user:4:9999", "ahead               9999"),
    ("errors --limit=1000", "ManyFailed"),
    ("errors --groups", "test_many_jobs.py:fail"),
    ("errors --by=type", "ManyFailed\t1000"),
    ("status", "queue-8\t8\t10000"),
    ("status --json", '"waiting": 10000'),
    ("workers", "worker\thost"),
    ("health", "All is well"),
    ("doctor", "level\tsubject"),
    ("requeue --all --dry-run", "1,000 jobs would be requeued"),
    ("delete --queue=queue-1 --dry-run", "10,000 jobs would be deleted"),
    ("pause queue-1", "queue-1 is paused"),
    ("resume queue-1", "queue-1 is resumed"),
    ("drain queue-1 --timeout=0.01", "10,000 jobs left"),
    ("move user:1:5 --to=other", "moved"),
    ("cancel user:1:6", "canceled"),
    ("delete user:1:7", "deleted"),
    ("cancel --identifier=user:2:99 --yes", "1 job canceled"),
    ("delete --queue=other --yes", "1 job deleted"),
    ("purge --status=error --older-than=0 --yes", "1,000 jobs removed"),
    ("bench --jobs=20", "round trip"),
    ("check", "kind\tsubject\tdetail"),
]


@pytest.mark.timeout(300)
def test_among_100000_jobs_each_command_ends_and_none_keeps_redis_busy(command: Command, large: RedisServer) -> None:
    """One test for all of them, as loading the jobs is what takes time."""
    client = large.client()
    client.slowlog_reset()
    client.config_resetstat()

    for arguments, expected in COMMANDS:
        outcome = command(*arguments.split())

        assert expected in outcome.out, (arguments, outcome.err)
        assert outcome.code in (0, 1), arguments
        assert [(entry["duration"], entry["command"][:200]) for entry in client.slowlog_get()] == [], arguments

    assert not {name.partition("_")[2] for name in client.info("commandstats")} & {"keys", "flushall", "debug"}


def test_a_requeue_that_is_killed_and_interrupted_does_each_job_exactly_once(
    redis_server: RedisServer, database: Any
) -> None:
    """kill -9 in the middle, then Ctrl-C, then to the end."""
    count = 800
    add_failed(count, save_errors=False)

    def waiting() -> int:
        return int(Queue.count_waiting_jobs("again"))

    with requeue(redis_server, "--queue=failed", "--to=again", "--yes", "--rate=600/s") as first:
        wait_until(lambda: waiting() > 120, 40)
        first.send_signal(signal.SIGKILL)
        first.wait(20)
    after_kill = waiting()
    [operation] = admin.operations()

    with requeue(redis_server, "--resume", operation.id, "--rate=600/s") as second:
        wait_until(lambda: waiting() > after_kill + 120, 40)
        second.send_signal(signal.SIGINT)
        error = second.communicate(timeout=40)[1]
    assert second.returncode == 130 and f"--resume {operation.id}" in error
    assert after_kill < waiting() < count

    with requeue(redis_server, "--resume", operation.id) as third:
        third.communicate(timeout=60)
    assert third.returncode == 0

    idents = Queue.get_queue("again").waiting.lmembers()
    assert len(idents) == len(set(idents)) == count
    assert sum(one.requeued for one in admin.totals()) == count
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
