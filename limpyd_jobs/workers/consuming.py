"""Taking jobs without giving a worker a callback: the coroutine that asks for a job does it, where it is."""

from __future__ import annotations

import asyncio
from collections import deque
from functools import partial
from types import TracebackType
from typing import Any

from ..exceptions import ConfigurationException, JobTimeout, LimpydJobsException, Retry
from ..instruments import Around
from ..statuses import STATUSES
from .asynchronous import AsyncWorker
from .blocking import Worker
from .life import StatusChanged


class _Returned(Exception):
    """The job is to be given back: whoever had it was cancelled, or never began."""


class Handed:
    """A job that is done outside of its worker.

    Args:
        context: that it is done in.
    Attributes:
        done: what that came to.
        recorded: its end is; set by the worker.
        timeout: the error of a worker that has ended it, as its time is over.
        was_canceled: the worker has ended it, as the job is canceled.
    """

    def __init__(self, context: Around) -> None:
        self._context = context
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.recorded = asyncio.Event()
        self.timeout: JobTimeout | None = None
        self.was_canceled = False
        self._task: asyncio.Task[Any] | None = None  # that does it

    def enter(self) -> None:
        """The job begins.

        Raises:
            LimpydJobsException: it has begun before, or it has ended: it was given back, its time was over...
        """
        if self._task is not None or self.done.done():
            raise LimpydJobsException("This job has begun already, or it is taken back: ask for another one")
        self._task = asyncio.current_task()
        self._context.__enter__()

    async def leave(self, error: BaseException | None) -> bool:
        """The job ends, with an error or without; comes back when that is recorded.

        Returns:
            Is the error not to be raised any further?
        Raises:
            JobTimeout: that is why it ends.
        """
        self._context.leave(self._error_of_job(error))
        if not self.done.done():
            self._tell(error)
        await self.recorded.wait()
        if self.timeout is None and not self.was_canceled:
            return isinstance(error, Retry)
        # the worker has cancelled the block; Python 3.10 does not count how often a task is cancelled
        is_cancelled_by_others = bool(getattr(self._task, "uncancel", int)())
        if is_cancelled_by_others and isinstance(error, asyncio.CancelledError):
            return False
        if self.timeout is not None:
            raise self.timeout from error
        return True

    def _error_of_job(self, error: BaseException | None) -> BaseException | None:
        """What instruments are to see: not how the block was ended, but why."""
        if self.timeout is not None:
            return self.timeout
        if self.was_canceled:
            return StatusChanged(STATUSES.CANCELED)
        is_given_back = isinstance(error, (asyncio.CancelledError, GeneratorExit))
        return StatusChanged(STATUSES.WAITING) if is_given_back else error

    def _tell(self, error: BaseException | None) -> None:
        if isinstance(error, (asyncio.CancelledError, GeneratorExit)):
            error = _Returned()
        elif isinstance(error, StopIteration):  # no future takes that
            error = RuntimeError(f"the job raised {error!r}")
        if error is None:
            self.done.set_result(None)
        else:
            self.done.set_exception(error)

    def interrupt(self) -> None:
        """End the code that does the job, if it has begun."""
        if self._task is not None:
            self._task.cancel()

    def take_back(self) -> None:
        """Give the job back; code that does it is cancelled first."""
        if self._task is not None and self._task is not asyncio.current_task() and not self._task.done():
            self._task.cancel()  # it comes to `leave`
        elif not self.done.done():
            self.done.set_exception(_Returned())


