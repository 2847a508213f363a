"""Subclasses with fields and indexes of their own go through every transition, and limpyd finds them all the time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import pytest
from limpyd import fields
from limpyd.contrib.indexes import DateTimeIndex
from limpyd.exceptions import UniquenessError
from limpyd.indexes import EqualIndex, NumberRangeIndex, TextRangeIndex

from limpyd_jobs import STATUSES, Error, Job, LimpydJobsException, Queue
from limpyd_jobs.exceptions import JobAlreadyExists, JobNotInStatus

from .support import (
    assert_filters_equal_hashes,
    assert_indexes_as_rebuilt,
    assert_only_place,
    connection,
    counted_round_trips,
    dump,
    fail,
    places,
    run_worker,
)

PAST = datetime(2001, 2, 3, 4, 5, 6)
IN_2050 = datetime(2050, 1, 2, 3, 4, 5, 678901)


class ReversedIndex(EqualIndex):
    """An index that only limpyd can maintain: it stores the values backwards."""

    def normalize_value(self, value: Any, transform: bool = True) -> Any:
        return super().normalize_value(value, transform)[::-1]


UpperIndex = EqualIndex.configure(prefix="upper", key="upper", transform=lambda value: value.upper(), name="UpperIndex")


class SubPlainJob(Job):
    pass


class SubFullJob(Job):
    """A field of every type of limpyd, with and without an index."""

    label = fields.StringField(indexable=True)
    note = fields.StringField()
    steps = fields.ListField(indexable=True)
    log = fields.ListField()
    tags = fields.SetField(indexable=True)
    seen = fields.SetField()
    scores = fields.SortedSetField(indexable=True)
    ranking = fields.SortedSetField()
    options = fields.HashField(indexable=True)
    extra = fields.HashField()
    size = fields.InstanceHashField(indexable=True)
    color = fields.InstanceHashField()
    year = fields.InstanceHashField(indexable=True, indexes=[NumberRangeIndex])
    title = fields.StringField(indexable=True, indexes=[TextRangeIndex])


FULL = {
    "label": "a label",
    "note": "a note",
    "steps": ["one", "two", "one"],
    "log": ["x"],
    "tags": {"red", "green"},
    "seen": {"somebody"},
    "scores": {"first": 1, "second": 2.5},
    "ranking": {"b": 2},
    "options": {"width": "3", "height": 4},
    "extra": {"anything": "goes"},
    "size": 12,
    "color": "blue",
    "year": 1999,
    "title": "the title",
}


class SubDefaultsJob(Job):
    size = fields.InstanceHashField(indexable=True, default=7)
    label = fields.StringField(indexable=True, default="unnamed")
    note = fields.InstanceHashField(default="")


class SubIndexedJob(Job):
    """Re-declared: what transitions write is indexed."""

    start = fields.InstanceHashField(indexable=True)
    end = fields.InstanceHashField(indexable=True)
    added = fields.InstanceHashField(indexable=True)
    tries = fields.InstanceHashField(indexable=True)
    delayed_until = fields.InstanceHashField(indexable=True)
    cancel_on_error = fields.InstanceHashField(indexable=True)


class SubUnindexedJob(Job):
    """Re-declared: nothing is indexed that a job can live without."""

    status = fields.InstanceHashField()
    priority = fields.InstanceHashField(default=0)
    queued = fields.InstanceHashField()


class SubRangeJob(Job):
    priority = fields.InstanceHashField(indexable=True, default=0, indexes=[NumberRangeIndex])
    status = fields.InstanceHashField(indexable=True, indexes=[TextRangeIndex])
    tries = fields.InstanceHashField(indexable=True, indexes=[NumberRangeIndex])


class SubBothJob(Job):
    priority = fields.InstanceHashField(
        indexable=True, default=0, indexes=[EqualIndex, NumberRangeIndex.configure(key="n")]
    )
    status = fields.InstanceHashField(indexable=True, indexes=[EqualIndex, TextRangeIndex.configure(key="t")])


class SubForeignJob(Job):
    status = fields.InstanceHashField(indexable=True, indexes=[ReversedIndex])
    priority = fields.InstanceHashField(
        indexable=True, default=0, indexes=[EqualIndex, ReversedIndex.configure(prefix="back", key="back")]
    )
    queued = fields.InstanceHashField(indexable=True, indexes=[ReversedIndex])
    start = fields.InstanceHashField(indexable=True, indexes=[DateTimeIndex])
    delayed_until = fields.InstanceHashField(indexable=True, indexes=[DateTimeIndex])
    identifier = fields.InstanceHashField(indexable=True, indexes=[EqualIndex, UpperIndex])


class SubForeignFieldJob(Job):
    """Foreign indexes on fields of its own, of several types."""

    size = fields.InstanceHashField(indexable=True, indexes=[ReversedIndex])
    label = fields.StringField(indexable=True, indexes=[UpperIndex])
    tags = fields.SetField(indexable=True, indexes=[ReversedIndex])
    born = fields.StringField(indexable=True, indexes=[DateTimeIndex])


class SubNamespaceQueue(Queue):
    namespace = "submail"


class SubNamespaceJob(Job):
    namespace = "submail"
    queue_model = SubNamespaceQueue

    size = fields.InstanceHashField(indexable=True)


class SubNamespaceError(Error):
    namespace = "submail"


class SubElsewhereJob(Job):
    """In a namespace of its own, in the queues of all."""

    namespace = "elsewhere"


class SubTaggedQueue(Queue):
    namespace = "{subtagged}"


class SubTaggedJob(Job):
    namespace = "{subtagged}"
    queue_model = SubTaggedQueue


class SubTaggedError(Error):
    namespace = "{subtagged}"


class SubKeyJob(Job):
    reference = fields.PKField()

    size = fields.InstanceHashField(indexable=True)


class SubAutoKeyJob(Job):
    number = fields.AutoPKField()


class SubRangeQueue(Queue):
    priority = fields.InstanceHashField(indexable=True, default=0, indexes=[NumberRangeIndex])
    color = fields.StringField(indexable=True, default="grey")
    opened = fields.InstanceHashField(default="yes")


class SubForeignQueue(Queue):
    priority = fields.InstanceHashField(indexable=True, default=0, indexes=[EqualIndex, UpperIndex])
    color = fields.InstanceHashField(indexable=True, default="grey", indexes=[ReversedIndex])


class SubKeyQueue(Queue):
    code = fields.PKField()


class SubAutoKeyQueue(Queue):
    number = fields.AutoPKField()


class SubUniqueJob(Job):
    token = fields.InstanceHashField(indexable=True, unique=True)
    serial = fields.StringField(indexable=True, unique=True)
    stamp = fields.InstanceHashField(indexable=True, unique=True, indexes=[NumberRangeIndex])
    slug = fields.InstanceHashField(indexable=True, unique=True, indexes=[TextRangeIndex])
    aliases = fields.SetField(indexable=True, unique=True)


class SubForeignUniqueJob(Job):
    token = fields.InstanceHashField(indexable=True, unique=True, indexes=[ReversedIndex])


class SubFullError(Error):
    server = fields.InstanceHashField(indexable=True)
    tags = fields.SetField(indexable=True)
    code = fields.InstanceHashField(indexable=True, indexes=[NumberRangeIndex])
    type = fields.InstanceHashField(
        indexable=True, indexes=[EqualIndex, ReversedIndex.configure(prefix="back", key="back")]
    )


# --- Each class through each transition


@dataclass
class Case:
    """A class of jobs, with what `add_job` is given, and where its jobs are put."""

    model: Any
    values: dict[str, Any] = field(default_factory=dict)
    queue_model: Any = Queue
    error_model: Any = Error

    def add(self, identifier: str = "a", queue_name: str = "q", **arguments: Any) -> Any:
        values = {name: value() if callable(value) else value for name, value in self.values.items()}
        return self.model.add_job(identifier, queue_name, queue_model=self.queue_model, **{**values, **arguments})

    def run(self, callback: Callable[..., Any] = lambda job, queue: None, **options: Any) -> None:
        run_worker("q", callback=callback, queue_model=self.queue_model, error_model=self.error_model, **options)

    def queue(self, priority: int = 0) -> Any:
        return self.queue_model.get_queue("q", priority)

    def check(self) -> None:
        indexed = (
            "status",
            "priority",
            "queued",
            "identifier",
            "start",
            "end",
            "tries",
            "delayed_until",
            "size",
            "year",
        )
        models = [model for model in (self.model, self.queue_model) if any(True for _ in model.collection())]
        names = [name for name in indexed if self.model.has_field(name) and self.model.get_field(name).indexable]
        assert_filters_equal_hashes(self.model, *(name for name in names if not is_of_dates(self.model, name)))
        assert_indexes_as_rebuilt(*models, self.error_model)


def is_of_dates(model: Any, name: str) -> bool:
    """Such an index answers `__date`, `__year`..., and not to the microsecond."""
    return any(hasattr(index, "_indexes") for index in model.get_field(name)._indexes)


references = iter(range(1, 10**6))
CASES: dict[str, Callable[[], Case]] = {
    "plain": lambda: Case(SubPlainJob),
    "full": lambda: Case(SubFullJob, FULL),
    "full-empty": lambda: Case(SubFullJob),
    "defaults": lambda: Case(SubDefaultsJob),
    "indexed": lambda: Case(SubIndexedJob),
    "unindexed": lambda: Case(SubUnindexedJob),
    "range": lambda: Case(SubRangeJob),
    "both": lambda: Case(SubBothJob),
    "foreign": lambda: Case(SubForeignJob),
    "foreign-fields": lambda: Case(
        SubForeignFieldJob, {"size": 12, "label": "hello", "tags": {"ab", "cd"}, "born": "2001-02-03 04:05:06"}
    ),
    "namespace": lambda: Case(SubNamespaceJob, {"size": 1}, SubNamespaceQueue, SubNamespaceError),
    "namespace-of-jobs": lambda: Case(SubElsewhereJob),
    "hash-tag": lambda: Case(SubTaggedJob, {}, SubTaggedQueue, SubTaggedError),
    "own-pk": lambda: Case(SubKeyJob, {"reference": lambda: f"{next(references)}", "size": 1}),
    "own-auto-pk": lambda: Case(SubAutoKeyJob),
    "range-queue": lambda: Case(SubPlainJob, {}, SubRangeQueue),
    "foreign-queue": lambda: Case(SubPlainJob, {}, SubForeignQueue),
    "auto-pk-queue": lambda: Case(SubPlainJob, {}, SubAutoKeyQueue),
    "foreign-everywhere": lambda: Case(SubForeignJob, {}, SubForeignQueue, SubFullError),
    "full-error": lambda: Case(SubFullJob, FULL, Queue, SubFullError),
    "unique": lambda: Case(
        SubUniqueJob, {name: lambda: f"{next(references)}" for name in ("token", "serial", "stamp", "slug", "aliases")}
    ),
}


@pytest.fixture(params=CASES)
def case(request: Any, database: Any) -> Case:
    return CASES[request.param]()


def test_g09_added(case: Case) -> None:
    job = case.add()

    assert type(job) is case.model
    assert job.hmget("identifier", "status", "priority", "queued") == ["a", STATUSES.WAITING, "0", "1"]
    assert_only_place(job, "waiting", case.queue())
    case.check()


def test_g09_added_again(case: Case) -> None:
    job = case.add()

    assert case.add().ident == job.ident
    assert len(list(case.model.collection())) == 1
    case.check()


def test_g09_added_with_a_delay(case: Case) -> None:
    job = case.add(delayed_until=IN_2050)

    assert job.hmget("status", "delayed_until") == [STATUSES.DELAYED, str(IN_2050)]
    assert_only_place(job, "delayed", case.queue())
    case.check()


@pytest.mark.parametrize("arguments", [{}, {"delayed_until": IN_2050}], ids=["waiting", "delayed"])
def test_g09_raised(case: Case, arguments: dict[str, Any]) -> None:
    job = case.add(priority=-5, **arguments)

    case.add(priority=12)

    assert job.hmget("priority", "status") == ["12", STATUSES.WAITING]
    assert_only_place(job, "waiting", case.queue(12))
    case.check()


def test_g09_prepended(case: Case) -> None:
    other, job = case.add("other"), case.add()

    case.add(prepend=True)

    assert case.queue().waiting.lmembers() == [job.ident, other.ident]
    case.check()


def test_g09_enqueued_or_delayed(case: Case) -> None:
    job = case.add()

    job.enqueue_or_delay("q", 3, IN_2050, queue_model=case.queue_model)
    case.check()
    job.enqueue_or_delay("q", queue_model=case.queue_model)

    assert_only_place(job, "waiting", case.queue(3))
    case.check()


def test_g09_placed(case: Case) -> None:
    job = case.add()

    case.queue(2).delay_job(job, IN_2050)
    assert_only_place(job, "delayed", case.queue(2))
    case.check()
    case.queue(3).enqueue_job(job)

    assert_only_place(job, "waiting", case.queue(3))
    case.check()


def test_g09_promoted(case: Case) -> None:
    job = case.add()
    case.queue().delay_job(job, PAST)

    assert case.queue().requeue_delayed_jobs() == []

    assert job.status.hget() == STATUSES.WAITING
    assert_only_place(job, "waiting", case.queue())
    case.check()


def test_g09_running(case: Case) -> None:
    seen: list[Any] = []

    def look(job: Any, queue: Any) -> None:
        case.check()
        seen.append((type(job), type(queue), job.hmget("status", "tries", "queued")))

    job = case.add()
    case.run(look)

    assert seen == [(case.model, case.queue_model, [STATUSES.RUNNING, "1", "1"])]
    assert job.status.hget() == STATUSES.SUCCESS


def test_g09_succeeded(case: Case) -> None:
    job = case.add()

    case.run()

    assert job.hmget("status", "queued") == [STATUSES.SUCCESS, None]
    assert case.queue().success.lmembers() == [job.ident]
    assert places(job, case.queue_model) == []
    case.check()


def test_g09_failed(case: Case) -> None:
    job = case.add()

    case.run(fail)

    assert job.hmget("status", "queued") == [STATUSES.ERROR, None]
    assert case.queue().errors.lmembers() == [job.ident]
    assert [error.type.hget() for error in case.error_model.collection_for_job(job).instances()] == ["ValueError"]
    case.check()


def test_g09_requeued_by_the_worker(case: Case) -> None:
    job = case.add()

    case.run(fail, requeue_times=1, requeue_delay_delta=100)

    assert job.hmget("status", "priority", "queued") == [STATUSES.DELAYED, "-1", "1"]
    assert_only_place(job, "delayed", case.queue(-1))
    case.check()


def test_g09_requeued(case: Case) -> None:
    job = case.add()
    case.run(fail)

    job.requeue("q", queue_model=case.queue_model)

    assert job.hmget("status", "queued", "start", "end") == [STATUSES.WAITING, "1", None, None]
    assert_only_place(job, "waiting", case.queue())
    case.check()


def test_g09_canceled(case: Case) -> None:
    job = case.add()

    job.status.hset(STATUSES.CANCELED)
    case.check()
    case.run()

    assert job.hmget("status", "queued") == [STATUSES.CANCELED, None]
    assert places(job, case.queue_model) == []
    case.check()


def test_g09_canceled_while_it_runs(case: Case) -> None:
    job = case.add()

    case.run(lambda job, queue: job.status.hset(STATUSES.CANCELED))

    assert job.hmget("status", "queued") == [STATUSES.CANCELED, None]
    case.check()


def test_g09_delayed_while_it_runs(case: Case) -> None:
    job = case.add()

    case.run(lambda job, queue: job.hmset(status=STATUSES.DELAYED, delayed_until=str(IN_2050)))

    assert job.hmget("status", "queued", "delayed_until") == [STATUSES.DELAYED, "1", str(IN_2050)]
    assert_only_place(job, "delayed", case.queue())
    case.check()


def test_g09_deleted(case: Case) -> None:
    job, other = case.add(), case.add("other")

    job.delete()

    assert list(case.model.collection()) == [other.pk.get()]
    case.check()


# --- Writes of single fields


NUMBERS = [
    "5",
    "-5",
    "1e5",
    "0.1234567",
    "1e-9",
    "abc",
    "",
    " 7 ",
    "0x10",
    "1_000",
    "٣",
    "inf",
    "-inf",
    2**60,
    1e300,
    0.1,
]


@pytest.mark.parametrize("value", NUMBERS)
def test_g09_a_number_index_is_as_limpyd_has_it_when_the_job_is_added(database: Any, value: Any) -> None:
    job = SubFullJob.add_job("a", "q", year=value)

    assert list(SubFullJob.collection(year=value)) == [job.pk.get()]
    assert_indexes_as_rebuilt(SubFullJob)


@pytest.mark.parametrize("value", NUMBERS)
def test_g09_a_number_index_is_as_limpyd_has_it_when_the_field_is_written(database: Any, value: Any) -> None:
    job = SubFullJob.add_job("a", "q", year=3)

    job.year.hset(value)

    assert list(SubFullJob.collection(year=value)) == [job.pk.get()]
    assert_indexes_as_rebuilt(SubFullJob)


@pytest.mark.parametrize("value", ["nan", "-nan", float("nan")])
def test_g09_what_a_number_index_cannot_hold_is_refused_and_writes_nothing(database: Any, value: Any) -> None:
    job = SubFullJob.add_job("a", "q", year=3)
    before = dump()

    for write in (lambda: job.year.hset(value), lambda: SubFullJob.add_job("b", "new-queue", year=value)):
        with pytest.raises(ValueError, match="year"):
            write()
        assert dump() == before


@pytest.mark.parametrize("value", ["a", "é ☃", "with:colon", "two words", "z" * 500])
def test_g09_a_text_index_is_as_limpyd_has_it(database: Any, value: str) -> None:
    job = SubRangeJob.add_job("a", "q")

    job.status.hset(value)

    assert list(SubRangeJob.collection(status=value)) == [job.pk.get()]
    assert_indexes_as_rebuilt(SubRangeJob)


@pytest.mark.parametrize("model", [SubPlainJob, SubIndexedJob, SubUnindexedJob, SubRangeJob, SubBothJob, SubForeignJob])
def test_g09_every_writing_method_keeps_the_indexes_in_step(database: Any, model: Any) -> None:
    job = model.add_job("a", "q", 3)
    writes: dict[str, Callable[[], Any]] = {
        "hset": lambda: job.status.hset("c"),
        "hset, the same": lambda: job.status.hset("c"),
        "hdel": lambda: job.queued.hdel(),
        "hdel, nothing": lambda: job.queued.hdel(),
        "hsetnx": lambda: job.queued.hsetnx("1"),
        "hsetnx, too late": lambda: job.queued.hsetnx("2"),
        "hincrby": lambda: job.priority.hincrby(2),
        "hincrby, new": lambda: job.tries.hincrby(1),
        "hincrbyfloat": lambda: job.priority.hincrbyfloat(0.5),
        "hmset": lambda: job.hmset(status="w", priority=1, tries=4),
        "hdel, several": lambda: job.hdel("status", "tries"),
    }
    results = {}
    for name, write in writes.items():
        results[name] = write()
        assert_indexes_as_rebuilt(model)

    assert job.hmget("status", "priority", "tries", "queued") == [None, "1", None, "1"]
    assert [int(results[name]) for name in ("hdel", "hdel, nothing", "hsetnx", "hsetnx, too late")] == [1, 0, 1, 0]
    assert [float(results[name]) for name in ("hincrby", "hincrby, new", "hincrbyfloat")] == [5, 1, 5.5]


@pytest.mark.parametrize("model", [SubPlainJob, SubRangeJob, SubForeignJob])
def test_g09_what_plain_limpyd_creates_goes_through_everything(database: Any, model: Any) -> None:
    job = model(identifier="a", status=STATUSES.WAITING, priority=2)

    job.enqueue_or_delay("q")
    assert model.add_job("a", "q", 4).ident == job.ident
    run_worker("q", callback=fail)
    job.requeue("q")

    assert_only_place(job, "waiting", Queue.get_queue("q", 4))
    assert_indexes_as_rebuilt(model, Queue)


# --- What is particular to some


def test_j55_each_type_of_field_is_saved(database: Any) -> None:
    job = SubFullJob.add_job("a", "q", **FULL)

    assert (job.label.get(), job.note.get(), job.title.get()) == ("a label", "a note", "the title")
    assert (job.steps.lmembers(), job.log.lmembers()) == (["one", "two", "one"], ["x"])
    assert (job.tags.smembers(), job.seen.smembers()) == ({"red", "green"}, {"somebody"})
    assert job.scores.zrange(0, -1, withscores=True) == [("first", 1.0), ("second", 2.5)]
    assert job.ranking.zrange(0, -1, withscores=True) == [("b", 2.0)]
    assert job.options.hgetall() == {"width": "3", "height": "4"}
    assert job.extra.hgetall() == {"anything": "goes"}
    assert job.hmget("size", "color", "year") == ["12", "blue", "1999"]


@pytest.mark.parametrize(
    "filters",
    [
        {"label": "a label"},
        {"steps": "two"},
        {"tags": "red"},
        {"scores": "second"},
        {"options__width": "3"},
        {"size": 12},
        {"year": 1999},
        {"year__gte": 1999, "year__lt": 2000},
        {"title__startswith": "the"},
        {"tags": "green", "status": "w", "size": "12"},
    ],
)
def test_j55_each_type_of_field_can_be_filtered_on(database: Any, filters: dict[str, Any]) -> None:
    job = SubFullJob.add_job("a", "q", **FULL)
    SubFullJob.add_job("b", "q")

    assert list(SubFullJob.collection(**filters)) == [job.pk.get()]


def test_j55_a_record_is_the_same_as_one_that_limpyd_makes(database: Any) -> None:
    """The same keys with the same values, but for what `add_job` itself knows."""
    prefix = f"{SubFullJob._name}:"
    SubFullJob.add_job("a", "q", priority=3, **FULL)
    ours = {key: value for key, value in dump().items() if key.startswith(prefix)}
    details = ours[f"{prefix}1:hash"]
    connection().flushall()

    SubFullJob(**{**FULL, **details})

    assert {key: value for key, value in dump().items() if key.startswith(prefix)} == ours


@pytest.mark.parametrize(
    ("given", "expected"), [({}, ["7", "unnamed", ""]), ({"size": 9, "label": "x", "note": "y"}, ["9", "x", "y"])]
)
def test_j55_defaults_are_saved_and_indexed(database: Any, given: dict[str, Any], expected: list[str]) -> None:
    job = SubDefaultsJob.add_job("a", "q", **given)

    assert [job.size.hget(), job.label.get(), job.note.hget()] == expected
    assert list(SubDefaultsJob.collection(size=expected[0], label=expected[1])) == [job.pk.get()]


def test_q19_defaults_of_a_queue_are_saved_by_add_job_too(database: Any) -> None:
    SubPlainJob.add_job("a", "q", queue_model=SubRangeQueue)

    (queue,) = SubRangeQueue.collection(color="grey").instances()
    assert queue.hmget("name", "priority", "opened") == ["q", "0", "yes"]


def test_q18_a_queue_without_a_plain_index_on_its_priority_is_found(database: Any) -> None:
    queues = {SubRangeQueue.get_queue("q", priority).pk.get() for priority in (1, 10, 1, -1, "10", -1)}

    assert len(queues) == 3


def test_g09_a_range_index_on_the_priority_answers_comparisons(database: Any) -> None:
    jobs = [SubRangeJob.add_job(str(priority), "q", priority=priority) for priority in (-3, 2, 9, 10)]
    SubRangeJob.add_job("2", "q", priority=11)

    assert set(SubRangeJob.collection(priority__gt=9)) == {jobs[1].pk.get(), jobs[3].pk.get()}
    assert list(SubRangeJob.collection(priority__lt=0)) == [jobs[0].pk.get()]


def test_g09_a_range_index_on_the_status_answers_comparisons(database: Any) -> None:
    waiting, delayed = SubRangeJob.add_job("a", "q"), SubRangeJob.add_job("b", "q", delayed_for=1000)

    assert list(SubRangeJob.collection(status="w")) == [waiting.pk.get()]
    assert list(SubRangeJob.collection(status__lt="w")) == [delayed.pk.get()]
    assert set(SubRangeJob.collection(status__in=["w", "d"])) == {waiting.pk.get(), delayed.pk.get()}


def test_g09_a_foreign_index_is_right_after_the_transition(database: Any) -> None:
    job = SubForeignJob.add_job("ab", "q", priority=12)

    assert list(SubForeignJob.collection(priority__back=12)) == [job.pk.get()]
    assert connection().smembers(f"{SubForeignJob._name}:priority:back:back:21") == {job.pk.get()}
    run_worker("q", callback=lambda job, queue: None)
    assert list(SubForeignJob.collection(status="w")) == []
    assert list(SubForeignJob.collection(status="s")) == [job.pk.get()]


def test_g09_an_indexed_start_is_found(database: Any) -> None:
    job = SubIndexedJob.add_job("a", "q")
    run_worker("q", callback=lambda job, queue: None)

    assert list(SubIndexedJob.collection(start=job.start.hget(), tries=1)) == [job.pk.get()]


def test_g16_another_namespace_holds_all_of_its_keys(database: Any) -> None:
    case = CASES["namespace"]()
    case.add()
    case.add("b", delayed_until=IN_2050)
    case.run(fail, requeue_times=1)

    assert [key for key in dump() if not key.startswith("submail:")] == []


def test_g16_a_namespace_with_a_hash_tag_holds_all_of_its_keys(database: Any) -> None:
    case = CASES["hash-tag"]()
    case.add()
    case.run(fail, requeue_times=1)

    assert [key for key in dump() if not key.startswith("{subtagged}:")] == []


def test_j26_the_ident_has_the_primary_key_that_was_given(database: Any) -> None:
    job = SubKeyJob.add_job("a", "q", reference="ref-1")

    assert job.ident == f"{__name__}.SubKeyJob:ref-1"
    assert job.reference.get() == job.pk.get() == "ref-1"
    assert Job.get_from_ident(job.ident).identifier.hget() == "a"


def test_j49_the_primary_key_may_be_given_as_pk(database: Any) -> None:
    assert SubKeyJob.add_job("a", "q", pk="ref-1").ident == f"{__name__}.SubKeyJob:ref-1"


def test_j49_a_primary_key_with_colons_is_kept(database: Any) -> None:
    job = SubKeyJob.add_job("a", "q", reference="user:1:mail")

    run_worker("q", callback=lambda job, queue: None)

    assert Job.get_from_ident(job.ident).status.hget() == STATUSES.SUCCESS


def test_j49_a_primary_key_that_is_taken_is_refused(database: Any) -> None:
    SubKeyJob.add_job("a", "q", reference="ref-1")
    before = dump()

    with pytest.raises(JobAlreadyExists, match="pk"):
        SubKeyJob.add_job("b", "q", reference="ref-1")

    assert dump() == before


def test_j49_a_primary_key_that_is_missing_is_refused(database: Any) -> None:
    with pytest.raises(ValueError, match="you must fill it"):
        SubKeyJob.add_job("a", "q")

    assert dump() == {}


def test_j49_a_primary_key_that_counts_by_itself_is_not_accepted(database: Any) -> None:
    for name in ("number", "pk"):
        with pytest.raises(ValueError, match="you must not fill it"):
            SubAutoKeyJob.add_job("a", "q", **{name: "5"})

    assert dump() == {}


def test_q18_a_queue_with_a_primary_key_of_its_own_is_found_once_it_exists(database: Any) -> None:
    queue = SubKeyQueue.get_queue("q", 1, code="q-1")

    assert queue.pk.get() == "q-1"
    assert SubKeyQueue.get_queue("q", 1).pk.get() == "q-1"


def test_q18_jobs_enter_and_leave_a_queue_with_a_primary_key_of_its_own(database: Any) -> None:
    queue = SubKeyQueue.get_queue("q", 1, code="q-1")

    job = SubPlainJob.add_job("a", "q", 1, queue_model=SubKeyQueue)
    assert_only_place(job, "waiting", queue)
    run_worker("q", queue_model=SubKeyQueue, callback=lambda job, queue: None)

    assert queue.success.lmembers() == [job.ident]


@pytest.mark.parametrize(
    ("name", "value"), [("token", "t"), ("serial", "s"), ("stamp", 5), ("slug", "x-y"), ("aliases", ["p", "q"])]
)
def test_j55_a_unique_value_is_refused_a_second_time(database: Any, name: str, value: Any) -> None:
    job = SubUniqueJob.add_job("a", "q", **{name: value})
    before = dump()

    with pytest.raises(UniquenessError, match=name) as caught:
        SubUniqueJob.add_job("b", "new-queue", 9, **{name: value})

    assert isinstance(caught.value, LimpydJobsException)
    assert dump() == before
    assert list(SubUniqueJob.collection(**{name: value[0] if isinstance(value, list) else value})) == [job.pk.get()]


def test_j55_a_unique_value_may_be_given_again_for_the_same_job(database: Any) -> None:
    job = SubUniqueJob.add_job("a", "q", token="t")

    assert SubUniqueJob.add_job("a", "q", 3, token="t").ident == job.ident


def test_j55_a_unique_value_written_later_is_refused_too(database: Any) -> None:
    SubUniqueJob.add_job("a", "q", token="t")
    other = SubUniqueJob.add_job("b", "q")

    with pytest.raises(UniquenessError):
        other.token.hset("t")

    assert other.token.hget() is None


def test_j55_a_job_with_plain_fields_needs_nothing_after_the_script(database: Any, monkeypatch: Any) -> None:
    SubFullJob.add_job("warm", "q", **FULL)

    with counted_round_trips(monkeypatch) as sent:
        SubFullJob.add_job("a", "q", **FULL)

    assert len(sent) == 1


def test_e15_an_error_with_indexes_of_its_own_is_found(database: Any) -> None:
    class NumberedError(Exception):
        code = 404

    def fail_with_number(job: Any, queue: Any) -> None:
        raise NumberedError

    SubPlainJob.add_job("a", "q")
    run_worker("q", callback=fail_with_number, error_model=SubFullError)

    assert len(list(SubFullError.collection(code__gte=400, code__lt=500))) == 1
    assert len(list(SubFullError.collection(type__back="NumberedError"))) == 1
    assert_indexes_as_rebuilt(SubFullError)


# --- From one namespace to another


def test_j59_a_waiting_job_is_moved_to_a_queue_of_another_namespace(database: Any) -> None:
    job = SubNamespaceJob.add_job("a", "q", 1)

    SubNamespaceJob.add_job("a", "q", 5, queue_model=Queue)

    assert places(job, SubNamespaceQueue) == []
    assert_only_place(job, "waiting", Queue.get_queue("q", 5))
    run_worker("q", callback=lambda job, queue: None)
    assert job.status.hget() == STATUSES.SUCCESS


@pytest.mark.parametrize(
    "move",
    [
        lambda job: job.enqueue_or_delay("q", queue_model=Queue),
        lambda job: Queue.get_queue("q").enqueue_job(job),
        lambda job: Queue.get_queue("q").delay_job(job, IN_2050),
    ],
    ids=["enqueue_or_delay", "enqueue_job", "delay_job"],
)
def test_j37_a_running_job_is_refused_to_a_queue_of_another_namespace(
    database: Any, move: Callable[[Any], Any]
) -> None:
    refused: list[JobNotInStatus] = []

    def move_it(job: Any, queue: Any) -> None:
        try:
            move(SubNamespaceJob.get(job.pk.get()))
        except JobNotInStatus as error:
            refused.append(error)

    job = SubNamespaceJob.add_job("a", "q")
    run_worker("q", callback=move_it, queue_model=SubNamespaceQueue, error_model=SubNamespaceError)

    assert len(refused) == 1
    assert job.status.hget() == STATUSES.SUCCESS
    assert places(job, Queue) == places(job, SubNamespaceQueue) == []


def test_j21_a_running_job_is_returned_when_added_in_another_namespace(database: Any) -> None:
    added: list[str] = []

    def add_it(job: Any, queue: Any) -> None:
        added.append(SubNamespaceJob.add_job("a", "q", 9, queue_model=Queue).ident)

    job = SubNamespaceJob.add_job("a", "q")
    run_worker("q", callback=add_it, queue_model=SubNamespaceQueue, error_model=SubNamespaceError)

    assert added == [job.ident]
    assert job.status.hget() == STATUSES.SUCCESS
    assert places(job, Queue) == places(job, SubNamespaceQueue) == []


def test_j34_a_failed_job_is_requeued_in_another_namespace(database: Any) -> None:
    job = SubNamespaceJob.add_job("a", "q")
    run_worker("q", callback=fail, queue_model=SubNamespaceQueue, error_model=SubNamespaceError)

    job.requeue("q", queue_model=Queue)

    assert_only_place(job, "waiting", Queue.get_queue("q"))


def test_j49_the_existing_job_is_returned_whatever_primary_key_is_given(database: Any) -> None:
    job = SubKeyJob.add_job("a", "q", reference="ref-1")

    assert SubKeyJob.add_job("a", "q", 5, reference="ref-2").ident == job.ident
    assert list(SubKeyJob.collection()) == ["ref-1"]


def test_j55_a_unique_value_with_an_index_that_only_limpyd_knows_is_refused(database: Any) -> None:
    SubForeignUniqueJob.add_job("a", "q", token="abc")
    before = dump()

    with pytest.raises(UniquenessError):
        SubForeignUniqueJob.add_job("b", "new-queue", token="abc")

    assert dump() == before
    assert len(list(SubForeignUniqueJob.collection(token="abc"))) == 1
