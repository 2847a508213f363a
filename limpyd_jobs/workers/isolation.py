"""Running a function in a forked child, so that whatever happens to that process is an error here, and not our end.

The child leads a process group of its own. So what it has started dies with it when it is killed, and Ctrl-C in a
terminal reaches only the parent, which decides what becomes of the job. The price: the child cannot read from the
terminal.

The answer comes through a pipe: eight bytes that tell its length, then a pickle. The end of the child is seen by itself
and not by the end of the pipe, as processes that the function forks hold that open, too.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import logging
import math
import os
import pickle
import selectors
import signal
import struct
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from types import FrameType
from typing import Any, NamedTuple, NoReturn

from ..exceptions import JobProcessDied
from ..models import class_name, printable
from .base import format_trace
from .time_limit import check_limit

END_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP)
CHUNK = 1 << 20
PAUSES = (0.001, 0.05)  # seconds between two looks at a child that the system does not tell about: first, longest
LONGEST_WAIT_SECONDS = 60.0  # in one call, which cannot hold any number
PARENT_PAUSE_SECONDS = 0.25  # between two looks of a child at its parent
LOG_SECONDS = 2.0  # to wait for threads that write to the log; busy ones hardly let go of it
_HEADER = struct.Struct(">Q")
_PR_SET_PDEATHSIG = 1
_fork_lock = threading.Lock()  # the filters of warnings, which are changed meanwhile, belong to all threads


class Outcome(NamedTuple):
    """What came of a function that ran in a child."""

    result: Any = None
    error: BaseException | None = None  # what it raised, or the timeout, or JobProcessDied
    trace: str | None = None  # the traceback of what it raised, in the child
    extra: Any = None
    lost_result: str | None = None  # why the result, which was not None, could not be sent
    was_killed: bool = False  # by `IsolatedRun.kill`, before there was a result or an error


class IsolatedRun:
    """One run of a function in a child of this process.

        run = IsolatedRun(lambda: callback(job, queue), seconds=10, make_timeout=lambda: JobTimeout(...))
        outcome = run.wait()

    What the function raises comes back as it is if it can be pickled. Else an error comes back that has its class as
    base, where that can be imported, and the same name, text and `code`. Where a result cannot be pickled, it is None.

    Only one call of `wait` is possible.

    Args:
        function: what to run in the child; it sees this process as it was at the fork.
        seconds: after which the child is killed; None for no limit.
        make_timeout: gives the error for that; called here.
        prepare: called in the child first. What it raises counts as raised by the function.
        extra: called in the child last; its value, which must be possible to pickle, travels with the answer.
        quiet: entered around the fork; it holds off the threads of this process whose locks the child may need.
        survives_signals: whether the child ignores SIGINT, SIGTERM, SIGQUIT and SIGHUP, which supervisors send to all
            processes of a service; else they kill it.
        show_stacks: called in the child at SIGUSR2; None to leave that signal as it is.
    Raises:
        InvalidArgument: seconds is no positive, finite number.
    """

    def __init__(
        self,
        function: Callable[[], Any],
        *,
        seconds: float | None = None,
        make_timeout: Callable[[], BaseException] = TimeoutError,
        prepare: Callable[[], Any] | None = None,
        extra: Callable[[], Any] | None = None,
        quiet: AbstractContextManager[Any] | None = None,
        survives_signals: bool = True,
        show_stacks: Callable[[], None] | None = None,
    ) -> None:
        self._function = function
        if seconds is not None:
            check_limit(seconds)
        self._seconds = math.inf if seconds is None else seconds
        self._make_timeout = make_timeout
        self._prepare = prepare
        self._extra = extra
        self._quiet = quiet or contextlib.nullcontext()
        self._survives_signals = survives_signals
        self._show_stacks = show_stacks
        self._was_killed = False
        self._is_late = False
        self._has_ended = False
        self._code: int | None = None
        self._pids: list[int] = []

    @property
    def pid(self) -> int | None:
        """The process id of the child, from the fork on; 0 in the child itself."""
        return self._pids[0] if self._pids else None

    # --- in the parent

    def wait(self) -> Outcome:
        """Fork, wait for the end of the child, and say what came of it. Signals are handled meanwhile.

        Raises:
            OSError: there can be no pipe or no child: nothing has run.
            BaseException: what the handler of a signal raises; the child is dead by then.
        """
        reader, writer = _open_pipe()
        with reader:
            try:
                with writer:  # closed as soon as the child has it
                    self._fork(reader, writer)
                answer = self._receive(reader)
                self._look(options=0)
            except BaseException:  # nobody waits for the job any more, if it has begun
                if self.pid is not None:
                    self._kill_group()
                    self._look(options=0)
                raise
        return self._outcome(answer)

    def kill(self) -> None:
        """Kill the child and what it has started; from any thread, or the handler of a signal.

        Before the fork it is killed right after it; after its end nothing happens.
        """
        self._was_killed = True
        if not self._has_ended:
            self._kill_group()

    def ask_for_stacks(self) -> None:
        """Have the child, if there is one now, call `show_stacks`."""
        if self._show_stacks is not None and self.pid and not self._has_ended:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGUSR2)

    def _fork(self, reader: io.FileIO, writer: io.FileIO) -> None:
        parent = os.getpid()
        _flush()  # else the child would write it a second time
        with _signals_blocked() as mask:  # until the child has handlers of its own
            try:
                with _fork_lock, self._quiet, _logs_at_rest(), _without_fork_warning():
                    # in one call, with no place in it where the handler of a signal can raise and the id is lost
                    self._pids.extend(itertools.starmap(os.fork, [()]))
            finally:  # the child never comes back from here, whatever leaving that block has raised in it
                if self.pid == 0:
                    self._be_child(parent, reader, writer, mask)
        assert self.pid is not None
        # both do it, as either may be first; when it fails here, the child has done it
        with contextlib.suppress(OSError):
            os.setpgid(self.pid, self.pid)
        if self._was_killed:
            self._kill_group()

    def _receive(self, reader: io.FileIO) -> bytes | None:
        """The answer; None when the child has ended without one, or was killed for being late."""
        assert self.pid is not None
        deadline = time.monotonic() + self._seconds
        message = bytearray()
        with selectors.PollSelector() as selector, _watch(self.pid) as watch:
            pause, last_pause = PAUSES if watch is None else (LONGEST_WAIT_SECONDS, LONGEST_WAIT_SECONDS)
            selector.register(reader, selectors.EVENT_READ)
            if watch is not None:
                selector.register(watch, selectors.EVENT_READ)
            while True:
                has_ended = self._look()  # before reading: what it has written until its end is read
                if _read(reader, message) and reader in selector.get_map():
                    selector.unregister(reader)  # the function has closed the other end
                if _is_complete(message):
                    return bytes(memoryview(message)[_HEADER.size :])
                left = deadline - time.monotonic()
                if has_ended or left <= 0:
                    self._is_late = not has_ended
                    self._kill_group()  # what it has started, too
                    return None
                selector.select(min(left, pause))
                pause = min(2 * pause, last_pause)

    def _look(self, options: int = os.WNOHANG) -> bool:
        """Has the child ended? With 0 as options this waits for it. Other children of this process are left alone."""
        assert self.pid is not None
        if not self._has_ended:
            try:
                pid, status = os.waitpid(self.pid, options)
            except ChildProcessError:  # another part of the program waits for any child
                self._has_ended = True
            else:
                if pid:
                    self._has_ended, self._code = True, os.waitstatus_to_exitcode(status)
        return self._has_ended

    def _kill_group(self) -> None:
        if self.pid:
            with contextlib.suppress(ProcessLookupError, PermissionError):  # nobody is left; macOS says it otherwise
                os.killpg(self.pid, signal.SIGKILL)
        if self.pid and not self._has_ended:  # the function may have left the group
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    def _outcome(self, answer: bytes | None) -> Outcome:
        assert self.pid is not None
        if answer is not None:
            return _read_answer(answer)
        if self._was_killed:
            return Outcome(was_killed=True)
        if self._is_late:
            return Outcome(error=self._make_timeout())
        return Outcome(error=JobProcessDied(self.pid, self._code))

    # --- in the child

    def _be_child(self, parent: int, reader: io.FileIO, writer: io.FileIO, mask: set[int]) -> NoReturn:
        code = 1
        try:
            me, pipe = os.getpid(), os.fstat(writer.fileno())
            os.setpgid(0, 0)
            reader.close()
            _die_with(parent)
            self._take_signals(mask)
            answer = self._answer()
            _flush()
            if os.getpid() != me:  # a process that the function has forked, which came back from it: not ours to tell
                code = 0 if answer.error is None else 1
            elif _is_still(writer, pipe):  # else the function has closed all it found
                _write(writer, _pickle_answer(answer))
                code = 0
        except BaseException:
            traceback.print_exc()
        finally:  # no frame of the parent may go on in the child, and nothing of its `atexit`
            os._exit(code)

    def _take_signals(self, mask: set[int]) -> None:
        """Leave the parent's handlers behind; its timers are not inherited."""
        signal.set_wakeup_fd(-1)
        for number in END_SIGNALS:
            # a function, as SIG_IGN would be inherited by programs that the child starts
            signal.signal(number, _do_nothing if self._survives_signals else signal.SIG_DFL)
        if self._show_stacks is not None:
            signal.signal(signal.SIGUSR2, self._catch_stacks_signal)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def _catch_stacks_signal(self, signum: int, frame: FrameType | None) -> None:
        assert self._show_stacks is not None
        with contextlib.suppress(Exception):  # of a handler or a filter of the log
            self._show_stacks()

    def _answer(self) -> Outcome:
        result = error = trace = None
        try:
            if self._prepare is not None:
                self._prepare()
            result = self._function()
        except BaseException as raised:  # of every kind, as in a worker that does not isolate
            error, trace = raised, format_trace()
        return Outcome(result, error, trace, None if self._extra is None else self._extra())


