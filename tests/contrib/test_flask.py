"""The extension for Flask, in the application of docs/flask.md."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import flask
import pytest
from flask import current_app, g

from limpyd_jobs import admin, instruments
from limpyd_jobs.contrib.flask import FlaskWorkerConfig, LimpydJobs, _contexts
from limpyd_jobs.exceptions import ConfigurationException
from limpyd_jobs.models import BaseJobsModel, Job
from limpyd_jobs.tasks.registry import find_task
from limpyd_jobs.testing import run_until_empty
from limpyd_jobs.workers import AsyncWorker

from ..base import Process, RedisServer
from .examples import write_example


class FlaskContribJob(Job):
    queue_name = "mails"

    def run(self, queue: Any) -> None:
        if self.identifier.hget() == "bad":
            raise ZeroDivisionError
        seen.append((current_app.name, hasattr(g, "job")))
        g.job = self


class AsyncFlaskContribJob(Job):
    queue_name = "mails"

    async def run(self, queue: Any) -> None:
        seen.append((current_app.name, hasattr(g, "job")))
        g.job = self


seen: list[tuple[str, bool]] = []


@pytest.fixture(scope="module")
def library(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The directory of the example, from which it can be imported."""
    directory = tmp_path_factory.mktemp("library")
    write_example("flask", directory, redis_server.url)
    sys.path.insert(0, str(directory))
    yield directory
    sys.path.remove(str(directory))


@pytest.fixture(autouse=True)
def alone(database: Any) -> Iterator[None]:
    """Whatever an application changes in this process is undone."""
    former = list(instruments.instruments)
    seen.clear()
    yield
    instruments.instruments[:] = former
    _contexts.app = None


@pytest.fixture
def app(database: Any) -> flask.Flask:
    app = flask.Flask("of-the-tests")
    LimpydJobs(app)
    return app


def test_the_view_of_the_example_adds_a_job_that_has_the_application(library: Path) -> None:
    from library import create_app

    answer = create_app().test_client().post("/reminders/Ada")
    (job,) = run_until_empty("mails", raises=True)

    assert (answer.status_code, answer.json) == (202, {"job": job.ident})
    assert job.get_result() == "library@example.com reminds Ada"


def test_the_models_are_on_the_database_of_the_application(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIMPYD_JOBS_DATABASE", "redis://of-the-environment")
    app = flask.Flask("of-the-tests")
    LimpydJobs().init_app(app)
    of_the_environment = str(BaseJobsModel.database)

    app.config["LIMPYD_JOBS_DATABASE"] = "redis://of-the-application/3"
    LimpydJobs().init_app(app)

    assert of_the_environment == "redis://of-the-environment:6379/0"
    assert str(BaseJobsModel.database) == "redis://of-the-application:6379/3"


def test_what_names_no_database_is_refused_without_its_password() -> None:
    app = flask.Flask("of-the-tests")
    app.config["LIMPYD_JOBS_DATABASE"] = "http://:secret@x"

    with pytest.raises(ConfigurationException, match="LIMPYD_JOBS_DATABASE, of the configuration, cannot be") as error:
        LimpydJobs(app)

    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    ("model", "options"),
    [
        (FlaskContribJob, {}),
        (AsyncFlaskContribJob, {}),
        (FlaskContribJob, {"worker_class": AsyncWorker}),
        (AsyncFlaskContribJob, {"worker_class": AsyncWorker}),
    ],
)
def test_each_job_has_an_application_context_of_its_own(app: flask.Flask, model: Any, options: dict[str, Any]) -> None:
    for number in range(2):
        model.add_job(str(number))

    run_until_empty("mails", raises=True, **options)

    assert seen == [("of-the-tests", False)] * 2
    assert not current_app


def test_what_tears_a_context_down_runs_after_each_job_with_its_error(app: flask.Flask) -> None:
    torn: list[type[BaseException] | None] = []
    app.teardown_appcontext(lambda error: torn.append(None if error is None else type(error)))
    FlaskContribJob.add_job("good")
    FlaskContribJob.add_job("bad")

    run_until_empty("mails")

    assert torn == [None, ZeroDivisionError]


def test_a_job_that_a_view_executes_at_once_leaves_its_context_alone(app: flask.Flask) -> None:
    with app.test_request_context():
        g.job = "of the view"
        FlaskContribJob.execute_now()
        mine = g.job

    assert seen == [("of-the-tests", False)]
    assert mine == "of the view"


def test_jobs_run_in_the_application_that_was_initialized_last(app: flask.Flask) -> None:
    LimpydJobs(flask.Flask("the-last-one"))
    FlaskContribJob.add_job("1")

    run_until_empty("mails", raises=True)

    assert seen == [("the-last-one", False)]


def test_the_command_runs_a_worker(app: flask.Flask) -> None:
    FlaskContribJob.add_job("1")

    done = app.test_cli_runner().invoke(args=["jobs-worker", "--queues=mails", "--burst", "--no-title"])

    assert (done.exit_code, done.exception) == (0, None)
    assert seen == [("of-the-tests", False)]


def test_the_command_shows_the_options_of_the_worker(app: flask.Flask) -> None:
    done = app.test_cli_runner().invoke(args=["jobs-worker", "--help"])

    assert done.exit_code == 0
    assert "--prefetch" in done.output


def test_a_pool_of_an_application_that_a_program_has_made_does_not_replace_the_program(
    app: flask.Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[Any] = []
    monkeypatch.setattr("os.execve", lambda *args: called.append("execve"))
    monkeypatch.setattr("limpyd_jobs.scripts.worker.main", called.append)

    done = app.test_cli_runner().invoke(args=["jobs-worker", "--queues=mails", "--processes=2"])

    assert done.exception is None
    assert [argv[2:] for argv in called] == [["--queues=mails", "--processes=2"]]


def test_the_command_sees_the_jobs_of_the_application(app: flask.Flask) -> None:
    job = FlaskContribJob.add_job("user:1")

    done = app.test_cli_runner().invoke(args=["jobs", "jobs", "--identifier=user:1", "--json"])

    assert done.exit_code == 0
    assert job.ident in done.output


def test_a_worker_without_an_application_says_what_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FLASK_APP", raising=False)
    monkeypatch.syspath_prepend(tmp_path)

    with pytest.raises(ConfigurationException, match="Unable to load the Flask application: Could not locate a Flask"):
        FlaskWorkerConfig(["worker", "--queues=mails"])
    monkeypatch.setenv("FLASK_APP", "flask_without_jobs")
    (tmp_path / "flask_without_jobs.py").write_text("import flask\napp = flask.Flask('without-jobs')\n")
    with pytest.raises(ConfigurationException, match=r"has no LimpydJobs: call LimpydJobs\(app\)"):
        FlaskWorkerConfig(["worker", "--queues=mails"])


def test_a_pool_of_workers_loads_the_application_in_its_processes(library: Path) -> None:
    import_module("library.tasks")
    remind: Any = find_task("library.tasks:remind")
    job = remind.add("Bob")
    command = [sys.executable, "-m", "flask", "--app", "library", "jobs-worker", "--queues=mails", "--processes=1"]

    with Process(command, cwd=library) as pool:
        assert job.wait(timeout=30), pool.output
        assert pool.stop() == 0

    assert job.get_result() == "library@example.com reminds Bob"
    assert admin.check() == []
