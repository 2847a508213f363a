"""The command in a real terminal: a screen that is drawn again and again, questions, progress, signals."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import termios
from typing import Any

import pytest

from limpyd_jobs import STATUSES, Job, Queue, Worker, admin

from ..base import ROOT, RedisServer, wait_until
from .support import Terminal

pytestmark = pytest.mark.usefixtures("database")


def fail(job: Any, queue: Any) -> None:
    raise OSError("no")


def add_failed(count: int) -> None:
    Job.add_jobs(({"identifier": f"mail:{number}"} for number in range(count)), queue_name="mail")
    Worker(queues="mail", callback=fail, max_loops=count, save_errors=False, logger_level="CRITICAL").run()


# --- status --watch


def test_the_screen_shows_a_change_fits_another_size_and_ends_at_q(redis_server: RedisServer) -> None:
    Job.add_job("a", "mail")
    for number in range(30):
        Job.add_job(f"b{number}", f"idle-{number:02}", delayed_for=1000)

    with Terminal("status", "--watch", "0.2", database=redis_server.url, lines=24) as terminal:
        before = terminal.wait_for("1 job waiting")
        modes = termios.tcgetattr(terminal.master)
        Job.add_job("c", "mail")
        after = terminal.wait_for("2 jobs waiting")

        assert "q ends" in after and "more" in after and "mail" in after
        assert before.splitlines()[1] == after.splitlines()[1]  # in place
        assert not modes[3] & termios.ECHO

        terminal.resize(60, 12)
        terminal.wait_for("2 jobs waiting")
        small = terminal.wait_for("q ends")
        assert max(map(len, small.splitlines())) <= 60

        terminal.press("q")
        assert terminal.wait() == 0
        assert termios.tcgetattr(terminal.master)[3] & termios.ECHO
        assert b"\x1b[?1049h" in terminal.received and b"\x1b[?1049l" in terminal.received


def test_the_screen_stays_while_redis_is_away() -> None:
    with RedisServer() as server, Terminal("status", "--watch=0.2", database=server.url) as terminal:
        terminal.wait_for("q ends")
        server.stop()
        terminal.wait_for("Error")
        server.start()
        terminal.wait_for("q ends")
        terminal.press("\x03")

        assert terminal.wait() == 130


# --- questions


def test_no_changes_nothing_and_yes_does_it(redis_server: RedisServer) -> None:
    add_failed(3)

    with Terminal("requeue", "--queue=mail", database=redis_server.url) as terminal:
        terminal.wait_for("Requeue 3 jobs (status error, queue mail)? [y/N]:")
        terminal.press("n\n")
        assert terminal.wait() == 1
        assert "Nothing was done." in terminal.text
    assert Queue.count_waiting_jobs("mail") == 0 and admin.operations() == []

    with Terminal("requeue", "--queue=mail", database=redis_server.url) as terminal:
        terminal.wait_for("? [y/N]:")
        terminal.press("y\n")
        assert terminal.wait() == 0
        assert "3 jobs requeued" in terminal.text
    assert Queue.count_waiting_jobs("mail") == 3


def test_ctrl_c_at_the_question_changes_nothing(redis_server: RedisServer) -> None:
    add_failed(1)

    with Terminal("requeue", "--all", database=redis_server.url) as terminal:
        terminal.wait_for("? [y/N]:")
        terminal.press("\x03")

        assert terminal.wait() == 130
    assert Queue.count_waiting_jobs("mail") == 0 and admin.operations() == []


# --- long work


def test_progress_is_drawn_and_ctrl_c_leaves_what_can_be_resumed(redis_server: RedisServer) -> None:
    add_failed(200)

    with Terminal("requeue", "--all", "--yes", "--rate=50/s", database=redis_server.url) as terminal:
        wait_until(lambda: Queue.count_waiting_jobs("mail") > 10)
        assert "/200" in terminal.wait_for("━")
        terminal.press("\x03")
        assert terminal.wait() == 130
        text = terminal.text
    [operation] = admin.operations()
    assert f"--resume {operation.id}" in text and "Interrupted after" in text

    with Terminal("requeue", "--resume", operation.id, database=redis_server.url) as terminal:
        assert terminal.wait() == 0
        count = re.search(r"(\d+) jobs requeued", terminal.text)
    assert count and 195 <= int(count[1]) <= 200  # those of the round trip that was interrupted may not be counted
    waiting = Queue.get_queue("mail").waiting.lmembers()
    assert len(waiting) == len(set(waiting)) == 200


def test_a_drain_shows_how_far_it_is(redis_server: RedisServer) -> None:
    Job.add_jobs(({"identifier": str(number)} for number in range(4)), queue_name="mail")

    with Terminal("drain", "mail", database=redis_server.url) as terminal:
        terminal.wait_for("0/4")
        Worker(queues="mail", callback=lambda job, queue: None, max_loops=4, logger_level="CRITICAL").run()

        assert terminal.wait() == 0
        assert "4/4" in terminal.text and "Nothing is left" in terminal.text


# --- tables


def test_a_table_fits_the_terminal_and_has_colours(redis_server: RedisServer) -> None:
    add_failed(1)

    with Terminal("jobs", database=redis_server.url, columns=80) as terminal:
        assert terminal.wait() == 0
        [titles, row] = [line for line in terminal.look() if line]

    assert titles.startswith("ident ") and "…" in row and "error" in row and len(row) <= 80
    assert b"\x1b[31m" in terminal.received


@pytest.mark.parametrize("environment", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_colours_can_be_refused(redis_server: RedisServer, environment: dict[str, str]) -> None:
    add_failed(1)

    with Terminal("jobs", database=redis_server.url, environment=environment) as terminal:
        assert terminal.wait() == 0

    assert b"error" in terminal.received and b"\x1b[31m" not in terminal.received


# --- pipes


def test_a_reader_that_has_enough_ends_the_command_in_silence(redis_server: RedisServer) -> None:
    Job.add_jobs(({"identifier": str(number) * 50} for number in range(3000)), queue_name="mail")

    done = subprocess.run(
        ["/bin/sh", "-c", f"{sys.executable} -m limpyd_jobs jobs --all | head -n 2"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "LIMPYD_JOBS_DATABASE": redis_server.url},
        capture_output=True,
        text=True,
        check=False,
    )

    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) == 2


def test_a_job_is_as_it_was_when_its_requeue_is_interrupted_by_a_signal(redis_server: RedisServer) -> None:
    """SIGTERM has no handler: the process is gone, and the operation stays."""
    add_failed(100)

    with Terminal("requeue", "--all", "--yes", "--rate=50/s", database=redis_server.url) as terminal:
        wait_until(lambda: Queue.count_waiting_jobs("mail") > 5)
        terminal.send_signal(signal.SIGTERM)
        assert terminal.wait() == -signal.SIGTERM

    waiting, failed = Queue.count_waiting_jobs("mail"), len(Job.collection(status=STATUSES.ERROR))
    assert waiting + failed == 100 and len(admin.operations()) == 1
