"""The embedded server, for who operates it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from limpyd_jobs import embedded
from limpyd_jobs.admin import server_status, start_server, stop_server
from limpyd_jobs.database import JobsDatabase


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "data"
    yield path
    embedded.stop(path)


def test_a_server_stays_when_the_process_that_started_it_has_ended_and_is_found_again(directory: Path) -> None:
    code = f"from limpyd_jobs.admin import start_server; print(start_server({str(directory)!r}).pid)"
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True)

    again = start_server(directory)

    assert again.state == "running"
    assert again.pid == int(done.stdout)
    assert server_status(directory).pid == again.pid
    assert again.database == f"embedded://{directory}?db=0"
    assert JobsDatabase(again.database).connection.ping()
    assert again.memory_bytes
    assert again.version


def test_a_server_is_stopped_once_and_its_data_stays(directory: Path) -> None:
    JobsDatabase(start_server(directory).database).connection.set("a", "here")

    assert stop_server(directory) is True
    assert stop_server(directory) is False

    stopped = server_status(directory)
    assert (stopped.state, stopped.pid, stopped.version) == ("stopped", None, None)
    assert stopped.data_bytes > 0


def test_asking_after_a_directory_makes_nothing_there(tmp_path: Path) -> None:
    assert server_status(tmp_path / "nosuch").state == "stopped"
    assert server_status(tmp_path).state == "stopped"

    assert list(tmp_path.iterdir()) == []


def test_a_server_that_does_not_answer_yet_is_loading(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start_server(directory)
    monkeypatch.setattr(embedded, "SOCKET_NAME", "elsewhere.sock")

    assert server_status(directory).state == "loading"
