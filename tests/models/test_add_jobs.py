"""`add_jobs`: many jobs in few round trips, stored as `add_job` stores each of them."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from limpyd import fields
from limpyd.indexes import EqualIndex, NumberRangeIndex, TextRangeIndex

from limpyd_jobs import Job, Queue, additions, admin, models, wire
from limpyd_jobs import run_options as run_options_module
from limpyd_jobs.additions import CHUNK_JOBS
from limpyd_jobs.exceptions import InvalidArgument, JobAlreadyExists, LimpydJobsException, WrongKeyType
from limpyd_jobs.utils import parse_datetime, utcnow

from ..base import RedisServer, free_port, wait_until
from ..proxy import Proxy
from .support import LONG_AGO, connection, dump, run_worker

IN_2050 = datetime(2050, 1, 2, 3, 4, 5, 678901)
DELAY_SECONDS = 1000
THREE_CHUNKS = 2 * CHUNK_JOBS + 200

UpperIndex = EqualIndex.configure(prefix="upper", key="upper", transform=lambda value: value.upper(), name="UpperIndex")


class AddJobsDateField(fields.InstanceHashField):
    """Takes datetimes."""

    def from_python(self, value: Any) -> Any:
        return value.isoformat() if isinstance(value, datetime) else super().from_python(value)


class AddJobsOtherQueue(Queue):
    color = fields.InstanceHashField(indexable=True, default="grey")


class AddJobsKeyQueue(Queue):
    """Its primary key is the program's."""

    code = fields.PKField()


class AddJobsHookQueue(Queue):
    """It looks at each job that enters."""

    entered: list[tuple[str, bool]] = []

    def enqueue_job(self, job: Any, prepend: bool = False) -> None:
        self.entered.append((job.ident, prepend))
        super().enqueue_job(job, prepend)


class AddJobsForeignQueue(Queue):
    color = fields.InstanceHashField(indexable=True, default="grey", indexes=[UpperIndex])


class AddJobsJob(Job):
    """Fields of all kinds."""

    size = fields.InstanceHashField(indexable=True)
    note = fields.InstanceHashField()
    label = fields.StringField(indexable=True)
    steps = fields.ListField()
    tags = fields.SetField(indexable=True)
    scores = fields.SortedSetField()
    options = fields.HashField()
    year = fields.InstanceHashField(indexable=True, indexes=[NumberRangeIndex])
    title = fields.InstanceHashField(indexable=True, indexes=[TextRangeIndex])
    nick = fields.InstanceHashField(indexable=True, indexes=[EqualIndex, UpperIndex])


class AddJobsDefaultsJob(Job):
    size = fields.InstanceHashField(indexable=True, default=7)
    note = fields.InstanceHashField(default="quote ' and \\ and \n")


class AddJobsStringDefaultJob(Job):
    label = fields.StringField(indexable=True, default="unnamed")


class AddJobsDateDefaultJob(Job):
    born = AddJobsDateField(default=IN_2050)


class AddJobsUniqueJob(Job):
    code = fields.InstanceHashField(indexable=True, unique=True)


class AddJobsExpiringJob(Job):
    expires = timedelta(minutes=1)


class AddJobsRedeclaredJob(Job):
    added = fields.InstanceHashField(indexable=True)
    status = fields.InstanceHashField()
    cancel_on_error = fields.InstanceHashField(indexable=True)


class AddJobsHookJob(Job):
    """It looks at its own way into a queue."""

    moves: list[tuple[Any, ...]] = []

    def enqueue_or_delay(
        self,
        queue_name: str | None = None,
        priority: int | str | None = None,
        delayed_until: datetime | str | None = None,
        prepend: bool = False,
        queue_model: Any = None,
    ) -> None:
        self.moves.append((self.ident, queue_name, priority, bool(delayed_until), prepend))
        super().enqueue_or_delay(queue_name, priority, delayed_until, prepend, queue_model)


class AddJobsHookQueueJob(Job):
    queue_model = AddJobsHookQueue


class AddJobsElsewhereJob(Job):
    namespace = "addjobselsewhere"


# its names and values are more than a function of Lua has registers for
WIDE = {f"field{number}": str(number) for number in range(130)}
AddJobsWideJob: Any = type(Job)(
    "AddJobsWideJob", (Job,), {"__module__": __name__, **{name: fields.InstanceHashField() for name in WIDE}}
)


# --- What is stored


def _approximate(when: float) -> Any:
    """A moment soon to come in minutes from now: no two calls find the same one."""
    left = when - (utcnow() - datetime(1970, 1, 1)).total_seconds()
    return round(left / 60) if left < 86400 else when


