"""What is printed: on stdout what was asked for, on stderr what is said about it.

On a terminal tables are aligned and fit its width: long texts are shortened in the middle, and there are colours (none
with NO_COLOR). Elsewhere, and with TERM=dumb, a table is lines with tabs between the cells, whole, below a line of
titles.

Texts from Redis may hold anything: what is no printable character is written as an escape, so that nothing of it is a
command to the terminal, and a record stays one line.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, is_dataclass
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

from ..wording import counted as counted
from ..wording import size

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

BATCH = 500  # rows of which a table is made at a time, when there are many
GAP = 2  # between columns
READABLE = 16  # what a column is shortened to before others are left out
SMALLEST = 8  # what it is shortened to at least


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        is_number: aligned to the right.
        shrinks: its texts are shortened in the middle where the terminal is too narrow.
        spare: it is left out where even that does not make enough room, the column with the highest number first;
            0: never.
        brief: what a terminal shows of a text, instead.
        style: how a text in it is shown on a terminal with colours; rich's words: "red", "bold yellow", "".
    """

    title: str
    is_number: bool = False
    shrinks: bool = False
    spare: int = 0
    brief: Callable[[str], str] = lambda text: text
    style: Callable[[str], str] = lambda text: ""


Row = Sequence[Any]  # a value for each column; None is shown as nothing


# --- texts


def clean(value: Any) -> str:
    """A value as one line of printable characters; None is an empty text."""
    text = "" if value is None else str(value)
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


def clean_lines(text: str) -> str:
    """A text of several lines, each of printable characters."""
    return "\n".join(clean(line.expandtabs()) for line in text.splitlines())


def shorten(text: str, width: int) -> str:
    """A text that takes no more columns of a terminal than `width`: `…` stands for what is left out in its middle."""
    from rich.cells import cell_len, set_cell_size

    if cell_len(text) <= width:
        return text
    right = (width - 1) // 2
    left = width - 1 - right
    head, tail = set_cell_size(text, left), set_cell_size(text[::-1], right)[::-1]
    return f"{head}…{tail}"


def show_age(seconds: float | None) -> str:
    """A duration in its two greatest units: `45s`, `3m12s`, `2h05m`, `4d03h`."""
    if seconds is None:
        return ""
    whole = max(int(seconds), 0)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02}h"


def show_size(count: int | None) -> str:
    """A number of bytes: `512 bytes`, `3.4 MiB`."""
    return "" if count is None else size(count)


# --- printing


def say(text: str) -> None:
    """Something about what is done, for who looks on: on stderr."""
    print(text, file=sys.stderr, flush=True)


def is_drawn_on(stream: Any) -> bool:
    """Is this a terminal on which things can be drawn?"""
    return bool(stream.isatty()) and os.environ.get("TERM") != "dumb"


def make_console(stream: Any = None) -> Console:
    """Rich's console, which takes texts as they are; on stdout, if nothing else is said."""
    from rich.console import Console

    return Console(file=stream or sys.stdout, highlight=False, markup=False, emoji=False)


def print_text(text: str, style: str = "") -> None:
    """A text of our own on stdout, whole; on a terminal with colours in this style."""
    if style and is_drawn_on(sys.stdout):
        make_console().print(text, style=style, soft_wrap=True)
    else:
        print(text)


def print_table(columns: Sequence[Column], rows: Iterable[Row], has_titles: bool = True) -> None:
    """Rows, in batches when there are many."""
    iterator = iter(rows)
    batch = list(islice(iterator, BATCH))
    while batch or has_titles:
        if is_drawn_on(sys.stdout):
            make_console().print(make_table(columns, batch, make_console().width, has_titles))
        else:
            _print_plain(columns, batch, has_titles)
        has_titles = False
        batch = list(islice(iterator, BATCH))


def _print_plain(columns: Sequence[Column], rows: Sequence[Row], has_titles: bool) -> None:
    if has_titles:
        print("\t".join(column.title for column in columns))
    for row in rows:
        print("\t".join(map(clean, row)))


def make_table(columns: Sequence[Column], rows: Sequence[Row], width: int, has_titles: bool = True) -> Table:
    """A table of rich that fits the width, without any lines."""
    from rich.cells import cell_len
    from rich.table import Table
    from rich.text import Text

    texts = [[column.brief(clean(value)) for column, value in zip(columns, row, strict=True)] for row in rows]
    needed = [
        max([cell_len(column.title) if has_titles else 0, *(cell_len(row[place]) for row in texts)])
        for place, column in enumerate(columns)
    ]
    widths = _fit(columns, needed, width)
    table = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), show_header=has_titles, header_style="bold")
    for place, wide in widths.items():
        column = columns[place]
        justify: Any = "right" if column.is_number else "left"
        table.add_column(Text(column.title), justify=justify, no_wrap=True, width=wide)
    for row in texts:
        table.add_row(*(Text(shorten(row[place], widths[place]), columns[place].style(row[place])) for place in widths))
    return table


def _fit(columns: Sequence[Column], needed: Sequence[int], room: int) -> dict[int, int]:
    """The width of each column that is shown, by its place."""
    places = list(range(len(columns)))

    def least(place: int, size: int) -> int:
        return min(needed[place], size) if columns[place].shrinks else needed[place]

    for extra in sorted((place for place in places if columns[place].spare), key=lambda place: -columns[place].spare):
        if sum(least(place, READABLE) + GAP for place in places) - GAP > room:
            places.remove(extra)
    widths = {place: min(needed[place], room) for place in places}
    while sum(size + GAP for size in widths.values()) - GAP > room:
        widest = max(places, key=lambda place: widths[place] - least(place, SMALLEST))
        if widths[widest] <= least(widest, SMALLEST):
            break  # a very narrow terminal: what is too much is cut off
        widths[widest] -= 1
    return widths


# --- JSON


def as_json(value: Any, indent: int | None = None) -> str:
    """A value as JSON: dataclasses are objects; what JSON does not have is a text."""
    is_ascii = "utf" not in (sys.stdout.encoding or "").lower()  # what it cannot encode is no escape of JSON
    return json.dumps(_plain(value), ensure_ascii=is_ascii, indent=indent, default=str)


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(asdict(value))
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    if isinstance(value, float) and value in (float("inf"), float("-inf")):
        return None
    return value


def print_json(value: Any) -> None:
    """One document; on a terminal with indentation."""
    print(as_json(value, indent=2 if sys.stdout.isatty() else None))


def print_json_list(name: str, items: Iterable[Any], following: str | None = None) -> None:
    """One document with a list, and `next`, where the next page begins; the items are not held in memory."""
    iterator = iter(items)
    first = list(islice(iterator, 1))  # before anything is printed: what goes wrong mostly does it here
    print(f"{{{json.dumps(name)}: [", end="")
    for place, item in enumerate(chain(first, iterator)):
        print(",\n " if place else "\n ", as_json(item), sep="", end="")
    print(f'\n], "next": {json.dumps(following)}}}')


# --- progress


@contextmanager
def progress(label: str, total: int) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr, if that is a terminal; what it gives is called with how many are done, of how many."""
    if not is_drawn_on(sys.stderr):
        yield lambda done, total: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = make_console(sys.stderr)
    with Progress(*columns, console=console, redirect_stdout=False, redirect_stderr=False) as bar:
        task = bar.add_task(label, total=total)
        yield lambda done, total: bar.update(task, completed=done, total=total)
