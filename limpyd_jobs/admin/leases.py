"""The jobs that are in the hands of some process, read in pages and without their classes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from typing import Any, NamedTuple

PAGE = 500


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
        """The key of the worker that holds it."""
        return self.token.rpartition("-")[0]


def leased_jobs(queue_model: Any) -> Iterator[Leased]:
    """All jobs of a namespace that are leased, each once."""
    client, namespace = queue_model.get_connection(), queue_model.namespace or ""
    keys = keys_of_classes(client, namespace)
    seen: set[str] = set()
    entries = (ident for ident, _ in client.zscan_iter(f"{namespace}:leases", count=PAGE))
    while page := list(islice(entries, PAGE)):
        idents = [ident for ident in dict.fromkeys(page) if ident not in seen]  # a scan may come to some again
        seen.update(idents)
        yield from _read_page(client, namespace, keys, idents)


def _read_page(client: Any, namespace: str, keys: dict[str, str], idents: list[str]) -> Iterator[Leased]:
    if not idents:
        return
    pipeline = client.pipeline(transaction=False)
    pipeline.hmget(f"{namespace}:claims", idents)
    known = [ident for ident in idents if ident.partition(":")[0] in keys]
    for ident in known:
        model_repr, _, pk = ident.partition(":")
        pipeline.hmget(f"{keys[model_repr]}:{pk}:hash", "status", "start", "queue_key")
    tokens, *records = pipeline.execute(raise_on_error=False)
    if isinstance(tokens, Exception):
        raise tokens
    values = dict(zip(known, records, strict=True))
    for ident, token in zip(idents, tokens, strict=True):
        found = values.get(ident)
        if token is not None:  # else its lease has ended meanwhile
            yield Leased(ident, token, *(found if isinstance(found, list) else (None, None, None)))


def keys_of_classes(client: Any, namespace: str) -> dict[str, str]:
    """What the keys of the jobs of each class begin with, as the registry says it."""
    known = client.hgetall(f"{namespace}:models")
    return {model_repr: key for model_repr, text in known.items() if (key := _key_of(text)) is not None}


def _key_of(recipe: str) -> str | None:
    try:
        key: str = json.loads(recipe)["key"]
    except (ValueError, KeyError, TypeError):  # broken: `check` tells of it
        return None
    return key
