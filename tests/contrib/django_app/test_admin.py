"""Jobs and errors in Django's admin."""

from __future__ import annotations

import html
import re
from typing import Any

import pytest

from limpyd_jobs import STATUSES
from limpyd_jobs.models import BaseJobsModel, Error, Job
from limpyd_jobs.testing import run_until_empty

pytestmark = pytest.mark.usefixtures("bookshop")

JOBS, ERRORS = "/admin/limpyd_jobs/job/", "/admin/limpyd_jobs/error/"


class DjangoAdminJob(Job):
    queue_name = "mails"

    def run(self, queue: Any) -> None:
        if self.identifier.hget().startswith("bad"):
            raise ValueError("<script>alert(1)</script>")


class DjangoAdminOtherJob(Job):
    queue_name = "reports"


def client_of(*permissions: str, is_superuser: bool = False) -> Any:
    """A client with a member of the staff who is logged in."""
    from django.contrib.auth.models import Permission, User
    from django.test import Client

    user = User.objects.create(username="ada", is_staff=True, is_superuser=is_superuser)
    user.user_permissions.set(
        Permission.objects.filter(codename__in=permissions, content_type__app_label="limpyd_jobs")
    )
    client = Client()
    client.force_login(user)
    return client


@pytest.fixture
def client(bookshop: Any) -> Any:
    """Of somebody who may do everything."""
    return client_of(is_superuser=True)


def page_of(job: Any) -> str:
    from django.contrib.admin.utils import quote

    return f"{JOBS}{quote(job.ident)}/"


def text_of(answer: Any) -> str:
    return str(answer.content.decode())


def idents_on(answer: Any) -> list[str]:
    return [shown["ident"] for shown in answer.context_data["page"].items]


def messages_on(answer: Any) -> list[tuple[str, str]]:
    """What is told at the top of a page: the level, and the text."""
    return re.findall(r'<li class="(\w+)">(.*?)</li>', html.unescape(text_of(answer)))


def failed_job() -> Any:
    job = DjangoAdminJob.add_job("bad:1")
    run_until_empty("mails")
    return job


# --- Who may see what


def test_only_who_may_view_jobs_sees_them() -> None:
    from django.test import Client

    job = DjangoAdminJob.add_job("user:1")
    nobody, staff = Client(), client_of("view_error")

    for url in (JOBS, page_of(job)):
        assert nobody.get(url).status_code == 302
        assert staff.get(url).status_code == 403
    assert staff.get(ERRORS).status_code == 200


def test_the_front_page_of_the_admin_leads_to_jobs_and_errors(client: Any) -> None:
    front = text_of(client.get("/admin/"))

    assert JOBS in front and ERRORS in front
    assert f"{JOBS}add/" not in front


def test_who_may_only_view_is_offered_nothing_and_can_do_nothing() -> None:
    job = DjangoAdminJob.add_job("user:1")
    viewer = client_of("view_job")

    seen = text_of(viewer.get(page_of(job)))
    answers = [viewer.post(page_of(job), {"action": name}).status_code for name in ("requeue", "cancel", "delete", "x")]

    assert 'name="action"' not in seen
    assert answers == [403] * 4
    assert job.status.hget() == STATUSES.WAITING


def test_who_may_change_jobs_may_not_delete_them() -> None:
    job = DjangoAdminJob.add_job("user:1")
    changer = client_of("view_job", "change_job")

    refused = changer.post(JOBS, {"action": "delete", "ident": job.ident, "confirmed": "yes"})

    assert refused.status_code == 403
    assert job.exists(pk=job.pk.get())


# --- The list


def test_jobs_are_listed_newest_first(client: Any) -> None:
    jobs = [DjangoAdminJob.add_job(f"user:{number}") for number in range(3)]

    answer = client.get(JOBS)

    assert idents_on(answer) == [job.ident for job in reversed(jobs)]
    assert page_of(jobs[0]) in text_of(answer)


def test_the_list_is_filtered_by_status_queue_class_and_identifier(client: Any) -> None:
    mail, report = DjangoAdminJob.add_job("user:1"), DjangoAdminOtherJob.add_job("report:1")
    report.cancel()

    for query, expected in (
        ({"status": STATUSES.CANCELED}, [report]),
        ({"queue": "mails"}, [mail]),
        ({"job_class": "DjangoAdminOtherJob"}, [report]),
        ({"identifier": "user:*"}, [mail]),
        ({"status": STATUSES.ERROR}, []),
    ):
        assert idents_on(client.get(JOBS, query)) == [job.ident for job in expected], query


def test_a_filter_that_cannot_be_is_told(client: Any) -> None:
    answer = client.get(JOBS, {"job_class": "NoSuchJob"})

    assert answer.status_code == 200
    assert [level for level, text in messages_on(answer) if "NoSuchJob" in text] == ["error"]


def test_a_status_that_is_none_finds_no_jobs_rather_than_all(client: Any) -> None:
    DjangoAdminJob.add_job("user:1")

    answer = client.get(JOBS, {"status": "?"})

    assert idents_on(answer) == []
    assert "Select a valid choice" in text_of(answer)


