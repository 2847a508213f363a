"""The worker: one process, one job at a time."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from functools import partial
from types import CoroutineType, FrameType
from typing import Any

from redis.exceptions import RedisError

from .. import transitions, wire
from ..exceptions import (
    ConfigurationException,
    DatabaseException,
    JobClassError,
    JobTimeout,
    LeaseLost,
    LimpydJobsException,
)
from ..models import Job, _overrides, repair_indexes, unsent_ends
from ..statuses import STATUSES
from ..transitions import Claim, End, Ended, Exchanged, Taken
from ..utils import now_text, utcnow
from .ahead import Done, Fetch
from .base import FLUSH_SECONDS, end_process, try_for
from .doorbell import Doorbell
from .hands import Hands
from .isolation import IsolatedRun
from .life import JobLife, StatusChanged, has_method, run_now
from .metrics_port import MetricsPort
from .presence import Presence
from .private_loop import private_loop
from .time_limit import TimeLimit, can_limit_time

POLL_SECONDS = 1  # how often the waiting lists themselves are looked at, for programs that fill them and do not ring
CANCEL_AGAIN_SECONDS = 10.0  # for cleaning up: a coroutine that goes on after that is cancelled again
FAILING_SECONDS = 0.5  # how often a worker that cannot renew its leases looks whether it can again
SAME_INTERRUPT_SECONDS = 1.0  # within which a SIGINT that follows another one is the same


YOUNG_OBJECTS = 10_000  # that a worker lets come together before Python looks for cycles among them
USUAL_YOUNG_OBJECTS = (700, 2000)  # what Python begins with, before and since 3.13


@contextlib.contextmanager
def _rare_collections() -> Iterator[None]:
    """Let Python look for reference cycles more rarely, unless the program has said how often it shall.

    What jobs under way are made of comes and goes: to look at it each time that there are 700 objects more takes up to
    a quarter of the time of a very short job.
    """
    former = gc.get_threshold()
    is_usual = former[0] in USUAL_YOUNG_OBJECTS
    if is_usual:
        gc.set_threshold(YOUNG_OBJECTS, *former[1:])
    try:
        yield
    finally:
        if is_usual and gc.get_threshold()[0] == YOUNG_OBJECTS:
            gc.set_threshold(*former)


def finished(result: Any) -> Any:
    """What a function answered; that of a coroutine function is run to its end, in the event loop of this thread."""
    return private_loop.run(result) if type(result) is CoroutineType else result


async def _limited(work: Coroutine[Any, Any, Any], seconds: float, make_timeout: Callable[[], BaseException]) -> Any:
    """Await a coroutine, and cancel it when its time is over; again, if it goes on in spite of that."""
    run = asyncio.ensure_future(work)
    await asyncio.wait({run}, timeout=seconds)
    is_late = not run.done()
    while not run.done():
        run.cancel()
        await asyncio.wait({run}, timeout=CANCEL_AGAIN_SECONDS)
    if is_late and (run.cancelled() or run.exception() is not None):  # whatever it has made of its cancellation
        raise make_timeout() from (None if run.cancelled() else run.exception())
    return run.result()


class Worker(JobLife):
    """Takes the jobs of some queues by priority, runs each, and records what became of it.

    For each job: a claim (it is RUNNING, and leased to this worker), the callback, and one of `job_success`,
    `job_error`, `job_skipped`, `job_delayed`. Each of these writes first, in one transition, then logs its message,
    then calls the method of the job (`on_success`...).
    """

    def __init__(self, queues: Any = None, **kwargs: Any) -> None:
        super().__init__(queues, **kwargs)
        # what looks between two jobs, or decides about the next one, must find it untouched
        steps = ("job_success", "wait_for_job", "must_stop", "set_status", "requeue_delayed_jobs")
        own_steps = (*steps, "job_success_message", "job_started_message")
        self._may_claim_early = not self._has_own_keys and not _overrides(type(self), Worker, *own_steps)
        self._hands = Hands(self.threads, "limpyd-jobs-hand") if self.threads > 1 else None
        self._runs_suspect = False
        self._metrics_port: MetricsPort | None = None
        self._interrupted_at = float("-inf")  # by the monotonic clock
        self._was_canceled = False  # was it killed for that?
        self._isolated: tuple[Claim, IsolatedRun] | None = None  # the job that runs in a child
        self._may_end_together = self.prefetch > 1 and self._may_claim_early

    # --- How this worker waits: in its thread

    def _do(self, steps: Coroutine[Any, Any, Any]) -> Any:
        return run_now(steps)

    def _drive(self, steps: Coroutine[Any, Any, Any]) -> Any:
        """Go through the steps from outside."""
        return run_now(steps)

    async def _send(self, call: transitions.Call[Any]) -> Any:
        return self._send_call(call)

    async def _pause(self, seconds: float) -> None:
        self._alarm.wait(seconds)

    async def _apart(self, work: Callable[[], Any]) -> Any:
        return work()

    async def _invoke(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return finished(function(*args, **kwargs))

    async def _call(self, job: Any, queue: Any) -> Any:
        seconds = self._limit_of(job)
        if self._is_isolated(job):
            return self._call_isolated(job, queue, seconds)
        if seconds is None:
            return finished(self.callback(job, queue))
        if not can_limit_time():
            self._check_unenforced(seconds)
            return finished(self.callback(job, queue))
        make_timeout = partial(JobTimeout, self._ident_of(job), seconds)
        with TimeLimit(seconds, make_timeout):
            result = self.callback(job, queue)
            return finished(_limited(result, seconds, make_timeout) if type(result) is CoroutineType else result)

    def _call_isolated(self, job: Any, queue: Any, seconds: float | None) -> Any:
        """Run a job in a forked child; what that knows of it at the end is brought back.

        Raises:
            StatusChanged: the child was killed, as the job is canceled.
        """
        if self.threads > 1:
            raise ConfigurationException("An isolated job cannot run in a worker with threads: use processes for it")
        heartbeat = self._heartbeat
        run = IsolatedRun(
            lambda: self._call_inside(job, queue),
            seconds=seconds,
            make_timeout=lambda: JobTimeout(self._ident_of(job), seconds or 0),
            prepare=self.after_fork,
            extra=job._knowledge,
            quiet=heartbeat.quiet if heartbeat is not None else None,
            survives_signals=self.terminate_gracefuly,
            show_stacks=self.log_stacks,
        )
        if heartbeat is not None:
            heartbeat.watch_canceled(self._kill_canceled)
        self._isolated, self._was_canceled = (job._claim, run), False
        if heartbeat is not None and job._claim is not None and heartbeat.has_told(job._claim):
            self._kill_canceled(job._claim)  # it was called before there was something to kill
        try:
            outcome = run.wait()
        finally:
            self._isolated = None
        job._trace = outcome.trace
        if outcome.extra is not None:
            job._take_knowledge(outcome.extra)
        if outcome.was_killed and not self._was_canceled and self._stopping is not None:
            self._stopping.join()  # that gives the job back, and ends the process
        if outcome.was_killed:
            raise StatusChanged(STATUSES.CANCELED)
        job._lost_result = outcome.lost_result
        if outcome.lost_result:
            message = f"{self._ident_of(job)}: its result is lost: {outcome.lost_result}"
            self._log_about(job, message, level="warning")
        if outcome.error is not None:
            raise outcome.error
        return outcome.result

    def _call_inside(self, job: Any, queue: Any) -> Any:
        """Call an isolated job in its own process."""
        with self._instruments_around(job, queue, is_outside=False):
            return finished(self.callback(job, queue))

    def _kill_canceled(self, claim: Claim) -> None:
        """Called by the heartbeat: a job is canceled while it runs."""
        isolated = self._isolated
        if isolated is not None and isolated[0] is claim:
            self._was_canceled = True
            isolated[1].kill()

    async def _end_alone(self, call: transitions.Call[Any]) -> Any:
        """Record the end of one job, after those that were to be sent with others."""
        if self._ahead.unsent or self._ahead.fetch is not None:
            await self._until_answered(self._settle_first)
        return await super()._end_alone(call)

    async def _settle_first(self) -> None:
        self._settle()

    # --- The run

    def run(self) -> None:
        """Take and run jobs until `must_stop`.

        Raises:
            LimpydJobsException: the worker has run already.
        """
        if self.status is not None:
            self.set_status("aborted")
            raise LimpydJobsException("This worker run is already terminated")
        if self._pid != os.getpid():
            self._prepare_process()
        self._note_start()
        try:
            with self._noticing_interrupts(), _rare_collections():
                self._run_prepared()
            self._note_end()
            self._drive(self._invoke(self.run_ended))
        finally:
            self._end_stopping()
            if self.terminate_gracefuly:
                self.stop_handling_end_signal()

    def _note_start(self) -> None:
        self.start_date = utcnow()
        if self.max_duration is not None:
            self.wanted_end_date = self.start_date + self.max_duration
        self.set_status("starting")

    def _note_end(self) -> None:
        self.end_date = utcnow()
        self.set_status("terminated")

    def _end_stopping(self) -> None:
        """Do without what was to end the process later; if it has begun to, leave it to that."""
        if self._stopping is not None and self._is_this_process:
            if isinstance(self._stopping, threading.Timer):
                self._stopping.cancel()
            self._stopping.join()

    @contextlib.contextmanager
    def _noticing_interrupts(self) -> Iterator[None]:
        """Tell a KeyboardInterrupt of SIGINT, which ends the worker, from one that a job raises itself."""
        is_main = threading.current_thread() is threading.main_thread()
        if not is_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
            yield
            return
        signal.signal(signal.SIGINT, self._catch_interrupt)
        try:
            yield
        finally:
            if signal.getsignal(signal.SIGINT) == self._catch_interrupt:
                signal.signal(signal.SIGINT, signal.default_int_handler)

    def _catch_interrupt(self, signum: int, frame: FrameType | None) -> None:
        """Interrupt, but not twice in a moment: a terminal sends SIGINT to a whole pool, and the parent passes it on.

        The second one would end the giving back of jobs that the first one has begun.
        """
        if time.monotonic() - self._interrupted_at >= SAME_INTERRUPT_SECONDS:
            self._interrupted_at = time.monotonic()
            self._interrupt(signum, frame)

    def _interrupt(self, signum: int, frame: FrameType | None) -> None:
        self._was_interrupted = True
        signal.default_int_handler(signum, frame)

    def log_stacks(self) -> None:
        """Also those of the job that runs in a child."""
        super().log_stacks()
        isolated = self._isolated
        if isolated is not None:
            isolated[1].ask_for_stacks()

    def stop_now(self) -> None:
        """Give the job back to the head of its queue, its try not counted, and end the process with the exit code 3."""
        if self._isolated is not None:
            self._isolated[1].kill()  # before it may run elsewhere
        try:
            # the last ones may not be among those that are held yet, and the next ones be under way
            made = self._claims_made
            last = made + self._claims_at_once
            tokens = [claim.token for claim in list(self._held_claims.values())]
            tokens += [self._token(number) for number in range(made, last + 1)]
            self._send_ends_quickly()
            idents = self._give_back(tokens[::-1])  # each goes to the head: the first one comes last
            try_for(FLUSH_SECONDS, lambda: self._tell_given_back(idents))
        finally:
            super().stop_now()

    def _send_ends_quickly(self) -> None:
        """Record what has ended before the rest is given back; if that cannot be done soon, it runs again."""
        if self._ahead.unsent and self._ahead.lock.acquire(timeout=FLUSH_SECONDS):
            with contextlib.suppress(RedisError, DatabaseException):
                self._send_call(self._exchange_call(list(self._ahead.unsent), 0, False))

    def _run_prepared(self) -> None:
        if self.must_stop() or not self._wait_for_database():
            return
        self._open()
        try:
            self._prepare_queues()
            if not self.must_stop():
                self._drive(self._invoke(self.run_started))
                self._main_loop()
        finally:
            try:
                self._leave_nothing()
            finally:  # its heartbeat must not tell of it when it has ended
                self._close()

    def _open(self) -> None:
        self._heartbeat = self._new_heartbeat()
        keys = [self._side_key("doorbell", name) for name in self.queues]
        self._doorbell = Doorbell(self.connection, keys, self._alarm)
        self._presence = Presence(self)
        self._presence.note(self.connection)
        self._heartbeat.do_beside(self._presence.note)
        self._heartbeat.start()
        unsent_ends.settle = self._settle_for_adding if self.prefetch > 1 else None
        if self.metrics_port is not None:
            self._metrics_port = MetricsPort(self.metrics_port, self.queue_model, self.log)
            self._metrics_port.start()
        is_alone = not self._runs_many and threading.current_thread() is threading.main_thread()
        # else other threads, which do something, need the interpreter meanwhile
        wire.this_thread.vigil = wire.Vigil() if wire.CAN_BE_AWAKE and is_alone else None

    def _close(self) -> None:
        if self._metrics_port is not None and self._is_this_process:
            self._metrics_port.stop()
        heartbeat, self._heartbeat = self._heartbeat, None
        doorbell, self._doorbell = self._doorbell, None
        presence, self._presence = self._presence, None
        private_loop.close()
        wire.this_thread.vigil = None
        if heartbeat is not None:
            heartbeat.stop()
        if presence is not None and self._is_this_process:
            with contextlib.suppress(DatabaseException):
                presence.forget(self.connection)
        if doorbell is not None:
            doorbell.close()

    def _leave_nothing(self) -> None:
        """Record the ends that are left, and give back what was claimed ahead and has not begun."""
        if not self._is_this_process:
            return
        if self._hands is not None:
            self._hands.close()
        self._ahead.stop()
        unsent_ends.settle = None
        try:
            with self._ahead.sending():
                self._receive()
        except (RedisError, DatabaseException):
            pass  # what it recorded and claimed is asked for again below
        try:
            self._settle()
        except (RedisError, DatabaseException) as error:
            self.log(f"What has ended last is not recorded, and will run again: {error}", level="error")
        self._give_back_held()

    def _prepare_queues(self) -> None:
        """Wait until one of the queues exists, and let their delayed jobs in."""
        while not self.must_stop():
            self._note_move()
            try:
                self._tell_classes()
                self._refresh_keys()
                if self.keys:
                    self._warn_of_risks()
                    self._refresh_registry()
                    self.requeue_delayed_jobs()
                    return
                if self.burst:
                    self.end_burst()
                    return
                self._note_held_up()
                self._wait_for_ring(POLL_SECONDS)
                self._outage.end()
            except (RedisError, DatabaseException) as error:
                self._note_held_up()
                self._alarm.wait(self._pause_after(error))

    def _main_loop(self) -> None:
        while not self.must_stop():
            if not self._is_this_process:
                raise SystemExit(1)  # a process that a job has forked
            self._moved_at = time.monotonic()
            self.set_status("waiting")
            try:
                found = self.wait_for_job() if self._has_free_hand() else None
                if found is not None:
                    self.num_loops += 1
                    self._handle(*found)
            except (RedisError, DatabaseException) as error:
                # A job whose end could not be recorded keeps its lease until that lapses, and then runs again.
                pause = self._pause_after(error)
                if not self.must_stop():
                    self._alarm.wait(pause)
            except Exception:  # an override of a method that takes jobs
                self._log_exception("Unable to get job")
                self._alarm.wait(self._outage.next_pause(None))
        self._wait_for_hands()

    # --- Threads

    def _has_free_hand(self) -> bool:
        """Wait for a thread that has nothing to do, for a while; by then the worker may have to stop."""
        if self._hands is None:
            return True
        # a job that the next loss of its worker gives up has none beside it: so only that one is
        is_free = self._hands.wait_until_free(self.threads if self._runs_suspect else 1, FAILING_SECONDS)
        self._runs_suspect = self._runs_suspect and not is_free
        return is_free and not self.must_stop()

    def _is_at_work(self) -> bool:
        """Does one of the threads run a job?"""
        return self._hands is not None and self._hands.free < self.threads

    def _wait_for_hands(self) -> None:
        while self._hands is not None and not self._hands.wait_until_free(self.threads, FAILING_SECONDS):
            self._moved_at = time.monotonic()  # signals are handled meanwhile, too

    def _handle_in_thread(self, queue: Any, job: Any) -> None:
        try:
            run_now(self._process_taken(queue, job))
            self.check_memory()
        except (RedisError, DatabaseException) as error:
            # A job whose end could not be recorded keeps its lease until that lapses, and then runs again.
            if self._is_this_process:  # else a lock of the log may be held for ever, by a thread that is not here
                self._outage.next_pause(error)
        except BaseException:
            if self._is_this_process:
                self._log_exception(f"{self._ident_of(job)} ended in a way that nobody expects", job)
        finally:
            if not self._is_this_process:
                end_process(0)  # a process that the job has forked: this is its only thread

    # --- Taking a job

    def wait_for_job(self) -> tuple[Any, Any] | None:
        """Wait for a job and take it.

        Returns:
            The queue and the job, which is leased to this worker; None after `timeout` seconds (0: never), or when the
            worker must stop.
        """
        deadline = time.monotonic() + self.timeout if self.timeout else float("inf")
        is_first = True
        while True:
            self._moved_at = time.monotonic()
            found = self._look_for_job() or (self._look_for_last_job() if self.burst else None)
            if found is not None:
                return found
            if is_first:
                self._tell_status()
            is_first = False
            left = min(deadline, self._wanted_end()) - time.monotonic()
            if left > 0 and not self.must_stop():
                self._wait_for_ring(min(left, POLL_SECONDS), self._seconds_until_due())
            if left <= 0 or self.must_stop():
                return None

    def _look_for_job(self) -> tuple[Any, Any] | None:
        if self._heartbeat is not None and self._heartbeat.is_failing:
            self._alarm.wait(FAILING_SECONDS)  # what it takes now it may not be able to keep
            return None
        self._do_rounds()
        return self._take_job()

    def _look_for_last_job(self) -> tuple[Any, Any] | None:
        """With `burst`, when no job was found: look once more, also where programs put jobs that do not ring."""
        self._looked_at_keys = self._looked_at_delayed = self._updated_keys = float("-inf")
        was_at_work = self._is_at_work()  # a job may add others until its end
        found = self._look_for_job()
        is_due = self._next_due is not None and time.monotonic() >= self._next_due and not self._broken_keys()
        is_failing = self._heartbeat is not None and self._heartbeat.is_failing  # then it has not looked
        if found is None and not (was_at_work or is_due or is_failing or self.must_stop()):
            self.end_burst()
        return found

    def _take_job(self) -> tuple[Any, Any] | None:
        """Claim a job if there is one, going past entries that cannot be run."""
        while True:
            taken = self._next_taken()
            if taken.kind == "EMPTY":
                return None
            if taken.kind in ("CLAIMED", "STALE"):
                self.set_status("running")
                found = self._accept_taken(taken)
                if found is not None:
                    found[1]._is_ahead = taken.is_ahead
                    return found
            else:
                self._clear_away(taken)
            if self.must_stop():
                return None

    def _next_taken(self) -> Taken:
        """What comes next."""
        ahead = self._ahead
        while True:
            self._tell_ends()
            if self.prefetch > 1:
                self._fetch_ahead()
            if not ahead.claims:
                self._settle(claims_count=self._claims_wanted())
            elif ahead.claims[0].is_ahead and ahead.must_look:
                self._look_at_claims()
                if not ahead.claims:  # all of them are given back
                    continue
            taken = ahead.claims.popleft()
            claim = taken.claim
            if taken.ident in ahead.statuses:
                taken = taken._replace(status=ahead.statuses.pop(taken.ident))
            if claim is None or self._held_claims.get(claim.ident) is claim:  # else its lease was lost meanwhile
                return taken

    def _claims_wanted(self) -> int:
        if self._heartbeat is None:  # `wait_for_job` is called without `run`: nobody renews what is not asked for
            return 1
        left = self.max_loops - self.num_loops - len(self._ahead.claims)
        if self._hands is not None:
            return max(min(self._hands.free, left), 1)
        return max(min(self.prefetch - len(self._ahead.claims), left), 1)

    def _fetch_ahead(self) -> None:
        """When half of the claims are used up, ask for more, and read the reply when they are needed."""
        ahead = self._ahead
        if ahead.fetch is not None:
            if not ahead.claims:
                with ahead.sending():
                    self._receive()
                self._tell_ends()
        elif 0 < len(ahead.claims) <= self.prefetch // 2 and ahead.may_have_more and self._may_fetch():
            with ahead.sending():
                done, claims_count = list(ahead.unsent), self._claims_wanted()
                call = self._exchange_call(done, claims_count, self._looks_at_keys(), runs_count=0)
                look = ahead.new_look()
                ahead.fetch = Fetch(transitions.SentCall(self.connection, call), done, claims_count, look)

    def _may_fetch(self) -> bool:
        is_due = self._next_due is not None and time.monotonic() >= self._next_due
        is_last = self.num_loops + len(self._ahead.claims) >= self.max_loops
        is_failing = self._heartbeat is None or self._heartbeat.is_failing
        # a fetch keeps a connection while jobs run
        is_pool_small = self.connection.connection_pool.max_connections < wire.SHARE
        return self._may_claim_early and not (is_due or is_last or is_failing or is_pool_small or self.must_stop())

    def _receive(self) -> None:
        """Read the reply to what was asked ahead, if anything was. Under the lock of `_ahead`."""
        fetch, self._ahead.fetch = self._ahead.fetch, None
        if fetch is not None:
            self._note_exchanged(fetch.done, fetch.sent.read(), fetch.claims_count, fetch.look)
            self._outage.end()

    def _look_at_claims(self) -> None:
        """See whether jobs that were claimed ahead may still begin: not if they are canceled, or of a paused queue."""
        ahead = self._ahead
        ahead.look = ahead.new_look()
        hashes: dict[str, str] = {}
        marks: dict[str, str] = {}
        # of classes of jobs; '' of one that cannot be had: it is in error when its turn comes
        keys: dict[str, str] = {}
        for taken in list(ahead.claims):
            if taken.is_ahead:
                model_repr, _, pk = taken.ident.partition(":")
                if model_repr not in keys:
                    keys[model_repr] = self._key_of_class(taken.ident)
                if keys[model_repr]:
                    hashes[taken.ident] = f"{keys[model_repr]}:{pk}:hash"
                if taken.queue_name not in marks:
                    marks[taken.queue_name] = self._side_key("ready", taken.queue_name)
        call = transitions.look(self._namespace, list(marks.values()), list(hashes.values()))
        paused, statuses = self._send_call(call)
        if statuses or ahead.statuses:
            idents = list(hashes)
            ahead.statuses = {idents[place]: status for place, status in statuses.items()}
        if paused:
            names = list(marks)
            self._give_back_paused({names[place] for place in paused})

    @staticmethod
    def _key_of_class(ident: str) -> str:
        try:
            return str(Job.class_of(ident)._name)
        except JobClassError:
            return ""

    def _give_back_paused(self, names: set[str]) -> None:
        """Give the jobs that were claimed ahead from some queues back to their heads, in their order."""
        ahead = self._ahead
        with ahead.sending():
            self._receive()  # what is on its way comes after them
            paused = {id(one): one.claim for one in ahead.claims if one.is_ahead and one.queue_name in names}
            tokens = [claim.token for claim in reversed(paused.values()) if claim is not None]
            _, changes = self._send_call(transitions.release(self._namespace, self.queue_model._name, tokens))
            ahead.claims = deque(one for one in ahead.claims if id(one) not in paused)
            for claim in paused.values():
                if claim is not None:
                    self._let_go(claim)
                    ahead.statuses.pop(claim.ident, None)
        repair_indexes(changes)

    def _tell_ends(self) -> None:
        """Tell of the ends that were sent with others."""
        while self._ahead.sent:
            run_now(self._tell_end(self._ahead.sent.popleft()))

    def _settle(self, claims_count: int = 0) -> None:
        """Send the ends that are left, and tell of them; claim the next jobs, up to `claims_count`."""
        ahead = self._ahead
        while True:
            with ahead.sending():
                self._receive()
                exchanged = self._exchange(claims_count)
            self._tell_ends()
            if exchanged is None or exchanged.claims or not claims_count:
                return
            # an end was refused, and nothing was claimed: now that it is seen to, ask again

    def _exchange(self, claims_count: int) -> Exchanged | None:
        """Send the ends that are left, and claim; None when there is nothing to do. Under the lock of `_ahead`."""
        done = list(self._ahead.unsent)
        if not claims_count and not done:
            return None
        started, looks_at_keys = time.monotonic(), claims_count > 0 and self._looks_at_keys()
        look = self._ahead.new_look()
        runs_count = 1 if self._hands is None else claims_count
        call = self._exchange_call(done, claims_count, looks_at_keys, runs_count)
        exchanged: Exchanged = (
            self._send_call(call) if claims_count else run_now(self._until_answered(self._send, call))
        )
        if looks_at_keys:  # with thousands of queues less often, so that it takes 2% of the time at most
            self._poll_seconds = max(POLL_SECONDS, 50 * (time.monotonic() - started))
        self._outage.end()
        self._note_exchanged(done, exchanged, claims_count, look)
        return exchanged

    # --- Running a job

    def _handle(self, queue: Any, job: Any) -> None:
        """Run a job: in this thread, or in one that is free."""
        self.set_status("running")
        if self._hands is None:
            run_now(self._process_taken(queue, job))
            self.check_memory()
        else:
            self._runs_suspect = job._claim is not None and job._claim.is_last_chance
            future = self._hands.submit(partial(self._handle_in_thread, queue, job))
            if self.burst:  # its end may be the end of all
                future.add_done_callback(lambda _: self._wake())

    async def _begin(self, job: Any, queue: Any) -> bool:
        """A job that was claimed ahead runs now, if it may: that is noted when it takes long, or with its end.

        Where a hook looks at its start, it is noted before.
        """
        job._began = now_text()
        with self._ahead.lock:
            self._ahead.running = job._claim, job._began
        job._note_begun = lambda begun: self._note_begun(begun, queue)  # without the job, which would hold itself
        if not (self._has_own_start or has_method(job, "on_started") or self._is_isolated(job)):
            self._ahead.wake()
            return True
        await self._call_hook(job, queue, self._note_begun)
        if job._claim is not None and job._cached_status != STATUSES.WAITING:
            await self._pass_over(queue, job)
        return job._claim is not None

    def _note_begun(self, job: Any, queue: Any) -> None:
        """Note in Redis that a job that was claimed ahead runs, unless that has been done.

        Raises:
            LeaseLost: it is somebody else's by now.
        """
        if job._is_ahead and self._is_this_process:
            job._is_ahead, job._note_begun = False, None
            with self._ahead.lock:
                running, self._ahead.running = self._ahead.running, None
            if running is not None:
                ended = run_now(self._end_alone(transitions.begin(self._namespace, *running)))
                repair_indexes(ended.changes)
                if ended.kind in ("CHANGED", "GONE"):
                    job._cached_status = ended.status

    def _settle_for_adding(self) -> None:
        """Send the ends that are left: a job that is about to be added may have the identifier of one of them."""
        if not self._is_this_process:
            return  # a process that a job has forked: the ends are not its business
        if (self._ahead.unsent or self._ahead.fetch is not None) and not self._ahead.is_sending:
            with self._ahead.sending():
                self._receive()
                done = list(self._ahead.unsent)
                if done:
                    self._note_exchanged(done, self._send_call(self._exchange_call(done, 0, False)), 0)

    def _settle_from_thread(self) -> None:
        """Send what has been waiting for a while: the ends, and that the running job runs."""
        ahead = self._ahead
        with ahead.sending():
            self._receive()
            if ahead.unsent:
                done = list(ahead.unsent)
                self._note_exchanged(done, self._send_call(self._exchange_call(done, 0, False)), 0)
            if ahead.running is not None:
                call = transitions.begin(self._namespace, *ahead.running)
                with contextlib.suppress(LeaseLost):  # it is found at the end
                    repair_indexes(self._send_call(call).changes)
                ahead.running = None

    @property
    def _runs_many(self) -> bool:
        return self._hands is not None

    @property
    def _claims_at_once(self) -> int:
        return max(super()._claims_at_once, self.threads)

    def _ends_together(self, job: Any) -> bool:
        """May the end of a job be sent with others?"""
        return self._may_end_together and job._claim is not None and not has_method(job, "on_success")

    def _end_later(self, job: Any, queue: Any, result: Any) -> None:
        """Leave the end of a job to be sent with others."""
        job._ended = now_text()
        with self._ahead.lock:
            running, self._ahead.running = self._ahead.running, None
            start = running[1] if job._is_ahead and running is not None else ""
            self._ahead.unsent.append(Done(job, queue, result, End(job._claim, start, job._ended, job._extra)))
        job._ends_later = True
        self._ahead.wake()

    async def _tell_end(self, done: Done) -> None:
        """What `job_success` does after the write, for an end that was sent with others."""
        job, queue, outcome = done.job, done.queue, done.outcome
        self._at_work[id(job)] = job
        try:
            if isinstance(outcome, LeaseLost):
                await self._tell_lost_lease(job, queue, outcome)
            elif isinstance(outcome, Exception):
                message = f"The end of {done.end.held.ident} cannot be recorded: {outcome}"
                self._log_about(job, message, level="error")
            elif outcome is not None and outcome.kind == "CHANGED":
                job._cached_status = outcome.status
                await self._pass_over(queue, job)
            elif outcome is not None:
                self._take_note_of_success(job, done.end.held, outcome)
                if outcome.changes:
                    await self._repair(outcome.changes)
                if self._is_heard("info"):
                    await self._log_message(job, self.job_success_message, queue, done.result, outcome="success")
        finally:
            self._at_work.pop(id(job), None)
            self._let_go(done.end.held)
            job._drop_fields()

    async def _finish(self, job: Any, end: End) -> Ended:
        """Record a success; where nobody looks before the next job, claim that with it.

        Raises:
            LeaseLost: it is somebody else's by now.
        """
        if not self._claims_next(job):
            return await super()._finish(job, end)
        ahead, done = self._ahead, Done(job, None, None, end)
        with ahead.lock:  # as `sending`, in fewer steps
            ahead.is_sending = True
            try:
                exchange = self._exchange_call([done], 1, self._looks_at_keys(), start=end.end)
                self._note_exchanged([done], await self._until_answered(self._send, exchange), 1)
                outcome = ahead.sent.pop().outcome
            finally:
                ahead.is_sending = False
        if isinstance(outcome, Exception):
            raise outcome
        assert outcome is not None
        return outcome

    def _claims_next(self, job: Any) -> bool:
        """Can the next job be claimed with the end of this one: no hook looks in between, and nothing else is due?"""
        if not self._may_claim_early or self._hands is not None or job._claim is None or has_method(job, "on_success"):
            return False
        if self._ahead.claims or self._ahead.unsent or self._ahead.fetch is not None:
            return False
        if self._heartbeat is None or self._heartbeat.is_failing or self.must_stop():
            return False
        return self._next_due is None or time.monotonic() < self._next_due
