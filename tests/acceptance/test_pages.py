"""The examples in the pages of the documents run as they are."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from limpyd_jobs import embedded

from ..base import ROOT, RedisServer

ELSEWHERE = {"django", "fastapi", "flask", "retries", "testing"}  # their examples have tests of their own
# In these pages workers run what is added, if anybody does; in the others jobs run when they are added.
RUN_BY_WORKERS = {"asyncio", "celery", "howto", "numbers", "processes", "rq", "speed", "tutorial", "version-2"}
CONNECT = """
import os
from limpyd_jobs import testing
from limpyd_jobs.models import BaseJobsModel
BaseJobsModel.database.connect(os.environ["LIMPYD_JOBS_DATABASE"])
"""
EAGER = """
jobs_run_when_they_are_added = testing.eager()
jobs_run_when_they_are_added.__enter__()
"""


def blocks_of(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)


PAGES = [page for page in sorted((ROOT / "docs").rglob("*.md")) if page.stem not in ELSEWHERE and blocks_of(page)]


def test_the_pages_about_functions_as_jobs_have_examples() -> None:
    assert {"limits", "results", "serializers", "tasks", "uniqueness", "waiting", "workflows"} <= {
        page.stem for page in PAGES
    }


@pytest.mark.usefixtures("database")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_examples_of_a_page_are_a_program(page: Path, redis_server: RedisServer, tmp_path: Path) -> None:
    before = CONNECT if page.stem in RUN_BY_WORKERS else CONNECT + EAGER
    (tmp_path / "program.py").write_text("\n\n".join([before, *blocks_of(page)]))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "LIMPYD_JOBS_DATABASE": redis_server.url}

    try:
        done = subprocess.run(
            [sys.executable, "program.py"], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
        )
    finally:
        for directory in tmp_path.glob("*-data"):
            embedded.stop(directory)

    assert done.returncode == 0, done.stderr
