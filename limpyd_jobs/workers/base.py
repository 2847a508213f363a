"""What all workers share: options, the state of a run, signals, messages, hooks that only tell."""

from __future__ import annotations

import contextlib
import inspect
import itertools
import logging
import os
import re
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timedelta
from types import FrameType
from typing import Any

from .. import recipes, run_options
from ..exceptions import ConfigurationException, InvalidArgument
from ..models import MAX_MESSAGE, Error, Job, Queue, class_name, printable, shortened
from ..modules import allowed_modules, import_all, is_dotted_name
from ..retries import Retries
from ..statuses import STATUSES
from ..utils import check_on, get_delta, parse_keep, utcnow
from .doorbell import Alarm
from .heartbeat_file import check_heartbeat_file
from .insight import format_stacks, resident_mib
from .logs import FACTS, about, facts_of, show_as
from .metrics_port import check_metrics_port
from .sentry import look_at_lines

LOGGER_NAME = "limpyd-jobs"
LONGEST_DURATION = timedelta(seconds=recipes.LONGEST_SECONDS)  # dates end with the year 9999
STOPPED_EXIT_CODE = 3  # of a process that was stopped within its job
FLUSH_SECONDS = 1.0  # for what is left to be logged, before a process ends at once
MAX_PREFETCH = 1000
MAX_THREADS = 1000  # each claims a job in the same call of a script
LOGGER_METHODS = (logging.Logger.callHandlers, logging.Logger.handle)  # before anybody has replaced them
LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
LONGEST_LINE = 20_000  # of the log, in characters


