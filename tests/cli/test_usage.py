"""The arguments of the command: what is accepted, what is said of what is not, and with which exit code."""

from __future__ import annotations

import ast
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from limpyd_jobs import Job, Queue
from limpyd_jobs.cli import commands, main
from limpyd_jobs.cli.common import COMMON, parse_seconds
from limpyd_jobs.version import EXACT_VERSION

from ..base import ROOT
from .support import Command

PAGE = (ROOT / "docs" / "command.md").read_text()


def sub_commands(group: click.Group = commands, path: str = "") -> Iterator[tuple[str, click.Command]]:
    """Each sub-command that does something, by its name as it is typed."""
    for name, one in group.commands.items():
        if isinstance(one, click.Group):
            yield from sub_commands(one, f"{path}{name} ")
        else:
            yield f"{path}{name}", one


SUB_COMMANDS = dict(sub_commands())
COMMON_OPTIONS = {f"--{name}" for name in COMMON}


def options_of(one: click.Command) -> set[str]:
    return {text for parameter in one.params if isinstance(parameter, click.Option) for text in parameter.opts}


# --- what each sub-command has


def test_the_sub_commands_are_those_that_somebody_on_call_needs() -> None:
    assert list(commands.commands) == [
        *("status", "jobs", "show", "errors", "explain"),
        *("add", "requeue", "cancel", "move", "delete", "purge"),
        *("pause", "resume", "drain", "workers", "check", "doctor", "server", "bench", "metrics", "health"),
    ]


@pytest.mark.parametrize("name", SUB_COMMANDS)
def test_each_sub_command_has_the_common_options_and_a_help_text(name: str) -> None:
    one = SUB_COMMANDS[name]

    assert options_of(one) >= COMMON_OPTIONS
    assert one.help and one.get_short_help_str(62).endswith((".", "?")) and "..." not in one.get_short_help_str(62)
    assert all(parameter.help for parameter in one.params if isinstance(parameter, click.Option))


