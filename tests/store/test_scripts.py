"""Each script: its header against its builder, and each of its replies."""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from typing import Any

import pytest
from limpyd import fields
from limpyd.exceptions import DoesNotExist, UniquenessError
from redis.exceptions import ResponseError

from limpyd_jobs import STATUSES, Job, Queue, admin, lua, recipes, transitions
from limpyd_jobs.additions import first
from limpyd_jobs.exceptions import JobAlreadyExists, JobAlreadyQueued, JobNotInStatus, LeaseLost, WrongKeyType
from limpyd_jobs.transitions import Addition, Claim, Delay, Hold
from limpyd_jobs.utils import datetime_to_score, utcnow

NOW = "2026-01-01 00:00:00"


class ScriptJob(Job):
    """A plain job of these tests."""

    code = fields.InstanceHashField(indexable=True, unique=True)


class PlainJob(Job):
    """One that exchange.lua knows a quick way for."""


class KeyedQueue(Queue):
    """A queue whose primary key is the program's."""

    code = fields.PKField()


def send(call: transitions.Call[Any]) -> Any:
    return transitions.send(Job.database.connection, call)


def raw(call: transitions.Call[Any]) -> Any:
    """The reply of the script itself."""
    read = (lambda replies: replies[0]) if call.script == "add" else lambda reply: reply
    return send(transitions.Call(call.script, call.keys, call.args, read, call.made_for))


def target(name: str = "q", priority: int = 0) -> transitions.Target:
    found: transitions.Target = Queue._target(name, priority)[0]
    return found


def add_call(identifier: str = "a", name: str = "q", priority: int = 0, **more: Any) -> transitions.Call[Any]:
    values = {"identifier": identifier, "priority": str(priority), **more.pop("values", {})}
    record = recipes.Record(ScriptJob, values)
    prepend, delay, hold = more.pop("prepend", False), more.pop("delay", Delay()), more.pop("hold", Hold())
    one = Addition(target(name, priority), identifier, record.hash, record.sets, record.rest, prepend, delay, hold)
    return transitions.then(transitions.add(ScriptJob._class_subject(), [one]), first)


def claim_call(token: str = "w-1", names: tuple[str, ...] = ("q",), lease_seconds: float = 30, **more: Any) -> Any:
    return transitions.claim("jobs", "jobs:queue", token, token.split("-")[0], lease_seconds, NOW, names, **more)


def claim(token: str = "w-1", **more: Any) -> Claim:
    held = send(claim_call(token, **more)).claim
    assert held is not None
    return held


NOT_ALLOWED = (
    "the module {0} is not imported, and may not be: allow it with --job-modules={0}, or import it in the worker"
)


def recover_call(max_recoveries: int = 3) -> transitions.Call[Any]:
    return transitions.recover("jobs", "jobs:queue", "r", "recoverer", 30, max_recoveries)


def lapse() -> None:
    """Let all leases lapse."""
    client = Job.database.connection
    for ident in client.zrange("jobs:leases", 0, -1):
        client.zadd("jobs:leases", {ident: 1})


@pytest.fixture(autouse=True)
def books(database: Any) -> Any:
    """After each test no key is without an owner, and the invariants hold."""
    yield
    assert [str(problem) for problem in admin.check()] == []


CALLER = transitions.Caller("jobs", "jobs:queue", "w", 30.0, 3, False, ("q",))

SAMPLES = {
    "add": lambda: add_call(),
    "add_alike": lambda: transitions.add_alike("", target(), False, ["a", NOW]),
    "get_queue": lambda: transitions.get_queue(target()),
    "create": lambda: transitions.create("jobs:job", "{}"),
    "write": lambda: transitions.write("jobs:job:1:hash", "{}", "1", True, "hset", ["status", "w"]),
    "claim": lambda: claim_call(),
    "exchange": lambda: transitions.exchange(CALLER, [], 1, 1, NOW),
    "begin": lambda: transitions.begin("jobs", Claim("a:1", "t", "w", "jobs:queue:1"), NOW),
    "finish": lambda: transitions.finish("jobs", Claim("a:1", "t", "w", "jobs:queue:1"), NOW),
    "fail": lambda: transitions.fail("jobs", Claim("a:1", "t", "w", "jobs:queue:1"), NOW, 1, ""),
    "execute": lambda: transitions.execute("jobs", ScriptJob._class_subject(), "t", 30, "{}"),
    "retry": lambda: transitions.retry("jobs", Claim("a:1", "t", "w", ""), "t-2", NOW),
    "update": lambda: transitions.update("jobs", ScriptJob._class_subject("1"), "t", "{}"),
    "skip": lambda: transitions.skip("jobs", Claim("a:1", "t", "w", "jobs:queue:1")),
    "move": lambda: transitions.move(ScriptJob._class_subject("1"), target(), False, False, Delay(), "", Hold()),
    "cancel": lambda: transitions.cancel(ScriptJob._class_subject("1"), "jobs", "{}", "canceled"),
    "follow_up": lambda: transitions.follow_up("jobs"),
    "workflow": lambda: transitions.workflow("jobs", [ScriptJob._class_subject()], [target()], [{}]),
    "requeue": lambda: transitions.requeue(ScriptJob._class_subject("1"), target(), False, Delay(), "", Hold(), "w"),
    "place": lambda: transitions.place(ScriptJob._class_subject("1"), "jobs", "{}", "1", False, Delay(), ""),
    "promote": lambda: transitions.promote("jobs", "jobs:queue", "1"),
    "recover": lambda: recover_call(),
    "renew": lambda: transitions.renew("jobs", ()),
    "release": lambda: transitions.release("jobs", "jobs:queue", ["t"]),
    "purge": lambda: transitions.purge("jobs", "jobs:queue:1", "success", [transitions.Past("a:1", None, [])]),
    "forget": lambda: transitions.forget("jobs", [(transitions.Past("a:1", {}, []), True)]),
    "remove": lambda: transitions.remove("jobs", "{}", [(transitions.Past("a:1", {}, []), True)]),
    "roll_up": lambda: transitions.roll_up("jobs"),
    "settle": lambda: transitions.settle("jobs", "a:1", [], []),
    "note_queue": lambda: transitions.note_queue("jobs", "jobs:queue", "1", False),
    "watch": lambda: transitions.watch("jobs", [("jobs:job:1:hash", True)]),
    "look": lambda: transitions.look("jobs", ["jobs:ready:queue:q"], ["jobs:job:1:hash"]),
    "reject": lambda: transitions.reject("jobs", "jobs:queue:1", "a:1", "", NOW),
    "pause": lambda: transitions.pause("jobs", "jobs:queue", "q", "why", "who"),
    "resume": lambda: transitions.resume("jobs", "jobs:queue", "q"),
    "note_worker": lambda: transitions.note_worker("jobs", "{}", "w", 15, {"host": "here"}),
    "register": lambda: transitions.register("jobs", ScriptJob._class_subject()),
}


