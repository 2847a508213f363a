"""Who may import whom: read from the imports of every module, never from running them."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

from ..base import ROOT

PACKAGE = "limpyd_jobs"

# From the first layer to the last; a module imports only from layers before its own, and inside it without cycles.
LAYERS: dict[str, list[str]] = {
    "words": [
        "exceptions",
        "statuses",
        "utils",
        "modules",
        "retries",
        "run_options",
        "uniqueness",
        "limits",
        "serializers",
        "outcomes",
        "instruments",
        "wording",
        "version",
    ],
    "store": ["lua", "wire", "database", "embedded", "aio", "recipes", "transitions", "additions", "fields", "waiting"],
    "models": ["models", "workflows"],
    "work": ["workers", "admin"],
    "rooms": ["tasks", "scheduler", "service", "outbox", "data"],
    "doors": ["testing", "scripts", "cli", "contrib", "__main__"],
}
ORDER = list(LAYERS)
LAYER_OF = {name: layer for layer, names in LAYERS.items() for name in names}


def modules() -> dict[str, Path]:
    """Every module of the package, by its name inside it; not the root, which only gathers the public names."""
    found = {}
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        parts = list(path.relative_to(ROOT / PACKAGE).with_suffix("").parts)
        if parts[-1] == "__init__":
            parts.pop()
        if parts:
            found[".".join(parts)] = path
    return found


def imports_of(name: str, source: str, known: set[str], is_package: bool) -> set[str]:
    """The modules of the package that a module imports, also inside its functions; '' stands for the root.

    What only a type checker imports counts too: it binds the reader all the same.
    """
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == PACKAGE:
                    found.add(alias.name.partition(".")[2])
        elif isinstance(node, ast.ImportFrom):
            base = _base_of(node, name, is_package)
            if base is None:
                continue
            for alias in node.names:
                inner = f"{base}.{alias.name}".strip(".")
                found.add(inner if inner in known else base)
    # a package and its own modules: the package's name alone is a real import of its __init__
    return found - {name}


def _base_of(node: ast.ImportFrom, name: str, is_package: bool) -> str | None:
    module = node.module or ""
    if node.level == 0:
        return module.partition(".")[2] if module.split(".")[0] == PACKAGE else None
    parts = name.split(".")
    kept = len(parts) - node.level + (1 if is_package else 0)
    return ".".join([*parts[:kept], *([module] if module else [])])


@cache
def graph() -> dict[str, set[str]]:
    found = modules()
    return {
        name: imports_of(name, path.read_text(), set(found), path.name == "__init__.py") for name, path in found.items()
    }


def layer_of(name: str) -> str | None:
    return LAYER_OF.get(name.split(".")[0])


def find_cycle(edges: dict[str, set[str]]) -> list[str] | None:
    """A way from a module back to itself."""
    done: set[str] = set()

    def visit(name: str, way: list[str]) -> list[str] | None:
        if name in way:
            return [*way[way.index(name) :], name]
        if name in done:
            return None
        for target in sorted(edges.get(name, ())):
            cycle = visit(target, [*way, name])
            if cycle:
                return cycle
        done.add(name)
        return None

    for start in sorted(edges):
        cycle = visit(start, [])
        if cycle:
            return cycle
    return None


def test_each_module_has_a_layer() -> None:
    assert [name for name in modules() if layer_of(name) is None] == []


@pytest.mark.parametrize("name", sorted(modules()))
def test_a_module_imports_only_from_its_layer_and_those_before(name: str) -> None:
    own = ORDER.index(str(layer_of(name)))

    too_late = [target for target in graph()[name] if target and ORDER.index(str(layer_of(target))) > own]

    assert too_late == []


@pytest.mark.parametrize("name", sorted(modules()))
def test_no_module_imports_the_root_which_imports_them_all(name: str) -> None:
    # the version is in limpyd_jobs.version
    assert "" not in graph()[name]


def test_a_room_never_imports_another_room() -> None:
    crossings = [
        (name, target)
        for name, targets in graph().items()
        for target in targets
        if layer_of(name) == "rooms" == layer_of(target) and name.split(".")[0] != target.split(".")[0]
    ]

    assert crossings == []


def test_nobody_imports_a_door() -> None:
    crossings = [
        (name, target)
        for name, targets in graph().items()
        for target in targets
        if layer_of(target) == "doors" and layer_of(name) != "doors"
    ]

    assert crossings == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    assert find_cycle(graph()) is None


def test_a_circle_would_be_found() -> None:
    assert find_cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]


@pytest.mark.parametrize(
    ("source", "name", "is_package", "expected"),
    [
        ("from . import embedded", "database", False, {"embedded"}),
        ("from .exceptions import InvalidArgument", "database", False, {"exceptions"}),
        ("from .. import models", "workers.base", False, {"models"}),
        ("from ..models import Job", "workers.base", False, {"models"}),
        ("from .base import Worker", "workers", True, {"workers.base"}),
        ("from limpyd_jobs.models import Job", "scripts.worker", False, {"models"}),
        ("import limpyd_jobs.models", "scripts.worker", False, {"models"}),
        ("def late():\n    from .models import Job", "database", False, {"models"}),
        ("from limpyd_jobs import STATUSES", "models", False, {""}),
        ("import redis\nfrom limpyd import fields", "models", False, set()),
    ],
)
def test_imports_are_read_in_each_form(source: str, name: str, is_package: bool, expected: set[str]) -> None:
    known = {"embedded", "exceptions", "models", "workers", "workers.base", "database", "scripts.worker"}

    assert imports_of(name, source, known, is_package) == expected