class BaseWorker:
    """The options of a worker and everything that it does without Redis.

    Each option is an argument of the constructor and a class attribute; the argument wins. Durations are seconds.

    Attributes:
        run_defaults: what is said by `job_timeout`, `backoff`, `retry_on`, `no_retry_on` and `save_result`, in the
            uniform kinds of run_options.check.
        lease_seconds: how long a job belongs to a worker that gives no sign of life, if its class does not say.
        max_recoveries: how often a job whose worker was lost is given back, if its class does not say.
        stop_timeout: how long the job may go on after SIGINT or SIGTERM, or when the parent of a pool is gone; None for
            as long as it takes.
        job_modules: dotted names of modules that idents may import, as a list or in a string with commas; `*` for any.
            What one worker allows is allowed in the whole process.
        tasks: dotted names of modules and packages, imported when the worker is made, and allowed as `job_modules` are;
            as a list or in a string with commas.
        keep_success, keep_errors: how much of these histories is kept: a number of jobs, a timedelta, or a text like
            `1000` or `7d` (see utils.parse_keep); None for all. What a queue says wins.
        prefetch: how many jobs are claimed in one round trip at most; 0, as 1, for one.
        max_memory: the worker ends after the job that leaves more MiB resident (see insight.resident_mib); None for
            no limit.
        burst: the worker ends when nothing is waiting and nothing delayed is due.
        threads: how many jobs run at a time, each in a thread of its own; 1: in the thread of the worker.
        isolate: run each job in a forked process of its own, if its class does not say (see docs/isolation.md).
        allow_unenforced_timeouts: run jobs with a `job_timeout` also where nothing can end them, in threads.
        job_timeout: how long a run may last; None for as long as it takes.
        backoff: how `requeue_delay_delta` grows from one retry to the next, or a list of delays (see
            retries.parse_backoff); None: it does not grow.
        retry_on, no_retry_on: the exceptions after which a job is retried, or not: classes, dotted names, or a string
            of these with commas. The latter win; None for all, and for none.
        save_result: for how long what jobs answer is kept: in seconds, as a timedelta or a text like `1h`, True for as
            long as their records; None for not at all.
        log_format: `text`, or `json` for an object a line, by all handlers of the logger (see logs.show_as).
        metrics_port: where metrics for Prometheus are shown: a port of 127.0.0.1 (0 for any), or `HOST:PORT`; None for
            nowhere.
        heartbeat_file: the path of a file whose mtime is renewed while the worker lives (see docs/seeing-workers.md).
        runs_for_caller: do its jobs run in the thread of whoever made them, and who goes on there? No option.

    Of `requeue_times`, `requeue_delay_delta`, `job_timeout`, `backoff`, `retry_on`, `no_retry_on` and `save_result`,
    what a job or its class says wins: see docs/retries.md.
    """

    queues: Any = None
    queue_model: Any = Queue
    error_model: Any = Error
    logger_name = LOGGER_NAME
    logger_level: int = logging.INFO
    save_errors = True
    save_tracebacks = True
    max_loops = 1000
    max_duration: Any = None
    terminate_gracefuly = True
    terminate_gracefully: bool | None = None  # the same option, well spelt; wins when set
    callback: Any = None
    timeout: float = 30
    fetch_priorities_delay: float = 25
    fetch_delayed_delay: float = 25
    requeue_times = 0
    requeue_priority_delta = -1
    requeue_delay_delta: float = 30
    lease_seconds: float = 30
    max_recoveries = 3
    stop_timeout: float | None = None
    job_modules: Any = ()
    tasks: Any = ()
    keep_success: Any = None
    keep_errors: Any = None
    prefetch = 0
    max_memory: int | None = None
    burst = False
    threads = 1
    isolate = False
    allow_unenforced_timeouts = False
    job_timeout: Any = None
    backoff: Any = None
    retry_on: Any = None
    no_retry_on: Any = None
    save_result: Any = None
    log_format = "text"
    metrics_port: Any = None
    runs_for_caller = False
    heartbeat_file: Any = None

    parameters: tuple[str, ...] = (
        "queues",
        "callback",
        "queue_model",
        "error_model",
        "logger_name",
        "logger_level",
        "save_errors",
        "save_tracebacks",
        "max_loops",
        "max_duration",
        "terminate_gracefuly",
        "timeout",
        "fetch_priorities_delay",
        "fetch_delayed_delay",
        "requeue_times",
        "requeue_priority_delta",
        "requeue_delay_delta",
    )
    more_parameters: tuple[str, ...] = (
        "terminate_gracefully",
        "lease_seconds",
        "max_recoveries",
        "stop_timeout",
        "job_modules",
        "tasks",
        "keep_success",
        "keep_errors",
        "prefetch",
        "max_memory",
        "burst",
        "threads",
        "isolate",
        "allow_unenforced_timeouts",
        "job_timeout",
        "backoff",
        "retry_on",
        "no_retry_on",
        "save_result",
        "log_format",
        "metrics_port",
        "heartbeat_file",
    )

    def __init__(self, queues: Any = None, **kwargs: Any) -> None:
        """Take and check the options, prepare the logger and the signals.

        Args:
            queues: names as a list, a tuple, or a string with commas.
            kwargs: any of `parameters` and `more_parameters`.
        Raises:
            ConfigurationException: an option cannot work.
        """
        self._take_options({"queues": queues, **kwargs})
        self.queues = self._parse_queues(self.queues)
        self._assert_correct_model(self.queue_model, Queue, "queue")
        self._assert_correct_model(self.error_model, Error, "error")
        self._check_numbers()
        self._check_run_options()
        self._prepare_callback()
        allowed_modules.add(self.job_modules)
        allowed_modules.add(self._given_modules())
        self.tasks = import_all("tasks", self.tasks)
        allowed_modules.add(self.tasks)

        self._pid = os.getpid()
        self._id = str(threading.get_ident())[-6:]
        self._alarm = Alarm()
        self._status_callbacks: list[Callable[[Any], None]] = []
        self.keys: list[str] = []
        self.status: str | None = None
        self.num_loops = self.num_errors = 0
        self._moved_at = time.monotonic()  # when the worker last looked for something to do
        self.is_drained = False  # has it ended by `burst`?
        self.is_held_up = False  # was Redis, or a queue, waited for before the first job?
        self._is_too_big = False
        self.end_forced = False
        self.end_signal_caught = False
        self.start_date: datetime | None = None
        self.end_date: datetime | None = None
        self.wanted_end_date: datetime | None = None
        self._former_handlers: dict[int, Any] = {}
        self._handles_signals = False
        self._stopping: threading.Thread | None = None  # ends this process, at once or when its time is over
        self.set_logger()
        if self.terminate_gracefuly:
            self.handle_end_signal()

    # --- Options

    def _take_options(self, options: dict[str, Any]) -> None:
        for name, value in options.items():
            if name not in (*self.parameters, *self.more_parameters):
                warnings.warn(f"{type(self).__name__} has no option {name!r}: it is ignored", stacklevel=4)
            elif value is not None:
                setattr(self, name, value)
        if "terminate_gracefuly" in options and options.get("terminate_gracefully") is None:
            self.terminate_gracefully = None
        if self.terminate_gracefully is not None:
            self.terminate_gracefuly = self.terminate_gracefully
        self.terminate_gracefully = self.terminate_gracefuly

    @staticmethod
    def _parse_queues(queues: Any) -> list[str]:
        if queues is None or queues == "":
            raise ConfigurationException("The queue(s) to use are not defined: give queues, or set it on the class")
        if not isinstance(queues, (str, Iterable)) or isinstance(queues, bytes):
            raise ConfigurationException(
                f"Invalid queues: {queues!r}: must be a list of names, or a string with commas"
            )
        names = queues.split(",") if isinstance(queues, str) else list(queues)
        if not names:
            raise ConfigurationException("The queue(s) to use are not defined: the list is empty")
        try:
            return [recipes.to_queue_name(name) for name in names]
        except InvalidArgument as error:
            raise ConfigurationException(f"Invalid queues: {queues!r}: each name must be {error.accepted}") from error

    @staticmethod
    def _assert_correct_model(model: Any, reference: type, name: str) -> None:
        if not isinstance(model, type) or not issubclass(model, reference):
            raise ConfigurationException(f"The {name} model must be a subclass of {reference.__name__}")

    def _check_numbers(self) -> None:
        try:
            self.max_duration = None if self.max_duration is None else get_delta(self.max_duration)
        except InvalidArgument as error:
            message = f"Invalid max_duration: {self.max_duration!r}: must be {error.accepted}"
            raise ConfigurationException(message) from error
        for name in ("max_loops", "requeue_times", "requeue_priority_delta"):
            if not isinstance(getattr(self, name), int) or isinstance(getattr(self, name), bool):
                raise ConfigurationException(f"Invalid {name}: {getattr(self, name)!r}: must be an integer")
        if (
            not isinstance(self.prefetch, int)
            or isinstance(self.prefetch, bool)
            or not 0 <= self.prefetch <= MAX_PREFETCH
        ):
            accepted = f"an integer between 0 and {MAX_PREFETCH}"
            raise ConfigurationException(f"Invalid prefetch: {self.prefetch!r}: must be {accepted}")
        not_negative = ("max_loops", "timeout", "requeue_times", "fetch_priorities_delay", "fetch_delayed_delay")
        for name in not_negative:
            self._check_seconds(name, getattr(self, name))
        delay = self.requeue_delay_delta
        self._check_seconds("requeue_delay_delta", delay.total_seconds() if isinstance(delay, timedelta) else delay)
        if self.max_duration is not None and not timedelta() <= self.max_duration <= LONGEST_DURATION:
            accepted = f"between 0 and {LONGEST_DURATION.total_seconds():.0f} seconds"
            raise ConfigurationException(f"Invalid max_duration: {self.max_duration}: must be {accepted}")
        if abs(self.requeue_priority_delta) > recipes.MAX_PRIORITY:
            raise ConfigurationException(
                f"Invalid requeue_priority_delta: {self.requeue_priority_delta}: must be at most 2^53"
            )
        for name in recipes.JOB_OPTIONS:
            recipes.check_job_option(type(self).__name__, name, getattr(self, name))
        for name in ("keep_success", "keep_errors"):
            value = getattr(self, name)
            try:
                setattr(self, name, None if value is None else parse_keep(name, value))
            except InvalidArgument as error:
                raise ConfigurationException(str(error)) from error
        if self.stop_timeout is not None:
            self._check_seconds("stop_timeout", self.stop_timeout)
        if self.max_memory is not None and not is_whole(self.max_memory, 1):
            raise ConfigurationException(
                f"Invalid max_memory: {self.max_memory!r}: must be an integer, 1 or more (MiB)"
            )
        for name in ("burst", "isolate", "allow_unenforced_timeouts"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigurationException(f"Invalid {name}: {getattr(self, name)!r}: must be True or False")
        self._check_threads()
        if self.metrics_port is not None:
            check_metrics_port(self.metrics_port)
        if self.heartbeat_file is not None:
            check_heartbeat_file(self.heartbeat_file)

    def _check_threads(self) -> None:
        """See to it that what is asked for can be done at the same time."""
        if not is_whole(self.threads, 1) or self.threads > MAX_THREADS:
            accepted = f"an integer between 1 and {MAX_THREADS}"
            raise ConfigurationException(f"Invalid threads: {self.threads!r}: must be {accepted}")
        asked = {"threads": self.threads > 1, "isolate": self.isolate, "prefetch": self.prefetch > 1}
        for name, other in itertools.combinations([name for name in asked if asked[name]], 2):
            raise ConfigurationException(f"{name} and {other} cannot be used together")
        if self.threads > 1 and self.job_timeout is not None and not self.allow_unenforced_timeouts:
            raise ConfigurationException(
                f"job_timeout ({self.job_timeout!r}) cannot be enforced in threads: use processes or coroutines, "
                "or set allow_unenforced_timeouts"
            )

    def _check_run_options(self) -> None:
        """Fill `run_defaults`. A method or a property of a subclass that has one of these names is its own."""
        self.run_defaults: dict[str, Any] = {}
        for name in ("job_timeout", "backoff", "retry_on", "no_retry_on", "save_result"):
            value = inspect.getattr_static(self, name)
            if value is not None and not hasattr(type(value), "__get__"):
                self.run_defaults[name] = check_on(type(self).__name__, run_options.check, name, value)

    @property
    def default_retries(self) -> Retries:
        """What holds for the retries of jobs that do not say; `requeue_times` of 0 says nothing."""
        delay = self.requeue_delay_delta
        seconds = delay.total_seconds() if isinstance(delay, timedelta) else delay
        others = ("job_timeout", "save_result")
        said = {name: value for name, value in self.run_defaults.items() if name not in others}
        return Retries(self.requeue_times or None, seconds, **said)

    @staticmethod
    def _check_seconds(name: str, value: Any) -> None:
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not value >= 0:
            raise ConfigurationException(f"Invalid {name}: {value!r}: must be a number, 0 or more")

    def _given_modules(self) -> list[str]:
        """The modules that the options of this worker come from."""
        given = (type(self), self.queue_model, self.error_model, self.callback)
        names = (getattr(value, "__module__", None) for value in given)
        return [name for name in names if isinstance(name, str) and is_dotted_name(name)]

    def _prepare_callback(self) -> None:
        """Without a callback, `execute`; a function of two arguments on the class is one, not a method."""
        on_class = inspect.getattr_static(type(self), "callback", None)
        is_function = inspect.isfunction(on_class) and "callback" not in vars(self)
        if is_function and len(inspect.signature(on_class).parameters) == 2:
            self.callback = on_class
        if self.callback is None:
            self.callback = self.execute
        if not callable(self.callback):
            raise ConfigurationException(f"The callback is not callable: {self.callback!r}")

    # --- Logger, signals

    def set_logger(self) -> None:
        """Set `logger`, from `logger_name` and `logger_level`."""
        if not isinstance(self.logger_name, str):
            raise ConfigurationException(f"Invalid logger_name: {self.logger_name!r}: must be a string")
        self.logger: Any = logging.getLogger(self.logger_name)
        try:
            self.logger.setLevel(self.logger_level)
        except (TypeError, ValueError):
            accepted = "the number or the name of a level of logging"
            raise ConfigurationException(f"Invalid logger_level: {self.logger_level!r}: must be {accepted}") from None
        show_as(self.log_format, self.logger)

    def handle_end_signal(self) -> None:
        """Handle the signals that end the worker, and SIGUSR2 unless it is in use; only the main thread may."""
        if threading.current_thread() is not threading.main_thread():
            return
        self._handles_signals = True
        for number in (signal.SIGINT, signal.SIGTERM):
            self._former_handlers[number] = signal.signal(number, self.catch_end_signal)
        self._former_handlers[signal.SIGQUIT] = signal.signal(signal.SIGQUIT, self.catch_quit_signal)
        if signal.getsignal(signal.SIGUSR2) is signal.SIG_DFL:  # else the program has a use of its own for it
            self._former_handlers[signal.SIGUSR2] = signal.signal(signal.SIGUSR2, self.catch_stacks_signal)

    def stop_handling_end_signal(self) -> None:
        """Put back the handlers that `handle_end_signal` found."""
        if threading.current_thread() is not threading.main_thread():
            return
        self._handles_signals = False
        for number in self._former_handlers:
            ours = (self.catch_end_signal, self.catch_quit_signal, self.catch_stacks_signal)
            if signal.getsignal(number) in ours:
                signal.signal(number, self._former_handler(number))

    def _former_handler(self, number: int) -> Any:
        """The handler to put back: not that of another worker that has ended since."""
        handler = self._former_handlers[number]
        owner = getattr(handler, "__self__", None)
        while isinstance(owner, BaseWorker) and not owner._handles_signals:
            handler = owner._former_handlers[number]
            owner = getattr(handler, "__self__", None)
        return handler

    def ask_to_end(self, reason: str, level: str = "critical", **facts: Any) -> None:
        """Have the worker end: after its job, for which it has `stop_timeout`, or at once when it waits.

        Args:
            reason: what the log says, with this level, and these facts beside it.
        """
        self.end_forced = True
        is_at_work = self.status is not None and self.end_date is None
        if is_at_work and self.stop_timeout is not None and self._stopping is None:
            self._stopping = threading.Timer(self.stop_timeout, self.stop_now)
            self._start_stopping()
        when = "after current job" if self.status == "running" else "now"
        with contextlib.suppress(Exception):  # of a handler or a filter of the log
            self._log_facts(facts, f"{reason}: stopping {when}", level=level)

    def catch_end_signal(self, signum: int | None, frame: FrameType | None) -> None:
        """Ask the worker to end: after its job, or at once when it waits."""
        if self._is_for_child(signum):
            return
        self._pass_on(signum, frame)
        self.end_signal_caught = True
        name = signal.Signals(signum).name if signum else "an end"
        look_at_lines()  # there may have been no job yet
        self.ask_to_end(f"Caught {name} signal", signal=name)

    def catch_quit_signal(self, signum: int | None, frame: FrameType | None) -> None:
        """Give the running job back, and end at once."""
        if self._is_for_child(signum) or (self.status is None and self._pass_on(signum, frame)):
            return
        self.end_signal_caught = self.end_forced = True
        # in a thread: the signal may have come in the middle of a write to the log, or to Redis
        self._stopping = threading.Thread(target=self.stop_now)
        self._start_stopping()
        with contextlib.suppress(Exception):
            look_at_lines()
            self._log_facts({"signal": "SIGQUIT"}, "Caught SIGQUIT signal: stopping at once", level="critical")

    def catch_stacks_signal(self, signum: int | None, frame: FrameType | None) -> None:
        """Write the stack of every thread to the log; the worker goes on."""
        if self._is_for_child(signum):
            return
        with contextlib.suppress(Exception):  # of a handler or a filter of the log
            self.log_stacks()

    def _start_stopping(self) -> None:
        assert self._stopping is not None
        self._stopping.daemon = True
        self._stopping.start()

    def _pass_on(self, signum: int | None, frame: FrameType | None) -> bool:
        """Let a worker that was made before in this process know, too; answers whether there is one."""
        former: Any = self._former_handlers.get(signum or 0)
        owner = getattr(former, "__self__", None)
        if not isinstance(owner, BaseWorker) or not owner._handles_signals:
            return False
        former(signum, frame)
        return True

    @property
    def _is_this_process(self) -> bool:
        """Is this the worker's own process, not one that a job has forked?"""
        return self._pid == os.getpid()

    def _is_for_child(self, signum: int | None) -> bool:
        """Has a process got the signal that a job has forked? Then it is handled as if there were no worker."""
        if self._is_this_process or signum is None:
            return False
        signal.signal(signum, self._former_handler(signum))
        os.kill(os.getpid(), signum)
        return True

    def stop_now(self) -> None:
        """End the process with the exit code 3, in the middle of its job: that may run elsewhere by now."""
        end_process(STOPPED_EXIT_CODE)

    @property
    def end_forced(self) -> bool:
        """Must the worker end after its current job? Set it at any time, from any thread: a waiting worker wakes."""
        return self._end_forced

    @end_forced.setter
    def end_forced(self, value: bool) -> None:
        self._end_forced = value
        if value:
            self._wake()

    def _wake(self) -> None:
        """Wake a worker that waits; called from any thread, or the handler of a signal."""
        self._alarm.ring()

    def must_stop(self) -> bool:
        """Is it time to end: by a signal, `end_forced`, `max_loops`, `max_memory`, `burst` or `max_duration`?"""
        if self.end_forced or self.end_signal_caught or self.num_loops >= self.max_loops:
            return True
        if self._is_too_big or self.is_drained:
            return True
        return self.wanted_end_date is not None and utcnow() >= self.wanted_end_date

    def check_memory(self) -> None:
        """Called after each job: above `max_memory` it was the last one."""
        if self.max_memory is None or self._is_too_big:
            return
        resident = resident_mib()
        if resident > self.max_memory:
            self._is_too_big = True
            self._wake()  # if this was called in the thread of a job
            self.log(f"The process has {resident:.0f} MiB, more than max_memory ({self.max_memory}): stopping")

    def end_burst(self) -> None:
        """Called with `burst`, when there is nothing to do: the worker ends."""
        self.is_drained = True
        self.log("Nothing is waiting and nothing is due: stopping")

    def after_fork(self) -> None:
        """Called in a process that was forked to run this worker or a job of it, before it does so. Does nothing.

        Override it to open anew what processes must not share: files, connections to other databases.
        """

    # --- State

    @property
    def id(self) -> str:
        """What names the worker in the log."""
        return self._id

    @property
    def elapsed(self) -> timedelta | None:
        """How long the run has lasted, or did; None before it."""
        return (self.end_date or utcnow()) - self.start_date if self.start_date else None

    def set_status(self, status: str) -> None:
        """Change `status`, and tell those who asked to know."""
        self.status = status
        self._tell_status()

    def _tell_status(self) -> None:
        for callback in self._status_callbacks:
            callback(self)

    def _add_update_status_callback(self, callback: Callable[[Any], None]) -> None:
        self._status_callbacks.append(callback)

    def _remove_update_status_callback(self, callback: Callable[[Any], None]) -> None:
        # a new list, as a callback may remove itself while they are called
        self._status_callbacks = [other for other in self._status_callbacks if other != callback]

    def _note_held_up(self) -> None:
        """Called when Redis, or a queue, has to be waited for: the status stays, but who follows it is told."""
        if not self.is_held_up:
            self.is_held_up = True
            self._tell_status()

    def _is_heard(self, level: str) -> bool:
        """Does anybody listen to messages of a level? If not, they are not made."""
        has_own_log = type(self).log is not BaseWorker.log or "log" in self.__dict__
        return has_own_log or has_listener(self.logger, LEVELS.get(level, logging.CRITICAL))

    def log(self, message: str, level: str = "info") -> None:
        """Log a message, as one line, with the id of the worker in front."""
        getattr(self.logger, level)("[%s] %s", self.id, safe_line(message), **self._beside(message))

    def _log_about(self, job: Job, message: str, level: str = "info", **facts: Any) -> None:
        """As `log`, of a job: told to those who want more than a line, with what the facts say of it."""
        self._log_facts({**facts_of(job), **facts}, message, level)

    def _log_facts(self, facts: Mapping[str, Any], message: str, level: str = "info") -> None:
        token = about.set(facts)
        try:
            self.log(message, level=level)
        finally:
            about.reset(token)

    def _beside(self, message: str, **facts: Any) -> dict[str, Any]:
        """What a record has beside its text; what is no logger of the standard library takes nothing of that."""
        if not isinstance(self.logger, (logging.Logger, logging.LoggerAdapter)):
            return {}
        return {"extra": {FACTS: {"worker": self.id, **about.get(), **facts, "message": message}}}

    def _log_exception(self, message: str, job: Job | None = None) -> None:
        """Log a message with the traceback of what is being handled; its lines are indented, so that none passes for
        another line of the log.

        Args:
            job: that it is about.
        """
        trace = format_trace()
        beside = self._beside(message, **(facts_of(job) if job is not None else {}), traceback=trace)
        trace = indented(trace.rstrip("\n").split("\n"))
        if not isinstance(self.logger, logging.Logger):  # an adapter, for instance
            self.logger.error("[%s] %s\n%s", self.id, safe_line(message), trace, **beside)
            return
        if not self.logger.isEnabledFor(logging.ERROR):
            return
        path, line, function, _ = self.logger.findCaller(stacklevel=2)
        values = ("[%s] %s", (self.id, safe_line(message)), sys.exc_info(), function)
        record = self.logger.makeRecord(self.logger.name, logging.ERROR, path, line, *values, beside["extra"])
        record.exc_text = trace
        self.logger.handle(record)

    def log_stacks(self) -> None:
        """Log the stack of every thread, indented as `_log_exception` does it."""
        self._log_lines("Stacks of all threads:", format_stacks(), "critical")

    def _log_lines(self, message: str, lines: Iterable[str], level: str) -> None:
        text = indented(lines)
        beside = self._beside(f"{message}\n{text}")
        getattr(self.logger, level)("[%s] %s\n%s", self.id, message, text, **beside)

    # --- The run

    def execute(self, job: Job, queue: Queue) -> Any:
        """What is done with a job without a callback: its own `run`."""
        return job.run(queue)

    def run_started(self) -> None:
        """Called when the keys are known, before the first job."""
        self.log("Run started.")

    def run_ended(self) -> None:
        """Called at the end of `run`."""
        self.log(f"Run terminated, with {self.num_loops} loops (duration={self.elapsed})")

    def additional_error_fields(
        self, job: Job, queue: Queue, exception: BaseException, trace: str | None = None
    ) -> dict[str, Any]:
        """Fields of a subclass of Error to save with the error of a job."""
        return {}

    # --- Messages

    @staticmethod
    def _ident_of(job: Job) -> str:
        """The ident of a job, also when it has deleted itself."""
        claim = job._claim or job._last_claim
        return claim.ident if claim else job.ident

    @staticmethod
    def _place_of(job: Job, queue: Queue) -> str:
        """`[queue|pk|identifier]`, as each message about a job begins."""
        claim = job._claim or job._last_claim
        if claim and claim.queue_name:  # no round trip, and right for a job that deletes itself, too
            return f"[{claim.queue_name}|{claim.ident.partition(':')[2]}|{claim.identifier}]"
        return f"[{queue.name.hget()}|{job.pk.get()}|{job.identifier.hget()}]"

    def job_started_message(self, job: Job, queue: Queue) -> str:
        """What `job_started` logs."""
        return f"{self._place_of(job, queue)} starting"

    def job_success_message(self, job: Job, queue: Queue, job_result: Any) -> str:
        """What `job_success` logs."""
        return f"{self._place_of(job, queue)} success, in {job._run_time or job.duration}"

    def job_error_message(
        self, job: Job, queue: Queue, to_be_requeued: bool, exception: BaseException, trace: str | None = None
    ) -> str:
        """What `job_error` logs."""
        end = "requeued" if to_be_requeued else "NOT requeued"
        return f"{self._place_of(job, queue)} error: {shortened(printable(exception), MAX_MESSAGE)} [{end}]"

    def job_requeue_message(self, job: Job, queue: Queue) -> str:
        """What `requeue_job` logs."""
        priority, until = self._moved_to(job)
        delay = f", delayed until {until}" if until else ""
        return f"{self._place_of(job, queue)} requeued with priority {priority}{delay}"

    def job_skipped_message(self, job: Job, queue: Queue) -> str:
        """What `job_skipped` logs."""
        status = STATUSES.by_value(job._cached_status or job.status.hget(), "UNKNOWN")
        return f"{self._place_of(job, queue)} job skipped (current status: {status})"

    def job_delayed_message(self, job: Job, queue: Queue) -> str:
        """What `job_delayed` logs."""
        return f"{self._place_of(job, queue)} job delayed until {self._moved_to(job)[1] or None}"

    @staticmethod
    def _moved_to(job: Job) -> tuple[str, str | None]:
        """The priority and the `delayed_until` that the last move of a job gave it."""
        if job._moved:
            return job._moved.priority, job._moved.delayed_until
        priority, until = job.hmget("priority", "delayed_until")
        return priority or "0", until


# What could end a line, or begin another, or write over one: in the name of a job, or in the message of an exception.
UNSAFE_CHARACTERS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def safe_line(text: str) -> str:
    """A text with its control characters escaped, so that it cannot pass for another line of the log."""
    text = shortened(str(text), LONGEST_LINE)
    return UNSAFE_CHARACTERS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def indented(lines: Iterable[str]) -> str:
    """Lines that follow a message in the log, so that none passes for another line of it."""
    return "\n".join(f"    {safe_line(line)}" for line in lines)


def is_whole(value: Any, smallest: int) -> bool:
    """Is it an integer (True and False are none), and not below the smallest?"""
    return isinstance(value, int) and not isinstance(value, bool) and value >= smallest


def has_listener(logger: Any, level: int) -> bool:
    """Would a message of this level be written, or seen, by anybody? When in doubt, yes."""
    if type(logger) is not logging.Logger:
        return True
    if not logger.isEnabledFor(level):  # which is asked first: then nobody else is
        return False
    if logger.filters or (logging.Logger.callHandlers, logging.Logger.handle) != LOGGER_METHODS:
        return True
    current: logging.Logger | None = logger
    has_handlers = False
    while current is not None:
        for handler in current.handlers:
            has_handlers = True
            if level >= handler.level and type(handler) is not logging.NullHandler:
                return True
        current = current.parent if current.propagate else None
    return not has_handlers and logging.lastResort is not None and level >= logging.lastResort.level


def format_trace(error: BaseException | None = None) -> str:
    """The traceback of an error, or of what is being handled, whatever formatting it raises."""
    try:
        return "".join(traceback.format_exception(error)) if error is not None else traceback.format_exc()
    except BaseException as error:  # the exception of a job may do anything
        return f"<no traceback: formatting it raised {class_name(error)}>"


def try_for(seconds: float, action: Callable[[], Any]) -> None:
    """Do something, but do not wait longer for it: a log whose reader is gone, for instance, blocks for ever."""
    thread = threading.Thread(target=action, daemon=True)
    thread.start()
    thread.join(seconds)


def end_process(code: int) -> None:
    """End the process at once, without its `finally` blocks and `atexit`; what it printed and logged is kept."""
    try_for(FLUSH_SECONDS, _flush)
    os._exit(code)


def _flush() -> None:
    for flush in (logging.shutdown, sys.stdout.flush, sys.stderr.flush):
        with contextlib.suppress(Exception):
            flush()


def new_worker_key() -> str:
    """A name for a worker in its tokens, unlike any other's."""
    return os.urandom(8).hex()
