"""How commands are sent: connections beside the pool, replies that belong to their commands."""

from __future__ import annotations

import itertools
import os
import signal
import socket
import threading
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import pytest
import redis
from redis.exceptions import ConnectionError, ResponseError, TimeoutError

from limpyd_jobs import Job, Queue, admin, wire
from limpyd_jobs.database import JobsDatabase

from ..base import RedisServer, free_port, wait_until
from ..proxy import Proxy

numbers = itertools.count()


class Named:
    """The client of the models, under a name of its own, and what the server knows of its connections."""

    def __init__(self, database: JobsDatabase, server: RedisServer, **settings: Any) -> None:
        self.name = f"wire-{next(numbers)}"
        self.server: Any = server.client()
        self.client: Any = database.connect(**{**server.settings, "client_name": self.name, **settings})

    @property
    def pool(self) -> Any:
        return self.client.connection_pool

    @property
    def spares(self) -> list[Any]:
        found: list[Any] = self.pool.__dict__.get(wire._SPARES, [])
        return found

    def ids(self) -> list[str]:
        """Its connections, as the server names them."""
        return [found["id"] for found in self.server.client_list() if found["name"] == self.name]

    def kill(self) -> None:
        """Let the server close all of them."""
        for number in self.ids():
            self.server.client_kill_filter(_id=number)
        wait_until(lambda: not self.ids(), message="the connections are closed")

    def taken(self) -> int:
        """How many connections were taken out of the pool and are not spare."""
        return len(self.pool._in_use_connections) - len(self.spares)

    def echo(self, text: str) -> Any:
        return wire.execute(self.client, lambda: ["ECHO", text])


@pytest.fixture
def named(database: JobsDatabase, redis_server: RedisServer) -> Named:
    return Named(database, redis_server)


@pytest.fixture(params=["unix", "tcp"])
def named_over_each(request: Any, database: JobsDatabase, redis_server: RedisServer) -> Named:
    over_tcp = {**redis_server.tcp_settings, "unix_socket_path": None}
    if request.param == "unix":
        return Named(database, redis_server)
    settings = {name: value for name, value in over_tcp.items() if value is not None}
    found = Named.__new__(Named)
    found.name, found.server = f"wire-{next(numbers)}", redis_server.client()
    found.client = database.connect(**settings, client_name=found.name)
    return found


# --- Spare connections


def test_one_connection_serves_all_calls(named: Named) -> None:
    for number in range(100):
        Job.add_job(number, "q")
    Job.add_jobs(range(50, 150), "q")

    assert len(named.ids()) == 1
    assert len(named.spares) == 1
    assert named.taken() == 0


def test_an_error_of_redis_keeps_the_connection(named: Named) -> None:
    named.echo("before")
    (before,) = named.ids()

    with pytest.raises(ResponseError):
        wire.execute(named.client, lambda: ["NO-SUCH-COMMAND"])

    assert named.echo("after") == "after"
    assert named.ids() == [before]


def test_spare_connections_are_given_back_to_the_pool(named: Named) -> None:
    named.echo("one")

    wire.release_spares(named.pool)

    assert named.spares == []
    assert len(named.pool._in_use_connections) == 0
    assert named.client.ping()
    assert len(named.ids()) == 1


def test_a_pool_that_had_no_spare_connections_has_none_to_give_back(named: Named) -> None:
    wire.release_spares(named.pool)

    assert named.client.ping()


@pytest.mark.parametrize("limit", [1, 5, 9])
def test_a_small_pool_keeps_all_its_connections(database: JobsDatabase, redis_server: RedisServer, limit: int) -> None:
    named = Named(database, redis_server, max_connections=limit)

    Job.add_job("a", "q")
    Job.add_jobs(range(600), "q")

    assert named.spares == []
    assert len(named.pool._in_use_connections) == 0


def test_a_pool_that_is_exhausted_says_so_and_goes_on_later(database: JobsDatabase, redis_server: RedisServer) -> None:
    named = Named(database, redis_server, max_connections=1)
    held = named.pool.get_connection()

    with pytest.raises(ConnectionError, match="Too many connections"):
        named.echo("a")

    named.pool.release(held)
    assert named.echo("b") == "b"


def test_a_pool_that_waits_for_a_connection_is_used_too(redis_server: RedisServer) -> None:
    pool = redis.BlockingConnectionPool(
        connection_class=redis.UnixDomainSocketConnection,
        path=redis_server.socket_path,
        max_connections=2,
        timeout=1,
        decode_responses=True,
    )
    client = redis.Redis(connection_pool=pool)
    replies: list[Any] = []

    def ask(number: int) -> None:
        replies.extend(wire.execute(client, lambda: ["ECHO", str(number)]) for _ in range(50))

    threads = [threading.Thread(target=ask, args=[number]) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)

    assert sorted(replies) == sorted(str(number) for number in range(8) for _ in range(50))
    pool.disconnect()


