"""The statuses of a job, and what may follow what."""

from __future__ import annotations

from enum import Enum


class Statuses(dict[str, str]):
    """The letters stored in `Job.status`, by name, as items and as attributes.

    STATUSES.WAITING             'w'
    STATUSES.by_value('w')       'WAITING'
    """

    WAITING = "w"
    DELAYED = "d"
    RUNNING = "r"
    SUCCESS = "s"
    ERROR = "e"
    CANCELED = "c"
    BLOCKED = "b"

    def __init__(self) -> None:
        super().__init__({name: value for name, value in vars(Statuses).items() if name.isupper()})

    def __getattr__(self, name: str) -> str:
        if name.startswith("__"):
            raise AttributeError(name)  # for what asks whether it is there: copy, inspect...
        return self[name]

    def by_value(self, value: str | None, default: str | None = None) -> str:
        """The name of a status.

        Raises:
            ValueError: nothing has this value, and no default is given.
        """
        for name, letter in self.items():
            if letter == value:
                return name
        if default is None:
            raise ValueError(value)
        return default


STATUSES = Statuses()
"""Which letter stands for which status: `STATUSES.SUCCESS`."""

ENDS = (STATUSES.SUCCESS, STATUSES.ERROR, STATUSES.CANCELED)  # of a job that is not queued any more


class Cancellation(str, Enum):
    """What became of a request to cancel a job."""

    CANCELED = "canceled"  # it did not run, and will not
    REQUESTED = "requested"  # a worker has it, and interrupts it if it can: no success, no retry; ERROR if it raises
    ENDED = "ended"  # it was too late


# From each status, those that a transition of ours leads to. `docs/states.md` draws it, the property test walks it.
FOLLOWERS: dict[str, frozenset[str]] = {
    STATUSES.WAITING: frozenset("wdrsce"),
    STATUSES.DELAYED: frozenset("wdce"),
    STATUSES.RUNNING: frozenset("wdsec"),
    STATUSES.SUCCESS: frozenset("wd"),
    STATUSES.ERROR: frozenset("wdrc"),
    STATUSES.CANCELED: frozenset("wde"),
    STATUSES.BLOCKED: frozenset("wdc"),
}
