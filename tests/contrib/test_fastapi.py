"""What FastAPI and Starlette are offered, in the application of docs/fastapi.md."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import httpx
import pytest
from fastapi import Depends, FastAPI

from limpyd_jobs import aio
from limpyd_jobs.contrib.fastapi import job_of, jobs_router, lifespan
from limpyd_jobs.exceptions import DatabaseException, InvalidArgument
from limpyd_jobs.models import BaseJobsModel, Job
from limpyd_jobs.tasks import task
from limpyd_jobs.testing import background_worker, run_until_empty

from ..base import RedisServer
from .examples import write_example

pytestmark = pytest.mark.usefixtures("database")
OF_THE_STAFF = {"X-Token": "of the staff"}


class FastapiContribJob(Job):
    queue_name = "pictures"


@task(queue="pictures", save_result=True)
def fastapi_contrib_secret() -> str:
    return "secret"


@pytest.fixture(scope="module")
def gallery(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The example, imported."""
    directory: Path = tmp_path_factory.mktemp("gallery")
    write_example("fastapi", directory, redis_server.url)
    sys.path.insert(0, str(directory))
    yield import_module("gallery")
    sys.path.remove(str(directory))


class Visitor:
    """Sends requests to an application, as long as its lifespan lasts; all in one event loop.

    The test client of Starlette would do the same, but warns of the `httpx` that others need.
    """

    def __init__(self, app: Any) -> None:
        self._app, self._loop = app, asyncio.new_event_loop()
        self._living = app.router.lifespan_context(app)
        self._state: dict[str, Any] = {}
        self.client = httpx.AsyncClient(transport=httpx.ASGITransport(self._with_state), base_url="http://gallery")

    def __enter__(self) -> Visitor:
        try:
            self._state.update(self.run(self._living.__aenter__()) or {})
        except BaseException:
            self._loop.close()
            raise
        return self

    def __exit__(self, *raised: Any) -> None:
        try:
            self.run(self._living.__aexit__(*raised))
        finally:
            self.run(self.client.aclose())
            self.run(self._loop.shutdown_asyncgens())
            self._loop.close()

    async def _with_state(self, scope: Any, receive: Any, send: Any) -> None:
        await self._app({**scope, "state": dict(self._state)}, receive, send)

    def run(self, work: Any) -> Any:
        return self._loop.run_until_complete(work)

    def get(self, url: str, **options: Any) -> httpx.Response:
        answer: httpx.Response = self.run(self.client.get(url, **options))
        return answer

    def post(self, url: str) -> httpx.Response:
        answer: httpx.Response = self.run(self.client.post(url))
        return answer


# --- The example


def test_the_example_adds_a_job_and_answers_what_came_of_it(gallery: Any) -> None:
    with Visitor(gallery.app) as client:
        added = client.post("/pictures/cat.png")
        before = client.get(f"/shrinking/{added.json()['job']}")
        run_until_empty("pictures", raises=True)
        after = client.get(f"/shrinking/{added.json()['job']}", params={"wait": 10})

    assert (added.status_code, added.json()["sizes"]) == (202, [100, 400])
    assert before.json() == {"is_done": False, "progress": None}
    assert after.json() == {"is_done": True, "picture": "small-cat.png"}


def test_who_waits_for_a_job_does_not_hold_up_other_requests(gallery: Any) -> None:
    async def visit(client: httpx.AsyncClient) -> tuple[bool, Any]:
        pk = (await client.post("/pictures/cat.png")).json()["job"]
        waiting = asyncio.create_task(client.get(f"/shrinking/{pk}", params={"wait": 30}))
        other = await client.get("/shrinking/0")
        is_waiting = other.status_code == 404 and not waiting.done()
        with background_worker("pictures"):
            return is_waiting, (await waiting).json()

    with Visitor(gallery.app) as visitor:
        is_waiting, answer = visitor.run(visit(visitor.client))

    assert is_waiting
    assert answer == {"is_done": True, "picture": "small-cat.png"}


# --- The dependency