@pytest.mark.parametrize("name", SUB_COMMANDS)
def test_each_sub_command_says_what_it_does(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([*name.split(), "--help"])

    text = capsys.readouterr().out
    assert end.value.code == 0
    assert text.startswith(f"Usage: limpyd-jobs {name} ")
    assert all(option in text for option in options_of(SUB_COMMANDS[name]))


# --- the page


def section(name: str) -> str:
    found = re.search(rf"^### {re.escape(name)}\n(.*?)(?=^##|\Z)", PAGE, re.DOTALL | re.MULTILINE)
    assert found, f"docs/command.md has no section {name}"
    return found[1]


def examples(text: str = PAGE) -> list[str]:
    """The commands in a text, without the prompt."""
    blocks = re.findall(r"^```console\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [line[2:] for block in blocks for line in block.splitlines() if line.startswith("$ limpyd-jobs")]


@pytest.mark.parametrize("name", list(commands.commands))
def test_the_page_has_the_options_of_each_sub_command(name: str) -> None:
    rows = re.findall(r"^\| (`--.*?`) \|", section(name), re.MULTILINE)
    listed = {option for row in rows for option in re.findall(r"--[a-z][a-z-]*", row)}

    of_code = {option for path, one in SUB_COMMANDS.items() if path.split()[0] == name for option in options_of(one)}
    assert listed == of_code - COMMON_OPTIONS


def test_the_page_has_the_common_options() -> None:
    part = PAGE.split("## For all of them\n")[1].split("\n## ")[0]

    assert set(re.findall(r"^\| `(--[a-z-]+)", part, re.MULTILINE)) == COMMON_OPTIONS


@pytest.mark.parametrize("name", SUB_COMMANDS)
def test_the_page_has_an_example_of_each_sub_command(name: str) -> None:
    assert [line for line in examples(section(name.split()[0])) if f"{line} ".startswith(f"limpyd-jobs {name} ")]


@pytest.mark.parametrize("line", sorted(set(examples())))
def test_the_arguments_in_the_examples_are_accepted(line: str) -> None:
    words = shlex.split(re.split(r" [|>&]", line)[0])[1:]

    one: Any = commands
    while isinstance(one, click.Group):
        one, words = one.commands[words[0]], words[1:]
        context = click.Context(one, info_name=one.name)
        if not isinstance(one, click.Group):
            one.parse_args(context, words)


# --- what is imported


def test_the_command_uses_of_ours_what_is_for_it_only() -> None:
    allowed = {
        "admin",
        "admin.prometheus",
        "database",
        "exceptions",
        "statuses",
        "modules",
        "utils",
        "version",
        "wording",
        "workers.config",
    }
    found = set()
    for path in (ROOT / "limpyd_jobs" / "cli").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level == 2:
                found |= {node.module} if node.module else {alias.name for alias in node.names}
            assert not (isinstance(node, ast.ImportFrom) and (node.module or "").startswith("limpyd")), path

    assert found <= allowed


def test_the_command_is_declared_under_its_name() -> None:
    assert 'limpyd-jobs = "limpyd_jobs.cli:main"' in (ROOT / "pyproject.toml").read_text()


# --- mistakes: one line, exit code 2


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("nosuch", "limpyd-jobs: No such command 'nosuch'"),
        ("--json", "limpyd-jobs: Missing command"),
        ("server", "limpyd-jobs server: Missing command: one of start, status, stop."),
        ("show", "limpyd-jobs show: Missing argument 'IDENT'."),
        ("jobs --nosuch", "limpyd-jobs jobs: No such option"),
        ("jobs --limit x", "limpyd-jobs jobs: Invalid value for '--limit': 'x' is not a whole number, from 1 to 1000."),
        ("jobs --json --all --class=NoSuchJob", "'NoSuchJob': must be the name of a class of jobs, of those known"),
        ("jobs --limit 5000", "'5000' is not a whole number, from 1 to 1000."),
        ("jobs --status late", "Invalid value for '--status': 'late' is not one of waiting, delayed, running,"),
        ("jobs --older-than soon", "Invalid value for '--older-than': 'soon' is not a duration like 90, 45s, 30m,"),
        ("jobs --queues a,,b", "'a,,b' are not names with commas between them."),
        ("errors --since yesterday", "'yesterday' is neither YYYY-MM-DD HH:MM:SS in UTC, nor the beginning of one,"),
        ("errors --since 2026-13", "'2026-13' is neither YYYY-MM-DD HH:MM:SS in UTC, nor the beginning of one,"),
        ("delete --ended-before 2026-02-31", "'2026-02-31' is neither YYYY-MM-DD HH:MM:SS in UTC,"),
        ("errors --by month", "Invalid value for '--by': 'month' is not one of"),
        ("errors --by hour --groups", "Only one of --groups and --by, and of --csv and --json, can be given."),
        ("requeue", "limpyd-jobs requeue: Say which jobs: by IDENT, by a filter like --queue"),
        ("requeue a --all", "limpyd-jobs requeue: Name the jobs one way: by IDENT,"),
        ("requeue --all --rate fast", "Invalid value for '--rate': 'fast' is not a rate like 50/s, 600/m or 1000/h."),
        ("requeue --all --rate 0", "'0' is not a rate like"),
        ("requeue --resume x --to y", "--resume goes on with what was asked for before: give no options of that."),
        ("move a", "limpyd-jobs move: Say where they go: --to NAME, --priority N, or both."),
        ("purge", "limpyd-jobs purge: Say how old: --older-than DURATION (0 for all); or give --resume."),
        ("add a.B c --field x", "Invalid value for '--field': 'x' is not NAME=VALUE."),
        ("status --watch 0", "Invalid value for '--watch': 0.0 is not in the range"),
        ("status --watch --json", "limpyd-jobs status: --watch and --json exclude each other."),
        ("status --watch", "limpyd-jobs status: --watch needs a terminal that can be drawn on."),
        ("server start", "limpyd-jobs server start: Name a directory, as argument or by --database=embedded:///dir"),
        ("jobs --database=nonsense", "limpyd-jobs: Invalid database '***': it must be a URL"),
        ("jobs --queue-model=nosuch.Model", "limpyd-jobs: Invalid queue-model 'nosuch.Model': No module named"),
        ("jobs --queue-model=limpyd_jobs.models.Job", "Invalid queue_model argument: <class 'limpyd_jobs.models.Job'"),
        ("jobs --tasks=nosuch", "limpyd-jobs: Unable to import 'nosuch', of tasks: ModuleNotFoundError"),
        (
            "jobs --job-modules=a-b",
            "limpyd-jobs: Invalid job_modules: 'a-b': must be the dotted name of a module, or *",
        ),
    ],
)
def test_a_mistake_is_told_in_one_line(command: Command, arguments: str, expected: str) -> None:
    outcome = command(*arguments.split())

    assert outcome.code == 2
    assert outcome.out == (
        "" if "--json" not in arguments else f"{json.dumps({'error': outcome.err.strip(), 'code': 2})}\n"
    )
    assert expected in outcome.err and outcome.err.count("\n") == 1


