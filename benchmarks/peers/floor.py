"""The floor: what the writes of limpyd_jobs cost when nothing else is done.

Scripts with literal keys write what `Job.add_job` and a plain worker write about a job, through a bare redis-py client:
one call to add a job, and one to end a job and to take the next. No check but that for a queued identifier, no class,
no hook, no log. No library that keeps these records through redis-py can be faster without sending less often.

`check` compares what is in Redis afterwards with what limpyd_jobs leaves there. What it does not compare: times,
tokens, the registry of classes, and the doorbell, which says nothing about jobs.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from time import perf_counter, sleep
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import probe
import redis

BULK = 500
DOORBELL = "jobs:doorbell:queue:bench"

# ARGV: added identifier...
# Answers how many were new.
ADD = """
local new = 0
for position = 2, #ARGV do
  local identifier = ARGV[position]
  if #redis.call('SINTER', 'jobs:job:identifier:' .. identifier, 'jobs:job:queued:1') == 0 then
    local pk = redis.call('INCR', 'jobs:job:max_pk')
    redis.call('SADD', 'jobs:job:collection', pk)
    redis.call('HSET', 'jobs:job:' .. pk .. ':hash', 'identifier', identifier, 'priority', '0', 'added', ARGV[1],
      'status', 'w', 'queued', '1', 'queue_key', 'jobs:queue:1')
    redis.call('SADD', 'jobs:job:identifier:' .. identifier, pk)
    redis.call('SADD', 'jobs:job:priority:0', pk)
    redis.call('SADD', 'jobs:job:status:w', pk)
    redis.call('SADD', 'jobs:job:queued:1', pk)
    redis.call('RPUSH', 'jobs:queue:1:waiting', 'limpyd_jobs.models.Job:' .. pk)
    new = new + 1
  end
end
redis.call('ZADD', 'jobs:ready:queue:bench', 0, '1')
if redis.call('LLEN', 'jobs:doorbell:queue:bench') < 100 then redis.call('RPUSH', 'jobs:doorbell:queue:bench', '1') end
return new
"""

# ARGV: now worker token previous_pk previous_token; without a previous job, '' and ''.
# Answers the primary key of the job that is to be run, or nil.
NEXT = """
local now, worker, token, pk, previous = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
if pk ~= '' then
  local ident, hash = 'limpyd_jobs.models.Job:' .. pk, 'jobs:job:' .. pk .. ':hash'
  redis.call('SREM', 'jobs:job:status:r', pk)
  redis.call('SADD', 'jobs:job:status:s', pk)
  redis.call('SREM', 'jobs:job:queued:1', pk)
  redis.call('HSET', hash, 'status', 's', 'end', now)
  redis.call('HDEL', hash, 'queued')
  redis.call('ZREM', 'jobs:leases', ident)
  redis.call('HDEL', 'jobs:claims', ident, previous)
  redis.call('RPUSH', 'jobs:queue:1:success', ident)
  redis.call('SET', 'jobs:done:' .. worker, previous .. '/finish', 'EX', 3600)
end
local ident = redis.call('LPOP', 'jobs:queue:1:waiting')
if not ident then
  redis.call('DEL', 'jobs:doorbell:queue:bench')
  return nil
