"""The floor of the benchmarks writes what limpyd_jobs writes: else its figures would say nothing."""

from __future__ import annotations

import os
import subprocess
import sys

from ..base import ROOT, RedisServer


def test_the_floor_writes_what_limpyd_jobs_writes() -> None:
    with RedisServer() as server:
        done = subprocess.run(
            [sys.executable, str(ROOT / "benchmarks" / "peers" / "floor.py"), "check"],
            env={**os.environ, "BENCH_URL": server.url, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )

    assert (done.stdout.strip(), done.returncode) == ('""', 0), done.stderr