def test_each_script_has_a_sample() -> None:
    assert set(SAMPLES) == set(lua.NAMES)


@pytest.mark.parametrize("name", sorted(SAMPLES))
def test_the_header_of_a_script_names_what_its_builder_sends(name: str) -> None:
    call = SAMPLES[name]()
    header = (lua.FOLDER / f"{name}.lua").read_text()

    found = {kind: re.search(rf"^-- {kind}: (.*)$", header, re.MULTILINE) for kind in ("KEYS", "ARGV")}

    assert header.startswith(f"-- {name}: ")
    assert call.script == name
    assert found["KEYS"] and found["KEYS"][1].split() == list(call.keys)
    assert found["ARGV"] and [word.removesuffix("...") for word in found["ARGV"][1].split()] == list(call.args)


@pytest.mark.parametrize("name", sorted(SAMPLES))
def test_the_header_of_a_script_lists_the_replies_that_it_gives(name: str) -> None:
    header, _, body = (lua.FOLDER / f"{name}.lua").read_text().partition("\nlocal ")
    given = set(re.findall(r"return \{?'([A-Z_]+)'", body)) | set(re.findall(r"reply = \{'([A-Z_]+)'", body))
    listed = set(re.findall(r"^--   ([A-Z_]+)\b", header, re.MULTILINE))
    assert given <= listed


# --- execute, retry


def execute_call(token: str = "x-1", **values: Any) -> transitions.Call[str]:
    record = recipes.Record(ScriptJob, {"identifier": "a", "status": "r", "tries": 1, "start": NOW, **values})
    return transitions.execute("jobs", ScriptJob._class_subject(), token, 30, record.text)


def executed(token: str = "x-1", **values: Any) -> Claim:
    pk = send(execute_call(token, **values))
    return Claim(f"{ScriptJob.get_model_repr()}:{pk}", token, "x", "")


def test_execute_makes_a_job_that_runs_under_a_lease_and_is_in_no_queue() -> None:
    held = executed()

    assert ScriptJob.get("1").hmget("status", "queued", "queue_key", "tries") == ["r", None, None, "1"]
    assert Job.database.connection.hget("jobs:claims", held.ident) == "x-1"
    assert list(Queue.collection()) == []


def test_execute_answers_the_same_job_when_it_is_sent_again() -> None:
    assert [raw(execute_call()), raw(execute_call())] == [["NEW", "1"], ["NEW", "1"]]
    assert len(ScriptJob.collection()) == 1


def test_execute_answers_taken_for_a_unique_value_and_writes_nothing() -> None:
    executed(code="1")

    with pytest.raises(JobAlreadyExists):
        send(execute_call("x-2", code="1"))

    assert len(ScriptJob.collection()) == 1


def test_execute_leaves_nothing_when_an_index_cannot_be_written() -> None:
    client = Job.database.connection
    client.set("jobs:scriptjob:status:r", "no set")

    with pytest.raises(ResponseError):
        send(execute_call())

    client.delete("jobs:scriptjob:status:r")
    assert list(ScriptJob.collection()) == []
    assert client.zcard("jobs:leases") == 0


def test_retry_runs_a_job_that_failed_once_more_also_when_it_is_sent_twice() -> None:
    held = executed()
    send(transitions.fail("jobs", held, NOW, 1, ""))

    replies = [raw(transitions.retry("jobs", held, "x-2", "2026-01-01 00:00:01")) for _ in range(2)]

    assert replies == [["OK"], ["OK"]]
    found = ScriptJob.get("1").hmget("status", "tries", "start", "end")
    assert found == ["r", "2", "2026-01-01 00:00:01", None]


def test_retry_answers_changed_for_a_job_that_was_canceled_meanwhile() -> None:
    held = executed()
    send(transitions.fail("jobs", held, NOW, 1, ""))
    ScriptJob.get("1").cancel()

    assert raw(transitions.retry("jobs", held, "x-2", "2026-01-01 00:00:01")) == ["CHANGED", "c"]


def test_retry_refuses_whoever_lost_the_lease() -> None:
    held = executed()

    with pytest.raises(LeaseLost):
        send(transitions.retry("jobs", held._replace(token="x-9"), "x-2", NOW))


def test_retry_answers_gone_and_drops_the_lease_of_a_deleted_job() -> None:
    held = executed()
    ScriptJob.get("1").delete()

    assert raw(transitions.retry("jobs", held, "x-2", NOW)) == ["GONE"]
    assert Job.database.connection.zcard("jobs:leases") == 0


def test_recover_dooms_a_job_that_was_executed_at_once() -> None:
    held = executed()
    lapse()

    (doomed,) = send(recover_call()).doomed

    assert (doomed.held.ident, doomed.reason) == (held.ident, "ALONE")


# --- add


def test_add_answers_new_then_existing_and_makes_one_record() -> None:
    assert raw(add_call()) == ["NEW", "1"]
    assert raw(add_call()) == ["EXISTING", "1"]
    assert ScriptJob.collection() == ["1"]