end
pk = string.sub(ident, 24)
redis.call('ZADD', 'jobs:leases', redis.call('TIME')[1] + 30, ident)
redis.call('HSET', 'jobs:claims', ident, token, token, ident)
redis.call('SREM', 'jobs:job:status:w', pk)
redis.call('SADD', 'jobs:job:status:r', pk)
redis.call('HSET', 'jobs:job:' .. pk .. ':hash', 'status', 'r', 'start', now, 'tries', '1')
return pk
"""

client = redis.Redis.from_url(probe.URL, decode_responses=True)


def describe() -> dict[str, Any]:
    """What the table says about the floor."""
    return {
        "name": "floor: only the writes",
        "version": f"redis-py {redis.__version__}",
        "configuration": "no library: from a bare loop, a script call a job that makes the same writes as limpyd_jobs "
        f"to literal keys; {BULK} jobs a call in bulk",
        "guarantees": {
            "ack": "with the claim of the next job",
            "lease": "written, but nobody renews or looks at it",
            "record": "the same as limpyd_jobs'",
            "result": "the same as limpyd_jobs'",
        },
    }


def now() -> str:
    """The time, as the fields of a job have it."""
    return str(datetime.now(timezone.utc).replace(tzinfo=None))


def prepare() -> None:
    """Write the queue, which limpyd_jobs does with the first job."""
    client.hset("jobs:queue:1:hash", mapping={"name": "bench", "priority": "0"})
    for key in ("jobs:queue:collection", "jobs:queue:name:bench", "jobs:queue:priority:0"):
        client.sadd(key, "1")
    client.set("jobs:queue:max_pk", "1")
    client.hset("jobs:queues:queue:bench", "0", "1")


def add(n: int, first: int = 0) -> float:
    """Add `n` jobs, one call each, with identifiers from `first` on."""
    prepare()
    sha = client.script_load(ADD)
    begin = perf_counter()
    for i in range(first, first + n):
        client.execute_command("EVALSHA", sha, 0, now(), i)
    return perf_counter() - begin


def bulk(n: int) -> float:
    """Add `n` jobs, many in one call."""
    prepare()
    sha = client.script_load(ADD)
    begin = perf_counter()
    for start in range(0, n, BULK):
        client.execute_command("EVALSHA", sha, 0, now(), *range(start, min(start + BULK, n)))
    return perf_counter() - begin


def work() -> None:
    """Run one worker process until it is killed."""
    run(lambda pk: probe.mark(int(pk) - 1))


def run(job: Callable[[str], None], jobs: int = sys.maxsize) -> None:
    """Run jobs: one call each, in which the former job ends, too."""
    sha = client.script_load(NEXT)
    worker = os.urandom(8).hex()
    pk, token, done, number = "", "", 0, 0
    while True:
        number += 1
        previous, token = token, f"{worker}-{number}"
        pk = client.execute_command("EVALSHA", sha, 0, now(), worker, token, pk, previous) or ""
        if not pk:
            if done >= jobs:
                return
            client.blpop(DOORBELL, 1)
            continue
        job(pk)
        done += 1


def latency(n: int, interval: float) -> None:
    """Add a job each `interval` seconds."""
    prepare()
    sha = client.script_load(ADD)
    for i in range(n):
        probe.added(i)
        client.execute_command("EVALSHA", sha, 0, now(), i)
        sleep(interval)


# --- the proof that it writes what limpyd_jobs writes


def check() -> str:
    """What differs after jobs were added or run by limpyd_jobs and here; '' when nothing does. Empties the database."""
    from limpyd_jobs import Job, Worker
    from limpyd_jobs.models import BaseJobsModel

    BaseJobsModel.database.connect(probe.URL)
    client.flushdb()
    for identifier in ("0", "1"):
        Job.add_job(identifier, queue_name="bench")
    their_add = dump()
    Worker("bench", callback=lambda job, queue: None, max_loops=2).run()
    their_run = dump()
    for adding in (add, bulk):
        client.flushdb()
        adding(2)
        difference = compare(f"after {adding.__name__}", their_add, dump())
        if difference:
            return difference
    run(lambda pk: None, jobs=2)
    return compare("after run", their_run, dump())


def compare(when: str, theirs: dict[str, Any], ours: dict[str, Any]) -> str:
    """The first key that differs, with both values; '' when none does."""
    for key in sorted({*theirs, *ours}):
        if theirs.get(key) != ours.get(key):
            return f"{when}, {key}: limpyd_jobs has {theirs.get(key)}, the floor {ours.get(key)}"
    return ""


def dump() -> dict[str, Any]:
    """What is in Redis, but for what differs each time."""
    read: dict[str, Callable[[str], Any]] = {
        "hash": lambda key: {
            name: "a time" if name in ("added", "start", "end") else value
            for name, value in client.hgetall(key).items()
        },
        "set": client.smembers,
        "zset": lambda key: client.zrange(key, 0, -1),
        "list": lambda key: client.lrange(key, 0, -1),
        "string": client.get,
    }
    found: dict[str, Any] = {}
    for key in client.scan_iter():
        if key == "jobs:models" or key.startswith("jobs:doorbell:"):
            continue
        if key.startswith("jobs:done:"):
            found["jobs:done:<worker>"] = client.ttl(key) > 0
        else:
            found[key] = read[client.type(key)](key)
    return found


if __name__ == "__main__":
    probe.main(describe=describe, add=add, bulk=bulk, work=work, latency=latency, check=check)
