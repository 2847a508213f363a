"""The command lines in the documents are such as the commands take."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from limpyd_jobs.cli import commands
from limpyd_jobs.workers import WorkerConfig
from limpyd_jobs.workers.config import DiscreetParser

from ..base import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
LINE = re.compile(
    r"^(?:    |)(?:ExecStart=\S*/|\$ )?(limpyd-jobs(?:-worker)?)((?: +(?:--?)?[\w{\"'./:*].*)?)$", re.MULTILINE
)
CODE = re.compile(r"`(limpyd-jobs(?:-worker)?) ([^`…]+)`")


def command_lines(page: Path) -> Iterator[tuple[str, str]]:
    """Program and arguments of each line of code, and of each piece of it in a line that is more than a name."""
    text = page.read_text()
    pieces = [(program, arguments) for program, arguments in CODE.findall(text) if " " in arguments]
    for program, arguments in [*LINE.findall(text), *pieces]:
        if "..." not in arguments and "[" not in arguments:  # not a whole command, or the title of a process
            yield program, arguments.strip()


def accept(program: str, arguments: list[str]) -> None:
    """Have the options parsed, and nothing done; a mistake raises."""
    if program == "limpyd-jobs-worker":
        parser = DiscreetParser(option_list=list(WorkerConfig.option_list), version="-")
        _, rest = parser.parse_args(arguments)
        assert rest == []
        return
    with commands.make_context(program, list(arguments)) as context:
        name, command, rest = commands.resolve_command(context, [*context._protected_args, *context.args])
        assert command is not None and name is not None
        while isinstance(command, click.Group):
            with command.make_context(name, rest, parent=context) as inner:
                name, command, rest = command.resolve_command(inner, [*inner._protected_args, *inner.args])
        command.make_context(name, rest, parent=context).close()


def test_there_are_lines_of_both_commands() -> None:
    assert {program for page in PAGES for program, _ in command_lines(page)} == {"limpyd-jobs", "limpyd-jobs-worker"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_command_lines_in_a_document_are_accepted(page: Path) -> None:
    for program, arguments in command_lines(page):
        accept(program, shlex.split(re.split(r"\s[|>#&]|;", arguments)[0].rstrip("\\"), comments=True))
