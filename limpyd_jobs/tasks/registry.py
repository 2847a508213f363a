"""The tasks of this process by name, and those that workers have registered in Redis."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from difflib import get_close_matches
from types import CodeType
from typing import Any

from ..exceptions import TaskAlreadyDefined, TaskNotFound
from ..modules import allowed_modules, is_dotted_name
from ..utils import utcnow

MOST_NEAR = 3  # names that an error proposes
LONGEST_DOC = 10_000  # characters of a docstring that are registered


class Registry(Mapping[str, Any]):
    """The tasks that this process has defined, by name."""

    def __init__(self) -> None:
        self._tasks: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        return self._tasks[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tasks)

    def __len__(self) -> int:
        return len(self._tasks)

    def add(self, task: Any) -> None:
        """Take a new task; one that is defined again, as its module is, takes the place of the former one.

        Raises:
            TaskAlreadyDefined: another function has this name.
        """
        former = self._tasks.get(task.name)
        if former is not None and not _is_again(former.__wrapped__, task.__wrapped__):
            raise TaskAlreadyDefined(task.name, _place_of(former.__wrapped__), _place_of(task.__wrapped__))
        self._tasks[task.name] = task

    def remove(self, name: str) -> None:
        """Forget a task, as tests do."""
        self._tasks.pop(name, None)


registry = Registry()


def _is_again(former: Any, function: Any) -> bool:
    """Is it the same function: its module was loaded again, under another name, or is a session at a prompt?"""
    before, now = _code_of(former), _code_of(function)
    if (before.co_filename, before.co_firstlineno) == (now.co_filename, now.co_firstlineno):
        return True
    is_reloaded = function.__module__ in getattr(importlib, "_RELOADING", ())
    return is_reloaded or (function.__module__ == "__main__" and not hasattr(sys.modules["__main__"], "__file__"))


def _code_of(function: Any) -> CodeType:
    found: CodeType = function.__code__
    return found


def _place_of(function: Any) -> str:
    code = _code_of(function)
    return f"{function.__qualname__} ({code.co_filename}:{code.co_firstlineno})"


def find_task(name: str) -> Any:
    """The task of a name, if this process has defined it; else None. Nothing is imported."""
    return registry._tasks.get(name)


def get_task(name: str) -> Any:
    """The task of a name; its module is imported if it may be (see modules.allowed_modules).

    Raises:
        TaskNotFound: there is none; what its module raises when it is imported is the cause.
    """
    found = registry._tasks.get(name)
    if found is None:
        _import_module_of(name)
        found = registry._tasks.get(name)
    if found is None:
        raise TaskNotFound(name, near(name, registry))
    return found


def _import_module_of(name: str) -> None:
    module, colon, _ = name.partition(":")
    if not colon or not is_dotted_name(module) or module in sys.modules:
        return
    if not allowed_modules.allows(module):
        reason = f"its module {module} is not imported, and may not be: give --tasks={module} to the worker"
        raise TaskNotFound(name, near(name, registry), reason)
    try:
        importlib.import_module(module)
    except (Exception, SystemExit) as error:  # whatever the module raises while it is imported
        raise TaskNotFound(name, (), f"its module cannot be imported: {type(error).__name__}: {error}") from error


def near(name: str, names: Iterable[str]) -> list[str]:
    """The names that look like one: what was meant, perhaps. Most names have the module in common: their ends count."""
    known = list(names)
    ends = {one.rpartition(":")[2]: one for one in known}
    found = [ends[end] for end in get_close_matches(name.rpartition(":")[2], list(ends), MOST_NEAR)]
    return found or get_close_matches(name, known, MOST_NEAR, cutoff=0.8)


# --- In Redis, for those who have not the code


@dataclass(frozen=True)
class KnownTask:
    """A task as a worker has registered it.

    Attributes:
        signature: as Python writes it: `(to: str, subject: str = 'hi') -> int`.
        queue: where its jobs go if nothing else is said.
        options: those of its definition, as texts and numbers.
        is_coroutine: is it a coroutine function?
        seen: when a worker that has it has started last, in UTC.
    """

    name: str
    doc: str = ""
    signature: str = ""
    queue: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    is_coroutine: bool = False
    seen: str = ""

    def to_json(self) -> str:
        """What is stored under its name."""
        values = asdict(self)
        del values["name"]
        return json.dumps(values, default=str, separators=(",", ":"))

    @classmethod
    def read(cls, name: str, text: str) -> KnownTask:
        """From what is stored; what cannot be read, as another version may have written it, is left out."""
        try:
            found = json.loads(text)
        except ValueError:
            found = {}
        names = cls.__dataclass_fields__.keys() - {"name"}
        return cls(name, **{key: found[key] for key in names & found.keys()}) if isinstance(found, dict) else cls(name)


def describe(task: Any) -> KnownTask:
    """A task of this process, for others."""
    options = {name: _plain(value) for name, value in task.task_options.items()}
    doc = (task.__doc__ or "")[:LONGEST_DOC]
    signature = str(task.signature)
    return KnownTask(task.name, doc, signature, task.queue_name, options, task.is_coroutine, str(utcnow()))


def _plain(value: Any) -> Any:
    """A value that JSON has, or its text."""
    if hasattr(value, "to_json"):
        return value.to_json()
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)
