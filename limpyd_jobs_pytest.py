"""Fixtures of pytest for programs that have jobs: see docs/testing.md.

Outside of the package, so that pytest, which imports this at each start, does not import all of it before a test needs
that.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from limpyd_jobs.database import JobsDatabase
    from limpyd_jobs.testing import FakeClock
    from limpyd_jobs.workers import Worker


@pytest.fixture(scope="session")
def limpyd_jobs_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a private Redis server, for all tests of this process; it needs the extra `embedded`."""
    from urllib.parse import quote

    from limpyd_jobs import embedded

    directory = tmp_path_factory.mktemp("limpyd-jobs")
    embedded.start(directory)
    yield f"embedded://{quote(str(directory))}"
    embedded.stop(directory)


@pytest.fixture
def limpyd_jobs_database(limpyd_jobs_server: str) -> Iterator[JobsDatabase]:
    """The database of all models, on the private server and empty; afterwards it is what it was before."""
    from limpyd_jobs.models import BaseJobsModel

    database = BaseJobsModel.database
    former = database._settings()
    database.connect(limpyd_jobs_server).flushall()
    yield database
    database.reset(**former)


class Workers:
    """Runs jobs: until none waits any more, or in the background.

    limpyd_jobs_worker("mail")          # as limpyd_jobs.testing.run_until_empty
    limpyd_jobs_worker.start("mail")    # a worker in a thread, which ends with the test
    """

    def __init__(self, ending: ExitStack) -> None:
        self._ending = ending

    def __call__(self, *queues: Any, **options: Any) -> list[Any]:
        """Arguments and result as for `run_until_empty`."""
        from limpyd_jobs.testing import run_until_empty

        return run_until_empty(*queues, **options)

    def start(self, *queues: Any, **options: Any) -> Worker:
        """Arguments as for `background_worker`."""
        from limpyd_jobs.testing import background_worker

        return self._ending.enter_context(background_worker(*queues, **options))


@pytest.fixture
def limpyd_jobs_worker(limpyd_jobs_database: JobsDatabase) -> Iterator[Workers]:
    """What runs the jobs of a test: see `Workers`."""
    with ExitStack() as ending:
        yield Workers(ending)


@pytest.fixture
def limpyd_jobs_clock() -> Iterator[FakeClock]:
    """A clock that stands still until the test moves it."""
    from limpyd_jobs.testing import fake_clock

    with fake_clock() as clock:
        yield clock


@pytest.fixture
def limpyd_jobs_eager(limpyd_jobs_database: JobsDatabase) -> Iterator[None]:
    """Jobs run as soon as they are added."""
    from limpyd_jobs.testing import eager

    with eager():
        yield
