"""Many threads and processes at one thing at the same moment."""

from __future__ import annotations

import random
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from limpyd_jobs import STATUSES, Queue, Worker, transitions
from limpyd_jobs.utils import utcnow

from ..base import PROCESS_SECONDS, Process, RedisServer, wait_until
from .jobs import RacesJob, connection

pytestmark = pytest.mark.usefixtures("database")

ADD_PROGRAM = """
import sys
from limpyd_jobs.models import BaseJobsModel
from tests.acceptance.jobs import RacesJob
client = BaseJobsModel.database.connect(sys.argv[1])
client.blpop("test:gate", 0)
print("added", RacesJob.add_job("one", "race", int(sys.argv[2])).pk.get())
"""


def at_once(count: int, action: Callable[[int], Any]) -> list[Any]:
    """What so many threads get that call the action at the same moment."""
    barrier = threading.Barrier(count)
    results: list[Any] = [None] * count

    def run(number: int) -> None:
        barrier.wait(20)
        try:
            results[number] = action(number)
        except BaseException as error:
            results[number] = error

    threads = [threading.Thread(target=run, args=(number,), daemon=True) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not any(thread.is_alive() for thread in threads)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results


class Workers:
    """Workers in threads, which note the job of each run.

    with Workers(3, callback) as workers:
        ...
    """

    def __init__(self, count: int, callback: Callable[[Any, Any], Any] | None = None) -> None:
        self.runs: list[str] = []
        self.errors: list[BaseException] = []
        self.callback = callback
        self.workers = [
            Worker("race", callback=self._note, max_loops=10**6, terminate_gracefully=False) for _ in range(count)
        ]
        self.threads = [threading.Thread(target=self._run, args=(worker,), daemon=True) for worker in self.workers]

    def _note(self, job: Any, queue: Any) -> None:
        self.runs.append(job.pk.get())
        if self.callback is not None:
            self.callback(job, queue)

    def _run(self, worker: Worker) -> None:
        try:
            worker.run()
        except BaseException as error:
            self.errors.append(error)

    def __enter__(self) -> Workers:
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        for worker in self.workers:
            worker.end_forced = True
        for thread in self.threads:
            thread.join(20)
        assert not any(thread.is_alive() for thread in self.threads)
        if self.errors:
            raise self.errors[0]


def is_all_done() -> bool:
    return len(RacesJob.collection(queued="1")) == 0


def places_of(ident: str) -> list[str]:
    """Each waiting list and delayed set that holds an ident, as often as it does."""
    found: list[str] = []
    for queue in Queue.get_all("race"):
        found += [queue.waiting.key] * queue.waiting.lmembers().count(ident)
        found += [queue.delayed.key] * queue.delayed.zrange(0, -1).count(ident)
    return found


def index_sets(field: str) -> dict[str, set[str]]:
    """The index sets of a field of our jobs, by value."""
    prefix = f"{RacesJob._name}:{field}:"
    return {key[len(prefix) :]: connection().smembers(key) for key in connection().keys(f"{prefix}*")}


def index_of_the_hashes(field: str) -> dict[str, set[str]]:
    """What the index sets must be, by the hashes."""
    found: dict[str, set[str]] = {}
    for job in RacesJob.collection().instances():
        value = job.get_field(field).hget()
        if value is not None:
            found.setdefault(value, set()).add(job.pk.get())
    return found


@pytest.fixture
def gate(redis_server: RedisServer) -> Iterator[Any]:
    """A client that may block as long as it likes."""
    client = redis_server.client(socket_timeout=None)
    yield client
    client.close()


def test_fifty_threads_and_eight_processes_that_add_one_identifier_make_one_job(
    redis_server: RedisServer, gate: Any
) -> None:
    threads, processes = 50, 8
    pks: list[str] = []

    def add_behind_the_gate() -> None:
        gate.blpop("test:gate", 0)
        pks.append(RacesJob.add_job("one").pk.get())

    with ExitStack() as stack:
        programs = [
            stack.enter_context(Process([sys.executable, "-c", ADD_PROGRAM, redis_server.url, "0"]))
            for _ in range(processes)
        ]
        adding = [threading.Thread(target=add_behind_the_gate, daemon=True) for _ in range(threads)]
        for thread in adding:
            thread.start()
        everybody = threads + processes
        wait_until(
            lambda: connection().info("clients")["blocked_clients"] == everybody, PROCESS_SECONDS, "all are at the gate"
        )
        connection().rpush("test:gate", *["go"] * everybody)
        for thread in adding:
            thread.join(20)
        assert [program.wait() for program in programs] == [0] * processes
        pks += [program.output.split()[-1] for program in programs]

    assert pks == ["1"] * everybody
    (job,) = RacesJob.collection().instances()
    assert places_of(job.ident) == [Queue.get_queue("race").waiting.key]
    assert RacesJob.collection() == ["1"]
    assert Queue.collection() == ["1"]
    assert connection().get(f"{RacesJob._name}:max_pk") == "1"
    assert connection().get(f"{Queue._name}:max_pk") == "1"
    assert connection().keys(f"{RacesJob._name}:*:hash") == [f"{RacesJob._name}:1:hash"]
    for field in ("identifier", "status", "priority", "queued"):
        assert index_sets(field) == index_of_the_hashes(field)


def test_adding_one_identifier_with_many_priorities_leaves_one_job_at_the_highest() -> None:
    for round_number in range(5):
        identifier = f"round {round_number}"
        jobs = at_once(16, lambda number, name=identifier: RacesJob.add_job(name, priority=number))

        assert len({job.pk.get() for job in jobs}) == 1
        assert jobs[0].priority.hget() == "15"
        assert places_of(jobs[0].ident) == [Queue.get_queue("race", 15).waiting.key]


def test_adding_many_identifiers_at_once_makes_a_job_of_each() -> None:
    jobs = at_once(16, lambda number: [RacesJob.add_job(f"{number} {part}", priority=part) for part in range(5)])

    assert len({job.pk.get() for some in jobs for job in some}) == 80
    assert Queue.count_waiting_jobs("race") == 80
    assert len(Queue.collection(name="race")) == 5
    assert connection().get(f"{RacesJob._name}:max_pk") == "80"


def test_a_job_whose_priority_is_raised_while_workers_take_it_runs_once() -> None:
    """A job that ended before it was raised is another one: then the new one runs once too."""
    rounds = 100
    added: list[str] = []

    with Workers(3) as workers:
        for number in range(rounds):
            first = RacesJob.add_job(str(number))
            raised = at_once(
                2,
                lambda side, name=str(number): RacesJob.add_job(name, priority=1 + side, prepend=bool(side)).pk.get(),
            )
            added += {first.pk.get(), *raised}
        wait_until(is_all_done, PROCESS_SECONDS, "no job is queued")

    assert Counter(workers.runs) == Counter(added)
    assert len(RacesJob.collection(status=STATUSES.SUCCESS)) == len(added)
    assert Queue.count_waiting_jobs("race") == Queue.count_delayed_jobs("race") == 0
    assert (connection().zcard("jobs:leases"), connection().hlen("jobs:claims")) == (0, 0)


def test_a_job_whose_delay_and_priority_change_while_it_becomes_due_runs_once() -> None:
    rounds = 30
    added: list[str] = []

    with Workers(2) as workers:
        for number in range(rounds):
            first = RacesJob.add_job(str(number), delayed_for=0.01)
            again = RacesJob.add_job(str(number), priority=random.choice((0, 1)), delayed_for=0.01)
            added += {first.pk.get(), again.pk.get()}
        wait_until(is_all_done, PROCESS_SECONDS, "no job is queued")

    assert Counter(workers.runs) == Counter(added)
    assert Queue.count_waiting_jobs("race") == Queue.count_delayed_jobs("race") == 0


@pytest.mark.parametrize("options", [{"priority": 9}, {"prepend": True}, {"priority": 9, "prepend": True}, {}])
def test_a_running_job_is_returned_unchanged_by_add_job_and_runs_once(options: dict[str, Any]) -> None:
    job = RacesJob.add_job("one")
    seen: list[Any] = []

    def add_again(running: Any, queue: Any) -> None:
        before = running.hgetall()
        returned = RacesJob.add_job("one", **options)
        seen.append((returned.pk.get(), running.hgetall() == before, places_of(running.ident)))

    with Workers(2, add_again) as workers:
        wait_until(lambda: job.status.hget() == STATUSES.SUCCESS)

    assert seen == [(job.pk.get(), True, [])]
    assert workers.runs == [job.pk.get()]
    assert job.hmget("priority", "tries") == ["0", "1"]
    assert len(RacesJob.collection()) == 1


@pytest.mark.parametrize("options", [{"delayed_for": 60, "priority": 9}, {"delayed_for": 60, "prepend": True}])
def test_a_running_job_is_not_delayed_by_add_job(options: dict[str, Any]) -> None:
    job = RacesJob.add_job("one")
    statuses: list[Any] = []

    def add_again(running: Any, queue: Any) -> None:
        RacesJob.add_job("one", **options)
        statuses.append(running.hmget("status", "delayed_until"))

    with Workers(1, add_again):
        wait_until(lambda: job.status.hget() == STATUSES.SUCCESS)

    assert statuses == [[STATUSES.RUNNING, None]]
    assert Queue.count_delayed_jobs("race") == 0


def test_threads_that_get_one_new_queue_get_the_same() -> None:
    for priority in range(5):
        queues = at_once(8, lambda number, wanted=priority: Queue.get_queue("race", wanted))

        assert len({queue.pk.get() for queue in queues}) == 1
    assert len(Queue.collection(name="race")) == 5
    assert connection().get(f"{Queue._name}:max_pk") == "5"


def test_threads_that_write_one_field_leave_its_index_as_its_hash() -> None:
    jobs = [RacesJob.add_job(str(number)) for number in range(3)]
    pks = [job.pk.get() for job in jobs]
    choices = list(STATUSES.values())

    def write(number: int) -> None:
        rng = random.Random(number)
        own = [RacesJob.from_pk(pk) for pk in pks]
        for _ in range(40):
            job = rng.choice(own)
            action = rng.randrange(4)
            if action == 0:
                job.status.hdel()
            elif action == 1:
                job.hmset(status=rng.choice(choices), priority=rng.randrange(3))
            else:
                job.status.hset(rng.choice(choices))

    at_once(8, write)

    for field in ("status", "priority"):
        assert index_sets(field) == index_of_the_hashes(field)


def test_jobs_canceled_while_workers_take_them_run_or_are_skipped_and_none_is_left() -> None:
    jobs = [RacesJob.add_job(str(number)) for number in range(60)]

    with Workers(3) as workers:
        for job in reversed(jobs):
            job.status.hset(STATUSES.CANCELED)
        wait_until(is_all_done, PROCESS_SECONDS, "no job is queued")

    assert max(Counter(workers.runs).values(), default=1) == 1
    assert Queue.count_waiting_jobs("race") == 0
    assert index_sets("status") == index_of_the_hashes("status")
    assert (connection().zcard("jobs:leases"), connection().hlen("jobs:claims")) == (0, 0)


def test_workers_that_recover_at_once_give_a_job_back_once() -> None:
    job = RacesJob.add_job("one")
    claim = transitions.claim("jobs", "jobs:queue", "dead-1", "dead", 30, str(utcnow()), ["race"])
    transitions.send(connection(), claim)
    connection().zadd("jobs:leases", {job.ident: 1})

    recovered = at_once(
        8,
        lambda number: transitions.send(
            connection(), transitions.recover("jobs", "jobs:queue", f"r{number}", "recoverer", 30, 3)
        ),
    )

    assert sorted(found.idents for found in recovered)[-2:] == [(), (job.ident,)]
    assert places_of(job.ident) == [Queue.get_queue("race").waiting.key]
