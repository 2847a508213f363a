"""Running a function in a forked child, which may do its worst."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import faulthandler
import logging
import os
import pickle
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from limpyd_jobs import STATUSES, Job
from limpyd_jobs.exceptions import InvalidArgument, JobProcessDied, LeaseLost
from limpyd_jobs.workers import isolation
from limpyd_jobs.workers.isolation import IsolatedRun, Outcome

from ..base import PROCESS_SECONDS, Process, wait_until


class Late(BaseException):
    """What a run that takes too long ends in here."""


def run(function: Callable[[], Any], **options: Any) -> Outcome:
    """Run a function, and see that its process is gone and reaped."""
    isolated = IsolatedRun(function, **{"make_timeout": Late, "seconds": 30, **options})
    outcome = isolated.wait()
    assert isolated.pid is not None and not exists(isolated.pid)
    return outcome


def exists(pid: int) -> bool:
    """Is there such a process, be it a zombie?"""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def is_alive(pid: int) -> bool:
    """Does such a process run? A zombie, which waits for whoever has started it, does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def raising(error: BaseException) -> Callable[[], Any]:
    def function() -> Any:
        raise error

    return function


def sleep() -> None:
    time.sleep(60)


@pytest.fixture(params=["pidfd", "polling"])
def watching(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways to see the end of a child."""
    if request.param == "polling":
        monkeypatch.delattr(os, "pidfd_open")


# --- results


@pytest.mark.parametrize("value", [None, 1, "text", {"a": [1, 2]}, b"", STATUSES.RUNNING])
def test_the_result_comes_back(value: Any) -> None:
    assert run(lambda: value) == Outcome(result=value)


def test_it_runs_in_a_process_of_its_own() -> None:
    assert run(os.getpid).result != os.getpid()


def test_it_sees_this_process_and_changes_only_its_copy() -> None:
    values = [1]

    outcome = run(lambda: values.append(2) or values)

    assert (outcome.result, values) == ([1, 2], [1])


def test_a_huge_result_comes_back(watching: None) -> None:
    assert len(run(lambda: b"x" * 100_000_000).result) == 100_000_000


def test_a_result_that_cannot_be_pickled_is_none_with_the_reason() -> None:
    outcome = run(threading.Lock)

    assert (outcome.result, outcome.error) == (None, None)
    assert outcome.lost_result == "TypeError: cannot pickle '_thread.lock' object"


class LoadsNowhere:
    def __reduce__(self) -> Any:
        return _refuse_to_load, ()


def _refuse_to_load() -> Any:
    raise SystemExit("not here")


def test_a_result_that_cannot_be_read_is_none_with_the_reason() -> None:
    assert run(LoadsNowhere) == Outcome(lost_result="SystemExit: not here")


def test_what_is_made_last_comes_back_beside_the_result() -> None:
    values: list[int] = []

    assert run(lambda: values.append(1), extra=lambda: values) == Outcome(extra=[1])


def test_the_child_is_prepared_first() -> None:
    values: list[int] = []

    assert run(lambda: list(values), prepare=lambda: values.append(1)).result == [1]
    assert values == []


# --- errors


@pytest.mark.parametrize(
    "error",
    [ValueError("wrong", 1), SystemExit(3), KeyboardInterrupt(), GeneratorExit(), MemoryError(), OSError(2, "gone")],
    ids=repr,
)
def test_an_error_comes_back_with_its_traceback(error: BaseException) -> None:
    outcome = run(raising(error))

    assert (type(outcome.error), str(outcome.error)) == (type(error), str(error))
    assert outcome.trace is not None and "raise error" in outcome.trace


def test_an_error_keeps_its_attributes() -> None:
    error = run(raising(LeaseLost("app.Job:1"))).error

    assert isinstance(error, LeaseLost) and error.ident == "app.Job:1"


def test_what_is_made_last_comes_back_beside_an_error() -> None:
    assert run(raising(ValueError()), extra=lambda: "extra").extra == "extra"


def test_an_error_of_the_preparation_is_that_of_the_run() -> None:
    assert isinstance(run(sleep, prepare=raising(ValueError())).error, ValueError)


class NeedsMore(ValueError):
    """The usual mistake: pickle cannot make it again."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{code} {text}")
        self.code = code


