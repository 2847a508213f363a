"""`status --watch`: the same on the whole screen, again and again, until q is pressed."""

from __future__ import annotations

import os
import select
import sys
import termios
import time
import tty
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click
import redis

from ..exceptions import DatabaseException
from .common import Given
from .output import Column, clean, counted, is_drawn_on, make_console, make_table, show_age
from .rows import QUEUE_COLUMNS, WORKER_COLUMNS, queue_row, worker_row

if TYPE_CHECKING:
    from rich.console import RenderableType

    from ..admin import QueueStatus, Status

LOOK_SECONDS = 0.1  # how soon a key, or another size of the terminal, is seen
FEWEST_ROWS = 3  # of queues, and of workers, when there is little room


def watch(given: Given, names: Sequence[str], seconds: float) -> None:
    """Show the status, again after so many seconds, until q is pressed.

    When Redis cannot be used any more, the last state stays on the screen, with the reason below; it is asked again.

    Raises:
        UsageError: there is no terminal.
        KeyboardInterrupt: Ctrl-C.
    """
    from rich.live import Live

    from .. import admin

    if not (is_drawn_on(sys.stdout) and sys.stdin.isatty()):
        raise click.UsageError("--watch needs a terminal that can be drawn on.")
    found, trouble = admin.status(names, **given.scope), ""
    console = make_console()
    with _keys() as is_ended, Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            size = console.size
            live.update(_screen(given, found, trouble, size.width, size.height), refresh=True)
            if _wait(is_ended, seconds, size, console):
                return
            try:
                found, trouble = admin.status(names, **given.scope), ""
            except (DatabaseException, redis.RedisError) as error:
                trouble = clean(error)


@contextmanager
def _keys() -> Iterator[Any]:
    """Keys are had as they are pressed, and not shown; what it gives says whether q was."""
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    tty.setcbreak(descriptor)
    try:
        yield lambda: _has_q(descriptor)
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def _has_q(descriptor: int) -> bool:
    if not select.select([descriptor], [], [], LOOK_SECONDS)[0]:
        return False
    pressed = os.read(descriptor, 100)
    return not pressed or b"q" in pressed.lower()  # nothing: the terminal is gone


def _wait(is_ended: Any, seconds: float, size: Any, console: Any) -> bool:
    """Until it is time to look again, or the terminal has another size; was q pressed?"""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and console.size == size:
        if is_ended():
            return True
    return False


# --- what is on the screen


def _screen(given: Given, found: Status, trouble: str, width: int, height: int) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    lines = height - 6  # two titles, two empty lines, the first and the last
    of_queues, of_workers = share(lines, len(found.queues), len(found.workers))
    queues = busiest(found.queues, _shown(of_queues, len(found.queues)))
    workers = found.workers[: _shown(of_workers, len(found.workers))]
    last = Text(trouble, style="bold red") if trouble else Text("q ends", style="dim")
    return Group(
        Text(_summary(given, found), style="bold", no_wrap=True, overflow="ellipsis"),
        _fitting(QUEUE_COLUMNS, list(map(queue_row, queues)), len(found.queues), width),
        Text(""),
        _fitting(WORKER_COLUMNS, list(map(worker_row, workers)), len(found.workers), width),
        Text(""),
        last,
    )


def _fitting(columns: Sequence[Column], rows: list[Any], count: int, width: int) -> RenderableType:
    """A table; when it has not all rows, another line says how many there are besides."""
    if len(rows) < count:
        rows = [*rows, (f"... {count - len(rows)} more", *("" for _ in columns[1:]))]
    return make_table(columns, rows, width)


def _shown(room: int, count: int) -> int:
    """How many rows there are: all, or one less than there is room for, as a line says how many are left out."""
    return count if count <= room else room - 1


def share(lines: int, queues: int, workers: int) -> tuple[int, int]:
    """How many rows the queues and the workers get: all, if there is room; else half each, or what the other leaves."""
    lines = max(lines, 2 * FEWEST_ROWS)
    half = lines // 2
    of_queues = min(queues, max(half, lines - workers))
    return of_queues, min(workers, lines - of_queues)


def busiest(queues: Sequence[QueueStatus], room: int) -> list[QueueStatus]:
    """As many queues as there is room for, in their order: those with work first, then those with delayed jobs."""
    if len(queues) <= room:
        return list(queues)

    def rank(place: int) -> tuple[bool, bool, int]:
        queue = queues[place]
        is_busy = any((queue.waiting, queue.due, queue.running, queue.paused))
        return not is_busy, not queue.delayed, place

    return [queues[place] for place in sorted(sorted(range(len(queues)), key=rank)[:room])]


def _summary(given: Given, found: Status) -> str:
    queues = found.queues
    waiting, running = sum(one.waiting for one in queues), sum(one.running for one in queues)
    oldest = max((one.oldest_age for one in queues if one.oldest_age is not None), default=None)
    paused = sum(one.paused for one in queues)
    parts = [
        found.time[:19],
        f"{counted(waiting, 'job')} waiting",
        f"{running:,} running",
        counted(len(found.workers), "worker"),
        *([f"{paused:,} paused"] if paused else []),
        *([f"oldest {show_age(oldest)}"] if oldest is not None else []),
        given.database_name,
    ]
    return "  ".join(parts)
