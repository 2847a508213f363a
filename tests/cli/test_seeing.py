"""status, jobs, show, errors, explain."""

from __future__ import annotations

import csv
import io
from typing import Any

import pytest

from limpyd_jobs import Error, Job, Queue, Worker

from .support import Command


class SeeingRefused(Exception):
    code = 452


def refuse(job: Any, queue: Any) -> None:
    raise SeeingRefused("try\x1b[2J later")


@pytest.fixture
def failed(database: Any) -> Job:
    """A job that has failed once, in a queue with others."""
    job = Job.add_job("user:12:mail", "mail", 3)
    Worker(queues="mail", callback=refuse, max_loops=1).run()
    Job.add_job("waiting", "mail")
    Job.add_job("later", "photos", delayed_for=3600)
    return job


# --- status


def test_status_shows_the_queues_and_the_workers(command: Command, failed: Job) -> None:
    outcome = command("status")

    queues, workers = outcome.out.split("\n\n")
    assert [line.split("\t")[:7] for line in queues.splitlines()] == [
        ["queue", "prio", "waiting", "due", "delayed", "running", "errors"],
        ["mail", "3", "0", "0", "0", "0", "1"],
        ["mail", "0", "1", "0", "0", "0", "0"],
        ["photos", "0", "0", "0", "1", "0", "0"],
    ]
    assert workers.startswith("worker\thost\tpid\t")
    assert outcome.code == 0


def test_status_of_some_queues_shows_these(command: Command, failed: Job) -> None:
    found = command("status", "--json", "--queues=photos").json

    assert [(queue["name"], queue["delayed"], queue["paused"]) for queue in found["queues"]] == [("photos", 1, False)]
    assert found["workers"] == []


# --- jobs


def test_jobs_are_listed_the_newest_first(command: Command, failed: Job) -> None:
    assert [row[:5] for row in command("jobs").rows] == [
        ["limpyd_jobs.models.Job:3", "later", "delayed", "photos", "0"],
        ["limpyd_jobs.models.Job:2", "waiting", "waiting", "mail", "0"],
        ["limpyd_jobs.models.Job:1", "user:12:mail", "error", "mail", "3"],
    ]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("--status=error", ["user:12:mail"]),
        ("--status=e --status=waiting", ["waiting", "user:12:mail"]),
        ("--queues=photos", ["later"]),
        ("--queue=mail,photos", ["later", "waiting", "user:12:mail"]),
        ("--identifier=user:*", ["user:12:mail"]),
        ("--class=Job --queue=photos", ["later"]),
        ("--newer-than=1h --limit=1", ["later"]),
        ("--older-than=1h", []),
        ("--all", ["later", "waiting", "user:12:mail"]),
    ],
)
def test_jobs_are_found_by_what_is_asked(command: Command, failed: Job, arguments: str, expected: list[str]) -> None:
    assert [job["identifier"] for job in command("jobs", "--json", *arguments.split()).json["jobs"]] == expected


def test_a_job_in_json_has_its_status_as_a_letter_and_as_a_word(command: Command, failed: Job) -> None:
    [job] = command("jobs", "--json", "--status=error").json["jobs"]

    assert (job["status"], job["state"], job["ident"]) == ("e", "error", failed.ident)


def test_jobs_are_counted(command: Command, failed: Job) -> None:
    assert command("jobs", "--count", "--queues=mail").out == "2\n"
    assert command("jobs", "--count", "--json").json == {"count": 3}


def test_pages_follow_each_other(command: Command, failed: Job) -> None:
    first = command("jobs", "--json", "--limit=2").json
    second = command("jobs", "--json", "--limit=2", f"--after={first['next']}").json

    assert [job["identifier"] for job in first["jobs"] + second["jobs"]] == ["later", "waiting", "user:12:mail"]
    assert second["next"] is None


def test_that_there_are_more_pages_is_said_beside_the_table(command: Command, failed: Job) -> None:
    outcome = command("jobs", "--limit=1")

    following = command("jobs", "--json", "--limit=1").json["next"]
    assert outcome.err == f"There are more: --after={following}\n"
    assert len(outcome.rows) == 1


# --- show


@pytest.mark.parametrize("name", ["limpyd_jobs.models.Job:1", "1", "user:12:mail"])
def test_a_job_is_shown_by_each_of_its_names(command: Command, failed: Job, name: str) -> None:
    lines = command("show", name).out.splitlines()

    assert lines[0] == "limpyd_jobs.models.Job:1"
    assert "  status      error" in lines
    assert [line for line in lines if line.startswith("Error ") and line.endswith("SeeingRefused (452)")]
    assert "History" in lines and "Fields" in lines