def test_add_answers_moved_for_a_higher_priority_and_for_prepend() -> None:
    send(add_call())
    assert raw(add_call(priority=2)) == ["MOVED", "1"]
    assert raw(add_call(priority=2, prepend=True)) == ["MOVED", "1"]
    assert Queue.get_queue("q", 2).waiting.lmembers() == [f"{ScriptJob.get_model_repr()}:1"]


def test_add_answers_existing_while_the_job_runs_or_is_leased() -> None:
    send(add_call())
    held = claim()
    assert raw(add_call(priority=9, prepend=True)) == ["EXISTING", "1"]
    send(transitions.fail("jobs", held, NOW, 5, ""))  # to be requeued: ERROR, and still leased
    assert raw(add_call(priority=9, prepend=True)) == ["EXISTING", "1"]


def test_add_answers_no_queue_when_the_job_keeps_a_priority_that_the_new_name_has_not() -> None:
    send(add_call(priority=5))
    assert raw(add_call(name="other", priority=1, prepend=True)) == ["NO_QUEUE", "5"]
    job = ScriptJob.add_job("a", "other", 1, prepend=True)
    assert job.priority.hget() == "5"
    assert len(Queue.get_queue("other", 5).waiting.lmembers()) == 1


def test_add_answers_taken_for_a_unique_value_and_writes_nothing() -> None:
    send(add_call("a", values={"code": "x"}))
    assert raw(add_call("b", "new-queue", values={"code": "x"})) == ["TAKEN", "code"]
    with pytest.raises(JobAlreadyExists, match="code"):
        send(add_call("b", "new-queue", values={"code": "x"}))
    assert issubclass(JobAlreadyExists, UniquenessError)
    assert ScriptJob.collection() == ["1"]
    assert Queue.get_all("new-queue") == []


def test_add_holds_the_job_under_a_token() -> None:
    kind, pk = raw(add_call(hold=Hold("t", 30)))
    job = ScriptJob.get(pk)
    assert (kind, job.status.hget()) == ("NEW", "w")
    assert Queue.get_queue("q").waiting.lmembers() == []
    assert job.connection.hget("jobs:claims", job.ident) == "t"


def test_add_stays_quick_and_right_with_many_ended_jobs_of_one_identifier() -> None:
    for number in range(20):
        send(add_call())
        send(transitions.finish("jobs", claim(f"w-{number}"), NOW))
    assert raw(add_call())[0] == "NEW"
    assert raw(add_call())[0] == "EXISTING"
    assert ScriptJob.collection(identifier="a", queued="1") == ["21"]


# --- queues, records, fields


def test_get_queue_answers_new_then_found() -> None:
    assert raw(transitions.get_queue(target("q", 3))) == ["NEW", "1"]
    assert raw(transitions.get_queue(target("q", 3))) == ["FOUND", "1"]


def test_get_queue_finds_a_queue_that_nobody_remembered() -> None:
    pk = Queue(name="q", priority=3).pk.get()  # as plain limpyd writes it
    assert raw(transitions.get_queue(target("q", 3))) == ["FOUND", pk]


def test_get_queue_finds_the_same_queue_among_primary_keys_of_all_kinds() -> None:
    """Numbers first: compared in pairs as text or as numbers, `2 < 10 < 1a < 2` is no order, and Lua says so."""
    pks = [*map(str, range(2, 40)), *(f"{number}a" for number in range(1, 40)), "x", "-1b"]
    for pk in pks:
        KeyedQueue(code=pk, name="q", priority=3)
    found, record = KeyedQueue._target("q", 3)

    assert record is None
    assert raw(transitions.get_queue(found)) == ["FOUND", "2"]


def test_get_queue_forgets_a_queue_that_was_deleted() -> None:
    Queue.get_queue("q", 3).delete()
    assert raw(transitions.get_queue(target("q", 3))) == ["NEW", "2"]


def test_create_answers_new_and_taken() -> None:
    def call() -> transitions.Call[str]:
        return transitions.create(ScriptJob._name, recipes.Record(ScriptJob, {"code": "x"}).text)

    assert raw(call()) == ["NEW", "1"]
    assert raw(call()) == ["TAKEN", "code"]


def test_write_answers_what_the_command_answers() -> None:
    job = ScriptJob.add_job("a", "q")
    assert job.start.hset("x") == 1
    assert job.start.hset("y") == 0
    assert job.tries.hincrby(3) == 3
    assert job.tries.hincrbyfloat(0.5) == 3.5
    assert job.end.hsetnx("1") == 1
    assert job.end.hsetnx("2") == 0
    assert job.end.hdel() == 1
    assert job.end.hdel() == 0
    assert job.hmset(start="a", end="b") is True
    assert job.hdel("start", "end") == 2


def test_write_answers_gone_for_a_record_that_does_not_exist() -> None:
    job = ScriptJob.lazy_connect("77")
    with pytest.raises(DoesNotExist):
        job.status.hset("w")
    assert job.connection.keys("jobs:scriptjob:*") == []


def test_writes_in_a_limpyd_pipeline_are_sent_with_it() -> None:
    job = ScriptJob.add_job("a", "q")
    with Job.database.pipeline() as pipe:
        job.priority.hset(5)
        job.start.hset("x")
        assert pipe.execute() == [0, 1]
    assert ScriptJob.collection(priority=5) == ["1"]
    job.priority.hset(0)


# --- claim


def test_claim_answers_empty_and_when_the_first_delayed_job_is_due() -> None:
    assert raw(claim_call()) == ["EMPTY", ""]
    send(add_call(delay=Delay("for", "100")))
    kind, seconds = raw(claim_call())
    assert kind == "EMPTY" and 99 < float(seconds) <= 100


def test_claim_clears_the_doorbell_only_when_it_finds_nothing() -> None:
    send(add_call())
    claim()
    assert Job.database.connection.llen("jobs:doorbell:queue:q") == 1
    send(claim_call("w-2"))
    assert Job.database.connection.llen("jobs:doorbell:queue:q") == 0


