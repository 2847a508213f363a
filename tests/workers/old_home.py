"""Where a job class was before it moved to `test_resilience`."""

from .test_resilience import ResilientJob

__all__ = ["ResilientJob"]