# --- the pipe


def _open_pipe() -> tuple[io.FileIO, io.FileIO]:
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    return io.FileIO(reader, "rb"), io.FileIO(writer, "wb")


def _read(reader: io.FileIO, message: bytearray) -> bool:
    """Read what is there; answers whether that was the end of the pipe."""
    while chunk := reader.read(CHUNK):
        message += chunk
    return chunk is not None


def _is_still(writer: io.FileIO, pipe: os.stat_result) -> bool:
    """Has nobody closed this end of the pipe, and perhaps opened something else under its number?"""
    try:
        return os.path.samestat(pipe, os.fstat(writer.fileno()))
    except OSError:
        return False


def _is_complete(message: bytearray) -> bool:
    return len(message) >= _HEADER.size and len(message) == _HEADER.size + _HEADER.unpack_from(message)[0]


def _write(writer: io.FileIO, answer: bytes) -> None:
    for part in (_HEADER.pack(len(answer)), memoryview(answer)):
        rest = memoryview(part)
        while rest:
            rest = rest[writer.write(rest) :]


# --- the answer


class _Description(NamedTuple):
    """What is told of an error beside its pickle."""

    name: str
    qualname: str
    module: str
    text: str
    code: str | int | None
    base: bytes  # the pickle of the first of its classes that can be imported