class Unpicklable(Exception):
    def __reduce__(self) -> Any:
        raise RuntimeError("not by pickle")


class HoldsLock(Exception):
    def __init__(self) -> None:
        super().__init__("locked")
        self.lock = threading.Lock()


class LoadsInChildOnly(Exception):
    parent = 0

    def __reduce__(self) -> Any:
        return _load_in_child, (self.args,)


def _load_in_child(args: Any) -> Any:
    if os.getpid() == LoadsInChildOnly.parent:
        raise RuntimeError("not in the parent")
    return LoadsInChildOnly(*args)


class NoText(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


class StrangeCode(Exception):
    @property
    def code(self) -> int:
        raise RuntimeError("no code")


class Nameless(type):
    """A class of classes that do not tell their names."""

    def __getattribute__(cls, name: str) -> Any:
        raise RuntimeError(name)


class OfNamelessClass(Exception, metaclass=Nameless):
    pass


class Final(Exception):
    """Nothing can be derived from it in the parent."""

    def __init__(self) -> None:
        super().__init__("final")

    def __init_subclass__(cls) -> None:
        raise TypeError("final")

    def __reduce__(self) -> Any:
        raise RuntimeError


def look(error: Any) -> tuple[str, str, str, str]:
    kind = type(error)
    return kind.__name__, kind.__qualname__, kind.__module__, str(error)


def make_local() -> Exception:
    class Local(KeyError):
        code = "local-code"

    return Local("here")


@pytest.mark.parametrize(
    "error",
    [NeedsMore(404, "gone"), Unpicklable("a", "b"), HoldsLock(), LoadsInChildOnly("x"), Final(), make_local()],
    ids=lambda error: type(error).__name__,
)
def test_an_error_that_cannot_be_pickled_comes_back_as_one_that_looks_like_it(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LoadsInChildOnly, "parent", os.getpid())

    found = run(raising(error)).error

    assert look(found) == look(error)
    assert getattr(found, "code", None) == getattr(error, "code", None)


@pytest.mark.parametrize(
    ("error", "kind"), [(NeedsMore(404, "gone"), NeedsMore), (make_local(), KeyError), (HoldsLock(), HoldsLock)]
)
def test_an_error_that_cannot_be_pickled_is_caught_by_its_class_or_the_first_known_one(
    error: Exception, kind: type[Exception]
) -> None:
    assert isinstance(run(raising(error)).error, kind)


def test_an_error_whose_text_raises_comes_back() -> None:
    assert isinstance(run(raising(NoText())).error, NoText)


def test_an_error_of_a_class_that_tells_nothing_comes_back() -> None:
    assert str(run(lambda: (_ for _ in ()).throw(BaseException.__new__(OfNamelessClass, "text"))).error) == "text"


def test_an_error_whose_code_raises_comes_back() -> None:
    assert isinstance(run(raising(StrangeCode("odd"))).error, StrangeCode)


def test_a_result_that_takes_all_memory_is_an_error_of_the_run() -> None:
    def function() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))
        bytearray(2**32)

    assert isinstance(run(function).error, MemoryError)


# --- a child that dies


def segfault() -> None:
    faulthandler.disable()  # pytest's would print the stack
    ctypes.string_at(0)


def exit_quickly() -> None:
    os._exit(3)


def kill_itself() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def abort() -> None:
    faulthandler.disable()
    os.abort()


def real_time_signal() -> None:
    os.kill(os.getpid(), signal.SIGRTMIN + 1)


