"""A pool of real processes, as systems that collect logs and metrics see it."""

from __future__ import annotations

import json
import urllib.request
from typing import Any

import pytest

from limpyd_jobs import STATUSES, Job

from ..base import RedisServer, WorkerProcess, free_port, wait_until

pytestmark = pytest.mark.usefixtures("database")


class PooledJob(Job):
    queue_name = "telemetry"

    def run(self, queue: Any) -> None:
        pass


def test_a_pool_writes_json_alone_and_shows_metrics_at_one_port(redis_server: RedisServer) -> None:
    job, port = PooledJob.add_job("ä"), free_port()
    arguments = ("--processes=2", "--queues=telemetry", "--log-format=json", f"--metrics-port={port}")

    with WorkerProcess(*arguments, "--job-modules=tests", database=redis_server.url) as pool:
        pool.wait_for_output("Metrics are at")
        wait_until(lambda: job.status.hget() == STATUSES.SUCCESS)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as reply:
            metrics = reply.read().decode()
        code = pool.stop()
        lines = [json.loads(line) for line in pool.output.splitlines()]

    assert "limpyd_jobs_up 1.0" in metrics and 'limpyd_jobs_queue_length{priority="0",queue="telemetry"' in metrics
    assert code == 0 and len({line["pid"] for line in lines}) == 3
    (end,) = [line for line in lines if "outcome" in line]
    assert (end["job"], end["identifier"]) == (job.ident, "ä")
