"""The checks of `doctor` that are about jobs, queues and workers. Each gives what it finds; `ok`: all is well."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from ..exceptions import InvalidArgument
from ..utils import Keep, parse_keep, server_seconds
from ..version import EXACT_VERSION
from ..wording import counted, duration, size, utc
from .numbers import rates
from .operating import operations
from .patient import HISTORIES, Check, Finding, Patient, QueueSeen
from .pausing import paused
from .reading import JobKind, job_kinds

LONG_HISTORY = 10_000
VERY_LONG_HISTORY = 100_000
SAMPLE = 20  # jobs of a class that are weighed
LATE_SECONDS = 60.0  # after which somebody should have looked at a lapsed lease
LONG_PAUSE_DAYS = 1
SOON_DAYS = 30  # in which memory will be full
RATE_MINUTES = 60
NAMED = 5  # queues or workers in a sentence


def dead_leases(patient: Patient) -> Iterator[Finding]:
    """Are jobs of dead workers given back?"""
    leases = f"{patient.namespace}:leases"
    now = server_seconds(patient.client.time())
    late = int(patient.client.zcount(leases, "-inf", now - LATE_SECONDS))
    if not late:
        yield Finding(
            "ok", "leases", f"{counted(patient.client.zcard(leases), 'lease')}, none of a worker that is gone."
        )
        return
    [(ident, until)] = patient.client.zrange(leases, 0, 0, withscores=True)
    text = (
        f"{counted(late, 'job')} of workers that are gone must be given back, which any worker of this namespace"
        f" does; the lease of {ident} lapsed {duration(now - until)} ago."
    )
    fix = "start a worker" if not patient.workers else "look at the logs of the workers"
    yield Finding("error", "leases", text, fix)


def unheard_queues(patient: Patient) -> Iterator[Finding]:
    """Does somebody listen wherever jobs wait?"""
    names = {queue.name for queue in patient.queues if queue.queued}
    unheard = sorted(name for name in names if not patient.listeners_of(name))
    for name in unheard[:NAMED]:
        count = sum(queue.queued for queue in patient.queues if queue.name == name)
        text = f"{counted(count, 'job')} to be run in {name!r}, and no worker listens on it."
        yield Finding("error", "queues", text, f"limpyd-jobs-worker --queues={name}")
    if unheard[NAMED:]:
        text = f"{counted(len(unheard) - NAMED, 'more queue')} with jobs, and no worker."
        yield Finding("error", "queues", text, "limpyd-jobs status")
    if not unheard:
        yield Finding("ok", "queues", f"{counted(len(names), 'queue')} with jobs to be run, and workers for each.")


def paused_queues(patient: Patient) -> Iterator[Finding]:
    """Was one forgotten?"""
    found = paused(queue_model=patient.queue_model)
    now = server_seconds(patient.client.time())
    for name, pause in sorted(found.items()):
        by = f" by {pause.by}" if pause.by else ""
        reason = f": {pause.reason}" if pause.reason else ""
        is_old = pause.since < utc(now - LONG_PAUSE_DAYS * 86400)
        text = f"{name!r} is paused since {pause.since} UTC{by}{reason}."
        yield Finding("warning" if is_old else "info", "pauses", text, f"limpyd-jobs resume {name}")
    if not found:
        yield Finding("ok", "pauses", "No queue is paused.")


def versions(patient: Patient) -> Iterator[Finding]:
    """Do all workers run the same version?"""
    others = [worker for worker in patient.workers if worker.version != EXACT_VERSION]
    if not others:
        yield Finding("ok", "workers", f"{counted(len(patient.workers), 'worker')}, all of version {EXACT_VERSION}.")
        return
    named = ", ".join(f"{worker.host}:{worker.pid} ({worker.version})" for worker in others[:NAMED])
    many = f"{len(others)} of {counted(len(patient.workers), 'worker')}"
    text = f"Of another version than {EXACT_VERSION}: {many}, {named}."
    yield Finding("warning", "workers", text, "deploy, and start these workers again")


def operations_left(patient: Patient) -> Iterator[Finding]:
    """Was something that concerns many jobs interrupted?"""
    found = operations(queue_model=patient.queue_model)
    for one in found:
        text = (
            f"{one.kind} of {counted(one.count, 'job')}, started at {one.cut_off} UTC by {one.by}, has not ended:"
            f" {one.done:,} done."
        )
        command = one.kind.partition("_")[0]  # `purge` does `purge_errors`, too
        yield Finding("info", "operations", text, f"limpyd-jobs {command} --resume {one.id}")
    if not found:
        yield Finding("ok", "operations", "None was interrupted.")


# --- what is kept


def histories(patient: Patient) -> Iterator[Finding]:
    """Is something kept for ever?"""
    found = [
        (queue, name)
        for queue in patient.queues
        for name in HISTORIES
        if queue.lengths[name] >= LONG_HISTORY and _keep_of(patient, queue, name) is None
    ]
    for queue, name in sorted(found, key=lambda one: -one[0].lengths[one[1]])[:NAMED]:
        level = "warning" if queue.lengths[name] >= VERY_LONG_HISTORY else "info"
        kept = f"{counted(queue.lengths[name], 'job')} in `{name}`"
        text = f"{queue.name!r} (priority {queue.priority}) keeps everything, {kept}."
        yield Finding(level, "histories", text, f"--keep-{name}=1000 (or 7d) for its workers")
    if not found:
        yield Finding("ok", "histories", "No long history is kept for ever.")


def _keep_of(patient: Patient, queue: QueueSeen, history: str) -> Keep | None:
    """What is kept of a history, as the queue says, or else the workers that listen on it; None: everything."""
    name = f"keep_{history}"
    said = [queue.keep[history], *(worker.options.get(name) for worker in patient.listeners_of(queue.name))]
    for value in said:
        if value not in (None, ""):
            try:
                return timedelta(seconds=value) if isinstance(value, float) else parse_keep(name, value)
            except InvalidArgument:  # as workers do, who say so
                continue
    return None


def records(patient: Patient) -> Iterator[Finding]:
    """How much memory does a job take?"""
    weights = _weights(patient)
    if not weights:
        yield Finding("info", "records", "There are no jobs to be weighed.")
    for one in sorted(weights, key=lambda one: -one.count * one.each)[:NAMED]:
        total = size(one.count * one.each)
        text = f"{counted(one.count, 'record')} of {one.model_repr}: about {size(one.each)} each, {total} in all."
        yield Finding("info", "records", text)


def outlook(patient: Patient) -> Iterator[Finding]:
    """How much will be kept, and when is memory full?"""
    each = _mean_weight(_weights(patient))
    seen = rates(RATE_MINUTES, queue_model=patient.queue_model)
    growing, bounded = 0.0, 0.0
    for name in sorted({queue.name for queue in patient.queues}):
        rate = seen[name].rate_out if name in seen else 0.0
        kept = _kept_of_name(patient, name, rate)
        growing, bounded = (growing + rate, bounded) if kept is None else (growing, bounded + kept)
    info = patient.info("memory")
    most = int(info.get("maxmemory", 0)) or int(info.get("total_system_memory", 0))
    room = most - int(info["used_memory"])
    if not growing or not each:
        text = f"At the rates of the last hour about {bounded:,.0f} jobs will be kept, {size(bounded * each)}."
        yield Finding("ok", "retention", text)
        return
    days = max(room, 0) / (growing * each) / 86400
    text = (
        f"About {growing:.2g} jobs a second are kept for ever, of {size(each)} each:"
        f" the {size(most)} of memory are full in about {_days(days)}."
    )
    fix = "--keep-success and --keep-errors for the workers, or keep_success and keep_errors on classes and queues"
    yield Finding("warning" if days < SOON_DAYS else "info", "retention", text, fix)


def _days(days: float) -> str:
    return f"{days * 24:.0f} hours" if days < 2 else f"{days:,.0f} days" if days < 3650 else "more than ten years"


def _kept_of_name(patient: Patient, name: str, rate: float) -> float | None:
    """How many ended jobs the queues of a name will hold when so many end in a second; None: ever more.

    All that end are taken to end well: few fail where things go well.
    """
    kept = 0.0
    for queue in patient.queues:
        if queue.name != name:
            continue
        keep = _keep_of(patient, queue, "success")
        if keep is None:
            return None
        kept = max(kept, rate * keep.total_seconds()) if isinstance(keep, timedelta) else kept + keep
    return kept


@dataclass(frozen=True)
class Weight:
    """What the jobs of a class take: how many there are, and the bytes of each, with its entries in indexes."""

    model_repr: str
    count: int
    each: float


def _weights(patient: Patient) -> list[Weight]:
    weights = (_weight(patient.client, kind) for kind in job_kinds(patient.queue_model))
    return [weight for weight in weights if weight is not None]


def _weight(client: Any, kind: JobKind) -> Weight | None:
    """Some records are weighed; of the sets that index them, the part of one member."""
    collection, names = f"{kind.key}:collection", list(kind.sets)
    pks = client.srandmember(collection, SAMPLE)
    if not pks:
        return None
    pipeline = client.pipeline(transaction=False)
    for pk in pks:
        pipeline.memory_usage(kind.hash_key(pk))
        pipeline.hmget(kind.hash_key(pk), names) if names else pipeline.echo("")
    pipeline.memory_usage(collection).scard(collection)
    *replies, collection_bytes, count = pipeline.execute()
    sizes, values = replies[::2], replies[1::2]
    sets = [
        f"{kind.sets[name]}{value}"
        for row in values
        for name, value in zip(names, row, strict=False)  # '' where there are no names
        if value is not None
    ]
    shares = sum(_shares(client, sets))
    total = sum(one or 0 for one in sizes) + shares
    return Weight(kind.name, count, total / len(pks) + (collection_bytes or 0) / max(count, 1))


def _shares(client: Any, keys: list[str]) -> Iterator[float]:
    """What one member of each set takes."""
    pipeline = client.pipeline(transaction=False)
    for key in keys:
        pipeline.memory_usage(key).scard(key)
    replies = pipeline.execute(raise_on_error=False)
    for taken, count in zip(replies[::2], replies[1::2], strict=True):
        if isinstance(taken, int) and isinstance(count, int) and count:
            yield taken / count


def _mean_weight(weights: list[Weight]) -> float:
    count = sum(weight.count for weight in weights)
    return sum(weight.count * weight.each for weight in weights) / count if count else 0.0


CHECKS: tuple[Check, ...] = (
    dead_leases,
    unheard_queues,
    paused_queues,
    versions,
    operations_left,
    histories,
    records,
    outlook,
)
