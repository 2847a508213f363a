"""What the tests of the models share: workers in this process, dumps of the database, indexes against hashes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import redis

from limpyd_jobs import STATUSES, Queue, Worker
from limpyd_jobs.models import BaseJobsModel, Job

LONG_AGO = "2001-02-03 04:05:06.789000"


def connection() -> redis.Redis:
    """The connection of the models."""
    return BaseJobsModel.database.connection


def run_worker(
    queues: Any, loops: int = 1, callback: Callable[[Any, Any], Any] | None = None, **options: Any
) -> Worker:
    """Run a worker in this process until it has taken that many jobs; it gives up after ten seconds."""
    worker_class = options.pop("worker_class", Worker)
    worker = worker_class(
        queues, max_loops=loops, callback=callback, **{"timeout": 1, "max_duration": 10, "requeue_times": 0, **options}
    )
    worker.run()
    assert worker.num_loops == loops, f"{worker.num_loops} jobs were taken within {worker.elapsed}, not {loops}"
    return worker


def fail(*_: Any) -> None:
    """A callback, or the `run` of a job, that fails."""
    raise ValueError("it failed")


def failed_job(model: Any = Job, identifier: str = "a", queue_name: str = "q", **arguments: Any) -> Any:
    """A job that a worker ran, in ERROR, not requeued."""
    job = model.add_job(identifier, queue_name, **arguments)
    run_worker(queue_name, callback=fail)
    assert job.status.hget() == STATUSES.ERROR
    return job


def dump() -> dict[str, Any]:
    """What each key of the database holds; without the tasks that workers register: other tests have imported some."""
    client = connection()
    readers: dict[str, Callable[[str], Any]] = {
        "string": client.get,
        "list": lambda key: client.lrange(key, 0, -1),
        "set": client.smembers,
        "hash": client.hgetall,
        "zset": lambda key: client.zrange(key, 0, -1, withscores=True),
    }
    return {key: readers[client.type(key)](key) for key in sorted(client.keys("*")) if key != "jobs:tasks"}


def places(job: Any, queue_model: Any = Queue) -> list[tuple[str, str]]:
    """Where the ident of a job stands, once for each time: the kind of place, and the key prefix of the queue."""
    found = []
    for pk in sorted(queue_model.collection()):
        queue = queue_model.get(pk)
        prefix = f"{queue_model._name}:{pk}"
        found += [("waiting", prefix)] * queue.waiting.lmembers().count(job.ident)
        if queue.delayed.zscore(job.ident) is not None:
            found.append(("delayed", prefix))
    if connection().zscore(f"{queue_model.namespace}:leases", job.ident) is not None:
        found.append(("leased", ""))
    return found


def prefix_of(queue: Any) -> str:
    """The key prefix of a queue, `jobs:queue:3`."""
    return f"{queue._name}:{queue.pk.get()}"


def assert_only_place(job: Any, kind: str, queue: Any) -> None:
    """The job is in one place of all."""
    assert places(job, type(queue)) == [(kind, prefix_of(queue))]


def assert_filters_equal_hashes(model: Any, *names: str) -> None:
    """A filter on each of the fields finds exactly the records whose hash holds the value."""
    hashes = {pk: connection().hgetall(f"{model._name}:{pk}:hash") for pk in model.collection()}
    for name in names:
        field = model.get_field(name)
        values = {record[name] for record in hashes.values() if name in record}
        for value in values:
            expected = {pk for pk, record in hashes.items() if record.get(name) == value}
            assert set(model.collection(**{name: value})) == expected, f"{name}={value}"
        indexed = [entry for key in index_keys(field) for entry in members(key)]
        carriers = [pk for pk, record in hashes.items() if name in record]
        assert len(indexed) == len(carriers) * count_indexes(field._indexes), f"{name}: {indexed} for {carriers}"


def count_indexes(indexes: Any) -> int:
    """How many entries a value has: one for each index, also for those that another one holds."""
    return sum(count_indexes(index._indexes) if hasattr(index, "_indexes") else 1 for index in indexes)


def assert_indexes_as_rebuilt(*models: Any) -> None:
    """limpyd, when it builds the indexes anew from the fields, has nothing to change."""
    before = dump()
    for model in models:
        for field in model.get_fields():
            for index in field._indexes:
                index.rebuild()
    assert dump() == before


def index_keys(field: Any) -> list[str]:
    """The keys of the indexes of a field."""
    prefix = f"{field._model._name}:{field.name}"
    return [key for key in connection().keys(f"{prefix}*") if key == prefix or key.startswith(f"{prefix}:")]


def members(key: str) -> list[str]:
    """The entries of an index."""
    client = connection()
    return list(client.smembers(key)) if client.type(key) == "set" else list(client.zrange(key, 0, -1))


@contextmanager
def counted_round_trips(monkeypatch: Any) -> Iterator[list[Any]]:
    """How often something was sent to Redis within the block: the length of the list."""
    sent: list[Any] = []
    original = redis.connection.AbstractConnection.send_packed_command

    def send(self: Any, command: Any, *args: Any, **kwargs: Any) -> Any:
        sent.append(command)
        return original(self, command, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(redis.connection.AbstractConnection, "send_packed_command", send)
        yield sent
