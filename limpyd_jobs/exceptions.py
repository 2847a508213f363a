"""Every error of the package, in one tree.

    LimpydJobsException
    ├── ConfigurationException      a worker or a model is set up in a way that cannot work
    │   └── TaskAlreadyDefined      two functions are tasks of one name
    ├── InvalidArgument             (also ValueError) a value was given that is not accepted
    │   ├── InvalidDatabaseURL      a database was named in a way that cannot be read
    │   ├── NotSerializable         an argument or a result has something in it that cannot be stored
    │   └── TooLarge                an argument or a result takes more room than it may
    ├── DatabaseException           the server cannot be used
    │   ├── ServerTooOld            it runs, but lacks what our scripts need
    │   └── EmbeddedServerError     the private server cannot be started
    ├── CommandFailed               a program that a job has run ended with another code than 0
    ├── JobNotInStatus              the transition does not start from the job's status
    │   └── JobChanged              the job is not as it was when it was read
    ├── ExecutionLost               the process that executed the job at once has ended before the job
    ├── JobAlreadyQueued            another job with the identifier is queued
    ├── JobAlreadyExists            (also limpyd's UniquenessError) the primary key or a unique value is taken
    ├── JobFailed                   the result of a job was asked for, and it failed
    │   └── JobCanceled             it was canceled
    ├── JobClassError               an ident names a class that cannot be used
    ├── JobNotFound                 no job is found by what was given, or several are
    ├── JobProcessDied              the process in which the job was isolated ended before the job
    ├── LeaseLost                   the job belongs to another worker by now
    ├── NoResult                    the result of a job was asked for, and there is none
    │   └── ResultNotStored         the job ended well, but what it answered could not be stored
    ├── NotDecodable                a stored argument or result is not what its serializer writes
    ├── QueueDeleted                the job was to be given back to a queue that is gone
    ├── Retry                       raised by a job: try it again, later
    ├── TaskNotFound                nothing has a task of this name
    ├── WaitTimeout                 (also TimeoutError) not all jobs that one waits for have ended in time
    ├── WorkerLost                  the job was given back too often: each worker that ran it was lost
    ├── WrongArguments              (also TypeError) a task cannot be called with these arguments
    └── WrongKeyType                something else is in Redis under a key of ours

    JobTimeout                      (a BaseException) the job has run for longer than it may

`JobTimeout` stands alone, and is no `Exception`: a job that catches those must not swallow it.
What concerns a missing record stays limpyd's own `DoesNotExist`.
"""

from __future__ import annotations

import signal
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from typing import Any

from limpyd.exceptions import UniquenessError


