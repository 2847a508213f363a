"""Running queued jobs in the process of a test: by workers as they are, which end when there is nothing left to do."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import json
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from functools import partial, wraps
from typing import Any, TypeVar
from unittest import mock

from limpyd.exceptions import DoesNotExist

from ..exceptions import InvalidArgument, LimpydJobsException
from ..models import Job, Queue
from ..workers import AsyncWorker, Worker
from ..workflows import Workflow
from . import clock

T = TypeVar("T")

MAX_JOBS = 1000
# What is followed by a run; `aadd` of a workflow calls `add`, in a thread.
ADDING = ((Job, "add_job"), (Job, "add_jobs"), (Job, "aadd_job"), (Job, "aadd_jobs"), (Workflow, "add"))
END_SECONDS = 30.0  # for the job of a worker in the background, when it is to end


class _Noting(Worker):
    """What is added to a class of workers: it notes what it runs, and may end at the first error."""

    def __init__(self, queues: Any, raises: bool = False, **options: Any) -> None:
        super().__init__(queues, **{"terminate_gracefuly": False, **options})
        self.handled: list[Any] = []
        self.error: BaseException | None = None  # the first one that a job ended with
        self._raises = raises
        self._expiring._look_at = float("-inf")  # else it would end before it looks

    async def _process_taken(self, queue: Any, job: Any) -> None:
        await super()._process_taken(queue, job)
        self.handled.append(job)

    async def _end_in_error(
        self, queue: Any, job: Any, exception: BaseException, trace: str | None, is_ours: bool
    ) -> None:
        former = job._moved
        await super()._end_in_error(queue, job, exception, trace, is_ours)
        if job._moved is former:  # else it was requeued
            self.error = self.error or exception
            self.end_forced = self.end_forced or self._raises

    def look_around(self) -> None:
        """The clock was moved: see what is due by now."""
        self._looked_at_keys = self._looked_at_delayed = self._recovered_at = self._expiring._look_at = float("-inf")
        self._wake()


def _noting(worker_class: type[Worker]) -> Any:
    if not isinstance(worker_class, type) or not issubclass(worker_class, Worker):
        raise InvalidArgument("worker_class", worker_class, "a subclass of Worker")
    return type(worker_class.__name__, (_Noting, worker_class), {"__module__": worker_class.__module__})


def run_until_empty(
    *queues: Any,
    raises: bool = False,
    delayed: bool = False,
    max_jobs: int = MAX_JOBS,
    worker_class: type[Worker] = Worker,
    queue_model: Any = Queue,
    **options: Any,
) -> list[Any]:
    """Run the jobs that wait, and those that they add, in this process by a real worker, until none waits any more.

    Within an event loop it works too, and holds that up: the worker is in a thread then.

    Args:
        queues: names, or queues; all that there are when none is given.
        raises: raise the exception of the first job that ends in ERROR, once that is recorded.
        delayed: run delayed jobs, too, in the order of their times, as soon as nothing waits: also those that are
            tried again later.
        max_jobs: as a limit for jobs that add each other without end.
        options: of the worker.
    Returns:
        The jobs that it took, in their order; one that was tried again is there once for each try.
    Raises:
        LimpydJobsException: there are still jobs after `max_jobs`.
    """
    kind, handled, names = _noting(worker_class), list[Any](), list[str]()
    while len(handled) < max_jobs:
        names = _names(queue_model, queues)
        if not names:
            return handled
        left = {"max_loops": max_jobs - len(handled), "burst": True, "raises": raises}
        known = {} if _is_in_main_thread() else _in_a_thread(worker_class, options)
        worker = kind(names, queue_model=queue_model, **{**known, **options, **left})
        worker.runs_for_caller = True
        _apart_from_loops(worker.run)
        handled += worker.handled
        if raises and worker.error is not None:
            raise worker.error
        is_new = _names(queue_model, queues) != names  # a queue that a job has made
        if len(handled) < max_jobs and not is_new and not (delayed and _let_in_next(queue_model, names)):
            return handled
    if queue_model.count_waiting_jobs(names) or (delayed and queue_model.count_delayed_jobs(names)):
        raise LimpydJobsException(f"There are still jobs in {', '.join(names)} after {max_jobs} were run")
    return handled


def _is_in_main_thread() -> bool:
    """Will the worker run there?"""
    return threading.current_thread() is threading.main_thread() and asyncio._get_running_loop() is None


def _in_a_thread(worker_class: type[Worker], options: dict[str, Any]) -> dict[str, Any]:
    """More options, of a worker that is in a thread only here: no reason to refuse jobs with a `job_timeout`."""
    is_so_anyway = issubclass(worker_class, AsyncWorker) or options.get("threads", worker_class.threads) != 1
    return {} if is_so_anyway else {"allow_unenforced_timeouts": True}


def _names(queue_model: Any, queues: Iterable[Any]) -> list[str]:
    """The names of some queues, or of all."""
    return list(dict.fromkeys(name for name, _ in _queues(queue_model, queues)))


def _let_in_next(queue_model: Any, names: list[str]) -> bool:
    """Let the delayed job wait that would be the next one; False when there is none."""
    found = [(one.first_delayed, one) for _, one in _queues(queue_model, names) if one.first_delayed is not None]
    if not found:
        return False
    (ident, _), queue = min(found, key=lambda one: one[0][1])
    try:
        queue.enqueue_job(Job.get_from_ident(ident))  # one that is CANCELED stays so
    except DoesNotExist:
        queue.delayed.zrem(ident)
    return True


def _queues(queue_model: Any, queues: Iterable[Any]) -> list[tuple[str, Any]]:
    """The queues of some names, or all, with their names."""
    wanted = {queue.name.hget() if isinstance(queue, Queue) else queue for queue in queues}
    found = [(queue.name.hget(), queue) for queue in map(queue_model.from_pk, queue_model.collection())]
    return sorted((pair for pair in found if not wanted or pair[0] in wanted), key=lambda pair: _rank(pair[1]))


def _rank(queue: Any) -> tuple[float, str]:
    return -float(queue.priority.hget() or 0), queue.pk.get()


def _apart_from_loops(work: Callable[[], T]) -> T:
    """Do some work where no event loop runs: a worker may want one of its own."""
    if asyncio._get_running_loop() is None:
        return work()
    context = contextvars.copy_context()
    with ThreadPoolExecutor(1, "limpyd-jobs-testing") as thread:
        return thread.submit(context.run, work).result()


@contextmanager
def eager(raises: bool = False, delayed: bool = False, **options: Any) -> Iterator[None]:
    """Run jobs as soon as they are added: `Job.add_job`, `Workflow.add` and the like come back when all are done.

    A job goes through its queue, and is taken by a worker in this process, with all that waits
    there and all that it adds itself. It holds for all threads.

    Args:
        raises, delayed, options: as for `run_until_empty`.
    """
    run = partial(run_until_empty, raises=raises, delayed=delayed, **options)
    with ExitStack() as patches:
        for owner, name in ADDING:
            patches.enter_context(mock.patch.object(owner, name, _followed(vars(owner)[name], run)))
        yield


def _followed(method: Any, run: Callable[..., Any]) -> Any:
    """A method, after which what it has added is run: of a class or of instances, a coroutine function or none."""
    function = getattr(method, "__func__", method)

    @wraps(function)
    def add(owner: Any, *args: Any, **kwargs: Any) -> Any:
        result = function(owner, *args, **kwargs)
        run(queue_model=_queue_model_of(owner, kwargs))
        return result

    @wraps(function)
    async def aadd(owner: Any, *args: Any, **kwargs: Any) -> Any:
        result = await function(owner, *args, **kwargs)
        await asyncio.to_thread(run, queue_model=_queue_model_of(owner, kwargs))
        return result

    wrapped = aadd if inspect.iscoroutinefunction(function) else add
    return classmethod(wrapped) if isinstance(method, classmethod) else wrapped


def _queue_model_of(owner: Any, kwargs: dict[str, Any]) -> Any:
    if isinstance(owner, Workflow):
        return owner.steps[0].way.queue_model
    return kwargs.get("queue_model") or getattr(owner, "queue_model", Queue)


@contextmanager
def background_worker(*queues: Any, worker_class: type[Worker] = Worker, **options: Any) -> Iterator[Worker]:
    """A worker in a thread of this process, which ends with the block, after its job.

    Args:
        queues: names.
        options: of the worker.
    Raises:
        LimpydJobsException: its job did not end in time. What the worker itself has raised.
    """
    kind = _noting(worker_class)
    worker = kind(queues or None, **{"max_loops": 2**53, **_in_a_thread(worker_class, options), **options})
    raised: list[BaseException] = []
    thread = threading.Thread(target=partial(_run_noting, worker, raised), name="limpyd-jobs-testing", daemon=True)
    clock.listeners.add(worker.look_around)
    thread.start()
    try:
        yield worker
    finally:
        clock.listeners.discard(worker.look_around)
        worker.end_forced = True
        thread.join(END_SECONDS)
    if thread.is_alive():
        raise LimpydJobsException(f"A job of the worker of {', '.join(queues)} did not end in {END_SECONDS:g} seconds")
    if raised:
        raise raised[0]


def _run_noting(worker: Worker, raised: list[BaseException]) -> None:
    try:
        worker.run()
    except BaseException as error:
        raised.append(error)


def queued(identifier: str | None = None, queue: str | None = None, queue_model: Any = Queue) -> list[Any]:
    """The jobs that wait, are delayed or are parked, by priority: those of each queue in this order.

    Args:
        identifier: only jobs with this one.
        queue: only in queues of this name.
    """
    parked = _parked(queue_model)
    idents = [
        ident
        for _, one in _queues(queue_model, [] if queue is None else [queue])
        for ident in (*one.waiting.lmembers(), *one.delayed.zmembers(), *parked.get(_key_of(one), ()))
    ]
    return [job for job in _existing(idents) if identifier is None or job.identifier.hget() == identifier]


def _existing(idents: Iterable[str]) -> Iterator[Any]:
    """Jobs by their idents, but for those that were deleted."""
    for ident in idents:
        with suppress(DoesNotExist):
            yield Job.get_from_ident(ident)


def _parked(queue_model: Any) -> dict[str, list[str]]:
    """The idents of the jobs that their limits do not let start, by the key of their queue, in their order."""
    noted = queue_model.database.connection.hgetall(f"{queue_model.namespace or ''}:limits:jobs")
    places = [(ident, json.loads(text)) for ident, text in noted.items()]
    found: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for ident, place in places:
        if place["state"] == "parked":
            found[place["queue"]].append((int(place["number"]), ident))
    return {key: [ident for _, ident in sorted(pairs)] for key, pairs in found.items()}


def _key_of(queue: Any) -> str:
    return f"{queue._name}:{queue.pk.get()}"
