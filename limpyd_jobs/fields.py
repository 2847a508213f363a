"""Fields of limpyd whose writes are atomic.

limpyd writes an indexed hash field in about nine commands, under a lock that our scripts do not see. Ours has the same
methods, keys and results, in one script: whoever reads, a script or another process, finds hash and index in step.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from limpyd import fields as limpyd_fields
from limpyd.exceptions import ImplementationError
from redis import Redis
from redis.client import Pipeline

from . import lua, recipes, transitions


class Writes:
    """How many writes to fields this process has sent: whoever knows what was in them looks again."""

    count = 0


class Loaded:
    """The fields of a record as they were read at once, so that a coroutine sees them without waiting for Redis.

    Args:
        values: the texts by name.
        thread: the ident of the thread that they are for.
    """

    def __init__(self, values: Mapping[str, str], thread: int) -> None:
        self.values = dict(values)
        self._thread = thread
        # what others write meanwhile, and what this process has written since
        self._old = {"status", "follow_up", "progress"}

    def knows(self, *names: str) -> bool:
        """Can these be read here, by who asks?"""
        return self._old.isdisjoint(names) and threading.get_ident() == self._thread

    def forget(self, names: Iterable[str]) -> None:
        """These are read from Redis from now on."""
        self._old.update(names)


PLAIN_NUMBER = re.compile(r"-?[0-9]{1,300}(\.[0-9]{1,300})?")


class InstanceHashField(limpyd_fields.InstanceHashField):
    """A field in the hash of its record. See limpyd's class of the same name for its arguments."""

    def _call_command(self, name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "hget":
            loaded: Loaded | None = getattr(self._instance, "_loaded", None)
            if loaded is not None and loaded.knows(self.name):
                return loaded.values.get(self.name)
        elif name in self.available_modifiers and getattr(self._instance, "_loaded", None) is not None:
            self._instance._loaded.forget([self.name])
        if name not in self.available_modifiers or needs_limpyd(self._model, self.name, *args):
            return super()._call_command(name, *args, **kwargs)
        values = [*args, *kwargs.values()] or ([1] if name.startswith("hincr") else [])
        arguments = [recipes.to_text(self.name, value) for value in values]
        result = write(self._instance, name, [self.name], [self.name, *arguments])
        if name == "hincrbyfloat" and isinstance(result, str):
            result = float(result)
        return self.post_command(sender=self, name=name, result=result, args=args, kwargs=kwargs)


class RunOptionsField(InstanceHashField):
    """Holds what `add_job` was told of the runs of a job (see run_options.py)."""

    holds_run_options = True


class CancelReasonField(InstanceHashField):
    """Holds why a job is CANCELED. A field of the name `cancel_reason` that is none of these is left alone."""

    holds_cancel_reason = True


class ProgressField(InstanceHashField):
    """Holds how far a job has come, as JSON (see outcomes.py). Another field of this name is left alone."""

    holds_progress = True


class WaitingSinceField(InstanceHashField):
    """Holds since when a job waits, if not since it was added. Another field of this name is left alone."""

    holds_waiting_since = True


class SavedResultField(limpyd_fields.StringField):
    """Holds what a job answered (see outcomes.py), in a key of its own, which may expire."""

    holds_saved_result = True


class FollowUpField(InstanceHashField):
    """Holds who is to be told of the end of a job: `w`, whoever waits for it; `c`, the jobs that wait for it."""

    holds_follow_up = True


class WorkflowField(InstanceHashField):
    """Holds which workflow a job was added with."""

    holds_edges = True


class EdgesField(limpyd_fields.SetField):
    """Holds the idents of jobs that one comes after, waits for, or is waited for by."""

    holds_edges = True


def needs_limpyd(model: Any, name: str, *values: Any) -> bool:
    """Must limpyd write a field?

    To check a unique value, or for a number that Lua reads in another way (`1_000`).

    Raises:
        InvalidArgument: the field cannot hold the value.
    """
    if model.get_class_field(name).unique:
        return True
    if not recipes.has_number_index(model, name) or all(PLAIN_NUMBER.fullmatch(str(value)) for value in values):
        return False
    for value in values:
        recipes.check_value(model.get_class_field(name), value)
    return True


def upgrade(field: Any) -> None:
    """Make a plain limpyd field that a subclass declares one of ours: the same in all but how it writes."""
    if type(field) is limpyd_fields.InstanceHashField:
        field.__class__ = InstanceHashField


def write(instance: Any, command: str, names: Sequence[str], names_and_values: list[str]) -> Any:
    """Run one writing command on hash fields of an instance, then see to the indexes that no script knows.

    Raises:
        DoesNotExist: the record was deleted.
    """
    if not hasattr(instance, "_pk"):
        instance.pk.get()  # limpyd's own error: the object was deleted
    if getattr(instance, "_loaded", None) is not None:
        instance._loaded.forget(names)
    must_exist = bool(instance._pk) and (instance.must_exist or not instance.connected)
    pk = instance.pk.get()
    model: Any = type(instance)
    may_end = "status" in names and recipes.has_follow_up(model)
    ends_in = model.queue_model.namespace or "" if may_end else None
    call = transitions.write(instance.key, recipes.recipe(model), pk, must_exist, command, names_and_values, ends_in)
    client = instance.connection
    foreign = [name for name in names if recipes.has_foreign_index(model, name)]
    if isinstance(client, Pipeline):
        if foreign:
            new = dict(zip(names_and_values[::2], names_and_values[1::2], strict=True)) if command == "hset" else {}
            queue_indexes(client, model, instance.key, pk, command, {name: new.get(name) for name in foreign})
        return queue_in_pipeline(client, call)
    old = client.hmget(instance.key, foreign) if foreign else ()
    result = transitions.send(client, call)
    Writes.count += 1
    instance._connected = True
    for name, value in zip(foreign, old, strict=True):
        recipes.repair_index(model, pk, name, (value,))
    return result


def queue_in_pipeline(pipeline: Any, call: transitions.Call[Any]) -> Any:
    """Let a limpyd pipeline send a call with its other commands; redis-py loads the script when it executes."""
    script = pipeline.register_script(lua.load(call.script).text)
    flat = call.arguments()
    return script(keys=flat[: len(call.keys)], args=flat[len(call.keys) :], client=pipeline)


def queue_indexes(pipeline: Any, model: Any, key: str, pk: str, command: str, values: Mapping[str, str | None]) -> None:
    """Let a pipeline bring the indexes that no script knows in step with what it will write.

    Raises:
        ImplementationError: what the command will write is not known yet.
    """
    if command not in ("hset", "hdel"):
        raise ImplementationError(f"{command} on a field with such an index cannot be sent in a pipeline: {[*values]}")
    former = Redis(connection_pool=pipeline.connection_pool).hmget(key, list(values))
    for (name, value), old in zip(values.items(), former, strict=True):
        for index in model.get_field(name)._indexes:
            if old is not None:
                index.remove(pk, old)
            if value is not None:
                index.add(pk, value, check_uniqueness=False)
            index._reset_rollback_cache(pk)
