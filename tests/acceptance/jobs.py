"""The jobs and workers that the acceptance tests run in processes of their own."""

from __future__ import annotations

import os
import time
from typing import Any

from limpyd_jobs import Job, Queue, Worker


def connection() -> Any:
    return Queue.get_connection()


CREW = 3  # the processes that run the counted jobs


class CountedJob(Job):
    """Notes each of its runs, and what of a higher priority waited then."""

    queue_name = "counted"

    def run(self, queue: Any) -> None:
        self.wait_for_the_crew()
        mine = int(self.priority.hget())
        waiting = [
            other.priority.hget()
            for other in Queue.get_all("counted")
            if int(other.priority.hget()) > mine and other.waiting.llen()
        ]
        connection().rpush("test:runs", f"{self.pk.get()} {os.getpid()}")
        if waiting:
            connection().rpush("test:too-early", f"{self.pk.get()} of priority {mine} before those of {waiting}")

    @staticmethod
    def wait_for_the_crew() -> None:
        """Hold the first job of a process until each has one: else one may do all before the last is up."""
        connection().sadd("test:crew", os.getpid())
        while connection().scard("test:crew") < CREW:
            time.sleep(0.01)


class HeldJob(Job):
    """Runs until the test lets it go, and notes its start."""

    queue_name = "held"

    def run(self, queue: Any) -> None:
        connection().rpush("test:runs", f"{self.pk.get()} {os.getpid()}")
        # a few seconds at a time: redis-py 8 cuts what blocks longer
        while not connection().exists("test:go"):
            connection().blpop(["test:doors"], 1)


class AnsweringJob(Job):
    """Answers with its identifier."""

    queue_name = "answers"
    save_result = True

    def run(self, queue: Any) -> Any:
        return {"answer": self._claim.identifier if self._claim else None}


class RacesJob(Job):
    """Does nothing by itself: the workers of the races have a callback."""

    queue_name = "race"


class QuickHeartWorker(Worker):
    """A worker whose jobs are given to others a second after its death."""

    lease_seconds = 1