def test_claim_with_the_same_token_gives_the_same_job_and_counts_one_try() -> None:
    send(add_call("a"))
    send(add_call("b"))
    first, second = claim(), claim()
    assert first == second
    assert ScriptJob.get(first.ident.partition(":")[2]).tries.hget() == "1"
    assert claim("w-2").ident != first.ident


def test_claim_takes_by_priority_then_by_the_order_of_names() -> None:
    for identifier, name, priority in (("1", "x", 0), ("2", "y", 10), ("3", "x", 9), ("4", "y", 9), ("5", "x", -1)):
        send(add_call(identifier, name, priority))
    taken = [claim(f"w-{number}", names=("x", "y")).identifier for number in range(5)]
    assert taken == ["2", "3", "4", "1", "5"]


def test_claim_by_keys_takes_in_the_order_of_the_keys() -> None:
    for identifier, priority in (("low", 0), ("high", 5)):
        send(add_call(identifier, "q", priority))
    keys = [Queue.get_queue("q", 0).waiting.key, Queue.get_queue("q", 5).waiting.key]
    assert claim(keys=keys, by_keys=True).identifier == "low"


@pytest.mark.parametrize("status", ["d", "c"])
def test_claim_leases_a_job_that_asks_to_be_delayed_or_is_canceled_and_writes_nothing(status: str) -> None:
    job = ScriptJob.add_job("a", "q")
    job.status.hset(status)
    held = claim()
    assert held.status == job.status.hget() == status
    assert job.tries.hget() is None
    assert job.connection.zscore("jobs:leases", job.ident)


def test_claim_answers_stale_for_a_job_that_ended() -> None:
    job = ScriptJob.add_job("a", "q")
    job.hmset(status="s")
    job.queued.hdel()
    assert raw(claim_call())[0::5] == ["STALE", "s"]


def test_claim_answers_stale_for_a_second_entry_of_a_running_job() -> None:
    job = ScriptJob.add_job("a", "q")
    Queue.get_queue("q").waiting.rpush(job.ident)
    claim()
    assert raw(claim_call("w-2"))[0::5] == ["STALE", "r"]


def test_claim_answers_gone_for_a_deleted_job() -> None:
    ScriptJob.add_job("a", "q").delete()
    assert raw(claim_call())[0] == "GONE"
    assert raw(claim_call())[0] == "EMPTY"


def test_claim_answers_unknown_and_takes_nothing_when_the_registry_does_not_know_the_class() -> None:
    job = ScriptJob.add_job("a", "q")
    job.connection.delete("jobs:models")
    assert raw(claim_call()) == ["UNKNOWN", job.ident, "jobs:queue:1"]
    ScriptJob.register("jobs")
    assert claim().ident == job.ident


def test_claim_with_the_same_token_passes_by_a_job_that_was_deleted_meanwhile() -> None:
    send(add_call("a"))
    claim()
    ScriptJob.get("1").delete()
    send(add_call("b"))

    held = claim()

    assert held.identifier == "b"
    assert Job.database.connection.zrange("jobs:leases", 0, -1) == [held.ident]


def test_claim_with_the_same_token_answers_empty_when_nothing_is_left() -> None:
    send(add_call())
    claim()
    ScriptJob.get("1").delete()

    assert raw(claim_call()) == ["EMPTY", ""]
    assert Job.database.connection.hgetall("jobs:claims") == {}


# --- finish, fail, skip


@pytest.fixture
def held() -> Claim:
    send(add_call())
    return claim()


ENDS = {
    "finish": lambda held: transitions.finish("jobs", held, NOW),
    "fail": lambda held: transitions.fail("jobs", held, NOW, None, ""),
    "skip": lambda held: transitions.skip("jobs", held),
}


@pytest.mark.parametrize("name", sorted(ENDS))
def test_an_end_is_recorded_once(held: Claim, name: str) -> None:
    if name == "skip":
        ScriptJob.get("1").status.hset(STATUSES.CANCELED)
    assert raw(ENDS[name](held))[0] == "OK"
    assert raw(ENDS[name](held))[0] == "ALREADY"
    queue = Queue.get_queue("q")
    assert queue.success.llen() + queue.errors.llen() == (0 if name == "skip" else 1)


@pytest.mark.parametrize("name", sorted(ENDS))
def test_an_end_is_refused_to_whoever_lost_the_lease(held: Claim, name: str) -> None:
    lapse()
    assert send(recover_call()).idents == (held.ident,)
    other = claim("other-1")
    before = ScriptJob.get("1").hgetall()

    with pytest.raises(LeaseLost):
        send(ENDS[name](held))

    assert ScriptJob.get("1").hgetall() == before
    assert other.ident == held.ident and other.tries == 2


@pytest.mark.parametrize("name", sorted(ENDS))
def test_an_end_of_a_deleted_job_drops_its_lease(held: Claim, name: str) -> None:
    ScriptJob.get("1").delete()
    assert raw(ENDS[name](held))[0] == "GONE"
    assert Job.database.connection.zcard("jobs:leases") == 0


@pytest.mark.parametrize("status", ["c", "d"])
def test_finish_answers_changed_for_a_job_that_was_canceled_or_delayed_while_it_ran(held: Claim, status: str) -> None:
    ScriptJob.get("1").status.hset(status)
    assert raw(ENDS["finish"](held)) == ["CHANGED", status]
    assert Queue.get_queue("q").success.llen() == 0


def test_fail_keeps_the_lease_of_a_job_that_is_to_be_requeued(held: Claim) -> None:
    call = transitions.fail("jobs", held, NOW, 1, "")
    assert raw(call) == ["OK", "", "1", "0", "1", ""]
    assert raw(call) == ["ALREADY", "", "1", "0"]
    assert ScriptJob.get("1").hmget("status", "queued") == ["e", "1"]
    assert Queue.get_queue("q").errors.llen() == 1


