"""An extension of griffe, which reads our docstrings for the site: it wants an empty line above each section."""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension

SECTION = re.compile(r"(?<=[^\n])\n(?=(?:Args|Attributes|Raises|Returns|Yields|Redis):)")


class Sections(Extension):
    """Parts the sections of each docstring; without that all but the first would be shown as one paragraph."""

    def on_instance(self, *, obj: Any, **kwargs: Any) -> None:
        """See griffe."""
        if obj.docstring is not None:
            obj.docstring.value = SECTION.sub("\n\n", obj.docstring.value)
