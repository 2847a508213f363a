"""Worker processes and producers on servers that ask for more: a user with few rights, a password, TLS."""

from __future__ import annotations

import re
import select
import signal
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import redis
import trustme

from limpyd_jobs import STATUSES, Error, Job, Queue, admin
from limpyd_jobs.database import DATABASE_VARIABLE, JobsDatabase
from limpyd_jobs.exceptions import DatabaseException

from ..base import PROCESS_SECONDS, ROOT, Process, RedisServer, WorkerProcess, wait_until

REFUSED_ONCE = "refused once"
CALLBACK = f"--callback={__name__}.visit"
WORKER = ("--queues=visits", CALLBACK)

PASSWORD = "Secret-7X"
WRONG = "Wrong-7X"


def visit(job: Any, queue: Any) -> None:
    """What the workers do with a job."""
    if job.identifier.hget() == REFUSED_ONCE and job.tries.hget() == "1":
        raise ValueError("not yet")


def add(identifier: str, **values: Any) -> Any:
    return Job.add_job(identifier, queue_name="visits", **values)


def last_line(worker: Process) -> str:
    """What a worker that could not start has to say; it must be one line, after the usage."""
    *before, last = worker.output.splitlines()
    assert "Traceback" not in worker.output
    assert [line for line in before if line and not line.startswith(("Usage:", "Run a worker"))] == []
    return last


# --- a user with the rights that docs/deployment.md gives it ---


def acl_words() -> list[str]:
    """The line of the document, without the word `user`: the name, then the rules."""
    (line,) = re.findall(r"^user (jobs .*)$", (ROOT / "docs" / "deployment.md").read_text(), re.MULTILINE)
    return str(line).split()


def acl_password() -> str:
    (password,) = (word[1:] for word in acl_words() if word.startswith(">"))
    return password


@pytest.fixture(scope="module")
def acl_server() -> Iterator[RedisServer]:
    with RedisServer(tcp=True) as server:
        root: Any = server.client(**server.settings)
        root.execute_command("ACL", "SETUSER", *acl_words())
        yield server


def acl_url(server: RedisServer, number: int = 0) -> str:
    return f"redis://jobs:{acl_password()}@127.0.0.1:{server.port}/{number}?client_name=shop"


def denied(server: RedisServer) -> set[str]:
    """The commands and keys that were refused; redis-py names itself where it may, and does without elsewhere."""
    entries = server.client(**server.settings).acl_log()
    return {str(entry["object"]) for entry in entries} - {"client"}


@pytest.mark.parametrize("number", [0, 1])
def test_the_rights_in_the_document_are_enough_for_producers_and_workers(
    database: JobsDatabase, acl_server: RedisServer, number: int
) -> None:
    acl_server.client(**acl_server.settings).acl_log_reset()
    database.connect(acl_url(acl_server, number))
    plain, urgent = add("plain"), add("urgent", priority=2)
    later, failing, canceled = add("later", delayed_for=1), add(REFUSED_ONCE), add("canceled")
    canceled.status.hset(STATUSES.CANCELED)
    waiting = Job.collection(status=STATUSES.WAITING, queued="1").instances()
    assert sorted(job.identifier.hget() for job in waiting) == ["plain", REFUSED_ONCE, "urgent"]
    assert (Queue.count_waiting_jobs("visits"), Queue.count_delayed_jobs("visits")) == (4, 1)

    arguments = (*WORKER, "--requeue-times=1", "--requeue-delay-delta=0.5", "--max-loops=6")
    with WorkerProcess(*arguments, database=acl_url(acl_server, number)) as worker:
        assert worker.wait() == 0, worker.output

    assert [job.status.hget() for job in (plain, urgent, later, failing)] == [STATUSES.SUCCESS] * 4
    assert (canceled.status.hget(), canceled.queued.hget(), failing.tries.hget()) == (STATUSES.CANCELED, None, "2")
    (error,) = Error.collection(queue_name="visits", date_time__gte="2020-01-01").instances()
    assert error.message.hget() == "not yet"
    assert list(Job.collection(priority__in=[2], status=STATUSES.SUCCESS)) == [urgent.pk.get()]
    with database.pipeline(transaction=True) as pipeline:
        plain.identifier.hget()
        assert pipeline.execute() == ["plain"]
    assert admin.check() == []
    admin.pause("visits")
    assert (list(admin.paused()), admin.left(["visits"]).count) == (["visits"], 0)
    assert admin.resume("visits")
    assert (admin.workers(), admin.health()) == ([], [])
    error.delete()
    assert denied(acl_server) == set()


