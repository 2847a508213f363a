"""What the modules of the integrations import."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

from ..base import ROOT

CONTRIB = ROOT / "limpyd_jobs" / "contrib"
# What comes with a framework. `redis` is there anyway.
BROUGHT = {
    "django": {"django", "asgiref"},
    "fastapi": {"fastapi"},
    "flask": {"flask", "click"},
    "opentelemetry": {"opentelemetry"},
    "starlette": set(),
}
EVERYWHERE = {"redis"}


def imported_from(path: Path) -> set[str]:
    """The packages that a module imports, beside its own and those of Python."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(str(node.module).partition(".")[0])
    return found - sys.stdlib_module_names


@pytest.mark.parametrize("name", sorted(BROUGHT))
def test_an_integration_imports_no_other_framework(name: str) -> None:
    paths = [CONTRIB / f"{name}.py", *(CONTRIB / name).rglob("*.py")]

    imported = set().union(*(imported_from(path) for path in paths if path.exists()))

    assert imported <= BROUGHT[name] | EVERYWHERE


def test_each_integration_is_looked_at() -> None:
    there = {path.relative_to(CONTRIB).parts[0].removesuffix(".py") for path in CONTRIB.rglob("*.py")}

    assert there - {"__init__"} == BROUGHT.keys()