# --- Connections that break


def test_the_next_call_after_all_connections_were_killed_works(named_over_each: Named) -> None:
    named = named_over_each
    for _ in range(3):
        Job.add_job("warm", "q")
        named.kill()

        assert Job.add_job("a", "q", retry_for=0).identifier.hget() == "a"

    assert named.taken() == 0


@pytest.mark.parametrize("fault", ["drop", "reset"])
def test_a_command_whose_reply_is_lost_is_sent_again(
    database: JobsDatabase, redis_server: RedisServer, fault: Any
) -> None:
    with Proxy("127.0.0.1", redis_server.port) as proxy:
        client = database.connect(proxy.url)
        wire.execute(client, lambda: ["PING"])
        proxy.fail_next(fault)

        assert wire.execute(client, lambda: ["ECHO", "a"]) == "a"

        assert proxy.counts[fault] == 1
    database.connect(**redis_server.settings)


def test_a_reply_that_comes_too_late_is_nobodys(database: JobsDatabase, redis_server: RedisServer) -> None:
    named = Named(database, redis_server, socket_timeout=0.2)
    named.echo("warm")

    with pytest.raises(TimeoutError):
        wire.execute(named.client, lambda: ["BLPOP", "nothing", "0.5"])
    named.server.rpush("nothing", "late")

    assert [named.echo(str(number)) for number in range(5)] == [str(number) for number in range(5)]
    assert named.taken() == 0


def test_add_job_raises_the_timeout_and_the_next_one_gets_its_own_reply(
    database: JobsDatabase, redis_server: RedisServer
) -> None:
    named = Named(database, redis_server, socket_timeout=0.2)
    Job.add_job("warm", "q")
    named.server.client_pause(600, all=True)

    with pytest.raises(TimeoutError):
        Job.add_job("a", "q", retry_for=0)

    wait_until(named.server.ping)
    for name in ("b", "c", "d"):
        assert Job.add_job(name, "q").identifier.hget() == name
    assert named.taken() == 0


def test_a_call_that_is_interrupted_leaves_no_reply_for_the_next(named: Named) -> None:
    named.echo("warm")

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    former = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    try:
        with pytest.raises(KeyboardInterrupt):
            wire.execute(named.client, lambda: ["BLPOP", "nothing", "3"])
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)
    named.server.rpush("nothing", "late")

    assert named.echo("next") == "next"
    assert named.taken() == 0


# --- Processes and threads