def _pickle_answer(answer: Outcome) -> bytes:
    """The whole holds only plain values, so that it can always be read; what is in it, can be read or not."""
    result, reason = _try_to_pickle(answer.result)
    error = None if answer.error is None else (_pickle_error(answer.error), tuple(_describe(answer.error)))
    return pickle.dumps((result, reason, error, answer.trace, pickle.dumps(answer.extra)))


def _read_answer(answer: bytes) -> Outcome:
    result, reason, error, trace, extra = pickle.loads(answer)
    value = None
    if result is not None:
        value, reason = _try_to_unpickle(result)
    return Outcome(value, None if error is None else _read_error(*error), trace, pickle.loads(extra), reason)


def _try_to_pickle(value: Any) -> tuple[bytes | None, str | None]:
    """The pickle, or why there is none."""
    try:
        return pickle.dumps(value), None
    except BaseException as error:  # methods of the user's run
        return None, f"{class_name(error)}: {printable(error)}"


def _try_to_unpickle(text: bytes) -> tuple[Any, str | None]:
    try:
        return pickle.loads(text), None
    except BaseException as error:
        return None, f"{class_name(error)}: {printable(error)}"


def _pickle_error(error: BaseException) -> bytes | None:
    """The pickle, if it gives the same error again."""
    text, _ = _try_to_pickle(error)
    found = None if text is None else _try_to_unpickle(text)[0]
    return text if type(found) is type(error) and printable(found) == printable(error) else None


def _describe(error: BaseException) -> _Description:
    try:
        code = getattr(error, "code", None)
    except BaseException:  # a property of the user's
        code = None
    plain = code if code is None or type(code) is int else printable(code)
    bases = (_try_to_pickle(kind)[0] for kind in _told_by(error, "__mro__") if issubclass(kind, BaseException))
    base = next(text for text in bases if text is not None)  # BaseException at last
    name, qualname, module = [str(_told_by(error, name)) for name in ("__name__", "__qualname__", "__module__")]
    return _Description(name, qualname, module, printable(error), plain, base)


def _told_by(error: BaseException, name: str) -> Any:
    """An attribute of the class of an error, whatever its metaclass does."""
    return type.__dict__[name].__get__(type(error))


