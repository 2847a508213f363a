"""What a type checker refuses."""

from __future__ import annotations

from typing import Any

from limpyd_jobs.tasks import TaskJob, task


@task(queue="mail")
def send(to: str, subject: str = "hi") -> int:
    return len(to + subject)


@task
async def fetch(url: str) -> bytes:
    return url.encode()


@task(bind=True)
def count(job: TaskJob[Any], up_to: int) -> None: ...


send.add()  # error
send.add(3)  # error
send.add("a", subjetc="x")  # error
send.options(queue="urgent").add(to=3)  # error
send.options(quue="urgent")  # error
send.options(priority="high")  # error
send.si()  # error
count.add("3")  # error
count(3)  # error
wrong: str = send.add("a").get_result()  # error
task(requeue_tims=3)  # error


async def later() -> None:
    await send.aadd(3)  # error
    await fetch.aadd()  # error
    await fetch.options(timeout=3).aadd(url=3)  # error
