"""Jobs of an ASGI application: see docs/fastapi.md. Nothing of Starlette is needed to import this."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, TypeAlias

from ..aio import async_connection, close_async_connection
from ..models import BaseJobsModel

Lifespan: TypeAlias = Callable[[Any], AbstractAsyncContextManager[Mapping[str, Any] | None]]
"""What Starlette calls one: given the application, a context manager whose value is the state."""


def lifespan(database: str | None = None, inner: Lifespan | None = None) -> Lifespan:
    """What an application with jobs runs in: `Starlette(lifespan=lifespan("redis://..."))`.

    At its start the models are brought to the database and the client of its event loop is made, so that an application
    without Redis does not start; at its end that client is closed.

    Args:
        database: its name, as in docs/deployment.md; None: the models stay where they are.
        inner: the lifespan of the program, within which jobs can be added; its state is passed on.
    Raises:
        LimpydJobsException: when the application starts: the database is named wrongly, or cannot be used.
    """

    @asynccontextmanager
    async def around(app: Any) -> AsyncIterator[Mapping[str, Any] | None]:
        if database is not None:
            await asyncio.to_thread(BaseJobsModel.database.connect, database)
        await async_connection(BaseJobsModel.database)
        try:
            if inner is None:
                yield None
            else:
                async with inner(app) as state:
                    yield state
        finally:
            await close_async_connection()

    return around
