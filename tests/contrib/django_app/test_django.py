"""The app for Django, in the project of docs/django.md: settings, transactions, connections, commands."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from asgiref.sync import SyncToAsync

from limpyd_jobs import admin
from limpyd_jobs.exceptions import ConfigurationException, InvalidArgument, WrongArguments
from limpyd_jobs.models import BaseJobsModel, Job
from limpyd_jobs.tasks.registry import find_task
from limpyd_jobs.testing import run_until_empty
from limpyd_jobs.workers import AsyncWorker, Worker

from ...base import ROOT, Process, wait_until

pytestmark = pytest.mark.usefixtures("bookshop")


class DjangoContribJob(Job):
    queue_name = "mails"


def task_named(name: str) -> Any:
    found = find_task(f"orders.{name}")
    assert found is not None
    return found


def order(customer: str = "Ada") -> Any:
    from orders.models import Order

    return Order.objects.create(customer=customer)


def count_jobs() -> int:
    return len(BaseJobsModel.database.connection.keys("jobs:*job:*:hash"))


def run_worker(worker_class: type[Worker] = Worker, **options: Any) -> None:
    worker_class("mails", burst=True, terminate_gracefully=False, **options).run()


# --- Settings


def test_the_models_are_on_the_database_of_the_settings() -> None:
    from django.apps import apps
    from django.conf import settings

    BaseJobsModel.database.reset("redis://localhost:1/5")

    apps.get_app_config("limpyd_jobs").ready()

    assert settings.LIMPYD_JOBS["DATABASE"].startswith(str(BaseJobsModel.database).partition("?")[0])


def test_jobs_and_tasks_of_the_installed_apps_are_imported() -> None:
    assert {"orders.jobs", "orders.tasks"} <= sys.modules.keys()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["redis://"], "LIMPYD_JOBS must be a dictionary, not of the type list."),
        ({"DATABSE": "redis://"}, "LIMPYD_JOBS has 'DATABSE', which is unknown; accepted: DATABASE, MODULES."),
        (
            {"DATABASE": 6379},
            'LIMPYD_JOBS["DATABASE"] is of the type int: must be the name of a database, as in "redis://..."',
        ),
        ({"DATABASE": "http://:secret@x"}, 'LIMPYD_JOBS["DATABASE"] cannot be used: '),
        ({"DATABASE": "redis://x", "MODULES": "jobs"}, "LIMPYD_JOBS[\"MODULES\"] is 'jobs': must be a list of names"),
        ({"DATABASE": "redis://x", "MODULES": ["a b"]}, "LIMPYD_JOBS[\"MODULES\"] is ['a b']: must be a list of names"),
    ],
)
def test_a_mistake_in_the_settings_is_told_by_the_check_and_at_the_start(given: Any, message: str) -> None:
    from django.apps import apps
    from django.core.exceptions import ImproperlyConfigured
    from django.test import override_settings

    from limpyd_jobs.contrib.django.settings import check_settings

    with override_settings(LIMPYD_JOBS=given):
        (error,) = check_settings()
        with pytest.raises(ImproperlyConfigured) as raised:
            apps.get_app_config("limpyd_jobs").ready()

    assert error.id == "limpyd_jobs.E001"
    assert error.msg.startswith(message)
    assert str(raised.value) == error.msg
    assert "secret" not in error.msg


def test_a_project_that_names_no_database_is_warned() -> None:
    from django.test import override_settings

    from limpyd_jobs.contrib.django.settings import check_settings

    with override_settings(LIMPYD_JOBS={}):
        (warning,) = check_settings()

    assert warning.id == "limpyd_jobs.W001"


def test_the_environment_names_a_database_where_the_settings_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    from django.test import override_settings

    from limpyd_jobs.contrib.django.settings import check_settings, read_settings

    monkeypatch.setenv("LIMPYD_JOBS_DATABASE", "redis://of-the-environment")
    named = read_settings().database
    with override_settings(LIMPYD_JOBS={}):
        assert read_settings().database == "redis://of-the-environment"
        assert check_settings() == []

    assert named is not None and named.startswith("unix://")


def test_the_app_is_well_for_django() -> None:
    from django.core.management import call_command

    call_command("check", fail_level="WARNING")
    call_command("makemigrations", check=True, dry_run=True, verbosity=0)


def test_commands_that_read_all_models_do_without_tables_of_the_app(capsys: pytest.CaptureFixture[str]) -> None:
    from django.core.management import call_command

    call_command("dumpdata", "limpyd_jobs", use_base_manager=True)
    call_command("dumpdata", "limpyd_jobs")

    assert capsys.readouterr().out == "[][]"


# --- Transactions


def test_a_job_is_added_when_the_transaction_is_committed() -> None:
    from django.db import transaction

    from limpyd_jobs.contrib.django import on_commit

    with transaction.atomic():
        on_commit(DjangoContribJob.add_job, "user:1", priority=3)
        before = count_jobs()

    assert (before, count_jobs()) == (0, 1)


def test_without_a_transaction_a_job_is_added_at_once() -> None:
    from limpyd_jobs.contrib.django import on_commit

    on_commit(DjangoContribJob.add_job, "user:1")

    assert count_jobs() == 1


def test_what_is_rolled_back_adds_no_job() -> None:
    from django.db import transaction

    from limpyd_jobs.contrib.django import on_commit

    with pytest.raises(ZeroDivisionError), transaction.atomic():
        on_commit(task_named("jobs:confirm").add, 1)
        raise ZeroDivisionError

    assert count_jobs() == 0


def test_arguments_are_refused_before_the_commit() -> None:
    from limpyd_jobs.contrib.django import on_commit

    for add, args, given, error in (
        (task_named("jobs:confirm").add, (), {}, WrongArguments),
        (DjangoContribJob.add_job, (), {}, TypeError),
        (DjangoContribJob.add_job, ("user:1",), {"priority": "high"}, InvalidArgument),
        (DjangoContribJob.add_job, ("user:1",), {"colour": "red"}, InvalidArgument),
        (DjangoContribJob.add_job, ("user:1",), {"delayed_for": 1, "after": 5}, InvalidArgument),
        (DjangoContribJob.aadd_job, ("user:1",), {}, InvalidArgument),
    ):
        from django.db import transaction

        with transaction.atomic(), pytest.raises(error):
            on_commit(add, *args, **given)

    assert count_jobs() == 0


def test_the_arguments_of_a_task_are_stored_as_they_were() -> None:
    from django.db import transaction

    from limpyd_jobs.contrib.django import on_commit

    with transaction.atomic():
        names = ["Ada"]
        on_commit(task_named("tasks:first_of").options(priority=1).add, names)
        names[0] = "Bob"
    (job,) = run_until_empty("mails", raises=True)

    assert job.get_result() == "Ada"


def test_an_error_after_the_commit_is_raised_or_logged_as_asked(caplog: pytest.LogCaptureFixture) -> None:
    from django.db import transaction

    from limpyd_jobs.contrib.django import OnCommit, on_commit

    def fail() -> None:
        raise ConnectionError("no Redis")

    with transaction.atomic():
        OnCommit(using="default", robust=True)(fail)
    with pytest.raises(ConnectionError), transaction.atomic():
        on_commit(fail)

    assert "no Redis" in caplog.text


def test_the_view_of_the_example_adds_a_job_that_sees_its_row() -> None:
    from django.test import Client
    from orders.models import Order

    Client().get("/buy", {"customer": "Ada"})
    run_until_empty("mails", raises=True)

    assert [one.is_confirmed for one in Order.objects.all()] == [True]


def test_the_tests_of_the_example_pass(bookshop: Path) -> None:
    command = [sys.executable, "manage.py", "test", "--settings=bookshop.test_settings"]

    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=bookshop, env=environment, capture_output=True, text=True, check=False)

    assert (done.returncode, "Ran 1 test" in done.stderr) == (0, True), done.stderr


# --- Connections


def test_a_worker_closes_the_connection_after_each_job() -> None:
    from django.db import connection

    order()
    job = task_named("tasks:count_orders").add()

    run_worker()

    assert job.get_result() == 1
    assert connection.connection is None


def test_the_threads_of_an_event_loop_keep_no_connection() -> None:
    order()
    jobs = [task_named("tasks:has_open_connection").add() for _ in range(6)]

    run_worker(AsyncWorker, concurrency=1)

    assert [job.get_result() for job in jobs] == [False] * 6


@pytest.mark.parametrize("run", ["run_until_empty", "run_now"])
def test_who_runs_jobs_at_once_keeps_the_connection(run: str) -> None:
    from django.db import connection

    order()
    mine = connection.connection

    if run == "run_now":
        job = task_named("tasks:count_orders").run_now()
    else:
        job = task_named("tasks:count_orders").add()
        run_until_empty("mails", raises=True)

    assert job.get_result() == 1
    assert connection.connection is mine is not None


def test_a_job_within_the_transaction_of_a_test_sees_its_rows() -> None:
    from django.db import connection, transaction

    with pytest.raises(ZeroDivisionError), transaction.atomic():
        order()
        job = task_named("tasks:count_orders").add()
        run_worker()
        assert connection.connection is not None
        raise ZeroDivisionError

    assert job.get_result() == 1


@pytest.mark.parametrize("worker_class", [Worker, AsyncWorker])
def test_the_connection_that_a_coroutine_used_is_closed(worker_class: type[Worker]) -> None:
    from django.db import connection

    order()
    job = task_named("tasks:acount_orders").add()

    run_worker(worker_class)

    assert job.get_result() == 1
    thread = SyncToAsync.single_thread_executor
    assert thread.submit(lambda: connection.connection).result() is None


def test_an_isolated_job_inherits_no_connection() -> None:
    from django.db import connection

    job = task_named("tasks:has_inherited_connection").add()
    order()
    assert connection.connection is not None

    run_worker()

    assert job.get_result() is False


# --- Commands


def test_the_command_runs_a_worker_on_the_database_of_the_settings(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from django.core.management import call_command

    monkeypatch.setenv("LIMPYD_JOBS_DATABASE", "redis://localhost:1/5")
    job = task_named("tasks:count_orders").add()

    call_command("limpyd_jobs_worker", "--queues=mails", "--burst", "--no-title", "--print-options")

    assert job.get_result() == 0
    assert "limpyd_jobs.contrib.django.worker.DjangoWorkerConfig" in capsys.readouterr().out


def test_a_project_without_the_app_is_told_by_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    from django.apps import apps

    from limpyd_jobs.contrib.django.worker import DjangoWorkerConfig

    monkeypatch.setattr(apps, "is_installed", lambda name: False)

    with pytest.raises(ConfigurationException, match="must be in INSTALLED_APPS"):
        DjangoWorkerConfig(["limpyd-jobs-worker", "--queues=mails"])


def test_the_commands_show_their_own_help(capsys: pytest.CaptureFixture[str]) -> None:
    from django.core.management import execute_from_command_line

    with pytest.raises(SystemExit) as ended:
        execute_from_command_line(["manage.py", "limpyd_jobs_worker", "--settings=bookshop.settings", "--help"])

    assert ended.value.code == 0
    assert "--prefetch" in capsys.readouterr().out


def test_the_command_sees_the_jobs_of_the_project(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from django.core.management import call_command

    monkeypatch.setenv("LIMPYD_JOBS_DATABASE", "redis://localhost:1/5")
    job = DjangoContribJob.add_job("user:1")

    with pytest.raises(SystemExit) as ended:
        call_command("limpyd_jobs", "jobs", "--identifier=user:1", "--json")

    assert ended.value.code == 0
    assert job.ident in capsys.readouterr().out


def test_a_mistake_in_the_options_ends_the_command_with_the_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    from django.core.management import call_command

    with pytest.raises(SystemExit) as ended:
        call_command("limpyd_jobs_worker", "--quues=mails")

    assert ended.value.code == 2
    assert "no such option: --quues" in capsys.readouterr().err


def test_a_pool_of_workers_takes_over_changed_code(bookshop: Path) -> None:
    order()
    module = bookshop / "orders" / "jobs.py"
    former = module.read_text()
    command = [sys.executable, str(bookshop / "manage.py"), "limpyd_jobs_worker", "--queues=mails", "--processes=1"]
    try:
        with Process(command, cwd="/") as pool:
            first = task_named("jobs:confirm").options(save_result=True).add(_last_order())
            assert first.wait(timeout=30), pool.output
            module.write_text(former + "    return 'changed'\n")
            pool.send_signal(signal.SIGHUP)
            pool.wait_for_output("starting", timeout=30)

            def answer() -> Any:
                job = task_named("jobs:confirm").options(save_result=True).add(_last_order())
                return job.wait(timeout=30) and job.get_result(annotation=Any)

            assert wait_until(lambda: answer() == "changed", timeout=30)
            assert pool.stop() == 0
    finally:
        module.write_text(former)

    assert admin.check() == []


def _last_order() -> int:
    from orders.models import Order

    found = Order.objects.last()
    assert found.is_confirmed in (True, False)
    return int(found.pk)
