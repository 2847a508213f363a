"""The examples of the pages about integrations, as the projects that they are."""

from __future__ import annotations

import re
from pathlib import Path

from ..base import ROOT

NAMED_DATABASES = ("redis://localhost:6379/0", "embedded:///tmp/bookshop-tests")


def write_example(page: str, directory: Path, database: str) -> None:
    """Write the files of the example in a page: each block of Python begins with the name of its file.

    Args:
        database: a URL, that takes the place of those in the page.
    """
    text = (ROOT / "docs" / f"{page}.md").read_text()
    blocks = re.findall(r"^```python\n# (\S+\.py)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    assert blocks, f"{page}.md has no example"
    for name, block in blocks:
        path = directory / name
        path.parent.mkdir(exist_ok=True)
        for named in NAMED_DATABASES:
            block = block.replace(named, database)
        path.write_text(block)
