"""What the documents say agrees with the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from limpyd_jobs import STATUSES, lua, version
from limpyd_jobs.statuses import FOLLOWERS
from limpyd_jobs.tasks import TaskJob
from limpyd_jobs.workers import AsyncWorker, WorkerConfig

from ..base import ROOT
from .test_layers import LAYERS, PACKAGE

DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
README = (ROOT / "README.md").read_text()
STATES = (ROOT / "docs" / "states.md").read_text()
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text()
COMMON = (lua.FOLDER / "_common.lua").read_text()


def section(text: str, title: str) -> str:
    """What is under a heading of the second level."""
    match = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE)
    assert match, f"there is no heading {title!r}"
    return match[1]


def tables(text: str) -> list[list[list[str]]]:
    """The tables in a text, without their first two lines: rows of cells."""
    found = re.findall(r"(?:^\|.*\|\n)+", text, re.MULTILINE)
    return [[[cell.strip() for cell in line[1:-1].split(" | ")] for line in table.splitlines()[2:]] for table in found]


def code_words(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


# --- links ---


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_a_document_links_to_exists(document: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", document.read_text())

    missing = [link for link in links if "://" not in link and not (document.parent / link).exists()]

    assert missing == []


def test_the_links_of_the_readme_are_seen() -> None:
    assert "[docs/states.md](docs/states.md)" in README


def test_the_readme_says_of_each_page_that_it_is_there() -> None:
    listed = re.findall(r"^- \[docs/([\w-]+\.md)\]", section(README, "Read on"), re.MULTILINE)

    assert sorted(listed) == sorted(path.name for path in (ROOT / "docs").glob("*.md"))


def test_the_readme_names_each_field_of_a_job() -> None:
    assert {*TaskJob._fields} - {"pk"} <= {*code_words(section(README, "What is in Redis")), "saved_result"}


# --- the README's commands ---


def test_the_changelog_begins_with_the_version() -> None:
    found = re.search(r"^## \[([\d.]+)\] - \d{4}-\d\d-\d\d$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)

    assert found and found[1] == version.EXACT_VERSION


def shell_blocks() -> list[str]:
    """The blocks without a language."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
    return [text for language, text in blocks if not language]


def shell_lines() -> list[str]:
    return [line for block in shell_blocks() for line in block.splitlines()]


def test_each_command_of_the_readme_is_one_line() -> None:
    assert [block.count("\n") for block in shell_blocks()] == [1, 1, 1]


def test_the_programs_and_the_extras_in_the_commands_exist() -> None:
    commands = "\n".join(shell_lines())
    extras = {name for names in re.findall(r"'\.\[([^\]]+)\]'", commands) for name in names.split(",")}
    programs = re.findall(r"\S*/python (\S+\.py)", commands)

    declared = re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert extras == {"embedded", "test"} and extras <= set(declared)
    assert programs == ["example.py", "run_tests.py"]
    assert [name for name in programs if not (ROOT / name).is_file()] == []


def parser_options() -> dict[str, str]:
    """Each option of the command, with where its value goes."""
    parser = WorkerConfig(["limpyd-jobs-worker", "--queues=mail", "--no-title"]).parser
    return {
        text: str(option.dest) for option in parser.option_list for text in (*option._short_opts, *option._long_opts)
    }


def options_in(text: str) -> list[str]:
    return re.findall(r"(?<![\w-])(--?[a-z][a-z-]*)", text)


def test_the_options_in_the_commands_exist() -> None:
    used = [option for line in shell_lines() if line.startswith("limpyd-jobs-worker") for option in options_in(line)]

    assert used and set(used) <= parser_options().keys()


# --- the table of options ---


def option_rows() -> list[list[str]]:
    (rows,) = tables(section(README, "The worker's options"))
    return rows


def test_the_table_of_options_is_that_of_the_command() -> None:
    listed = [option for row in option_rows() for option in options_in(row[0])]

    assert sorted(listed) == sorted(parser_options())


def test_the_defaults_in_the_table_are_those_of_the_worker() -> None:
    numbers = {
        parser_options()[options_in(names)[0]]: int(default)
        for names, _, default in (row if len(row) == 3 else [*row, ""] for row in option_rows())
        if re.fullmatch(r"-?\d+", default)
    }

    assert len(numbers) >= 7
    assert numbers == {name: getattr(AsyncWorker, name) for name in numbers}  # it has those of Worker, too


# --- the keys ---


