"""Several processes: the parent, its children, and what becomes of the jobs whatever ends any of them."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from limpyd_jobs import STATUSES, Job, embedded

from ..base import PROCESS_SECONDS, Process, RedisServer, WorkerProcess, wait_until

pytestmark = pytest.mark.usefixtures("database")

# The modules of a user. The jobs note where and with which code they run; some last until they are let go.
TASKS = """
import multiprocessing, os, subprocess, time
from limpyd_jobs import Queue, Worker

VERSION = "one"

def client():
    return Queue.get_connection()

def run(job, queue):
    what = job.identifier.hget()
    client().rpush("test:runs", f"{what} {os.getpid()} {VERSION}")
    while what.startswith("held") and not client().exists("test:go"):
        client().blpop(["test:doors"], 1)
    if what == "starts processes":
        client().rpush("test:codes", subprocess.call(["sh", "-c", "exit 7"]))
        child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(1000,), daemon=True)
        child.start()
        client().rpush("test:children", child.pid)

class ForkWorker(Worker):
    def after_fork(self):
        client().rpush("test:forks", f"{os.getpid()} {self.id}")

class BadForkWorker(Worker):
    def after_fork(self):
        raise RuntimeError("no luck")

class StartWorker(Worker):
    def run_started(self):
        super().run_started()

class BadStartWorker(Worker):
    def run_started(self):
        raise RuntimeError("no luck")
"""

CONFIG = """
import os
from optparse import make_option
from limpyd_jobs.workers import WorkerConfig

class Config(WorkerConfig):
    option_list = (*WorkerConfig.option_list, make_option("--greeting"))

    def run(self):
        self.worker.log(f"{self.options.greeting} from {os.getpid()}")
        super().run()
