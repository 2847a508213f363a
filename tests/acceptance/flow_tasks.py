"""Tasks for chains and groups under faults; each run is noted in the ledger."""

from __future__ import annotations

import time

from limpyd_jobs.tasks import TaskJob, task

from .faults import QUEUE, own_ledger


@task(queue=QUEUE, bind=True, save_result=True)
def count_up(job: TaskJob[int], value: int = 0) -> int:
    """The next number."""
    own_ledger().note_run(job.ident)
    time.sleep(0.002)
    return value + 1


@task(queue=QUEUE, bind=True, save_result=True)
def add_up(job: TaskJob[int], values: list[int]) -> int:
    """The sum of some numbers."""
    own_ledger().note_run(job.ident)
    return sum(values)