def test_a_job_of_the_path_is_found_by_its_class_or_its_task_and_no_other(gallery: Any) -> None:
    app = FastAPI(lifespan=lifespan())

    @app.get("/jobs/{pk}")
    async def show(job: Annotated[Any, Depends(job_of(FastapiContribJob))]) -> str:
        return str(job.ident)

    job, secret = FastapiContribJob.add_job("picture:1"), fastapi_contrib_secret.add()
    with Visitor(app) as client:
        found, missing = client.get(f"/jobs/{job.pk.get()}"), client.get("/jobs/2")
    with Visitor(gallery.app) as client:
        of_another_task = client.get(f"/shrinking/{secret.pk.get()}")

    assert found.json() == job.ident
    assert [missing.status_code, of_another_task.status_code] == [404, 404]


def test_what_has_no_jobs_is_refused_as_a_kind_of_them() -> None:
    with pytest.raises(
        InvalidArgument, match="Invalid kind argument: <class 'int'>: must be a class of jobs or a task"
    ):
        job_of(int)


# --- The lifespan


def test_an_application_without_its_database_does_not_start() -> None:
    app = FastAPI(lifespan=lifespan("redis://127.0.0.1:1/0"))

    with pytest.raises(DatabaseException), Visitor(app):
        pass


def test_the_client_of_the_event_loop_is_closed_after_the_lifespan_of_the_program() -> None:
    seen: list[Any] = []

    @asynccontextmanager
    async def own(app: Any) -> AsyncIterator[None]:
        seen.append(await aio.async_connection(BaseJobsModel.database))
        yield
        await FastapiContribJob.aadd_job("at the end")

    async def live() -> None:
        async with lifespan(inner=own)(None):
            pass
        seen.append(asyncio.get_running_loop() in aio._clients)

    asyncio.run(live())

    client, is_known = seen
    assert not is_known
    assert not any(one.is_connected for one in client.connection_pool._available_connections)
    assert len(run_until_empty("pictures")) == 1


def test_starlette_runs_in_the_same_lifespan(gallery: Any, redis_server: RedisServer) -> None:
    BaseJobsModel.database.reset("redis://127.0.0.1:1/0")

    with Visitor(import_module("gallery.bare").app) as client:
        answer = client.post("/pictures/cat.png")

    assert (answer.status_code, str(BaseJobsModel.database)) == (202, redis_server.url)
    assert [job.ident.rpartition(":")[2] for job in run_until_empty("pictures")] == [answer.json()["job"]]


# --- The router


def test_only_who_the_program_lets_in_sees_the_routes(gallery: Any) -> None:
    with Visitor(gallery.app) as client:
        codes = [client.get(f"/operation/jobs/{name}").status_code for name in ("status", "health")]

    assert codes == [403, 403]


def test_the_status_says_what_is_queued(gallery: Any) -> None:
    gallery.shrink.add("cat.png")

    with Visitor(gallery.app) as client:
        status = client.get("/operation/jobs/status", headers=OF_THE_STAFF).json()

    assert [(queue["name"], queue["waiting"]) for queue in status["queues"]] == [("pictures", 1)]
    assert status["workers"] == []


def test_the_health_is_told_by_the_code_and_in_sentences() -> None:
    app = FastAPI(lifespan=lifespan())
    app.include_router(jobs_router(), prefix="/well")
    app.include_router(jobs_router(min_workers=1), prefix="/ill")

    with Visitor(app) as client:
        well, ill = client.get("/well/health"), client.get("/ill/health")

    assert (well.status_code, well.json()) == (200, {"is_well": True, "problems": []})
    assert (ill.status_code, ill.json()["is_well"], len(ill.json()["problems"])) == (503, False, 1)


def test_without_redis_the_routes_answer_503() -> None:
    app = FastAPI()
    app.include_router(jobs_router())
    BaseJobsModel.database.reset("redis://127.0.0.1:1/0")

    with Visitor(app) as client:
        status, health = client.get("/status"), client.get("/health")

    assert (status.status_code, status.json()) == (503, {"detail": "Redis cannot be used"})
    assert (health.status_code, health.json()["is_well"]) == (503, False)


def test_the_routes_are_described_with_their_models(gallery: Any) -> None:
    described = gallery.app.openapi()

    answers = described["paths"]["/operation/jobs/health"]["get"]["responses"]
    assert answers["503"]["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/Health"}
    assert {"Status", "QueueStatus", "Health"} <= described["components"]["schemas"].keys()
