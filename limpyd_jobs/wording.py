"""Times, durations, sizes and numbers of things, as people read them."""

from __future__ import annotations

import time

UNITS = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))


def duration(seconds: float) -> str:
    """A duration, in its two largest units: `3 h 20 min`."""
    left = round(abs(seconds))
    if left < 1:
        return "less than a second"
    parts = []
    for name, length in UNITS:
        count, left = divmod(left, length)
        if count:
            parts.append(f"{count:,} {name}")
        elif parts:
            break
    return " ".join(parts[:2])


def utc(seconds: float) -> str:
    """A time, in seconds since the epoch, as fields hold it: `2026-11-21 19:40:00`."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(seconds))


def local(seconds: float) -> str:
    """The same by the clock of this machine, with its zone; '' where that is UTC."""
    here = time.localtime(seconds)
    return time.strftime("%Y-%m-%d %H:%M:%S %Z", here) if here.tm_gmtoff else ""


def size(count: float) -> str:
    """A number of bytes."""
    units = ["bytes", "KiB", "MiB", "GiB", "TiB"]
    while count >= 1024 and len(units) > 1:
        count /= 1024
        units.pop(0)
    return f"{count:.0f} bytes" if units[0] == "bytes" else f"{count:.1f} {units[0]}"


def counted(count: int, one: str, many: str = "") -> str:
    """`1 job`, `1,200 jobs`."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"