def test_fail_does_not_let_a_job_be_requeued_more_often_than_allowed_nor_with_cancel_on_error(held: Claim) -> None:
    assert raw(transitions.fail("jobs", held, NOW, 0, ""))[2] == "0"
    job = ScriptJob.add_job("b", "q", cancel_on_error="0")
    assert raw(transitions.fail("jobs", claim("w-2"), NOW, 5, ""))[2] == "0"
    assert job.queued.hget() is None


def test_skip_without_a_token_leaves_a_job_that_runs_alone(held: Claim) -> None:
    assert raw(transitions.skip("jobs", Claim(held.ident, "", "", held.queue_key))) == ["LOST"]
    assert ScriptJob.get("1").queued.hget() == "1"


@pytest.mark.parametrize("delay", [Delay(), Delay("for", "100")], ids=["waiting", "delayed"])
def test_skip_without_a_token_leaves_a_job_that_was_put_back_alone(delay: Delay) -> None:
    send(add_call(delay=delay))
    before = ScriptJob.get("1").hgetall()

    assert raw(transitions.skip("jobs", Claim(f"{ScriptJob.get_model_repr()}:1", "", "", "jobs:queue:1"))) == ["LOST"]

    assert ScriptJob.get("1").hgetall() == before


@pytest.mark.parametrize("status", [STATUSES.SUCCESS, STATUSES.ERROR, STATUSES.CANCELED])
def test_skip_without_a_token_lets_go_of_a_job_that_ended(status: str) -> None:
    job = ScriptJob.add_job("a", "q")
    job.status.hset(status)
    Queue.get_queue("q").waiting.delete()

    assert raw(transitions.skip("jobs", Claim(job.ident, "", "", "jobs:queue:1"))) == ["OK"]

    assert job.hmget("status", "queued") == [status, None]


# --- move, requeue, place


def put_call(name: str, pk: str = "1") -> transitions.Call[Any]:
    """Put a job in the queue `q`, by one of the three scripts that do."""
    subject = ScriptJob._class_subject(pk)
    if name == "place":
        return transitions.place(subject, "jobs", recipes.queue_recipe(Queue), "1", False, Delay(), "")
    if name == "requeue":
        return transitions.requeue(subject, target(), True, Delay(), "", Hold(), "caller")
    return transitions.move(subject, target(), True, False, Delay(), "", Hold())


def add_failed(times: int = 1) -> None:
    """Jobs of one identifier that failed, the last ones with the highest numbers."""
    for number in range(times):
        send(add_call())
        send(transitions.fail("jobs", claim(f"failing{number}-1"), NOW, None, ""))


@pytest.mark.parametrize("records", [1, 20])
@pytest.mark.parametrize("name", ["move", "place", "requeue"])
def test_a_job_whose_identifier_another_one_has_queued_is_refused_and_nothing_is_written(
    name: str, records: int
) -> None:
    add_failed(records)
    send(add_call())
    queued, before = str(records + 1), ScriptJob.get("1").hgetall()

    assert raw(put_call(name)) == ["QUEUED", queued]
    with pytest.raises(JobAlreadyQueued) as refused:
        send(put_call(name))

    ident = ScriptJob.get_model_repr()
    assert (refused.value.ident, refused.value.queued_ident) == (f"{ident}:1", f"{ident}:{queued}")
    assert ScriptJob.get("1").hgetall() == before
    assert Queue.get_queue("q").waiting.lmembers() == [f"{ident}:{queued}"]


@pytest.mark.parametrize("name", ["move", "place", "requeue"])
def test_a_job_that_is_put_back_is_the_one_that_add_finds(name: str) -> None:
    add_failed(20)
    send(put_call(name, "7"))
    assert raw(add_call()) == ["EXISTING", "7"]


@pytest.mark.parametrize("delay", [Delay(), Delay("for", "100")], ids=["now", "later"])
@pytest.mark.parametrize("hold", [Hold(), Hold("held-1")], ids=["plain", "held"])
@pytest.mark.parametrize("caller", ["the worker", "a producer"])
def test_a_requeue_that_is_sent_twice_is_done_once_and_answered_the_same(caller: str, hold: Hold, delay: Delay) -> None:
    send(add_call())
    held = claim()
    is_worker = caller == "the worker"
    send(transitions.fail("jobs", held, NOW, 5 if is_worker else None, ""))
    token, worker = (held.token, held.worker) if is_worker else ("", "caller")
    call = transitions.requeue(ScriptJob._class_subject("1"), target("q", 3), False, delay, token, hold, worker)

    first = raw(call)
    before = ScriptJob.get("1").hgetall()
    second = raw(call)

    assert first == second
    assert first[:3] == ["OK", "jobs:queue:2", "3"]
    assert ScriptJob.get("1").hgetall() == before
    queue = Queue.get_queue("q", 3)
    leased = Job.database.connection.zcard("jobs:leases")
    assert queue.waiting.llen() + queue.delayed.zcard() + leased == 1


@pytest.mark.parametrize("caller", ["the worker", "a producer"])
def test_a_requeue_that_is_sent_twice_leaves_the_job_alone_when_it_runs_by_then(caller: str) -> None:
    send(add_call())
    held = claim()
    is_worker = caller == "the worker"
    send(transitions.fail("jobs", held, NOW, 5 if is_worker else None, ""))
    token, worker = (held.token, held.worker) if is_worker else ("", "caller")
    call = transitions.requeue(ScriptJob._class_subject("1"), target(), False, Delay(), token, Hold(), worker)
    send(call)
    other = claim("other-1")
    before = ScriptJob.get("1").hgetall()

    assert raw(call)[0] == "OK"

    assert ScriptJob.get("1").hgetall() == before
    assert Job.database.connection.hget("jobs:claims", other.ident) == other.token
    assert Queue.get_queue("q").waiting.llen() == 0


def test_a_second_requeue_by_another_caller_is_refused() -> None:
    add_failed()
    send(put_call("requeue"))
    again = transitions.requeue(ScriptJob._class_subject("1"), target(), True, Delay(), "", Hold(), "another")
    assert raw(again) == ["NOT_IN_STATUS", "w"]


