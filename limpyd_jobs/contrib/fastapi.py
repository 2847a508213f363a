"""Jobs of a FastAPI application: see docs/fastapi.md."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, HTTPException, Response
from redis.exceptions import RedisError

from .. import admin
from ..admin import Status
from ..aio import async_connection
from ..exceptions import DatabaseException, InvalidArgument
from ..models import Job, Queue
from ..tasks.definition import Task
from ..tasks.models import TaskJob
from .starlette import Lifespan, lifespan

__all__ = ["Health", "Lifespan", "job_of", "jobs_router", "lifespan"]

UNAVAILABLE = 503


def job_of(kind: Any) -> Callable[[str], Awaitable[Any]]:
    """A dependency: the job of the parameter `pk` of the path, or 404.

        async def show(job: Annotated[MailJob, Depends(job_of(MailJob))]): ...

    Args:
        kind: a class of jobs, or a task: then only its own calls are found.
    Raises:
        InvalidArgument: it is neither.
    """
    is_task = isinstance(kind, Task)
    if not is_task and not (isinstance(kind, type) and issubclass(kind, Job)):
        raise InvalidArgument("kind", kind, "a class of jobs or a task")
    model: Any = TaskJob if is_task else kind

    async def find_job(pk: str) -> Any:
        client: Any = await async_connection(model.database)
        if not await client.sismember(f"{model._name}:collection", pk):
            raise HTTPException(404, "There is no such job")
        job = model.from_pk(pk)
        if is_task and await client.hget(job.key, "task") != kind.name:
            raise HTTPException(404, "There is no such job")
        return job

    return find_job


@dataclass(frozen=True)
class Health:
    """What `/health` answers, with the code 200 or 503.

    Attributes:
        problems: what is wrong, a sentence each.
    """

    is_well: bool
    problems: list[str]


def jobs_router(
    queues: Sequence[str] = (),
    min_workers: int = 0,
    max_oldest_age: float | None = None,
    queue_model: Any = Queue,
    **options: Any,
) -> APIRouter:
    """Routes `/status` and `/health`, which answer JSON; 503 when Redis cannot be used.

    Where they are, and who may see them, is for the program to say: `app.include_router(jobs_router(), prefix="/jobs",
    dependencies=[Depends(of_the_staff)])`.

    Args:
        queues: names; all when there are none.
        min_workers, max_oldest_age: as for `admin.health`.
        options: of the router.
    """
    router = APIRouter(**{"tags": ["jobs"], **options})

    # plain functions, which run in a thread: what they read blocks
    def read_status() -> Status:
        """What is queued, and who works on it."""
        try:
            return admin.status(queues, queue_model=queue_model)
        except (RedisError, DatabaseException) as error:
            raise HTTPException(UNAVAILABLE, "Redis cannot be used") from error

    def read_health(response: Response) -> Health:
        """Is all well?"""
        problems = _problems()
        response.status_code = UNAVAILABLE if problems else 200
        return Health(not problems, problems)

    def _problems() -> list[str]:
        try:
            return admin.health(queues, min_workers, max_oldest_age, queue_model=queue_model)
        except (RedisError, DatabaseException):
            return ["Redis cannot be used"]

    router.add_api_route("/status", read_status, response_model=Status)
    responses: dict[int | str, dict[str, Any]] = {UNAVAILABLE: {"model": Health}}
    router.add_api_route("/health", read_health, response_model=Health, responses=responses)
    return router
