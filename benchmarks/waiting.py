"""How long after the end of a job a wait for it returns, as a ratio to a bare message from one client to another.

    python benchmarks/waiting.py

Prints a table: the median and the 99th percentile, in microseconds, from just before the script that ends the job is
sent (there, just before PUBLISH) by another process, to the return of `wait`. A private server is started for it.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic_ns
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from limpyd_jobs import Job, Worker, embedded  # noqa: E402
from limpyd_jobs.models import BaseJobsModel  # noqa: E402

RUNS = 1000


class BenchedWaitJob(Job):
    """Does nothing."""

    queue_name = "bench"


class TimedWorker(Worker):
    """Notes when it records the end of a job."""

    def job_success(self, job: Any, queue: Any, job_result: Any) -> None:
        """It is about to be sent."""
        self.connection.set(f"sent:{job.pk.get()}", monotonic_ns())
        super().job_success(job, queue, job_result)


def work(url: str) -> None:
    """The worker: it runs until it is killed."""
    BaseJobsModel.database.connect(url)
    TimedWorker("bench", callback=lambda job, queue: None, max_loops=10 * RUNS).run()


def echo(url: str) -> None:
    """Publishes the time, on demand."""
    client = BaseJobsModel.database.connect(url)
    while client.blpop(["ask"]):
        client.publish("answer", monotonic_ns())


@contextmanager
def other(role: str, url: str) -> Iterator[None]:
    process = subprocess.Popen([sys.executable, __file__, role, url], stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.kill()
        process.wait()


def bare_messages(url: str) -> list[float]:
    """From the time before PUBLISH to that of its arrival."""
    client: Any = BaseJobsModel.database.connection
    ears = client.pubsub()
    ears.subscribe("answer")
    ears.get_message(timeout=5)

    def once() -> int:
        client.rpush("ask", 1)
        while (message := ears.get_message(timeout=5)) is None:
            pass
        return monotonic_ns() - int(message["data"])

    with other("echo", url):
        times = measured(once)
    ears.close()
    return times


def waits(url: str) -> list[float]:
    """From the time before the end is sent to the return of `wait`, which had begun before."""
    client: Any = BaseJobsModel.database.connection

    def once() -> int:
        job = BenchedWaitJob.add_job("one", delayed_for=0.02)  # so that the wait has begun
        assert job.wait(10)
        returned = monotonic_ns()
        return returned - int(client.get(f"sent:{job.pk.get()}"))

    with other("work", url):
        return measured(once)


def measured(once: Callable[[], int]) -> list[float]:
    for _ in range(20):
        once()
    return sorted(once() / 1000 for _ in range(RUNS))


def main() -> None:
    """Print the table, or play the other process."""
    if len(sys.argv) > 1:
        {"work": work, "echo": echo}[sys.argv[1]](sys.argv[2])
        return
    with tempfile.TemporaryDirectory() as directory:
        url = f"embedded://{directory}/redis"
        BaseJobsModel.database.connect(url)
        try:
            bare, ours = bare_messages(url), waits(url)
        finally:
            embedded.stop(f"{directory}/redis")
        print("| | p50, µs | p99, µs |\n|---|---|---|")
        rows = {"a bare message": bare, "job.wait()": ours}
        for name, times in rows.items():
            print(f"| {name} | {statistics.median(times):.0f} | {times[int(len(times) * 0.99)]:.0f} |")
        ratios = (statistics.median(ours) / statistics.median(bare), ours[int(RUNS * 0.99)] / bare[int(RUNS * 0.99)])
        print(f"| ratio | {ratios[0]:.1f} | {ratios[1]:.1f} |")


if __name__ == "__main__":
    main()
