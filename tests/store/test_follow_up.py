"""Who follows a job is told when it begins and when it ends, by the script that writes it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
from limpyd import fields

from limpyd_jobs import STATUSES, Job, Worker, transitions
from limpyd_jobs.exceptions import JobNotInStatus
from limpyd_jobs.models import BaseJobsModel

from ..base import RedisServer
from ..models.support import fail, run_worker

LAST = "the last message"

pytestmark = pytest.mark.usefixtures("database")


class FollowedJob(Job):
    queue_name = "followed"


class OwnFollowUpJob(Job):
    """One of a program that had a field of this name before."""

    queue_name = "followed"
    follow_up = fields.InstanceHashField()


class Listener:
    """Hears what is published of all jobs."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self._pubsub = client.pubsub(ignore_subscribe_messages=True)
        self._pubsub.psubscribe("jobs:*:events")
        self._pubsub.get_message(timeout=5)

    def heard(self) -> list[str]:
        """The messages since it was asked last; those of one client come in their order."""
        self._client.publish("jobs:x:events", LAST)
        messages = []
        while True:
            message = self._pubsub.get_message(timeout=5)
            if message is not None and message["data"] == LAST:
                return messages
            if message is not None:
                messages.append(f"{message['channel'].removeprefix('jobs:followedjob:')} {message['data']}")

    def close(self) -> None:
        self._pubsub.close()


@pytest.fixture
def listener(database: Any) -> Iterator[Listener]:
    found = Listener(database.connection)
    yield found
    found.close()


def client() -> Any:
    return BaseJobsModel.database.connection


def add(identifier: str = "a", **more: Any) -> Any:
    return FollowedJob.add_job(identifier, follow_up="w", **more)


def claim(token: str = "t") -> transitions.Claim:
    taken = transitions.send(
        client(), transitions.claim("jobs", "jobs:queue", token, "w", 30, "2020-01-01 00:00:00", ["followed"])
    )
    assert taken.claim is not None
    return taken.claim


def test_a_success_is_told_with_its_beginning(listener: Listener) -> None:
    add()
    run_worker("followed", callback=lambda *_: None)
    assert listener.heard() == ["1:events status r", "1:events status s"]


def test_each_success_of_a_row_is_told(listener: Listener) -> None:
    for identifier in "abc":
        add(identifier)
    run_worker("followed", loops=3, callback=lambda *_: None)
    ended = [message for message in listener.heard() if message.endswith("s")]
    assert ended == ["1:events status s", "2:events status s", "3:events status s"]


def test_each_success_is_told_with_prefetch(listener: Listener) -> None:
    for identifier in "abc":
        add(identifier)
    run_worker("followed", loops=3, callback=lambda *_: None, prefetch=3)
    ended = [message for message in listener.heard() if message.endswith("s")]
    assert ended == ["1:events status s", "2:events status s", "3:events status s"]


def test_a_job_that_was_claimed_ahead_is_told_of_when_it_begins(listener: Listener) -> None:
    add()
    caller = transitions.Caller("jobs", "jobs:queue", "w", 30.0, 3, False, ("followed",))
    call = transitions.exchange(caller, (), 1, 1, "2020-01-01 00:00:00", runs_count=0)
    held = transitions.send(client(), call).claims[0].claim
    assert listener.heard() == []
    transitions.send(client(), transitions.begin("jobs", held, "2020-01-01 00:00:00"))
    transitions.send(client(), transitions.begin("jobs", held, "2020-01-01 00:00:00"))
    assert listener.heard() == ["1:events status r"]


def test_an_error_is_told(listener: Listener) -> None:
    add()
    run_worker("followed", callback=fail)
    assert listener.heard() == ["1:events status r", "1:events status e"]


def test_an_error_that_is_tried_again_is_no_end(listener: Listener) -> None:
    add()
    run_worker("followed", callback=fail, requeue_times=1, requeue_delay_delta=600)
    assert listener.heard() == ["1:events status r"]


def test_a_cancel_is_told(listener: Listener) -> None:
    add().cancel()
    assert listener.heard() == ["1:events status c"]


def test_a_cancel_of_a_running_job_is_told_when_its_worker_comes_to_it(listener: Listener) -> None:
    job = add()
    held = claim()
    listener.heard()
    job.cancel()
    assert listener.heard() == []
    transitions.send(client(), transitions.skip("jobs", held))
    assert listener.heard() == ["1:events status c"]