def test_move_refuses_a_running_job_and_one_that_does_not_exist(held: Claim) -> None:
    call = transitions.move(ScriptJob._class_subject("1"), target("x", 3), False, False, Delay(), "", Hold())
    assert raw(call) == ["RUNNING"]
    with pytest.raises(JobNotInStatus):
        send(call)
    with pytest.raises(DoesNotExist):
        send(transitions.move(ScriptJob._class_subject("9"), target("x"), False, False, Delay(), "", Hold()))


def test_move_answers_no_queue_when_only_the_job_knows_the_priority() -> None:
    send(add_call(priority=4))
    call = transitions.move(ScriptJob._class_subject("1"), target("x"), True, False, Delay(), "", Hold())
    assert raw(call) == ["NO_QUEUE", "4"]
    ScriptJob.get("1").enqueue_or_delay("x")
    assert len(Queue.get_queue("x", 4).waiting.lmembers()) == 1


def test_requeue_refuses_any_status_but_error(held: Claim) -> None:
    call = transitions.requeue(ScriptJob._class_subject("1"), target(), True, Delay(), "", Hold(), "w")
    assert raw(call) == ["NOT_IN_STATUS", "r"]
    send(transitions.fail("jobs", held, NOW, 5, ""))
    assert raw(call) == ["RUNNING"]
    by_holder = transitions.requeue(
        ScriptJob._class_subject("1"), target(), True, Delay(), held.token, Hold(), held.worker
    )
    assert raw(by_holder) == ["OK", "jobs:queue:1", "0", ""]


def test_place_refuses_a_running_job_and_missing_records(held: Claim) -> None:
    recipe = recipes.queue_recipe(Queue)
    assert raw(transitions.place(ScriptJob._class_subject("1"), "jobs", recipe, "1", False, Delay(), "")) == ["RUNNING"]
    assert raw(transitions.place(ScriptJob._class_subject("9"), "jobs", recipe, "1", False, Delay(), "")) == ["GONE"]
    assert raw(transitions.place(ScriptJob._class_subject("1"), "jobs", recipe, "9", False, Delay(), "")) == ["GONE"]


# --- promote, recover, renew, reject, register


def test_promote_moves_what_is_due_and_nothing_else() -> None:
    queue = Queue.get_queue("q")
    soon, late = ScriptJob.add_job("soon", "q", delayed_for=50), ScriptJob.add_job("late", "q", delayed_for=500)
    queue.delayed.zadd({soon.ident: 1})
    assert raw(transitions.promote("jobs", "jobs:queue", "1"))[:2] == ["OK", "0"]
    assert queue.waiting.lmembers() == [soon.ident]
    assert queue.delayed.zmembers() == [late.ident]
    assert (soon.status.hget(), soon.delayed_until.hget(), late.status.hget()) == ("w", None, "d")


def test_promote_works_in_bounded_steps() -> None:
    for number in range(7):
        ScriptJob.add_job(str(number), "q", delayed_for=50)
    queue = Queue.get_queue("q")
    for ident in queue.delayed.zmembers():
        queue.delayed.zadd({ident: 1})
    assert send(transitions.promote("jobs", "jobs:queue", "1", limit=5)).has_more
    assert queue.waiting.llen() == 5
    assert not send(transitions.promote("jobs", "jobs:queue", "1", limit=5)).has_more
    assert queue.waiting.llen() == 7


def test_promote_leaves_the_queue_to_a_worker_of_version_2_that_does_it() -> None:
    queue = Queue.get_queue("q")
    lock = "jobs:queue:1:requeue_all_delayed_ready_jobs"
    queue.connection.set(lock, "1", ex=60)
    assert raw(transitions.promote("jobs", "jobs:queue", "1")) == ["LOCKED"]
    queue.connection.delete(lock)


def test_promote_reports_what_has_no_record_and_what_no_registry_knows() -> None:
    queue = Queue.get_queue("q")
    ScriptJob.register("jobs")
    queue.delayed.zadd({f"{ScriptJob.get_model_repr()}:9": 1, "no.such.Model:1": 2})
    assert raw(transitions.promote("jobs", "jobs:queue", "1")) == ["UNKNOWN", "no.such.Model:1", "1"]
    assert queue.requeue_delayed_jobs() == [
        (f"{ScriptJob.get_model_repr()}:9", "No ScriptJob found with pk 9"),
        ("no.such.Model:1", NOT_ALLOWED.format("no.such")),
    ]
    assert queue.waiting.lmembers() == ["no.such.Model:1"]
    assert send(transitions.reject("jobs", "jobs:queue:1", "no.such.Model:1", "", NOW)).kind == "OK"
    assert queue.waiting.lmembers() == []


@pytest.mark.parametrize("hours", [-5, 5.75])
def test_promote_corrects_the_score_of_another_time_zone(hours: float) -> None:
    queue, until = Queue.get_queue("q"), utcnow() + timedelta(minutes=30)
    job = ScriptJob.add_job("a", "q", delayed_until=until)
    wrong = datetime_to_score(until) + hours * 3600
    queue.delayed.zadd({job.ident: wrong})

    assert queue.requeue_delayed_jobs() == []

    assert queue.waiting.lmembers() == []
    assert queue.delayed.zscore(job.ident) == pytest.approx(datetime_to_score(until), abs=0.001)


def test_dates_are_the_same_in_lua_and_in_python() -> None:
    for text in ("2024-02-29 23:59:59.999999", "2026-12-31 00:00:00.000001", "2100-03-01 12:00:00.500000"):
        job = ScriptJob.add_job(text, "q", delayed_until=datetime.fromisoformat(text))
        if datetime.fromisoformat(text) > utcnow():
            assert job.delayed_until.hget() == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (4102444800 - 4e-7, "2100-01-01 00:00:00"),  # 23:59:59.9999996 of the day before
        (4102444800 - 1e-6, "2099-12-31 23:59:59.999999"),
        (4107542400 - 4e-7, "2100-03-01 00:00:00"),  # of a year that has no 29th of February
    ],
)
def test_a_date_at_the_last_moment_of_a_day_is_one_that_python_reads(seconds: float, text: str) -> None:
    send(add_call(delay=Delay("until", repr(seconds))))

    found = ScriptJob.get("1").delayed_until.hget()

    assert found == text
    assert abs((datetime.fromisoformat(found) - datetime(1970, 1, 1)).total_seconds() - seconds) < 1e-6


