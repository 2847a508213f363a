"""The scripts: one Lua file a transition, each sent with what it needs of `_common.lua` in front, without comments."""

from __future__ import annotations

import hashlib
import re
import string
from dataclasses import dataclass
from functools import cache
from pathlib import Path

FOLDER = Path(__file__).parent
HERE = "-- (what scripts share)\n"  # in a function that needs more than the rest of its script, to be made only there
END = "\nend\n"  # of that function
COMMENTS = re.compile(rf"^(?!{re.escape(HERE)})[ \t]*--.*\n", re.MULTILINE)  # lines: Redis keeps all that it is sent
PLAIN = set(string.ascii_letters + string.digits + ' _.:,-+{}[]()"')
NAMES = tuple(sorted(path.stem for path in FOLDER.glob("[a-z]*.lua")))


@dataclass(frozen=True)
class Script:
    """A script as Redis gets it, and the sha1 that names it there."""

    name: str
    text: str
    sha: str


def quoted(text: str) -> str:
    """A text as Lua reads it."""
    plain = "".join(chr(byte) if chr(byte) in PLAIN else f"\\{byte:03d}" for byte in text.encode())
    return f"'{plain}'"


TIME = "redis.call('TIME')"  # how scripts ask for it
_time = TIME


def fix_clock(seconds: int | None, micros: int = 0) -> None:
    """Give scripts that are loaded from now on this moment as the time of Redis; None: what Redis says.

    They are other scripts then, with a sha1 of their own: nobody else runs them.
    """
    global _time
    _time = TIME if seconds is None else f"{{'{seconds}', '{micros}'}}"
    load.cache_clear()


@cache
def load(name: str, made_for: str = "") -> Script:
    """The script of a transition.

    Args:
        made_for: definitions that the script needs in front, of the class of jobs that it is made for.
    Raises:
        FileNotFoundError: no transition has this name.
    """
    body = (FOLDER / f"{name}.lua").read_text(encoding="utf-8")
    text = COMMENTS.sub("", made_for + _filled(body, frozenset())).replace(TIME, _time)
    return Script(name, text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


def _filled(code: str, known: frozenset[str]) -> str:
    """Some code with the definitions that it needs in front, but for those that are known there.

    In a function that is made where it is needed (see HERE), those that nothing else needs.
    """
    outer_parts = _needed(_outside(code), known)
    known |= outer_parts.keys()
    return "".join([*(_with_inside(part, known) for part in outer_parts.values()), _with_inside(code, known)])


def _with_inside(code: str, known: frozenset[str]) -> str:
    front, mark, rest = code.partition(HERE)
    inner, end, tail = rest.partition(END)
    return "".join([front, mark, _filled(inner, known), end, _with_inside(tail, known)]) if mark else code


def _outside(code: str) -> str:
    """Some code without what is in functions that are made where they are needed."""
    front, mark, rest = code.partition(HERE)
    return front + _outside(rest.partition(END)[2]) if mark else code


@cache
def _common() -> dict[str, str]:
    """What scripts share, by what each part defines, in order: Redis runs all that it gets, each time."""
    text = (FOLDER / "_common.lua").read_text(encoding="utf-8")
    parts = re.split(r"^(?=local )", text, flags=re.MULTILINE)
    names = (re.match(r"local (?:function )?(\w+)", part) for part in parts)
    return {name[1]: part for name, part in zip(names, parts, strict=True) if name}


def _needed(code: str, known: frozenset[str]) -> dict[str, str]:
    """The definitions that some code uses, and those that they use."""
    needed: set[str] = set()
    words = _words(code)
    for name, part in reversed(_common().items()):  # what is used is defined before
        if name in words and name not in known:
            needed.add(name)
            words |= _words(_outside(part))
    return {name: part for name, part in _common().items() if name in needed}


def _words(code: str) -> set[str]:
    return set(re.findall(r"\w+", re.sub(r"--.*", "", code)))
