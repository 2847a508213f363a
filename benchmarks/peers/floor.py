"""The floor: what the writes of limpyd_jobs cost when nothing else is done.

Scripts with literal keys write what `Job.add_job` and a plain worker write about a job, through a bare redis-py client:
one call to add a job, and one to end a job and to take the next. No check but that for a queued identifier, no class,
no hook, no log. No library that keeps these records through redis-py can be faster without sending less often.

`check` compares what is in Redis afterwards with what limpyd_jobs leaves there: the records of the jobs, their indexes,
the queue, and what is counted (docs/numbers.md). A time is another one each time; what is counted of times has to be
what the records say. It does not compare tokens, the registry of classes, the doorbell and the records of workers,
which say nothing about jobs, and the numbers of hours, which are made of those of minutes later.
"""

from __future__ import annotations

import math
import os
import sys
from collections import Counter
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from time import perf_counter, sleep
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import probe
import redis

BULK = 500
DOORBELL = "jobs:doorbell:queue:bench"
OF = " limpyd_jobs.models.Job bench"
COUNTED_ONCE = 10_000_000_000  # of what took a time: the rest of the number is how long, in parts of its bucket

# Adds to a number of this minute.
COUNT = """
local minute = redis.call('TIME')[1] / 60
local function count(field, number)
  local key = string.format('jobs:numbers:%d', minute)
  local text = string.format('%.0f', number)
  if redis.call('HINCRBY', key, field .. ' limpyd_jobs.models.Job bench', text) == number then
    redis.call('EXPIRE', key, 93600)
  end
end
"""

# ARGV: added identifier...
# Answers how many were new.
ADD = (
    COUNT
    + """
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
if new > 0 then count('a', new) end
redis.call('ZADD', 'jobs:ready:queue:bench', 0, '1')
if redis.call('LLEN', 'jobs:doorbell:queue:bench') < 100 then redis.call('RPUSH', 'jobs:doorbell:queue:bench', '1') end
return new
"""
)

# ARGV: now seconds_of_day worker token previous_pk previous_token previous_micros; without a previous job, '' as pk.
# Answers the primary key of the job that is to be run, or nil.
NEXT = (
    COUNT
    + """
local now, today, worker, token, pk, previous, ran = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6], ARGV[7]
local function count_time(kind, micros)
  local fraction, bucket = math.frexp(micros / 1000)
  if fraction == 0.5 then bucket = bucket - 1 end
  bucket = math.max(bucket, 0)
  count(kind .. bucket, 10000000000 + math.floor(micros / 2 ^ bucket + 0.5))
end
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
  count_time('s', ran)
end
local ident = redis.call('LPOP', 'jobs:queue:1:waiting')
if not ident then
  redis.call('DEL', 'jobs:doorbell:queue:bench')
  return nil
end
pk = string.sub(ident, 24)
redis.call('ZADD', 'jobs:leases', minute * 60 + 30, ident)
redis.call('HSET', 'jobs:claims', ident, token, token, ident)
redis.call('SREM', 'jobs:job:status:w', pk)
redis.call('SADD', 'jobs:job:status:r', pk)
local hash = 'jobs:job:' .. pk .. ':hash'
redis.call('HSET', hash, 'status', 'r', 'start', now, 'tries', '1')
local hours, minutes, seconds = string.match(redis.call('HGET', hash, 'added'), '(%d+):(%d+):([%d.]+)$')
local waited = today - hours * 3600 - minutes * 60 - seconds
if waited < 0 then waited = waited + 86400 end
count_time('w', math.floor(waited * 1000000 + 0.5))
return pk
"""
)

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


def utcnow() -> datetime:
    """The time, whose text the fields of a job have."""
    return datetime.now(timezone.utc).replace(tzinfo=None)


def seconds_of_day(moment: datetime) -> float:
    """How long its day has lasted."""
    return moment.hour * 3600 + moment.minute * 60 + moment.second + moment.microsecond / 1_000_000


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
        client.execute_command("EVALSHA", sha, 0, str(utcnow()), i)
    return perf_counter() - begin


def bulk(n: int) -> float:
    """Add `n` jobs, many in one call."""
    prepare()
    sha = client.script_load(ADD)
    begin = perf_counter()
    for start in range(0, n, BULK):
        client.execute_command("EVALSHA", sha, 0, str(utcnow()), *range(start, min(start + BULK, n)))
    return perf_counter() - begin


def work() -> None:
    """Run one worker process until it is killed."""
    run(lambda pk: probe.mark(int(pk) - 1))


def run(job: Callable[[str], None], jobs: int = sys.maxsize) -> None:
    """Run jobs: one call each, in which the former job ends, too."""
    sha = client.script_load(NEXT)
    worker = os.urandom(8).hex()
    pk, token, done, number, start = "", "", 0, 0, utcnow()
    while True:
        number += 1
        previous, token = token, f"{worker}-{number}"
        started, start = start, utcnow()
        ended = (pk, previous, (start - started) // timedelta(microseconds=1))
        times = (str(start), repr(seconds_of_day(start)))
        pk = client.execute_command("EVALSHA", sha, 0, *times, worker, token, *ended) or ""
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
        client.execute_command("EVALSHA", sha, 0, str(utcnow()), i)
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
        if key == "jobs:models" or key.startswith(("jobs:doorbell:", "jobs:worker", "jobs:numbers:")):
            continue
        if key.startswith("jobs:done:"):
            found["jobs:done:<worker>"] = client.ttl(key) > 0
        else:
            found[key] = read[client.type(key)](key)
    return {**found, "jobs:numbers:<minute>": counted(), "whether these expire": do_numbers_expire()}


def minutes() -> list[str]:
    """The keys of what is counted."""
    return [key for key in client.scan_iter("jobs:numbers:*") if key.removeprefix("jobs:numbers:").isdecimal()]


def do_numbers_expire() -> bool:
    """Is what is counted kept for a time alone?"""
    return all(client.ttl(key) > 0 for key in minutes())


def counted() -> dict[str, Any]:
    """What is counted, in all minutes; what took a time in one, when it is what the records of the jobs say."""
    found: Counter[str] = Counter()
    for key in minutes():
        found.update({field: int(number) for field, number in client.hgetall(key).items()})
    times = {field: number for field, number in found.items() if number >= COUNTED_ONCE}
    others = {field: number for field, number in found.items() if field not in times}
    return {**others, "times": "as in the records" if times == times_of_jobs() else times}


def times_of_jobs() -> dict[str, int]:
    """How long the jobs waited and ran, as it is to be counted."""
    found: Counter[str] = Counter()
    for key in client.scan_iter("jobs:job:*:hash"):
        job = client.hgetall(key)
        for kind, begin, end in (("w", "added", "start"), ("s", "start", "end")):
            if end in job:
                took = datetime.fromisoformat(job[end]) - datetime.fromisoformat(job[begin])
                micros = took // timedelta(microseconds=1)
                bucket = max(math.ceil(math.log2(micros / 1000)), 0) if micros else 0
                found[f"{kind}{bucket}{OF}"] += COUNTED_ONCE + math.floor(micros / 2**bucket + 0.5)
    return found


if __name__ == "__main__":
    probe.main(describe=describe, add=add, bulk=bulk, work=work, latency=latency, check=check)
