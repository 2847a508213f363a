"""Several workers on one machine: a parent that runs no job, and a process for each worker.

    sys.exit(WorkerPool("shop.workers.MailWorker", processes=4, queues="mail").run())

The parent starts the processes, replaces those that end, passes signals on, and never touches Redis. Between it and
each child are two pipes. The *lifeline* goes to the child, and nothing is ever written into it: when the parent is
gone, whatever killed it, the child reads its end and ends as at SIGTERM. By the other one the child sends *news*: a
byte each.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import selectors
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

from ..exceptions import ConfigurationException, LimpydJobsException
from ..utils import import_class
from .base import LOGGER_NAME, end_process, indented, is_whole, safe_line
from .blocking import Worker
from .insight import format_stacks
from .logs import FACTS, show_as
from .member import CONFIGURATION_EXIT_CODE, DONE, READY, Member, forget_exit_functions, live
from .reload import check_reload
from .sentry import look_at_lines

START_TRIES = 4  # of the first child, before the pool gives up
FIRST_PAUSE_SECONDS = 0.5  # after a crash; then twice as long each time
LONGEST_PAUSE_SECONDS = 30.0
RELOAD_PAUSE_SECONDS = 1.5  # the longest one while somebody is at work on the code
LONGEST_START_SECONDS = 300.0  # of a successor; imports may take their time
SETTLED_SECONDS = 60.0  # a child that has lived so long makes earlier crashes forgotten
BETWEEN_STARTS_SECONDS = 0.5  # in one place, also after good ends: a worker that ends at once must not cost a processor

END_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
HANDLED_SIGNALS = (*END_SIGNALS, signal.SIGHUP, signal.SIGUSR2, signal.SIGCHLD)


@dataclass(eq=False)
class Child:
    """A process of the pool, as the parent knows it."""

    pid: int
    lifeline: int
    news: int
    started_at: float  # by the monotonic clock, as all times here
    is_ready: bool = False
    is_done: bool = False
    asked: set[int] = field(default_factory=set)  # the signals by which it was told to end


@dataclass(eq=False)
class Place:
    """Where one of the workers is: its process, and the one that is to follow it while workers are replaced."""

    child: Child | None = None
    successor: Child | None = None
    start_at: float = 0.0
    crashes: int = 0
    is_done: bool = False


class WorkerPool:
    """Runs a worker in each of several processes, and keeps it so until it is told to end.

    Attributes:
        logger: what the parent writes to.
    """

    def __init__(
        self,
        worker: str | Callable[..., Any] = Worker,
        processes: int = 1,
        *,
        reload: bool = False,
        **options: Any,
    ) -> None:
        """Prepare it; nothing is started before `run`.

        Args:
            worker: a worker class, or a function that makes a worker: called in each child, with the options. Or the
                dotted name of one, which is imported in each child: so SIGHUP loads new code. What is given directly
                is loaded already, and stays as it is.
            processes: how many workers.
            reload: for development: a worker whose source files change ends, and is started again.
            options: those of the worker.
        Raises:
            ConfigurationException: this cannot work. The options of the worker are checked by the worker, in a child.
        """
        if not isinstance(worker, str) and not callable(worker):
            accepted = "a worker class, a function that makes a worker, or the dotted name of one"
            raise ConfigurationException(f"Invalid worker: {worker!r}: must be {accepted}")
        if not is_whole(processes, 1):
            raise ConfigurationException(f"Invalid processes: {processes!r}: must be an integer, 1 or more")
        if reload:
            check_reload()
        self.worker = worker
        self.processes = processes
        self.reload = reload
        self.options = options
        self.logger = self.make_logger()
        self.exit_code = 0
        self._places = [Place() for _ in range(processes)]
        self._leaving: list[Child] = []  # those that another one has followed
        self._to_replace: list[Place] = []
        self._is_replace_wanted = False
        self._has_started = False  # has a first worker been ready?
        self._is_ending = False
        self._former_handlers: dict[int, Any] = {}
        self._selector: selectors.BaseSelector | None = None

    # --- What to override

    def make_logger(self) -> Any:
        """The logger of the parent."""
        logger = logging.getLogger(self.options.get("logger_name") or LOGGER_NAME)
        show_as(self.options.get("log_format") or "text", logger)
        return logger

    def make_worker(self) -> Any:
        """The worker of a child, in the child.

        Raises:
            ConfigurationException: the worker cannot be imported, or its options cannot work.
        """
        make = self.worker
        if isinstance(make, str):
            try:
                make = import_class(make)
            except (ImportError, AttributeError, ValueError) as error:
                raise ConfigurationException(f"Unable to import the worker {self.worker!r}: {error}") from error
        return make(**self.options)

    def work(self, member: Member) -> None:
        """What a child does: make its worker, and run it."""
        worker = self.make_worker()
        member.join(worker)
        worker.run()
        member.leave(worker.is_drained)

    def update_title(self) -> None:
        """Called when something has changed. Does nothing: the title of the process is the program's."""

    @property
    def status(self) -> str:
        """`starting`, until the first worker is ready, `running`, or `running - ending`."""
        if self._is_ending:
            return "running - ending"
        return "running" if self._has_started else "starting"

    @property
    def ready_count(self) -> int:
        """How many workers are ready, without those that are being replaced."""
        return sum(place.child is not None and place.child.is_ready for place in self._places)

    def log(self, message: str, level: str = "info", **facts: Any) -> None:
        """Log a message of the parent, as one line, with facts beside it."""
        beside = {FACTS: {"worker": "pool", **facts, "message": message}}
        getattr(self.logger, level)("[pool] %s", safe_line(message), extra=beside)

    # --- The run

    def run(self) -> int:
        """Run the workers until all have ended: at SIGTERM, SIGINT or SIGQUIT, or because there is nothing more to do.

        Returns:
            The exit code for the program: 0 when all ended as they were asked; 2 when the options of the workers cannot
            work; 1 when the first worker crashes each time before it is ready; else the first other code with which a
            worker ended that was not replaced: 128 and the number of the signal for one that was killed.
        Raises:
            LimpydJobsException: it is not called in the main thread, where signals are handled, or a second time.
        """
        if threading.current_thread() is not threading.main_thread():
            raise LimpydJobsException("A pool must be run in the main thread")
        if self._has_started or self._is_ending:
            raise LimpydJobsException("This pool has run already")
        with self._handling_signals():
            try:
                while not self._is_over():
                    self._start_what_is_due()
                    self._replace_next()
                    self._end_late_successors()
                    self.update_title()
                    self._wait()
            finally:
                for child in self._children():  # none, unless something of ours has failed: then they end, too
                    self._forget(child)
        self.log(f"Pool terminated, with exit code {self.exit_code}")
        return self.exit_code

    def _is_over(self) -> bool:
        return (self._is_ending or all(place.is_done for place in self._places)) and not self._children()

    def _children(self) -> list[Child]:
        found = [child for place in self._places for child in (place.child, place.successor) if child is not None]
        return found + self._leaving

    def _wait(self) -> None:
        """Wait for a signal, news, or the time of the next start."""
        assert self._selector is not None
        times = [place.start_at for place in self._places_to_fill()]
        times += [child.started_at + LONGEST_START_SECONDS for child in self._successors()]
        for key, _ in self._selector.select(max(min(times) - time.monotonic(), 0) if times else None):
            if key.data is None:
                for number in os.read(key.fd, 4096):  # the wakeup descriptor: a byte is the number of a signal
                    self._handle_signal(number)
            else:
                self._read_news(key.data)
        for child in self._children():
            self._look_for_end(child)

    def _places_to_fill(self) -> list[Place]:
        """Those without a worker. At first only one: its mistakes are those of all."""
        if self._is_ending:
            return []
        places = self._places if self._has_started else self._places[:1]
        return [place for place in places if not (place.child or place.successor or place.is_done)]

    def _start_what_is_due(self) -> None:
        for place in self._places_to_fill():
            if place.start_at <= time.monotonic():
                try:
                    place.child = self._fork()
                except OSError as error:  # no more processes, memory or descriptors
                    self.log(f"Unable to start a worker: {error}", level="error")
                    self._start_after_crash(place, 1)

    def _start_after_crash(self, place: Place, code: int) -> None:
        """Try again, later and later; a pool that has not started gives up after a while."""
        if not self._has_started and (code == CONFIGURATION_EXIT_CODE or place.crashes + 1 >= START_TRIES):
            if code != CONFIGURATION_EXIT_CODE:  # else the child has said it all
                self.log(f"The first worker could not start, {START_TRIES} times: giving up", level="critical")
            self.exit_code = code if code == CONFIGURATION_EXIT_CODE else 1
            self._is_ending = True
            return
        longest = RELOAD_PAUSE_SECONDS if self.reload else LONGEST_PAUSE_SECONDS
        pause = min(FIRST_PAUSE_SECONDS * 2 ** min(place.crashes, 10), longest) * random.uniform(0.75, 1)
        place.crashes += 1
        place.start_at = time.monotonic() + pause
        self.log(f"The next worker is started in {pause:.1f} seconds", level="warning")

    # --- Replacing

    def _replace_next(self) -> None:
        """One by one: start the next worker, and let the old one go when it is ready."""
        if self._is_ending or not self._has_started or any(place.successor for place in self._places):
            return
        if self._is_replace_wanted and not self._to_replace:
            self._is_replace_wanted = False
            self._to_replace = list(self._places)
            self.log("Replacing the workers, one by one")
        while self._to_replace:
            place = self._to_replace.pop(0)
            if place.is_done:
                continue
            if place.child is None:  # it crashes: perhaps the new code does not
                place.start_at = 0
                continue
            try:
                place.successor = self._fork()
            except OSError as error:
                self._give_up_replacing(f"no process can be started: {error}")
            return

    def _give_up_replacing(self, reason: str) -> None:
        self._to_replace.clear()
        self.log(f"The workers are not replaced, {reason}", level="error")

    def _successors(self) -> list[Child]:
        """Those that may still become ready."""
        found = [place.successor for place in self._places]
        return [child for child in found if child is not None and signal.SIGKILL not in child.asked]

    def _end_late_successors(self) -> None:
        """One that hangs holds the others up, and its place is empty when the old worker ends by itself."""
        for child in self._successors():
            if child.started_at + LONGEST_START_SECONDS <= time.monotonic():
                self.log(f"Worker {child.pid} is not ready after {LONGEST_START_SECONDS:.0f} seconds", level="error")
                self._send(child, signal.SIGKILL)

    def _follow(self, place: Place) -> None:
        """The successor is ready: the old one may go."""
        old, place.child, place.successor = place.child, place.successor, None
        if old is not None:
            self._leaving.append(old)
            self._send(old, signal.SIGTERM)
        if not self._to_replace:
            self.log("All workers are replaced")

    # --- News and ends

    def _place_of(self, child: Child) -> Place | None:
        return next((place for place in self._places if child in (place.child, place.successor)), None)

    def _read_news(self, child: Child) -> None:
        try:
            news = os.read(child.news, 16)
        except BlockingIOError:
            return
        if not news:  # its end is on its way
            self._unwatch(child)
        child.is_done = child.is_done or DONE in news
        if READY in news:
            child.is_ready = self._has_started = True
            self.log(f"Worker {child.pid} is ready")
            place = self._place_of(child)
            if place is not None and place.successor is child and not self._is_ending:
                self._follow(place)

    def _look_for_end(self, child: Child) -> None:
        try:
            pid, status = os.waitpid(child.pid, os.WNOHANG)
        except ChildProcessError:  # somebody else in this program has waited for it, and knows its code
            pid, status = child.pid, 0
        if pid:
            self._read_news(child)
            self._forget(child)
            self._handle_end(child, os.waitstatus_to_exitcode(status))

    def _handle_end(self, child: Child, code: int) -> None:
        is_good = code == 0 or -code in child.asked
        self.log(f"Worker {child.pid} ended {show_end(code)}", level="info" if is_good else "error")
        place = self._place_of(child)
        if place is None:
            self._leaving.remove(child)
        else:
            self._take_out(place, child)
        if self._is_ending or child.is_done:
            self._note_code(0 if is_good else code)
        elif code == 0 and not self._has_started:  # `--help`, for instance
            self._is_ending = True
        elif place is not None and place.child is None and place.successor is None:
            self._start_after_end(place, child, code)

    def _take_out(self, place: Place, child: Child) -> None:
        if place.successor is child:
            place.successor = None
            if not self._is_ending:
                self._give_up_replacing(f"as {child.pid} could not start; the others go on")
        else:
            place.child = None
            place.is_done = child.is_done and place.successor is None

    def _start_after_end(self, place: Place, child: Child, code: int) -> None:
        if code == 0 or time.monotonic() - child.started_at > SETTLED_SECONDS:
            place.crashes = 0
        if code:
            self._start_after_crash(place, shell_code(code))
        else:
            place.start_at = child.started_at + BETWEEN_STARTS_SECONDS

    def _note_code(self, code: int) -> None:
        self.exit_code = self.exit_code or shell_code(code)

    def _unwatch(self, child: Child) -> None:
        assert self._selector is not None
        with contextlib.suppress(KeyError):
            self._selector.unregister(child.news)

    def _forget(self, child: Child) -> None:
        self._unwatch(child)
        os.close(child.news)
        os.close(child.lifeline)

    # --- Signals

    @contextlib.contextmanager
    def _handling_signals(self) -> Iterator[None]:
        """Have signals wake the `select` of `_wait`; put all back afterwards."""
        reader, writer = os.pipe()
        for descriptor in (reader, writer):
            os.set_blocking(descriptor, False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(reader, selectors.EVENT_READ, None)
        self._wakeup = (reader, writer)
        self._former_wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        try:
            for number in HANDLED_SIGNALS:
                self._former_handlers[number] = signal.signal(number, ignore_signal)
            yield
        finally:
            self._put_signals_back(self._former_wakeup)

    def _put_signals_back(self, wakeup: int) -> None:
        """In the parent at its end, and in each child at its start.

        Args:
            wakeup: the descriptor for `signal.set_wakeup_fd`; that of a program belongs to its own process.
        """
        assert self._selector is not None
        for number, handler in self._former_handlers.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        signal.set_wakeup_fd(wakeup)
        self._selector.close()
        for descriptor in self._wakeup:
            os.close(descriptor)

    def _handle_signal(self, number: int) -> None:
        if number in END_SIGNALS:
            name = signal.Signals(number).name
            look_at_lines()
            self.log(f"Caught {name} signal: stopping the workers", level="critical", signal=name)
            self._is_ending = True
            self._to_replace.clear()
            for child in self._children():
                self._send(child, number)
        elif number == signal.SIGHUP:
            self._is_replace_wanted = True
        elif number == signal.SIGUSR2:
            self.logger.critical("[pool] %s\n%s", "Stacks of all threads:", indented(format_stacks()))
            for child in self._children():
                self._send(child, number)

    @staticmethod
    def _send(child: Child, number: int) -> None:
        if number != signal.SIGUSR2:
            child.asked.add(number)
        with contextlib.suppress(ProcessLookupError):  # somebody else has waited for it
            os.kill(child.pid, number)

    # --- The children

    def _fork(self) -> Child:
        """Start a process.

        Raises:
            OSError: the system does not allow it.
        """
        descriptors: list[int] = []
        # a signal between the fork and the moment when the child has its own handlers must find these
        former_mask = signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED_SIGNALS)
        try:
            descriptors += os.pipe()
            descriptors += os.pipe()
            lifeline_reader, lifeline, news, news_writer = descriptors
            for stream in (sys.stdout, sys.stderr):
                flush_quietly(stream)  # else each child would write what is in its buffer once more
            pid = os.fork()
            if pid == 0:
                self._be_child((lifeline_reader, news_writer), (lifeline, news), former_mask)
        except OSError:
            for descriptor in descriptors:
                os.close(descriptor)
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, former_mask)
        os.close(lifeline_reader)
        os.close(news_writer)
        os.set_blocking(news, False)
        child = Child(pid, lifeline, news, time.monotonic())
        assert self._selector is not None
        self._selector.register(news, selectors.EVENT_READ, child)
        self.log(f"Worker {pid} started")
        return child

    def _be_child(self, own: tuple[int, int], parents: tuple[int, int], mask: Any) -> None:
        """The life of a child: nothing of the parent runs in it, neither its `finally` blocks nor its `atexit`. It
        never returns."""
        code = 1
        try:
            self._leave_parent(parents)
            member = Member(*own, not self._has_started, self.reload)
            member.watch_parent()  # with the signals blocked in its thread: they are for the main one
            signal.signal(signal.SIGHUP, ignore_signal)  # it is for the parent: here it would end a job
            signal.signal(signal.SIGUSR2, member.show_stacks)
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            code = live(member, self.work, self.log)
        finally:
            end_process(code)

    def _leave_parent(self, parents: tuple[int, int]) -> None:
        """Give up what is the parent's. Of a lifeline that a sibling holds, too, no end would ever be read."""
        self._put_signals_back(-1)
        for child in self._children():
            os.close(child.lifeline)
            os.close(child.news)
        for descriptor in parents:
            os.close(descriptor)
        forget_exit_functions()


def ignore_signal(signum: int, frame: FrameType | None) -> None:
    """Do nothing: the number is read from the wakeup descriptor. Programs that are started do not inherit it, as they
    would SIG_IGN."""


def flush_quietly(stream: Any) -> None:
    """Write what is in a buffer, if anybody takes it."""
    with contextlib.suppress(Exception):
        stream.flush()


def shell_code(code: int) -> int:
    """A return code of `subprocess` (-9 for one that SIGKILL has ended) as shells write it: 137."""
    return code if code >= 0 else 128 - code


def show_end(code: int) -> str:
    """How a process has ended, in words."""
    return f"with exit code {code}" if code >= 0 else f"by {signal_name(-code)}"


def signal_name(number: int) -> str:
    """`SIGKILL` for 9."""
    try:
        return signal.Signals(number).name
    except ValueError:  # one of the real-time signals
        return f"signal {number}"
