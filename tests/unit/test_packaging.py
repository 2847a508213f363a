"""What is installed, under which names, and what it needs."""

from __future__ import annotations

import ast
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from limpyd_jobs import version

from ..base import ROOT

DISTRIBUTION = "redis-limpyd-jobs"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of what an installation would copy."""
    target = tmp_path_factory.mktemp("build")
    command = [
        sys.executable,
        "setup.py",
        "-q",
        "egg_info",
        "--egg-base",
        str(target),
        "build",
        "--build-base",
        str(target),
    ]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return target / "lib"


def test_the_version_is_3_0_0_as_text_and_as_a_tuple() -> None:
    assert version.EXACT_VERSION == "3.0.0"
    assert version.VERSION == (3, 0, 0)


def test_the_installed_distribution_has_the_version_of_the_module() -> None:
    assert metadata.version(DISTRIBUTION) == version.EXACT_VERSION


def test_the_version_can_be_read_without_importing_anything() -> None:
    """The build reads it before any dependency is installed."""
    tree = ast.parse((ROOT / "limpyd_jobs" / "version.py").read_text())

    values = {
        node.targets[0].id: node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }

    assert ast.literal_eval(values["EXACT_VERSION"]) == version.EXACT_VERSION


def test_the_command_is_installed_under_its_name() -> None:
    commands = {entry.name: entry.value for entry in metadata.distribution(DISTRIBUTION).entry_points}

    assert commands["limpyd-jobs-worker"] == "limpyd_jobs.scripts.worker:main"


def test_setuptools_is_required_in_a_version_that_limpyd_can_import() -> None:
    assert "setuptools<81" in (metadata.requires(DISTRIBUTION) or [])


@pytest.mark.parametrize("extra", ["embedded", "test"])
def test_the_extras_are_declared(extra: str) -> None:
    assert extra in (metadata.metadata(DISTRIBUTION).get_all("Provides-Extra") or [])


def test_only_the_package_and_its_fixtures_are_installed(built: Path) -> None:
    """G14: the tests and the example are in the source only."""
    assert sorted(path.name for path in built.iterdir()) == ["limpyd_jobs", "limpyd_jobs_pytest.py"]


def test_what_is_not_python_is_installed_too(built: Path) -> None:
    package = built / "limpyd_jobs"
    scripts = {path.name for path in (ROOT / "limpyd_jobs" / "lua").glob("*.lua")}
    templates = Path("contrib", "django", "templates", "limpyd_jobs")

    assert (package / "py.typed").exists()
    assert {*(package / templates).iterdir()} == {
        package / templates / path.name for path in (ROOT / "limpyd_jobs" / templates).iterdir()
    }
    assert {path.name for path in (package / "lua").glob("*.lua")} == scripts
    assert scripts


@pytest.mark.parametrize("name", ["LICENSE", "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "example.py", "setup.py"])
def test_the_files_that_a_reader_looks_for_are_there(name: str) -> None:
    assert (ROOT / name).is_file()
