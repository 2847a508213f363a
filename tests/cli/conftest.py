"""The fixtures of the tests of the command."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import pytest

from limpyd_jobs.cli import main
from limpyd_jobs.modules import allowed_modules

from .support import Command, Outcome


@pytest.fixture
def command(database: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Command]:
    """The command, in this process, on the database of the tests; what it imports and allows is undone."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    names, directories = set(allowed_modules.names), set(allowed_modules.directories)

    def run(*arguments: str) -> Outcome:
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main(arguments)
        captured = capsys.readouterr()
        code = end.value.code
        assert isinstance(code, int)
        return Outcome(code, captured.out, captured.err)

    yield run
    allowed_modules.names, allowed_modules.directories = names, directories
