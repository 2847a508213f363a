"""A database with 100,000 jobs and 20,000 errors, made once for all tests of a process, which only read it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from limpyd_jobs import Job, Queue
from limpyd_jobs.models import BaseJobsModel

from ..base import RedisServer

MANY, ERRORS = 100_000, 20_000

# Job `i` was added `i` seconds after the year began: each tenth one waits, fifty of the first ones failed, the others
# succeeded; each thousandth one is of the queue "rare". Error `i` happened when job `i` was added.
LOAD = """
local first, last = tonumber(ARGV[1]), tonumber(ARGV[2])
for i = first, last do
  local at = string.format('2026-01-%02d %02d:%02d:%02d', 1 + math.floor(i / 86400), math.floor(i / 3600) % 24,
    math.floor(i / 60) % 60, i % 60)
  local status = i % 10 == 0 and 'w' or 's'
  if i <= 200 and i % 4 == 1 then status = 'e' end
  local queue = i % 1000 == 0 and '2' or '1'
  local identifier = 'job:' .. i
  redis.call('HSET', 'jobs:job:' .. i .. ':hash', 'identifier', identifier, 'status', status, 'priority', '0',
    'added', at, 'queue_key', 'jobs:queue:' .. queue)
  redis.call('SADD', 'jobs:job:collection', i)
  redis.call('SADD', 'jobs:job:status:' .. status, i)
  redis.call('SADD', 'jobs:job:identifier:' .. identifier, i)
  local list = ({w = 'waiting', s = 'success', e = 'errors'})[status]
  redis.call('RPUSH', 'jobs:queue:' .. queue .. ':' .. list, ARGV[3] .. ':' .. i)
  if i <= tonumber(ARGV[4]) then
    local kind = i % 1000 == 0 and 'RareError' or 'ValueError'
    redis.call('HSET', 'jobs:error:' .. i .. ':hash', 'job_model_repr', ARGV[3], 'job_pk', i, 'identifier', identifier,
      'queue_name', 'bulk', 'date_time', at .. '.5', 'type', kind, 'message', 'no ' .. i,
      'traceback', 'Traceback (most recent call last):\\n  File "/srv/' .. i .. '/shop/mails.py", line ' .. i
        .. ', in send_' .. i % 3 .. '\\n    boom\\n' .. kind .. ': no ' .. i)
    redis.call('SADD', 'jobs:error:collection', i)
    redis.call('SADD', 'jobs:error:type:' .. kind, i)
    redis.call('ZADD', 'jobs:error:date_time:full', 0, at .. ':TEXT-RANGE-SEPARATOR:' .. i)
  end
end
redis.call('SET', 'jobs:job:max_pk', last)
redis.call('SET', 'jobs:error:max_pk', ARGV[4])
"""


@pytest.fixture(scope="session")
def crowded_server() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


@pytest.fixture
def crowded(crowded_server: RedisServer, redis_server: RedisServer) -> Iterator[Any]:
    """A client of the large database, to which all models are connected; it is only read."""
    database, client = BaseJobsModel.database, crowded_server.client(socket_timeout=60)
    database.connect(**crowded_server.settings)
    if not client.exists("jobs:job:max_pk"):
        Queue.get_queue("bulk")
        Queue.get_queue("rare")
        Job.register("jobs")
        for first in range(1, MANY, MANY // 10):
            client.eval(LOAD, 0, first, first + MANY // 10 - 1, Job.get_model_repr(), ERRORS)
    yield client
    client.close()
    database.reset(**redis_server.settings)


# What may be sent to a server with a million records, and what says how much it reads.
SINGLE = {
    "GET", "HGET", "HMGET", "HGETALL", "SCARD", "LLEN", "ZCARD", "ZCOUNT", "ZLEXCOUNT", "ZSCORE", "LINDEX",
    "STRLEN", "GETRANGE", "TIME", "MULTI", "EXEC",
}  # fmt: skip


class Sent:
    """The commands that were sent meanwhile.

    Attributes:
        counts: by name.
        large: those that may read more than 1,000 things.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.large: list[str] = []

    def take(self, command: str) -> None:
        name, *arguments = command.split(" ")
        self.counts[name] += 1
        if name not in SINGLE and not self._is_bounded(name, arguments):
            self.large.append(command)

    def _is_bounded(self, name: str, arguments: list[str]) -> bool:
        if name in ("SSCAN", "ZSCAN", "HSCAN"):
            return int(arguments[arguments.index("COUNT") + 1]) <= 1000
        if name == "SMISMEMBER":  # of many arguments the log has the first ones, and how many there are more
            more = arguments[-3][1:] if arguments[-1] == "arguments)" else "0"
            return int(more) <= 1000
        if name in ("LRANGE", "ZRANGE"):
            return int(arguments[2]) - int(arguments[1]) < 1000 and int(arguments[1]) >= 0
        return name in ("ZRANGEBYLEX", "ZRANGEBYSCORE") and "LIMIT" in arguments and int(arguments[-1]) <= 1000

    @property
    def records(self) -> int:
        """How many records were read."""
        return self.counts["HMGET"] + self.counts["HGETALL"]


@contextmanager
def watched(client: Any) -> Iterator[Sent]:
    """Note what is sent to the server meanwhile."""
    sent = Sent()
    client.config_set("slowlog-max-len", 1_000_000)
    client.config_set("slowlog-log-slower-than", 0)
    client.slowlog_reset()
    yield sent
    client.config_set("slowlog-log-slower-than", -1)
    for entry in client.slowlog_get(1_000_000):
        command = entry["command"]
        text = command.decode() if isinstance(command, bytes) else command
        if not text.upper().startswith(("CONFIG", "SLOWLOG", "HELLO", "CLIENT", "SELECT", "INFO", "ROLE", "PING")):
            name, _, rest = text.partition(" ")
            sent.take(f"{name.upper()} {rest}".rstrip())
