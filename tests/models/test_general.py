"""Section G of the checklist: what is imported from where, the statuses, the example, the database, the keys."""

from __future__ import annotations

import importlib
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from limpyd import fields
from limpyd.contrib.database import PipelineDatabase

import limpyd_jobs
from limpyd_jobs import STATUSES, Error, Job, Queue, Worker
from limpyd_jobs import workers as workers_module
from limpyd_jobs.models import BaseJobsModel
from limpyd_jobs.workers import LOGGER_NAME, WorkerConfig

from ..base import ROOT
from .support import connection, dump, run_worker


class GeneralJob(Job):
    size = fields.InstanceHashField(indexable=True)

    def double(self) -> int:
        return int(self.size.hget()) * 2


class GeneralQueue(Queue):
    owner = fields.StringField(indexable=True)

    def shout(self) -> str:
        return self.name.hget().upper()


class GeneralError(Error):
    server = fields.InstanceHashField(indexable=True)

    def where(self) -> str:
        return f"{self.queue_name.hget()}@{self.server.hget()}"


class GeneralWorker(Worker):
    queues = "class-queue"
    queue_model = GeneralQueue
    error_model = GeneralError

    def additional_error_fields(self, *_: Any, **__: Any) -> dict[str, Any]:
        return {"server": "here"}


# --- Names


def test_g01_the_package_gives_the_five_public_names() -> None:
    for name in ("STATUSES", "Queue", "Job", "Error", "Worker"):
        assert name in limpyd_jobs.__all__
        assert getattr(limpyd_jobs, name) is not None


def test_g02_the_models_are_in_their_module_and_derive_from_the_base() -> None:
    models = importlib.import_module("limpyd_jobs.models")

    assert all(issubclass(model, models.BaseJobsModel) for model in (models.Queue, models.Job, models.Error))
    assert (models.Queue, models.Job, models.Error) == (Queue, Job, Error)


def test_g03_the_workers_are_in_their_module() -> None:
    assert workers_module.Worker is Worker
    assert isinstance(WorkerConfig, type)
    assert LOGGER_NAME == "limpyd-jobs"


# --- Statuses


@pytest.mark.parametrize(
    ("name", "letter"),
    [("WAITING", "w"), ("DELAYED", "d"), ("RUNNING", "r"), ("SUCCESS", "s"), ("ERROR", "e"), ("CANCELED", "c")],
)
def test_g04_each_status_is_one_letter(name: str, letter: str) -> None:
    assert getattr(STATUSES, name) == letter
    assert STATUSES[name] == letter


def test_g05_by_value_gives_the_full_name() -> None:
    assert STATUSES.by_value("s") == "SUCCESS"
    assert [STATUSES.by_value(letter) for letter in STATUSES.values()] == list(STATUSES)


def test_g05_by_value_gives_the_default_for_an_unknown_value() -> None:
    assert STATUSES.by_value("x", "UNKNOWN") == "UNKNOWN"
    assert STATUSES.by_value("x", default="UNKNOWN") == "UNKNOWN"


def test_g05_by_value_refuses_an_unknown_value() -> None:
    with pytest.raises(ValueError, match="x"):
        STATUSES.by_value("x")


def test_g05_an_unknown_name_is_a_key_error() -> None:
    with pytest.raises(KeyError):
        STATUSES.NOTHING  # noqa: B018
    with pytest.raises(KeyError):
        STATUSES["NOTHING"]


def test_g05_the_statuses_are_a_dict_of_the_six_of_version_2_and_one_more() -> None:
    assert isinstance(STATUSES, dict)
    assert set(STATUSES) == {"WAITING", "DELAYED", "RUNNING", "SUCCESS", "ERROR", "CANCELED", "BLOCKED"}


def test_g06_all_errors_of_the_package_have_one_base() -> None:
    from limpyd_jobs import exceptions

    errors = [
        value
        for value in vars(exceptions).values()
        if isinstance(value, type) and value.__module__ == exceptions.__name__
    ]

    others = [error for error in errors if not issubclass(error, limpyd_jobs.LimpydJobsException)]
    assert others == [limpyd_jobs.JobTimeout], "which no job may swallow with `except Exception`"
    assert issubclass(limpyd_jobs.ConfigurationException, limpyd_jobs.LimpydJobsException)


# --- The example


