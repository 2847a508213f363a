"""Every error of the package, in one tree.

    LimpydJobsException
    ├── ConfigurationException      a worker or a model is set up in a way that cannot work
    ├── InvalidArgument             (also ValueError) a value was given that is not accepted
    │   └── InvalidDatabaseURL      a database was named in a way that cannot be read
    ├── DatabaseException           the server cannot be used
    │   ├── ServerTooOld            it runs, but lacks what our scripts need
    │   └── EmbeddedServerError     the private server cannot be started
    ├── JobNotInStatus              the transition does not start from the job's status
    ├── JobAlreadyQueued            another job with the identifier is queued
    ├── JobAlreadyExists            (also limpyd's UniquenessError) the primary key or a unique value is taken
    ├── JobClassError               an ident names a class that cannot be used
    ├── JobProcessDied              the process in which the job was isolated ended before the job
    ├── LeaseLost                   the job belongs to another worker by now
    ├── QueueDeleted                the job was to be given back to a queue that is gone
    ├── WorkerLost                  the job was given back too often: each worker that ran it was lost
    └── WrongKeyType                something else is in Redis under a key of ours

What concerns a missing record stays limpyd's own `DoesNotExist`.
"""

from __future__ import annotations

import signal
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


class JobAlreadyQueued(LimpydJobsException):
    """Another job with the identifier of this one is queued, and one at most may be; nothing was written."""

    def __init__(self, ident: str, queued_ident: str) -> None:
        self.ident, self.queued_ident = ident, queued_ident
        super().__init__(f"Unable to queue {ident}: {queued_ident} is queued with the same identifier")


class JobAlreadyExists(LimpydJobsException, UniquenessError):
    """The primary key, or the value of a unique field, belongs to another job; nothing was written."""


class JobClassError(LimpydJobsException):
    """An ident names a class that cannot be imported or is not a Job."""

    def __init__(self, ident: str, reason: str) -> None:
        self.ident, self.reason = ident, reason
        super().__init__(f"Unable to find the job class of {shorten(ident)}: {reason}")


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


class WorkerLost(LimpydJobsException):
    """Each worker that ran the job died, or lost its lease; it is not tried again."""

    def __init__(self, ident: str, times: int) -> None:
        self.ident, self.times = ident, times
        super().__init__(f"{ident} is not given back any more: {times} times its worker died, or lost the lease")


class QueueDeleted(LimpydJobsException):
    """The worker of the job died, and the queue to give it back to was deleted."""

    def __init__(self, ident: str) -> None:
        self.ident = ident
        super().__init__(f"{ident} cannot be given back, as its worker died: its queue was deleted")


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
