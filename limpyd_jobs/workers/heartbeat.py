"""Keeping the leases of what a process runs."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from typing import Any

from redis import ConnectionPool, Redis

from .. import transitions
from ..transitions import Claim
from .outage import Outage

LONGEST_ANSWER_SECONDS = 5.0
BESIDE_SECONDS = 1.0  # between two times when something else is done in its thread
CANCELED_SECONDS = 1.0  # how soon it is known that a running job was canceled


def own_client(client: Any, answer_seconds: float) -> Any:
    """A client with a connection of its own, that waits at most so long for a reply."""
    pool = client.connection_pool
    settings = dict(pool.connection_kwargs)
    limits = ["socket_timeout", *(["socket_connect_timeout"] if "host" in settings else [])]
    for name in limits:
        settings[name] = min(settings.get(name) or answer_seconds, answer_seconds)
    return Redis(connection_pool=ConnectionPool(connection_class=pool.connection_class, **settings))


beating: set[Heartbeat] = set()  # of this process; after a fork, of its parent, without their threads


class Heartbeat:
    """A thread that renews leases, every third of the shortest one, while the jobs run. It has a connection of its own.

    Args:
        lease_seconds: of the jobs whose class does not say.
        held: the claims of this process by ident; read at each beat.
        on_lost: called with a claim that belongs to somebody else by now.
        log: called with a line when beats fail, once a minute, and when they succeed again.
        on_canceled: called once, in this thread, with each claim whose job is canceled while it runs; so the beats come
            once a second at least. None: nobody asks.
    """

    def __init__(
        self,
        client: Any,
        namespace: str,
        lease_seconds: float,
        held: dict[str, Claim],
        on_lost: Callable[[Claim], None],
        log: Callable[[str], None],
        on_canceled: Callable[[Claim], None] | None = None,
    ) -> None:
        self._client = own_client(client, min(max(lease_seconds / 3, 0.05), LONGEST_ANSWER_SECONDS))
        self._namespace = namespace
        self._lease_seconds = lease_seconds
        self._held = held
        self._on_lost = on_lost
        self._on_canceled = on_canceled
        self._told: set[str] = set()  # the tokens of the canceled ones
        self._beside: Callable[[Any], None] | None = None
        self._outage = Outage(log, "Leases cannot be renewed, trying again", "Leases are renewed again")
        self._has_failed = False
        self._good_at = time.monotonic()
        self._shortest = lease_seconds  # of the leases since the last good beat
        self.quiet = threading.Lock()  # held during a beat: whoever forks takes it first
        self._must_stop = False
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._beat_until_stopped, name="limpyd-jobs-heartbeat", daemon=True)

    def start(self) -> None:
        """Begin to beat."""
        beating.add(self)
        self._thread.start()

    def stop(self) -> None:
        """End, after the beat that is under way."""
        beating.discard(self)
        self._must_stop = True
        self._wake.set()
        self._thread.join(timeout=self._lease_seconds)
        self._client.connection_pool.disconnect()

    def follow(self, claim: Claim) -> None:
        """Take note of a new claim: its lease may be shorter than the time to the next beat."""
        if claim.lease_seconds < self._lease_seconds:
            self._wake.set()

    def watch_canceled(self, on_canceled: Callable[[Claim], None]) -> None:
        """From now on, ask which of the running jobs are canceled; see `on_canceled`."""
        if self._on_canceled is None:
            self._on_canceled = on_canceled
            self._wake.set()

    def do_beside(self, work: Callable[[Any], None]) -> None:
        """Have something else done in this thread, now and then (see BESIDE_SECONDS): with the client of the beats."""
        self._beside = work

    def has_told(self, claim: Claim) -> bool:
        """Was `on_canceled` called with this claim, or is it about to be?"""
        return claim.token in self._told

    @property
    def is_failing(self) -> bool:
        """Have the beats failed for a whole lease, so that what this process runs may be given to others?"""
        return self._has_failed and time.monotonic() - self._good_at >= self._shortest

    def _interval(self) -> float:
        shortest = min((claim.lease_seconds for claim in list(self._held.values())), default=self._lease_seconds)
        self._shortest = min(shortest, self._shortest)
        wanted = min(shortest, self._lease_seconds) / 3
        return wanted if self._on_canceled is None else min(wanted, CANCELED_SECONDS)

    def _beat_until_stopped(self) -> None:
        wanted = time.monotonic() + self._interval()
        beside_at = time.monotonic() + BESIDE_SECONDS if self._beside is not None else float("inf")
        while not self._must_stop:
            self._wake.wait(max(min(wanted, beside_at) - time.monotonic(), 0))
            self._wake.clear()
            wanted = min(wanted, time.monotonic() + self._interval())
            if not self._must_stop and time.monotonic() >= wanted:
                wanted = time.monotonic() + self._try_to_beat()
            if not self._must_stop and time.monotonic() >= beside_at:
                beside_at = time.monotonic() + BESIDE_SECONDS
                self._do_beside()

    def _try_to_beat(self) -> float:
        """Beat, and say when to do so again, in seconds."""
        try:
            with self.quiet:
                self.beat()
        except Exception as error:  # a beat that fails must not be the last
            self._has_failed = True
            self._client.connection_pool.disconnect()  # it may lead to what was the master once
            return min(self._outage.next_pause(error), self._interval())
        self._has_failed, self._good_at, self._shortest = False, time.monotonic(), self._lease_seconds
        self._outage.end()
        return self._interval()

    def _do_beside(self) -> None:
        assert self._beside is not None
        with contextlib.suppress(Exception), self.quiet:  # the leases matter more
            self._beside(self._client)

    def beat(self) -> None:
        """Renew once; without a job only to see whether it works again."""
        claims = list(self._held.values())
        if not claims and not self._has_failed:
            return
        renewed = transitions.send(
            self._client, transitions.renew(self._namespace, claims, self._on_canceled is not None)
        )
        for claim in claims:
            if self._held.get(claim.ident) is not claim:
                continue
            if claim.ident in renewed.lost:
                self._held.pop(claim.ident, None)  # the worker may be letting go of it at this moment
                self._on_lost(claim)
            elif claim.ident in renewed.canceled:
                self._tell_canceled(claim)
        self._told &= {claim.token for claim in claims}

    def prolong(self, seconds: float) -> None:
        """Renew what is held, for longer: a clock is about to be moved, and the leases with it."""
        claims = [claim._replace(lease_seconds=claim.lease_seconds + seconds) for claim in list(self._held.values())]
        if claims and self._thread.is_alive():
            with self.quiet:
                transitions.send(self._client, transitions.renew(self._namespace, claims))

    def _tell_canceled(self, claim: Claim) -> None:
        if self._on_canceled is not None and claim.token not in self._told:
            self._told.add(claim.token)
            self._on_canceled(claim)