def test_g07_the_simple_example_gives_its_printed_results(database: Any) -> None:
    def do_stuff(job: Job, queue: Queue) -> None:
        pass

    job1 = Job.add_job(identifier="job:1", queue_name="myqueue", priority=1)
    job2 = Job.add_job(identifier="job:2", queue_name="myqueue", priority=2)
    worker = Worker(queues="myqueue", callback=do_stuff, max_loops=2)
    worker.run()

    queue1 = Queue.get_queue("myqueue", priority=1)
    queue2 = Queue.get_queue("myqueue", priority=2)
    assert (queue1.waiting.lmembers(), queue2.waiting.lmembers()) == ([], [])
    assert queue1.success.lmembers() == ["limpyd_jobs.models.Job:1"]
    assert queue2.success.lmembers() == ["limpyd_jobs.models.Job:2"]
    assert job1.status.hget() == job2.status.hget() == STATUSES.SUCCESS


def test_g08_many_workers_on_one_queue_run_each_job_once(database: Any) -> None:
    runs: Counter[str] = Counter()
    lock = threading.Lock()

    def count(job: Job, queue: Queue) -> None:
        with lock:
            runs[job.ident] += 1

    jobs = [Job.add_job(f"job:{number}", "q", priority=number % 3) for number in range(60)]
    workers = [Worker("q", callback=count, max_loops=60, timeout=1, max_duration=15) for _ in range(5)]

    def run(worker: Worker) -> None:
        worker._add_update_status_callback(stop_when_done)
        worker.run()

    def stop_when_done(worker: Worker) -> None:
        if sum(runs.values()) >= len(jobs):
            worker.end_forced = True

    threads = [threading.Thread(target=run, args=[worker]) for worker in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)

    assert runs == Counter(job.ident for job in jobs)
    assert sum(worker.num_loops for worker in workers) == len(jobs)
    assert set(Job.collection(status=STATUSES.SUCCESS)) == set(Job.collection())


# --- Subclasses


def test_g09_every_model_and_the_worker_can_be_subclassed(database: Any) -> None:
    queue = GeneralQueue.get_queue("class-queue", owner="me")
    job = GeneralJob.add_job("a", "class-queue", queue_model=GeneralQueue, size=21)

    worker = GeneralWorker(callback=lambda job, queue: job.missing(), max_loops=1, timeout=1)
    worker.run()

    (error,) = GeneralError.collection(server="here").instances()
    assert (job.double(), queue.shout(), error.where()) == (42, "CLASS-QUEUE", "class-queue@here")
    assert list(GeneralQueue.collection(owner="me")) == [queue.pk.get()]
    assert list(GeneralJob.collection(size=21, status=STATUSES.ERROR)) == [job.pk.get()]


# --- The database


@pytest.fixture
def other_settings(redis_server: Any) -> dict[str, Any]:
    return {**redis_server.settings, "db": 5}


@pytest.fixture
def restored_database(database: Any) -> Iterator[Any]:
    yield database
    BaseJobsModel.use_database(database)


def test_g10_use_database_moves_all_the_models(restored_database: Any, other_settings: dict[str, Any]) -> None:
    other = PipelineDatabase(**other_settings)

    BaseJobsModel.use_database(other)

    for model in (Queue, Job, Error, GeneralQueue, GeneralJob, GeneralError):
        assert model.database is other
        assert model.get_connection().connection_pool.connection_kwargs["db"] == 5


def test_g10_jobs_are_added_and_run_in_the_database_that_is_used(
    restored_database: Any, other_settings: dict[str, Any]
) -> None:
    first = connection()
    BaseJobsModel.use_database(PipelineDatabase(**other_settings))

    job = GeneralJob.add_job("a", "q", size=1)
    run_worker("q", callback=lambda job, queue: None)

    assert job.status.hget() == STATUSES.SUCCESS
    assert first.dbsize() == 0


def test_g10_a_subclass_alone_can_use_another_database(restored_database: Any, other_settings: dict[str, Any]) -> None:
    other = PipelineDatabase(**other_settings)

    GeneralError.use_database(other)

    assert GeneralError.database is other
    assert Error.database is restored_database
    GeneralError.use_database(restored_database)


def test_g11_connect_moves_all_the_models(database: Any, other_settings: dict[str, Any]) -> None:
    BaseJobsModel.database.connect(**other_settings)

    job = GeneralJob.add_job("a", "q")

    for model in (Queue, Job, Error, GeneralQueue, GeneralJob, GeneralError):
        assert model.get_connection().connection_pool.connection_kwargs["db"] == 5
    assert job.identifier.hget() == "a"
    BaseJobsModel.database.connect(**{**other_settings, "db": 0})
    assert dump() == {}