FORBIDDEN = [
    "GET other",
    "SET other 1",
    "DEL other",
    "RENAME jobs:models other",
    "EVAL return(redis.call('get','other')) 0",
    "FLUSHALL",
    "FLUSHDB",
    "SWAPDB 0 1",
    "KEYS *",
    "SORT jobs:leases BY nosort GET other",
    "CONFIG SET dir /tmp",
    "DEBUG SLEEP 0",
    "SCRIPT FLUSH",
    "FUNCTION FLUSH",
    "ACL LIST",
    "CLIENT KILL TYPE normal",
    "MONITOR",
    "SHUTDOWN NOSAVE",
    "REPLICAOF no one",
    "MIGRATE localhost 1 jobs:models 0 1",
    "PUBLISH news hello",
    "SUBSCRIBE news",
]


@pytest.mark.parametrize("command", FORBIDDEN)
def test_the_rights_in_the_document_end_with_the_namespace(acl_server: RedisServer, command: str) -> None:
    acl_server.client(**acl_server.settings).set("other", "mine")
    user: Any = acl_server.client(**acl_server.tcp_settings, username="jobs", password=acl_password())

    # the words are those of Redis: 6.2 does not know FUNCTION, 7 has switched DEBUG off for everybody
    with pytest.raises(redis.ResponseError, match=r"permission|can't access|unknown command|not allowed"):
        user.execute_command(*command.split(" "))

    assert acl_server.client(**acl_server.settings).get("other") == "mine"


# --- a password ---


@pytest.fixture(scope="module")
def locked_server() -> Iterator[RedisServer]:
    with RedisServer(tcp=True, options={"requirepass": PASSWORD}) as server:
        yield server


def locked_url(server: RedisServer, password: str) -> str:
    return f"redis://:{password}@127.0.0.1:{server.port}/0"


def start_named(url: str, how: str, *arguments: str) -> WorkerProcess:
    if how == "--database":
        return WorkerProcess(*arguments, f"--database={url}")
    return WorkerProcess(*arguments, environment={DATABASE_VARIABLE: url})


@pytest.mark.parametrize("how", ["--database", DATABASE_VARIABLE])
def test_a_worker_gives_the_password_and_never_shows_it(
    database: JobsDatabase, locked_server: RedisServer, how: str
) -> None:
    url = locked_url(locked_server, PASSWORD)
    database.connect(url)
    job = add(f"named by {how}")

    with start_named(url, how, *WORKER, "--max-loops=1", "--print-options") as worker:
        assert worker.wait() == 0, worker.output

        assert f"redis://:***@127.0.0.1:{locked_server.port}/0" in worker.output
        assert PASSWORD not in worker.output
    assert job.status.hget() == STATUSES.SUCCESS


@pytest.mark.parametrize("how", ["--database", DATABASE_VARIABLE])
def test_a_wrong_password_is_one_line_without_it_and_exit_code_2(locked_server: RedisServer, how: str) -> None:
    with start_named(locked_url(locked_server, WRONG), how, *WORKER) as worker:
        assert worker.wait() == 2

        assert f"Unable to use the database redis://:***@127.0.0.1:{locked_server.port}/0: " in last_line(worker)
        assert re.search("invalid (username|password)", last_line(worker))
        assert WRONG not in worker.output


def test_no_password_where_one_is_needed_is_one_line_and_exit_code_2(locked_server: RedisServer) -> None:
    with WorkerProcess(*WORKER, database=locked_server.tcp_url) as worker:
        assert worker.wait() == 2

        assert "Authentication required" in last_line(worker)


# --- TLS ---


class TlsProxy:
    """Speaks TLS in front of a server: the redis-server of the tests may be built without it.

    Attributes:
        received: all that clients sent, as it came over the wire.
        passed_on: all that the server got of it, in the clear.
    """

    def __init__(self, server: RedisServer, certificate: trustme.LeafCert, client_ca: trustme.CA | None = None) -> None:
        self.received, self.passed_on = bytearray(), bytearray()
        self._server = server
        self._context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        certificate.configure_cert(self._context)
        if client_ca:
            client_ca.configure_trust(self._context)
            self._context.verify_mode = ssl.CERT_REQUIRED
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._accept, daemon=True)

    def __enter__(self) -> TlsProxy:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)  # ends the `accept` of the thread
        self._socket.close()
        self._thread.join(5)

    def url(self, **options: Path | str) -> str:
        pairs = "&".join(f"{name}={quote(str(value), safe='')}" for name, value in options.items())
        return f"rediss://:{PASSWORD}@localhost:{self.port}/0?{pairs}"

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._socket.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=[client], daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, socket.socket(socket.AF_UNIX) as server:
            server.connect(self._server.socket_path)
            try:
                self._carry(client, server)
            except OSError:  # of TLS too: one of the two has had enough
                return

    def _carry(self, client: socket.socket, server: socket.socket) -> None:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = self._context.wrap_bio(incoming, outgoing, server_side=True)
        while True:
            readable, _, _ = select.select([client, server], [], [])
            data = {connection: connection.recv(65536) for connection in readable}
            if not all(data.values()):
                return
            self.received += data.get(client, b"")
            incoming.write(data.get(client, b""))
            try:
                if server in data:
                    tls.write(data[server])
                while text := tls.read(65536):  # makes the handshake, too
                    self.passed_on += text
                    server.sendall(text)
            except ssl.SSLWantReadError:
                pass
            finally:
                client.sendall(outgoing.read())


