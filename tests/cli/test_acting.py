"""add, requeue, cancel, move, delete, purge."""

from __future__ import annotations

from typing import Any

import pytest

from limpyd_jobs import STATUSES, Error, Job, Queue, Worker, admin

from .support import Command


def fail(job: Any, queue: Any) -> None:
    raise OSError("no")


def add_failed(count: int, queue: str = "mail") -> list[Job]:
    jobs = [Job.add_job(f"{queue}:{number}", queue) for number in range(count)]
    Worker(queues=queue, callback=fail, max_loops=count, save_tracebacks=False).run()
    return jobs


def states(jobs: list[Job]) -> list[str]:
    return [STATUSES.by_value(job.status.hget(), "gone") for job in jobs]


# --- add


def test_a_job_is_added(command: Command) -> None:
    outcome = command("add", "limpyd_jobs.models.Job", "user:12", "--queue=mail", "--priority=5", "--delayed-for=10m")

    job = Job.get_from_ident(outcome.out.strip())
    assert (job.identifier.hget(), job.priority.hget(), states([job])) == ("user:12", "5", ["DELAYED"])


def test_a_class_that_cannot_be_had_is_told_of(command: Command) -> None:
    outcome = command("add", "nosuch.module.Job", "a", "--queue=mail")

    assert outcome.code == 1
    assert outcome.err.startswith("limpyd-jobs: Unable to find the job class of")


def test_a_job_is_added_at_a_time_or_before_others(command: Command) -> None:
    command("add", "Job", "last", "--queue=q")
    command("add", "Job", "first", "--queue=q", "--prepend")
    later = command("--json", "add", "Job", "later", "--queue=q", "--delayed-until=2099-01-01 12:00").json["ident"]

    assert [Job.get_from_ident(one).identifier.hget() for one in Queue.get_queue("q").waiting.lmembers()] == [
        "first",
        "last",
    ]
    assert Job.get_from_ident(later).delayed_until.hget() == "2099-01-01 12:00:00"


# --- one


def test_one_job_is_requeued_without_a_question(command: Command) -> None:
    [job] = add_failed(1)

    outcome = command("requeue", "mail:0", "--to=retries", "--priority=7")

    assert (outcome.code, outcome.out) == (0, f"{job.ident} requeued\n")
    assert Queue.get_queue("retries", 7).waiting.lmembers() == [job.ident]


def test_one_job_is_canceled_with_a_reason(command: Command) -> None:
    job = Job.add_job("a", "q")

    assert command("cancel", job.ident, "--reason=not wanted").out == f"{job.ident} canceled\n"
    assert job.cancel_reason.hget() == "not wanted"


def test_a_job_that_has_ended_cannot_be_canceled(command: Command) -> None:
    [job] = add_failed(1)

    outcome = command("cancel", job.ident)

    assert (outcome.code, outcome.out) == (1, "")
    assert outcome.err == f"limpyd-jobs: {job.ident} has ended already\n"


def test_one_job_is_moved(command: Command) -> None:
    job = Job.add_job("a", "q")

    assert command("move", "a", "--to=other").out == f"{job.ident} moved\n"
    assert Queue.get_queue("other").waiting.lmembers() == [job.ident]


def test_one_job_is_deleted(command: Command) -> None:
    [job] = add_failed(1)

    assert command("delete", "1").out == f"{job.ident} deleted\n"
    assert admin.check() == [] and len(Error.collection()) == 0 and not Job.exists(pk=1)


def test_what_cannot_be_done_to_one_does_not_keep_it_from_the_others(command: Command) -> None:
    [failed] = add_failed(1)
    waiting = Job.add_job("waiting", "mail")

    outcome = command("requeue", "nosuch", waiting.ident, failed.ident, "--yes")

    assert outcome.code == 1
    assert outcome.out == f"{failed.ident} requeued\n"
    lines = outcome.err.splitlines()
    assert [line.partition(": ")[0] for line in lines] == ["limpyd-jobs"] * 2
    assert "'nosuch'" in lines[0] and waiting.ident in lines[1]


def test_several_jobs_that_are_named_are_asked_for(command: Command) -> None:
    jobs = add_failed(2)

    outcome = command("requeue", *(job.ident for job in jobs))

    assert outcome.code == 2
    assert outcome.err == "limpyd-jobs requeue: Requeue 2 jobs? There is no terminal to ask at: give --yes.\n"
    assert states(jobs) == ["ERROR"] * 2


# --- many


@pytest.mark.parametrize(
    ("arguments", "question"),
    [
        ("requeue --queue=mail --older-than=0", "Requeue 2 jobs (queue mail, older than 0s)?"),
        ("cancel --queue=photos,nosuch --status=waiting", "Cancel 1 job (status waiting, queue photos or nosuch)?"),
        ("delete --all", "Delete 3 jobs?"),
        ("move --identifier=w* --to=other", "Move 1 job (identifier w*)?"),
        ("purge --older-than=0 --queue=mail", "Purge 2 jobs (status success or error or canceled, queue mail)?"),
        ("purge --older-than=0 --errors", "Purge 2 errors?"),
    ],
)
def test_without_a_terminal_many_are_not_changed_unasked(command: Command, arguments: str, question: str) -> None:
    jobs = [*add_failed(2), Job.add_job("waiting", "photos")]

    outcome = command(*arguments.split())

    assert outcome.code == 2
    assert outcome.err.endswith(f": {question} There is no terminal to ask at: give --yes.\n")
    assert states(jobs) == ["ERROR", "ERROR", "WAITING"]
    assert admin.operations() == []