@pytest.mark.parametrize(
    ("function", "code", "text"),
    [
        (segfault, -11, "The process of the job was killed by SIGSEGV (11)"),
        (abort, -6, "The process of the job was killed by SIGABRT (6)"),
        (kill_itself, -9, "The process of the job was killed by SIGKILL (9): was the memory full?"),
        (real_time_signal, -35, "The process of the job was killed by a signal (35)"),
        (exit_quickly, 3, "The process of the job ended with exit code 3 before the job did"),
    ],
)
def test_the_death_of_the_child_is_an_error_that_says_how(
    function: Callable[[], None], code: int, text: str, watching: None
) -> None:
    error = run(function).error

    assert isinstance(error, JobProcessDied)
    assert (error.code, str(error)) == (code, text)


def test_a_child_that_is_killed_from_elsewhere_is_seen_at_once() -> None:
    isolated = IsolatedRun(sleep)
    killer = threading.Thread(target=lambda: os.kill(wait_until(lambda: isolated.pid or 0), signal.SIGKILL))
    killer.start()

    outcome = isolated.wait()
    killer.join()

    assert isinstance(outcome.error, JobProcessDied) and not outcome.was_killed


def test_a_child_that_another_part_of_the_program_has_reaped_is_seen(watching: None) -> None:
    former = signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # then the system reaps at once
    try:
        error = IsolatedRun(exit_quickly).wait().error
    finally:
        signal.signal(signal.SIGCHLD, former)

    assert isinstance(error, JobProcessDied)
    assert (error.code, str(error)) == (None, "The process of the job is gone")


def test_an_answer_counts_though_another_part_of_the_program_has_reaped_the_child(watching: None) -> None:
    former = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        assert IsolatedRun(lambda: 1).wait() == Outcome(result=1)
    finally:
        signal.signal(signal.SIGCHLD, former)


def test_other_children_of_this_process_are_left_to_it() -> None:
    with subprocess.Popen([sys.executable, "-c", "raise SystemExit(7)"]) as other:
        os.waitid(os.P_PID, other.pid, os.WEXITED | os.WNOWAIT)

        run(lambda: 1)

        assert other.wait() == 7


def fork_sleeper(path: Path, and_then: Callable[[], Any]) -> Callable[[], Any]:
    """A function that leaves a process behind, which holds all its descriptors, and tells its id in a file."""

    def function() -> Any:
        pid = os.fork()
        if not pid:
            time.sleep(60)
            os._exit(0)
        path.write_text(str(pid))
        return and_then()

    return function


@contextlib.contextmanager
def grandchild(path: Path) -> Iterator[Callable[[], int]]:
    """Its id, once it is told; it is killed at the end."""
    try:
        yield lambda: int(path.read_text())
    finally:
        with contextlib.suppress(ProcessLookupError, FileNotFoundError):
            os.kill(int(path.read_text()), signal.SIGKILL)


def test_a_process_that_the_function_leaves_behind_delays_nothing_and_stays(tmp_path: Path, watching: None) -> None:
    with grandchild(tmp_path / "pid") as pid:
        assert run(fork_sleeper(tmp_path / "pid", lambda: "done")).result == "done"
        assert is_alive(pid())


def test_the_death_of_the_child_is_seen_though_a_process_of_it_holds_the_pipe(tmp_path: Path, watching: None) -> None:
    with grandchild(tmp_path / "pid") as pid:
        assert isinstance(run(fork_sleeper(tmp_path / "pid", segfault)).error, JobProcessDied)
        wait_until(lambda: not is_alive(pid()), message="what it has started dies with it")


@pytest.mark.parametrize("error", [None, ValueError()])
def test_a_process_that_comes_back_from_the_function_tells_nothing(error: Exception | None) -> None:
    def function() -> Any:
        pid = os.fork()
        if pid:
            return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if error is not None:
            raise error
        return "from the other process"

    assert run(function).result == (0 if error is None else 1)


