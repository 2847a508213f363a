"""The examples of the pages about integrations, as the projects that they are."""

from __future__ import annotations

import re
from pathlib import Path

from ..base import ROOT

NAMED_DATABASE = "redis://localhost:6379/0"


def write_example(page: str, directory: Path, database: str) -> None:
    """Write the files of the example in a page: each block of Python begins with the name of its file.

    Args:
        database: a URL, that takes the place of the one in the page.
    """
    text = (ROOT / "docs" / f"{page}.md").read_text()
    blocks = re.findall(r"^```python\n# (\S+\.py)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    assert blocks, f"{page}.md has no example"
    for name, block in blocks:
        path = directory / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(block.replace(NAMED_DATABASE, database))