def test_a_cancel_whose_worker_died_is_told_by_the_one_that_recovers_it(listener: Listener) -> None:
    job = add()
    held = claim()
    job.cancel()
    listener.heard()
    client().zadd("jobs:leases", {held.ident: 1})
    transitions.send(client(), transitions.recover("jobs", "jobs:queue", "r", "other", 30, 3))
    assert listener.heard() == ["1:events status c"]


def test_a_cancel_between_an_error_and_its_requeue_is_told(listener: Listener) -> None:
    job = add()
    held = claim()
    transitions.send(client(), transitions.fail("jobs", held, "2020-01-01 00:00:01", 3, ""))
    job.cancel()
    listener.heard()
    job._claim = held
    with pytest.raises(JobNotInStatus):
        job.requeue()
    assert listener.heard() == ["1:events status c"]


def test_a_cancel_of_a_job_that_is_about_to_be_delayed_is_told(listener: Listener) -> None:
    job = add()
    job._claim = claim()
    job.cancel()
    listener.heard()
    with pytest.raises(JobNotInStatus):
        job.enqueue_or_delay()
    assert listener.heard() == ["1:events status c"]


def test_a_job_that_expires_is_told_of_by_the_worker_that_skips_it(listener: Listener) -> None:
    add(expires=0)
    run_worker("followed", callback=lambda *_: None)
    assert listener.heard() == ["1:events status c"]


def test_a_job_that_expired_is_told_of_when_another_takes_its_place(listener: Listener) -> None:
    add(expires=0)
    FollowedJob.add_job("a")
    assert listener.heard() == ["1:events status c"]


def test_a_job_that_cannot_be_run_is_told_of(listener: Listener) -> None:
    job = add()
    recipe = FollowedJob._class_subject().recipe
    transitions.send(client(), transitions.reject("jobs", "jobs:queue:1", job.ident, "", "2020-01-01 00:00:00", recipe))
    assert listener.heard() == ["1:events status e"]


@pytest.mark.parametrize("status", [STATUSES.SUCCESS, STATUSES.ERROR])
def test_an_end_that_a_program_writes_is_told_when_a_worker_comes_to_it(listener: Listener, status: str) -> None:
    add().status.hset(status)
    assert listener.heard() == []
    worker = Worker("followed", burst=True, terminate_gracefuly=False)
    worker.run()
    assert listener.heard() == [f"1:events status {status}"]


def test_an_end_that_a_program_writes_is_told_at_once_when_the_job_is_in_no_queue(listener: Listener) -> None:
    job = add()
    claim()
    job.queued.delete()
    listener.heard()
    job.hmset(status=STATUSES.SUCCESS, end="2020-01-01 00:00:01")
    job.status.hset(STATUSES.WAITING)
    assert listener.heard() == ["1:events status s"]


def test_nobody_is_told_of_a_job_that_nobody_follows(listener: Listener) -> None:
    FollowedJob.add_job("a")
    FollowedJob.add_job("b").cancel()
    run_worker("followed", callback=fail)
    assert listener.heard() == []


def test_a_field_of_the_users_own_says_nothing(listener: Listener) -> None:
    OwnFollowUpJob.add_job("a", follow_up="w c")
    OwnFollowUpJob.add_job("b", follow_up="w c").cancel()
    run_worker("followed", callback=lambda *_: None)
    assert listener.heard() == []


@pytest.mark.parametrize("way", [lambda *_: None, fail], ids=["success", "error"])
def test_a_job_ends_when_its_worker_may_not_publish(redis_server: RedisServer, way: Callable[..., Any]) -> None:
    job = add()
    admin = redis_server.client()
    admin.acl_setuser("mute", enabled=True, passwords=["+secret"], keys=["*"], commands=["+@all"], reset_channels=True)
    try:
        database = BaseJobsModel.database
        database.connect(**{**redis_server.settings, "username": "mute", "password": "secret"})
        with pytest.raises(redis.exceptions.NoPermissionError):
            database.connection.publish("jobs:x:events", "x")
        run_worker("followed", callback=way)
    finally:
        database.connect(**redis_server.settings)
        admin.acl_deluser("mute")
    assert job.status.hget() in (STATUSES.SUCCESS, STATUSES.ERROR)
    assert job.queued.hget() is None
