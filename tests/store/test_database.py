"""The database object: connecting moves the models, opens only the new server, tells what is wrong in one line."""

from __future__ import annotations

import socket
import threading
import traceback
from collections.abc import Iterator
from types import TracebackType
from typing import Any

import pytest
import redis
from limpyd import fields
from limpyd.contrib.database import PipelineDatabase
from limpyd.model import RedisModel

from limpyd_jobs.database import JobsDatabase, check_server, new_client, parse_database
from limpyd_jobs.embedded import stop
from limpyd_jobs.exceptions import DatabaseException, InvalidDatabaseURL, ServerTooOld

from ..base import RedisServer, free_port, wait_until


class Listener:
    """A TCP server on 127.0.0.1 that counts who connects, and answers each command by the first word that it knows."""

    def __init__(
        self, answers: dict[bytes, bytes] | None = None, otherwise: bytes = b"-ERR unknown command\r\n"
    ) -> None:
        self.answers, self.otherwise = answers or {}, otherwise
        self.connections = 0
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.socket.getsockname()[1]
        self.thread = threading.Thread(target=self._accept, daemon=True)

    @property
    def settings(self) -> dict[str, Any]:
        return {"host": "127.0.0.1", "port": self.port, "db": 0}

    def __enter__(self) -> Listener:
        self.thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()
        self.thread.join(5)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self.socket.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._serve, args=[connection], daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            while received := connection.recv(65536):
                for command in received.split(b"*")[1:]:
                    known = (answer for word, answer in self.answers.items() if word in command)
                    connection.sendall(next(known, self.otherwise))


def info(version: str) -> dict[bytes, bytes]:
    text = f"# Server\r\nredis_version:{version}\r\n".encode()
    return {b"INFO": b"$%d\r\n%s\r\n" % (len(text), text)}


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch) -> dict[Any, redis.Redis]:
    """limpyd keeps its clients in a dictionary of the class, for the life of the program: each test gets its own."""
    cache: dict[Any, redis.Redis] = {}
    monkeypatch.setattr("limpyd.database.RedisDatabase._connections", cache)
    return cache


@pytest.fixture
def server(redis_server: RedisServer) -> RedisServer:
    redis_server.client().flushall()
    return redis_server


@pytest.fixture(scope="module")
def locked_server() -> Iterator[RedisServer]:
    options = {"requirepass": "Secret-7X", "databases": "4"}
    with RedisServer(tcp=True, options=options) as server:
        server.client(password="Secret-7X").acl_setuser(
            "worker", enabled=True, passwords=["+Other-7X"], keys=["*"], commands=["+@all"]
        )
        yield server


def model_on(where: PipelineDatabase) -> Any:
    """A plain limpyd model on this database."""

    class Note(RedisModel):  # type: ignore[misc]
        database = where
        namespace = "test-database"
        text = fields.InstanceHashField()

    return Note


# --- connecting moves the models ---


@pytest.mark.parametrize("form", ["arguments", "url", "url argument", "settings over url"])
def test_connect_moves_the_models_to_the_new_place(server: RedisServer, form: str) -> None:
    """G11."""
    database = JobsDatabase(**server.settings)
    note = model_on(database)
    note(text="before")

    if form == "arguments":
        client = database.connect(host="127.0.0.1", port=server.port, db=3)
    elif form == "url":
        client = database.connect(f"redis://127.0.0.1:{server.port}/3")
    elif form == "url argument":
        client = database.connect(url=f"127.0.0.1:{server.port}:3")
    else:
        client = database.connect(f"redis://127.0.0.1:{server.port}/2", db=3)

    assert list(note.collection()) == []
    note(text="after")
    assert server.client(db=3).hget("test-database:note:1:hash", "text") == "after"
    assert client is database.connection
    assert server.client(db=0).hget("test-database:note:1:hash", "text") == "before"


def test_connect_does_not_contact_the_former_place(server: RedisServer) -> None:
    with Listener() as former:
        database = JobsDatabase(**former.settings)

        database.connect(**server.settings)
        database.connection.ping()
        with pytest.raises(DatabaseException):
            database.connect(host="127.0.0.1", port=free_port())

    assert former.connections == 0


