"""With a retention, a long run takes no more memory than a short one: neither in Redis nor in the worker."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from limpyd_jobs import Error, Job, Queue, admin
from limpyd_jobs.fields import InstanceHashField

from ..base import PROCESS_SECONDS, RedisServer, WorkerProcess, wait_until

pytestmark = pytest.mark.usefixtures("database")

ROUND = 1500
KEPT = 100
MEGABYTE = 2**20


class MemoryJob(Job):
    queue_name = "memory"
    number = InstanceHashField(indexable=True)

    def run(self, queue: Any) -> None:
        number = int(self.number.hget())
        if number % 10 == 0 and (number % 20 == 0 or self.tries.hget() == "1"):
            raise ValueError("no", "x" * 1000)


def client() -> Any:
    return Job.get_connection()


def add_and_wait(first: int) -> None:
    for number in range(first, first + ROUND):
        MemoryJob.add_job(f"memory:{number}", number=number)
    wait_until(lambda: not MemoryJob.collection(queued="1"), 60, "all jobs are done")
    queue = Queue.get_queue("memory")
    wait_until(
        lambda: queue.success.llen() <= KEPT + 10 and queue.errors.llen() <= KEPT + 10,
        PROCESS_SECONDS,
        "all is trimmed",
    )


def measure(pid: int) -> tuple[int, int, int]:
    """Keys of Redis, its memory, that of the worker, in bytes."""
    client().memory_purge()
    return client().dbsize(), client().info("memory")["used_memory"], resident_bytes(pid)


def resident_bytes(pid: int) -> int:
    statm = Path(f"/proc/{pid}/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return int(subprocess.run(["ps", "-o", "rss=", "-p", str(pid)], capture_output=True, check=True).stdout) * 1024


def test_memory_is_flat_in_a_long_run_with_a_retention(redis_server: RedisServer) -> None:
    Queue.get_queue("memory")
    options = ["--queues=memory", "--job-modules=tests.acceptance.test_memory", "--no-title", "--logger-level=CRITICAL"]
    options += [f"--keep-success={KEPT}", f"--keep-errors={KEPT}", "--requeue-times=1", "--requeue-delay-delta=0"]

    with WorkerProcess(
        *options, "--max-loops=1000000", "--requeue-priority-delta=0", database=redis_server.url
    ) as worker:
        add_and_wait(0)
        keys, redis_bytes, worker_bytes = measure(worker.pid)
        for turn in range(1, 4):
            add_and_wait(turn * ROUND)
        more_keys, more_redis_bytes, more_worker_bytes = measure(worker.pid)
        assert worker.stop() == 0

    assert more_keys <= keys * 1.3
    assert more_redis_bytes <= redis_bytes + MEGABYTE
    assert more_worker_bytes <= worker_bytes + 8 * MEGABYTE
    assert len(MemoryJob.collection()) <= 2 * KEPT + 20
    assert len(Error.collection()) <= KEPT + 10
    assert [str(problem) for problem in admin.check()] == []
