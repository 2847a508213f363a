"""Tasks between processes: the start of docs/tasks.md as it is there, pools, workers that are killed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from limpyd_jobs import STATUSES, Error, Queue, admin
from limpyd_jobs.tasks import TaskJob, call, known_tasks

from ..base import ROOT, RedisServer, WorkerProcess, wait_until

pytestmark = pytest.mark.usefixtures("database")

HELD = """
import os
from limpyd_jobs.models import Queue
from limpyd_jobs.tasks import current_job, task

client = Queue.get_connection

@task(queue="held")
def hold(number: int) -> None:
    client().rpush("test:runs", os.getpid())
    while not client().exists("test:go"):
        client().blpop(["test:doors"], 1)

@task(queue="held")
async def note(number: int) -> None:
    client().rpush("test:notes", f"{number} {current_job().pk.get()}")
"""


def start_of_the_documents() -> str:
    blocks = re.findall(r"^```python\n(.*?)^```$", (ROOT / "docs" / "tasks.md").read_text(), re.DOTALL | re.MULTILINE)
    return str(blocks[0])


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """A directory with a package of tasks."""
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "__init__.py").touch()
    definition = start_of_the_documents().partition('\nsend("a@b.c")')[0]
    (tmp_path / "shop" / "mails.py").write_text(definition)
    (tmp_path / "shop" / "held.py").write_text(HELD)
    return tmp_path


def produce(shop: Path, server: RedisServer, program: str) -> str:
    """Run a program of a user beside the package; what it prints."""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{shop}", "LIMPYD_JOBS_DATABASE": server.url}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, cwd=shop, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


CONNECT = """
import os
from limpyd_jobs.models import BaseJobsModel
BaseJobsModel.database.connect(os.environ["LIMPYD_JOBS_DATABASE"])
"""


def test_the_start_of_the_documents_works_between_processes(shop: Path, redis_server: RedisServer) -> None:
    program = f"{CONNECT}\nfrom shop.mails import send\nsend.add('a@b.c', subject='x')\nsend('d@e.f')"
    assert produce(shop, redis_server, program) == "sending 'hi' to d@e.f\n"

    arguments = ("--queues=mail", "--tasks=shop.mails", f"--pythonpath={shop}", "--burst")
    with WorkerProcess(*arguments, database=redis_server.url) as worker:
        assert worker.wait() == 0, worker.output
        assert "sending 'x' to a@b.c" in worker.output

    (job,) = TaskJob.collection(task="shop.mails:send").instances()
    assert job.status.hget() == STATUSES.SUCCESS
    assert known_tasks()["shop.mails:send"].queue == "mail"


def test_a_producer_needs_no_code(shop: Path, redis_server: RedisServer) -> None:
    call("shop.mails:send", ["a@b.c"], queue="mail")

    arguments = ("--queues=mail", "--tasks=shop", f"--pythonpath={shop}", "--burst", "--processes=2")
    with WorkerProcess(*arguments, database=redis_server.url) as worker:
        assert worker.wait() == 0, worker.output
        assert "sending 'hi' to a@b.c" in worker.output

    call("shop.mails:send", ["d@e.f"], verify=True)
    assert Queue.count_waiting_jobs("mail") == 1
    assert known_tasks().keys() == {"shop.mails:send", "shop.held:hold", "shop.held:note"}


def test_a_program_defines_tasks_under_the_name_of_its_file(shop: Path, redis_server: RedisServer) -> None:
    (shop / "program.py").write_text(
        f"{CONNECT}\nfrom limpyd_jobs.tasks import task\n"
        "@task(queue='own')\ndef f(a): print('f', a)\n"
        "if __name__ == '__main__':\n    f.add(3)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "LIMPYD_JOBS_DATABASE": redis_server.url}
    subprocess.run([sys.executable, "program.py"], env=environment, cwd=shop, check=True)

    assert len(TaskJob.collection(task="program:f")) == 1
    arguments = ("--queues=own", "--tasks=program", f"--pythonpath={shop}", "--burst")
    with WorkerProcess(*arguments, database=redis_server.url) as worker:
        assert worker.wait() == 0, worker.output
        assert "f 3" in worker.output


def test_a_task_whose_worker_is_killed_runs_again(shop: Path, redis_server: RedisServer) -> None:
    client = redis_server.client()
    job = call("shop.held:hold", [1], queue="held")
    arguments = ("--queues=held", "--tasks=shop.held", f"--pythonpath={shop}", "--lease-seconds=1")

    with WorkerProcess(*arguments, database=redis_server.url) as first:
        wait_until(lambda: client.llen("test:runs") == 1, message="the task runs")
        first.kill()
        with WorkerProcess(*arguments, "--max-loops=1", database=redis_server.url) as second:
            wait_until(lambda: client.llen("test:runs") == 2, message="it runs again")
            client.set("test:go", 1)
            assert second.wait() == 0, second.output

    assert (job.status.hget(), job.recoveries.hget()) == (STATUSES.SUCCESS, "1")
    assert [problem for problem in admin.check() if "test:" not in problem.subject] == []


def test_many_coroutine_tasks_run_in_event_loops_of_several_processes(shop: Path, redis_server: RedisServer) -> None:
    program = f"{CONNECT}\nfrom shop.held import note\nprint(note.add_many((n,) for n in range(500)).new)"
    assert produce(shop, redis_server, program) == "500\n"

    arguments = ("--queues=held", "--tasks=shop.held", f"--pythonpath={shop}", "--burst", "--processes=2", "--async")
    with WorkerProcess(*arguments, "--logger-level=ERROR", database=redis_server.url) as worker:
        assert worker.wait() == 0, worker.output

    notes = redis_server.client().lrange("test:notes", 0, -1)
    assert sorted(int(text.partition(" ")[0]) for text in notes) == list(range(500))
    assert len(TaskJob.collection(status=STATUSES.SUCCESS)) == 500 and len(Error.collection()) == 0