def _read_error(text: bytes | None, description: tuple[Any, ...]) -> BaseException:
    if text is not None:
        error, _ = _try_to_unpickle(text)
        if isinstance(error, BaseException):
            return error
    return _stand_in(_Description(*description))


def _stand_in(description: _Description) -> BaseException:
    """An error that looks like one that cannot travel, and is caught by the same `except`, if its class can be had."""
    for base in (_try_to_unpickle(description.base)[0], Exception):
        with contextlib.suppress(Exception):  # a class may have any rules about what is derived from it
            # all that an own class may have changed is as it is for each exception
            names = {
                "__module__": description.module,
                "__qualname__": description.qualname,
                "__init__": BaseException.__init__,
                "__str__": lambda self: description.text,
                "__repr__": lambda self: f"{description.name}({description.text!r})",
                "__reduce__": BaseException.__reduce__,
                "code": description.code,
            }
            error: BaseException = type(description.name, (base,), names)(description.text)
            return error
    raise AssertionError("Exception can be derived from")


# --- the fork


def _handlers() -> list[logging.Handler]:
    """Those of the log, from the list that `logging.shutdown` goes through."""
    found = [reference() for reference in list(logging._handlerList)]  # type: ignore[attr-defined]
    return [handler for handler in found if handler is not None]


def _flush() -> None:
    for flush in (*[handler.flush for handler in _handlers()], *[s.flush for s in (sys.stdout, sys.stderr) if s]):
        with contextlib.suppress(Exception):  # a stream may be closed, or its reader gone
            flush()


@contextlib.contextmanager
def _logs_at_rest() -> Iterator[None]:
    """Hold the other threads before the next line of the log.

    The lock of a stream that is just written to would be locked in the child for ever. (Python mends those of the
    handlers, not those of files.) The wait has an end: what holds a handler may wait for one that is held here.
    """
    parent = os.getpid()
    locks: list[Any] = [handler.lock for handler in _handlers() if hasattr(handler.lock, "_is_owned")]
    try:
        for lock in locks:
            lock.acquire(timeout=LOG_SECONDS)
        yield
    finally:
        # which of them it has got, only a lock itself knows for sure: the handler of a signal may raise at any moment
        for lock in locks if os.getpid() == parent else ():
            if lock._is_owned():
                lock.release()


@contextlib.contextmanager
def _signals_blocked() -> Iterator[set[int]]:
    """Hold the signals that the child handles in its own way; gives the mask that was there before."""
    mask = {int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, ())}
    try:  # the handler of a signal may raise as soon as the call that blocks has returned
        signal.pthread_sigmask(signal.SIG_BLOCK, (*END_SIGNALS, signal.SIGUSR2))
        yield mask
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


@contextlib.contextmanager
def _without_fork_warning() -> Iterator[None]:
    """Python 3.12 and later warns of a fork in a process with threads. What could lock up is taken care of here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"This process .* is multi-threaded", DeprecationWarning)
        yield


@contextlib.contextmanager
def _watch(pid: int) -> Iterator[int | None]:
    """A descriptor that becomes readable with the end of a child; None where the system has none (Linux >= 5.3)."""
    try:
        watch = os.pidfd_open(pid)  # type: ignore[attr-defined, unused-ignore]
    except (AttributeError, OSError):
        watch = None
    try:
        yield watch
    finally:
        if watch is not None:
            os.close(watch)


def _find_prctl() -> Any:
    """The function of Linux's C library; None where there is none."""
    if sys.platform == "linux":
        with contextlib.suppress(ImportError, OSError, AttributeError):  # a Python that was built without
            import ctypes

            return ctypes.CDLL(None).prctl
    return None


_prctl = _find_prctl()  # once, and not in each child


def _die_with(parent: int) -> None:
    """Let this process be killed when its parent has died.

    On Linux the system does that, also while the function is in C code: when the thread that has forked ends, which
    waits for the child as long as it lives. Elsewhere a thread looks.
    """
    if _prctl is None or _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL):
        threading.Thread(target=_look_after, args=(parent,), name="limpyd-jobs-parent", daemon=True).start()
    if os.getppid() != parent:  # it has died before
        os._exit(1)


def _look_after(parent: int) -> None:
    me = os.getpid()
    while os.getppid() == parent:
        time.sleep(PARENT_PAUSE_SECONDS)
    os.kill(me, signal.SIGKILL)


def _do_nothing(number: int, frame: Any) -> None:
    """Handle a signal that is meant for the parent."""
