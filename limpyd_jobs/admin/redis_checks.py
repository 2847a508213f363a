"""The checks of `doctor` that are about Redis itself. Each gives what it finds, and `ok` when all is well."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from statistics import median
from typing import Any

from redis.exceptions import ResponseError

from ..database import MINIMUM_VERSION
from ..wording import counted, size
from .patient import Finding, Patient

PINGS = 20
SLOW_TRIP_SECONDS = 0.005  # a worker makes a few for each job
VERY_SLOW_TRIP_SECONDS = 0.05
SLOW_LOG_ENTRIES = 128
LONG_COMMAND_SECONDS = 0.1  # in which nobody else is served
LARGEST_SKEW_SECONDS = 1.0
NEARLY_FULL = 0.75
FULL = 0.9


def version(patient: Patient) -> Iterator[Finding]:
    """Is it new enough?"""
    found = str(patient.info("server").get("redis_version"))
    parts = tuple(int(part) for part in found.split(".") if part.isdigit())
    if parts < MINIMUM_VERSION:
        wanted = ".".join(map(str, MINIMUM_VERSION))
        yield Finding("error", "version", f"Redis {found} is too old.", f"install Redis {wanted} or later")
    else:
        yield Finding("ok", "version", f"Redis {found}.")


def eviction(patient: Patient) -> Iterator[Finding]:
    """Does it keep all keys?"""
    policy = patient.info("memory").get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        level = "warning" if str(policy).startswith("volatile") else "error"
        text = f"maxmemory-policy is {policy}: when memory is full, Redis removes keys, and with them jobs."
        yield Finding(level, "eviction", text, "maxmemory-policy noeviction (CONFIG SET maxmemory-policy noeviction)")
    evicted = int(patient.info("stats").get("evicted_keys", 0))
    if evicted:
        text = f"{evicted:,} keys were evicted since Redis was started: jobs may be lost, or half of one."
        yield Finding("error", "eviction", text, "limpyd-jobs check --repair")
    if policy == "noeviction" and not evicted:
        yield Finding("ok", "eviction", "maxmemory-policy is noeviction, and no key was evicted.")


def persistence(patient: Patient) -> Iterator[Finding]:
    """Is everything there again after a crash?"""
    info = patient.info("persistence")
    failed = [name for name in LAST_WRITES if info.get(name, "ok") != "ok"]
    for name in failed:
        text = f"{LAST_WRITES[name]} has failed: what came later is not on the disk."
        yield Finding("error", "persistence", text, "look at the log of Redis: is the disk full, may it be written to?")
    if info.get("aof_enabled"):
        fsync = patient.config("appendfsync")
        if fsync == "no":
            text = "appendfsync is no: when the machine fails, what the system has not yet written is lost."
            yield Finding("info", "persistence", text, "appendfsync everysec (CONFIG SET appendfsync everysec)")
        elif not failed:
            yield Finding("ok", "persistence", f"appendonly is on{f', appendfsync is {fsync}' if fsync else ''}.")
        return
    snapshots = patient.config("save")
    if snapshots == "":
        text = "There is neither an append-only file nor a snapshot: all jobs are lost when Redis ends."
        yield Finding("error", "persistence", text, "appendonly yes (CONFIG SET appendonly yes)")
    else:
        since = f"the last snapshot{_age_of_snapshot(info)}"
        text = f"appendonly is off: what came after {since} is lost when Redis is killed."
        yield Finding("warning", "persistence", text, "appendonly yes (CONFIG SET appendonly yes)")


LAST_WRITES = {
    "aof_last_write_status": "The last write to the append-only file",
    "aof_last_bgrewrite_status": "The last rewrite of the append-only file",
    "rdb_last_bgsave_status": "The last snapshot",
}


def _age_of_snapshot(info: dict[str, Any]) -> str:
    seconds = time.time() - int(info.get("rdb_last_save_time", 0))
    return f", {seconds / 60:.0f} minutes ago," if seconds < 10**8 else ""


def memory(patient: Patient) -> Iterator[Finding]:
    """Is there room?"""
    info = patient.info("memory")
    used, most = int(info["used_memory"]), int(info.get("maxmemory", 0))
    if not most:
        total = int(info.get("total_system_memory", 0))
        text = f"{size(used)} are used, and maxmemory is not set: Redis may take all of the machine's {size(total)}."
        yield Finding("warning", "memory", text, "maxmemory 2gb (CONFIG SET maxmemory 2gb), or what the machine has")
        return
    text = f"{size(used)} of {size(most)} are used, {used / most:.0%}."
    if used / most >= NEARLY_FULL:
        level = "error" if used / most >= FULL else "warning"
        fix = "raise maxmemory, or keep less: --keep-success and --keep-errors of the workers, `limpyd-jobs purge`"
        yield Finding(level, "memory", f"{text} When it is full, no job can be added.", fix)
    else:
        yield Finding("ok", "memory", text)


def latency(patient: Patient) -> Iterator[Finding]:
    """How long does a round trip take?"""
    trip = median(_seconds_of_ping(patient.client) for _ in range(PINGS))
    text = f"A round trip takes {trip * 1000:.2f} ms (the median of {PINGS})."
    if trip < SLOW_TRIP_SECONDS:
        yield Finding("ok", "latency", text)
    else:
        level = "error" if trip >= VERY_SLOW_TRIP_SECONDS else "warning"
        fix = "bring workers and Redis nearer to each other; --prefetch and add_jobs make fewer round trips"
        yield Finding(level, "latency", f"{text} Each job costs one or two of them.", fix)


def _seconds_of_ping(client: Any) -> float:
    start = time.perf_counter()
    client.ping()
    return time.perf_counter() - start


def slow_commands(patient: Patient) -> Iterator[Finding]:
    """Did commands of ours hold up all others?"""
    marker = f"{patient.namespace}:"
    found = [entry for entry in patient.client.slowlog_get(SLOW_LOG_ENTRIES) if marker in _text(entry["command"])]
    if not found:
        yield Finding("ok", "slow commands", "None of ours is in SLOWLOG.")
        return
    slowest = max(found, key=lambda entry: entry["duration"])
    seconds = slowest["duration"] / 1_000_000
    named = f"the slowest took {seconds * 1000:.0f} ms: {_text(slowest['command'])[:80]}"
    text = f"{len(found)} of ours are in SLOWLOG, {named}"
    is_long = seconds >= LONG_COMMAND_SECONDS
    fix = "look at SLOWLOG GET, and whether the machine of Redis is busy or swaps" if is_long else None
    yield Finding("warning" if is_long else "info", "slow commands", text, fix)


def _text(command: str | bytes) -> str:
    return command.decode(errors="replace") if isinstance(command, bytes) else str(command)


def clock(patient: Patient) -> Iterator[Finding]:
    """Do the clocks here and there agree?"""
    before = time.time()
    seconds, micros = patient.client.time()
    here = (before + time.time()) / 2
    skew = seconds + micros / 1_000_000 - here
    if abs(skew) < LARGEST_SKEW_SECONDS:
        yield Finding("ok", "clock", f"The clock of Redis and the one here are {abs(skew) * 1000:.0f} ms apart.")
        return
    text = (
        f"The clock of Redis is {abs(skew):.1f} s {'ahead of' if skew > 0 else 'behind'} the one here:"
        " `added`, `start`, `end` and durations are wrong, and delayed jobs start at the wrong time."
    )
    yield Finding("warning", "clock", text, "run an NTP client (chronyd, systemd-timesyncd) on both machines")


def rights(patient: Patient) -> Iterator[Finding]:
    """May this user do what producers and workers do? Each is tried, on a key that is removed again."""
    key = f"{patient.namespace}:doctor-{os.urandom(8).hex()}"
    missing = list(_refusals(patient.client, key))
    for what, why in missing:
        fix = "give the user the rights in docs/deployment.md (ACL SETUSER)"
        yield Finding("error", "rights", f"{what} is refused: {why}", fix)
    if not missing:
        yield Finding("ok", "rights", "This user may do what producers and workers do.")


def _refusals(client: Any, key: str) -> Iterator[tuple[str, str]]:
    script = "redis.call('SET', KEYS[1], '1', 'EX', 10) redis.call('TIME') return 1"
    tries = {
        "running a script that writes": ("EVAL", script, 1, key),
        "loading a script": ("SCRIPT LOAD", "return 1"),
        "reading a key": ("GET", key),
        "removing a key": ("UNLINK", key),
        "finding keys": ("SCAN", 0, "COUNT", 1),
        "publishing the ends of jobs": ("PUBLISH", f"{key}:events", ""),
    }
    pipeline = client.pipeline(transaction=False)
    for command in tries.values():
        pipeline.execute_command(*command)
    for what, reply in zip(tries, pipeline.execute(raise_on_error=False), strict=True):
        if isinstance(reply, Exception):
            yield what, str(reply)
    try:
        with client.pubsub() as subscription:
            subscription.subscribe(f"{key}:events")
            subscription.get_message(timeout=5)
    except ResponseError as error:
        yield "hearing of the ends of jobs", str(error)


def connections(patient: Patient) -> Iterator[Finding]:
    """Are there enough?"""
    clients, stats = patient.info("clients"), patient.info("stats")
    used, most = int(clients.get("connected_clients", 0)), int(clients.get("maxclients", 0))
    if int(stats.get("rejected_connections", 0)):
        text = (
            f"{stats['rejected_connections']:,} connections were refused since Redis was started: maxclients is {most}."
        )
        yield Finding("warning", "connections", text, "raise maxclients (CONFIG SET maxclients 20000)")
    elif most and used / most >= NEARLY_FULL:
        text = f"{used:,} of {most:,} connections are used; a worker has up to three."
        yield Finding("warning", "connections", text, "raise maxclients (CONFIG SET maxclients 20000)")
    else:
        yield Finding("ok", "connections", f"{used:,}{f' of {most:,}' if most else ''} are used.")
    if patient.config("tcp-keepalive") == "0":
        text = "tcp-keepalive is 0: Redis keeps the connections of machines that are gone."
        yield Finding("info", "connections", text, "tcp-keepalive 60 (CONFIG SET tcp-keepalive 60)")


def role(patient: Patient) -> Iterator[Finding]:
    """Is it a master that takes writes?"""
    server, replication = patient.info("server"), patient.info("replication")
    mode = server.get("redis_mode", "standalone")
    if mode == "sentinel":
        yield Finding("error", "role", "This is a Sentinel, not a Redis with data.", "name the address of the master")
    elif replication.get("role") == "slave":
        master = f"{replication.get('master_host')}:{replication.get('master_port')}"
        yield Finding("error", "role", "This is a replica: it refuses writes.", f"name the master, {master}")
    elif mode == "cluster" and not ("{" in patient.namespace and "}" in patient.namespace):
        text = f"This is a node of a Cluster: the keys of the namespace {patient.namespace!r} are not in one slot."
        yield Finding("error", "role", text, 'namespace = "{jobs}" on the models: see docs/deployment.md')
    elif mode == "cluster":
        text = "This is a node of a Cluster: it must be the one that has the slot of the namespace."
        yield Finding("info", "role", text)
    else:
        replicas = int(replication.get("connected_slaves", 0))
        yield Finding("ok", "role", f"This is a master, with {counted(replicas, 'replica')}.")


CHECKS = (version, role, rights, eviction, persistence, memory, latency, slow_commands, clock, connections)
