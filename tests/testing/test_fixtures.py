"""The fixtures for pytest, in a small project of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ..base import ROOT

pytest_plugins = ["pytester"]

MODELS = """
from limpyd_jobs import Job

class Mail(Job):
    queue_name = "mail"

    def run(self, queue):
        return self.identifier.hget()
"""
TESTS = """
import time
from limpyd_jobs import STATUSES, Job, Worker
from models import Mail

def test_the_database_is_empty_and_private(limpyd_jobs_database, limpyd_jobs_server):
    assert limpyd_jobs_database.connection.dbsize() == 0
    assert str(Job.database).startswith("embedded://")
    Mail.add_job("left behind")

def test_it_is_empty_again(limpyd_jobs_database):
    assert limpyd_jobs_database.connection.dbsize() == 0

def test_a_worker_runs_until_nothing_waits(limpyd_jobs_worker):
    job = Mail.add_job("a")
    assert [one.ident for one in limpyd_jobs_worker()] == [job.ident]

workers = []

def test_a_worker_runs_in_the_background(limpyd_jobs_worker):
    workers.append(limpyd_jobs_worker.start("mail"))
    job = Mail.add_job("a")
    while job.status.hget() != STATUSES.SUCCESS:
        time.sleep(0.01)

def test_it_has_ended_with_its_test():
    assert workers[0].status == "terminated"

def test_the_clock_stands_still(limpyd_jobs_worker, limpyd_jobs_clock):
    Mail.add_job("a", delayed_for=3600)
    assert limpyd_jobs_worker("mail") == []
    limpyd_jobs_clock.advance(hours=1)
    assert len(limpyd_jobs_worker("mail")) == 1

def test_jobs_are_run_when_they_are_added(limpyd_jobs_eager):
    assert Mail.add_job("a").status.hget() == STATUSES.SUCCESS

def test_the_former_database_is_back():
    assert str(Job.database) == "redis://localhost:6379/0"
"""
WHERE = """
import os, pathlib, pytest

@pytest.mark.parametrize("number", range(6))
def test_it_has_a_server(limpyd_jobs_server, limpyd_jobs_database, number):
    worker = os.environ.get("PYTEST_XDIST_WORKER", "alone")
    limpyd_jobs_database.connection.set("owner", worker)
    pathlib.Path(os.environ["NOTES"], worker).write_text(limpyd_jobs_server)
    assert limpyd_jobs_database.connection.get("owner") == worker
"""


@pytest.fixture
def project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    pytester.makepyfile(models=MODELS)
    return pytester


def run(project: pytest.Pytester, *arguments: str) -> pytest.RunResult:
    return project.runpytest_subprocess("-p", "limpyd_jobs_pytest", "-p", "no:cacheprovider", *arguments)


def test_the_fixtures_do_what_the_page_says(project: pytest.Pytester) -> None:
    project.makepyfile(test_mail=TESTS)

    run(project).assert_outcomes(passed=8)


def test_each_process_of_xdist_has_a_server_of_its_own_which_ends_with_it(
    project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("NOTES", str(tmp_path))
    project.makepyfile(test_where=WHERE)

    run(project, "-n", "2").assert_outcomes(passed=6)

    urls = [path.read_text() for path in tmp_path.iterdir()]
    assert len(set(urls)) == len(urls) == 2
    directories = [Path(url.removeprefix("embedded://")) for url in urls]
    assert [path for path in directories if (path / "redis.sock").exists()] == []


def test_pytest_imports_nothing_of_the_package_before_a_fixture_is_used() -> None:
    code = (
        "import sys, limpyd_jobs_pytest; print([name for name in sys.modules if name.split('.')[0] == 'limpyd_jobs'])"
    )

    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"


def test_the_fixtures_are_declared_for_pytest() -> None:
    declared = (ROOT / "pyproject.toml").read_text().partition("[project.entry-points.pytest11]\n")[2]

    assert declared.startswith('limpyd_jobs_pytest = "limpyd_jobs_pytest"\n')