def kinds_of_keys() -> set[str]:
    """The first words after the namespace of all keys that the scripts use beside those of the models."""
    in_header = set(re.findall(r"^--   jobs:(\w+)", COMMON, re.MULTILINE))
    scripts = "\n".join(path.read_text() for path in lua.FOLDER.glob("*.lua"))
    in_code = set(re.findall(r"side\(namespace, '(\w+)'", scripts)) | set(
        re.findall(r"namespace \.\. ':(\w+)", scripts)
    )
    return in_header | in_code


def keys_in(text: str) -> set[str]:
    return {key for table in tables(text) for row in table for key in code_words(row[0]) if key.startswith("jobs:")}


@pytest.mark.parametrize(
    ("document", "title"), [(README, "What is in Redis"), (ARCHITECTURE, "Keys")], ids=["README", "architecture"]
)
def test_the_table_of_keys_has_every_kind_of_key(document: str, title: str) -> None:
    listed = {key.split(":")[1] for key in keys_in(section(document, title))}

    assert kinds_of_keys() and kinds_of_keys() <= listed
    assert "jobs:job:last_queued" in keys_in(section(document, title))


def test_the_table_of_keys_has_every_key_of_the_header_as_it_is_there() -> None:
    in_header = set(re.findall(r"^--   (jobs:\S+)", COMMON, re.MULTILINE))

    assert in_header <= keys_in(section(README, "What is in Redis"))


def test_the_table_of_keys_has_every_list_and_set_of_a_queue() -> None:
    listed = keys_in(section(README, "What is in Redis"))

    assert {f"jobs:queue:<pk>:{name}" for name in ("waiting", "delayed", "success", "errors")} <= listed


# --- the states ---


def transition_rows() -> list[list[str]]:
    """script, called by, from, to, place."""
    return tables(section(STATES, "Transitions"))[0]


def pairs_of(rows: list[list[str]]) -> set[tuple[str, str]]:
    return {(STATUSES[row[2]], STATUSES[row[3]]) for row in rows if row[2] != "new"}


def drawn() -> dict[tuple[str, str], set[str]]:
    """The arrows of the diagram between statuses, with the scripts on them."""
    arrows = re.findall(r"^    ([A-Z]+) --> ([A-Z]+): (.*)$", STATES, re.MULTILINE)
    return {(STATUSES[left], STATUSES[right]): set(label.split(", ")) for left, right, label in arrows}


def followers() -> set[tuple[str, str]]:
    return {(before, after) for before, many in FOLLOWERS.items() for after in many}


def test_the_table_of_transitions_is_the_state_machine() -> None:
    assert pairs_of(transition_rows()) == followers()


def test_the_diagram_is_the_state_machine() -> None:
    assert set(drawn()) == followers()


def test_the_diagram_and_the_table_name_the_same_scripts() -> None:
    by_pair: dict[tuple[str, str], set[str]] = {}
    for script, _, before, after, _ in transition_rows():
        if before != "new":
            by_pair.setdefault((STATUSES[before], STATUSES[after]), set()).add(script)

    assert drawn() == by_pair


def test_the_transitions_are_scripts_that_exist() -> None:
    named = {name for table in tables(section(STATES, "Transitions")) for row in table for name in row[0].split(", ")}
    aside = {"create", "forget", "get_queue", "purge", "register", "renew"}  # they change no status and no place
    aside |= {"add_alike"}  # as `add`
    aside |= {"update", "watch", "look"}  # what is told of a job
    aside |= {"note_queue", "remove"}  # of a queue alone; what is gone has no status
    aside |= {"pause", "resume", "note_worker"}  # of no job
    aside |= {"roll_up"}  # numbers

    assert named == set(lua.NAMES) - aside


def test_the_table_of_statuses_has_their_letters() -> None:
    rows = tables(section(STATES, "Places"))[1]

    assert {row[0]: row[1].strip("`") for row in rows} == dict(STATUSES)


# --- the layers ---


def test_the_table_of_layers_has_the_modules_that_exist() -> None:
    (rows,) = tables(section(ARCHITECTURE, "Layers"))
    listed = {row[0]: code_words(row[1]) for row in rows}

    existing = {
        path.stem for path in (ROOT / PACKAGE).iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    expected = {layer: sorted(existing & set(names)) for layer, names in LAYERS.items()}
    assert {layer: sorted(names) for layer, names in listed.items()} == {
        layer: names for layer, names in expected.items() if names
    }