"""

StartPool = Callable[..., WorkerProcess]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "pool_tasks.py").write_text(TASKS)
    (tmp_path / "pool_config.py").write_text(CONFIG)
    return tmp_path


@pytest.fixture
def start(project: Path, redis_server: RedisServer) -> StartPool:
    """Starts the command with two processes, on queue `pool`."""

    def start_pool(*arguments: str, **options: Any) -> WorkerProcess:
        defaults = ("--processes=2", "--queues=pool", f"--pythonpath={project}", "--callback=pool_tasks.run")
        return WorkerProcess(*defaults, *arguments, **{"database": redis_server.url, **options})

    return start_pool


def client() -> Any:
    return Job.get_connection()


def add(*identifiers: str, **options: Any) -> list[Job]:
    return [Job.add_job(identifier, queue_name="pool", **options) for identifier in identifiers]


def runs() -> list[list[str]]:
    """Of each run so far: the identifier, the process, the version of the code."""
    return [text.split() for text in client().lrange("test:runs", 0, -1)]


def wait_for_runs(count: int) -> list[list[str]]:
    return wait_until(lambda: runs() if len(runs()) >= count else None, PROCESS_SECONDS, f"{count} runs")


def let_go() -> None:
    client().set("test:go", "1")
    client().rpush("test:doors", *range(20))


def wait_for_success(jobs: list[Job]) -> None:
    wait_until(lambda: statuses(jobs) == [STATUSES.SUCCESS] * len(jobs), PROCESS_SECONDS, "all jobs have succeeded")


def statuses(jobs: list[Job]) -> list[str]:
    return [job.status.hget() for job in jobs]


def ready(process: Process) -> list[int]:
    """The children that have been ready, in their order."""
    return [int(pid) for pid in re.findall(r"Worker (\d+) is ready", process.output)]


def wait_for_ready(process: Process, count: int) -> list[int]:
    process.wait_for_output("is ready", times=count)
    return ready(process)


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def title_of(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text().rstrip("\0")


def change(project: Path, old: str, new: str) -> None:
    """Change the code, so that its file has another size: Python tells a compiled file by size and seconds."""
    path = project / "pool_tasks.py"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new) + "# changed\n")


# --- work ---


def test_four_processes_run_four_jobs_at_a_time(start: StartPool) -> None:
    jobs = add(*(f"held {number}" for number in range(4)))

    with start("--processes=4") as process:
        pids = {pid for _, pid, _ in [run[-3:] for run in wait_for_runs(4)]}
        let_go()
        wait_for_success(jobs)
        assert process.stop() == 0, process.output

    assert len(pids) == 4
    assert str(process.pid) not in pids


def test_a_killed_child_is_replaced_and_its_job_runs_again(start: StartPool) -> None:
    (job,) = add("held")
    with start("--lease-seconds=1") as process:
        ((_, pid, _),) = wait_for_runs(1)

        os.kill(int(pid), signal.SIGKILL)

        assert wait_for_runs(2)[1][1] != pid
        let_go()
        wait_for_success([job])
        assert len(wait_for_ready(process, 3)) == 3
        assert process.stop() == 0, process.output
        assert f"Worker {pid} ended by SIGKILL" in process.output
        assert "The next worker is started in" in process.output


def test_a_child_that_has_run_max_loops_is_replaced(start: StartPool) -> None:
    jobs = add("a", "b", "c")

    with start("--processes=1", "--max-loops=1") as process:
        wait_for_success(jobs)
        assert process.stop() == 0, process.output

    assert len({pid for _, pid, _ in runs()}) == 3


def test_a_child_above_max_memory_is_replaced(start: StartPool) -> None:
    jobs = add("a", "b")

    with start("--processes=1", "--max-memory=1") as process:
        wait_for_success(jobs)
        assert process.stop() == 0, process.output
        assert "more than max_memory (1): stopping" in process.output

    assert len({pid for _, pid, _ in runs()}) == 2


def test_after_fork_is_called_in_each_child(start: StartPool) -> None:
    with start("--worker-class=pool_tasks.ForkWorker") as process:
        pids = wait_for_ready(process, 2)
        assert process.stop() == 0, process.output

    assert sorted(client().lrange("test:forks", 0, -1)) == sorted(f"{pid} {pid}" for pid in pids)


def test_a_job_may_start_processes_which_end_with_its_worker(start: StartPool) -> None:
    jobs = add("starts processes")
    with start() as process:
        wait_for_success(jobs)
        (pid,) = client().lrange("test:children", 0, -1)
        assert is_alive(int(pid))

        assert process.stop() == 0, process.output

    assert client().lrange("test:codes", 0, -1) == ["7"]
    wait_until(lambda: not is_alive(int(pid)))


# --- the end ---


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_running_jobs_end_and_no_other_begins(number: signal.Signals, start: StartPool) -> None:
    jobs = add("held 1", "held 2", "third")
    with start() as process:
        wait_for_runs(2)

        process.send_signal(number)

        process.wait_for_output("stopping after current job", times=2)
        let_go()
        assert process.wait() == 0, process.output
        assert "Pool terminated, with exit code 0" in process.output

    assert statuses(jobs) == [STATUSES.SUCCESS, STATUSES.SUCCESS, STATUSES.WAITING]


def test_children_whose_parent_is_killed_end_gracefully(start: StartPool) -> None:
    jobs = add("held 1", "held 2", "third")
    with start() as process:
        wait_for_runs(2)
        pids = wait_for_ready(process, 2)

        process.kill()

        wait_until(lambda: process.output.count("The parent of this worker is gone") == 2, PROCESS_SECONDS)
        let_go()
        wait_until(lambda: not any(map(is_alive, pids)), PROCESS_SECONDS, "no orphan is left")

    assert statuses(jobs) == [STATUSES.SUCCESS, STATUSES.SUCCESS, STATUSES.WAITING]


def test_a_child_whose_parent_is_killed_while_it_loads_the_code_ends_too(start: StartPool, project: Path) -> None:
    wait = "while not os.path.exists(__file__ + '.go'): time.sleep(0.01)"
    (project / "pool_tasks.py").write_text(f"{TASKS}\nprint('loading')\n{wait}\n")
    with start() as process:
        process.wait_for_output("loading")
        (pid,) = map(int, re.findall(r"Worker (\d+) started", process.output))

        process.kill()

        wait_until(lambda: not is_alive(pid), PROCESS_SECONDS, "no orphan is left")


def test_stop_timeout_bounds_the_job_of_a_child_whose_parent_is_killed(start: StartPool) -> None:
    (job,) = add("held")
    with start("--stop-timeout=0.1") as process:
        ((_, pid, _),) = wait_for_runs(1)

        process.kill()

        wait_until(lambda: not is_alive(int(pid)), PROCESS_SECONDS, "no orphan is left")

    assert job.status.hget() == STATUSES.WAITING


def test_at_sigquit_the_jobs_are_given_back_and_the_code_is_three(start: StartPool) -> None:
    jobs = add("held 1", "held 2")
    with start() as process:
        wait_for_runs(2)

        assert process.stop(signal.SIGQUIT) == 3, process.output

    assert statuses(jobs) == [STATUSES.WAITING] * 2


def test_the_code_of_stop_timeout_is_that_of_the_pool(start: StartPool) -> None:
    add("held")
    with start("--stop-timeout=0.1") as process:
        wait_for_runs(1)

        assert process.stop() == 3, process.output


def test_a_child_that_is_killed_while_the_pool_ends_gives_its_code(start: StartPool) -> None:
    add("held")
    with start() as process:
        ((_, pid, _),) = wait_for_runs(1)
        process.send_signal(signal.SIGTERM)
        process.wait_for_output("stopping after current job")

        os.kill(int(pid), signal.SIGKILL)

        assert process.wait() == 128 + signal.SIGKILL, process.output


def test_children_that_do_not_end_gracefully_are_ended_by_the_signal_as_asked(start: StartPool) -> None:
    with start("--no-terminate-gracefuly") as process:
        wait_for_ready(process, 2)

        assert process.stop() == 0, process.output
        assert process.output.count("ended by SIGTERM") == 2


def test_at_ctrl_c_children_that_do_not_end_gracefully_give_their_jobs_back(start: StartPool) -> None:
    jobs = add("held 1", "held 2")
    with start("--no-terminate-gracefuly") as process:
        wait_for_runs(2)

        for pid in (process.pid, *wait_for_ready(process, 2)):  # as a terminal does
            with suppress(ProcessLookupError):  # the parent has passed it on, and the child has ended by that
                os.kill(pid, signal.SIGINT)

        process.wait()

    assert statuses(jobs) == [STATUSES.WAITING] * 2


# --- the start ---


def test_a_replacement_that_cannot_start_is_tried_again(start: StartPool, project: Path) -> None:
    with start("--processes=1", "--max-loops=1") as process:
        wait_for_ready(process, 1)
        change(project, "VERSION =", "VERSION = = =")
        jobs = add("a", "b")
        process.wait_for_output("error: Unable to import", times=2)

        change(project, "VERSION = = =", "VERSION =")

        wait_for_success(jobs)
        assert process.stop() == 0, process.output


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--callback=pool_tasks.nothing", 'Unable to import "callback"'),
        ("--keep-success=x", "keep_success"),
        ("--unknown", "no such option: --unknown"),
        ("--processes=0", "The processes argument (0) must be a positive integer"),
        ("--processes=-1", "The processes argument (-1) must be a positive integer"),
        ("--processes=x", "option --processes: invalid integer value: 'x'"),
        ("--reload=x", "--reload option does not take a value"),
        ("--max-memory=0", "The max-memory argument (0) must be a positive integer"),
    ],
)
def test_options_that_cannot_work_are_told_once_and_end_with_two(option: str, message: str, start: StartPool) -> None:
    with start(option) as process:
        assert process.wait() == 2, process.output

        (line,) = [line for line in process.output.splitlines() if "error: " in line]
        assert message in line
        assert "Traceback" not in process.output


def test_a_first_worker_that_always_crashes_ends_the_pool_with_one(start: StartPool) -> None:
    with start("--worker-class=pool_tasks.BadForkWorker") as process:
        assert process.wait() == 1, process.output

        assert "CRITICAL [pool] The first worker could not start, 4 times: giving up" in process.output
        assert process.output.count("RuntimeError: no luck") == 4


def test_a_first_worker_whose_run_always_crashes_ends_the_pool_with_one(start: StartPool) -> None:
    add("waiting")

    with start("--worker-class=pool_tasks.BadStartWorker") as process:
        assert process.wait() == 1, process.output

        assert "CRITICAL [pool] The first worker could not start, 4 times: giving up" in process.output
        assert "is ready" not in process.output


def test_help_and_version_are_printed_once(start: StartPool) -> None:
    with start("--help") as process:
        assert process.wait() == 0
        assert process.output.count("Usage: worker.py [options]") == 1
    with start("--version") as process:
        assert process.wait() == 0
        assert process.output.count("worker.py (redis-limpyd-jobs") == 1


def test_the_options_are_printed_once(start: StartPool) -> None:
    with start("--processes=3", "--print-options") as process:
        wait_for_ready(process, 3)

        assert process.stop() == 0
        assert process.output.count("The script is running with the following options:") == 1
        assert " - processes = 3\n" in process.output


def test_a_dry_run_starts_each_worker_once_and_ends(start: StartPool) -> None:
    jobs = add("a")

    with start("--dry-run") as process:
        assert process.wait() == 0, process.output
        assert len(ready(process)) == 2

    assert statuses(jobs) == [STATUSES.WAITING]


def test_a_config_of_the_user_reads_its_options_in_each_child(start: StartPool) -> None:
    with start("--worker-config=pool_config.Config", "--greeting=hello") as process:
        pids = wait_for_ready(process, 2)
        process.wait_for_output("hello from", times=2)

        assert process.stop() == 0
        assert all(f"[{pid}] hello from {pid}" in process.output for pid in pids)


def test_an_abbreviated_option_gives_a_pool_too(redis_server: RedisServer) -> None:
    with WorkerProcess("--proc=2", "--queues=pool", database=redis_server.url) as process:
        wait_for_ready(process, 2)

        assert process.stop() == 0, process.output


def test_the_processes_share_an_embedded_server(start: StartPool, tmp_path: Path) -> None:
    directory = tmp_path / "data"
    try:
        with start("--burst", database=f"embedded://{directory}") as process:
            assert process.wait(40) == 0, process.output
            assert len(ready(process)) == 2
    finally:
        embedded.stop(directory)


# --- burst ---


def test_with_burst_the_pool_ends_when_nothing_is_left(start: StartPool) -> None:
    jobs = add(*map(str, range(20)))
    later = add("later", delayed_for=1000)

    with start("--burst") as process:
        assert process.wait() == 0, process.output
        assert len(ready(process)) == 2

    assert statuses(jobs) == [STATUSES.SUCCESS] * 20
    assert statuses(later) == [STATUSES.DELAYED]


def test_with_burst_a_child_that_has_run_max_loops_is_replaced(start: StartPool) -> None:
    jobs = add(*map(str, range(3)))

    with start("--burst", "--processes=1", "--max-loops=2") as process:
        assert process.wait() == 0, process.output
        assert len(ready(process)) == 2

    assert statuses(jobs) == [STATUSES.SUCCESS] * 3


# --- signals ---


def fewest_ready(output: str) -> int:
    """The smallest number of workers that were ready and not told to end, once all had been started."""
    events = re.findall(r"Worker \d+ (is ready)|(Caught SIGTERM)", output.partition("[pool] Caught SIGTERM")[0])
    count, fewest = 0, 1000
    for is_ready, _ in events:
        count += 1 if is_ready else -1
        fewest = min(fewest, count) if count >= 2 or fewest < 1000 else fewest
    return fewest


def test_sighup_loads_new_code_without_a_moment_of_fewer_workers(start: StartPool, project: Path) -> None:
    with start() as process:
        old = wait_for_ready(process, 2)
        add("before")
        wait_for_runs(1)
        change(project, '"one"', '"second"')

        process.send_signal(signal.SIGHUP)

        process.wait_for_output("All workers are replaced")
        add("after")
        assert wait_for_runs(2)[1][2] == "second"
        wait_until(lambda: not any(map(is_alive, old)))
        assert len(ready(process)) == 4
        assert process.stop() == 0, process.output
        assert fewest_ready(process.output) == 2


def test_sighup_does_not_wait_for_the_job_of_an_old_worker(start: StartPool) -> None:
    (job, _) = add("held 1", "held 2")
    with start() as process:
        wait_for_runs(2)

        process.send_signal(signal.SIGHUP)

        process.wait_for_output("All workers are replaced")
        assert job.status.hget() == STATUSES.RUNNING
        let_go()
        wait_for_success([job])
        assert process.stop() == 0, process.output


def test_sighup_with_code_that_cannot_be_loaded_keeps_the_old_workers(start: StartPool, project: Path) -> None:
    with start() as process:
        old = wait_for_ready(process, 2)
        change(project, "VERSION =", "VERSION = = =")

        process.send_signal(signal.SIGHUP)

        process.wait_for_output("The workers are not replaced")
        assert all(map(is_alive, old))
        jobs = add("after")
        wait_for_success(jobs)
        assert process.stop() == 0, process.output
        assert ready(process) == old


def test_sighup_with_code_that_crashes_at_the_start_of_the_run_keeps_the_old_workers(
    start: StartPool, project: Path
) -> None:
    jobs = add("before")
    with start("--worker-class=pool_tasks.StartWorker") as process:
        old = wait_for_ready(process, 2)
        wait_for_success(jobs)
        change(project, "super().run_started()", "raise RuntimeError")

        process.send_signal(signal.SIGHUP)

        process.wait_for_output("The workers are not replaced")
        wait_for_success(add("after"))
        assert process.stop() == 0, process.output
        assert ready(process) == old


def test_a_second_sighup_replaces_them_again(start: StartPool) -> None:
    with start() as process:
        wait_for_ready(process, 2)
        process.send_signal(signal.SIGHUP)
        process.wait_for_output("Replacing the workers, one by one")

        process.send_signal(signal.SIGHUP)

        process.wait_for_output("All workers are replaced", times=2)
        assert process.stop() == 0, process.output
        assert len(ready(process)) == 6


def test_sigusr2_shows_the_stacks_of_all_processes(start: StartPool) -> None:
    add("held 1")
    with start() as process:
        pids = wait_for_ready(process, 2)
        wait_for_runs(1)
        process.wait_for_output("Run started", times=2)

        process.send_signal(signal.SIGUSR2)

        process.wait_for_output("Stacks of all threads:", times=3)
        wait_until(lambda: process.output.count("Thread limpyd-jobs-heartbeat") == 2)
        for name in ("pool", *pids):
            assert f"CRITICAL [{name}] Stacks of all threads:\n    Thread MainThread (" in process.output
        assert 'pool_tasks.py", line' in process.output
        let_go()
        assert process.stop() == 0, process.output


def test_sigusr2_shows_the_stacks_of_isolated_jobs(start: StartPool) -> None:
    jobs = add("held")
    with start("--isolate") as process:
        ((_, pid, _),) = wait_for_runs(1)

        process.send_signal(signal.SIGUSR2)

        process.wait_for_output('pool_tasks.py", line')
        assert re.search(rf"^\[{pid}\] .* Stacks of all threads:", process.output, re.MULTILINE)
        let_go()
        wait_for_success(jobs)
        assert process.stop() == 0, process.output


# --- the log and the titles ---


def test_each_line_of_the_log_says_whose_it_is(start: StartPool) -> None:
    jobs = add(*map(str, range(50)))
    with start("--processes=3") as process:
        pids = wait_for_ready(process, 3)
        wait_for_success(jobs)
        assert process.stop() == 0
        lines = [line for line in process.output.splitlines() if line and "Warning" not in line]

    form = r"\[(\d+)\] \S+ \S+ \(limpyd-jobs\) [A-Z]+ +\[(pool|\d+)\] .*"
    found = [re.fullmatch(form, line) for line in lines]
    assert [line for line, match in zip(lines, found, strict=True) if match is None] == []
    assert {match[2] for match in found if match} == {"pool", *map(str, pids)}
    assert all(match[1] == match[2] or match[1] == str(process.pid) for match in found if match)


def test_the_titles_say_what_the_processes_do(start: StartPool, tmp_path: Path, redis_server: RedisServer) -> None:
    program = tmp_path / "limpyd-jobs-worker"
    program.write_text("from limpyd_jobs.scripts.worker import main\nmain()\n")
    add("held")
    arguments = ["--processes=2", "--queues=pool", f"--pythonpath={tmp_path}", "--callback=pool_tasks.run"]
    environment = {"LIMPYD_JOBS_DATABASE": redis_server.url}
    with Process([sys.executable, str(program), *arguments], environment=environment) as process:
        ((_, pid, _),) = wait_for_runs(1)
        wait_for_ready(process, 2)

        expected = f"limpyd-jobs-worker#{process.pid} [running] queues=pool processes=2/2"
        wait_until(lambda: title_of(process.pid) == expected)
        assert title_of(int(pid)).startswith(f"limpyd-jobs-worker#{pid} [running] queues=pool loop=1/1000 ")
        process.send_signal(signal.SIGTERM)
        wait_until(lambda: "[running - ending] queues=pool processes=" in title_of(process.pid))
        let_go()
        assert process.wait() == 0


@pytest.mark.parametrize("more", [(), ("--no-title",)])
def test_a_password_is_in_no_title_and_no_line(more: tuple[str, ...], start: StartPool) -> None:
    with (
        RedisServer(options={"requirepass": "s3cr3t"}) as server,
        start(f"--database=unix://:s3cr3t@{server.socket_path}", *more) as process,
    ):
        pids = wait_for_ready(process, 2)

        assert [pid for pid in (process.pid, *pids) if "s3cr3t" in title_of(pid)] == []
        assert process.stop() == 0, process.output
        assert "s3cr3t" not in process.output


def test_without_titles_the_command_line_stays(start: StartPool) -> None:
    with start("--no-title") as process:
        pids = wait_for_ready(process, 2)

        assert "\0--no-title" in title_of(process.pid)
        assert "\0--no-title" in title_of(pids[0])
        assert process.stop() == 0


# --- reload ---


def test_with_reload_changed_code_is_loaded_in_all_workers(start: StartPool, project: Path) -> None:
    with start("--reload") as process:
        old = wait_for_ready(process, 2)
        change(project, '"one"', '"second"')

        process.wait_for_output("pool_tasks.py has changed: stopping now", times=2)

        new = wait_for_ready(process, 4)[2:]
        assert not set(old) & set(new)
        add("after")
        assert wait_for_runs(1)[0][2] == "second"
        assert process.stop() == 0, process.output


def test_with_reload_a_mistake_in_the_code_can_be_mended(start: StartPool, project: Path) -> None:
    with start("--reload", "--processes=1") as process:
        wait_for_ready(process, 1)
        change(project, "VERSION =", "VERSION = = =")
        process.wait_for_output("SyntaxError", times=2)

        change(project, "VERSION = = =", "VERSION =")

        wait_for_ready(process, 2)
        assert process.stop() == 0, process.output


def test_reload_without_watchfiles_ends_with_two() -> None:
    program = "import limpyd_jobs.workers.reload as r; r.find_spec = lambda name: None\n"
    program += "from limpyd_jobs.scripts.worker import main; main(['worker.py', '--queues=pool', '--reload'])"
    with Process([sys.executable, "-c", program]) as process:
        assert process.wait() == 2, process.output

        assert process.output.splitlines()[-1] == (
            "worker.py: error: reload needs the library watchfiles: pip install 'redis-limpyd-jobs[reload]'"
        )


# --- a program's own pool ---

PROGRAM = """
import atexit, logging, os, signal, sys, threading
sys.path.insert(0, sys.argv[2])
logging.basicConfig(format="%(message)s", level="INFO")
from limpyd_jobs.models import BaseJobsModel
from limpyd_jobs.workers import Worker, WorkerConfig, WorkerPool
BaseJobsModel.database.connect(sys.argv[1])
BaseJobsModel.database.connection.ping()
parent = os.getpid()
atexit.register(lambda: print("end of", "the parent" if os.getpid() == parent else "a child", flush=True))
handlers = [signal.getsignal(number) for number in (1, 2, 3, 12, 15, 17)]
def make(**options):
    from pool_tasks import ForkWorker, run
    return ForkWorker(callback=run, **options)