class AsyncConsumer(AsyncWorker):
    """Gives the jobs of some queues to whoever asks for one, in a program that has its own event loop.

        async with AsyncConsumer("mail") as jobs:
            async for job in jobs:
                async with job:
                    await send(job.identifier.hget())

    A job runs while its block does. Left without an exception the job is a success, else it fails with that: it has
    its `Error`, is requeued as any other, and the exception goes on, but for `Retry`. A block that is cancelled gives
    its job back. When the block is left, the end is recorded. Several tasks may ask at the same time.

    Options and hooks are those of `AsyncWorker`, without `callback`; signals are left alone, and it has no `max_loops`
    unless one is given. A job whose `job_timeout` is over, or that is canceled, has its block cancelled: in the first
    case that raises JobTimeout, in the second the block just ends.
    """

    max_loops = 2**53
    terminate_gracefuly = False

    def __init__(self, queues: Any = None, **kwargs: Any) -> None:
        if kwargs.get("callback") is not None or type(self).callback is not None:
            raise ConfigurationException("An AsyncConsumer has no callback: whoever asks for a job does it")
        super().__init__(queues, **kwargs)
        self.callback = self._hand_over
        self._runs_jobs, self._is_callback_async = False, True
        self._askers: deque[asyncio.Future[Any]] = deque()
        self._on_the_way: set[int] = set()  # jobs that are claimed for those, and not handed over yet, by their `id`
        self._is_left = False
        self._handed: set[Handed] = set()

    def run(self) -> None:
        """Not for a consumer.

        Raises:
            LimpydJobsException: always.
        """
        raise LimpydJobsException("An AsyncConsumer is not run: use `async with` and `async for`")

    # --- For those who ask

    async def __aenter__(self) -> AsyncConsumer:
        if self.status is not None:
            raise LimpydJobsException("This consumer was used before: make another one")
        self._begin_loop(asyncio.get_running_loop())
        self._note_start()
        self._serving = asyncio.create_task(self._serve_others())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end_forced = self._is_left = True
        for handed in list(self._handed):
            handed.take_back()
        assert self._serving is not None
        await asyncio.wait({self._serving})
        self._end_loop()
        if error is None:
            self._serving.result()

    def __aiter__(self) -> AsyncConsumer:
        return self

    async def __anext__(self) -> Any:
        if self._serving is None:
            raise LimpydJobsException("Ask a consumer for jobs within `async with`")
        asker: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._askers.append(asker)
        self._woken.set()
        try:
            await asyncio.wait({asker, self._serving}, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            if asker.done():
                self._offer(asker.result())
            else:
                self._askers.remove(asker)
                self._woken.set()  # so that it does not listen for nobody
            raise
        if asker.done():
            return asker.result()
        self._serving.result()
        raise StopAsyncIteration

    def _offer(self, job: Any) -> None:
        """Give a job to the first who asks; back to its queue when nobody does any more."""
        if self._askers and not self._is_left:
            self._askers.popleft().set_result(job)
        else:
            job._handed.take_back()

    # --- In the worker

    async def _serve_others(self) -> None:
        if not await self._apart(self._wait_for_database):
            return
        await self._apart(self._open)
        try:
            await self._apart(self._prepare_queues)
            if not self.must_stop():
                await self._invoke(self.run_started)
                await self._serve()
        finally:
            await self._apart(self._leave_nothing)
            await self._apart(self._close)
        self._note_end()
        await self._invoke(self.run_ended)

    def _leave_nothing(self) -> None:
        Worker._leave_nothing(self)  # nothing is driven in a loop that is not ours

    def _room(self) -> int:
        wanted = len(self._askers) - len(self._on_the_way)
        return max(min(super()._room(), wanted), 0)

    def _start_task(self, queue: Any, job: Any) -> None:
        self._on_the_way.add(id(job))
        super()._start_task(queue, job)

    async def _process_task(self, queue: Any, job: Any) -> None:
        try:
            await super()._process_task(queue, job)
        finally:
            self._on_the_way.discard(id(job))
            if job._handed is not None:  # else it was not run: who has asked for a job still waits for one
                self._handed.discard(job._handed)
                job._handed.recorded.set()

    def _around(self, job: Any, queue: Any) -> Around:
        return Around(())  # it runs elsewhere: see Handed

    async def _hand_over(self, job: Any, queue: Any) -> None:
        handed = job._handed = Handed(self._instruments_around(job, queue, None))
        self._handed.add(handed)
        self._on_the_way.discard(id(job))
        self._offer(job)
        try:
            await handed.done
        except asyncio.CancelledError:
            handed.was_canceled = job._claim is not None and job._claim.token in self._canceled
            if not handed.was_canceled:
                handed.timeout = JobTimeout(self._ident_of(job), self._limit_of(job) or 0)
            handed.interrupt()
            raise
        except _Returned:
            if job._claim is not None:
                await self._apart(partial(self._give_back, [job._claim.token]))
                job._last_claim, job._claim = job._claim, None
