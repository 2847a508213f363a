#!/usr/bin/env python
"""Run the whole suite, against a Redis server that it starts itself.

    python run_tests.py                     everything, in twice as many processes as there are cores, eight at most
    python run_tests.py tests/unit -k url   what pytest takes is passed on

The environment variable LIMPYD_JOBS_REDIS_SERVER names another redis-server than the embedded one.
The exit code is pytest's.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent


def main(arguments: list[str]) -> int:
    try:
        import pytest
    except ImportError:
        print("The tests need the extra \"test\": pip install -e '.[test]'", file=sys.stderr)
        return 2
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))
    return int(pytest.main(["--rootdir", str(ROOT), *(arguments or in_parallel())]))


def in_parallel() -> list[str]:
    """Many tests wait, for a worker or a lease: so there are more processes than cores."""
    return ["-n", str(min(2 * (os.cpu_count() or 1), 8)), "--dist", "worksteal"]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
