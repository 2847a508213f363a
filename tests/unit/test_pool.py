"""What a pool is made of, without its processes."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from limpyd_jobs import ConfigurationException, LimpydJobsException, Worker
from limpyd_jobs.scripts.worker import read_pool_options
from limpyd_jobs.workers import WorkerPool, member, pool, reload
from limpyd_jobs.workers.config import CommandPool

from ..base import wait_until

# --- the arguments ---


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "4", None])
def test_the_number_of_processes_is_a_positive_integer(value: Any) -> None:
    with pytest.raises(ConfigurationException, match=f"Invalid processes: {value!r}: must be an integer, 1 or more"):
        WorkerPool(Worker, processes=value)


@pytest.mark.parametrize("value", [None, 5, b"name"])
def test_the_worker_is_something_that_makes_one(value: Any) -> None:
    with pytest.raises(ConfigurationException, match=r"Invalid worker: .*: must be a worker class, a function"):
        WorkerPool(value)


def test_reload_needs_watchfiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reload, "find_spec", lambda name: None)

    with pytest.raises(ConfigurationException, match=r"pip install 'redis-limpyd-jobs\[reload\]'"):
        WorkerPool(reload=True)


def test_a_pool_runs_in_the_main_thread_only() -> None:
    errors: list[Exception] = []

    def run() -> None:
        try:
            WorkerPool(queues="test").run()
        except LimpydJobsException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()

    assert [str(error) for error in errors] == ["A pool must be run in the main thread"]


# --- the command line, as the parent reads it ---


@pytest.mark.parametrize(
    ("arguments", "processes"),
    [
        (["--processes=4"], 4),
        (["--queues", "mail", "--processes", "4", "--burst"], 4),
        (["--processes=2", "--processes=3"], 3),
        (["--reload"], None),
        (["--reload", "--processes=1"], 1),
    ],
)
def test_the_parent_reads_what_it_needs(arguments: list[str], processes: int | None) -> None:
    options = read_pool_options(arguments)

    assert options is not None and options.processes == processes


@pytest.mark.parametrize("text", ["0", "-1", "x", "1.5", ""])
def test_a_wrong_number_is_left_to_the_real_parser(text: str) -> None:
    assert read_pool_options([f"--processes={text}"]) is None


@pytest.mark.parametrize("arguments", [[], ["--queues=mail"], ["--proc=4"], ["--processes"]])
def test_without_processes_there_is_no_pool_yet(arguments: list[str]) -> None:
    assert read_pool_options(arguments) is None


def test_the_parent_writes_with_the_name_and_the_level_of_the_command_line() -> None:
    options = read_pool_options(["--processes=2", "--logger-name=shop", "--logger-level=warning", "--no-title"])
    assert options is not None

    logger = CommandPool(lambda: None, "worker.py", options).logger

    assert (logger.name, logger.level, options.update_title) == ("shop", 30, False)


# --- the ends ---


@pytest.mark.parametrize(
    ("code", "shell", "text"),
    [
        (0, 0, "with exit code 0"),
        (3, 3, "with exit code 3"),
        (-9, 137, "by SIGKILL"),
        (-15, 143, "by SIGTERM"),
        (-50, 178, "by signal 50"),
    ],
)
def test_an_end_is_told_as_shells_do(code: int, shell: int, text: str) -> None:
    assert (pool.shell_code(code), pool.show_end(code)) == (shell, text)


@pytest.mark.parametrize(("value", "code"), [(None, 0), (0, 0), (2, 2), (-1, 255), (256, 0), ("why", 1)])
def test_the_exit_code_is_that_which_python_gives(value: Any, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert member.exit_code_of(SystemExit(value)) == code

    assert capsys.readouterr().err == ("why\n" if value == "why" else "")


def test_pauses_after_crashes_grow_up_to_a_limit() -> None:
    found = WorkerPool()
    found._has_started = True
    (place,) = found._places

    pauses = []
    for _ in range(12):
        before = pool.time.monotonic()
        found._start_after_crash(place, 1)
        pauses.append(place.start_at - before)

    assert 0.3 < pauses[0] <= 0.6
    assert 20 < pauses[-1] <= 31


# --- changed sources ---


@pytest.fixture
def load(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Make a module and load it; gives its file."""
    names = []

    def load_module(name: str, directory: Path = tmp_path) -> Path:
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / f"{name}.py"
        path.write_text("value = 1\n")
        module = ModuleType(name)
        module.__file__ = str(path)
        sys.modules[name] = module
        names.append(name)
        return path

    yield load_module
    for name in names:
        del sys.modules[name]


class Watched:
    """A watch that runs, with what it has found."""

    def __init__(self) -> None:
        self.changed: list[str] = []
        self.watch = reload.SourceWatch(set(sys.modules), self.changed.append)

    def wait(self) -> str:
        wait_until(lambda: self.changed, 20)
        return self.changed[0]


def test_a_changed_source_is_found(load: Callable[[str], Path]) -> None:
    watched = Watched()
    path, other = load("pool_watched_1"), load("pool_watched_2")
    watched.watch.start()
    wait_until(lambda: str(other) in watched.watch._seen)

    path.write_text("value = 22\n")

    assert watched.wait() == str(path)


def test_a_source_that_is_replaced_is_found(load: Callable[[str], Path], tmp_path: Path) -> None:
    watched = Watched()
    path = load("pool_watched_1")
    watched.watch.start()
    wait_until(lambda: str(path) in watched.watch._seen)

    (tmp_path / "new").write_text("value = 2\n")
    os.replace(tmp_path / "new", path)

    assert watched.wait() == str(path)


def test_a_module_that_is_loaded_later_is_watched_too(load: Callable[..., Path], tmp_path: Path) -> None:
    watched = Watched()
    first = load("pool_watched_1")
    watched.watch.start()
    wait_until(lambda: str(first) in watched.watch._seen)
    path = load("pool_watched_2", tmp_path / "elsewhere")
    wait_until(lambda: str(path) in watched.watch._seen)

    path.write_text("value = 22\n")

    assert watched.wait() == str(path)


def test_what_is_installed_or_was_loaded_before_is_not_watched(load: Callable[..., Path], tmp_path: Path) -> None:
    load("pool_watched_before")
    known = set(sys.modules)
    load("pool_watched_installed", tmp_path / "lib" / "site-packages")
    own = load("pool_watched_own")
    sys.modules["pool_watched_none"] = None  # type: ignore[assignment]  # as `import` does for what it must not find

    try:
        assert reload.source_files(known) == [str(own)]
        assert not [path for path in reload.source_files(set()) if path.startswith(os.path.dirname(os.__file__))]
    finally:
        del sys.modules["pool_watched_none"]