def test_recover_gives_a_running_job_back_to_the_head_of_its_list(held: Claim) -> None:
    send(add_call("b"))
    lapse()
    assert raw(recover_call()) == ["OK", "1", "0", "0", held.ident]
    assert Queue.get_queue("q").waiting.lmembers()[0] == held.ident
    assert ScriptJob.get("1").hmget("status", "start", "queued") == ["w", None, "1"]


def test_recover_leaves_leases_that_hold_and_running_jobs_of_version_2(held: Claim) -> None:
    assert raw(recover_call()) == ["OK", "0", "0", "0"]


def test_recover_delays_a_job_that_had_asked_for_it_and_lets_go_of_a_canceled_one() -> None:
    delayed, canceled = ScriptJob.add_job("d", "q"), ScriptJob.add_job("c", "q")
    claim("w-1"), claim("w-2")
    delayed.hmset(status=STATUSES.DELAYED, delayed_until=str(utcnow() + timedelta(seconds=100)))
    canceled.status.hset(STATUSES.CANCELED)
    lapse()
    send(recover_call())
    assert Queue.get_queue("q").delayed.zmembers() == [delayed.ident]
    assert canceled.queued.hget() is None


def test_recover_ends_a_job_in_error_whose_queue_was_deleted(held: Claim) -> None:
    Queue.get_queue("q").delete()
    lapse()

    (doomed,) = send(recover_call()).doomed
    assert (doomed.held.ident, doomed.reason, doomed.held.identifier) == (held.ident, "HOMELESS", "a")
    assert raw(transitions.fail("jobs", doomed.held, NOW, None, ""))[:3] == ["OK", "", "0"]

    assert ScriptJob.get("1").hmget("status", "end", "queued") == ["e", NOW, None]
    assert Job.database.connection.zcard("jobs:leases") == 0
    assert raw(add_call()) == ["NEW", "2"]


def test_recover_keeps_the_lease_of_a_job_whose_class_the_registry_lost_until_it_is_back(held: Claim) -> None:
    client = Job.database.connection
    client.delete("jobs:models")
    lapse()
    before = ScriptJob.get("1").hgetall()

    assert raw(recover_call()) == ["OK", "0", "0", "1", held.ident]
    assert client.zscore("jobs:leases", held.ident) > client.time()[0] + 30
    assert ScriptJob.get("1").hgetall() == before

    ScriptJob.register("jobs")
    lapse()
    assert raw(recover_call()) == ["OK", "1", "0", "0", held.ident]
    assert Queue.get_queue("q").waiting.lmembers() == [held.ident]


@pytest.mark.parametrize("field", ["waiting", "delayed"])
def test_recover_writes_nothing_and_keeps_the_lease_while_something_else_is_under_the_key_of_the_queue(
    held: Claim, field: str
) -> None:
    client, key = Job.database.connection, f"jobs:queue:1:{field}"
    client.set(key, "something else")
    lapse()
    before = ScriptJob.get("1").hgetall()

    assert raw(recover_call()) == ["OK", "0", "0", "0"]
    assert ScriptJob.get("1").hgetall() == before
    assert client.zscore("jobs:leases", held.ident) > client.time()[0] + 30
    assert client.hget("jobs:claims", held.ident) == held.token

    client.delete(key)
    lapse()
    assert raw(recover_call()) == ["OK", "1", "0", "0", held.ident]


def test_recover_takes_at_most_100_at_a_time() -> None:
    for number in range(101):
        send(add_call(str(number)))
        claim(f"w-{number}")
    lapse()
    assert len(send(recover_call()).idents) == 100
    assert len(send(recover_call()).idents) == 1


# --- cancel


def cancel_call(reason: str = "canceled") -> transitions.Call[Any]:
    recipe = recipes.queue_recipe(Queue)
    return transitions.cancel(ScriptJob._class_subject("1"), "jobs", recipe, reason)


@pytest.mark.parametrize("delay", [Delay(), Delay("for", "1000")])
def test_cancel_answers_canceled_for_what_waits_or_is_delayed_and_again(delay: Delay) -> None:
    send(add_call(delay=delay))
    assert raw(cancel_call()) == ["CANCELED"]
    assert raw(cancel_call("again")) == ["CANCELED"]
    assert ScriptJob.from_pk("1").hmget("status", "queued", "cancel_reason") == ["c", None, "canceled"]
    assert raw(claim_call())[0] == "EMPTY"


def test_cancel_answers_requested_for_what_is_leased(held: Claim) -> None:
    assert raw(cancel_call()) == ["REQUESTED"]
    assert raw(cancel_call("again")) == ["REQUESTED"]
    assert raw(transitions.finish("jobs", held, NOW)) == ["CHANGED", "c"]
    assert ScriptJob.from_pk("1").cancel_reason.hget() == "canceled"
    assert raw(transitions.skip("jobs", held)) == ["OK"]


def test_cancel_answers_requested_for_a_held_job() -> None:
    send(add_call(hold=Hold("h")))
    assert raw(cancel_call()) == ["REQUESTED"]
    lapse()
    send(recover_call())
    assert ScriptJob.from_pk("1").hmget("status", "queued") == ["c", None]


@pytest.mark.parametrize("fails", [False, True])
def test_cancel_answers_ended(held: Claim, fails: bool) -> None:
    send(transitions.fail("jobs", held, NOW, None, "") if fails else transitions.finish("jobs", held, NOW))
    assert raw(cancel_call()) == ["ENDED"]


