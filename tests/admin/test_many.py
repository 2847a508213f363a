"""Jobs and errors are found among 100,000 without reading them all, and no command reads more than 1,000 at once."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest

from limpyd_jobs import admin, utils
from limpyd_jobs.admin import ErrorFilter, JobFilter, sources

from .conftest import ERRORS, MANY, watched


def numbers(records: Any) -> list[int]:
    return [int(record.ident.partition(":")[2]) for record in records]


def test_the_first_page_reads_no_more_than_it_shows(crowded: Any) -> None:
    with watched(crowded) as sent:
        page = admin.find_jobs()

    assert numbers(page.items) == list(range(MANY, MANY - 50, -1))
    assert sent.records <= 60 and sent.counts["SSCAN"] == 0 and not sent.large


def test_a_rare_status_is_read_from_its_index(crowded: Any) -> None:
    with watched(crowded) as sent:
        page = admin.find_jobs(JobFilter(statuses=("error",)))

    assert numbers(page.items) == list(range(197, 0, -4)) and page.next is None
    assert sent.records <= 110 and not sent.large


def test_the_first_page_of_a_frequent_status_does_not_read_its_index(crowded: Any) -> None:
    with watched(crowded) as sent:
        page = admin.find_jobs(JobFilter(statuses=("success",)), limit=9)

    assert numbers(page.items) == list(range(MANY - 1, MANY - 10, -1))
    assert sent.records <= 40 and sent.counts["SSCAN"] == 0 and not sent.large


def test_the_jobs_of_a_small_queue_are_read_from_its_lists(crowded: Any) -> None:
    with watched(crowded) as sent:
        page = admin.find_jobs(JobFilter(queues=("rare",)), limit=100)

    assert numbers(page.items) == list(range(MANY, 0, -1000)) and page.next is None
    assert sent.records <= 220 and not sent.large


def test_those_that_came_of_late_are_found_without_looking_at_the_others(
    crowded: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(utils, "_fixed", datetime(2026, 1, 2, 3, 46, 40))  # when the last one was added

    with watched(crowded) as sent:
        count = admin.count_jobs(JobFilter(newer_than=600))

    assert count == 601
    assert sent.records <= 5500 and not sent.large


def test_old_ones_are_found_without_looking_at_those_that_are_newer(
    crowded: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(utils, "_fixed", datetime(2026, 1, 2, 3, 46, 40))  # when the last one was added

    with watched(crowded) as sent:
        page = admin.find_jobs(JobFilter(older_than=90_000, statuses=("success",)), limit=3)

    assert numbers(page.items) == [9999, 9998, 9997]
    assert sent.records <= 5500 and sent.counts["HGET"] < 1500 and not sent.large


def test_what_an_index_tells_is_counted_without_reading_a_job(crowded: Any) -> None:
    with watched(crowded) as sent:
        counts = [admin.count_jobs(JobFilter(statuses=(status,))) for status in ("w", "s", "e")]

    assert counts == [10_000, MANY - 10_050, 50]
    assert sent.records == 0 and not sent.large


def test_a_pattern_is_looked_for_from_the_newest_one_on(crowded: Any) -> None:
    with watched(crowded) as sent:
        page = admin.find_jobs(JobFilter(identifier="job:999?8"), limit=9)

    assert numbers(page.items) == [99998, 99988, 99978, 99968, 99958, 99948, 99938, 99928, 99918]
    assert sent.records <= 1_000 and not sent.large


@pytest.mark.parametrize("below", [sources.AT_THE_START, (1, 50_000, "")])
def test_all_of_a_large_set_come_once_in_order(crowded: Any, below: sources.Order) -> None:
    source = sources.Sets(crowded, ("jobs:job:status:s",), MANY - 10_050)

    pks = [int(pk) for pk in sources.newest(source, MANY, below)]

    last = min(below[1] or MANY, MANY)
    assert pks == [i for i in range(last, 0, -1) if i % 10 and not (i <= 200 and i % 4 == 1) and (1, i, "") < below]


def test_where_numbers_do_not_lead_to_those_of_a_set_it_is_read(crowded: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "FEW", 10)
    monkeypatch.setattr(sources, "MOST", 20)
    source = sources.Sets(crowded, ("jobs:job:status:e",), 50)

    with watched(crowded) as sent:
        pks = [int(pk) for pk in sources.newest(source, MANY)]

    assert pks == list(range(197, 0, -4))
    assert sent.counts.total() < 20


# --- Errors


def test_the_first_page_of_errors_reads_no_more_than_it_shows(crowded: Any) -> None:
    with watched(crowded) as sent:
        page = admin.find_errors(limit=20)

    assert [int(error.pk) for error in page.items] == list(range(ERRORS, ERRORS - 20, -1))
    assert sent.records <= 30 and not sent.large


def test_a_rare_type_of_error_is_read_from_its_index(crowded: Any) -> None:
    with watched(crowded) as sent:
        page = admin.find_errors(ErrorFilter(type="RareError"), limit=10)

    assert [int(error.pk) for error in page.items] == list(range(ERRORS, ERRORS - 10_000, -1000))
    assert sent.records <= 40 and not sent.large


def test_the_errors_of_an_hour_are_read_from_the_index_of_times(crowded: Any) -> None:
    with watched(crowded) as sent:
        counts = admin.count_errors(ErrorFilter(since="2026-01-01 04", until="2026-01-01 05"), by="hour")

    assert counts == [("2026-01-01 04", 3600)]
    assert sent.records <= 3600 and not sent.large


def test_all_errors_are_grouped_by_where_they_were_raised(crowded: Any) -> None:
    with watched(crowded) as sent:
        groups = admin.group_errors()

    assert sum(group.count for group in groups) == ERRORS
    assert {(group.type, group.place) for group in groups} == {
        (kind, f"shop/mails.py:send_{number}") for kind in ("ValueError", "RareError") for number in range(3)
    }
    assert not sent.large
