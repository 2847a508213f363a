"""The scripts: one Lua file a transition, each sent with `_common.lua` in front."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

FOLDER = Path(__file__).parent
NAMES = tuple(sorted(path.stem for path in FOLDER.glob("[a-z]*.lua")))


@dataclass(frozen=True)
class Script:
    """A script as Redis gets it, and the sha1 that names it there."""

    name: str
    text: str
    sha: str


@cache
def load(name: str) -> Script:
    """The script of a transition.

    Raises:
        FileNotFoundError: no transition has this name.
    """
    parts = ("_common.lua", f"{name}.lua")
    text = "\n".join((FOLDER / part).read_text(encoding="utf-8") for part in parts)
    return Script(name, text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())
