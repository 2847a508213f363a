"""The fixtures that all tests share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from .base import RedisServer

if TYPE_CHECKING:
    from limpyd_jobs.database import JobsDatabase

# A database that the machine names must never reach a test, nor a process that a test starts.
os.environ.pop("LIMPYD_JOBS_DATABASE", None)

# Random tests try the same examples each time, so that one that fails is due to what has changed.
# Whoever looks for new ones passes --hypothesis-profile=default.
settings.register_profile("same", derandomize=True)
settings.load_profile("same")

ACCEPTANCE = Path(__file__).parent / "acceptance"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if ACCEPTANCE in item.path.parents:
            item.add_marker(pytest.mark.acceptance)


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    """One server for all tests of a pytest process (with pytest-xdist: one each)."""
    with RedisServer(tcp=True) as server:
        yield server


@pytest.fixture
def database(redis_server: RedisServer) -> Iterator[JobsDatabase]:
    """The database of all models, empty, on the server of the tests. What a test changes about it is undone."""
    from limpyd_jobs.models import BaseJobsModel

    jobs_database: JobsDatabase = BaseJobsModel.database
    redis_server.client().flushall()
    jobs_database.connect(**redis_server.settings)
    yield jobs_database
    if BaseJobsModel.database is not jobs_database:
        BaseJobsModel.use_database(jobs_database)
    jobs_database.reset(**redis_server.settings)
