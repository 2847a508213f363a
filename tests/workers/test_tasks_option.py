"""`tasks`: modules that a worker imports when it is made, and that are told when it starts."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from limpyd_jobs import STATUSES, Job, Worker
from limpyd_jobs.exceptions import ConfigurationException
from limpyd_jobs.modules import allowed_modules
from limpyd_jobs.workers import WorkerConfig, WorkerPool

from .base import work


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Writes modules below the package `optiontasks`, which can be imported; they are forgotten afterwards."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(allowed_modules, "names", set(allowed_modules.names))
    before = set(sys.modules)

    def write(**sources: str) -> None:
        for name, source in {"__init__": "", **sources}.items():
            path = tmp_path / "optiontasks" / f"{name}.py"
            path.parent.mkdir(exist_ok=True)
            path.write_text(textwrap.dedent(source))

    yield write
    for name in set(sys.modules) - before:
        if name.partition(".")[0] == "optiontasks":
            del sys.modules[name]


def idle(**options: Any) -> Worker:
    return Worker("test", terminate_gracefully=False, **options)


def test_the_modules_of_a_package_are_imported_but_not_its_program(package: Callable[..., None]) -> None:
    package(one="", two="", __main__="raise SystemExit('it was started')")

    idle(tasks="optiontasks")

    assert {"optiontasks", "optiontasks.one", "optiontasks.two"} <= set(sys.modules)


@pytest.mark.parametrize(
    "names",
    ["optiontasks.one,optiontasks.two", ["optiontasks.one", "optiontasks.two"], ["optiontasks.one, optiontasks.two"]],
)
def test_several_are_given_as_a_list_or_with_commas(package: Callable[..., None], names: Any) -> None:
    package(one="", two="", three="")

    worker = idle(tasks=names)

    assert worker.tasks == ["optiontasks.one", "optiontasks.two"]
    assert {"optiontasks.one", "optiontasks.two"} <= set(sys.modules)
    assert "optiontasks.three" not in sys.modules


def test_jobs_may_have_them_imported_again(package: Callable[..., None]) -> None:
    package(one="")

    idle(tasks="optiontasks.one")

    assert allowed_modules.allows("optiontasks.one") and not allowed_modules.allows("optiontasks.two")


@pytest.mark.parametrize("names", ["no such", "*", [3], 7])
def test_what_is_no_name_of_a_module_is_refused(names: Any) -> None:
    with pytest.raises(ConfigurationException, match="Invalid tasks"):
        idle(tasks=names)


def test_a_module_that_cannot_be_imported_is_refused_with_its_reason(package: Callable[..., None]) -> None:
    package(one="raise OSError('no licence')", two="from limpyd_jobs.tasks import task\ntask(lambda: 1)")

    with pytest.raises(
        ConfigurationException, match=r"^Unable to import 'optiontasks\.one', of tasks: OSError: no lic"
    ):
        idle(tasks="optiontasks")
    with pytest.raises(ConfigurationException, match=r"a lambda: .*\(.*two\.py:2\)$"):
        idle(tasks="optiontasks.two")
    with pytest.raises(ConfigurationException, match=r"ModuleNotFoundError: No module named 'nothing'$"):
        idle(tasks="nothing")


def test_the_command_refuses_it_in_one_line(package: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        WorkerConfig(["worker", "--queues=test", "--no-title", "--tasks=optiontasks.none"])

    assert ended.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("worker: error: Unable to import 'optiontasks.none', of tasks: ModuleNotFoundError")


def test_the_option_of_the_command_may_be_repeated(package: Callable[..., None]) -> None:
    package(one="", two="", three="")
    names = ("--tasks=optiontasks.one", "--tasks=optiontasks.two,optiontasks.three")

    config = WorkerConfig(["worker", "--queues=test", "--no-title", *names])
    config.prepare_worker()

    assert config.worker.tasks == ["optiontasks.one", "optiontasks.two", "optiontasks.three"]


def test_the_parent_of_a_pool_imports_none(package: Callable[..., None]) -> None:
    package(one="")

    WorkerPool(Worker, queues="test", tasks="optiontasks")

    assert "optiontasks" not in sys.modules


def test_a_class_of_jobs_is_told_once_that_a_worker_starts(database: Any) -> None:
    told = []

    class ToldOfWorkersJob(Job):
        queue_name = "test"

        @classmethod
        def worker_started(cls) -> None:
            told.append(cls.__name__)

    class SilentlyToldJob(ToldOfWorkersJob):
        pass

    SilentlyToldJob.add_job("a")

    work(1, callback=lambda job, queue: None)

    assert told == ["ToldOfWorkersJob"]


def test_a_class_that_raises_when_a_worker_starts_is_logged_and_jobs_run(database: Any) -> None:
    class RaisesAtStartJob(Job):
        queue_name = "test"
        raises: ClassVar[bool] = True

        @classmethod
        def worker_started(cls) -> None:
            if cls.raises:
                raise ValueError("not today")

    job = RaisesAtStartJob.add_job("a")

    work(1, callback=lambda job, queue: None)
    RaisesAtStartJob.raises = False  # the workers of other tests meet this class, too

    assert job.status.hget() == STATUSES.SUCCESS
