"""The adapter of limpyd_jobs in its fastest configuration: the worker claims many jobs in one round trip."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import probe
from peers import limpyd_jobs_default as default

from limpyd_jobs import Worker

PREFETCH = 400


def describe() -> dict[str, Any]:
    """What the table says about limpyd_jobs with prefetch."""
    return {
        **default.describe(),
        "name": "limpyd_jobs, fastest",
        "configuration": f"`Worker(queue, callback=..., prefetch={PREFETCH})`: {PREFETCH} jobs are claimed in one "
        "round trip, each under its own lease, and ended together; all else as in the defaults",
    }


def work() -> None:
    """Run one worker process until it is killed."""
    if not hasattr(Worker, "prefetch"):
        sys.exit("this version has no prefetch")
    default.work(prefetch=PREFETCH)


if __name__ == "__main__":
    probe.main(describe=describe, add=default.add, bulk=default.bulk, work=work, latency=default.latency)
