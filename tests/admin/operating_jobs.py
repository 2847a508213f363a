"""Jobs for operations, for the processes of the tests, too."""

from __future__ import annotations

from typing import Any

from limpyd_jobs import Job


class OperatingJob(Job):
    """Fails, and counts how often it did."""

    queue_name = "operating"

    def run(self, queue: Any) -> None:
        self.connection.hincrby("test:runs", self.ident, 1)
        raise ValueError("again")
