#!/usr/bin/env python
"""The command `limpyd-jobs-worker`, from a checkout that is not installed."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from limpyd_jobs.scripts.worker import main

if __name__ == "__main__":
    sys.exit(main())
