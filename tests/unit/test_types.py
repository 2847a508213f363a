"""What type checkers see of the package, as its users run them. No Redis, no network."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ..base import ROOT

EXAMPLES = ROOT / "tests" / "typing_examples"
RIGHT = sorted(path.name for path in EXAMPLES.glob("[!_]*.py") if not path.name.startswith("mistakes_"))
WRONG = sorted(path.name for path in EXAMPLES.glob("mistakes_*.py"))
CHECKERS = ["mypy", "pyright"]


def run(checker: str, name: str) -> list[tuple[int, str]]:
    """The errors of a checker in an example: line and message."""
    return run_mypy(EXAMPLES / name) if checker == "mypy" else run_pyright(EXAMPLES / name)


def run_mypy(path: Path) -> list[tuple[int, str]]:
    arguments = [
        sys.executable,
        "-m",
        "mypy",
        "--strict",
        "--follow-imports=silent",
        "--no-error-summary",
        "--no-color-output",
    ]
    done = subprocess.run([*arguments, str(path)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    found = re.findall(rf"^\S*{path.name}:(\d+): error: (.*)$", done.stdout, re.MULTILINE)
    assert len(found) == done.stdout.count(": error: "), done.stdout
    return [(int(line), message) for line, message in found]


def run_pyright(path: Path) -> list[tuple[int, str]]:
    # its package has the checker in it, and node comes with another: nothing is downloaded
    arguments = [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable]
    done = subprocess.run([*arguments, str(path)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    found = json.loads(done.stdout)["generalDiagnostics"]
    return [(one["range"]["start"]["line"] + 1, one["message"]) for one in found]


def expected_errors(name: str) -> list[int]:
    lines = (EXAMPLES / name).read_text().splitlines()
    return [number for number, line in enumerate(lines, 1) if line.endswith("# error")]


def test_there_are_examples_of_both_kinds() -> None:
    assert RIGHT and WRONG
    assert all(expected_errors(name) for name in WRONG)


@pytest.mark.parametrize("name", RIGHT)
@pytest.mark.parametrize("checker", CHECKERS)
def test_a_right_program_has_the_types_that_it_says(checker: str, name: str) -> None:
    assert run(checker, name) == []


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("checker", CHECKERS)
def test_each_mistake_is_seen(checker: str, name: str) -> None:
    found = run(checker, name)

    assert sorted({line for line, _ in found}) == expected_errors(name), found