def test_a_function_that_closes_all_descriptors_gets_no_answer_into_its_files(tmp_path: Path, watching: None) -> None:
    def function() -> str:
        os.closerange(3, 1000)
        files = [os.open(tmp_path / "file", os.O_CREAT | os.O_WRONLY) for _ in range(50)]
        return f"{len(files)} files"

    error = run(function).error

    assert isinstance(error, JobProcessDied) and error.code == 1
    assert (tmp_path / "file").read_text() == ""


# --- time and kill


@pytest.mark.parametrize("seconds", [0.05, 0.3])
def test_a_child_that_takes_too_long_is_killed(seconds: float, watching: None) -> None:
    assert isinstance(run(sleep, seconds=seconds).error, Late)


def test_a_child_that_catches_everything_is_killed() -> None:
    def function() -> None:
        while True:
            with contextlib.suppress(BaseException):
                signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))
                time.sleep(60)

    assert isinstance(run(function, seconds=0.1).error, Late)


def test_what_the_function_has_started_is_killed_with_it(tmp_path: Path) -> None:
    def function() -> None:
        process = subprocess.Popen(["sleep", "60"])
        (tmp_path / "pid").write_text(str(process.pid))
        process.wait()

    with grandchild(tmp_path / "pid") as pid:
        assert isinstance(run(function, seconds=1).error, Late)
        wait_until(lambda: not is_alive(pid()))


def test_a_child_that_leaves_its_group_is_killed() -> None:
    def function() -> None:
        pid = os.fork()  # in a new group of the same session, which the child then joins
        if not pid:
            os.setpgid(0, 0)
            time.sleep(60)
        wait_until(lambda: os.getpgid(pid) == pid)
        os.setpgid(0, pid)
        os.kill(pid, signal.SIGKILL)
        time.sleep(60)

    assert isinstance(run(function, seconds=0.3).error, Late)


@pytest.mark.parametrize("seconds", [0, -1, float("inf"), float("nan"), "1", True])
def test_what_is_no_time_is_refused(seconds: Any) -> None:
    with pytest.raises(InvalidArgument, match="Invalid seconds argument"):
        IsolatedRun(sleep, seconds=seconds)


def test_a_run_can_be_killed_from_another_thread() -> None:
    isolated = IsolatedRun(sleep)
    killer = threading.Thread(target=lambda: wait_until(lambda: isolated.pid) and isolated.kill())
    killer.start()

    outcome = isolated.wait()
    killer.join()

    assert outcome == Outcome(was_killed=True)


def test_a_run_can_be_killed_by_the_handler_of_a_signal() -> None:
    isolated = IsolatedRun(lambda: (os.kill(os.getppid(), signal.SIGUSR1), time.sleep(60)))
    former = signal.signal(signal.SIGUSR1, lambda number, frame: isolated.kill())
    try:
        assert isolated.wait() == Outcome(was_killed=True)
    finally:
        signal.signal(signal.SIGUSR1, former)


def test_a_run_that_is_killed_before_it_begins_ends_at_once() -> None:
    isolated = IsolatedRun(sleep)
    isolated.kill()

    assert isolated.wait() == Outcome(was_killed=True)


def test_a_run_that_is_killed_after_its_end_keeps_its_outcome() -> None:
    isolated = IsolatedRun(lambda: 1)
    outcome = isolated.wait()

    isolated.kill()

    assert outcome == Outcome(result=1)


# --- signals


def test_the_wait_goes_on_after_the_handler_of_a_signal() -> None:
    handled: list[int] = []
    former = signal.signal(signal.SIGUSR1, lambda number, frame: handled.append(number))
    try:
        outcome = run(lambda: os.kill(os.getppid(), signal.SIGUSR1) or "done")
    finally:
        signal.signal(signal.SIGUSR1, former)

    assert (outcome.result, handled) == ("done", [signal.SIGUSR1])


