"""Why a job is parked: the limits that it has, and who keeps it from starting. See docs/limits.md."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ..wording import counted, duration
from .causes import Cause, ago, named, queue_evidence
from .leases import worker_of
from .sight import Sight, Surroundings

HOLDERS_LOOKED_AT = 10
LOOK_SECONDS = 30  # after which parked jobs are looked at again, at the latest


def what_limits(around: Surroundings, sight: Sight) -> Cause:
    """Which limit does not let a parked job start, and who holds it."""
    key = str(sight.limit.get("key"))
    limits = sight.limit.get("limits") or {}
    before = around.client.zrank(f"{_limit_key(around, key)}:parked", _parked_name(sight))
    evidence = {**queue_evidence(sight), "limit_key": key, "parked_before": before}
    most, rate = limits.get("most"), limits.get("rate")
    if most:
        held = int(around.client.zcard(f"{_limit_key(around, key)}:held"))
        if held >= most:
            return _limit_full(around, sight, key, int(most), held, evidence)
    if rate:
        wait = _wait_for_rate(around, key, int(rate[0]), float(rate[1]), sight.now)
        if wait > 0:
            return _rate_used_up(key, rate, wait, before or 0, evidence)
    clause = f"may start by its limit {key!r}, and is brought back to its queue within {LOOK_SECONDS} seconds"
    return Cause("limit", clause, evidence, float(LOOK_SECONDS))


def _limit_key(around: Surroundings, key: str) -> str:
    return f"{around.namespace}:limit:{key}"


def _limit_full(around: Surroundings, sight: Sight, key: str, most: int, held: int, evidence: dict[str, Any]) -> Cause:
    idents = around.client.zrange(f"{_limit_key(around, key)}:held", 0, HOLDERS_LOOKED_AT - 1)
    holders = list(_holders(around, idents))
    who = named([_name_holder(holder, sight.now) for holder in holders], held)
    before = evidence["parked_before"]
    behind = f", behind {counted(before, 'job')} that came before it" if before else ""
    clause = f"waits for room under the limit {key!r}{behind}: {most} may run at the same time, and {who} do"
    return Cause("limit", clause, {**evidence, "max_concurrency": most, "held": held, "holders": holders})


def _holders(around: Surroundings, idents: list[str]) -> Iterator[dict[str, Any]]:
    """Who holds a place: the job, its worker, and since when it runs."""
    tokens = around.client.hmget(f"{around.namespace}:claims", idents) if idents else []
    records = around.records(idents)
    for ident, token in zip(idents, tokens, strict=True):
        record = records[ident]
        worker = around.workers.get(worker_of(token))
        yield {
            "ident": ident,
            "worker": f"{worker.host}:{worker.pid}" if worker else None,
            "since": record.start if record else None,
        }


def _wait_for_rate(around: Surroundings, key: str, count: int, seconds: float, now: float) -> float:
    """In how many seconds the next job may start; 0 for now."""
    starts = around.client.zrevrange(f"{_limit_key(around, key)}:rate", count - 1, count - 1, withscores=True)
    return max(float(starts[0][1]) + seconds - now, 0.0) if starts else 0.0


def _rate_used_up(key: str, rate: Any, wait: float, before: int, evidence: dict[str, Any]) -> Cause:
    count, seconds = int(rate[0]), float(rate[1])
    behind = f", behind {counted(before, 'job')} that came before it" if before else ""
    clause = (
        f"waits for the rate of {key!r}{behind}: it allows {counted(count, 'start')} in {duration(seconds)},"
        f" and the next one in {duration(wait)}"
    )
    starts_in = wait + before // count * seconds
    return Cause("rate", clause, {**evidence, "rate_limit": [count, seconds], "next_in": wait}, starts_in)


def _parked_name(sight: Sight) -> str:
    """As the sorted set of parked jobs has it, see _common.lua."""
    return f"{int(float(sight.limit.get('number') or 0)):016d} {sight.ident}"


def _name_holder(holder: Mapping[str, Any], now: float) -> str:
    facts = [holder["worker"], ago(holder["since"], now) if holder["since"] else None]
    known = ", ".join(fact for fact in facts if fact)
    return f"{holder['ident']} ({known})" if known else str(holder["ident"])
