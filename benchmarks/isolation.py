"""What it costs to isolate a job: the median time of one that does nothing, by the memory of the process.

    python benchmarks/isolation.py

Prints a table. Each line is made in a process of its own, which fills so much memory with objects of Python first.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from limpyd_jobs.workers.isolation import IsolatedRun  # noqa: E402

SIZES = (50, 500)  # MiB
RUNS = 300
BYTES_AN_OBJECT = 1024


def resident_mib() -> float:
    """How much of its memory this process has in use; from /proc, so on Linux only."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) / 1024


def fill(mib: float) -> list[Any]:
    """Objects that bring this process to that size."""
    kept: list[Any] = []
    while resident_mib() < mib:
        kept.extend(bytearray(BYTES_AN_OBJECT) for _ in range(1024))
    return kept


def microseconds(function: Callable[[], Any]) -> float:
    """The median of many calls."""
    times = []
    for _ in range(RUNS):
        start = perf_counter()
        function()
        times.append(perf_counter() - start)
    return statistics.median(times) * 1_000_000


def nothing() -> None:
    """The job."""


def measure(mib: int) -> str:
    """A line of the table."""
    kept = fill(mib)
    called = microseconds(nothing)
    isolated = microseconds(lambda: IsolatedRun(nothing).wait())
    del kept
    return f"| {mib} MiB | {called:.2f} | {isolated:.0f} | {isolated / called:.0f} |"


def main() -> None:
    """Measure each size in a new process, or one size in this one."""
    if len(sys.argv) > 1:
        print(measure(int(sys.argv[1])))
        return
    print("| resident | called, µs | isolated, µs | ratio |\n|---|---|---|---|", flush=True)
    for mib in SIZES:
        subprocess.run([sys.executable, __file__, str(mib)], check=True)


if __name__ == "__main__":
    main()
