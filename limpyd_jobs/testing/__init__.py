"""For the tests of programs that have jobs: see docs/testing.md. pytest finds its fixtures in `limpyd_jobs_pytest`."""

from .clock import FakeClock, fake_clock
from .running import background_worker, eager, queued, run_until_empty

__all__ = ["FakeClock", "background_worker", "eager", "fake_clock", "queued", "run_until_empty"]
