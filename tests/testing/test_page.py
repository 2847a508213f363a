"""Each example of docs/testing.md does what the page says."""

from __future__ import annotations

import re
from typing import Any

import pytest

from limpyd_jobs import testing

from ..base import ROOT

pytest_plugins = ["pytester"]

BLOCKS = re.findall(r"^```python\n(.*?)^```$", (ROOT / "docs" / "testing.md").read_text(), re.DOTALL | re.MULTILINE)
SCRIPTS = [block for block in BLOCKS if "def test_" not in block]


def test_the_page_has_examples_of_both_kinds() -> None:
    assert len(SCRIPTS) == 4
    assert len(BLOCKS) == 5


@pytest.mark.parametrize("place", range(len(SCRIPTS)))
def test_an_example_runs(place: int) -> None:
    exec(compile(SCRIPTS[place], "docs/testing.md", "exec"), {"__name__": f"docs_testing_{place}"})


def test_the_tests_of_the_page_pass(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    pytester.makepyfile(*[block for block in BLOCKS if "def test_" in block])

    pytester.runpytest_subprocess("-p", "limpyd_jobs_pytest").assert_outcomes(passed=2)


def test_all_that_is_public_is_on_the_page() -> None:
    text: Any = (ROOT / "docs" / "testing.md").read_text()

    assert [name for name in testing.__all__ if name not in text and name != "FakeClock"] == []