def test_connect_opens_no_other_address_than_the_new_one(server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """In version 2 it opened localhost:6379 on the way."""
    opened: list[Any] = []
    really_connect = socket.socket.connect

    def connect(self: socket.socket, address: Any) -> None:
        opened.append(address)
        really_connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect)
    database = JobsDatabase()

    database.connect(host="127.0.0.1", port=server.port, db=1)
    database.connection.ping()

    assert set(opened) == {("127.0.0.1", server.port)}


def test_nothing_is_opened_before_the_first_use(own_cache: dict[Any, redis.Redis]) -> None:
    with Listener() as listener:
        database = JobsDatabase(f"redis://127.0.0.1:{listener.port}")
        database.reset(f"redis://127.0.0.1:{listener.port}/1")

    assert (listener.connections, own_cache) == (0, {})


def test_the_default_is_localhost_6379_db_0() -> None:
    """G12."""
    assert JobsDatabase().connection_settings == {"host": "localhost", "port": 6379, "db": 0}
    assert str(JobsDatabase()) == "redis://localhost:6379/0"


def test_connect_without_arguments_gives_the_client_in_force(server: RedisServer) -> None:
    database = JobsDatabase(**server.settings)

    assert database.connect() is database.connection
    assert database.connection.ping() is True


def test_replies_are_text_and_resp2_whatever_redis_py_prefers(server: RedisServer) -> None:
    database = JobsDatabase(**server.settings)

    database.connection.hset("h", "a", "b")

    assert database.connection.hgetall("h") == {"a": "b"}
    assert database.connection.connection_pool.connection_kwargs["protocol"] == 2


def test_a_model_can_use_another_database(server: RedisServer) -> None:
    """G10: `use_database` as documented, to any PipelineDatabase."""
    note = model_on(JobsDatabase(**server.settings))
    elsewhere = PipelineDatabase(**{**server.settings, "db": 5})

    note.use_database(elsewhere)
    note(text="there")

    assert server.client(db=5).hget("test-database:note:1:hash", "text") == "there"


def test_pipelines_of_limpyd_work_after_connect(server: RedisServer) -> None:
    database = JobsDatabase()
    database.connect(**server.settings)
    note = model_on(database)(text="a")

    with database.pipeline() as pipe:
        note.text.hset("b")
        note.text.hget()
        assert pipe.execute()[-1] == "b"

    assert note.text.hget() == "b"


# --- the cache of clients ---


def test_two_settings_with_the_same_values_do_not_share_a_client(server: RedisServer) -> None:
    database = JobsDatabase(**server.settings)

    first = database.connect(**server.settings, health_check_interval=1, max_connections=2)
    second = database.connect(**server.settings, health_check_interval=2, max_connections=1)

    assert first is not second


def test_the_same_settings_share_a_client(server: RedisServer) -> None:
    assert JobsDatabase(**server.settings).connection is JobsDatabase(server.url).connection


def test_the_version_is_that_of_the_server_in_force(server: RedisServer) -> None:
    with Listener({**info("6.2.1"), b"PING": b"+PONG\r\n"}, otherwise=b"+OK\r\n") as other:
        database = JobsDatabase(**other.settings)
        assert database.redis_version == (6, 2, 1)

        database.connect(**server.settings)

    expected = tuple(int(part) for part in server.client().info("server")["redis_version"].split("."))
    assert database.redis_version == expected


# --- what is wrong is told, and changes nothing ---


def failing_settings(kind: str, locked: RedisServer) -> dict[str, Any]:
    return {
        "unreachable": {"host": "127.0.0.1", "port": free_port(), "db": 0, "password": "Secret-7X"},
        "no such socket": {"unix_socket_path": "/nowhere/redis.sock", "password": "Secret-7X"},
        "no password": locked.settings,
        "wrong password": {**locked.settings, "password": "Wrong-7X"},
        "wrong user": {**locked.settings, "username": "nobody", "password": "Secret-7X"},
        "wrong db": {**locked.settings, "password": "Secret-7X", "db": 99},
    }[kind]