def test_an_interrupt_of_the_wait_kills_the_child_and_is_raised() -> None:
    isolated = IsolatedRun(sleep)

    def interrupt() -> None:
        wait_until(lambda: isolated.pid)  # not before: Python drops an interrupt that comes in a hook of the fork
        os.kill(os.getpid(), signal.SIGINT)

    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    interrupter = threading.Thread(target=interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            interrupter.start()
            isolated.wait()
    finally:
        interrupter.join()
        signal.signal(signal.SIGINT, former)

    assert isolated.pid is not None and not exists(isolated.pid)


class RaisesAtItsEnd:
    """What is raised right after the fork, on both sides."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, *exception: object) -> None:
        raise KeyboardInterrupt


def test_an_interrupt_right_after_the_fork_kills_the_child_and_is_raised() -> None:
    isolated = IsolatedRun(sleep, quiet=RaisesAtItsEnd())  # type: ignore[arg-type]

    with pytest.raises(KeyboardInterrupt):
        isolated.wait()

    assert isolated.pid and not exists(isolated.pid)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_interrupts_at_any_time_leave_no_child() -> None:
    """With another thread, as a worker has, which takes the signals that are held from this one.

    Python drops an interrupt that comes in a hook of a fork, as logging has one: then the run ends by itself.
    """
    children = f"/proc/self/task/{threading.get_native_id()}/children"
    before = Path(children).read_text()
    other = threading.Thread(target=threading.Event().wait, args=(60,), daemon=True)
    other.start()
    came: list[int] = []

    def interrupt(number: int, frame: Any) -> None:
        came.append(number)
        raise KeyboardInterrupt

    former = signal.signal(signal.SIGUSR1, interrupt)
    interrupted = 0
    try:
        for turn in range(200):
            isolated = IsolatedRun(lambda: time.sleep(0.1))
            timer = threading.Timer(turn * 0.00005, os.kill, (os.getpid(), signal.SIGUSR1))
            try:
                timer.start()
                isolated.wait()
                # it is delivered by the thread that takes it, which has to come to that first
                wait_until(lambda count=turn + 1: len(came) == count)  # type: ignore[misc]
            except KeyboardInterrupt:
                interrupted += 1
            timer.join()
    finally:
        signal.signal(signal.SIGUSR1, former)

    assert interrupted
    assert Path(children).read_text() == before


def send_itself(number: signal.Signals) -> Callable[[], str]:
    def function() -> str:
        os.kill(os.getpid(), number)
        return "survived"

    return function


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP])
def test_a_signal_that_supervisors_send_to_all_leaves_the_child_alone(number: signal.Signals) -> None:
    assert run(send_itself(number)).result == "survived"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_kills_a_child_that_is_not_to_survive_it(number: signal.Signals) -> None:
    error = run(send_itself(number), survives_signals=False).error

    assert isinstance(error, JobProcessDied) and error.code == -number


def test_a_program_that_the_function_starts_can_be_ended_by_a_signal() -> None:
    def function() -> int:
        process = subprocess.Popen(["sleep", "60"])
        process.terminate()
        return process.wait()

    assert run(function).result == -signal.SIGTERM


def test_signals_are_blocked_afterwards_as_they_were_before_here_and_there() -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])

    inside = run(lambda: signal.pthread_sigmask(signal.SIG_BLOCK, [])).result

    assert inside == before == signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_the_timer_of_this_process_does_not_ring_in_the_child() -> None:
    former = signal.setitimer(signal.ITIMER_REAL, 60)
    try:
        assert run(lambda: signal.getitimer(signal.ITIMER_REAL)).result == (0.0, 0.0)
    finally:
        signal.setitimer(signal.ITIMER_REAL, *former)


# --- what is shared, and what is not


def test_the_children_do_not_repeat_the_random_numbers_of_each_other() -> None:
    numbers = {run(random.random).result for _ in range(5)}

    assert len(numbers) == 5


def test_nothing_that_this_process_does_at_its_end_is_done_in_the_child(tmp_path: Path) -> None:
    program = """
import atexit, sys
from limpyd_jobs.workers.isolation import IsolatedRun
atexit.register(print, "at exit")
print("before", end=" ")
try:
    print(IsolatedRun(lambda: print("inside")).wait().error)
finally:
    print("finally")
"""
    with Process([sys.executable, "-c", program]) as process:
        assert process.wait() == 0
        assert process.output == "before inside\nNone\nfinally\nat exit\n"


def test_what_holds_off_the_threads_is_entered_for_the_fork_only() -> None:
    quiet = threading.Lock()

    assert run(quiet.locked, quiet=quiet).result is False
    assert not quiet.locked()


@pytest.mark.usefixtures("database")
def test_the_child_and_this_process_have_connections_of_their_own() -> None:
    job: Any = Job.add_job("isolated", queue_name="test")
    job.status.hget()  # so that there is a spare connection at the fork

    def function() -> set[str]:
        return {job.identifier.hget() for _ in range(300)}

    found: list[Outcome] = []
    thread = threading.Thread(target=lambda: found.append(run(function)))
    thread.start()
    here = set()
    while thread.is_alive():
        here.add(job.status.hget())
    thread.join()

    assert found == [Outcome(result={"isolated"})]
    assert here == {STATUSES.WAITING}


def test_many_runs_leave_no_descriptor(watching: None) -> None:
    run(lambda: 1)
    before = descriptors()

    assert [run(os.getpid).error for _ in range(500)] == [None] * 500

    assert descriptors() == before


def test_a_fork_that_fails_is_raised_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> int:
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    before, mask = descriptors(), signal.pthread_sigmask(signal.SIG_BLOCK, [])
    monkeypatch.setattr(os, "fork", fail)

    with pytest.raises(BlockingIOError):
        IsolatedRun(sleep).wait()

    assert descriptors() == before
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == mask


def test_threads_that_write_to_the_log_lock_nothing_up(tmp_path: Path) -> None:
    logger = logging.getLogger("test-isolation")
    logger.propagate = False
    handler = logging.FileHandler(tmp_path / "log")
    logger.addHandler(handler)
    must_stop = threading.Event()

    def write() -> None:
        while not must_stop.is_set():
            logger.error("x" * 20_000)

    threads = [threading.Thread(target=write, daemon=True) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        outcomes = [run(lambda: logger.error("inside"), seconds=20) for _ in range(100)]
    finally:
        must_stop.set()
        for thread in threads:
            thread.join()
        logger.removeHandler(handler)
        handler.close()

    assert [outcome.error for outcome in outcomes] == [None] * 100
    assert (tmp_path / "log").read_text().count("inside") == 100


def test_several_runs_at_a_time_are_possible_in_threads() -> None:
    found: dict[int, Any] = {}
    threads = [
        threading.Thread(target=lambda number=number: found.update({number: run(lambda: number).result}))
        for number in range(20)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert found == {number: number for number in range(20)}


# --- the death of the parent

ORPHAN = """
import sys, time
from limpyd_jobs.workers import isolation
if sys.argv[1] == "thread":
    isolation._prctl = None
def function():
    import os
    print("child", os.getpid(), flush=True)
    time.sleep(60)
isolation.IsolatedRun(function).wait()
"""


@pytest.mark.parametrize("how", ["system", "thread"])
def test_the_child_dies_with_its_parent(how: str) -> None:
    with Process([sys.executable, "-c", ORPHAN, how]) as parent:
        wait_until(lambda: parent.output.endswith("\n"), PROCESS_SECONDS, "the child tells its id")
        pid = int(parent.output.split()[1])
        parent.kill()
        wait_until(lambda: not is_alive(pid), message="the child is gone")


def test_the_thread_that_looks_after_the_parent_does_no_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolation, "_prctl", None)

    assert run(threading.active_count).result == 2


def test_an_outcome_with_an_error_of_ours_can_be_pickled() -> None:
    outcome = run(exit_quickly)

    assert str(pickle.loads(pickle.dumps(outcome)).error) == str(outcome.error)
