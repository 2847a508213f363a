"""What a type checker sees of tasks."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

from typing_extensions import assert_type

from limpyd_jobs.additions import AddedJobs
from limpyd_jobs.tasks import Signature, TaskJob, call, task


@task
def clean() -> None: ...


@task(queue="mail", requeue_times=3, backoff="exponential", timeout=5)
def send(to: str, subject: str = "hi") -> int:
    return len(to + subject)


@task
async def fetch(url: str, *, tries: int = 1) -> bytes:
    return url.encode() * tries


@task(bind=True, name="shop.count")
def count(job: TaskJob[Any], up_to: int) -> list[int]:
    assert job is not None
    return list(range(up_to))


@task(bind=True)
async def count_later(job: TaskJob[Any], up_to: int) -> list[int]:
    return await count_later(job, up_to)


# the plain functions
assert_type(clean(), None)
assert_type(send("a@b.c"), int)
coroutine: Coroutine[Any, Any, bytes] = fetch("/", tries=2)

# jobs, by their results
assert_type(clean.add(), TaskJob[None])
assert_type(send.add("a@b.c", subject="x"), TaskJob[int])
assert_type(fetch.add("/", tries=2), TaskJob[bytes])
assert_type(count.add(3), TaskJob[list[int]])
assert_type(count_later.add(up_to=3), TaskJob[list[int]])
assert_type(count(send.add("a"), 3), list[int])
assert_type(send.options(queue="urgent", priority=3, delayed_for=60).add("a@b.c"), TaskJob[int])
assert_type(send.add_many([("a@b.c",), {"to": "d@e.f"}]), AddedJobs)
assert_type(call("shop.mails:send", ["a@b.c"], queue="mail", verify=True), TaskJob[Any])

# results
assert_type(send.add("a@b.c").get_result(), int)
assert_type(send.add("a@b.c").get_result(None), int | None)
assert_type(send.add("a@b.c").get_result(default="later"), int | str)
assert_type(fetch.add("/").get_result(), bytes)

# calls for later
assert_type(send.s(subject="x"), Signature[int])
assert_type(fetch.si("/"), Signature[bytes])
assert_type(send.si("a").add(), TaskJob[int])


async def later() -> None:
    assert_type(await send.aadd("a@b.c"), TaskJob[int])
    assert_type(await fetch.options(timeout=3).aadd("/"), TaskJob[bytes])
    assert_type(await fetch("/"), bytes)
    assert_type(await (await send.aadd("a@b.c")).aget_result(), int)
    assert_type(await fetch.add("/").aget_result(None), bytes | None)
