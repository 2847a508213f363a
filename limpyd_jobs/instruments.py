"""What programs put around jobs where they are added and where they run: traces, reports of errors, connections.

    class Requests(Instrument):
        def carry(self, carried):
            carried["request"] = request_id.get()

        def around(self, job, queue, worker):
            return request_id_set_to(job.get_carried().get("request"))

    add_instrument(Requests())

An instrument that raises is logged, and harms no job.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from functools import wraps
from inspect import iscoroutinefunction
from types import TracebackType
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])

logger = logging.getLogger("limpyd-jobs")


class Instrument:
    """Does nothing; override what you need.

    Attributes:
        stays_outside: for an isolated job, is `around` entered in the process of its worker, rather than in its own?
            What it sets is there in both, as the memory is copied; but only outside is it seen that the process dies.
    """

    stays_outside = False

    def adding(self, model: Any, queue_name: str | None, identifier: str | None) -> AbstractContextManager[Any]:
        """Entered around a call that adds jobs, in the thread or the coroutine of the caller.

        Args:
            model: the class of the jobs.
            queue_name: None for that of the class, and for a workflow.
            identifier: None for many jobs.
        """
        return nullcontext()

    def carry(self, carried: dict[str, Any]) -> None:
        """Called for each job that is added, within `adding`: what it puts in `carried` comes along.

        `job.get_carried()` gives it back, in any try of the job. It must be possible to write it as JSON. A class of
        jobs with a field of its own named `run_options` carries nothing.
        """

    def around(self, job: Any, queue: Any, worker: Any) -> AbstractContextManager[Any]:
        """Entered around each run of a job, where that is called: in its thread, or in its task of an event loop.

        It sees what the job raises, which goes on whatever it answers.

        Args:
            queue: None for a job that is executed at once, without one.
        """
        return nullcontext()

    def in_thread(self, worker: Any) -> AbstractContextManager[Any]:
        """Entered in a thread, around a plain function that an event loop has called there: a job, or a hook.

        `around` is entered in the loop, then, and cannot look after what belongs to that thread.
        """
        return nullcontext()


instruments: list[Instrument] = []
_is_adding: ContextVar[bool] = ContextVar("is_adding", default=False)


def add_instrument(one: Instrument) -> None:
    """Use an instrument in this process from now on, inside of those that are there; twice is once."""
    if one not in instruments:
        instruments.append(one)


def remove_instrument(one: Instrument) -> None:
    """Use it no more; what it is around stays as it is."""
    if one in instruments:
        instruments.remove(one)


def what_to_carry() -> dict[str, Any]:
    """What the instruments want to come along with a job."""
    carried: dict[str, Any] = {}
    for one in instruments:
        found: dict[str, Any] = {}
        try:
            one.carry(found)
            json.dumps(found)
        except Exception:  # of the program: its job is added all the same
            logger.exception("%s raised, in carry: nothing comes along", type(one).__name__)
        else:
            carried.update(found)
    return carried


class Around:
    """The contexts of several instruments as one, which nothing that they do gets out of.

    Args:
        makers: give the contexts, from the outer to the inner one; each with its instrument.
    """

    _name = "around"  # for the log

    def __init__(self, makers: Iterable[tuple[Instrument, Callable[[], AbstractContextManager[Any]]]]) -> None:
        self._makers = makers
        self._entered: list[tuple[Instrument, AbstractContextManager[Any]]] = []
        self._pid = 0

    def __enter__(self) -> None:
        self._pid = os.getpid()
        for one, make in self._makers:
            try:
                context = make()
                context.__enter__()
            except Exception:  # of the program
                logger.exception("%s raised, in %s", type(one).__name__, self._name)
            else:
                self._entered.append((one, context))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.leave(error)

    def leave(self, error: BaseException | None) -> None:
        """Come out of all of them, with an error or without."""
        if os.getpid() != self._pid:
            return  # a process that a job has forked, which came back from it
        for one, context in reversed(self._entered):
            try:
                context.__exit__(*((None,) * 3 if error is None else (type(error), error, error.__traceback__)))
            except Exception as raised:
                if raised is not error:  # as some raise again what they are given
                    logger.exception("%s raised, in %s", type(one).__name__, self._name)


def around(
    job: Any, queue: Any, worker: Any, is_outside: bool | None = None, before: Iterable[Instrument] = ()
) -> Around:
    """What a job runs in.

    Args:
        is_outside: for an isolated job: are those meant that stay outside of its process? None for all.
        before: what is around those that the program has added.
    """
    chosen = [one for one in (*before, *instruments) if is_outside is None or one.stays_outside == is_outside]
    return Around([(one, lambda one=one: one.around(job, queue, worker)) for one in chosen])  # type: ignore[misc]


class _InThread(Around):
    _name = "in_thread"


def called_in_thread(worker: Any, work: Callable[[], Any]) -> Any:
    """Call something in this thread, within what instruments put around that."""
    with _InThread([(one, lambda one=one: one.in_thread(worker)) for one in instruments]):  # type: ignore[misc]
        return work()


class _Adding(Around):
    """Within it, nothing else that adds is looked at: it does so on behalf of this call."""

    _name = "adding"

    def __enter__(self) -> None:
        super().__enter__()
        self._token = _is_adding.set(True)

    def __exit__(self, *raised: Any) -> None:
        _is_adding.reset(self._token)
        super().__exit__(*raised)


def adding(model: Any, queue_name: str | None, identifier: str | None) -> AbstractContextManager[Any]:
    """What jobs are added in; arguments as `Instrument.adding`."""
    if not instruments or _is_adding.get():
        return nullcontext()
    makers = [(one, lambda one=one: one.adding(model, queue_name, identifier)) for one in instruments]
    return _Adding(makers)


def _adding_as_called(model: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> AbstractContextManager[Any]:
    given = dict(zip(("identifier", "queue_name"), arguments, strict=False)) | named
    identifier = given.get("identifier")
    is_one = isinstance(identifier, (str, bytes, int, float))  # else these are the specs of many
    return adding(model, given.get("queue_name"), str(identifier) if is_one else None)


def seen_adding(method: F) -> F:
    """Decorate a method that adds jobs of `cls`: one identifier, or many specs, comes first."""
    if iscoroutinefunction(method):

        @wraps(method)
        async def aadd(owner: Any, *args: Any, **kwargs: Any) -> Any:
            if not instruments:
                return await method(owner, *args, **kwargs)
            with _adding_as_called(owner, args, kwargs):
                return await method(owner, *args, **kwargs)

        return aadd  # type: ignore[return-value]

    @wraps(method)
    def add(owner: Any, *args: Any, **kwargs: Any) -> Any:
        if not instruments:
            return method(owner, *args, **kwargs)
        with _adding_as_called(owner, args, kwargs):
            return method(owner, *args, **kwargs)

    return add  # type: ignore[return-value]