@pytest.mark.parametrize("kind", ["requeue", "cancel", "delete", "move --to=other", "show", "explain"])
def test_a_job_that_does_not_exist_is_told_of(command: Command, kind: str) -> None:
    outcome = command(*kind.split(), "nosuch")

    assert outcome.code == 1
    assert outcome.err.startswith("limpyd-jobs: No job found by 'nosuch'")


@pytest.mark.parametrize("arguments", ["jobs", "--json jobs", "requeue --all --yes", "doctor"])
def test_a_redis_that_cannot_be_reached_has_an_exit_code_of_its_own(command: Command, arguments: str) -> None:
    outcome = command(*arguments.split(), "--database=redis://:secret@localhost:1/0")

    assert outcome.code == 3
    assert outcome.err.startswith("limpyd-jobs: Unable to use the database redis://:***@localhost:1/0: ")
    assert outcome.err.count("\n") == 1 and "secret" not in outcome.err


@pytest.mark.parametrize(
    "arguments",
    ["jobs redis://:secret@host/0", "--database=redis://:secret@x@y jobs", "jobs --limit=redis://:secret@host/0"],
)
def test_no_password_is_shown(command: Command, arguments: str, monkeypatch: pytest.MonkeyPatch) -> None:
    titles: list[str] = []
    monkeypatch.setattr("limpyd_jobs.workers.config.setproctitle", titles.append)

    outcome = command(*arguments.split())

    assert outcome.code == 2
    assert titles and "secret" not in outcome.err + "".join(titles)


# --- what is well


def test_the_version_is_told(command: Command) -> None:
    assert command("--version").out == f"limpyd-jobs, version {EXACT_VERSION}\n"


def test_without_arguments_the_help_is_shown(command: Command) -> None:
    outcome = command()

    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out == command("--help").out == command("-h").out


@pytest.mark.parametrize("arguments", ["--json jobs", "jobs --json"])
def test_common_options_may_stand_before_or_after_the_sub_command(command: Command, arguments: str) -> None:
    Job.add_job("a", "q")

    assert [job["identifier"] for job in command(*arguments.split()).json["jobs"]] == ["a"]


def test_the_option_after_the_sub_command_wins(command: Command) -> None:
    outcome = command("--database=redis://localhost:1/0", "jobs", "--database=redis://localhost:2/0")

    assert "redis://localhost:2/0" in outcome.err


def test_the_database_may_be_named_by_the_environment(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIMPYD_JOBS_DATABASE", "redis://localhost:1/0")

    assert "redis://localhost:1/0" in command("jobs").err


def test_the_queue_model_says_which_namespace_is_meant(command: Command, tmp_path: Path) -> None:
    (tmp_path / "usage_models.py").write_text(
        "from limpyd_jobs import Job, Queue\n"
        "class UsageQueue(Queue):\n    namespace = 'usage'\n"
        "class UsageJob(Job):\n    namespace = 'usage'\n    queue_model = UsageQueue\n"
    )
    Job.add_job("ours", "q")
    options = (f"--pythonpath={tmp_path}", "--queue-model=usage_models.UsageQueue")

    assert command("jobs", "--count", *options).out == "0\n"
    added = command("add", "usage_models.UsageJob", "theirs", "--queue=q", *options)
    assert (added.code, added.err) == (0, "")
    assert [row[1] for row in command("jobs", *options).rows] == ["theirs"]
    assert Queue.count_waiting_jobs("q") == 1


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("0.5", 0.5), ("45s", 45), ("30m", 1800), ("12h", 43200), ("2w", 1209600)]
)
def test_durations_have_units(text: str, seconds: float) -> None:
    assert parse_seconds(text) == seconds