def test_the_list_goes_on_on_the_next_page(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("limpyd_jobs.contrib.django.admin.PAGE_SIZE", 2)
    jobs = [DjangoAdminJob.add_job(f"user:{number}") for number in range(3)]

    first = client.get(JOBS, {"queue": "mails"})
    second = client.get(f"{JOBS}?{first.context_data['next']}")

    assert idents_on(first) + idents_on(second) == [job.ident for job in reversed(jobs)]
    assert "queue=mails" in first.context_data["next"]
    assert second.context_data["next"] is None


# --- The page of a job


def test_the_page_of_a_job_has_its_fields_errors_and_what_explains_it(client: Any) -> None:
    job = failed_job()

    seen = text_of(client.get(page_of(job)))

    assert "bad:1" in seen and "ValueError" in seen
    assert "Traceback (most recent call last)" in seen
    assert "&lt;script&gt;alert(1)" in seen and "<script>alert(1)" not in seen


def test_there_is_no_page_of_a_job_that_does_not_exist(client: Any) -> None:
    assert client.get(f"{JOBS}no.such.Class_3A1/").status_code == 404


# --- Actions


def test_jobs_that_failed_are_requeued(client: Any) -> None:
    job = failed_job()

    answer = client.post(JOBS, {"action": "requeue", "ident": [job.ident]}, follow=True)

    assert job.status.hget() == STATUSES.WAITING
    assert messages_on(answer) == [("success", f"Put back in its queue: {job.ident}")]


def test_what_is_done_is_in_the_log_of_the_admin(client: Any) -> None:
    from django.contrib.admin.models import LogEntry

    job = DjangoAdminJob.add_job("user:1")

    client.post(page_of(job), {"action": "cancel"})

    assert job.status.hget() == STATUSES.CANCELED
    (entry,) = LogEntry.objects.all()
    assert (entry.object_id, entry.get_change_message()) == (job.ident, "Canceled")
    assert entry.get_admin_url() == page_of(job)


def test_what_is_refused_is_told_and_the_others_are_done(client: Any) -> None:
    failed, waits = failed_job(), DjangoAdminJob.add_job("user:1")

    answer = client.post(JOBS, {"action": "requeue", "ident": [waits.ident, failed.ident]}, follow=True)

    refused, done = messages_on(answer)
    assert refused[0] == "error" and waits.ident in refused[1]
    assert done[0] == "success" and failed.status.hget() == STATUSES.WAITING


def test_an_action_on_no_job_is_told(client: Any) -> None:
    answer = client.post(JOBS, {"action": "cancel"}, follow=True)

    assert messages_on(answer) == [("warning", "No job was chosen: nothing was done")]


def test_bytes_that_are_no_text_are_shown_with_escapes(client: Any) -> None:
    job = DjangoAdminJob.add_job("user:1")
    job.get_connection().hset(job.key, "identifier", b"user:\xff")

    assert "user:\\udcff" in text_of(client.get(JOBS))
    assert "user:\\udcff" in text_of(client.get(page_of(job)))


def test_jobs_are_deleted_once_that_is_confirmed(client: Any) -> None:
    job = failed_job()

    question = client.post(page_of(job), {"action": "delete"})
    before = job.exists(pk=job.pk.get())
    answer = client.post(page_of(job), {"action": "delete", "ident": job.ident, "confirmed": "yes"})

    assert "Yes, I am sure" in text_of(question) and before
    assert answer["Location"] == JOBS
    assert not job.exists(pk=job.pk.get())
    assert len(Error.collection()) == 0


def test_nothing_is_done_without_the_token_against_forgery() -> None:
    from django.contrib.auth.models import User
    from django.test import Client

    job = DjangoAdminJob.add_job("user:1")
    strict = Client(enforce_csrf_checks=True)
    strict.force_login(User.objects.create(username="ada", is_staff=True, is_superuser=True))

    assert strict.post(page_of(job), {"action": "cancel"}).status_code == 403
    assert job.status.hget() == STATUSES.WAITING


# --- Errors


def test_errors_are_listed_and_filtered_with_links_to_their_jobs(client: Any) -> None:
    job = failed_job()

    found = text_of(client.get(ERRORS, {"type": "ValueError", "queue": "mails"}))
    none = text_of(client.get(ERRORS, {"type": "KeyError"}))

    assert page_of(job) in found and "&lt;script&gt;" in found
    assert "There are none." in none and page_of(job) not in none


# --- Outages


def test_a_page_says_that_redis_cannot_be_used(client: Any) -> None:
    BaseJobsModel.database.reset("redis://127.0.0.1:1/0")

    answers = [client.get(JOBS), client.get(ERRORS), client.post(JOBS, {"action": "cancel", "ident": ["a.B:1"]})]

    assert [answer.status_code for answer in answers] == [503] * 3
    assert "Unable to use the database redis://127.0.0.1:1/0" in text_of(answers[0])
