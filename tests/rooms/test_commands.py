"""Ready-made tasks that run other programs."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from limpyd_jobs import STATUSES, Error, Worker
from limpyd_jobs.exceptions import InvalidArgument, JobFailed
from limpyd_jobs.modules import allowed_modules
from limpyd_jobs.tasks import commands, get_task
from limpyd_jobs.workers import AsyncWorker

from ..workers.base import work


@pytest.fixture(params=[Worker, AsyncWorker])
def worker_class(request: Any, database: Any) -> type[Worker]:
    """Of both kinds: what they run are coroutines."""
    kind: type[Worker] = request.param
    return kind


def done(worker_class: type[Worker], job: Any) -> Any:
    work(1, queues="default", worker_class=worker_class)
    return job


def test_what_a_program_prints_is_the_result(worker_class: type[Worker], tmp_path: Path) -> None:
    task = commands.run_command.options(save_result=True)

    assert done(worker_class, task.add("cat; pwd", input="é", cwd=str(tmp_path))).get_result() == f"é{tmp_path}\n"
    assert done(worker_class, task.add(["echo", "a  $HOME"])).get_result() == "a  $HOME\n"


def test_python_runs_in_a_process_of_its_own(worker_class: type[Worker], tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("import sys; print(sys.executable, *sys.argv[1:])")

    code = commands.run_python.options(save_result=True).add("print(input().upper())", input="abc")
    assert done(worker_class, code).get_result() == "ABC\n"
    call = commands.run_script.options(save_result=True).add(str(script), ("one", "two"))
    assert done(worker_class, call).get_result() == f"{sys.executable} one two\n"


def test_a_program_that_fails_is_an_error_with_its_code(worker_class: type[Worker]) -> None:
    job = done(worker_class, commands.run_command.add("echo broken >&2; exit 7"))

    with pytest.raises(JobFailed, match="broken"):
        job.get_result()
    ((kind, code),) = [(error.type.hget(), error.code.hget()) for error in Error.collection().instances()]
    assert (kind, code) == ("CommandFailed", "7")


def test_a_program_is_killed_when_the_time_of_its_job_is_over(worker_class: type[Worker], tmp_path: Path) -> None:
    job = commands.run_command.options(job_timeout=0.5).add(
        ["sh", "-c", "echo $$ > pid; exec sleep 60"], cwd=str(tmp_path)
    )

    done(worker_class, job)

    assert job.status.hget() == STATUSES.ERROR
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


@pytest.mark.parametrize("command", ["", [], ["echo", 1]])
def test_what_is_no_command_is_refused_with_its_name(command: Any) -> None:
    with pytest.raises(InvalidArgument, match="Invalid command argument"):
        asyncio.run(commands.shell(command))


def test_what_cannot_be_read_by_a_program_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="Invalid input argument"):
        asyncio.run(commands.shell("cat", 5))  # type: ignore[arg-type]


def test_workers_do_not_have_them_unless_they_are_told_to() -> None:
    assert get_task("limpyd_jobs.tasks.commands:run_python") is commands.run_python
    assert not allowed_modules.allows("limpyd_jobs.tasks.commands")
