"""What the README shows is run as it is: the tour, and the example."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from limpyd_jobs import embedded

from ..base import ROOT, RedisServer, wait_until

README = ROOT / "README.md"


def python_blocks() -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", README.read_text(), re.DOTALL | re.MULTILINE)


def promised_output(block: str) -> list[str]:
    """What stands behind `#` after a print or a run, and in lines of its own."""
    found = re.findall(r"^(?:\s*(?:print|Worker)\(.*\)  )?# (.*)$", block, re.MULTILINE)
    return [str(line) for line in found]


def run(program: str | Path, directory: Path, environment: Mapping[str, str] | None = None) -> tuple[int, str, str]:
    """Run a program of Python in a directory: its exit code, stdout and stderr."""
    done = subprocess.run(
        [sys.executable, str(program)],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(ROOT), **(environment or {})},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def temporary_files() -> Iterator[Path]:
    """A directory for the temporary files of a program, with a short path: a unix socket will be in it."""
    with tempfile.TemporaryDirectory(prefix="limpyd-jobs-", dir="/tmp") as directory:
        yield Path(os.path.realpath(directory))


def processes_in(directory: Path) -> list[str]:
    """The processes whose working directory is, or was, in this one."""
    found = []
    for link in Path("/proc").glob("[0-9]*/cwd"):
        try:
            working_directory = os.readlink(link)
        except OSError:  # it ended, or is not ours
            continue
        if working_directory.startswith(str(directory)):
            found.append(link.parent.name)
    return found


def worker_pids(log: str) -> set[int]:
    return {int(pid) for pid in re.findall(r"^\[(\d+)\] \d{4}-", log, re.MULTILINE)}


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def summary_of(output: str) -> dict[str, list[str]]:
    """The rows of the table that the example prints: mail -> status, priority, tries."""
    rows = re.findall(r"^(\S+)\s+([A-Z]+)\s+(-?\d+)\s+(\d+|-)\s", output, re.MULTILINE)
    return {mail: rest for mail, *rest in rows}


def test_the_tour_runs_and_prints_what_it_says(tmp_path: Path) -> None:
    tour = "\n\n".join(python_blocks())
    (tmp_path / "tour.py").write_text(tour)
    try:
        code, output, log = run("tour.py", tmp_path)
    finally:
        was_running = embedded.stop(tmp_path / "tour-data")

    assert (code, output.splitlines()) == (0, promised_output(tour)), log
    assert not was_running, "the tour stops the server that it has started"


def test_the_promises_of_the_tour_are_read() -> None:
    block = "print(1)  # one\n    print(2)  # two\nWorker().run()  # three\n# four\nconnect()  # no\n    # no\nx = 1\n"

    assert promised_output(block) == ["one", "two", "three", "four"]
    assert len(promised_output("\n".join(python_blocks()))) > 10


EXPECTED = {
    "news:1": ["SUCCESS", "0", "1"],
    "news:2": ["SUCCESS", "0", "1"],
    "news:3": ["SUCCESS", "-1", "2"],
    "news:4": ["ERROR", "-1", "2"],
    "news:5": ["CANCELED", "0", "-"],
    "reminder": ["SUCCESS", "0", "1"],
    "password": ["SUCCESS", "5", "1"],
}


def test_the_example_ends_with_a_table_of_what_became_of_each_job(tmp_path: Path, temporary_files: Path) -> None:
    code, output, log = run(ROOT / "example.py", tmp_path, {"TMPDIR": str(temporary_files)})

    assert code == 0, log
    assert summary_of(output) == EXPECTED, output + log
    assert "mails sent: 5" in output
    assert re.search(r"^refused since .*: 3$", output, re.MULTILINE)
    assert output.count("nobody@example.org: 550 no such mailbox") == 2
    assert output.count("carol@example.org: 550 mailbox full") == 1


def test_the_example_shows_priorities_delays_and_two_workers(tmp_path: Path, temporary_files: Path) -> None:
    _, output, log = run(ROOT / "example.py", tmp_path, {"TMPDIR": str(temporary_files)})

    started = re.findall(r"\[mail\|\d+\|(\S+)\] starting", log)
    assert started[0] == "password", log
    assert set(started[-3:]) == {"news:3", "news:4", "reminder"}, log
    assert "news:5] job skipped (current status: CANCELED)" in log
    assert len(worker_pids(log)) == 2, log
    assert summary_of(output) == EXPECTED


def test_the_example_leaves_nothing_behind(tmp_path: Path, temporary_files: Path) -> None:
    _, _, log = run(ROOT / "example.py", tmp_path, {"TMPDIR": str(temporary_files)})

    assert [pid for pid in worker_pids(log) if is_running(pid)] == []
    assert processes_in(temporary_files) == []
    assert list(temporary_files.iterdir()) == []
    assert list(tmp_path.iterdir()) == []


def test_the_example_only_adds_its_own_keys_to_a_database_that_is_named(
    tmp_path: Path, redis_server: RedisServer
) -> None:
    client = redis_server.client()
    client.flushall()
    client.set("mine", "1")

    code, output, log = run(ROOT / "example.py", tmp_path, {"LIMPYD_JOBS_DATABASE": redis_server.url})

    assert code == 0, log
    assert summary_of(output) == EXPECTED, output + log
    others = [key for key in client.scan_iter() if not key.startswith("example:")]
    assert (others, client.get("mine")) == (["mine"], "1")


def test_the_example_can_run_again_on_the_same_database(tmp_path: Path, redis_server: RedisServer) -> None:
    redis_server.client().flushall()
    run(ROOT / "example.py", tmp_path, {"LIMPYD_JOBS_DATABASE": redis_server.url})
    second = int(time.time())
    wait_until(lambda: int(time.time()) > second, message="errors are found by the second")

    code, output, log = run(ROOT / "example.py", tmp_path, {"LIMPYD_JOBS_DATABASE": redis_server.url})

    assert code == 0, log
    assert summary_of(output) == EXPECTED, output + log
    assert re.search(r"^refused since .*: 3$", output, re.MULTILINE), "only the errors of this run"
