"""Living with redis-limpyd-jobs 2: its data is ours to run, ours is its to read, and both work side by side."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from limpyd_jobs import STATUSES, Error, Job, Queue, Worker, admin

from ..base import ROOT, RedisServer, WorkerProcess

sys.path.insert(0, str(Path(__file__).parent))  # both versions import it by the same name
from version_2_app import SharedJob

# What version 2 needs in an environment of its own; nothing of it is ever imported here.
REQUIREMENTS = ["redis-limpyd-jobs==2", "redis-limpyd==2.1.2", "redis-limpyd-extensions==2.1", "setuptools<81"]


@pytest.fixture(scope="session")
def version_2_python() -> str:
    """An interpreter with version 2 installed, made once and kept with pytest's cache."""
    folder = ROOT / ".pytest_cache" / f"version-2-{sys.version_info.major}.{sys.version_info.minor}"
    folder.parent.mkdir(exist_ok=True)
    python, done = folder / "bin" / "python", folder / "done"
    with open(f"{folder}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
            subprocess.run([str(python), "-m", "pip", "install", "-q", *REQUIREMENTS], check=True)
            done.touch()
    return str(python)


class Version2:
    """Runs code with version 2, on the database of the test."""

    def __init__(self, python: str, server: RedisServer) -> None:
        self.python, self.server = python, server

    def run(self, code: str, **environment: str) -> Any:
        """Run some lines; gives what they leave in `result`."""
        program = f"""
import json, logging, sys
from limpyd.contrib.database import PipelineDatabase
from limpyd_jobs import STATUSES, Queue, Job, Error, Worker
from limpyd_jobs.models import BaseJobsModel
BaseJobsModel.use_database(PipelineDatabase(host="127.0.0.1", port={self.server.port}, db=0))
from version_2_app import SharedJob
from datetime import datetime, timedelta
result = None
{code}
json.dump(result, sys.stdout)
"""
        done = subprocess.run(
            [self.python, "-W", "ignore", "-c", program],
            cwd=Path(__file__).parent,
            env={"PATH": os.environ["PATH"], "PYTHONPATH": "", **environment},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


@pytest.fixture
def version_2(database: Any, redis_server: RedisServer, version_2_python: str) -> Iterator[Version2]:
    yield Version2(version_2_python, redis_server)


def run_worker(max_loops: int, **options: Any) -> list[str]:
    """Run our worker; gives the identifiers in the order of their runs."""
    ran: list[str] = []

    def callback(job: Any, queue: Any) -> None:
        ran.append(job.identifier.hget())
        if ran[-1] == "fails":
            raise ValueError("boom")

    Worker("mail", callback=callback, max_loops=max_loops, max_duration=10, timeout=1, **options).run()
    return ran


def test_jobs_that_version_2_added_run_by_priority(version_2: Version2) -> None:
    version_2.run("""
for identifier, priority in (("low", -1), ("zero", 0), ("high", 5)):
    Job.add_job(identifier, "mail", priority)
""")
    assert run_worker(3) == ["high", "zero", "low"]
    assert sorted(Job.collection(status=STATUSES.SUCCESS)) == ["1", "2", "3"]
    assert admin.check() == []


def test_a_job_that_version_2_queued_is_the_same_job_for_us(version_2: Version2) -> None:
    pk = version_2.run('result = Job.add_job("a", "mail", 1).pk.get()')
    version_2.run('Job.add_job("other", "mail", 1)')

    job = Job.add_job("a", "print", 7)

    assert job.pk.get() == pk
    assert Queue.get_queue("mail", 1).waiting.lmembers() == ["limpyd_jobs.models.Job:2"]
    assert Queue.get_queue("print", 7).waiting.lmembers() == ["limpyd_jobs.models.Job:1"]
    run_worker(1)
    assert admin.check() == []


def test_a_job_that_version_2_queued_is_found_among_many_ended_ones(version_2: Version2) -> None:
    for _ in range(20):
        Job.add_job("nightly", "mail")
        run_worker(1)
    pk = version_2.run('result = Job.add_job("nightly", "mail").pk.get()')

    assert Job.add_job("nightly", "mail").pk.get() == pk
    assert admin.check() == []
    run_worker(1)


@pytest.mark.parametrize("zone", ["America/New_York", "Asia/Tokyo"])
def test_a_job_that_version_2_delayed_in_another_time_zone_starts_when_it_is_due(
    version_2: Version2, zone: str
) -> None:
    version_2.run(
        """
Job.add_job("later", "mail", delayed_for=3600)
Job.add_job("soon", "mail", delayed_for=0.2)
""",
        TZ=zone,
    )
    assert run_worker(1) == ["soon"]
    Worker("mail", max_duration=0.2, timeout=1).run()
    assert Queue.count_delayed_jobs("mail") == 1
    assert admin.check() == []


def test_a_job_that_a_worker_of_version_2_runs_is_left_alone(version_2: Version2) -> None:
    version_2.run('job = Job.add_job("a", "mail"); job.status.hset("r"); Queue.get_queue("mail").waiting.lpop()')
    before = Job.get("1").hgetall()
    assert Job.add_job("a", "mail", 9).pk.get() == "1"
    Worker("mail", max_duration=0.3, timeout=1, lease_seconds=0.3).run()
    assert Job.get("1").hgetall() == before


def test_errors_of_version_2_are_reported_with_ours(version_2: Version2) -> None:
    version_2.run('Error.add_error("mail", Job.add_job("fails", "mail"), ValueError("then"))')
    run_worker(1)
    errors = Error.collection_for_job(Job.get("1")).instances()
    assert sorted(error.message.hget() for error in errors) == ["boom", "then"]
    assert len(Error.collection(date_time__gt="2017-01-01", type="ValueError")) == 2


def test_an_own_class_of_version_2_is_found_by_its_ident(version_2: Version2) -> None:
    version_2.run('SharedJob.add_job("a", "mail", extra="x", tags=["t"])')
    job = Job.get_from_ident("version_2_app.SharedJob:1")
    assert (job.extra.hget(), job.tags.smembers()) == ("x", {"t"})


def test_version_2_reads_and_runs_what_we_wrote(version_2: Version2) -> None:
    Job.add_job("a", "mail", 2)
    Job.add_job("b", "mail", delayed_for=100)
    SharedJob.add_job("c", "mail", 1, extra="x", tags=["t"])

    result = version_2.run("""
waiting = [job.identifier.hget() for job in Job.collection(status="w").instances()]
ran = []
Worker("mail", callback=lambda job, queue: ran.append([job.identifier.hget(), job.priority.hget()]), max_loops=1,
       terminate_gracefuly=False).run()
result = [waiting, ran, Job.get(identifier="a").status.hget(), Queue.get_queue("mail", 2).success.lmembers(),
          Queue.get_queue("mail", 0).first_delayed[0]]
""")

    assert result == [["a"], [["a", "2"]], "s", ["limpyd_jobs.models.Job:1"], "limpyd_jobs.models.Job:2"]
    assert [str(problem) for problem in admin.check()] == []


def test_version_2_finds_our_queued_job_by_its_identifier(version_2: Version2) -> None:
    job = Job.add_job("a", "mail", 1)
    assert version_2.run('result = Job.add_job("a", "mail", 3).pk.get()') == job.pk.get()
    assert run_worker(1) == ["a"]
    assert admin.check() == []


def test_version_2_requeues_what_we_failed_and_we_what_it_failed(version_2: Version2) -> None:
    Job.add_job("fails", "mail")
    run_worker(1)
    version_2.run('Job.get(identifier="fails").requeue("mail")')
    assert run_worker(1) == ["fails"]
    version_2.run("""
def fail(job, queue):
    raise ValueError("then")
Job.add_job("other", "mail")
Worker("mail", callback=fail, max_loops=1, terminate_gracefuly=False).run()
""")
    Job.get(identifier="other").requeue("mail")
    assert run_worker(1) == ["other"]
    assert admin.check() == []


def test_workers_of_both_share_a_queue_and_no_job_runs_twice(version_2: Version2, redis_server: RedisServer) -> None:
    for number in range(60):
        Job.add_job(str(number), "mail")
    program = f"""
from limpyd.contrib.database import PipelineDatabase
from limpyd_jobs import Worker
from limpyd_jobs.models import BaseJobsModel
BaseJobsModel.use_database(PipelineDatabase(host="127.0.0.1", port={redis_server.port}, db=0))
def callback(job, queue):
    queue.connection.rpush("ran", job.identifier.hget())
Worker("mail", callback=callback, max_duration=2, timeout=1, terminate_gracefuly=False).run()
"""
    command = [version_2.python, "-I", "-W", "ignore", "-c", program]  # -I: else it imports ours, from where it is run
    other = subprocess.Popen(command, stderr=subprocess.PIPE)

    def callback(job: Any, queue: Any) -> None:
        queue.connection.rpush("ran", job.identifier.hget())

    Worker("mail", callback=callback, max_duration=2, timeout=1).run()
    _, errors = other.communicate(timeout=30)

    assert other.returncode == 0, errors
    ran = redis_server.client().lrange("ran", 0, -1)
    assert sorted(ran, key=int) == [str(number) for number in range(60)]
    assert admin.check() == []


@pytest.mark.parametrize("delayed", [False, True])
def test_a_job_of_version_2_that_is_refused_can_be_requeued_when_its_class_is_allowed(
    version_2: Version2, redis_server: RedisServer, delayed: bool
) -> None:
    when = "delayed_until=datetime.utcnow() - timedelta(seconds=1), " if delayed else ""
    version_2.run(f"SharedJob.add_job('one', {when}queue_name='shared', extra='x')", TZ="UTC")
    options = ["--queues=shared", "--max-loops=1", "--no-title"]
    environment = {"PYTHONPATH": f"{ROOT}{os.pathsep}{Path(__file__).parent}"}

    with WorkerProcess(*options, database=redis_server.tcp_url, environment=environment) as worker:
        worker.wait_for_output("allow it with --job-modules=version_2_app")
        assert worker.stop() == 0

    (job,) = SharedJob.collection().instances()
    assert job.hmget("status", "queued") == [STATUSES.ERROR, None]
    assert [error.type.hget() for error in Error.collection().instances()] == ["JobClassError"]
    assert [str(problem) for problem in admin.check()] == []
    job.requeue("shared")
    with WorkerProcess(
        *options, "--job-modules=version_2_app", database=redis_server.tcp_url, environment=environment
    ) as worker:
        assert worker.wait() == 0, worker.output
    assert job.status.hget() == STATUSES.SUCCESS
