"""What the threads of this process are doing, and how much memory it has: what is asked from outside."""

from __future__ import annotations

import os
import resource
import sys
import threading
import traceback

MIB = 1024 * 1024


def format_stacks() -> list[str]:
    """The stack of every thread, the main one first: a line with its name and ident, then its calls, oldest first."""
    threads = {thread.ident: thread.name for thread in threading.enumerate()}
    main = threading.main_thread().ident
    lines: list[str] = []
    for ident, frame in sorted(sys._current_frames().items(), key=lambda pair: pair[0] != main):
        # a thread that threading has not started, of a library in C, has no name
        lines.append(f"Thread {threads.get(ident, 'without a name')} ({ident}):")
        for call in traceback.format_stack(frame):
            lines += call.rstrip("\n").split("\n")
    return lines


def resident_mib() -> float:
    """The resident memory of this process, in MiB.

    Linux says what it is now. Elsewhere it is the most that it has been so far, all that `getrusage` knows.
    """
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / MIB
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / MIB if sys.platform == "darwin" else peak / 1024  # macOS says it in bytes, others in KiB
