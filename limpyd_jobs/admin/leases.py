"""The jobs that are in the hands of some process, read in pages and without their classes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from .reading import AT_ONCE, JobKind, ask, chunks, client_of, is_wrong_type, job_kinds, kind_of


class Leased(NamedTuple):
    """A job under a lease.

    Attributes:
        token: of the lease; it begins with the key of the worker.
        status, start, queue_key: as in its record; None when that does not say.
    """

    ident: str
    token: str
    status: str | None
    start: str | None
    queue_key: str | None

    @property
    def worker(self) -> str:
        """The key of the worker that holds it; '': no worker does."""
        return worker_of(self.token)


def leased_jobs(queue_model: Any) -> Iterator[Leased]:
    """All jobs of a namespace that are leased, each once."""
    client, namespace, kinds = client_of(queue_model), queue_model.namespace or "", job_kinds(queue_model)
    seen: set[str] = set()
    for page in chunks(ident for ident, _ in client.zscan_iter(f"{namespace}:leases", count=AT_ONCE)):
        idents = [ident for ident in dict.fromkeys(page) if ident not in seen]  # a scan may come to some again
        seen.update(idents)
        if idents:
            yield from _read_page(client, f"{namespace}:claims", kinds, idents)


def _read_page(client: Any, claims: str, kinds: list[JobKind], idents: list[str]) -> Iterator[Leased]:
    known = {ident: found for ident in idents if (found := kind_of(kinds, ident)) is not None}
    hashes = [("HMGET", kind.hash_key(pk), "status", "start", "queue_key") for kind, pk in known.values()]
    tokens, *records = ask(client, [("HMGET", claims, *idents), *hashes])
    if is_wrong_type(tokens):
        raise tokens
    values = dict(zip(known, records, strict=True))
    for ident, token in zip(idents, tokens, strict=True):
        found = values.get(ident)
        if token is not None:  # else its lease has ended meanwhile
            yield Leased(ident, token, *(found if isinstance(found, list) else (None, None, None)))


def worker_of(token: str | None) -> str:
    """The key of the worker whose claim has this token; '': it is that of no worker."""
    worker, _, number = (token or "").rpartition("-")
    return worker if number.isdigit() else ""
