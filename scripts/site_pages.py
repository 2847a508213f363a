"""Hooks of mkdocs: the pages that are not in docs/, and the links to them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
PAGES = {  # of the site -> in the source
    "manual.md": "README.md",
    "changelog.md": "CHANGELOG.md",
    "contributing.md": "CONTRIBUTING.md",
    "benchmarks.md": "benchmarks/README.md",
}
LINK = re.compile(r"\[([^\]\n]*)\]\((?![a-z]+:|#)([^)#\s]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    """Add what lies beside docs/, and a page that lists the decisions."""
    for page, source in PAGES.items():
        text = (ROOT / source).read_text()
        files.append(File.generated(config, page, content=_relinked(text, (ROOT / source).parent, page)))
    files.append(File.generated(config, "decisions/index.md", content=_decisions()))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """The text of a page of docs/, whose links lead to pages of the site."""
    if page.file.generated_by is not None:
        return markdown
    return _relinked(markdown, Path(page.file.abs_src_path).parent, page.file.src_uri)


def _relinked(text: str, directory: Path, page: str) -> str:
    """A text whose relative links, as they are right in `directory`, are right on a page of the site.

    A link to a file that is no page of the site becomes its text.
    """

    def replaced(match: re.Match[str]) -> str:
        label, target, anchor = match[1], match[2], match[3] or ""
        source = str((directory / target).resolve().relative_to(ROOT))
        known = {value: key for key, value in PAGES.items()} | {"docs/decisions": "decisions/index.md"}
        where = known.get(source) or source.removeprefix("docs/")
        if source not in known and not source.startswith("docs/"):
            return label
        return f"[{label}]({'../' * page.count('/')}{where}{anchor})"

    return LINK.sub(replaced, text)


def _decisions() -> str:
    lines = ["# Decisions", "", "Each page says what was decided, and why.", ""]
    for path in sorted((ROOT / "docs" / "decisions").glob("0*.md")):
        title = path.read_text().partition("\n")[0].removeprefix("# ")
        lines.append(f"- [{title}]({path.name})")
    return "\n".join(lines) + "\n"