@pytest.mark.parametrize(
    "kind", ["unreachable", "no such socket", "no password", "wrong password", "wrong user", "wrong db"]
)
def test_a_database_that_cannot_be_used_leaves_everything_as_it_was(
    kind: str, server: RedisServer, locked_server: RedisServer, own_cache: dict[Any, redis.Redis]
) -> None:
    database = JobsDatabase(**server.settings)
    former = database.connection
    settings, cached, version = database.connection_settings, dict(own_cache), database.redis_version

    with pytest.raises(DatabaseException) as caught:
        database.connect(**failing_settings(kind, locked_server))

    assert str(caught.value).startswith("Unable to use the database ")
    assert "\n" not in str(caught.value)
    assert "Secret-7X" not in str(caught.value)
    assert "Wrong-7X" not in str(caught.value)
    assert database.connection_settings == settings
    assert database.connection is former
    assert own_cache == cached
    assert database.redis_version == version


@pytest.mark.parametrize("kind", ["unreachable", "wrong password", "wrong db"])
def test_the_first_use_tells_the_same(kind: str, locked_server: RedisServer, own_cache: dict[Any, redis.Redis]) -> None:
    database = JobsDatabase(**failing_settings(kind, locked_server))

    for _ in range(2):
        with pytest.raises(DatabaseException, match="Unable to use the database"):
            database.connection.ping()

    assert own_cache == {}


def test_the_reason_of_redis_is_in_the_line_and_chained(locked_server: RedisServer) -> None:
    with pytest.raises(DatabaseException, match=r"/99: .*out of range") as caught:
        JobsDatabase().connect(f"redis://:Secret-7X@127.0.0.1:{locked_server.port}/99")

    assert f"redis://:***@127.0.0.1:{locked_server.port}/99: " in str(caught.value)
    assert isinstance(caught.value.__cause__, redis.RedisError)


def test_a_server_that_quotes_the_password_in_its_error_is_not_quoted() -> None:
    quoting = b"-ERR unknown command 'AUTH', with args beginning with: 'Secret-7X'\r\n"

    with Listener(otherwise=quoting) as listener, pytest.raises(DatabaseException) as caught:
        JobsDatabase().connect(**listener.settings, password="Secret-7X")

    shown = "".join(traceback.format_exception(caught.value))
    assert "Secret-7X" not in shown.replace('password="Secret-7X"', "")  # the line of this test is in the traceback
    assert "***" in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


@pytest.mark.parametrize("version", ["6.0.16", "5.0.7", "2.8.0", "6.1.240"])
def test_a_server_that_is_too_old_is_refused(version: str, server: RedisServer) -> None:
    database = JobsDatabase(**server.settings)
    with Listener(info(version), otherwise=b"+OK\r\n") as old:
        with pytest.raises(ServerTooOld, match=rf"needs redis-server >= 6\.2, this one is {version}"):
            database.connect(**old.settings)
        assert database.connection.ping()

        with pytest.raises(ServerTooOld):
            JobsDatabase(**old.settings).connection.ping()


@pytest.mark.parametrize("version", ["6.2.0", "6.2.14", "7.0.15", "8.2.1", "255.255.255"])
def test_a_server_that_is_new_enough_is_used(version: str) -> None:
    with Listener(info(version), otherwise=b"+OK\r\n") as new:
        assert check_server(new.settings) == tuple(int(part) for part in version.split("."))


def test_a_server_that_never_answers_is_told_within_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("limpyd_jobs.database.CHECK_TIMEOUT_SECONDS", 0.2)
    with Listener(otherwise=b"") as silent, pytest.raises(DatabaseException, match=r"(?i)time(d )?out"):
        JobsDatabase().connect(**silent.settings)


def test_something_that_is_no_redis_is_refused() -> None:
    with Listener(otherwise=b"HTTP/1.1 400 Bad Request\r\n\r\n") as web, pytest.raises(DatabaseException):
        JobsDatabase().connect(**web.settings)


def test_a_name_that_cannot_be_read_changes_nothing(server: RedisServer) -> None:
    database = JobsDatabase(**server.settings)

    with pytest.raises(InvalidDatabaseURL):
        database.connect("redis://localhost:port")
    with pytest.raises(InvalidDatabaseURL, match="given twice"):
        database.connect("redis://localhost", url="redis://localhost")
    with pytest.raises(TypeError):
        database.connect(hots="localhost")

    assert database.connection_settings == server.settings


