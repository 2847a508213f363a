"""Keeping the leases of what a process runs."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from redis import Redis

from .. import transitions
from ..transitions import Claim


class Heartbeat:
    """A thread that renews leases, every third of `lease_seconds`, while the jobs run.

    Args:
        held: the claims of this process by ident; read at each beat.
        on_lost: called with a claim that belongs to somebody else by now.
        on_error: called with what went wrong in a beat; the next one tries again.
    """

    def __init__(
        self,
        client: Any,
        namespace: str,
        lease_seconds: float,
        held: dict[str, Claim],
        on_lost: Callable[[Claim], None],
        on_error: Callable[[Exception], None],
    ) -> None:
        self._client = Redis(connection_pool=client.connection_pool)
        self._namespace = namespace
        self._lease_seconds = lease_seconds
        self._held = held
        self._on_lost, self._on_error = on_lost, on_error
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat_until_stopped, name="limpyd-jobs-heartbeat", daemon=True)

    def start(self) -> None:
        """Begin to beat."""
        self._thread.start()

    def stop(self) -> None:
        """End, after the beat that is under way."""
        self._stop.set()
        self._thread.join(timeout=self._lease_seconds)

    def _beat_until_stopped(self) -> None:
        while not self._stop.wait(self._lease_seconds / 3):
            try:
                self.beat()
            except Exception as error:  # a beat that fails must not be the last
                self._on_error(error)

    def beat(self) -> None:
        """Renew once."""
        claims = list(self._held.values())
        if not claims:
            return
        lost = transitions.send(self._client, transitions.renew(self._namespace, self._lease_seconds, claims))
        for claim in claims:
            if claim.ident in lost and self._held.get(claim.ident) is claim:
                self._held.pop(claim.ident, None)  # the worker may be letting go of it at this moment
                self._on_lost(claim)