def test_a_dry_run_says_how_many_and_does_nothing(command: Command) -> None:
    jobs = add_failed(2)

    outcome = command("requeue", "--all", "--dry-run")

    assert (outcome.code, outcome.out) == (0, "2 jobs would be requeued\n")
    assert command("--json", "purge", "--older-than=0", "--dry-run").json["count"] == 2
    assert states(jobs) == ["ERROR"] * 2 and admin.operations() == []


def test_all_that_a_filter_finds_are_requeued(command: Command) -> None:
    jobs, others = add_failed(3), add_failed(1, "photos")

    outcome = command("requeue", "--queue=mail", "--to=again", "--rate=6000/m", "--yes")

    assert (outcome.code, outcome.out) == (0, "3 jobs requeued\n")
    assert states(jobs + others) == ["WAITING"] * 3 + ["ERROR"]
    assert Queue.count_waiting_jobs("again") == 3
    assert admin.operations() == []


def test_what_was_done_to_many_is_json(command: Command) -> None:
    add_failed(2)

    found = command("requeue", "--all", "--yes", "--json").json

    assert found.pop("operation")
    assert found == {"kind": "requeue", "dry_run": False, "count": 2, "done": 2, "skipped": {}}


def test_what_could_not_be_done_to_some_is_told(command: Command) -> None:
    jobs = add_failed(2)
    Job.add_job("mail:0", "mail")  # its identifier is queued

    outcome = command("requeue", "--all", "--yes")

    assert outcome.code == 1
    assert outcome.out == "1 job requeued\n"
    assert "1 job skipped: " in outcome.err
    assert sorted(states(jobs)) == ["ERROR", "WAITING"]


def test_nothing_to_do_is_no_question(command: Command) -> None:
    outcome = command("requeue", "--all")

    assert (outcome.code, outcome.out) == (0, "0 jobs requeued\n")


@pytest.mark.parametrize(
    ("arguments", "done", "left"),
    [
        ("cancel --all --reason=storm", "2 jobs canceled", ["ERROR", "CANCELED", "CANCELED"]),
        ("move --queue=photos --priority=4", "1 job moved", ["ERROR", "WAITING", "DELAYED"]),
        ("delete --status=waiting", "1 job deleted", ["ERROR", "gone", "DELAYED"]),
        ("purge --older-than=0", "1 job removed", ["gone", "WAITING", "DELAYED"]),
        ("purge --older-than=0 --status=success", "0 jobs removed", ["ERROR", "WAITING", "DELAYED"]),
        ("purge --older-than=1h", "0 jobs removed", ["ERROR", "WAITING", "DELAYED"]),
        ("purge --older-than=0 --errors", "1 error removed", ["ERROR", "WAITING", "DELAYED"]),
    ],
)
def test_each_kind_is_done_to_many(command: Command, arguments: str, done: str, left: list[str]) -> None:
    jobs = [*add_failed(1), Job.add_job("a", "photos"), Job.add_job("b", "later", delayed_for=100)]

    outcome = command(*arguments.split(), "--yes")

    assert (outcome.code, outcome.out) == (0, f"{done}\n")
    assert [
        STATUSES.by_value(Queue.get_connection().hget(f"jobs:job:{job.pk.get()}:hash", "status"), "gone")
        for job in jobs
    ] == left
    assert admin.check() == []


# --- what was interrupted


def interrupted(monkeypatch: pytest.MonkeyPatch, error: BaseException, after: int) -> None:
    """Let the run of the next operation be interrupted, when it has come to so many jobs."""
    from limpyd_jobs.admin import Operation

    run = Operation.run

    def broken(self: Operation, rate: Any = None, on_progress: Any = None) -> Operation:
        def stop(done: int, count: int) -> None:
            on_progress(done, count)
            if done >= after:
                raise error

        return run(self, rate, stop)

    monkeypatch.setattr(Operation, "run", broken)


def test_an_interruption_says_how_to_go_on_and_that_does_the_rest(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = add_failed(5)
    with monkeypatch.context() as patched:
        interrupted(patched, KeyboardInterrupt(), after=2)
        outcome = command("requeue", "--all", "--yes", "--rate=1000/s")
    [operation] = admin.operations()

    assert outcome.code == 130
    assert f"Go on with: limpyd-jobs requeue --resume {operation.id}\n" in outcome.err
    assert "WAITING" in states(jobs) and "ERROR" in states(jobs)
    after = command("requeue", "--resume", operation.id)
    assert (after.code, after.out) == (0, "5 jobs requeued\n")
    assert states(jobs) == ["WAITING"] * 5 and len(Queue.get_queue("mail").waiting.lmembers()) == 5
    assert admin.operations() == []


def test_an_operation_that_is_not_there_cannot_be_resumed(command: Command) -> None:
    outcome = command("requeue", "--resume", "nosuch")

    assert outcome.code == 2
    assert "'nosuch'" in outcome.err


def test_a_dry_run_keeps_an_operation_that_can_be_resumed(command: Command) -> None:
    add_failed(1)
    operation = admin.start_operation("requeue", admin.JobFilter())

    assert command("requeue", "--resume", operation.id, "--dry-run").out == "1 job would be requeued\n"
    assert [one.id for one in admin.operations()] == [operation.id]


def test_an_operation_of_another_kind_is_not_resumed(command: Command) -> None:
    add_failed(1)
    operation = admin.start_operation("requeue", admin.JobFilter())

    outcome = command("delete", "--resume", operation.id)

    assert outcome.code == 2
    assert f"'{operation.id}' is a requeue" in outcome.err