def test_g11_connect_takes_host_port_and_db(database: Any, redis_server: Any) -> None:
    settings = redis_server.tcp_settings

    BaseJobsModel.database.connect(host=settings["host"], port=settings["port"], db=3)
    Job.add_job("a", "q")

    assert redis_server.client(db=3).hget("jobs:job:1:hash", "identifier") == "a"


def test_g12_the_default_database_is_on_localhost() -> None:
    code = (
        "from limpyd_jobs.models import BaseJobsModel\n"
        "settings = BaseJobsModel.database.connection_settings\n"
        "print(settings['host'], settings['port'], settings['db'])"
    )

    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)

    assert done.stdout.split() == ["localhost", "6379", "0"]


@pytest.mark.parametrize(
    "name", ["redis-limpyd", "redis-limpyd-extensions", "redis[hiredis]", "setproctitle", "setuptools"]
)
def test_g13_the_dependencies_are_declared(name: str) -> None:
    assert f'\n    "{name}' in (ROOT / "pyproject.toml").read_text()


@pytest.mark.parametrize(
    "path", ["limpyd_jobs", "scripts/worker.py", "tests", "example.py", "setup.py", "run_tests.py"]
)
def test_g14_g15_the_source_has_what_the_design_card_lists(path: str) -> None:
    assert (ROOT / path).exists()


# --- Keys


def test_g16_a_queue_and_a_job_are_under_the_keys_of_version_2(database: Any) -> None:
    Job.add_job("a", "q")
    Job.add_job("b", "q", delayed_for=1000)
    Job.add_job("c", "q", prepend=True)
    run_worker("q", callback=lambda job, queue: None)

    stored = dump()
    assert stored["jobs:queue:collection"] == {"1"}
    assert stored["jobs:queue:1:hash"] == {"name": "q", "priority": "0"}
    assert stored["jobs:queue:name:q"] == {"1"}
    assert stored["jobs:queue:priority:0"] == {"1"}
    assert stored["jobs:queue:1:waiting"] == ["limpyd_jobs.models.Job:1"]
    assert [ident for ident, _ in stored["jobs:queue:1:delayed"]] == ["limpyd_jobs.models.Job:2"]
    assert stored["jobs:queue:1:success"] == ["limpyd_jobs.models.Job:3"]
    assert stored["jobs:job:collection"] == {"1", "2", "3"}
    assert stored["jobs:job:max_pk"] == "3"
    assert stored["jobs:job:1:hash"]["status"] == "w"
    assert stored["jobs:job:status:w"] == {"1"}
    assert stored["jobs:job:status:d"] == {"2"}
    assert stored["jobs:job:queued:1"] == {"1", "2"}
    assert stored["jobs:job:identifier:a"] == {"1"}
    assert stored["jobs:job:priority:0"] == {"1", "2", "3"}


def test_g16_an_error_is_under_the_keys_of_version_2(database: Any) -> None:
    Job.add_job("a", "q")
    run_worker("q")

    stored = dump()
    assert stored["jobs:queue:1:errors"] == ["limpyd_jobs.models.Job:1"]
    assert stored["jobs:error:collection"] == {"1"}
    assert stored["jobs:error:1:hash"]["type"] == "NotImplementedError"
    assert stored["jobs:error:type:NotImplementedError"] == {"1"}
    assert stored["jobs:error:job_model_repr:limpyd_jobs.models.Job"] == {"1"}


def test_g16_every_key_is_under_the_namespace(database: Any) -> None:
    Job.add_job("a", "q")
    Job.add_job("b", "q", delayed_for=1000)
    run_worker("q", requeue_times=1)

    assert [key for key in dump() if not key.startswith("jobs:")] == []


def test_g16_plain_limpyd_reads_what_is_written(database: Any) -> None:
    job = Job.add_job("a", "q")
    queue = Queue.get_queue("q")

    assert list(Job.collection(status="w")) == [job.pk.get()]
    assert [found.identifier.hget() for found in Job.collection(queued=1).instances()] == ["a"]
    assert queue.waiting.lmembers() == [job.ident]
    assert Job.get(identifier="a").status.hget() == "w"
    assert Job.exists(identifier="a", priority=0)