def test_a_traceback_cannot_draw_on_the_terminal(command: Command, failed: Job) -> None:
    out = command("show", "1").out

    assert "\x1b" not in out
    assert '    raise SeeingRefused("try' in out and "SeeingRefused: try\\x1b[2J later" in out


def test_a_job_with_others_around_it_shows_them(command: Command, database: Any) -> None:
    parent = Job.add_job("first", "q")
    Job.add_job("second", "q", after=[parent])

    assert "  limpyd_jobs.models.Job:2  blocked second" in command("show", "first").out.splitlines()
    out = command("show", "second").out
    assert "Comes after\n  limpyd_jobs.models.Job:1  waiting first" in out
    assert "Waits for\n  limpyd_jobs.models.Job:1  waiting first" in out


def test_all_of_a_job_is_json(command: Command, failed: Job) -> None:
    found = command("show", "--json", "1").json

    assert found["record"]["state"] == "error"
    assert [error["code"] for error in found["errors"]] == ["452"]
    assert "SeeingRefused" in found["errors"][0]["traceback"]


# --- errors


def test_errors_are_listed(command: Command, failed: Job) -> None:
    [row] = command("errors").rows

    assert row[1:] == ["SeeingRefused", "452", "mail", "user:12:mail", failed.ident, "try\\x1b[2J later"]


@pytest.mark.parametrize(
    ("arguments", "count"),
    [
        ("--type=SeeingRefused --code=452", 1),
        ("--type=OSError", 0),
        ("--queues=mail --class=Job", 1),
        ("--identifier=user:*", 1),
        ("--since=1h", 1),
        ("--until=1h", 0),
        ("--since=2020 --until=2021-01-01", 0),
        ("--all", 1),
        ("--job=user:12:mail", 1),
        ("--job=waiting", 0),
        ("--job=gone.jobs.Job:5", 0),
        ("--group=000000000000", 0),
    ],
)
def test_errors_are_found_by_what_is_asked(command: Command, failed: Job, arguments: str, count: int) -> None:
    assert len(command("errors", "--json", *arguments.split()).json["errors"]) == count


def test_errors_are_grouped_by_where_they_come_from(command: Command, failed: Job) -> None:
    [group] = command("errors", "--groups", "--json").json["groups"]

    assert (group["type"], group["code"], group["count"], group["trend"]) == ("SeeingRefused", "452", 1, "up")
    assert group["place"].endswith("test_seeing.py:refuse")
    Error.add_error("photos", failed, OSError("another"))
    assert [row[1] for row in command("errors", f"--group={group['fingerprint']}").rows] == ["SeeingRefused"]
    Error.collection(type="OSError").instances()[0].delete()
    [row] = command("errors", "--groups").rows
    assert row[:4] == [group["fingerprint"], "1", "SeeingRefused", "452"]


def test_errors_are_counted_with_a_bar(command: Command, failed: Job) -> None:
    for number in range(3):
        Error.add_error("photos", failed, OSError(str(number)))

    assert command("errors", "--by=queue").out.splitlines() == [
        "queue\tcount\t",
        "photos\t3\t" + "#" * 40,
        "mail\t1\t" + "#" * 13,
    ]
    assert command("errors", "--by=type", "--json").json["counts"][0] == {"type": "OSError", "count": 3}
    assert [row[1] for row in command("errors", "--by=hour").rows] == ["4"]


def test_errors_are_csv_with_their_tracebacks(command: Command, failed: Job) -> None:
    [row] = csv.DictReader(io.StringIO(command("errors", "--csv").out))

    assert (row["type"], row["job"]) == ("SeeingRefused", failed.ident)
    assert row["traceback"].count("\n") > 3


@pytest.mark.parametrize(("arguments", "titles"), [("--groups", "fingerprint,count,"), ("--by=type", "type,count")])
def test_groups_and_counts_are_csv_too(command: Command, failed: Job, arguments: str, titles: str) -> None:
    lines = command("errors", "--csv", *arguments.split()).out.splitlines()

    assert lines[0].startswith(titles) and len(lines) == 2


# --- explain


def test_why_a_job_does_not_run_is_a_sentence_with_its_evidence(command: Command, failed: Job) -> None:
    lines = command("explain", "waiting").out.splitlines()
    found = command("explain", "waiting", "--json").json

    assert lines[0] == found["sentence"]
    assert lines[1].split() == ["reason", found["reason"]]
    assert found["ident"] == "limpyd_jobs.models.Job:2"


def test_nothing_that_is_seen_is_changed(command: Command, failed: Job) -> None:
    def records() -> dict[str, dict[str, str]]:
        client = Queue.get_connection()
        return {key: client.hgetall(key) for key in client.keys("jobs:*:hash")}

    before = records()

    for arguments in ("status", "jobs", "show 1", "errors --groups", "explain 2", "workers", "jobs --json"):
        assert command(*arguments.split()).code == 0

    assert records() == before
