"""How much of what has ended is kept.

A queue has two histories, the lists `success` and `errors`. When a job is added to one that is to be kept to a number
or for a time, what is past that is removed, some entries at a time: an entry of `success` or of `errors` with the
record of its job, if that has not ended again since; an entry of `errors` also with its Error.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from redis.exceptions import ResponseError

from .. import recipes, transitions
from ..database import is_outage
from ..exceptions import InvalidArgument, JobClassError
from ..models import Job, has_plain_error_indexes, printable
from ..statuses import STATUSES
from ..transitions import History, Past
from ..utils import Keep, parse_keep, utcnow

MANY = 100_000  # entries that are kept because nobody said otherwise, before there is a warning
BATCH = 100  # entries that are looked at in one step
LARGEST_SLACK = 100  # how far a history may be above its number, so that a step is worth its round trips
BUSY_SECONDS = 1.0  # between two looks at a history that is kept for a time, while jobs end
IDLE_SECONDS = 60.0  # and while none does

STATUS_OF = {"success": STATUSES.SUCCESS, "errors": STATUSES.ERROR}


@dataclass
class Watch:
    """A history that has something to be removed, or will have: when to look, by the monotonic clock."""

    keep: Keep
    look_at: float
    looked_at: float = float("-inf")


@dataclass(frozen=True)
class Entry:
    """An entry of a history, as it was read.

    Attributes:
        model: the class of the job, None when it cannot be had.
        values: of the job, by field; None when there is no record.
        error_pk: of its Error, '' when there is none; `error_values` are its fields.
    """

    ident: str
    model: Any
    values: dict[str, str | None] | None
    error_pk: str
    error_values: dict[str, str | None]

    @property
    def pk(self) -> str:
        return self.ident.partition(":")[2]


class Retention:
    """Keeps the histories of the queues of a worker as short as they should be.

    Args:
        keep: how much is kept of `success` and `errors` where the queue does not say; None for everything.
        log: called with a line and a level.
    """

    def __init__(
        self, queue_model: Any, error_model: Any, keep: Mapping[str, Keep | None], log: Callable[[str, str], None]
    ) -> None:
        self._queue_model, self._error_model, self._keep, self._log = queue_model, error_model, keep, log
        self._watches: dict[tuple[str, str], Watch] = {}
        self._warned: set[tuple[str, str]] = set()

    def note(self, queue_key: str, name: str, history: History) -> None:
        """A job was added to a history."""
        place = (queue_key, name)
        if history.length == -1:
            self._warn(place, f"{queue_key}:{name} is not a list: the history of this queue is not written", "error")
        if history.length < 0:
            return
        keep = self._keep_of(place, history.keep)
        if keep is None:
            if history.length > MANY:
                self._warn(
                    place, f"{queue_key}:{name} holds more than {MANY:,} jobs: set keep_{name} to remove old ones"
                )
            return
        now = time.monotonic()
        watch = self._watches.get(place)
        if isinstance(keep, int):
            if history.length > keep + min(keep // 10, LARGEST_SLACK):
                self._watches[place] = Watch(keep, now)
        elif watch is None or watch.keep != keep:
            self._watches[place] = Watch(keep, now)
        else:
            watch.look_at = min(watch.look_at, watch.looked_at + BUSY_SECONDS)

    def _keep_of(self, place: tuple[str, str], text: str) -> Keep | None:
        try:
            return parse_keep(f"keep_{place[1]}", text) if text else self._keep[place[1]]
        except InvalidArgument as error:
            self._warn(place, f"{place[0]} keeps everything: {error}", "error")
            return None

    def _warn(self, place: tuple[str, str], message: str, level: str = "warning") -> None:
        if place not in self._warned:
            self._warned.add(place)
            self._log(message, level)

    @property
    def is_due(self) -> bool:
        """Is there something to remove, or to look at?"""
        if not self._watches:
            return False
        now = time.monotonic()
        return any(watch.look_at <= now for watch in self._watches.values())

    def trim(self) -> None:
        """Remove some of what is past, where that is due."""
        now = time.monotonic()
        for place, watch in list(self._watches.items()):
            if watch.look_at > now:
                continue
            has_more = self._try_to_trim(place, watch.keep)
            if has_more:
                watch.looked_at, watch.look_at = now, now
            elif isinstance(watch.keep, int):
                del self._watches[place]
            else:
                watch.looked_at, watch.look_at = now, now + IDLE_SECONDS

    def _try_to_trim(self, place: tuple[str, str], keep: Keep) -> bool:
        try:
            return self._trim_history(*place, keep)
        except (ResponseError, ValueError) as error:  # ValueError: UnicodeError, too
            if is_outage(error):
                raise
            self._warn(place, f"{':'.join(place)} cannot be shortened: {error}", "error")
            return False

    def _trim_history(self, queue_key: str, name: str, keep: Keep) -> bool:
        """Remove the past entries among the oldest ones; answers whether there may be more."""
        client = self._queue_model.get_connection()
        pipeline = client.pipeline(transaction=False)
        pipeline.llen(f"{queue_key}:{name}").lrange(f"{queue_key}:{name}", 0, BATCH - 1)
        length, idents = pipeline.execute()
        if isinstance(keep, int):
            idents = idents[: max(length - keep, 0)]
        entries = self._until_unknown((queue_key, name), self._read(name, idents))
        if isinstance(keep, timedelta):
            entries = entries[: _count_past(entries, utcnow() - keep)]
        if not entries:
            return False
        past = [self._past(queue_key, name, entry) for entry in entries]
        call = transitions.purge(self._queue_model.namespace or "", queue_key, name, past)
        count, kept = transitions.send(client, call)
        for entry, one in list(zip(entries, past, strict=True))[:count]:
            self._repair_indexes(entry, one, is_kept=entry.ident in kept)
        return count == BATCH or (isinstance(keep, int) and count < len(entries))

    def _until_unknown(self, place: tuple[str, str], entries: list[Entry]) -> list[Entry]:
        """The oldest entries, up to the first one whose record is there, and whose class this process cannot have."""
        for position, entry in enumerate(entries):
            if entry.model is None and self._is_registered(entry.ident):
                self._warn(place, f"{':'.join(place)} is not shortened: the class of {entry.ident} cannot be had here")
                return entries[:position]
        return entries

    def _is_registered(self, ident: str) -> bool:
        namespace = self._queue_model.namespace or ""
        model_repr = ident.partition(":")[0].encode("utf-8", "surrogateescape")
        return bool(self._queue_model.get_connection().hexists(f"{namespace}:models", model_repr))

    # --- Reading

    def _read(self, name: str, idents: list[str]) -> list[Entry]:
        models = {ident: class_of(ident) for ident in idents}
        found = read_jobs(models, self._queue_model.get_connection())
        errors = self._read_errors(idents) if name == "errors" else {}
        seen: Counter[str] = Counter()
        entries = []
        for ident in idents:
            of_job = errors.get(ident, [])
            pk, values = of_job[seen[ident]] if seen[ident] < len(of_job) else ("", {})
            seen[ident] += 1
            entries.append(Entry(ident, models[ident], found[ident], pk, values))
        return entries

    def _read_errors(self, idents: list[str]) -> dict[str, list[tuple[str, dict[str, str | None]]]]:
        """The Errors of each job, oldest first: as many as it has entries here."""
        model = self._error_model
        if not has_plain_error_indexes(model):
            self._warn((model._name, ""), errors_stay(model))
            return {}
        counts = Counter(idents)
        pks = {ident: found[: counts[ident]] for ident, found in pks_of_errors(model, counts).items()}
        return read_errors(model, pks)

    # --- Removing

    def _past(self, queue_key: str, name: str, entry: Entry) -> Past:
        """What goes with an entry."""
        errors = []
        if entry.error_pk:
            errors.append(recipes.removal(self._error_model, entry.error_pk, entry.error_values))
        values = entry.values
        if values is None or not _goes_with_its_entry(queue_key, name, values):
            return Past(entry.ident, None, errors)
        job = {
            **recipes.removal(entry.model, entry.pk, values),
            "identifier": values.get("identifier"),
            "may_repeat": values["tries"] not in (None, "0", "1"),
        }
        return Past(entry.ident, job, errors, values)

    def _repair_indexes(self, entry: Entry, past: Past, is_kept: bool) -> None:
        """Bring the indexes that no script knows in step with what was removed."""
        removed = [(self._error_model, entry.error_pk, entry.error_values)] if entry.error_pk else []
        if past.job is not None and not is_kept:
            removed.append((entry.model, entry.pk, entry.values or {}))
        for record in removed:
            repair_removed(*record)


def errors_stay(model: Any) -> str:
    """What is said of a model of errors in which those of a job cannot be found."""
    return f"The errors of {model.__name__} stay: its indexes do not tell those of a job"


def pks_of_errors(model: Any, idents: Iterable[str]) -> dict[str, list[str]]:
    """The primary keys of the Errors of each job, oldest first."""
    named = [ident for ident in idents if ":" in ident]
    pipeline = model.get_connection().pipeline(transaction=False)
    for ident in named:
        parts = zip(("job_model_repr", "job_pk"), ident.split(":", 1), strict=True)
        pipeline.sinter([model.get_field(name).get_index().get_storage_key(printable(value)) for name, value in parts])
    found = zip(named, pipeline.execute(), strict=True)
    return {ident: sorted(pks, key=lambda pk: (len(pk), pk)) for ident, pks in found}


def read_errors(model: Any, pks: Mapping[str, list[str]]) -> dict[str, list[tuple[str, dict[str, str | None]]]]:
    """Errors by the ident of their job: the primary key and the fields that decide, of each."""
    pipeline = model.get_connection().pipeline(transaction=False)
    for found in pks.values():
        for pk in found:
            pipeline.hmget(f"{model._name}:{pk}:hash", _names(model))
    replies = iter(pipeline.execute())
    return {
        ident: [(pk, dict(zip(_names(model), next(replies), strict=True))) for pk in found]
        for ident, found in pks.items()
    }


def read_jobs(models: Mapping[str, Any], client: Any) -> dict[str, dict[str, str | None] | None]:
    """The fields that decide of jobs, by ident; None: there is no record, or none that can be read.

    Args:
        models: the class of each, None when it cannot be had.
    """
    pipeline = client.pipeline(transaction=False)
    for ident, model in models.items():
        if model is not None:
            pipeline.hmget(f"{model._name}:{ident.partition(':')[2]}:hash", _names(model))
    replies = iter(pipeline.execute(raise_on_error=False))  # an error: the record is not a hash
    return {ident: _values(model, next(replies)) if model else None for ident, model in models.items()}


def repair_removed(model: Any, pk: str, values: Mapping[str, str | None]) -> None:
    """Bring the indexes that no script knows in step with the removal of a record."""
    for field, value in values.items():
        if value is not None and recipes.has_foreign_index(model, field):
            recipes.repair_index(model, pk, field, (value,))


def _goes_with_its_entry(queue_key: str, name: str, values: Mapping[str, str | None]) -> bool:
    """Has a job ended so, in this queue? Then its record goes with its last entry."""
    return values["status"] == STATUS_OF[name] and not values["queued"] and values["queue_key"] in (None, queue_key)


def class_of(ident: str) -> Any:
    """The class of a job; None when it cannot be had."""
    try:
        return Job.class_of(ident)
    except JobClassError:
        return None


NEEDED = ("status", "end", "queued", "queue_key", "tries", "identifier")


def _names(model: Any) -> list[str]:
    """The fields that decide, or have an index."""
    return recipes.indexed_names(model, NEEDED if issubclass(model, Job) else ("date_time",))


def _values(model: Any, reply: list[str | None] | Exception) -> dict[str, str | None] | None:
    if isinstance(reply, Exception) or not any(reply):
        return None
    return dict(zip(_names(model), reply, strict=True))


def _count_past(entries: list[Entry], before: datetime) -> int:
    """How many of the oldest entries are past: up to the last one that is, as they are in the order of their time."""
    past = [position for position, entry in enumerate(entries) if _is_past(entry, before)]
    return past[-1] + 1 if past else 0


def _is_past(entry: Entry, before: datetime) -> bool:
    """Is this known to be past? Of an entry of `errors` its Error says when it was made, else the end of its job."""
    if entry.error_values:
        return _is_before(entry.error_values["date_time"], before)
    return entry.values is None or _is_before(entry.values["end"], before)


def _is_before(text: str | None, moment: datetime) -> bool:
    """Is a date, as fields hold it, before a moment? What is no date is not."""
    return text is not None and text[:1].isdecimal() and text < str(moment)