def test_cancel_answers_broken_for_an_index_of_another_type() -> None:
    send(add_call())
    client = Job.database.connection
    client.set("jobs:scriptjob:status:c", "text")
    assert raw(cancel_call()) == ["BROKEN", "jobs:scriptjob:status:c"]
    with pytest.raises(WrongKeyType):
        send(cancel_call())
    assert client.llen("jobs:queue:1:waiting") == 1
    client.delete("jobs:scriptjob:status:c")


def test_cancel_answers_gone() -> None:
    assert raw(cancel_call()) == ["GONE"]
    with pytest.raises(DoesNotExist):
        send(cancel_call())


def test_requeue_lets_go_of_what_was_canceled_after_its_error(held: Claim) -> None:
    send(transitions.fail("jobs", held, NOW, 3, ""))
    assert raw(cancel_call()) == ["REQUESTED"]
    call = transitions.requeue(ScriptJob._class_subject("1"), target(), True, Delay(), held.token, Hold(), "w")
    assert raw(call) == ["NOT_IN_STATUS", "c"]
    assert Job.database.connection.zcard("jobs:leases") == 0
    assert ScriptJob.from_pk("1").queued.hget() is None


@pytest.mark.parametrize("token", ["", "h"])
def test_move_lets_go_of_what_was_canceled_since_it_was_leased_and_may_be_repeated(token: str) -> None:
    send(add_call(hold=Hold("h")))
    assert raw(cancel_call()) == ["REQUESTED"]
    hold = Hold() if token else Hold("h")  # without a token it is the repetition of the call that took the lease
    call = transitions.move(ScriptJob._class_subject("1"), target(), True, False, Delay(), token, hold)
    assert raw(call) == ["NOT_IN_STATUS", "c"]
    assert Job.database.connection.zcard("jobs:leases") == 0
    assert ScriptJob.from_pk("1").hmget("status", "queued") == ["c", None]
    if token:
        assert raw(call) == ["NOT_IN_STATUS", "c"]


def test_claim_answers_what_was_said_of_the_runs() -> None:
    send(add_call(values={"run_options": '{"job_timeout":5}'}))
    assert claim().run_options == '{"job_timeout":5}'
    assert claim().run_options == '{"job_timeout":5}', "the same token"


def test_claim_cancels_what_has_expired_and_leases_it_all_the_same() -> None:
    send(add_call(values={"run_options": '{"expires":5}'}))
    for _ in range(2):
        held = claim()
        assert (held.status, held.tries) == ("c", 0)
    assert ScriptJob.from_pk("1").hmget("status", "cancel_reason", "start", "tries") == ["c", "expired", None, None]
    assert raw(transitions.skip("jobs", held)) == ["OK"]


def test_a_job_that_may_expire_is_not_claimed_ahead() -> None:
    for number, options in enumerate(["{}", '{"expires":9999999999}', "{}"]):
        send(add_call(str(number), values={"run_options": options, "code": str(number)}))
    made_for = recipes.plain_life(PlainJob, Queue)
    first = send(transitions.exchange(CALLER, [], 1, 3, NOW)).claims
    second = send(transitions.exchange(CALLER, [], 10, 3, NOW, looks_around=False, made_for=made_for)).claims
    assert [taken.claim.identifier for taken in first] == ["0"]
    assert [(taken.claim.identifier, taken.is_ahead) for taken in second[:2]] == [("1", False), ("2", True)]


def test_the_quick_way_leaves_what_may_expire_to_the_other() -> None:
    made_for = recipes.plain_life(PlainJob, Queue)
    for identifier, options in (("late", {"expires": 0}), ("good", {"expires": 1000}), ("plain", {"job_timeout": 5})):
        PlainJob.add_job(identifier, "q", **options)
    found = [
        send(transitions.exchange(CALLER, [], number, 1, NOW, looks_around=False, made_for=made_for)).claims[0].claim
        for number in (1, 2, 3)
    ]
    assert [(held.identifier, held.status) for held in found] == [("late", "c"), ("good", "w"), ("plain", "w")]
    assert found[2].run_options == '{"job_timeout":5}'


def test_renew_prolongs_what_is_held_and_names_what_is_lost(held: Claim) -> None:
    client = Job.database.connection
    before = client.zscore("jobs:leases", held.ident)
    stranger = Claim("x:1", "t", "w", "jobs:queue:1")
    assert send(transitions.renew("jobs", (held._replace(lease_seconds=900), stranger))) == (("x:1",), ())
    assert client.zscore("jobs:leases", held.ident) > before + 800
    assert client.zcard("jobs:leases") == 1


def test_renew_names_what_is_canceled_to_who_asks(held: Claim) -> None:
    ScriptJob.from_pk(held.ident.partition(":")[2]).status.hset("c")
    assert send(transitions.renew("jobs", [held], True)) == ((), (held.ident,))
    assert send(transitions.renew("jobs", [held])) == ((), ())


def test_reject_answers_gone_for_what_does_not_wait() -> None:
    Queue.get_queue("q")
    assert raw(transitions.reject("jobs", "jobs:queue:1", "x:1", "", NOW)) == ["GONE"]


def test_reject_answers_taken_when_the_error_cannot_be_written() -> None:
    ScriptJob.add_job("a", "q", code="x")
    record = recipes.Record(ScriptJob, {"code": "x"}).text
    ident = f"{ScriptJob.get_model_repr()}:1"
    assert raw(transitions.reject("jobs", "jobs:queue:1", ident, record, NOW)) == ["TAKEN", "code"]
    assert raw(transitions.fail("jobs", claim(), NOW, None, record)) == ["TAKEN", "code"]


def test_register_answers_ok() -> None:
    assert raw(transitions.register("jobs", ScriptJob._class_subject())) == ["OK"]


def test_a_script_that_the_server_forgot_is_sent_again() -> None:
    send(add_call())
    Job.database.connection.script_flush()
    assert raw(add_call()) == ["EXISTING", "1"]
