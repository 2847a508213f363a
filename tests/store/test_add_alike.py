"""The script that is made for a class of jobs, and what it is made of."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from limpyd import fields
from limpyd.indexes import EqualIndex, NumberRangeIndex, TextRangeIndex

from limpyd_jobs import Job, Queue, admin, lua, recipes, transitions
from limpyd_jobs.exceptions import WrongKeyType

NAMES = ("identifier", "added")
NOW = "2026-01-01 00:00:00"

OddIndex = EqualIndex.configure(prefix="odd", key="odd", transform=lambda value: value.upper(), name="OddIndex")


class AlikeJob(Job):
    size = fields.InstanceHashField(indexable=True)
    note = fields.InstanceHashField()
    year = fields.InstanceHashField(indexable=True, indexes=[NumberRangeIndex])
    title = fields.InstanceHashField(indexable=True, indexes=[TextRangeIndex])
    odd = fields.InstanceHashField(indexable=True, indexes=[OddIndex])
    label = fields.StringField()
    tags = fields.SetField(indexable=True)
    code = fields.InstanceHashField(indexable=True, unique=True)


class AlikeOtherJob(Job):
    size = fields.InstanceHashField(indexable=True)


class AlikeDefaultJob(Job):
    size = fields.InstanceHashField(indexable=True, default="it's \\ \n\0 \u00e9 \"]]")


class AlikeQueueKeyJob(Job):
    queue_key = fields.InstanceHashField(indexable=True)


class AlikeDelayedJob(Job):
    delayed_until = fields.InstanceHashField(indexable=True)


class AlikeUnindexedJob(Job):
    identifier = fields.InstanceHashField()


class AlikeUnqueuedJob(Job):
    queued = fields.InstanceHashField()


class AlikeOddJob(Job):
    identifier = fields.InstanceHashField(indexable=True, indexes=[OddIndex])


class AlikeRangeJob(Job):
    priority = fields.InstanceHashField(indexable=True, default=0, indexes=[NumberRangeIndex])


class AlikeKeyJob(Job):
    reference = fields.PKField()


class AlikeStringDefaultJob(Job):
    label = fields.StringField(default="unnamed")


@pytest.fixture(autouse=True)
def books(database: Any) -> Any:
    """After each test no key is without an owner, and the invariants hold."""
    yield
    assert [str(problem) for problem in admin.check()] == []


def client() -> Any:
    return Job.database.connection


def target(name: str = "q", priority: int = 0) -> transitions.Target:
    found: transitions.Target = Queue._target(name, priority)[0]
    return found


def alike_call(*identifiers: str, model: Any = Job, prepend: bool = False, **place: Any) -> transitions.Call[Any]:
    made_for = recipes.alike(model, NAMES)
    assert made_for is not None
    values = [text for identifier in identifiers for text in (identifier, NOW)]
    return transitions.add_alike(made_for, target(**place), prepend, values)


def raw(call: transitions.Call[Any]) -> Any:
    """The reply of the script itself."""
    return transitions.send(
        client(), transitions.Call(call.script, call.keys, call.args, lambda reply: reply, call.made_for)
    )


def waiting(name: str = "q", priority: int = 0) -> list[str]:
    """The primary keys of the jobs that wait."""
    return [ident.rpartition(":")[2] for ident in Queue.get_queue(name, priority).waiting.lmembers()]


# --- Replies


def test_it_answers_the_primary_key_of_each_new_job() -> None:
    Queue.get_queue("q")

    assert raw(alike_call("a", "b", "c")) == ["1", "2", "3"]
    assert waiting() == ["1", "2", "3"]


def test_it_answers_as_add_for_the_first_job_of_a_queue() -> None:
    assert raw(alike_call("a", "b")) == [["NEW", "1"], "2"]
    assert waiting() == ["1", "2"]


def test_it_answers_existing_and_moved_for_jobs_that_are_queued() -> None:
    raw(alike_call("a", "b", "c"))

    assert raw(alike_call("c", "new", "a")) == [["EXISTING", "3"], "4", ["EXISTING", "1"]]
    assert raw(alike_call("c", "newer", priority=2)) == [["MOVED", "3"], "5"]
    assert (waiting(), waiting(priority=2)) == (["1", "2", "4"], ["3", "5"])


@pytest.mark.parametrize("is_known", [False, True], ids=["new queue", "known queue"])
@pytest.mark.parametrize("names", ["aa", "aaa", "aba", "abab", "aabbab"])
def test_it_adds_an_identifier_once_however_often_it_comes(names: str, is_known: bool) -> None:
    if is_known:
        Queue.get_queue("q")

    replies = transitions.send(client(), alike_call(*names))

    pks = [reply if isinstance(reply, str) else reply.pk for reply in replies]
    assert [pks[names.index(name)] for name in names] == pks
    assert waiting() == sorted(set(pks))


def test_it_prepends_in_turn() -> None:
    raw(alike_call("a", "b", "c", "b", prepend=True))

    assert waiting() == ["2", "3", "1"]


def test_it_answers_broken_for_each_job_of_a_queue_that_cannot_be_used() -> None:
    key = Queue.get_queue("q").waiting.key
    client().set(key, "no list")

    assert raw(alike_call("a", "b")) == [["BROKEN", key], ["BROKEN", key]]
    errors = transitions.send(client(), alike_call("a", "b"))

    assert [type(error) for error in errors] == [WrongKeyType, WrongKeyType]
    assert len(Job.collection()) == 0
    client().delete(key)


def test_it_answers_no_queue_for_a_job_that_keeps_a_priority_that_the_new_name_has_not() -> None:
    raw(alike_call("a", priority=5))

    replies = raw(alike_call("a", "b", name="other", prepend=True))

    assert replies == [["NO_QUEUE", "5"]]  # what comes after it waits until it is seen to: the order is kept
    assert waiting("other") == []


def test_it_answers_failed_for_the_job_whose_index_is_no_set_and_adds_the_others() -> None:
    raw(alike_call("warm"))
    client().set("jobs:job:identifier:b", "no set")

    kind, text = raw(alike_call("a", "b", "c"))[1]

    assert (kind, "WRONGTYPE" in text) == ("FAILED", True)
    assert len(waiting()) == 3
    client().delete("jobs:job:identifier:b")


def test_it_finds_the_jobs_of_its_own_class_only() -> None:
    raw(alike_call("a"))

    assert raw(alike_call("a", model=AlikeOtherJob)) == ["1"]
    assert len(Queue.get_queue("q").waiting.lmembers()) == 2


def test_it_registers_its_class() -> None:
    raw(alike_call("a", model=AlikeOtherJob))

    assert client().hget("jobs:models", AlikeOtherJob.get_model_repr()) == recipes.job_recipe(AlikeOtherJob)


def test_it_rings_for_each_job_up_to_a_hundred() -> None:
    raw(alike_call(*map(str, range(3))))
    assert client().llen("jobs:doorbell:queue:q") == 3

    raw(alike_call(*map(str, range(200))))
    assert client().llen("jobs:doorbell:queue:q") == 100


def test_a_default_with_odd_characters_is_stored_as_it_is() -> None:
    job = AlikeDefaultJob.add_job("a", "q")

    default = AlikeDefaultJob.get_field("size").default
    assert job.size.hget() == default
    assert AlikeDefaultJob.collection(size=default) == ["1"]


# --- For which jobs it is made


MADE = [
    (Job, ()),
    (Job, ("cancel_on_error", "tries")),
    (AlikeJob, ("size", "note")),
    (AlikeOtherJob, ("size",)),
    (AlikeDefaultJob, ()),
]


@pytest.mark.parametrize(("model", "names"), MADE)
def test_it_is_made_for_plain_fields(model: Any, names: tuple[str, ...]) -> None:
    assert recipes.alike(model, (*NAMES, *names)) is not None


NOT_MADE = [
    (AlikeJob, ("code",)),
    (AlikeJob, ("pk",)),
    (AlikeJob, ("year",)),
    (AlikeJob, ("title",)),
    (AlikeJob, ("odd",)),
    (AlikeJob, ("label",)),
    (AlikeJob, ("tags",)),
    (AlikeJob, ("size", "tags")),
    (AlikeJob, ("unknown",)),
    (AlikeJob, ("status",)),
    (AlikeJob, ("queued",)),
    (AlikeJob, ("queue_key",)),
    (AlikeJob, ("delayed_until",)),
    (AlikeJob, ("priority",)),
    (AlikeQueueKeyJob, ()),
    (AlikeDelayedJob, ()),
    (AlikeUnindexedJob, ()),
    (AlikeUnqueuedJob, ()),
    (AlikeOddJob, ()),
    (AlikeRangeJob, ()),
    (AlikeKeyJob, ()),
    (AlikeKeyJob, ("reference",)),
    (AlikeStringDefaultJob, ()),
]


@pytest.mark.parametrize(("model", "names"), NOT_MADE)
def test_it_is_not_made_for_jobs_that_need_more(model: Any, names: tuple[str, ...]) -> None:
    assert recipes.alike(model, (*NAMES, *names)) is None


def test_a_class_with_a_unique_field_has_one_for_its_jobs_without_a_value() -> None:
    assert recipes.alike(AlikeJob, NAMES) is not None


def test_the_scripts_of_two_classes_differ() -> None:
    texts = {lua.load("add_alike", str(recipes.alike(model, NAMES))).sha for model in (Job, AlikeJob, AlikeOtherJob)}

    assert len(texts) == 3


def test_the_scripts_for_other_fields_of_a_class_differ() -> None:
    plain, sized = (str(recipes.alike(AlikeJob, (*NAMES, *names))) for names in ((), ("size",)))

    assert lua.load("add_alike", plain).sha != lua.load("add_alike", sized).sha
    assert ":size:" not in plain.partition("recipe =")[0]
    assert "ARGV[at + 2]" in sized


def test_the_script_for_a_class_is_the_same_each_time() -> None:
    first = lua.load("add_alike", str(recipes.alike(Job, NAMES)))
    recipes._alike.clear()

    assert lua.load("add_alike", str(recipes.alike(Job, NAMES))) is first


# --- The texts of the scripts


def test_a_script_holds_only_what_it_uses() -> None:
    assert "function find_queue" not in lua.load("renew").text
    assert "function days_of" not in lua.load("register").text
    assert "function find_queue" in lua.load("add").text
    assert len(lua.load("renew").text) < len(lua.load("add").text) / 2


@pytest.mark.parametrize("name", lua.NAMES)
def test_a_script_defines_what_changes_once_and_all_before_its_use(name: str) -> None:
    """Two functions that are made where they are needed may each have what does not change."""
    text = re.sub(r"--.*", "", lua.load(name).text)
    defined = re.findall(r"^local (?:function )?(\w+)", text, re.MULTILINE)

    for shared in lua._common():
        changes = re.search(rf"(?<!local )\b{shared}(\[[^]]+\])? = ", text)
        assert defined.count(shared) <= (1 if changes else 2)
        if shared in re.findall(r"\w+", text):
            first = re.search(rf"\b{shared}\b", text)
            assert first is not None
            assert text[: first.start()].endswith(("local function ", "local "))


@pytest.mark.parametrize("name", lua.NAMES)
def test_redis_compiles_a_script(name: str) -> None:
    made_for = str(recipes.alike(Job, NAMES)) if name == "add_alike" else ""
    script = lua.load(name, made_for)

    assert client().script_load(script.text) == script.sha


def test_the_plain_way_of_a_script_made_for_a_class_comes_without_the_rest() -> None:
    """What adds any other job is in a function, which most calls never run."""
    text = lua.load("add_alike", str(recipes.alike(Job, NAMES))).text
    before = text.partition("local function prepare()")[0]

    assert "function add_job" not in before
    assert "function find_queue" not in before
    assert "function ring" in before


def test_a_transition_that_is_not_there_has_no_script() -> None:
    with pytest.raises(FileNotFoundError):
        lua.load("explode")


QUOTED = [
    "",
    "it's",
    'say "hello"',
    "back\\slash",
    "\\n \\' \\\\",
    "line\nline\r\n",
    "nul\0nul",
    "\0" + "1",
    "\u00e9t\u00e9 \u2603 \U0001f600",
    "]] --[[ -- ]==]",
    "%s %d",
    "${x} {y} #z ~",
    "jobs:job:{tag}:status:",
]


@pytest.mark.parametrize("text", QUOTED)
def test_a_quoted_text_is_read_by_lua_as_it_is(text: str) -> None:
    assert client().eval(f"return {lua.quoted(text)}", 0) == text


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text())
@example(text="\x7f\x80\xff")
def test_any_quoted_text_is_read_by_lua_as_it_is(database: Any, text: str) -> None:
    assert client().eval(f"return {lua.quoted(text)}", 0) == text
    assert lua.quoted(text).isascii()
    assert "\n" not in lua.quoted(text)


@pytest.mark.parametrize("when", [datetime(2026, 1, 1), NOW])
def test_the_time_of_a_job_is_the_callers(when: Any) -> None:
    Job.add_job("a", "q", added=str(when))

    assert client().hget("jobs:job:1:hash", "added") == str(when)
