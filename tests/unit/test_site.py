"""The documents as a site: nothing is left out of it, and what its pages show as code is code."""

from __future__ import annotations

import configparser
import importlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import griffe
import pytest
import yaml

from ..acceptance.test_pages import ELSEWHERE, PAGES
from ..base import ROOT

DOCS = ROOT / "docs"
# Each with the test that runs its blocks of Python.
RUN_BY = {
    "README.md": "acceptance/test_readme.py",
    "docs/django.md": "contrib/django_app/conftest.py",
    "docs/fastapi.md": "contrib/test_fastapi.py",
    "docs/flask.md": "contrib/test_flask.py",
    "docs/retries.md": "models/test_run_options.py",
    "docs/testing.md": "testing/test_page.py",
}
BLOCK = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)


class Loader(yaml.SafeLoader):
    """Takes the tags of mkdocs for text."""


Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda loader, suffix, node: suffix)


# --- Pages


def entries(nav: Any) -> Iterator[str]:
    for entry in nav:
        for where in entry.values() if isinstance(entry, dict) else [entry]:
            yield from [where] if isinstance(where, str) else entries(where)


def test_each_page_is_in_the_menu_of_the_site() -> None:
    listed = set(entries(yaml.load((ROOT / "mkdocs.yml").read_text(), Loader)["nav"]))

    pages = {str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md")}

    assert sorted(page for page in pages - listed if not page.startswith("decisions/0")) == []


# --- Code


def documents() -> list[Path]:
    return [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]


def blocks(language: str) -> list[Any]:
    found = []
    for page in documents():
        for match in BLOCK.finditer(page.read_text()):
            if match[2] == language:
                where = f"{page.relative_to(ROOT)}:{page.read_text()[: match.start()].count(chr(10)) + 1}"
                found.append(pytest.param(match[3], id=where))
    return found


def test_each_block_of_python_is_run_by_a_test() -> None:
    pages = {page for page in documents() if "```python" in page.read_text()}
    elsewhere = {ROOT / page for page in RUN_BY}

    assert pages == {*PAGES} | elsewhere
    assert {page.stem for page in elsewhere} - {"README"} == ELSEWHERE
    for page, test in RUN_BY.items():
        assert re.search(rf"{Path(page).stem}", (ROOT / "tests" / test).read_text()), f"{test} runs nothing of {page}"


@pytest.mark.parametrize(
    "page", [page for page in documents() if page.is_relative_to(DOCS)], ids=lambda page: page.name
)
def test_each_block_of_a_page_says_its_language(page: Path) -> None:
    text = page.read_text()

    assert [match[3] for match in BLOCK.finditer(text) if not match[2]] == []
    assert re.findall(r"(?:\A|\n\n)(    .*)", BLOCK.sub("", text)) == [], "a block by its indentation has none"


@pytest.mark.parametrize("text", blocks("json"))
def test_what_is_shown_as_json_is_json(text: str) -> None:
    json.loads(text)


@pytest.mark.parametrize("text", blocks("yaml"))
def test_what_is_shown_as_yaml_is_yaml(text: str) -> None:
    assert isinstance(yaml.safe_load(text), dict)


@pytest.mark.parametrize("text", blocks("ini"))
def test_what_is_shown_as_a_file_with_sections_is_one(text: str) -> None:
    parser = configparser.ConfigParser(interpolation=None)
    parser.read_string(text)

    assert all(parser[name] for name in parser.sections()) and parser.sections()


# --- The reference

DIRECTIVE = re.compile(r"^::: (\S+)\n((?: +.*\n)*)", re.MULTILINE)
PACKAGES = ["limpyd_jobs", "limpyd_jobs.tasks", "limpyd_jobs.admin", "limpyd_jobs.workers", "limpyd_jobs.testing"]
INTEGRATIONS = [f"limpyd_jobs.contrib.{name}" for name in ("django", "fastapi")]
PLAIN = {"EXACT_VERSION", "VERSION", "LOGGER_NAME"}  # their names say all


@pytest.fixture(scope="module")
def code() -> Any:
    extensions = griffe.load_extensions(str(ROOT / "scripts" / "site_docstrings.py"))
    return griffe.load("limpyd_jobs", search_paths=[ROOT], extensions=extensions)


def referred() -> set[str]:
    """What the reference shows: the paths of modules, and of single names."""
    found = set()
    for page in (DOCS / "reference").glob("*.md"):
        for path, options in DIRECTIVE.findall(page.read_text()):
            members = (yaml.safe_load(options) or {}).get("options", {}).get("members")
            found |= {path} if members is None else {f"{path}.{name}" for name in members}
    return found


@pytest.mark.parametrize("package", [*PACKAGES, *INTEGRATIONS])
def test_the_reference_has_each_public_name(package: str, code: Any) -> None:
    shown = referred()
    names = sorted({*importlib.import_module(package).__all__} - PLAIN)
    members = [code[f"{package}.{name}".removeprefix("limpyd_jobs.")] for name in names]
    targets = [member.final_target if member.is_alias else member for member in members]

    assert [one.path for one in targets if not {one.path, one.parent.path} & shown] == [], "on no page"
    assert [one.path for one in targets if not one.has_docstring] == [], "left out, as nothing is said of it"


def test_each_section_of_a_docstring_is_shown_as_one(code: Any) -> None:
    said = code["models.Job.requeue"].docstring.parse("google", warnings=False)

    assert [section.kind.value for section in said] == ["text", "parameters", "raises", "text"]
    assert "scripts/site_docstrings.py" in (ROOT / "mkdocs.yml").read_text()
