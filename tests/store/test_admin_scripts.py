"""The scripts that stand behind acting on jobs and the repair: each of their replies."""

from __future__ import annotations

from typing import Any

import pytest

from limpyd_jobs import STATUSES, Job, Queue, recipes, transitions
from limpyd_jobs.exceptions import JobChanged
from limpyd_jobs.transitions import Delay, Hold, Past, seen_as

pytestmark = pytest.mark.usefixtures("database")


class AdminScriptJob(Job):
    """Of its own class, so that nothing else is in the way."""

    queue_name = "scripts"


def send(call: transitions.Call[Any]) -> Any:
    return transitions.send(Queue.get_connection(), call)


def raw(call: transitions.Call[Any]) -> Any:
    return send(transitions.Call(call.script, call.keys, call.args, lambda reply: reply))


# --- as it was read: requeue, move, cancel


def moving(kind: str, job: Any, seen: str) -> transitions.Call[Any]:
    Queue.get_queue("scripts")
    subject, target = job._subject(), Queue._target_for_jobs("scripts", 0)
    if kind == "cancel":
        return transitions.cancel(subject, "jobs", recipes.queue_recipe(Queue), "canceled", seen)
    if kind == "move":
        return transitions.move(subject, target, True, False, Delay(), "", Hold(), seen)
    return transitions.requeue(subject, target, True, Delay(), "", Hold(), "w", seen)


@pytest.mark.parametrize("kind", ["requeue", "move", "cancel"])
@pytest.mark.parametrize("seen", ["e=2026-01-01 00:00:00", "w=2026-01-01 00:00:00", "="])
def test_a_job_that_is_not_as_it_was_read_is_left_alone(kind: str, seen: str) -> None:
    job = AdminScriptJob.add_job("a")
    before = job.hmget("status", "queued", "queue_key")

    with pytest.raises(JobChanged):
        send(moving(kind, job, seen))

    assert job.hmget("status", "queued", "queue_key") == before
    assert raw(moving(kind, job, seen)) == ["CHANGED", "w"]


@pytest.mark.parametrize("kind", ["move", "cancel"])
@pytest.mark.parametrize("seen", ["", "w="])
def test_a_job_that_is_as_it_was_read_is_acted_on(kind: str, seen: str) -> None:
    job = AdminScriptJob.add_job("a", "other")

    send(moving(kind, job, seen))

    assert Queue.count_waiting_jobs("other") == 0


def test_a_cancel_that_is_sent_again_is_answered_as_the_first_time() -> None:
    job = AdminScriptJob.add_job("a")

    assert [raw(moving("cancel", job, "w=")), raw(moving("cancel", job, "w="))] == [["CANCELED"], ["CANCELED"]]


def test_a_requeue_that_is_sent_again_is_answered_as_the_first_time() -> None:
    job = AdminScriptJob.add_job("a")
    job.cancel()
    job.hmset(status="e", end="2026-01-01 00:00:00")
    seen = seen_as("e", "2026-01-01 00:00:00")

    assert raw(moving("requeue", job, seen)) == raw(moving("requeue", job, seen)) == ["OK", "jobs:queue:1", "0", ""]
    assert Queue.count_waiting_jobs("scripts") == 1


# --- remove


def removing(job: Any, *, values: dict[str, Any] | None = None, errors: bool = True, **more: Any) -> Any:
    known = recipes.removal(AdminScriptJob, job.pk.get(), {"status": job.status.hget()})
    what = {**known, "identifier": "a", "queue_key": "jobs:queue:1"}
    past = Past(job.ident, what, [], values or {})
    return send(transitions.remove("jobs", recipes.queue_recipe(Queue), [(past, errors)], **more))[0]


def test_remove_answers_what_it_did() -> None:
    job = AdminScriptJob.add_job("a")

    assert removing(job, values={"status": "d"}) == ["CHANGED"]
    assert removing(job, errors=False) == ["MORE"]
    assert removing(job, values={"status": "w"}) == ["REMOVED"]
    assert removing(AdminScriptJob.from_pk("1")) == ["GONE"]
    assert Queue.count_waiting_jobs("scripts") == 0


def test_remove_refuses_a_job_that_a_process_has_unless_it_is_forced() -> None:
    job = AdminScriptJob.add_job("a")
    client = Queue.get_connection()
    client.zadd("jobs:leases", {job.ident: 99999999999})
    client.hset("jobs:claims", mapping={job.ident: "t", "t": job.ident})

    assert removing(job) == ["RUNNING"]
    assert removing(job, is_forced=True) == ["REMOVED"]
    assert client.hgetall("jobs:claims") == {}


def test_remove_spares_who_has_children_that_have_yet_to_run() -> None:
    parent = AdminScriptJob.add_job("a")
    AdminScriptJob.add_job("b", after=parent)
    parent.status.hset(STATUSES.SUCCESS)

    assert removing(parent, spares=True) == ["NEEDED"]


# --- settle, note_queue


def test_settle_answers_what_it_would_do_and_does_just_that() -> None:
    job = AdminScriptJob.add_job("a")
    client = Queue.get_connection()

    def settle(*steps: str) -> list[str]:
        found: list[str] = raw(transitions.settle("jobs", job.ident, steps, []))
        return found

    assert settle() == ["FINE"]
    client.delete("jobs:queue:1:waiting")
    assert settle() == settle("leave somewhere") == ["PLAN", "enter jobs:queue:1"]
    assert settle("enter jobs:queue:1") == ["DONE"]
    assert settle("enter jobs:queue:1") == ["FINE"]
    assert Queue.count_waiting_jobs("scripts") == 1


def test_settle_leaves_its_lease_to_a_job_that_is_executed_and_canceled_meanwhile() -> None:
    found: list[Any] = []

    class CanceledAtOnceJob(AdminScriptJob):
        def run(self, queue: Any) -> None:
            self.cancel()
            found.append(raw(transitions.settle("jobs", self.ident, [], [])))

    CanceledAtOnceJob.execute_now("a")

    assert found == [["FINE"]]


@pytest.mark.parametrize("ident", ["nosuch.Class:1", "nothing"])
def test_settle_says_that_it_does_not_know_a_class(ident: str) -> None:
    assert send(transitions.settle("jobs", ident, [], [])).kind == "UNKNOWN"


def test_note_queue_says_whether_something_is_wrong_and_writes_only_when_it_is_meant() -> None:
    AdminScriptJob.add_job("a")
    client = Queue.get_connection()

    def note(is_meant: bool) -> str:
        [kind] = raw(transitions.note_queue("jobs", "jobs:queue", "1", is_meant))
        return str(kind)

    assert note(False) == "FINE"
    client.delete("jobs:ready:queue:scripts")
    assert [note(False), note(False), note(True), note(True)] == ["WRONG", "WRONG", "WRONG", "FINE"]
    assert client.zscore("jobs:ready:queue:scripts", "1") == 0
