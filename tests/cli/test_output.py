"""Texts, tables and JSON, as they are printed."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from rich.console import Console

from limpyd_jobs.cli.output import (
    Column,
    Row,
    as_json,
    clean,
    clean_lines,
    counted,
    make_table,
    print_json_list,
    print_table,
    shorten,
    show_age,
    show_size,
)
from limpyd_jobs.cli.rows import ERROR_COLUMNS, GROUP_COLUMNS, JOB_COLUMNS, QUEUE_COLUMNS, WORKER_COLUMNS


def drawn(columns: list[Column], rows: list[Row], width: int) -> list[str]:
    """The lines of a table on a terminal of this width, without styles."""
    stream = io.StringIO()
    Console(file=stream, width=width, color_system=None).print(make_table(columns, rows, width))
    return [line.rstrip() for line in stream.getvalue().splitlines()]


# --- texts


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, ""),
        (7, "7"),
        ("Zoë", "Zoë"),
        ("two\nlines\tand", "two\\nlines\\tand"),
        ("\x1b[31mred\x07", "\\x1b[31mred\\x07"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        ("\udcff", "\\udcff"),
    ],
)
def test_nothing_in_a_text_is_a_command_to_the_terminal(value: object, expected: str) -> None:
    assert clean(value) == expected


def test_a_traceback_keeps_its_lines() -> None:
    assert clean_lines("a\n\tb\x1b[2J\n") == "a\n        b\\x1b[2J"


@pytest.mark.parametrize(
    ("text", "width", "expected"),
    [
        ("user:12:mail", 12, "user:12:mail"),
        ("user:12:mail", 7, "use…ail"),
        ("user:12:mail", 6, "use…il"),
        ("日本語のテキスト", 7, "日…ト"),
    ],
)
def test_a_long_text_is_shortened_in_its_middle(text: str, width: int, expected: str) -> None:
    assert shorten(text, width).replace(" ", "") == expected


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(None, ""), (0.4, "0s"), (-3, "0s"), (59.9, "59s"), (192, "3m12s"), (7500, "2h05m"), (356400, "4d03h")],
)
def test_an_age_is_shown_in_two_units(seconds: float | None, expected: str) -> None:
    assert show_age(seconds) == expected


@pytest.mark.parametrize(
    ("count", "expected"), [(None, ""), (512, "512 bytes"), (3_565_158, "3.4 MiB"), (10**15, "909.5 TiB")]
)
def test_a_size_is_shown_in_its_unit(count: int | None, expected: str) -> None:
    assert show_size(count) == expected


def test_what_is_counted_has_its_plural() -> None:
    assert [counted(count, "job") for count in (0, 1, 2000)] == ["0 jobs", "1 job", "2,000 jobs"]


# --- tables

COLUMNS = [Column("ident", shrinks=True), Column("tries", is_number=True), Column("message", shrinks=True)]


def test_a_table_has_no_lines_around_and_numbers_to_the_right() -> None:
    assert drawn(COLUMNS, [("Job:1", 12, "a"), ("Job:12", 1, "b")], 80) == [
        "ident   tries  message",
        "Job:1      12  a",
        "Job:12      1  b",
    ]


def test_a_table_that_is_too_wide_loses_the_middle_of_its_longest_texts() -> None:
    [_, row] = drawn(COLUMNS, [("limpyd_jobs.models.Job:1", 1, "x" * 30 + "!")], 50)

    assert len(row) <= 50
    assert row.startswith("limpyd") and "…" in row and "Job:1 " in row and row.endswith("!")


def test_columns_that_may_be_missing_are_left_out_when_there_is_no_room() -> None:
    extra = [Column(title, spare=place) for place, title in enumerate(("size", "age"), 1)]
    columns = [Column("name", shrinks=True), extra[0], Column("count"), extra[1]]
    row = ("a" * 20, "12345", "1234567", "123456")

    assert drawn(columns, [row], 44)[0].split() == ["name", "size", "count", "age"]
    assert drawn(columns, [row], 33)[0].split() == ["name", "size", "count"]
    assert drawn(columns, [row], 26)[0].split() == ["name", "count"]


@pytest.mark.parametrize("width", [40, 80, 200])
def test_a_screen_of_any_width_shows_numbers_whole_and_that_a_queue_is_paused(width: int) -> None:
    queue = ("a-queue-with-a-long-name", 5, 123456, 12, 1234, 20, 17, "112.0", "111.8", "2h05m", 12, "paused")

    titles, row = (line.split() for line in drawn(list(QUEUE_COLUMNS), [queue], width))
    assert "…" not in "".join(titles + row[1:])
    assert {"123456", "2h05m", "paused"} <= set(row)
    assert len(row) == {40: 4, 80: 8, 200: 12}[width]


@pytest.mark.parametrize(
    ("columns", "needed"),
    [
        (WORKER_COLUMNS, "worker job for heartbeat"),
        (JOB_COLUMNS, "ident status"),
        (ERROR_COLUMNS, "time type message"),
        (GROUP_COLUMNS, "count type last_seen message"),
    ],
)
def test_a_narrow_screen_shows_a_few_columns_that_can_be_read(columns: Sequence[Column], needed: str) -> None:
    row = ["x" * 30 if column.shrinks else "error" for column in columns]

    titles, cells = drawn(list(columns), [row], 40)
    assert titles.replace("last seen", "last_seen").split()[: len(needed.split())] == needed.split()
    assert min(map(len, cells.split())) >= len("error")


def test_a_terminal_may_show_something_shorter_than_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    columns = [Column("added", brief=lambda text: "3m12s")]

    assert drawn(columns, [("2026-11-21 19:04:12",)], 80)[1] == "3m12s"
    print_table(columns, [("2026-11-21 19:04:12",)])
    assert capsys.readouterr().out == "added\n2026-11-21 19:04:12\n"


def test_a_text_with_the_markup_of_rich_is_shown_as_it_is() -> None:
    assert drawn([Column("a")], [("[red]x[/red]",)], 80)[1] == "[red]x[/red]"


def test_elsewhere_a_table_is_lines_with_tabs(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(COLUMNS, [("Job:1", 1, "x" * 200), ("Job:2", None, "two\nlines")])

    assert capsys.readouterr().out == "ident\ttries\tmessage\nJob:1\t1\t" + "x" * 200 + "\nJob:2\t\ttwo\\nlines\n"


def test_a_table_of_many_rows_has_its_titles_once(capsys: pytest.CaptureFixture[str]) -> None:
    print_table([Column("n")], ((number,) for number in range(1200)))

    assert capsys.readouterr().out.splitlines() == ["n", *map(str, range(1200))]


# --- JSON


@dataclass(frozen=True)
class Inner:
    names: tuple[str, ...]


@dataclass(frozen=True)
class Outer:
    inner: Inner
    buckets: dict[float, int]


def test_json_is_json_where_not_all_can_be_encoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(io.BytesIO(), "latin-1", errors="backslashreplace"))

    assert as_json("é🎉") == '"\\u00e9\\ud83c\\udf89"'


def test_a_dataclass_is_an_object_of_json() -> None:
    text = as_json(Outer(Inner(("a",)), {0.5: 1, float("inf"): 2}))

    assert json.loads(text) == {"inner": {"names": ["a"]}, "buckets": {"0.5": 1, "inf": 2}}


def test_what_json_has_not_is_null_or_a_text() -> None:
    assert json.loads(as_json({"a": float("inf"), "b": b"x"})) == {"a": None, "b": "b'x'"}


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_list_is_one_document_with_its_next_page(count: int, capsys: pytest.CaptureFixture[str]) -> None:
    print_json_list("jobs", ({"n": number} for number in range(count)), "42")

    assert json.loads(capsys.readouterr().out) == {"jobs": [{"n": number} for number in range(count)], "next": "42"}
