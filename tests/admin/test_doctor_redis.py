"""What `diagnose` says of a Redis."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from limpyd_jobs import Job, Queue
from limpyd_jobs.admin import Finding, diagnose, redis_checks
from limpyd_jobs.admin.patient import LEVELS, Patient

from ..base import RedisServer
from .support import rights_of_the_page, user

pytestmark = pytest.mark.usefixtures("database")


def found(check: Callable[[Patient], Iterator[Finding]], queue_model: Any = Queue) -> Finding:
    """The only finding of a check."""
    [finding] = diagnose([check], queue_model=queue_model)
    assert finding.level in LEVELS
    return finding


class Told(Patient):
    """A patient of which some sections of INFO are told."""

    def __init__(self, **sections: Any) -> None:
        super().__init__(Queue)
        self.sections = sections

    def info(self, section: str) -> dict[str, Any]:
        return {**super().info(section), **self.sections.get(section, {})}


def told(check: Callable[[Patient], Iterator[Finding]], **sections: Any) -> list[Finding]:
    return list(check(Told(**sections)))


@contextmanager
def configured(**options: str) -> Iterator[None]:
    """Redis with other options, for a while."""
    client = Queue.get_connection()
    names = {name.replace("_", "-"): value for name, value in options.items()}
    former = {name: client.config_get(name)[name] for name in names}
    try:
        for name, value in names.items():
            client.config_set(name, value)
        yield
    finally:
        for name, value in former.items():
            client.config_set(name, value)


@pytest.mark.parametrize("check", redis_checks.CHECKS, ids=lambda check: check.__name__)
def test_each_check_says_something_of_a_redis_and_leaves_no_key(check: Any) -> None:
    findings = diagnose([check])

    assert findings
    assert {finding.level for finding in findings} <= set(LEVELS)
    assert all(finding.fix for finding in findings if finding.level in ("warning", "error"))
    assert Queue.get_connection().dbsize() == 0


def test_a_redis_that_may_evict_is_an_error_with_the_line_that_mends_it() -> None:
    assert found(redis_checks.eviction).level == "ok"

    with configured(maxmemory_policy="allkeys-lru"):
        assert found(redis_checks.eviction).level == "error"
        assert "maxmemory-policy noeviction" in str(found(redis_checks.eviction).fix)
    with configured(maxmemory_policy="volatile-lru"):
        assert found(redis_checks.eviction).level == "warning"


def test_keys_that_were_evicted_are_told_of() -> None:
    [finding] = told(redis_checks.eviction, stats={"evicted_keys": 3})

    assert (finding.level, finding.fix) == ("error", "limpyd-jobs check --repair")


@pytest.mark.parametrize(
    ("persistence", "save", "level", "words"),
    [
        ({"aof_enabled": 1}, "", "ok", "appendonly is on"),
        ({"aof_enabled": 0}, "", "error", "all jobs are lost when Redis ends"),
        ({"aof_enabled": 0}, "60 1", "warning", "after the last snapshot"),
        ({"aof_enabled": 1, "aof_last_write_status": "err"}, "", "error", "append-only file has failed"),
    ],
)
def test_what_a_crash_would_take_is_told(persistence: dict[str, Any], save: str, level: str, words: str) -> None:
    with configured(save=save):
        [finding] = told(redis_checks.persistence, persistence=persistence)

    assert finding.level == level
    assert words in finding.text


def test_a_file_that_is_never_synced_is_told_of() -> None:
    with configured(appendfsync="no"):
        [finding] = told(redis_checks.persistence, persistence={"aof_enabled": 1})

    assert "appendfsync everysec" in str(finding.fix)


@pytest.mark.parametrize(("share", "level"), [(2.0, "ok"), (1.25, "warning"), (1.01, "error")])
def test_memory_that_is_nearly_full_is_told_of(share: float, level: str) -> None:
    [finding] = told(redis_checks.memory, memory={"used_memory": 10**6, "maxmemory": int(share * 10**6)})

    assert finding.level == level


def test_memory_without_a_limit_is_told_of() -> None:
    assert "maxmemory is not set" in found(redis_checks.memory).text


@pytest.mark.parametrize(("seconds", "level"), [(0.001, "ok"), (0.006, "warning"), (0.06, "error")])
def test_a_slow_way_to_redis_is_told_of(seconds: float, level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_checks, "_seconds_of_ping", lambda client: seconds)

    assert found(redis_checks.latency).level == level
    assert f"{seconds * 1000:.2f} ms" in found(redis_checks.latency).text


def test_commands_of_ours_that_were_slow_are_told_of_and_those_of_others_are_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    client = Queue.get_connection()
    client.slowlog_reset()
    with configured(slowlog_log_slower_than="0"):
        client.ping()
        assert found(redis_checks.slow_commands).level == "ok"
        Job.add_job("a", "q")
        assert found(redis_checks.slow_commands).level == "info"
        monkeypatch.setattr(redis_checks, "LONG_COMMAND_SECONDS", 0)
        assert found(redis_checks.slow_commands).level == "warning"


@pytest.mark.parametrize(
    ("ahead", "level", "words"), [(0, "ok", "apart"), (100, "warning", "behind"), (-5, "warning", "ahead of")]
)
def test_clocks_that_differ_are_told_of(ahead: float, level: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_checks, "time", SimpleNamespace(time=lambda: time.time() + ahead))

    finding = found(redis_checks.clock)

    assert finding.level == level
    assert words in finding.text


@pytest.mark.parametrize(
    ("server", "replication", "namespace", "level", "words"),
    [
        ({}, {}, "jobs", "ok", "a master"),
        ({}, {"role": "slave", "master_host": "a", "master_port": 1}, "jobs", "error", "a replica"),
        ({"redis_mode": "sentinel"}, {}, "jobs", "error", "a Sentinel"),
        ({"redis_mode": "cluster"}, {}, "jobs", "error", "not in one slot"),
        ({"redis_mode": "cluster"}, {}, "{jobs}", "info", "must be the one"),
    ],
)
def test_a_redis_that_is_no_master_is_told_of(
    server: dict[str, Any], replication: dict[str, Any], namespace: str, level: str, words: str
) -> None:
    patient = Told(server=server, replication=replication)
    patient.namespace = namespace

    [finding] = redis_checks.role(patient)

    assert finding.level == level
    assert words in finding.text


def test_a_redis_that_is_too_old_is_told_of() -> None:
    [finding] = told(redis_checks.version, server={"redis_version": "6.0.16"})

    assert (finding.level, finding.text) == ("error", "Redis 6.0.16 is too old.")


@pytest.mark.parametrize(
    ("clients", "stats", "words"),
    [
        ({"connected_clients": 90, "maxclients": 100}, {}, "90 of 100"),
        ({"maxclients": 100}, {"rejected_connections": 3}, "3 connections were refused"),
    ],
)
def test_connections_that_run_out_are_told_of(clients: dict[str, int], stats: dict[str, int], words: str) -> None:
    [finding] = told(redis_checks.connections, clients=clients, stats=stats)

    assert finding.level == "warning"
    assert words in finding.text


# --- what a user may not


def test_a_user_with_the_rights_of_the_page_may_do_what_is_needed(redis_server: RedisServer) -> None:
    with user(redis_server, rights_of_the_page()) as queue_model:
        assert found(redis_checks.rights, queue_model).level == "ok"


@pytest.mark.parametrize(
    ("taken", "words"),
    [
        ("-eval", "running a script that writes is refused"),
        ("-publish", "publishing the ends of jobs is refused"),
        ("resetchannels", "hearing of the ends of jobs is refused"),
        ("resetkeys ~shop:*", "removing a key is refused"),
    ],
)
def test_a_right_that_is_missing_is_an_error(taken: str, words: str, redis_server: RedisServer) -> None:
    with user(redis_server, f"{rights_of_the_page()} {taken}") as queue_model:
        findings = diagnose([redis_checks.rights], queue_model=queue_model)

    assert {finding.level for finding in findings} == {"error"}
    assert words in " ".join(finding.text for finding in findings)


def test_what_a_user_may_not_ask_for_cannot_be_seen(redis_server: RedisServer) -> None:
    with user(redis_server, rights_of_the_page()) as queue_model:
        finding = found(redis_checks.slow_commands, queue_model)
        by_info = found(redis_checks.memory, queue_model)

    assert (finding.level, finding.subject) == ("info", "slow commands")
    assert finding.text.startswith("It cannot be seen: ")
    assert "maxmemory is not set" in by_info.text


def test_a_check_of_ones_own_is_asked_like_the_others() -> None:
    def has_no_jobs(patient: Patient) -> Iterator[Finding]:
        yield Finding("ok", "mine", f"{patient.client.dbsize()} keys.")

    assert str(found(has_no_jobs)) == "ok: mine: 0 keys."