def in_a_child(action: Any) -> int:
    """What a forked process ends with: 0 when the action raised nothing."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            action()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def add_and_compare(prefix: str, count: int) -> None:
    for number in range(count):
        name = f"{prefix} {number}"
        assert Job.add_job(name, "q").identifier.hget() == name


def test_a_forked_process_makes_connections_of_its_own(named: Named) -> None:
    named.echo("before")
    (ours,) = named.ids()

    def child() -> None:
        for number in range(100):
            assert named.echo(f"child {number}") == f"child {number}"
        found = named_by_another(named)
        assert len(found) == 2
        assert ours in found

    assert in_a_child(child) == 0
    assert named.echo("still mine") == "still mine"
    wait_until(lambda: named.ids() == [ours], message="the connection of the child is closed")


def named_by_another(named: Named) -> list[str]:
    """As `named.ids`, by a connection that is safe after a fork."""
    client = redis.Redis(unix_socket_path=named.pool.connection_kwargs["path"], decode_responses=True, protocol=2)
    found: Any = client.client_list()
    return [entry["id"] for entry in found if entry["name"] == named.name]


def test_parent_and_child_add_jobs_at_the_same_time(named: Named) -> None:
    add_and_compare("before", 5)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            add_and_compare("child", 300)
            assert Job.add_jobs((f"bulk of the child {number}" for number in range(700)), "q") == (700, 0)
            code = 0
        finally:
            os._exit(code)
    add_and_compare("parent", 300)
    assert Job.add_jobs((f"bulk of the parent {number}" for number in range(700)), "q") == (700, 0)

    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert Queue.count_waiting_jobs("q") == 5 + 2 * 300 + 2 * 700
    assert admin.check() == []


def test_threads_get_the_replies_to_their_own_commands(named: Named) -> None:
    found: dict[str, list[str]] = {}

    def add(prefix: str) -> None:
        found[prefix] = [Job.add_job(f"{prefix} {number}", "q").pk.get() for number in range(500)]

    threads = [threading.Thread(target=add, args=[prefix]) for prefix in ("left", "right")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)

    for prefix, pks in found.items():
        stored = [named.server.hget(f"jobs:job:{pk}:hash", "identifier") for pk in pks]
        assert stored == [f"{prefix} {number}" for number in range(500)]
    assert len(found) == 2
    assert named.taken() == 0


def test_threads_survive_that_connections_are_killed_all_the_time(named: Named) -> None:
    is_over = threading.Event()
    wrong: list[Any] = []

    def ask(prefix: str) -> None:
        number = 0
        while not is_over.is_set():
            number += 1
            text = f"{prefix} {number}"
            try:
                reply = named.echo(text)
            except ConnectionError:  # killed again, while it was sent again
                continue
            wrong.extend([] if reply == text else [(text, reply)])

    threads = [threading.Thread(target=ask, args=[str(number)]) for number in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(50):
        for number in named.ids():
            named.server.client_kill_filter(_id=number)
    is_over.set()
    for thread in threads:
        thread.join(20)

    assert wrong == []
    assert named.taken() == 0


# --- Commands whose replies are read later


def rpush(text: str) -> list[Any]:
    return ["RPUSH", "order", text]


MOMENTS = ["before the first", "between the two", "before the replies", "between the replies"]


# --- Replicas


@pytest.fixture
def own_server(database: JobsDatabase) -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


@pytest.mark.parametrize("add", [Job.add_job, lambda name, queue, **more: Job.add_jobs([name], queue, **more)])
def test_the_connections_to_a_replica_are_closed(database: JobsDatabase, own_server: RedisServer, add: Any) -> None:
    named = Named(database, own_server)
    Job.add_job("warm", "q")
    assert len(named.ids()) == 1
    named.server.execute_command("REPLICAOF", "127.0.0.1", free_port())

    with pytest.raises(ResponseError, match=r"READONLY|read only replica"):
        add("a", "q", retry_for=0)

    assert named.spares == []
    wait_until(lambda: not named.ids(), message="the connections are closed")
    assert named.taken() == 0


# --- Packed commands


@pytest.mark.parametrize(
    "words", [["PING"], ["ECHO", "\u00e9t\u00e9 \u2603"], ["ECHO", b"\x00\r\n"], ["ECHO", ""], ["ECHO", 5]]
)
def test_a_packed_command_is_what_redis_py_sends(named: Named, words: list[Any]) -> None:
    connection = named.pool.get_connection()
    try:
        expected = b"".join(connection.pack_command(*words))
    finally:
        named.pool.release(connection)

    assert wire.pack_command(words) == expected
    assert b"*%d\r\n" % len(words) + wire.pack(words) == expected


# --- Waiting awake


class Peer:
    """A connection with a server that answers when it is told to."""

    def __init__(self) -> None:
        self._sock, self.server = socket.socketpair()

    def answer(self) -> None:
        self.server.send(b"+OK\r\n")

    def close(self) -> None:
        self._sock.close()
        self.server.close()


@pytest.fixture
def peer() -> Iterator[Peer]:
    found = Peer()
    yield found
    found.close()


def pauses(vigil: wire.Vigil, peer: Peer) -> bool:
    """Does it not look whether a reply has come?"""
    with patch.object(os, "sched_yield") as lets_others_run:
        vigil.wait(peer)
    return not lets_others_run.called


def test_a_vigil_waits_until_a_reply_begins_to_come_and_leaves_it_there(peer: Peer, monkeypatch: Any) -> None:
    monkeypatch.setattr(wire, "AWAKE_SECONDS", 10)
    monkeypatch.setattr(os, "sched_yield", peer.answer)  # the server runs while this process lets it

    wire.Vigil().wait(peer)

    assert peer._sock.recv(5) == b"+OK\r\n"


def test_a_vigil_pauses_where_replies_take_long_and_begins_again(peer: Peer, monkeypatch: Any) -> None:
    monkeypatch.setattr(wire, "AWAKE_SECONDS", 0.0001)
    vigil = wire.Vigil()

    misses = [pauses(vigil, peer) for _ in range(wire.MOST_MISSES)]
    paused = [pauses(vigil, peer) for _ in range(wire.PAUSED_REPLIES)]

    assert misses == [False] * wire.MOST_MISSES
    assert paused == [True] * wire.PAUSED_REPLIES
    assert not pauses(vigil, peer)


def test_a_reply_in_time_makes_a_vigil_forget_its_misses(peer: Peer, monkeypatch: Any) -> None:
    monkeypatch.setattr(wire, "AWAKE_SECONDS", 0.0001)
    vigil = wire.Vigil()
    for _ in range(wire.MOST_MISSES - 1):
        vigil.wait(peer)
    peer.answer()
    vigil.wait(peer)
    peer._sock.recv(5)

    vigil.wait(peer)

    assert not pauses(vigil, peer)


def test_a_vigil_leaves_a_closed_connection_to_whoever_reads(peer: Peer) -> None:
    peer.close()

    wire.Vigil().wait(peer)
    wire.Vigil().wait(object())
