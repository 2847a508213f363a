"""Connections to Django's databases around jobs, as Django treats them around requests."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from asgiref.sync import SyncToAsync
from django.db import connections

from ...instruments import Instrument
from ...workers.asynchronous import is_async


class CloseConnections(Instrument):
    """Close what is broken, or older than CONN_MAX_AGE, before and after each job, in the thread that runs it.

    Those in an `atomic` block stay, as those of Django's TestCase are; and so do those of who runs jobs at once, in a
    request or a test, and goes on with them.
    """

    def around(self, job: Any, queue: Any, worker: Any) -> AbstractContextManager[Any]:
        """See Instrument."""
        if worker.runs_for_caller:
            return nullcontext()
        return _closed_around(bool(job._is_coroutine) or is_async(job.run) or is_async(worker.callback))

    def in_thread(self, worker: Any) -> AbstractContextManager[Any]:
        """See Instrument."""
        return _closed_around(may_be_coroutine=False)


@contextmanager
def _closed_around(may_be_coroutine: bool) -> Iterator[None]:
    _close_old(may_be_coroutine)
    try:
        yield
    finally:
        _close_old(may_be_coroutine)


def _close_old(may_be_coroutine: bool) -> None:
    has_loop = asyncio._get_running_loop() is not None
    if not has_loop:  # else Django refuses: there can be none in this thread
        _close_old_here()
    if has_loop or may_be_coroutine:  # the thread where `sync_to_async`, and so `aget` and the like, ask the database
        SyncToAsync.single_thread_executor.submit(_close_old_here)


def _close_old_here() -> None:
    for connection in _free_connections():
        connection.close_if_unusable_or_obsolete()


def _free_connections() -> Iterator[Any]:
    """Those of this thread that are in no transaction: Django would break that."""
    for connection in connections.all(initialized_only=True):
        if not connection.in_atomic_block:
            yield connection


class LeaveNoConnections(Instrument):
    """Close all connections before a process is forked for an isolated job: two that use one socket break it."""

    stays_outside = True

    def around(self, job: Any, queue: Any, worker: Any) -> AbstractContextManager[Any]:
        """See Instrument."""
        if worker._is_isolated(job):
            for connection in _free_connections():
                connection.close()
        return nullcontext()