# --- passwords, users ---


def test_the_password_of_the_server_is_used_and_never_shown(locked_server: RedisServer) -> None:
    database = JobsDatabase()

    database.connect(f"redis://worker:Other-7X@127.0.0.1:{locked_server.port}/1")

    assert database.connection.acl_whoami() == "worker"
    assert str(database) == f"redis://worker:***@127.0.0.1:{locked_server.port}/1"
    assert "Other-7X" not in repr(database)


def test_a_password_works_over_a_unix_socket(locked_server: RedisServer) -> None:
    client = JobsDatabase().connect(f"unix://:Secret-7X@{locked_server.socket_path}?db=2")

    assert client.ping() is True


# --- a client of one's own ---


def test_a_client_of_ones_own_has_the_settings_in_force(server: RedisServer) -> None:
    database = JobsDatabase(**{**server.settings, "db": 7})

    client = new_client(database.connection_settings, socket_timeout=None)

    client.set("a", "b")
    assert database.connection.get("a") == "b"
    assert client is not database.connection


# --- embedded ---


def test_an_embedded_database_is_started_by_connect_and_again_when_it_was_killed(tmp_path: Any) -> None:
    directory = tmp_path / "data"
    database = JobsDatabase()
    try:
        database.connect(f"embedded://{directory}?db=2")
        database.connection.set("a", "b")
        assert str(database) == f"embedded://{directory}?db=2"
        assert database.connection_settings == {"unix_socket_path": str(directory / "redis.sock"), "db": 2}
        assert stop(directory)

        client = database.connect()

        assert client.get("a") == "b"
        assert stop(directory)
        wait_until(lambda: not (directory / "redis.pid").exists())
        assert database.connect(f"embedded://{directory}?db=2").get("a") == "b"
    finally:
        stop(directory)


def test_an_embedded_database_is_started_by_the_first_use(tmp_path: Any) -> None:
    database = JobsDatabase(f"embedded://{tmp_path}")
    try:
        assert not (tmp_path / "redis.sock").exists()

        assert database.connection.ping() is True
    finally:
        stop(tmp_path)


def test_moving_away_from_an_embedded_database_leaves_it(server: RedisServer, tmp_path: Any) -> None:
    database = JobsDatabase(f"embedded://{tmp_path / 'never-used'}")

    database.connect(**server.settings)

    assert database.connection.ping() is True
    assert not (tmp_path / "never-used").exists()


# --- sockets ---


@pytest.mark.parametrize("name", ["redis://127.0.0.1:1/0", "unix:///tmp/nowhere.sock?db=0"])
def test_each_socket_has_a_timeout_and_is_looked_after(name: str) -> None:
    client = new_client(parse_database(name))

    settings = client.connection_pool.connection_kwargs
    assert settings["socket_timeout"] == 5
    assert settings["health_check_interval"] == 30
    if "host" in settings:
        assert (settings["socket_connect_timeout"], settings["socket_keepalive"]) == (5, True)


def test_what_a_database_says_about_its_sockets_wins() -> None:
    name = (
        "redis://127.0.0.1:1/0?socket_timeout=77&socket_connect_timeout=7&socket_keepalive=no&health_check_interval=3"
    )
    client = new_client(parse_database(name))

    settings = client.connection_pool.connection_kwargs
    found = [settings[key] for key in ("socket_timeout", "socket_connect_timeout", "health_check_interval")]
    assert found == [77, 7, 3]
    assert not settings["socket_keepalive"]


@pytest.mark.parametrize(
    ("options", "checks"), [("", True), ("?ssl_cert_reqs=none", False), ("?ssl_check_hostname=no", False)]
)
def test_the_host_name_in_a_certificate_is_checked_unless_told_otherwise(options: str, checks: bool) -> None:
    client = new_client(parse_database(f"rediss://127.0.0.1:1/0{options}"))

    assert bool(client.connection_pool.connection_kwargs.get("ssl_check_hostname")) is checks
