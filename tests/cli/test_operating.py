"""pause, resume, drain, workers, check, doctor, server, bench, metrics, health."""

from __future__ import annotations

import signal
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from limpyd_jobs import Job, Queue, Worker, admin, embedded

from ..base import wait_until
from .support import Command


@pytest.fixture
def worker(database: Any) -> Iterator[Worker]:
    """A worker that runs in a thread, and sees jobs as they come."""
    one = Worker(queues="mail", callback=lambda job, queue: None, max_loops=1000)
    thread = threading.Thread(target=one.run)
    thread.start()
    wait_until(lambda: admin.workers())
    yield one
    one.end_forced = True
    Job.add_job("the end", "mail")
    thread.join(10)


# --- queues


def test_a_queue_is_paused_and_resumed(command: Command) -> None:
    Job.add_job("a", "mail")

    outcome = command("pause", "mail", "photos", "--reason=deploy")

    assert [line.split(" since ")[0] for line in outcome.out.splitlines()] == ["mail is paused", "photos is paused"]
    assert outcome.out.endswith(": deploy\n")
    assert command("status", "--json").json["queues"][0]["paused"] is True
    assert command("resume", "mail", "other").out == "mail is resumed\nother was not paused\n"
    assert command("resume", "photos", "--json").json == {"resumed": {"photos": True}}
    assert admin.paused() == {}


def test_a_drain_ends_when_nothing_is_left(command: Command, worker: Worker) -> None:
    Job.add_jobs([{"identifier": str(number)} for number in range(20)], queue_name="mail")

    outcome = command("drain", "mail", "--timeout=30")

    assert (outcome.code, outcome.out) == (0, "Nothing is left\n")
    assert Queue.count_waiting_jobs("mail") == 0


def test_a_drain_whose_time_is_over_says_what_is_left(command: Command) -> None:
    Job.add_job("a", "mail")
    Job.add_job("b", "mail", delayed_for=100)

    assert command("drain", "mail", "--timeout=0.1").out.endswith("1 job left: 1 waiting, 0 delayed, 0 running\n")
    outcome = command("drain", "mail", "--timeout=0.1", "--delayed", "--json")
    assert (outcome.code, outcome.json["count"], outcome.json["delayed"]) == (1, 2, 1)


# --- workers


def test_workers_are_seen(command: Command, worker: Worker) -> None:
    [row] = command("workers").rows
    [found] = command("workers", "--json").json["workers"]

    assert row[0] == found["id"] and row[3] == "mail"
    assert command("status", "--json").json["workers"][0]["id"] == found["id"]
    assert command("health", "--min-workers=1", "--queues=mail").code == 0


def test_that_there_are_no_workers_is_said(command: Command) -> None:
    outcome = command("workers")

    assert (outcome.code, outcome.rows, outcome.err) == (0, [], "No worker is alive.\n")


# --- health


def test_health_is_an_exit_code(command: Command) -> None:
    Job.add_job("a", "mail")

    assert command("health").out == "All is well\n"
    outcome = command("health", "--min-workers=1", "--json")
    assert outcome.code == 1
    assert outcome.json["is_well"] is False and len(outcome.json["problems"]) == 1


def test_a_redis_that_is_away_is_a_matter_of_health(command: Command) -> None:
    outcome = command("health", "--database=redis://:secret@localhost:1/0")

    assert outcome.code == 1
    assert outcome.out.startswith("Unable to use the database redis://:***@localhost:1/0: ")


# --- check and doctor


def test_books_that_are_in_order_are_said_to_be_so(command: Command) -> None:
    Job.add_job("a", "mail")

    outcome = command("check")

    assert (outcome.code, outcome.rows, outcome.err) == (0, [], "0 problems found.\n")
    assert command("check", "--json").json == {"problems": [], "repairs": [], "left": 0}


def test_a_problem_is_found_explained_and_repaired(command: Command) -> None:
    Job.add_job("a", "mail")
    Queue.get_connection().delete("jobs:ready:queue:mail")

    found = command("check")
    assert found.code == 1 and found.rows[0][0] == "queue"
    unasked = command("check", "--repair")
    assert unasked.code == 2
    assert "Repair 1 problem? There is no terminal to ask at: give --yes." in unasked.err
    repaired = command("check", "--repair", "--yes")
    assert (repaired.code, repaired.err) == (0, "1 problem found, 0 left.\n")
    assert repaired.out.splitlines()[-1].startswith(found.rows[0][1])
    assert command("check").code == 0


def test_the_doctor_says_what_is_wrong(command: Command) -> None:
    outcome = command("doctor")
    found = command("doctor", "--json").json

    assert [row[0] for row in outcome.rows] == [finding["level"] for finding in found["findings"]]
    assert outcome.code == int(any(finding["level"] == "error" for finding in found["findings"]))
    assert found["database"].startswith("unix://")


# --- the embedded server, bench


def test_an_embedded_server_is_started_seen_and_stopped(command: Command, tmp_path: Path) -> None:
    try:
        assert command("server", "status", str(tmp_path)).code == 1
        started = command("server", "start", f"--database=embedded://{tmp_path}")
        assert started.code == 0 and started.out.startswith("state\trunning\n")
        assert command("server", "status", str(tmp_path), "--json").json["state"] == "running"
        assert command("jobs", "--count", f"--database=embedded://{tmp_path}").out == "0\n"
        assert command("server", "stop", str(tmp_path)).out == "It is stopped\n"
        assert command("server", "stop", str(tmp_path), "--json").json["was_running"] is False
    finally:
        embedded.stop(tmp_path)


def test_metrics_are_served_until_it_is_interrupted(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    from limpyd_jobs.admin.prometheus import MetricsServer

    Job.add_job("a", "mail")
    seen = []

    def read_and_interrupt(server: MetricsServer) -> None:
        with urllib.request.urlopen(server.url) as answer:
            seen.append(answer.read().decode())
        raise KeyboardInterrupt

    monkeypatch.setattr(MetricsServer, "wait", read_and_interrupt)

    outcome = command("metrics", "--listen=127.0.0.1:0")

    assert outcome.code == 130 and outcome.out.startswith("Listening at http://127.0.0.1:")
    assert 'limpyd_jobs_queue_length{priority="0",queue="mail",state="waiting"} 1.0' in seen[0]
    assert command("metrics", "--listen=nonsense").code == 2


def test_metrics_are_served_until_sigterm(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    from limpyd_jobs.admin.prometheus import MetricsServer

    monkeypatch.setattr(MetricsServer, "wait", lambda server: signal.raise_signal(signal.SIGTERM))
    former = signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that a failure is not the end of the tests
    try:
        code = command("metrics", "--listen=127.0.0.1:0").code
    finally:
        found = signal.signal(signal.SIGTERM, former)

    assert (code, found) == (0, signal.default_int_handler)


def test_a_measurement_leaves_nothing_behind(command: Command) -> None:
    before = set(Queue.get_connection().keys("*"))

    outcome = command("bench", "--jobs=20", "--json")

    assert outcome.code == 0 and outcome.json["jobs"] == 20
    assert command("bench", "--jobs=20").out.startswith("jobs\t20\nround trip\t")
    assert set(Queue.get_connection().keys("*")) == before