@pytest.fixture(scope="module")
def ca() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def ca_path(ca: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("authority") / "ca.pem"
    ca.cert_pem.write_to_path(str(path))
    return path


@pytest.fixture
def proxy(ca: trustme.CA, locked_server: RedisServer) -> Iterator[TlsProxy]:
    with TlsProxy(locked_server, ca.issue_cert("localhost")) as proxy:
        yield proxy


@pytest.fixture
def strict_proxy(ca: trustme.CA, locked_server: RedisServer) -> Iterator[TlsProxy]:
    """It wants a certificate of the client."""
    with TlsProxy(locked_server, ca.issue_cert("localhost"), client_ca=ca) as proxy:
        yield proxy


def assert_only_tls_was_sent(proxy: TlsProxy) -> None:
    assert proxy.received[:1] == b"\x16", "the first byte is not that of a handshake"
    for text in (PASSWORD.encode(), b"AUTH", b"HELLO", b"INFO", b"EVALSHA"):
        assert text not in proxy.received


def test_workers_and_producers_go_through_tls(database: JobsDatabase, proxy: TlsProxy, ca_path: Path) -> None:
    url = proxy.url(ssl_ca_certs=ca_path, ssl_check_hostname="true")
    database.connect(url)
    first = add("before the worker")

    with WorkerProcess(*WORKER, database=url) as worker:
        wait_until(lambda: first.status.hget() == STATUSES.SUCCESS, PROCESS_SECONDS, "the first job is done")
        second = add("while it waits", delayed_for=0.5)
        wait_until(lambda: second.status.hget() == STATUSES.SUCCESS, PROCESS_SECONDS, "the second job is done")
        assert worker.stop(signal.SIGTERM) == 0, worker.output
        assert PASSWORD not in worker.output

    assert PASSWORD.encode() in proxy.passed_on
    assert_only_tls_was_sent(proxy)


@pytest.mark.parametrize("trusted", ["the system", "another authority"])
def test_a_server_whose_certificate_is_not_trusted_gets_nothing(
    database: JobsDatabase, proxy: TlsProxy, trusted: str, tmp_path: Path
) -> None:
    trustme.CA().cert_pem.write_to_path(str(tmp_path / "other.pem"))
    url = proxy.url(**({} if trusted == "the system" else {"ssl_ca_certs": tmp_path / "other.pem"}))

    with pytest.raises(DatabaseException, match="certificate verify failed"):
        database.connect(url)
    with WorkerProcess(*WORKER, database=url) as worker:
        assert worker.wait() == 2

        assert f"Unable to use the database rediss://:***@localhost:{proxy.port}/0: " in last_line(worker)
        assert "certificate verify failed" in last_line(worker)
        assert PASSWORD not in worker.output
    assert proxy.passed_on == b""
    assert_only_tls_was_sent(proxy)


def test_a_certificate_for_another_host_is_refused(locked_server: RedisServer, ca: trustme.CA, ca_path: Path) -> None:
    with TlsProxy(locked_server, ca.issue_cert("elsewhere.example")) as proxy:
        # asked for: redis-py 5 does not look at the name by itself
        url = proxy.url(ssl_ca_certs=ca_path, ssl_check_hostname="true")
        with WorkerProcess(*WORKER, database=url) as worker:
            assert worker.wait() == 2

            assert "Hostname mismatch" in last_line(worker)
        assert proxy.passed_on == b""


def test_a_worker_shows_its_certificate_to_a_server_that_wants_one(
    database: JobsDatabase, strict_proxy: TlsProxy, ca: trustme.CA, ca_path: Path, tmp_path: Path
) -> None:
    certificate = ca.issue_cert("worker@shop.example")
    certificate.private_key_pem.write_to_path(str(tmp_path / "worker.key"))
    certificate.cert_chain_pems[0].write_to_path(str(tmp_path / "worker.pem"))
    url = strict_proxy.url(
        ssl_ca_certs=ca_path, ssl_certfile=tmp_path / "worker.pem", ssl_keyfile=tmp_path / "worker.key"
    )
    database.connect(url)
    job = add("with a certificate")

    with WorkerProcess(*WORKER, "--max-loops=1", database=url) as worker:
        assert worker.wait() == 0, worker.output

    assert job.status.hget() == STATUSES.SUCCESS
    assert_only_tls_was_sent(strict_proxy)


def test_a_worker_without_a_certificate_is_turned_away_by_a_server_that_wants_one(
    strict_proxy: TlsProxy, ca_path: Path
) -> None:
    with WorkerProcess(*WORKER, database=strict_proxy.url(ssl_ca_certs=ca_path)) as worker:
        assert worker.wait() == 2

        assert f"Unable to use the database rediss://:***@localhost:{strict_proxy.port}/0: " in last_line(worker)
    assert strict_proxy.passed_on == b""
