"""What makes two errors one of a kind: the class of the exception, its code, and where it was raised."""

from __future__ import annotations

import re
from hashlib import blake2b

FRAME = re.compile(r'^[ |]*File "(.+)", line \d+, in (.+)$', re.MULTILINE)
FOREIGN = re.compile(r"[\\/](site-packages|dist-packages|lib(64)?[\\/]python3[^\\/]*|Lib)[\\/]|^<")
INLINED = ("<listcomp>", "<setcomp>", "<dictcomp>")  # functions of their own until Python 3.12


def place_of(traceback: str | None) -> str | None:
    """Where an exception was raised: `directory/file.py:function`, the last line that is the program's own.

    Of several exceptions that came of one another it is that of the last. Neither line numbers nor the directories
    above are in it: it stays as it is in the next version of the program, in another place.
    """
    last = (traceback or "").rpartition("Traceback (most recent call last):")[2]
    frames = [(path, function) for path, function in FRAME.findall(last) if function not in INLINED]
    own = [frame for frame in frames if not FOREIGN.search(frame[0])]
    if not frames:
        return None
    path, function = (own or frames)[-1]
    name = "/".join(re.split(r"[\\/]", path)[-2:])
    return f"{name}:{function}"


def fingerprint(type_: str, code: str | None, place: str | None) -> str:
    """What the errors of a group have in common, in twelve characters."""
    text = "\0".join("" if part is None else f"={part}" for part in (type_, code, place))
    return blake2b(text.encode("utf-8", "surrogateescape"), digest_size=6).hexdigest()