class LimpydJobsException(Exception):
    """The base of all errors raised by limpyd_jobs. They can be pickled, with the facts that they carry."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.args, self.__dict__)


def _rebuild(kind: type[LimpydJobsException], args: tuple[Any, ...], facts: dict[str, Any]) -> LimpydJobsException:
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(facts)
    return error


class ConfigurationException(LimpydJobsException):
    """A worker or a model is set up in a way that cannot work."""


class InvalidArgument(LimpydJobsException, ValueError):
    """A value was given that is not accepted; nothing was written."""

    def __init__(self, argument: str, value: Any, accepted: str) -> None:
        self.argument, self.value, self.accepted = argument, value, accepted
        super().__init__(f"Invalid {argument} argument: {shorten(value)}: must be {accepted}")


class InvalidDatabaseURL(InvalidArgument):
    """A database was named in a way that cannot be read. The message never holds the password."""

    def __init__(self, shown: str, reason: str) -> None:
        self.argument, self.value, self.accepted = "database", shown, reason
        LimpydJobsException.__init__(self, f"Invalid database {shown!r}: {reason}")


class TaskAlreadyDefined(ConfigurationException):
    """Two functions are tasks of one name."""

    def __init__(self, name: str, first: str, second: str) -> None:
        self.name, self.first, self.second = name, first, second
        super().__init__(f"There are two tasks {name!r}: {first} and {second}: give one another `name`")


class TaskNotFound(LimpydJobsException):
    """A task is asked for that is not there: in this process, or with `verify` among what workers have registered."""

    def __init__(self, name: str, near: Sequence[str] = (), reason: str = "") -> None:
        self.name, self.near, self.reason = name, tuple(near), reason
        hint = f": did you mean {' or '.join(map(repr, near))}?" if near else ""
        super().__init__(f"There is no task {shorten(name)}{reason and f' ({reason})'}{hint}")


class CommandFailed(LimpydJobsException):
    """A program that a job has run ended with another code than 0.

    Attributes:
        code: that one; negative for the signal that has ended it.
        output: what it has written to its standard error.
    """

    def __init__(self, command: str | Sequence[str], code: int, output: str = "") -> None:
        self.command, self.code, self.output = command, code, output
        super().__init__(f"{shorten(command)} ended with {code}: {shorten(output.strip())}")


class WrongArguments(LimpydJobsException, TypeError):
    """A task cannot be called with these arguments; nothing was written."""

    def __init__(self, task: str, signature: str, reason: str) -> None:
        self.task, self.signature, self.reason = task, signature, reason
        super().__init__(f"Wrong arguments for the task {task}{signature}: {reason}")


class NotSerializable(InvalidArgument):
    """An argument or a result has something in it that cannot be stored; nothing was written.

    Attributes:
        steps: the way to it: `("arguments", ".users", "[3]")`; `argument` is that as one text.
        kind: the name of its class.
    """

    def __init__(self, steps: tuple[str, ...], kind: str, reason: str) -> None:
        self.steps, self.kind, self.reason = steps, kind, reason
        self.argument, self.value, self.accepted = "".join(steps), kind, "something that can be stored"
        LimpydJobsException.__init__(self, f"{self.argument}: {kind} cannot be stored: {reason}")

    def without_step(self, place: int) -> NotSerializable:
        """The same error with a shorter way, for a container that the user did not write."""
        return NotSerializable((*self.steps[:place], *self.steps[place + 1 :]), self.kind, self.reason)


class TooLarge(InvalidArgument):
    """An argument or a result takes more room than it may; nothing was written.

    Attributes:
        size, limit: in bytes.
    """

    def __init__(self, argument: str, size: int, limit: int) -> None:
        self.argument, self.value, self.accepted = argument, size, f"{limit} bytes at most"
        self.size, self.limit = size, limit
        LimpydJobsException.__init__(self, f"{argument}: {size} bytes are too many, {limit} at most can be stored")


class DatabaseException(LimpydJobsException):
    """The Redis server cannot be used."""


class ServerTooOld(DatabaseException):
    """The Redis server lacks commands that the scripts need."""

    def __init__(self, found: str, needed: str) -> None:
        self.found, self.needed = found, needed
        super().__init__(f"limpyd_jobs needs redis-server >= {needed}, this one is {found}")


class EmbeddedServerError(DatabaseException):
    """The private server of an `embedded://` database cannot be started or reached."""


class JobNotInStatus(LimpydJobsException):
    """The transition does not start from the status that the job has; nothing was written."""

    def __init__(self, ident: str, status: str | None, transition: str) -> None:
        self.ident, self.status, self.transition = ident, status, transition
        super().__init__(f"Unable to {transition} {ident}: its status is {status!r}")


class JobChanged(JobNotInStatus):
    """The job is not as it was when somebody decided to act on it; nothing was written."""

    def __init__(self, ident: str, status: str | None, transition: str) -> None:
        super().__init__(ident, status, transition)
        self.args = (f"Unable to {transition} {ident}: it has changed since it was read, its status is {status!r}",)


class JobAlreadyQueued(LimpydJobsException):
    """Another job with the identifier of this one is queued, and one at most may be; nothing was written.

    Attributes:
        is_queued: False: the other one has ended, and its identifier is unique for longer.
    """

    def __init__(self, ident: str, queued_ident: str, is_queued: bool = True) -> None:
        self.ident, self.queued_ident, self.is_queued = ident, queued_ident, is_queued
        how = (
            "is queued with the same identifier" if is_queued else "has the same identifier, which is unique for longer"
        )
        super().__init__(f"Unable to queue {ident}: {queued_ident} {how}")


class JobAlreadyExists(LimpydJobsException, UniquenessError):
    """The primary key, or the value of a unique field, belongs to another job; nothing was written."""


class JobClassError(LimpydJobsException):
    """An ident names a class that cannot be imported or is not a Job."""

    def __init__(self, ident: str, reason: str) -> None:
        self.ident, self.reason = ident, reason
        super().__init__(f"Unable to find the job class of {shorten(ident)}: {reason}")


class JobNotFound(LimpydJobsException):
    """A job was looked for, by its ident, its primary key or its identifier, and there is none, or it could be several.

    Attributes:
        wanted: what was given.
    """

    def __init__(self, wanted: str, reason: str = "no ident, primary key or identifier of a job is like that") -> None:
        self.wanted, self.reason = wanted, reason
        super().__init__(f"No job found by {shorten(wanted)}: {reason}")


class JobFailed(LimpydJobsException):
    """The result of a job was asked for, and it failed.

    Attributes:
        type, message, traceback, code: of its last Error; None for what is not known, as when no Error was saved.
    """

    def __init__(
        self,
        ident: str,
        type: str | None = None,
        message: str | None = None,
        traceback: str | None = None,
        code: str | None = None,
    ) -> None:
        self.ident, self.type, self.message, self.traceback, self.code = ident, type, message, traceback, code
        known = ": ".join(text for text in (type, message) if text)
        super().__init__(f"{ident} failed" + (f" with {known}" if known else ", and no Error of it is saved"))


class JobCanceled(JobFailed):
    """The result of a job was asked for, and it was canceled.

    Attributes:
        reason: its `cancel_reason`; None when it has none.
    """

    def __init__(self, ident: str, reason: str | None) -> None:
        super().__init__(ident, type(self).__name__, reason)
        self.reason = reason
        self.args = (f"{ident} was canceled" + (f": {reason}" if reason not in (None, "canceled") else ""),)


class JobProcessDied(LimpydJobsException):
    """The process in which the job was isolated ended before the job did.

    Attributes:
        code: how it ended, as `subprocess.Popen.returncode` tells it: an exit code, or the number of a signal as a
            negative number; None when another part of the program has asked the system for it first.
    """

    def __init__(self, pid: int, code: int | None) -> None:
        self.pid, self.code = pid, code
        super().__init__(f"The process of the job {_describe_end(code)}")


class LeaseLost(LimpydJobsException):
    """The lease of the job lapsed and it was given back; this worker wrote nothing."""

    def __init__(self, ident: str) -> None:
        self.ident = ident
        super().__init__(f"The lease of {ident} is lost: its end is not recorded by this worker")


class NotDecodable(LimpydJobsException):
    """What is stored as an argument or a result is not what its serializer writes."""

    def __init__(self, text: str, reason: str) -> None:
        self.text, self.reason = shorten(text), reason
        super().__init__(f"Unable to decode {self.text}: {reason}")


class WaitTimeout(LimpydJobsException, TimeoutError):
    """Not all jobs that one waits for have ended in time.

    Attributes:
        missing: how many have not. count: of so many.
    """

    def __init__(self, missing: int, count: int) -> None:
        self.missing, self.count = missing, count
        super().__init__(f"{missing} of {count} jobs have not ended in time")


class WorkerLost(LimpydJobsException):
    """Each worker that ran the job died, or lost its lease; it is not tried again."""

    def __init__(self, ident: str, times: int) -> None:
        self.ident, self.times = ident, times
        super().__init__(f"{ident} is not given back any more: {times} times its worker died, or lost the lease")


class NoResult(LimpydJobsException):
    """The result of a job was asked for, and there is none: it has not ended, nothing was saved, or it expired."""

    def __init__(self, ident: str, reason: str) -> None:
        self.ident, self.reason = ident, reason
        super().__init__(f"There is no result of {ident}: {reason}")


class ResultNotStored(NoResult):
    """The job ended well, but what it answered could not be stored."""


class QueueDeleted(LimpydJobsException):
    """The worker of the job died, and the queue to give it back to was deleted."""

    def __init__(self, ident: str) -> None:
        self.ident = ident
        super().__init__(f"{ident} cannot be given back, as its worker died: its queue was deleted")


class ExecutionLost(LimpydJobsException):
    """The process that executed the job at once, in no queue, ended before the job did."""

    def __init__(self, ident: str) -> None:
        self.ident = ident
        super().__init__(f"{ident} was executed at once, and the process that did so has died")


class Retry(LimpydJobsException):
    """Raised by a job that wants to be tried again: `raise Retry("too many requests", delayed_for=60)`.

    While it is retried that is no error: no Error is saved, and `on_error` is not called. It becomes one when the tries
    are used up. Without one of the delays the backoff of the job holds.

    Args:
        reason: the message of the error, if it becomes one.
        delayed_for: from now, in seconds (int, float) or a timedelta; not with `delayed_until`.
        delayed_until: naive datetimes are UTC.
    Attributes:
        delayed_for: in seconds. delayed_until: as a naive UTC datetime.
    Raises:
        InvalidArgument: both delays are given, or one has a wrong type.
    """

    def __init__(
        self,
        reason: str = "",
        *,
        delayed_for: float | timedelta | None = None,
        delayed_until: datetime | None = None,
    ) -> None:
        if delayed_for is not None and delayed_until is not None:
            accepted = "given alone: delayed_until and delayed_for are exclusive"
            raise InvalidArgument("delayed_for", delayed_for, accepted)
        self.reason = reason
        self.delayed_for = None if delayed_for is None else _retry_seconds(delayed_for)
        self.delayed_until = None if delayed_until is None else _retry_datetime(delayed_until)
        super().__init__(str(reason) or "The job asked to be tried again")


LONGEST_RETRY_SECONDS = 36525 * 86400  # a century


def _retry_seconds(value: Any) -> float:
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    is_number = isinstance(seconds, (int, float)) and not isinstance(seconds, bool)
    if not is_number or not 0 <= seconds <= LONGEST_RETRY_SECONDS:
        raise InvalidArgument("delayed_for", value, "an int, a float or a timedelta object, 0 or more")
    return seconds


def _retry_datetime(value: Any) -> datetime:
    try:
        if isinstance(value, datetime):
            return value if value.tzinfo is None else value.astimezone(timezone.utc).replace(tzinfo=None)
    except OverflowError:  # a date that UTC has not
        pass
    raise InvalidArgument("delayed_until", value, "a datetime object")


class JobTimeout(BaseException):
    """The job has run for longer than its `job_timeout`, and is ended.

    It is no `Exception`, so that `except Exception` in a job does not swallow it; `finally` and `with` do their work.
    """

    def __init__(self, ident: str, seconds: float) -> None:
        self.ident, self.seconds = ident, seconds
        super().__init__(f"{ident} has run for longer than {seconds:g} seconds")

    def __reduce__(self) -> tuple[Any, ...]:
        return JobTimeout, (self.ident, self.seconds)


class WrongKeyType(LimpydJobsException):
    """Something of another type is in Redis under a key of ours; nothing was written."""

    def __init__(self, key: str) -> None:
        self.key = key
        super().__init__(f"The key {shorten(key)} cannot be used: Redis holds something of another type under it")


def _describe_end(code: int | None) -> str:
    if code is None:
        return "is gone"
    if code >= 0:
        return f"ended with exit code {code} before the job did"
    try:
        name = signal.Signals(-code).name
    except ValueError:  # a signal without a name, as most real-time signals
        name = "a signal"
    hint = ": was the memory full?" if -code == signal.SIGKILL else ""
    return f"was killed by {name} ({-code}){hint}"


def shorten(value: Any, limit: int = 80) -> str:
    """The representation of a value, short enough for one line of a message."""
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."