def _stored_hash(record: dict[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = {**record}
    for name in {"added", "start", "end", "waiting_since"} & record.keys():
        if not record[name].startswith("2001-"):
            found[name] = f"some {name}"
    if record.get("delayed_until"):
        found["delayed_until"] = _approximate(
            (parse_datetime(record["delayed_until"]) - datetime(1970, 1, 1)).total_seconds()
        )
    return found


def stored() -> dict[str, Any]:
    """The whole database, without what depends on the moment."""
    found = dump()
    minutes = [found.pop(key) for key in list(found) if key.startswith("jobs:numbers:")]  # there may be a new one
    found["added"] = sum(int(number) for one in minutes for name, number in one.items() if name.startswith("a "))
    for key, value in list(found.items()):
        if ":done:" in key:
            del found[key]
        elif key.endswith(":hash"):
            found[key] = _stored_hash(value)
        elif key.endswith(":delayed") or ":due:" in key:
            found[key] = [(member, _approximate(score)) for member, score in value]
        elif ":added:" in key:
            found[f"{key.split(':added:')[0]}:added:some"] = (
                found.get(f"{key.split(':added:')[0]}:added:some", set()) | value
            )
            del found[key]
    return found


def add_one_by_one(model: Any, specs: Iterable[Any], **defaults: Any) -> list[Any]:
    """What `add_jobs` promises to be the same as."""
    mappings = (spec if isinstance(spec, dict) else {"identifier": spec} for spec in specs)
    return [model.add_job(**{**defaults, **spec}) for spec in mappings]


def assert_stored_alike(model: Any, specs: list[Any], before: Any = lambda: None, **defaults: Any) -> None:
    """The jobs are stored by `add_jobs` as by `add_job`, one after the other, and counted."""
    connection().flushall()
    before()
    known = set(model.collection())
    jobs = add_one_by_one(model, specs, **defaults)
    expected, new = stored(), {job.pk.get() for job in jobs} - known
    connection().flushall()
    before()

    added = model.add_jobs(iter(specs), **defaults)

    assert stored() == expected
    assert added == (len(new), len(specs) - len(new))
    assert [str(problem) for problem in admin.check()] == []


IDENTIFIERS = [
    "a",
    "b",
    "c",
    "d",
    b"a",
    7,
    "7",
    1.5,
    "",
    "\u00e9t\u00e9 \u2603",
    "x:y",
    "line\nline",
    "nul\0",
    'it\'s \\ ""]]',
]
FIELDS: dict[str, Any] = {
    "size": st.sampled_from([1, "1", "", 2.5, b"big"]),
    "note": st.sampled_from(["", "n", "it's"]),
    "label": st.sampled_from(["x", "y"]),
    "tags": st.sets(st.sampled_from(["red", "green"])),
    "year": st.sampled_from([1999, "2000", 1.5]),
    "nick": st.sampled_from(["joe", "Jim"]),
    "cancel_on_error": st.sampled_from([1, ""]),
    "added": st.just(LONG_AGO),
}
PLACES: dict[str, Any] = {
    "queue_name": st.sampled_from(["q", "r"]),
    "priority": st.sampled_from([0, 1, 5, "1", -3]),
    "queue_model": st.sampled_from([None, Queue, AddJobsOtherQueue]),
    "prepend": st.booleans(),
    "delayed_until": st.sampled_from([None, IN_2050, datetime(2001, 1, 1)]),
}
mappings = st.fixed_dictionaries({"identifier": st.sampled_from(IDENTIFIERS)}, optional={**PLACES, **FIELDS})
few_fields = st.fixed_dictionaries(
    {"identifier": st.sampled_from(IDENTIFIERS[:4])}, optional={**PLACES, "size": FIELDS["size"]}
)
specs_of_all_kinds = st.lists(st.one_of(st.sampled_from(IDENTIFIERS), mappings, few_fields), max_size=12)


@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(queued=st.lists(few_fields, max_size=4), specs=specs_of_all_kinds)
@example(
    queued=[{"identifier": "a", "priority": 5}],
    specs=[{"identifier": "a", "queue_name": "r", "prepend": True}, {"identifier": "b", "queue_name": "new"}],
)
def test_any_specs_are_stored_as_add_job_stores_them(database: Any, queued: list[Any], specs: list[Any]) -> None:
    assert_stored_alike(AddJobsJob, specs, lambda: add_one_by_one(AddJobsJob, queued, queue_name="q"), queue_name="q")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(queued=st.lists(few_fields, max_size=4), specs=st.lists(few_fields, max_size=12))
def test_jobs_of_few_kinds_are_stored_as_add_job_stores_them(
    database: Any, queued: list[Any], specs: list[Any]
) -> None:
    assert_stored_alike(AddJobsJob, specs, lambda: add_one_by_one(AddJobsJob, queued, queue_name="q"), queue_name="q")


PLAIN = ["a", b"b", 3, "\u00e9t\u00e9", "", "a", "x:y", "nul\0"]
MODELS = [
    *(Job, AddJobsJob, AddJobsDefaultsJob, AddJobsStringDefaultJob, AddJobsUniqueJob, AddJobsRedeclaredJob),
    *(AddJobsHookJob, AddJobsHookQueueJob, AddJobsElsewhereJob),
]
OPTIONS: list[dict[str, Any]] = [
    {},
    {"prepend": True},
    {"priority": 5},
    {"priority": "-2", "prepend": True},
    {"delayed_for": DELAY_SECONDS},
    {"delayed_for": timedelta(seconds=DELAY_SECONDS)},
    {"delayed_for": -1},
    {"delayed_until": IN_2050},
    {"queue_model": AddJobsOtherQueue},
    {"queue_model": AddJobsForeignQueue},
    {"queue_model": AddJobsHookQueue, "delayed_until": IN_2050},
    {"queue_model": AddJobsHookQueue, "prepend": True},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("model", MODELS)
def test_plain_identifiers_of_each_class_are_stored_as_add_job_stores_them(
    database: Any, model: Any, options: dict[str, Any]
) -> None:
    def before() -> None:
        model.add_job("a", "q", 1)
        model.add_job("x:y", "other", 7)

    assert_stored_alike(model, PLAIN, before, queue_name="q", **options)


FIELD_VALUES: list[dict[str, Any]] = [
    {"size": 3},
    {"note": "n", "size": "3"},
    {"size": "3", "note": "n"},
    {"label": "x"},
    {"steps": ["one", "two", "one"]},
    {"tags": {"red", "green"}},
    {"scores": {"first": 1, "second": 2.5}},
    {"options": {"width": "3"}},
    {"year": 1999},
    {"title": "the title"},
    {"nick": "joe"},
    {"cancel_on_error": 1},
    {"added": LONG_AGO},
    {"status": "s", "queued": "", "queue_key": "nowhere", "size": 1},
    {"tries": 3, "start": LONG_AGO},
    {"steps": []},
]


@pytest.mark.parametrize("values", FIELD_VALUES, ids=lambda values: ",".join(values))
def test_a_further_field_is_stored_as_add_job_stores_it(database: Any, values: dict[str, Any]) -> None:
    specs = ["a", {"identifier": "b", **values}, {"identifier": "c", **values}, "d", {"identifier": "b", **values}]

    assert_stored_alike(AddJobsJob, specs, queue_name="q")


def test_a_default_that_is_no_text_yet_is_stored_by_its_field(database: Any) -> None:
    job = AddJobsDateDefaultJob.add_job("a", "q")
    AddJobsDateDefaultJob.add_jobs(["b"], "q")

    assert job.born.hget() == IN_2050.isoformat()
    assert [found.born.hget() for found in AddJobsDateDefaultJob.collection(identifier="b").instances()] == [
        IN_2050.isoformat()
    ]


def test_a_class_with_a_hundred_fields_is_added_with_all_of_them(database: Any) -> None:
    job = AddJobsWideJob.add_job("a", "q", **WIDE)
    added = AddJobsWideJob.add_jobs([{"identifier": "b", **WIDE}, {"identifier": "c", **WIDE}], "q")

    assert added == (2, 0)
    assert job.field129.hget() == "129"
    assert connection().hget(f"{AddJobsWideJob._name}:3:hash", "field129") == "129"


def test_ended_jobs_with_an_identifier_do_not_keep_it_from_being_added(database: Any) -> None:
    def before() -> None:
        Job.add_jobs(["a", "b"], "q")
        run_worker("q", loops=2, callback=lambda job, queue: None)

    assert_stored_alike(Job, ["a", "b", "c", "a"], before, queue_name="q")


def test_running_jobs_stay_as_they_are(database: Any) -> None:
    found: list[Any] = []

    def callback(job: Any, queue: Any) -> None:
        before = dump()
        found.append((Job.add_jobs(["a", {"identifier": "a", "priority": 9, "prepend": True}], "q"), dump() == before))

    Job.add_job("a", "q")

    run_worker("q", callback=callback)

    assert found == [((0, 2), True)]


def test_queues_with_primary_keys_of_the_program_are_used(database: Any) -> None:
    def before() -> None:
        AddJobsKeyQueue.get_queue("q", 0, code="low")
        AddJobsKeyQueue.get_queue("q", 5, code="high")

    specs = [
        "a",
        {"identifier": "b", "priority": 5},
        "c",
        {"identifier": "a", "priority": 5},
        {"identifier": "d", "label": "x"},
    ]

    assert_stored_alike(AddJobsJob, specs, before, queue_name="q", queue_model=AddJobsKeyQueue)


def test_a_queue_that_must_be_given_its_primary_key_is_missed_as_by_add_job(database: Any) -> None:
    AddJobsKeyQueue.get_queue("q", 0, code="low")
    with pytest.raises(ValueError, match="its pk must be given") as alone:
        Job.add_job("a", "q", 5, AddJobsKeyQueue)

    with pytest.raises(ValueError) as caught:
        Job.add_jobs(["a", {"identifier": "b", "priority": 5}, "c"], "q", queue_model=AddJobsKeyQueue)

    assert str(caught.value) == str(alone.value)
    assert "a" in identifiers_in(AddJobsKeyQueue.get_queue("q"))


def test_methods_of_a_queue_are_called_for_each_job_in_order(database: Any) -> None:
    AddJobsHookQueue.entered.clear()

    Job.add_jobs(["a", {"identifier": "b", "prepend": True}, "a", "c"], "q", queue_model=AddJobsHookQueue)

    name = Job.get_model_repr()
    assert AddJobsHookQueue.entered == [(f"{name}:1", False), (f"{name}:2", True), (f"{name}:3", False)]


def test_methods_of_a_job_are_called_as_by_add_job(database: Any) -> None:
    specs = ["a", {"identifier": "b", "delayed_until": IN_2050}, {"identifier": "a", "priority": 4, "prepend": True}]
    AddJobsHookJob.moves.clear()
    add_one_by_one(AddJobsHookJob, specs, queue_name="q")
    alone = list(AddJobsHookJob.moves)
    connection().flushall()
    AddJobsHookJob.moves.clear()

    AddJobsHookJob.add_jobs(specs, "q")

    assert AddJobsHookJob.moves == alone


# --- Order, numbers, iterables


def identifiers_in(queue: Any) -> list[str]:
    """The identifiers of the jobs that wait in a queue, in its order."""
    idents = [ident.rpartition(":") for ident in queue.waiting.lmembers()]
    keys = {model.get_model_repr(): model._name for model in MODELS}
    return [str(connection().hget(f"{keys[name]}:{pk}:hash", "identifier")) for name, _, pk in idents]


@pytest.mark.parametrize("count", [0, 1, CHUNK_JOBS - 1, CHUNK_JOBS, CHUNK_JOBS + 1, THREE_CHUNKS])
def test_a_generator_of_any_length_is_added_in_its_order(database: Any, count: int) -> None:
    added = Job.add_jobs((f"job {number}" for number in range(count)), "q")

    assert added == (count, 0)
    assert (added.new, added.existing) == (count, 0)
    assert identifiers_in(Queue.get_queue("q")) == [f"job {number}" for number in range(count)]
    assert admin.check() == []


def test_prepended_jobs_come_first_the_last_one_before_all(database: Any) -> None:
    Job.add_job("old", "q")

    Job.add_jobs((str(number) for number in range(THREE_CHUNKS)), "q", prepend=True)

    assert identifiers_in(Queue.get_queue("q")) == [*map(str, reversed(range(THREE_CHUNKS))), "old"]


def test_existing_jobs_are_counted_in_each_chunk(database: Any) -> None:
    Job.add_jobs(range(0, THREE_CHUNKS, 3), "q")

    added = Job.add_jobs([*range(THREE_CHUNKS), 0, THREE_CHUNKS - 1], "q")

    assert added == (THREE_CHUNKS - 400, 402)
    assert len(Job.collection()) == THREE_CHUNKS
    assert admin.check() == []


def test_a_repeated_call_adds_nothing(database: Any) -> None:
    Job.add_jobs(range(THREE_CHUNKS), "q")
    before = dump()

    added = Job.add_jobs(range(THREE_CHUNKS), "q")

    assert added == (0, THREE_CHUNKS)
    assert dump() == before


@pytest.mark.parametrize("times", [2, 3, 4])
@pytest.mark.parametrize("is_known", [False, True], ids=["new queue", "known queue"])
def test_an_identifier_that_comes_several_times_is_added_once(database: Any, is_known: bool, times: int) -> None:
    if is_known:
        Job.add_job("other", "q")

    added = Job.add_jobs(["a"] * times, "q")

    assert added == (1, times - 1)
    assert len(Job.collection(identifier="a")) == 1
    assert admin.check() == []


def test_no_specs_add_nothing(database: Any) -> None:
    assert Job.add_jobs([], "q") == (0, 0)
    assert dump() == {}


def test_large_values_are_added_in_several_round_trips(database: Any) -> None:
    text = "\u00e9" * 200_000

    added = AddJobsJob.add_jobs(({"identifier": number, "note": text} for number in range(10)), "q")

    assert added == (10, 0)
    assert [connection().hget(f"{AddJobsJob._name}:{number}:hash", "note") for number in range(1, 11)] == [text] * 10


def test_jobs_of_several_classes_and_fields_stand_in_the_order_given(database: Any) -> None:
    """Also when Redis knows the scripts of some, and not those of others."""
    AddJobsJob.add_job("known", "elsewhere", label="x")
    connection().script_flush()
    AddJobsJob.add_job("known", "elsewhere", label="x")

    specs = [
        "a",
        {"identifier": "b", "label": "x"},
        {"identifier": "c", "size": 1},
        {"identifier": "d", "label": "x"},
        "e",
    ]
    AddJobsJob.add_jobs(specs, "q")

    assert identifiers_in(Queue.get_queue("q")) == ["a", "b", "c", "d", "e"]


def test_the_first_of_two_specs_with_one_identifier_wins_also_when_redis_knows_only_the_script_of_the_second(
    database: Any,
) -> None:
    connection().script_flush()
    AddJobsJob.add_job("known", "elsewhere", label="x")

    AddJobsJob.add_jobs(["a", {"identifier": "a", "label": "second"}], "q")

    assert AddJobsJob.get(identifier="a").label.get() is None


def test_a_job_that_keeps_its_priority_moves_in_the_order_given(database: Any) -> None:
    """Its queue is of a priority that only Redis knows: it has to be made while others are added."""
    Job.add_job("kept", "q", 5)

    Job.add_jobs([{"identifier": "kept"}, {"identifier": "next", "priority": 5}], "other", prepend=True)

    assert identifiers_in(Queue.get_queue("other", 5)) == ["next", "kept"]


def test_added_is_the_time_of_the_call(database: Any) -> None:
    before = utcnow()

    Job.add_jobs(["a", "b"], "q")

    for pk in ("1", "2"):
        assert before <= parse_datetime(Job.get(pk).added.hget()) <= utcnow()


def test_added_is_not_before_the_spec_came_out_of_the_iterable(database: Any, monkeypatch: Any) -> None:
    clock = ["2030-01-01 12:00:00"]
    monkeypatch.setattr(additions, "now_text", lambda: clock[0])

    def specs() -> Iterator[str]:
        yield "a"
        clock[0] = "2030-01-01 13:00:00"
        yield "b"

    Job.add_jobs(specs(), "q")

    assert [Job.get(pk).added.hget() for pk in "12"] == ["2030-01-01 12:00:00", "2030-01-01 13:00:00"]


def test_jobs_can_be_added_while_others_are_read_from_redis(database: Any, redis_server: RedisServer) -> None:
    Job.add_jobs(range(THREE_CHUNKS), "q")

    added = AddJobsJob.add_jobs((job.identifier.hget() for job in Job.collection().instances()), "q")

    assert added == (THREE_CHUNKS, 0)


# --- Bad input


@pytest.mark.parametrize("specs", ["abc", b"abc", {"identifier": "a"}, None, 5, Job])
def test_what_is_no_iterable_of_specs_is_refused(database: Any, specs: Any) -> None:
    with pytest.raises(InvalidArgument, match="specs"):
        Job.add_jobs(specs, "q")

    assert dump() == {}


@pytest.mark.parametrize("retry_for", [-1, "1", True, float("nan")])
def test_a_bad_retry_for_is_refused(database: Any, retry_for: Any) -> None:
    with pytest.raises(InvalidArgument, match="retry_for"):
        Job.add_jobs(["a"], "q", retry_for=retry_for)

    assert dump() == {}


@pytest.mark.parametrize(
    "spec", [None, ["a"], ("a", 1), {}, {"size": 1}, object(), {"a"}], ids=lambda spec: type(spec).__name__
)
def test_a_spec_that_names_no_identifier_is_refused_after_those_before_it_are_added(database: Any, spec: Any) -> None:
    with pytest.raises(InvalidArgument, match="specs"):
        AddJobsJob.add_jobs(["a", "b", spec, "c"], "q")

    assert identifiers_in(Queue.get_queue("q"))[:2] == ["a", "b"]
    assert len(AddJobsJob.collection()) == 2


BAD_SPECS: list[dict[str, Any]] = [
    {"identifier": None},
    {"identifier": True},
    {"identifier": ["a"]},
    {"identifier": b"\xff"},
    {"identifier": "lone \ud800"},
    {"priority": "high"},
    {"priority": 1.5},
    {"priority": True},
    {"priority": None},
    {"priority": [1]},
    {"priority": 2**53 + 1},
    {"queue_name": ""},
    {"queue_name": "a,b"},
    {"queue_name": 5},
    {"queue_name": ["q"]},
    {"queue_model": Job},
    {"queue_model": "Queue"},
    {"queue_model": 0},
    {"queue_model": False},
    {"queue_model": ""},
    {"queue_model": []},
    {"delayed_for": "5"},
    {"delayed_for": 5, "delayed_until": IN_2050},
    {"delayed_until": "soon"},
    {"colour": "red"},
    {"size": 1, "colour": "red"},
    {"size": None},
    {"size": ["a"]},
    {"note": "good", "size": None},
    {"size": 1, "note": None},
    {"year": "nan"},
    {"tags": [None]},
    {"scores": ["a"]},
    {"pk": 5},
]


@pytest.mark.parametrize("with_size", [False, True], ids=["plain", "with a field"])
@pytest.mark.parametrize("bad", BAD_SPECS, ids=str)
def test_a_bad_spec_is_refused_as_by_add_job_after_those_before_it_are_added(
    database: Any, bad: dict[str, Any], with_size: bool
) -> None:
    more = {"size": 1, "note": "n"} if with_size else {}
    before = [{"identifier": name, **more} for name in "abc"]
    add_one_by_one(AddJobsJob, before, queue_name="q")
    expected = stored()
    with pytest.raises(ValueError) as alone:
        add_one_by_one(AddJobsJob, [{"identifier": "bad", **bad}], queue_name="q")
    connection().flushall()

    with pytest.raises(ValueError) as caught:
        AddJobsJob.add_jobs([*before, {"identifier": "bad", **bad}, {"identifier": "after"}], "q")

    assert type(caught.value) is type(alone.value)
    assert str(caught.value) == str(alone.value)
    assert stored() == expected
    assert admin.check() == []


def test_a_bad_value_in_the_middle_of_jobs_with_the_same_fields_writes_nothing_of_its_job(database: Any) -> None:
    specs = [{"identifier": str(number), "size": number if number != 3 else None} for number in range(6)]

    with pytest.raises(InvalidArgument, match="size"):
        AddJobsJob.add_jobs(specs, "q")

    assert identifiers_in(Queue.get_queue("q")) == ["0", "1", "2"]
    assert len(AddJobsJob.collection()) == 3
    assert admin.check() == []


@pytest.mark.parametrize("queue_model", [0, False, "", []], ids=repr)
def test_add_job_refuses_a_queue_model_that_is_none_also_when_it_has_added_before(
    database: Any, queue_model: Any
) -> None:
    Job.add_job("a", "q")

    with pytest.raises(InvalidArgument, match="queue_model"):
        Job.add_job("b", "q", queue_model=queue_model)


def test_without_a_queue_name_nothing_is_added(database: Any) -> None:
    with pytest.raises(LimpydJobsException, match="Queue's name not defined"):
        Job.add_jobs(["a"])

    assert dump() == {}


@pytest.mark.parametrize("count", [0, 3, CHUNK_JOBS, THREE_CHUNKS])
@pytest.mark.parametrize("error", [RuntimeError, InvalidArgument, redis.ConnectionError])
def test_what_came_before_an_error_of_the_iterable_is_added(database: Any, error: Any, count: int) -> None:
    raised = error("a", "b", "c") if error is InvalidArgument else error("no more")

    def specs() -> Iterator[str]:
        yield from map(str, range(count))
        raise raised

    with pytest.raises(error) as caught:
        Job.add_jobs(specs(), "q")

    assert caught.value is raised
    assert identifiers_in(Queue.get_queue("q")) == [str(number) for number in range(count)]


# --- Errors of single jobs


def codes(*numbers: int) -> list[dict[str, Any]]:
    return [{"identifier": f"job {number}", "code": number} for number in numbers]


def test_a_unique_value_that_is_taken_keeps_only_its_job_from_being_added(database: Any) -> None:
    AddJobsUniqueJob.add_job("first", "q", code=3)

    with pytest.raises(JobAlreadyExists, match="code"):
        AddJobsUniqueJob.add_jobs(codes(1, 2, 3, 4), "q")

    assert identifiers_in(Queue.get_queue("q")) == ["first", "job 1", "job 2", "job 4"]
    assert admin.check() == []


def test_a_unique_value_that_comes_twice_is_added_once(database: Any) -> None:
    with pytest.raises(JobAlreadyExists, match="code"):
        AddJobsUniqueJob.add_jobs([*codes(1, 2), {"identifier": "again", "code": 1}], "q")

    assert identifiers_in(Queue.get_queue("q")) == ["job 1", "job 2"]


def test_the_error_of_the_first_job_is_raised_and_all_before_it_are_added(database: Any) -> None:
    AddJobsUniqueJob.add_job("first", "q", code=700)

    with pytest.raises(JobAlreadyExists, match="code"):
        AddJobsUniqueJob.add_jobs([*codes(*range(1, THREE_CHUNKS)), None], "q")

    found = identifiers_in(Queue.get_queue("q"))
    assert found[1:700] == [f"job {number}" for number in range(1, 700)]
    assert "job 700" not in found
    assert admin.check() == []


def test_the_error_of_the_first_job_is_raised_also_when_one_of_the_next_chunk_is_refused(database: Any) -> None:
    AddJobsUniqueJob.add_job("first", "q", code=10)
    connection().set(Queue.get_queue("broken").waiting.key, "no list")
    in_next_chunk = {"identifier": "b", "queue_name": "broken", "code": 0}

    with pytest.raises(JobAlreadyExists):
        AddJobsUniqueJob.add_jobs([*codes(*range(1, CHUNK_JOBS + 5)), in_next_chunk, *codes(*range(600, 1200))], "q")


def free_connections(database: Any) -> int:
    """How many connections of the pool somebody took and did not give back, but for those that are spare."""
    pool = database.connection.connection_pool
    return len(pool._in_use_connections) - len(pool.__dict__.get("_limpyd_jobs_spares", []))


def test_an_error_in_the_first_of_several_chunks_keeps_no_connection(database: Any) -> None:
    AddJobsUniqueJob.add_job("first", "q", code=10)
    before = free_connections(database)

    for _ in range(3):
        with pytest.raises(JobAlreadyExists):
            AddJobsUniqueJob.add_jobs(codes(*range(1, THREE_CHUNKS)), "q")

    assert free_connections(database) == before


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit, GeneratorExit])
def test_an_iterable_that_ends_with_an_error_keeps_no_connection(database: Any, error: type[BaseException]) -> None:
    def specs() -> Iterator[str]:
        yield from map(str, range(CHUNK_JOBS + 10))
        raise error

    before = free_connections(database)
    with pytest.raises(error):
        Job.add_jobs(specs(), "q")

    assert free_connections(database) == before
    assert Job.add_job("next", "q").identifier.hget() == "next"
    assert len(Job.collection()) == (CHUNK_JOBS + 11 if error is RuntimeError else CHUNK_JOBS + 1)


def test_a_broken_queue_keeps_only_its_own_jobs_from_being_added(database: Any) -> None:
    broken = Queue.get_queue("broken")
    connection().set(broken.waiting.key, "no list")

    with pytest.raises(WrongKeyType) as caught:
        Job.add_jobs(["a", {"identifier": "b", "queue_name": "broken"}, "c"], "q")

    assert caught.value.key == broken.waiting.key
    assert identifiers_in(Queue.get_queue("q")) == ["a", "c"]
    assert len(Job.collection()) == 2
    connection().delete(broken.waiting.key)
    assert admin.check() == []


@pytest.mark.parametrize("count", [1, 3])
def test_something_else_under_the_index_of_an_identifier_keeps_only_its_job_from_being_added(
    database: Any, count: int
) -> None:
    names = ["a", "b", "c"][:count]
    connection().set("jobs:job:identifier:b", "no set")

    if "b" in names:
        with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
            Job.add_jobs(names, "q")
    else:
        Job.add_jobs(names, "q")

    assert identifiers_in(Queue.get_queue("q")) == [name for name in names if name != "b"]
    connection().delete("jobs:job:identifier:b")
    assert [str(problem) for problem in admin.check()] == []


def test_something_else_under_the_index_of_a_field_keeps_only_its_job_from_being_added(database: Any) -> None:
    connection().set(f"{AddJobsJob._name}:size:2", "no set")

    with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        AddJobsJob.add_jobs([{"identifier": str(size), "size": size} for size in (1, 2, 3)], "q")

    assert identifiers_in(Queue.get_queue("q")) == ["1", "3"]
    connection().delete(f"{AddJobsJob._name}:size:2")
    assert [str(problem) for problem in admin.check()] == []


@pytest.mark.parametrize("key", ["jobs:job:status:w", "jobs:job:priority:0", "jobs:job:queued:1"])
def test_something_else_under_an_index_of_all_of_them_leaves_no_job_in_no_place(database: Any, key: str) -> None:
    connection().set(key, "no set")

    with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        Job.add_jobs(["a", "b", "c"], "q")

    connection().delete(key)
    wrong = [problem for problem in admin.check() if problem.kind == "place"]
    assert wrong == []


# --- While the iterable is read


class Reading:
    """An iterable of two chunks and some, and what it finds when it was asked for more than the first chunk."""

    def __init__(self, look: Any) -> None:
        self._look = look
        self.found: Any = None

    def __iter__(self) -> Iterator[int]:
        for number in range(THREE_CHUNKS):
            if number == CHUNK_JOBS + 10:
                self.found = self._look()
            yield number


def test_a_chunk_is_added_while_the_next_one_is_read(database: Any, redis_server: RedisServer) -> None:
    client = redis_server.client()

    def look() -> int:
        wait_until(lambda: client.llen(queue.waiting.key) == CHUNK_JOBS, message="the first chunk is added")
        return free_connections(database)

    queue, specs = Queue.get_queue("q"), Reading(look)
    assert Job.add_jobs(specs, "q") == (THREE_CHUNKS, 0)

    assert specs.found == 1
    assert free_connections(database) == 0


@pytest.mark.parametrize("limit", [1, wire.SHARE - 1])
def test_a_small_pool_has_all_its_connections_while_the_next_chunk_is_read(
    database: Any, redis_server: RedisServer, limit: int
) -> None:
    database.connect(**redis_server.settings, max_connections=limit)
    specs = Reading(lambda: (Queue.count_waiting_jobs("q"), free_connections(database)))

    assert Job.add_jobs(specs, "q") == (THREE_CHUNKS, 0)

    assert specs.found == (CHUNK_JOBS, 0)
    database.connect(**redis_server.settings)


def test_a_pool_without_a_free_connection_is_waited_for(database: Any, redis_server: RedisServer) -> None:
    pool = database.connect(**redis_server.settings, max_connections=wire.SHARE).connection_pool
    wire.release_spares(pool)
    held = [pool.get_connection() for _ in range(wire.SHARE)]
    timer = threading.Timer(0.3, lambda: [pool.release(one) for one in held])
    timer.start()

    assert Job.add_jobs(range(CHUNK_JOBS + 10), "q", retry_for=5) == (CHUNK_JOBS + 10, 0)

    timer.join()
    database.connect(**redis_server.settings)


def test_an_iterable_may_add_jobs_itself(database: Any) -> None:
    specs = Reading(lambda: Job.add_jobs((f"inner {number}" for number in range(THREE_CHUNKS)), "inner"))

    assert Job.add_jobs(specs, "q") == (THREE_CHUNKS, 0)

    assert specs.found == (THREE_CHUNKS, 0)
    for name, prefix in (("q", ""), ("inner", "inner ")):
        assert identifiers_in(Queue.get_queue(name)) == [f"{prefix}{number}" for number in range(THREE_CHUNKS)]
    assert free_connections(database) == 0


def test_a_process_that_the_iterable_forks_reads_no_reply_of_its_parent(database: Any) -> None:
    pids: list[int] = []
    forked = Reading(lambda: pids.append(os.fork()))
    added = None
    try:
        added = Job.add_jobs(forked, "q")
    finally:
        if pids == [0]:
            os._exit(0 if added is not None and sum(added) == THREE_CHUNKS else 1)

    assert os.waitstatus_to_exitcode(os.waitpid(pids[0], 0)[1]) == 0
    assert sum(added) == THREE_CHUNKS
    assert sorted(map(int, identifiers_in(Queue.get_queue("q")))) == list(range(THREE_CHUNKS))
    assert free_connections(database) == 0


def test_jobs_are_added_at_once_within_a_pipeline_of_limpyd(database: Any) -> None:
    with database.pipeline():
        added = Job.add_jobs(range(THREE_CHUNKS), "q")

    assert added == (THREE_CHUNKS, 0)
    assert Queue.count_waiting_jobs("q") == THREE_CHUNKS


def test_the_ends_of_a_worker_are_sent_before_each_chunk(database: Any, monkeypatch: Any) -> None:
    waiting: set[int] = set()
    monkeypatch.setattr(models.unsent_ends, "settle", lambda: waiting.add(Queue.count_waiting_jobs("q")))

    Job.add_jobs(range(THREE_CHUNKS), "q")

    assert waiting >= {0, CHUNK_JOBS, 2 * CHUNK_JOBS}


def test_ends_of_a_worker_that_cannot_be_sent_keep_no_connection(database: Any, monkeypatch: Any) -> None:
    def settle() -> None:
        if Queue.count_waiting_jobs("q"):
            raise redis.ConnectionError("no more")

    monkeypatch.setattr(models.unsent_ends, "settle", settle)

    with pytest.raises(redis.ConnectionError, match="no more"):
        Job.add_jobs(range(THREE_CHUNKS), "q", retry_for=0)

    assert free_connections(database) == 0


def test_a_reply_that_comes_too_late_is_nobodys(database: Any, redis_server: RedisServer) -> None:
    database.connect(**redis_server.settings, socket_timeout=0.2)
    client = redis_server.client()
    specs = Reading(lambda: client.client_pause(500, all=True))

    added = Job.add_jobs(specs, "q", retry_for=5)

    assert sum(added) == THREE_CHUNKS
    assert identifiers_in(Queue.get_queue("q")) == [str(number) for number in range(THREE_CHUNKS)]
    assert free_connections(database) == 0
    database.connect(**redis_server.settings)


def test_what_a_class_says_of_the_time_counts_from_the_adding_of_each_job(database: Any, monkeypatch: Any) -> None:
    clock = [1000.0]
    monkeypatch.setattr(run_options_module, "seconds_now", lambda: clock[0])

    def specs() -> Iterator[str]:
        yield "a"
        clock[0] += 3600
        yield "b"

    AddJobsExpiringJob.add_jobs(specs(), "q")

    assert [AddJobsExpiringJob.get(pk).run_options.hget() for pk in "12"] == [
        '{"expires":1060.0}',
        '{"expires":4660.0}',
    ]


# --- Round trips


def script_calls(client: Any) -> int:
    """How many scripts the server has run."""
    stats = client.info("commandstats")
    return sum(stats.get(f"cmdstat_{name}", {}).get("calls", 0) for name in ("eval", "evalsha"))


def requests(client: Any) -> int:
    """How many requests the server has read, the one that asks included."""
    return int(client.info("stats")["total_reads_processed"])


@pytest.mark.parametrize("values", [{}, {"size": 1}, {"priority": 4}, {"label": "x"}, {"delayed_for": 9}], ids=str)
def test_add_job_costs_one_round_trip(database: Any, redis_server: RedisServer, values: dict[str, Any]) -> None:
    AddJobsJob.add_job("warm", "q", **values)
    client = redis_server.client()
    client.ping()

    for identifier in ("new", "new"):
        before = requests(client)
        AddJobsJob.add_job(identifier, "q", **values)
        assert requests(client) - before - 1 == 1


@pytest.mark.parametrize("more", [{}, {"size": 1}], ids=["plain", "with a field"])
def test_many_alike_jobs_cost_a_script_call_for_each_chunk(database: Any, redis_server: RedisServer, more: Any) -> None:
    specs = [{"identifier": number, **more} for number in range(1200)]
    AddJobsJob.add_jobs(specs[:2], "q")
    client = redis_server.client()

    for expected in ((1198, 2), (0, 1200)):
        before = script_calls(client)
        assert AddJobsJob.add_jobs(specs, "q") == expected
        assert script_calls(client) - before <= 4


def test_scripts_that_redis_has_forgotten_are_sent_again(database: Any) -> None:
    Job.add_jobs(["before"], "q")
    connection().script_flush()

    assert Job.add_jobs(range(1200), "q") == (1200, 0)

    assert identifiers_in(Queue.get_queue("q")) == ["before", *map(str, range(1200))]


@pytest.mark.parametrize("is_flushed", [False, True], ids=["scripts known", "scripts forgotten"])
def test_a_pool_of_one_connection_is_enough(database: Any, redis_server: RedisServer, is_flushed: bool) -> None:
    database.connect(**redis_server.settings, max_connections=1, client_name="only-one")
    Job.add_jobs(["before"], "q")
    if is_flushed:
        connection().script_flush()

    assert Job.add_jobs(range(1200), "q", retry_for=0.5) == (1200, 0)


# --- Outages


@pytest.fixture
def proxy(database: Any, redis_server: RedisServer) -> Iterator[Proxy]:
    """Between the models and the server."""
    with Proxy("127.0.0.1", redis_server.port) as found:
        database.connect(found.url + "?socket_timeout=3")
        yield found
    database.connect(**redis_server.settings)


@pytest.mark.parametrize("fault", ["drop", "reset"])
@pytest.mark.parametrize("position", [0, 300, CHUNK_JOBS, CHUNK_JOBS + 1, 900, THREE_CHUNKS - 1])
@pytest.mark.parametrize("kind", ["alike", "of two kinds"])
def test_a_connection_that_breaks_in_the_middle_loses_and_doubles_no_job(
    proxy: Proxy, redis_server: RedisServer, database: Any, kind: str, position: int, fault: Any
) -> None:
    AddJobsJob.add_job("warm", "warm")
    AddJobsJob.add_job("warm too", "warm", label="x")

    def specs() -> Iterator[Any]:
        for number in range(THREE_CHUNKS):
            if number == position:
                proxy.fail_next(fault)
            yield {"identifier": number, "label": "x"} if kind == "of two kinds" and number % 100 == 0 else number

    added = AddJobsJob.add_jobs(specs(), "q")

    assert proxy.counts[fault] == (1 if position < THREE_CHUNKS else 0)
    assert sum(added) == THREE_CHUNKS
    assert sorted(map(int, identifiers_in(Queue.get_queue("q")))) == list(range(THREE_CHUNKS))
    assert admin.check() == []


@pytest.mark.parametrize("fault", ["drop", "reset"])
def test_the_order_survives_a_broken_connection(proxy: Proxy, fault: Any) -> None:
    Job.add_job("warm", "warm")
    proxy.fail_next(fault)

    Job.add_jobs(range(THREE_CHUNKS), "q")

    assert identifiers_in(Queue.get_queue("q")) == [str(number) for number in range(THREE_CHUNKS)]


@pytest.mark.parametrize("killed_at", [0, 1, CHUNK_JOBS - 1, CHUNK_JOBS + 1, 2 * CHUNK_JOBS + 1])
@pytest.mark.parametrize("way", ["unix", "tcp"])
def test_a_server_that_closes_all_connections_loses_and_doubles_no_job(
    database: Any, redis_server: RedisServer, way: str, killed_at: int
) -> None:
    name = f"killed-{way}-{killed_at}"
    database.connect(
        **(redis_server.settings if way == "unix" else redis_server.tcp_settings), client_name=name, socket_timeout=2
    )
    killer: Any = redis_server.client()
    Job.add_job("warm", "warm")

    def specs() -> Iterator[int]:
        for number in range(THREE_CHUNKS):
            if number == killed_at:
                for link in [found["id"] for found in killer.client_list() if found["name"] == name]:
                    killer.client_kill_filter(_id=link)
            yield number

    added = Job.add_jobs(specs(), "q")

    assert sum(added) == THREE_CHUNKS
    assert identifiers_in(Queue.get_queue("q")) == [str(number) for number in range(THREE_CHUNKS)]
    assert admin.check() == []


@pytest.mark.parametrize("fault", ["drop", "reset"])
@pytest.mark.parametrize("position", [0, CHUNK_JOBS - 1, CHUNK_JOBS + 1])
def test_a_connection_that_breaks_in_the_middle_is_given_back(
    proxy: Proxy, database: Any, position: int, fault: Any
) -> None:
    Job.add_job("warm", "warm")

    def specs() -> Iterator[int]:
        for number in range(THREE_CHUNKS):
            if number == position:
                proxy.fail_next(fault)
            yield number

    Job.add_jobs(specs(), "q")

    assert free_connections(database) == 0


def test_a_health_check_between_two_chunks_mixes_up_no_answers(database: Any, redis_server: RedisServer) -> None:
    """A slow iterable: the connection is due to be checked while the reply to a chunk is still to be read."""
    client = database.connect(**redis_server.settings, health_check_interval=1000, socket_timeout=2)
    Job.add_jobs(range(100), "q")

    def specs() -> Iterator[int]:
        yield from range(CHUNK_JOBS)
        yield CHUNK_JOBS
        for link in client.connection_pool._in_use_connections:
            link.next_health_check = 0
        yield from range(CHUNK_JOBS + 1, 2 * CHUNK_JOBS)

    assert Job.add_jobs(specs(), "q") == (2 * CHUNK_JOBS - 100, 100)
    assert admin.check() == []


def test_after_retry_for_the_error_of_redis_is_raised(proxy: Proxy, database: Any) -> None:
    Job.add_job("warm", "warm")
    proxy.refuse()
    proxy.break_all()
    before = utcnow()

    with pytest.raises(redis.ConnectionError):
        Job.add_jobs(range(THREE_CHUNKS), "q", retry_for=0.3)

    assert utcnow() - before < timedelta(seconds=2)
    assert free_connections(database) == 0


def test_an_outage_shorter_than_retry_for_is_waited_for(proxy: Proxy, database: Any) -> None:
    Job.add_job("warm", "warm")
    proxy.refuse()
    proxy.break_all()
    timer = threading.Timer(0.5, proxy.accept)
    timer.start()

    added = Job.add_jobs(range(THREE_CHUNKS), "q", retry_for=10)

    timer.join()
    assert sum(added) == THREE_CHUNKS
    assert admin.check() == []


def stop_memory(client: Any) -> None:
    client.config_set("maxmemory", 1)


def resume_memory(client: Any) -> None:
    client.config_set("maxmemory", 0)


def stop_master(client: Any) -> None:
    client.execute_command("REPLICAOF", "127.0.0.1", free_port())


def resume_master(client: Any) -> None:
    client.execute_command("REPLICAOF", "NO", "ONE")


@pytest.mark.parametrize(
    "add",
    [lambda: Job.add_job("new", "q", retry_for=10), lambda: Job.add_jobs(["new"], "q", retry_for=10)],
    ids=["add_job", "add_jobs"],
)
@pytest.mark.parametrize(
    ("stop", "resume"), [(stop_memory, resume_memory), (stop_master, resume_master)], ids=["full", "replica"]
)
def test_a_server_that_refuses_to_write_for_a_moment_is_waited_for(
    database: Any, stop: Any, resume: Any, add: Any
) -> None:
    with RedisServer() as server:
        database.connect(**server.settings)
        Job.add_job("warm", "q")
        client = server.client()
        stop(client)
        timer = threading.Timer(0.5, resume, [client])
        timer.start()
        try:
            add()
        finally:
            timer.join()

        assert identifiers_in(Queue.get_queue("q")) == ["warm", "new"]
        assert admin.check() == []


def test_nothing_is_written_by_a_server_that_is_full(database: Any) -> None:
    with RedisServer() as server:
        database.connect(**server.settings)
        Job.add_jobs(["warm", "warmer"], "q")
        before = dump()
        stop_memory(server.client())

        with pytest.raises(redis.ResponseError, match=r"OOM|used memory"):
            Job.add_jobs(["a", "b", "c"], "q", retry_for=0)

        assert dump() == before


def test_many_threads_that_add_the_same_jobs_add_each_once(database: Any) -> None:
    barrier = threading.Barrier(4)
    counts: list[Any] = []

    def add() -> None:
        barrier.wait()
        counts.append(Job.add_jobs(range(THREE_CHUNKS), "q"))

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)

    assert (sum(count.new for count in counts), len(counts)) == (THREE_CHUNKS, 4)
    assert len(Job.collection()) == THREE_CHUNKS
    assert admin.check() == []