"""


def program(project: Path, server: RedisServer, text: str) -> Process:
    return Process([sys.executable, "-W", "ignore", "-c", PROGRAM + text, server.url, str(project)])


@pytest.mark.parametrize("worker", ["make", "'pool_tasks.ForkWorker'", "Worker"])
def test_a_program_may_run_a_pool(worker: str, project: Path, redis_server: RedisServer) -> None:
    jobs = add("a", "b")
    callback = "" if worker == "make" else ", callback=print"
    text = (
        f"code = WorkerPool({worker}, processes=2, queues='pool', burst=True{callback}).run()\n"
        "same = handlers == [signal.getsignal(number) for number in (1, 2, 3, 12, 15, 17)]\n"
        "print('code', code, 'handlers', same, 'wakeup', signal.set_wakeup_fd(-1), flush=True)"
    )
    with program(project, redis_server, text) as process:
        assert process.wait() == 0, process.output

        assert "code 0 handlers True wakeup -1" in process.output
        assert "end of the parent" in process.output
        assert "end of a child" not in process.output
    assert statuses(jobs) == [STATUSES.SUCCESS] * 2


def test_the_dotted_name_of_a_worker_is_loaded_anew_at_sighup(project: Path, redis_server: RedisServer) -> None:
    (project / "pool_tasks.py").write_text(TASKS + "\nclass CallbackWorker(Worker):\n    callback = run\n")
    text = "sys.exit(WorkerPool('pool_tasks.CallbackWorker', processes=2, queues='pool').run())"
    with program(project, redis_server, text) as process:
        wait_for_ready(process, 2)
        change(project, '"one"', '"second"')

        process.send_signal(signal.SIGHUP)

        process.wait_for_output("All workers are replaced")
        add("after")
        assert wait_for_runs(1)[0][2] == "second"
        assert process.stop() == 0, process.output


def test_a_successor_that_hangs_is_killed_and_its_place_is_filled(project: Path, redis_server: RedisServer) -> None:
    (project / "pool_tasks.py").write_text(TASKS + "\nclass CallbackWorker(Worker):\n    callback = run\n")
    text = (
        "import limpyd_jobs.workers.pool as module\nmodule.LONGEST_START_SECONDS = 3\n"
        "sys.exit(WorkerPool('pool_tasks.CallbackWorker', processes=1, queues='pool').run())"
    )
    with program(project, redis_server, text) as process:
        (old,) = wait_for_ready(process, 1)
        change(project, "VERSION =", "print('hangs', flush=True); time.sleep(1000)\nVERSION =")
        process.send_signal(signal.SIGHUP)
        process.wait_for_output("hangs")
        change(project, "time.sleep(1000)", "")

        os.kill(old, signal.SIGTERM)

        process.wait_for_output("is not ready after 3 seconds")
        wait_for_ready(process, 2)
        assert process.stop() == 0, process.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("'nothing.here', queues='pool'", "Unable to import the worker 'nothing.here'"),
        ("Worker, queues='pool', max_loops='x'", "Invalid max_loops: 'x'"),
    ],
)
def test_a_pool_of_a_program_that_cannot_work_ends_with_two(
    arguments: str, message: str, project: Path, redis_server: RedisServer
) -> None:
    with program(project, redis_server, f"sys.exit(WorkerPool({arguments}, processes=2).run())") as process:
        assert process.wait() == 2, process.output

        assert process.output.count(message) == 1
        assert "Traceback" not in process.output


def test_a_config_that_a_program_executes_runs_a_pool(project: Path, redis_server: RedisServer) -> None:
    jobs = add("a", "b")
    text = (
        "WorkerConfig(['p', '--processes=2', '--burst', '--queues=pool', '--callback=pool_tasks.run',\n"
        "    f'--database={sys.argv[1]}']).execute()\nprint('goes on', flush=True)"
    )
    with program(project, redis_server, text) as process:
        assert process.wait() == 0, process.output

        assert process.output.count("goes on") == 1
    assert statuses(jobs) == [STATUSES.SUCCESS] * 2
