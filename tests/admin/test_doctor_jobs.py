"""What `diagnose` says of jobs, queues and workers."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from limpyd_jobs import Job, Queue, admin
from limpyd_jobs.admin import Finding, jobs_checks
from limpyd_jobs.admin.numbers import Rates
from limpyd_jobs.admin.patient import Patient

from ..workers.base import client
from .support import see_worker, take

pytestmark = pytest.mark.usefixtures("database")


class DiagnosedJob(Job):
    queue_name = "test"

    def run(self, queue: Any) -> None:
        pass


@pytest.fixture
def ended_per_second(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Rates]]:
    """How many jobs end in a second, by queue, to be filled by the test."""
    found: dict[str, Rates] = {}
    monkeypatch.setattr(jobs_checks, "rates", lambda *args, **kwargs: found)
    yield found


def found(check: Any) -> list[Finding]:
    findings = admin.diagnose([check])
    assert all(finding.fix for finding in findings if finding.level in ("warning", "error"))
    return findings


def the_finding(check: Any, level: str) -> str:
    """The text of the only finding, which must be of this level."""
    [finding] = found(check)
    assert finding.level == level, finding
    return finding.text


@pytest.mark.parametrize("check", jobs_checks.CHECKS, ids=lambda check: check.__name__)
def test_each_check_has_something_to_say_where_there_is_nothing(check: Any) -> None:
    assert {finding.level for finding in found(check)} <= {"ok", "info"}


def test_all_is_well_where_jobs_are_run() -> None:
    DiagnosedJob.add_job("a")
    see_worker()

    levels = {finding.level for check in jobs_checks.CHECKS for finding in found(check)}

    assert levels <= {"ok", "info"}


def test_leases_that_nobody_looks_after_are_told_of() -> None:
    job = DiagnosedJob.add_job("a")
    DiagnosedJob.add_job("b")
    take()
    assert the_finding(jobs_checks.dead_leases, "ok") == "1 lease, none of a worker that is gone."
    client().zadd("jobs:leases", {job.ident: time.time() - 100})

    [finding] = found(jobs_checks.dead_leases)

    assert f"the lease of {job.ident} lapsed 1 min 4" in finding.text
    assert (finding.level, finding.fix) == ("error", "start a worker")


def test_jobs_in_a_queue_that_nobody_listens_to_are_told_of_with_the_command() -> None:
    see_worker("one", "mails")
    for number in range(7):
        DiagnosedJob.add_job(f"a:{number}", f"unheard:{number}")
    DiagnosedJob.add_job("b", "unheard:0", 3)
    DiagnosedJob.add_job("c", "unheard:0", delayed_for=100)
    DiagnosedJob.add_job("d", "mails")

    first, *others = found(jobs_checks.unheard_queues)

    assert first.text == "3 jobs to be run in 'unheard:0', and no worker listens on it."
    assert first.fix == "limpyd-jobs-worker --queues=unheard:0"
    assert others[-1].text == "2 more queues with jobs, and no worker."


def test_a_queue_that_is_paused_for_long_is_a_warning() -> None:
    admin.pause("test", "a new printer", by="ann@box")
    assert "by ann@box: a new printer." in the_finding(jobs_checks.paused_queues, "info")

    [text] = client().hvals("jobs:paused")
    former = {**json.loads(text), "since": "2026-01-01 00:00:00"}
    client().hset("jobs:paused", client().hkeys("jobs:paused")[0], json.dumps(former))

    the_finding(jobs_checks.paused_queues, "warning")


def test_workers_of_another_version_are_told_of() -> None:
    see_worker("new", version=jobs_checks.EXACT_VERSION)
    see_worker("old", version="2.9.9")

    assert "1 of 2 workers" in the_finding(jobs_checks.versions, "warning")
    assert "box:42 (2.9.9)" in the_finding(jobs_checks.versions, "warning")


def test_an_operation_that_was_interrupted_is_told_of_with_its_resumption() -> None:
    DiagnosedJob.add_job("a")
    operation = admin.start_operation("cancel", admin.JobFilter(queues=("test",)))

    [finding] = found(jobs_checks.operations_left)

    assert "cancel of 1 job, " in finding.text
    assert operation.id in str(finding.fix)


# --- what is kept


def has_long_history(**values: Any) -> None:
    client().rpush("jobs:queue:1:success", *range(50))
    see_worker(options=json.dumps(values))


@pytest.fixture
def long_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs_checks, "LONG_HISTORY", 20)
    monkeypatch.setattr(jobs_checks, "VERY_LONG_HISTORY", 40)


@pytest.mark.usefixtures("long_is_short")
def test_a_long_history_that_is_kept_for_ever_is_told_of() -> None:
    DiagnosedJob.add_job("a")
    has_long_history()

    assert "keeps everything, 50 jobs in `success`" in the_finding(jobs_checks.histories, "warning")


@pytest.mark.usefixtures("long_is_short")
@pytest.mark.parametrize("said", [1000, 604800.0, "7d"])
def test_a_history_that_workers_shorten_is_not_told_of(said: Any) -> None:
    DiagnosedJob.add_job("a")
    has_long_history(keep_success=said)

    the_finding(jobs_checks.histories, "ok")


@pytest.mark.usefixtures("long_is_short")
@pytest.mark.parametrize(("said", "level"), [("1000", "ok"), ("for ever", "warning")])
def test_what_a_queue_says_of_its_history_counts_if_it_can_be_read(said: str, level: str) -> None:
    DiagnosedJob.add_job("a")
    Queue.get_queue("test").keep_success.hset(said)
    has_long_history()

    the_finding(jobs_checks.histories, level)


def test_records_are_weighed_with_their_indexes() -> None:
    for number in range(30):
        DiagnosedJob.add_job(f"a:{number}")
    record = client().memory_usage("jobs:diagnosedjob:1:hash")

    text = the_finding(jobs_checks.records, "info")

    assert text.startswith(f"30 records of {DiagnosedJob.get_model_repr()}: about ")
    assert record < jobs_checks._weights(Patient())[0].each < 5 * record


def test_memory_that_will_be_full_is_told_of_with_the_day(ended_per_second: dict[str, Rates]) -> None:
    DiagnosedJob.add_job("a")
    ended_per_second["test"] = Rates(rate_out=1e9)

    [finding] = found(jobs_checks.outlook)

    assert finding.level == "warning"
    assert "are kept for ever" in finding.text
    assert "--keep-success" in str(finding.fix)


@pytest.mark.parametrize(("keep", "count"), [("7d", "1,209,600"), ("500", "500")])
def test_what_is_kept_in_the_end_is_told(keep: str, count: str, ended_per_second: dict[str, Rates]) -> None:
    DiagnosedJob.add_job("a")
    see_worker(options=json.dumps({"keep_success": keep}))
    ended_per_second["test"] = Rates(rate_out=2)

    assert f"about {count} jobs will be kept" in the_finding(jobs_checks.outlook, "ok")
