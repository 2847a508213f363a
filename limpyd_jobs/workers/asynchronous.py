"""The worker of an event loop: many jobs at a time in one thread, for jobs that mostly wait.

One coroutine exchanges with Redis: the ends of the jobs that are done, for claims on as many as there is room for. Each
job then is a task. What has no coroutine runs in threads, so that nothing holds up the loop: plain callbacks and hooks,
and what a worker does now and then (delayed jobs that are due, lapsed leases, new queues).
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import inspect
import os
import signal
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from functools import lru_cache, partial
from types import FrameType
from typing import Any

from redis.exceptions import RedisError

from .. import transitions
from ..aio import async_client, leave_replica
from ..exceptions import ConfigurationException, DatabaseException, JobTimeout, LimpydJobsException
from ..fields import Loaded
from ..instruments import called_in_thread, instruments
from ..models import _overrides
from ..statuses import STATUSES
from ..transitions import Claim, End, Ended, Taken
from .ahead import Done
from .base import BaseWorker, end_process
from .blocking import CANCEL_AGAIN_SECONDS, FAILING_SECONDS, POLL_SECONDS, Worker
from .claiming import LAST_TRIES_SECONDS
from .hands import Hands
from .life import JobLife, StatusChanged, has_method
from .loop_watch import LoopWatch

MAX_CONCURRENCY = 1000  # of the jobs in one call of a script
CONNECTIONS = 10  # for transitions other than the exchange: ends in error, fields of claimed jobs
PLAIN_COUNT = sys.maxsize  # threads for plain functions: jobs are counted, and a hook must not wait for what it calls
TAKEN_KINDS = ("CLAIMED", "STALE")  # of what an exchange answers: there is a job
# What transitions write: once a job has run, whoever asks for these sees what is in Redis.
WRITTEN_FIELDS = ("end", "start", "tries", "queued", "priority", "delayed_until", "queue_key", "cancel_reason")
ASIDE_COUNT = 8  # threads for what the worker does itself


def new_event_loop() -> asyncio.AbstractEventLoop:
    """One of uvloop, if that is installed."""
    try:
        import uvloop  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        return asyncio.new_event_loop()
    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop


def is_async(function: Any) -> bool:
    """Does calling it give a coroutine?"""
    function = getattr(function, "__func__", function)
    try:
        return _is_async(function)
    except TypeError:  # it cannot be hashed
        return _is_async.__wrapped__(function)


@lru_cache(maxsize=1024)
def _is_async(function: Any) -> bool:
    # the latter for an object that is called like a function
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)


def is_ours(function: Any) -> bool:
    """Is it a method of this package, which does not wait for Redis where it must not?"""
    return str(getattr(function, "__module__", "")).startswith(f"{__package__}.")


class AsyncWorker(Worker):
    """Runs up to `concurrency` jobs at a time in one event loop.

    Options, hooks and what is stored are those of `Worker`. Callbacks, the `run` of jobs and all hooks can be coroutine
    functions; those that are not are called in a thread each. A hook that is one awaits that of `super()`:

        class MyWorker(AsyncWorker):
            async def job_success(self, job, queue, job_result):
                await super().job_success(job, queue, job_result)

    It has no `wait_for_job` to override, and no `prefetch`: it claims as many jobs as it has room for in one call.

    Attributes:
        concurrency: how many jobs run at a time, at most.
        blocked_seconds: how long the event loop may stand still before the log says where.
    """

    concurrency = 100
    blocked_seconds: float = 1.0

    more_parameters = (*Worker.more_parameters, "concurrency", "blocked_seconds")

    _loop: asyncio.AbstractEventLoop | None = None  # here, as a signal may come before the end of the constructor

    def __init__(self, queues: Any = None, **kwargs: Any) -> None:
        super().__init__(queues, **kwargs)
        if _overrides(type(self), Worker, "wait_for_job"):
            raise ConfigurationException(f"{type(self).__name__}.wait_for_job is never called: an AsyncWorker has none")
        self._loop_thread: int | None = None
        self._is_abandoned = False  # it ends at once: what its jobs do now is nobody's business
        self._woken = asyncio.Event()  # a job has ended, or the worker is to end
        self._is_last_look = False  # with `burst`: is nothing else to be looked at?
        self._tasks: set[asyncio.Task[None]] = set()
        self._suspect: asyncio.Task[None] | None = None  # of a job that the next loss of its worker gives up
        self._runs: dict[str, asyncio.Task[Any]] = {}  # of coroutines, by the token of the claim
        self._canceled: set[str] = set()  # the tokens of those that are cancelled because the job is
        self._asked = 0  # how many claims the call asked for that has had no answer yet
        self._serving: asyncio.Task[None] | None = None
        self._ring: asyncio.Future[Any] | None = None
        self._client: Any = None
        self._is_callback_async = is_async(self.callback)
        self._runs_jobs = getattr(self.callback, "__func__", None) is BaseWorker.execute

    def _check_numbers(self) -> None:
        super()._check_numbers()
        count = self.concurrency
        if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= MAX_CONCURRENCY:
            accepted = f"an integer between 1 and {MAX_CONCURRENCY}"
            raise ConfigurationException(f"Invalid concurrency: {count!r}: must be {accepted}")
        self._check_seconds("blocked_seconds", self.blocked_seconds)
        for name, value in (("prefetch", self.prefetch > 1), ("threads", self.threads > 1), ("isolate", self.isolate)):
            if value:
                raise ConfigurationException(f"Invalid {name}: {getattr(self, name)!r}: an AsyncWorker has no {name}")

    @property
    def _runs_many(self) -> bool:
        return True

    @property
    def _claims_at_once(self) -> int:
        return self.concurrency

    def _is_moving(self, seconds: float) -> bool:
        """Does the event loop turn? Whatever its jobs do: one that holds it up stops all others."""
        return time.monotonic() - self._moved_at < seconds

    # --- How this worker waits: in its event loop

    def _do(self, steps: Coroutine[Any, Any, Any]) -> Any:
        """To be awaited in the loop; done for whoever calls from another thread, where plain hooks run."""
        if self._loop is None or threading.get_ident() == self._loop_thread:
            return steps
        return asyncio.run_coroutine_threadsafe(steps, self._loop).result()

    def _drive(self, steps: Coroutine[Any, Any, Any]) -> Any:
        assert self._loop is not None
        return self._loop.run_until_complete(steps)

    async def _send(self, call: transitions.Call[Any]) -> Any:
        return await transitions.asend(self._client, call)

    async def _pause(self, seconds: float) -> None:
        await asyncio.sleep(min(seconds, POLL_SECONDS))

    async def _rest_after(self, error: Exception) -> None:
        await leave_replica(self._client, error)  # the other client is left by `_pause_after`
        await self._pause(await self._apart(partial(self._pause_after, error)))

    async def _apart(self, work: Callable[[], Any]) -> Any:
        return await self._in_thread(self._aside, work)

    async def _invoke(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if is_ours(function) or is_async(function):
            result = function(*args, **kwargs)
        else:
            result = await self._call_plain(partial(function, *args, **kwargs))
        return await result if inspect.isawaitable(result) else result

    async def _call_plain(self, work: Callable[[], Any]) -> Any:
        return await self._in_thread(self._plain, partial(called_in_thread, self, work) if instruments else work)

    async def _in_thread(self, hands: Hands, work: Callable[[], Any]) -> Any:
        context = contextvars.copy_context()
        result, error = await asyncio.wrap_future(hands.submit(partial(_outcome_of, context, work)))
        if error is not None:
            raise error
        return result

    async def _end_alone(self, call: transitions.Call[Any]) -> Any:
        return await JobLife._end_alone(self, call)

    # --- The run

    def run(self) -> None:
        """Take and run jobs until `must_stop`.

        Raises:
            LimpydJobsException: the worker has run already, or is called within an event loop that runs.
        """
        if asyncio._get_running_loop() is not None:
            name = type(self).__name__
            message = "it has a loop of its own: use a process or a thread for it (await asyncio.to_thread(worker.run))"
            raise LimpydJobsException(f"{name}.run() cannot be called within an event loop that runs, {message}")
        loop = new_event_loop()
        self._begin_loop(loop)
        try:
            asyncio.set_event_loop(loop)
            super().run()
        finally:
            asyncio.set_event_loop(None)
            self._close_loop(loop)
            self._end_loop()

    def _begin_loop(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop, self._loop_thread = loop, threading.get_ident()
        self._plain = Hands(PLAIN_COUNT, "limpyd-jobs-hand")
        self._aside = Hands(ASIDE_COUNT, "limpyd-jobs-aside")

    def _end_loop(self) -> None:
        self._loop = None
        self._plain.close()
        self._aside.close()

    @staticmethod
    def _close_loop(loop: asyncio.AbstractEventLoop) -> None:
        try:
            if not loop.is_running():
                tasks = asyncio.all_tasks(loop)  # what jobs have left behind, or what was interrupted
                for task in tasks:
                    task.cancel()
                loop.run_until_complete(_wait_for_all(tasks))
                loop.run_until_complete(loop.shutdown_asyncgens())
        finally:
            loop.close()

    def _main_loop(self) -> None:
        self._drive(self._serve())

    def _wake(self) -> None:
        """Also the loop, from the handler of a signal or another thread."""
        super()._wake()
        loop = self._loop  # it may go meanwhile
        if loop is not None:
            with contextlib.suppress(RuntimeError):  # it is closed
                loop.call_soon_threadsafe(self._woken.set)

    async def _serve(self) -> None:
        """Exchange ends for claims, as long as there is something to do."""
        self._serving = asyncio.current_task()
        self._client = async_client(self.connection, CONNECTIONS)
        assert self._heartbeat is not None
        self._heartbeat.watch_canceled(self._cancel_from_thread)
        watch = LoopWatch(self.blocked_seconds, self._tell_blocked) if self.blocked_seconds else None
        if watch is not None:
            watch.start()
        try:
            while not self._is_done():
                self._woken.clear()
                self._moved_at = time.monotonic()
                await self._serve_patiently()
        finally:
            if watch is not None:
                watch.stop()
            await self._stop_listening()
            await self._client.aclose()

    def _is_done(self) -> bool:
        return self.must_stop() and not self._tasks and not self._ahead.unsent

    async def _serve_patiently(self) -> None:
        try:
            await self._serve_once()
        except (RedisError, DatabaseException) as error:
            if self._must_give_up():
                self._give_up_ends(error)
            await self._rest_after(error)
        except Exception:  # an override of a method that takes jobs
            self._log_exception("Unable to get job")
            await self._pause(self._outage.next_pause(None))

    def _give_up_ends(self, error: Exception) -> None:
        """The ends that cannot be recorded are told to those who wait for that; their jobs run again."""
        done, self._ahead.unsent = self._ahead.unsent, []
        for one in done:
            one.outcome = error
            self._answer(one)

    async def _serve_once(self) -> None:
        if not self._is_this_process:
            raise SystemExit(1)  # a process that a job has forked
        for work in self._rounds() if self._may_claim() else ():
            await self._apart(work)
        wanted = self._room() if self._may_claim() else 0
        if not wanted and not self._ahead.unsent:
            await self._wait_for_ends()
            return
        taken = await self._exchange_claims(wanted)
        has_found = any(one.kind != "EMPTY" for one in taken)
        self._is_last_look = self._is_last_look and not has_found
        await self._start_all([one for one in taken if one.kind in TAKEN_KINDS])
        for one in taken:
            if one.kind not in (*TAKEN_KINDS, "EMPTY"):
                await self._apart(partial(self._clear_away, one))
        if wanted and not has_found and not self._ahead.unsent:
            await self._wait_for_work()

    def _may_claim(self) -> bool:
        if self._suspect is not None and self._suspect in self._tasks:
            return False  # should it kill this process, it kills no other job
        return not self.must_stop() and not (self._heartbeat is None or self._heartbeat.is_failing)

    def _room(self) -> int:
        """How many jobs may be claimed now; those whose end is about to be sent, and have no more to do, are over."""
        ending = sum(one.is_last_step for one in self._ahead.unsent)
        left = self.max_loops - self.num_loops
        return max(min(self.concurrency - len(self._tasks) + ending, left), 0)

    async def _exchange_claims(self, wanted: int) -> list[Taken]:
        """Send the ends that are left; claim jobs, as many as before if that had no answer."""
        if wanted:
            wanted = self._asked = max(wanted, self._asked)
        done, looks_at_keys = list(self._ahead.unsent), wanted > 0 and self._looks_at_keys()
        call = self._exchange_call(done, wanted, looks_at_keys, runs_count=wanted)
        exchanged = await self._send(call)
        self._outage.end()
        self._give_up_at = None
        self._note_exchanged(done, exchanged, wanted)
        if exchanged.claims:
            self._asked = 0
        for one in done:
            self._answer(one)
        self._ahead.sent.clear()
        taken, self._poll_seconds = list(self._ahead.claims), max(self._poll_seconds, POLL_SECONDS)
        self._ahead.claims.clear()
        return taken

    @staticmethod
    def _answer(done: Done) -> None:
        if done.answer is not None and not done.answer.done():
            done.answer.set_result(done.outcome)

    async def _start_all(self, taken: list[Taken]) -> None:
        """Begin with all jobs of an exchange: whatever goes wrong with one of them, the others are leased, too."""
        accepted = [pair for one in taken if (pair := await self._accept(one)) is not None]
        await self._load([job for _, job in accepted])
        for queue, job in accepted:
            self._start_task(queue, job)

    async def _accept(self, taken: Taken) -> tuple[Any, Any] | None:
        """The queue and the job of a claim; None when they cannot be had."""
        self.set_status("running")
        accept = partial(self._accept_taken, taken)
        try:
            found: tuple[Any, Any] | None = accept() if self._is_known(taken) else await self._apart(accept)
        except (RedisError, DatabaseException) as error:  # its lease lapses
            self._outage.next_pause(error)
            found = None
        except Exception:  # of an override
            self._log_exception(f"Unable to get job {taken.ident}")
            found = None
        return found

    async def _load(self, jobs: list[Any]) -> None:
        """Bring the fields of jobs along, so that their coroutines read them without waiting for Redis."""
        jobs = [job for job in jobs if job._claim is not None and self._needs_fields(job)]
        if not jobs:
            return
        pipeline = self._client.pipeline(transaction=False)
        for job in jobs:
            pipeline.hgetall(job.key)
        with contextlib.suppress(RedisError, UnicodeError):  # then they are read one by one
            for job, values in zip(jobs, await pipeline.execute(), strict=True):
                job._loaded = Loaded(values, threading.get_ident())

    def _needs_fields(self, job: Any) -> bool:
        """Also for one whose fields say whether it is a coroutine."""
        return type(job)._is_coroutine is not None or self._runs_coroutine(job)

    def _runs_coroutine(self, job: Any) -> bool:
        if not self._runs_jobs:
            return self._is_callback_async
        said = job._is_coroutine
        return is_async(job.run) if said is None else bool(said)

    def _start_task(self, queue: Any, job: Any) -> None:
        self.num_loops += 1
        task = asyncio.create_task(self._process_task(queue, job), name=self._ident_of(job))
        self._tasks.add(task)
        task.add_done_callback(self._take_back)
        if job._claim is not None and job._claim.is_last_chance:
            self._suspect = task

    def _take_back(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._woken.set()
        if not task.cancelled() and task.exception() is not None and not self._is_abandoned:
            self.log(f"A job ended in a way that nobody expects: {task.exception()!r}", level="error")

    async def _process_task(self, queue: Any, job: Any) -> None:
        token = job._claim.token if job._claim else ""
        try:
            await self._process_taken(queue, job)
        except (RedisError, DatabaseException) as error:
            # A job whose end could not be recorded keeps its lease until that lapses, and then runs again.
            self._outage.next_pause(error)
        finally:
            self._canceled.discard(token)
            job._loaded = None
        self.check_memory()

    # --- Waiting

    async def _wait_for_ends(self) -> None:
        """There is no room: wait until a job ends. Nobody listens meanwhile, so that a ring wakes another worker."""
        await self._stop_listening()
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._woken.wait(), FAILING_SECONDS)

    async def _wait_for_work(self) -> None:
        """Nothing is waiting: until a ring, the end of a job, or the time to look again."""
        if not self._tasks:
            self.set_status("waiting")
            if self.burst:
                self._look_again_or_end()
                return
        if self._ring is None:
            until_end = max(self._wanted_end() - time.monotonic(), 0.001)
            wait = partial(self._wait_for_ring, min(POLL_SECONDS, until_end), self._seconds_until_due())
            self._ring = asyncio.ensure_future(self._apart(wait))
        woken = asyncio.ensure_future(self._woken.wait())
        try:
            until_due = self._seconds_until_due()  # it may be sooner by now than the ring knows
            timeout = until_due if until_due < POLL_SECONDS else None
            await asyncio.wait({self._ring, woken}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        finally:
            woken.cancel()
        if self._ring.done():
            ring, self._ring = self._ring, None
            ring.result()

    def _look_again_or_end(self) -> None:
        """With `burst`, nothing was found: look once more, also where programs put jobs that do not ring; then end."""
        is_due = self._next_due is not None and time.monotonic() >= self._next_due and not self._broken_keys()
        if self._is_last_look and not is_due:
            self.end_burst()
        self._is_last_look = True
        self._looked_at_keys = self._looked_at_delayed = self._updated_keys = float("-inf")

    async def _stop_listening(self) -> None:
        if self._ring is not None:
            ring, self._ring = self._ring, None
            self._alarm.ring()
            with contextlib.suppress(RedisError):
                await ring

    # --- One job

    async def _finish(self, job: Any, end: End) -> Ended:
        """Record a success, with others that end at the same time.

        Raises:
            LeaseLost: it is somebody else's by now.
        """
        assert self._loop is not None
        is_last_step = self._may_claim_early and not has_method(job, "on_success")
        done = Done(job, None, None, end, answer=self._loop.create_future(), is_last_step=is_last_step)
        self._ahead.unsent.append(done)
        self._woken.set()
        assert done.answer is not None
        outcome = await done.answer
        if isinstance(outcome, Exception):
            raise outcome
        found: Ended = outcome
        return found

    async def _call(self, job: Any, queue: Any) -> Any:
        function = partial(job.run, queue) if self._runs_jobs else partial(self.callback, job, queue)
        seconds = self._limit_of(job)
        if self._is_isolated(job):
            raise ConfigurationException("An isolated job cannot run in an AsyncWorker: use processes for it")
        if not self._runs_coroutine(job):
            self._check_unenforced(seconds)
            result = await self._call_plain(function)
            return await self._watched(job, lambda: result, seconds) if inspect.isawaitable(result) else result
        return await self._watched(job, function, seconds)

    async def _watched(self, job: Any, work: Callable[[], Awaitable[Any]], seconds: float | None) -> Any:
        """Call a coroutine function, in a task of its own, which can be cancelled without its end being lost.

        Raises:
            JobTimeout: it was cancelled, as its time was over. StatusChanged: the same, as the job is canceled.
        """
        assert self._loop is not None
        token = job._claim.token if job._claim else str(id(job))
        run = self._runs[token] = self._loop.create_task(_sheltered(work))
        late: list[bool] = []
        timer = self._loop.call_later(seconds, self._cancel_late, run, late) if seconds is not None else None
        if token in self._canceled:  # since before it began
            self._cancel_run(run)
        try:
            await asyncio.wait({run})
        finally:
            self._runs.pop(token, None)
            was_canceled = token in self._canceled
            if timer is not None:
                timer.cancel()
            if not run.done():
                run.cancel()  # this worker ends at once
            if job._loaded is not None:
                job._loaded.forget(WRITTEN_FIELDS)
        result, error = run.result() if not run.cancelled() else (None, asyncio.CancelledError())
        if error is None:
            return result
        if was_canceled:
            raise StatusChanged(STATUSES.CANCELED) from error
        if late and seconds is not None:  # whatever it has made of its cancellation
            raise JobTimeout(self._ident_of(job), seconds) from error
        raise error

    def _cancel_late(self, run: asyncio.Task[Any], late: list[bool]) -> None:
        late.append(True)
        self._cancel_run(run)

    def _cancel_run(self, run: asyncio.Task[Any]) -> None:
        """Cancel a coroutine, again if it goes on in spite of that."""
        if not run.done() and self._loop is not None:
            run.cancel()
            self._loop.call_later(CANCEL_AGAIN_SECONDS, self._cancel_run, run)

    def _cancel_from_thread(self, claim: Claim) -> None:
        """Called by the heartbeat: a job is canceled while it runs."""
        with contextlib.suppress(RuntimeError):  # the loop is closed
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._cancel_canceled, claim)

    def _cancel_canceled(self, claim: Claim) -> None:
        if self._held_claims.get(claim.ident) is claim:  # else it is over
            self._canceled.add(claim.token)
            if claim.token in self._runs:
                self._cancel_run(self._runs[claim.token])

    # --- What is told

    def _tell_status(self) -> None:
        """Apart: those who are told, as the title of the process, count jobs in Redis."""
        if self._loop is None or threading.get_ident() != self._loop_thread or not self._loop.is_running():
            super()._tell_status()
        elif self._status_callbacks:
            self._aside.submit(super()._tell_status)

    def _tell_blocked(self, seconds: float, stack: list[str]) -> None:
        lines = [line for call in stack for line in call.rstrip("\n").split("\n")]
        message = f"The event loop has been blocked for {seconds:.1f} seconds, here:"
        self._log_lines(message, lines, "warning")

    # --- The end

    def _must_not_be_caught(self, error: BaseException) -> bool:
        return self._is_abandoned or super()._must_not_be_caught(error)

    def _give_back_held(self) -> None:
        if not self._is_abandoned:
            super()._give_back_held()

    def _interrupt(self, signum: int, frame: FrameType | None) -> None:
        """Between two steps of the loop: in the middle of one it would lose tasks. At once when it comes again."""
        if self._was_interrupted or self._loop is None or not self._loop.is_running():
            super()._interrupt(signum, frame)
        else:
            self._was_interrupted = True
            self._loop.call_soon_threadsafe(signal.default_int_handler, signum, frame)

    def _leave_nothing(self) -> None:
        """After an interrupt there are jobs that run: they are given back, then cancelled."""
        super()._leave_nothing()
        tasks = [task for task in (*self._tasks, self._serving) if task is not None and not task.done()]
        if tasks and self._is_this_process:
            self._is_abandoned = True
            runs = list(self._runs.values())  # each is cancelled with its task, and may clean up after itself
            for task in tasks:
                task.cancel()
            self._drive(_wait_for_all([*tasks, *runs]))


async def _sheltered(work: Callable[[], Awaitable[Any]]) -> tuple[Any, BaseException | None]:
    """What a coroutine answers, or raises: what ends processes must not end the loop."""
    pid = os.getpid()
    try:
        outcome = await work(), None  # called here: one that is cancelled before it begins leaves no coroutine behind
    except asyncio.CancelledError:
        _end_fork(pid)
        raise
    except BaseException as error:
        _end_fork(pid)
        return None, error
    _end_fork(pid)
    return outcome


def _end_fork(pid: int) -> None:
    """End a process that a job has forked, when it comes back from the job: it shares what the loop waits with."""
    if os.getpid() != pid:
        end_process(0)


async def _wait_for_all(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Wait for tasks that are cancelled; not for ever, as some may go on in spite of that."""
    tasks = list(tasks)
    done = (await asyncio.wait(tasks, timeout=LAST_TRIES_SECONDS))[0] if tasks else ()
    for task in done:
        if not task.cancelled():
            task.exception()  # else asyncio complains that nobody has looked at it


def _outcome_of(context: contextvars.Context, work: Callable[[], Any]) -> tuple[Any, BaseException | None]:
    """What some work answers, or raises: not every error can cross a future (StopIteration)."""
    pid, result, error = os.getpid(), None, None
    try:
        result = context.run(work)
    except BaseException as raised:
        error = raised
    _end_fork(pid)
    return result, error
