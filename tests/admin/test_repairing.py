"""The books are broken by hand in every way, and repaired: then they are right, and each job runs once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from limpyd import fields
from limpyd.indexes import NumberRangeIndex, TextRangeIndex

from limpyd_jobs import STATUSES, Job, Queue, Worker, admin
from limpyd_jobs.admin import Repair
from limpyd_jobs.fields import InstanceHashField

pytestmark = pytest.mark.usefixtures("database")

NAME = f"{__name__}.RepairJob"


class RepairJob(Job):
    """Counts its runs; with an index of each kind."""

    queue_name = "repair"
    size = InstanceHashField(indexable=True, indexes=[NumberRangeIndex])
    title = InstanceHashField(indexable=True, indexes=[TextRangeIndex])
    tags = fields.SetField(indexable=True)

    def run(self, queue: Any) -> None:
        self.connection.hincrby("test:repaired", self.pk.get(), 1)


def client() -> Any:
    return Queue.get_connection()


def do(*commands: str) -> None:
    for command in commands:
        words = [{"PAUSED": ""}.get(word, word) for word in command.replace("IDENT", NAME).split()]
        client().execute_command(*(word.replace("~", " ") for word in words))


def run_all() -> dict[str, str]:
    """How often each job ran, when all have."""
    worker = Worker(["repair"], burst=True, terminate_gracefully=False, logger_level=100, lease_seconds=30)
    worker._recover_lapsed()
    worker.run()
    found: dict[str, str] = client().hgetall("test:repaired")
    return found


def problems() -> list[str]:
    return [str(problem) for problem in admin.check()]


def texts(repairs: list[Repair]) -> str:
    return " / ".join(repair.text for repair in repairs)


WAITING = "rpush jobs:queue:1:waiting IDENT:1"

# What is broken of a job that waits, and what is said of its repair.
BROKEN: dict[str, tuple[list[str], str]] = {
    "its entry is gone": (["lrem jobs:queue:1:waiting 0 IDENT:1"], "head of its queue"),
    "it is there twice": ([WAITING], "its entry in jobs:queue:1:waiting goes"),
    "it is there three times": ([WAITING, WAITING], "its entry in jobs:queue:1:waiting goes"),
    "it is in two places": (["zadd jobs:queue:1:delayed 1 IDENT:1"], "jobs:queue:1:delayed goes"),
    "it is in two queues": (["rpush jobs:queue:2:waiting IDENT:1", "zadd jobs:ready:queue:other 0 2"], "queue:2"),
    "it is in another queue": (
        [
            "lrem jobs:queue:1:waiting 0 IDENT:1",
            "rpush jobs:queue:2:waiting IDENT:1",
            "zadd jobs:ready:queue:other 0 2",
        ],
        "its record says that it is in jobs:queue:2",
    ),
    "it is delayed and says that it waits": (
        ["lrem jobs:queue:1:waiting 0 IDENT:1", "zadd jobs:queue:1:delayed 1000 IDENT:1"],
        "its status becomes DELAYED",
    ),
    "it is not marked": (["hdel jobs:repairjob:1:hash queued", "srem jobs:repairjob:queued:1 1"], "marked as queued"),
    "it says that it runs": (
        ["hset jobs:repairjob:1:hash status r", "smove jobs:repairjob:status:w jobs:repairjob:status:r 1"],
        "its status becomes WAITING",
    ),
    "it says that it runs, and is nowhere": (
        [
            "hset jobs:repairjob:1:hash status r",
            "smove jobs:repairjob:status:w jobs:repairjob:status:r 1",
            "lrem jobs:queue:1:waiting 0 IDENT:1",
        ],
        "a lease that has lapsed",
    ),
    "it has no status": (
        ["hdel jobs:repairjob:1:hash status", "srem jobs:repairjob:status:w 1"],
        "its status becomes WAITING",
    ),
    "it has a status that is none": (
        ["hset jobs:repairjob:1:hash status x", "smove jobs:repairjob:status:w jobs:repairjob:status:x 1"],
        "its status becomes WAITING",
    ),
    "it is leased too, without a token": (["zadd jobs:leases 99999999999 IDENT:1"], "its lease goes"),
    "a token is noted": (["hset jobs:claims lost IDENT:1"], "the token lost"),
    "a lease is noted, and there is none": (["hset jobs:claims IDENT:1 lost lost IDENT:1"], "its lease goes"),
    "it is in no collection": (["srem jobs:repairjob:collection 1"], "is put into jobs:repairjob:collection"),
    "an entry of an index is gone": (["srem jobs:repairjob:status:w 1"], "its entry '1'"),
    "one of numbers is": (["zrem jobs:repairjob:size:number-range 1"], "its entry '1'"),
    "a number is wrong": (["zadd jobs:repairjob:size:number-range 8 1"], "its entry '1'"),
    "one of many values is gone": (["srem jobs:repairjob:tags:red 1"], "its entry '1'"),
    "one of many values is too many": (["sadd jobs:repairjob:tags:blue 1"], "its entry '1'"),
    "an index has one that is nobody's": (["sadd jobs:repairjob:status:s 1 77"], "its entry '77'"),
    "its queue is not noted": (["del jobs:ready:queue:repair"], "whether jobs wait"),
    "its queue is noted with another priority": (["zadd jobs:ready:queue:repair 5 1"], "whether jobs wait"),
    "a limit is noted": (
        ['hset jobs:limits:jobs IDENT:1 {"state":"held","key":"k"}', "zadd jobs:limit:k:held 1 IDENT:1"],
        "counts under the limit k no more",
    ),
    "a place of a limit is claimed": (["hset jobs:claims *IDENT:1 1"], ""),
    "it is noted as parked": (
        ['hset jobs:limits:jobs IDENT:1 {"state":"parked","key":"k","number":"7","queue":"jobs:queue:1","limits":{}}'],
        "noted as parked",
    ),
    "it is parked, and not noted so": (
        [
            "zadd jobs:limit:k:parked 0 0000000000000007~IDENT:1",
            "lrem jobs:queue:1:waiting 0 IDENT:1",
            "zadd jobs:limits:due 1 k",
        ],
        "",
    ),
    "an entry has no record": (["rpush jobs:queue:1:waiting IDENT:99"], "its entry in jobs:queue:1:waiting goes"),
    "a lease has no record": (
        ["zadd jobs:leases 99999999999 IDENT:99", "hset jobs:claims IDENT:99 lost lost IDENT:99"],
        "its lease goes",
    ),
    "a rest of a record is left": (["hset jobs:repairjob:99:hash progress x"], "what is left of a record"),
    "a field of a record is left": (["sadd jobs:repairjob:99:tags red"], "what is left of a record"),
    "a key of a queue name is left": (["zadd jobs:ready:queue:nosuch 1 1"], "no queue of the name 'nosuch'"),
    "a pause is half written": (["zadd jobs:ready:queue:other inf PAUSED"], "it is paused, and noted so"),
    "a pause is half noted": (["hset jobs:paused queue:other {}"], "it is paused, and noted so"),
    "a note never expires": (["set jobs:done:forgotten x"], "this one never would"),
}


def make_books() -> tuple[Any, Any]:
    job = RepairJob.add_job("a", size=3, title="t", tags=["red"])
    other = RepairJob.add_job("b")
    Queue.get_queue("other")
    assert problems() == []
    return job, other


@pytest.mark.parametrize("how", sorted(BROKEN))
def test_what_is_broken_is_repaired_and_each_job_runs_once(how: str) -> None:
    commands, said = BROKEN[how]
    make_books()
    do(*commands)
    assert how == "a place of a limit is claimed" or problems()

    repairs = admin.repair()

    assert problems() == []
    assert said in texts(repairs)
    assert all(repair.is_done for repair in repairs)
    assert admin.repair() == []
    admin.resume("other")
    Queue.get_queue("other").name.hset("repair")
    make_due()
    assert run_all() == {"1": "1", "2": "1"}


def make_due() -> None:
    for ident in client().zrange("jobs:queue:1:delayed", 0, -1):
        client().zadd("jobs:queue:1:delayed", {ident: 1000})


def test_two_that_are_queued_under_one_identifier_become_one() -> None:
    make_books()
    RepairJob.get("2").identifier.hset("a")
    [problem] = admin.check()

    [repair] = admin.repair([problem])

    assert (problem.kind, repair.is_done) == ("identifier", True)
    assert RepairJob.get("2").hmget("status", "cancel_reason") == [STATUSES.CANCELED, "queued twice"]
    assert problems() == []
    assert run_all() == {"1": "1"}


EDGES: dict[str, Callable[[], Any]] = {
    "does not know it": lambda: client().srem("jobs:repairjob:1:children", f"{NAME}:2"),
    "tells nobody": lambda: client().hset("jobs:repairjob:1:hash", "follow_up", ""),
    "waits for none": lambda: client().delete("jobs:repairjob:2:waits_for"),
}


@pytest.mark.parametrize("how", sorted(EDGES))
def test_a_job_that_waits_for_another_runs_after_the_repair(how: str) -> None:
    parent = RepairJob.add_job("a")
    RepairJob.add_job("b", after=parent)
    EDGES[how]()
    assert problems()

    admin.repair()

    assert problems() == []
    assert run_all() == {"1": "1", "2": "1"}


def test_a_job_that_waits_for_one_that_has_ended_is_told() -> None:
    parent = RepairJob.add_job("a")
    RepairJob.add_job("b", after=parent)
    client().srem("jobs:repairjob:1:children", f"{NAME}:2")
    run_all()

    repairs = admin.repair()

    assert "it is told that" in texts(repairs)
    assert problems() == []
    assert run_all() == {"1": "1", "2": "1"}


def test_a_job_whose_queue_is_gone_is_left_with_the_reason() -> None:
    make_books()
    client().delete("jobs:queue:1:waiting", "jobs:queue:1:hash")

    repairs = [repair for repair in admin.repair() if not repair.is_possible]

    assert {repair.problem.subject for repair in repairs} == {f"{NAME}:1", f"{NAME}:2"}
    assert "its queue, jobs:queue:1, is gone" in texts(repairs)


def test_a_key_that_may_be_that_of_a_user_stays() -> None:
    client().set("jobs:mine", "x")

    [repair] = admin.repair()

    assert (repair.is_possible, repair.is_done) == (False, False)
    assert client().get("jobs:mine") == "x"


def test_the_jobs_of_a_class_that_is_not_known_here_are_left_alone() -> None:
    make_books()
    text = client().hget("jobs:models", NAME).replace("repairjob", "elsewhere").replace("RepairJob", "Elsewhere")
    client().hset("jobs:models", "shop.Elsewhere", text)
    do("hset jobs:elsewhere:1:hash status w", "rpush jobs:queue:1:waiting shop.Elsewhere:1")
    before = client().dbsize()

    [repair] = admin.repair()

    assert (repair.problem.kind, repair.problem.subject, repair.is_possible) == ("class", "shop.Elsewhere", False)
    assert client().dbsize() == before


def test_what_is_refused_is_not_made_and_not_asked_again() -> None:
    make_books()
    do("srem jobs:repairjob:status:w 1", WAITING)
    before, asked = problems(), list[Repair]()

    def refuse(repair: Repair) -> bool:
        asked.append(repair)
        return False

    assert admin.repair(on_repair=refuse) == []

    assert problems() == before
    assert len(asked) == len(before)


def test_what_has_changed_between_the_question_and_the_answer_is_not_made() -> None:
    make_books()
    do("lrem jobs:queue:1:waiting 0 IDENT:1")

    def accept(repair: Repair) -> bool:
        do(WAITING)
        return True

    assert admin.repair(on_repair=accept) == []

    assert problems() == []
    assert run_all() == {"1": "1", "2": "1"}


def test_nothing_is_repaired_while_workers_work() -> None:
    workers = [
        Worker(["repair"], burst=True, terminate_gracefully=False, logger_level=100, prefetch=prefetch)
        for prefetch in (1, 5)
    ]
    RepairJob.add_jobs(str(number) for number in range(300))
    threads = [threading.Thread(target=worker.run, daemon=True) for worker in workers]
    asked: list[Repair] = []

    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        assert admin.repair(on_repair=lambda repair: not asked.append(repair)) == []

    assert asked == []
    assert problems() == []
    assert set(run_all().values()) == {"1"}


@pytest.mark.parametrize("key", ["jobs:repairjob:1:hash", "jobs:queue:1:hash"])
def test_a_record_of_another_type_is_told_of_and_left_alone(key: str) -> None:
    make_books()
    client().delete(key)
    client().set(key, "x")

    [found] = admin.check()
    [repair] = admin.repair()

    assert (found.kind, found.subject) == ("key", key) and not repair.is_possible
    assert client().get(key) == "x"
