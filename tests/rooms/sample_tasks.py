"""The tasks of the tests. They are called in this process, and note that."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass
from datetime import date
from enum import Enum
from typing import Any

from limpyd_jobs.tasks import TaskJob, current_job, task

calls: list[Any] = []


class Size(Enum):
    SMALL = "s"
    LARGE = "l"


@dataclass
class Parcel:
    weight: float
    size: Size


@task(queue="test")
def send(to: str, subject: str = "hi") -> int:
    """Send a mail."""
    calls.append((to, subject))
    return len(calls)


@task(queue="test")
async def fetch(url: str, *, tries: int = 1) -> str:
    await asyncio.sleep(0)
    calls.append((url, tries, threading.current_thread() is threading.main_thread(), current_job().ident))
    return url


@task(queue="test")
def where() -> None:
    calls.append((threading.current_thread().name, current_job().ident))


@task(queue="test", bind=True)
def bound(job: TaskJob[Any], up_to: int) -> int:
    calls.append((job, up_to))
    return up_to


@task(queue="test", bind=True)
async def bound_later(job: TaskJob[Any], up_to: int) -> int:
    calls.append((job, up_to))
    return up_to


@task(queue="test")
def ship(parcel: Parcel, sizes: set[Size], day: date, *rest: float, **more: Parcel) -> None:
    calls.append((parcel, sizes, day, rest, more))


@task(queue="test", name="sample.fail", requeue_times=2, requeue_delay_delta=0, retry_on="ValueError")
def fail(kind: str = "ValueError") -> None:
    calls.append(kind)
    raise {"ValueError": ValueError, "KeyError": KeyError}[kind](kind)


@task(queue="test", isolate=True)
def alone() -> int:
    return current_job().pk.get()


@task(queue="test", job_timeout=0.05)
async def slow() -> None:
    await asyncio.sleep(60)


@task(queue="test", identifier="user:{user}")
def refresh(user: int, depth: int = 1) -> None:
    calls.append((user, depth))


@task(queue="test", identifier=lambda user, depth=1: f"{user}/{depth}")
def refresh_deep(user: int, depth: int = 1) -> None: ...


@task(queue="test", unique="args")
def once(what: Any, times: int = 1) -> None: ...


@task(queue="test", priority=3, delayed_for=60, expires=120)
def late() -> None: ...


@task(queue="test", serializer="msgpack", max_size=100)
def pack(data: bytes) -> bytes:
    calls.append(data)
    return data * 2


@task(queue="test", save_result=60)
def weigh(weight: float) -> Parcel:
    return Parcel(weight, Size.LARGE)


@task(queue="test", keep_success="2d", keep_errors="3d")
def leave(fails: bool = False) -> None:
    assert not fails


@task(queue="test")
def note(what: list[Any], parcel: Parcel | None = None) -> None:
    calls.append((what, parcel))


@task(queue="test")
async def note_later(parcel: Parcel) -> None:
    calls.append(("later", parcel))


running: list[int] = []


@task(queue="test", max_concurrency=1)
async def limited(number: int) -> None:
    running.append(number)
    await asyncio.sleep(0.01)
    calls.append((number, len(running)))
    running.remove(number)


@task(queue="test", max_concurrency=1, limit_key="of {user}")
def limited_each(user: str) -> None: ...
