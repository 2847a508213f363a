"""Removing jobs with all that belongs to them, and Errors."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from .. import recipes, transitions
from ..exceptions import JobClassError
from ..models import Queue, has_plain_error_indexes, repair_indexes
from ..statuses import STATUSES
from ..transitions import Past
from ..workers.retention import NEEDED, pks_of_errors, read_errors, repair_removed
from .reading import ask, client_of, error_models
from .records import ErrorRecord, JobRecord

AT_ONCE = 50  # jobs that are removed in one step: some milliseconds
MOST_ERRORS = 500  # that go in one step
FAR, NEAR = 100_000, 1000  # entries of a history that are looked at: for one job; for one of many
NOT_HERE = "its class cannot be had here, and has an index that only it can keep: name its directory with --pythonpath"


KnownJob = tuple[JobRecord, Any, "Mapping[str, Any]"]
OneError = tuple[Any, str, dict[str, "str | None"]]  # its model, primary key and fields


class Remover:
    """Removes jobs of a namespace.

    Args:
        is_forced: also those that a process has: what that writes of them later is refused.
        spares: not those that ended well, and whose children have yet to run.
    """

    def __init__(self, queue_model: Any = Queue, is_forced: bool = False, spares: bool = False) -> None:
        self._queue_model, self._is_forced, self._spares = queue_model, is_forced, spares
        self._client, self._namespace = client_of(queue_model), queue_model.namespace or ""
        self._error_models = [model for model in error_models(queue_model) if has_plain_error_indexes(model)]

    def remove(self, jobs: Sequence[KnownJob], reach: int = NEAR, looks: bool = False) -> list[str]:
        """Remove some jobs, as they were read; answers of each what was done: see remove.lua.

        Args:
            jobs: each with its class, None when that cannot be had, and the recipe of its class.
            looks: only say what would be done.
        Raises:
            JobClassError: a job cannot be removed without its class; nothing was removed.
        """
        most = max(MOST_ERRORS // max(len(jobs), 1), 1)
        errors = self._errors_of([record for record, *_ in jobs if _may_have_failed(record)], most)
        past = [self._past(*job, errors.get(job[0].ident, []), most) for job in jobs]
        queue_recipe = recipes.queue_recipe(self._queue_model)
        call = transitions.remove(
            self._namespace, queue_recipe, past, self._is_forced, spares=self._spares, reach=reach, looks=looks
        )
        results, changes = transitions.send(self._client, call)
        if looks:
            return results
        repair_indexes(changes)
        for (record, model, _), result in zip(jobs, results, strict=True):
            self._repair(record, model, errors.get(record.ident, [])[:most], result)
        return results

    def _errors_of(self, records: Iterable[JobRecord], most: int) -> dict[str, list[OneError]]:
        """The Errors of each job, as many as go in one step, and one more."""
        idents = [record.ident for record in records]
        found: dict[str, list[OneError]] = {ident: [] for ident in idents}
        for model in self._error_models if idents else ():
            pks = pks_of_errors(model, idents)
            of_model = read_errors(model, {ident: many[: most + 1] for ident, many in pks.items()})
            for ident, errors in of_model.items():
                found[ident] += [(model, pk, values) for pk, values in errors]
        return found

    def _past(
        self, record: JobRecord, model: Any, known: Mapping[str, Any], errors: list[OneError], most: int
    ) -> tuple[Past, bool]:
        job, values = _removal(record, model, known)
        removals = [recipes.removal(*error) for error in errors[:most]]
        return Past(record.ident, job, removals, values), len(errors) <= most

    def _repair(self, record: JobRecord, model: Any, errors: list[OneError], result: str) -> None:
        """Bring the indexes that no script knows in step."""
        if result in ("REMOVED", "GONE", "MORE"):
            for error in errors:
                repair_removed(*error)
        if result in ("REMOVED", "GONE") and model is not None:
            repair_removed(model, record.ident.partition(":")[2], record.fields)

    # --- What is left

    def remove_errors(self, errors: Sequence[ErrorRecord]) -> None:
        """Remove some Errors, with their index entries."""
        found = [one for model in error_models(self._queue_model) for one in self._read(model, errors)]
        past = Past("", None, [recipes.removal(*error) for error in found])
        transitions.send(self._client, transitions.remove(self._namespace, "{}", [(past, True)]))
        for error in found:
            repair_removed(*error)

    def _read(self, model: Any, errors: Sequence[ErrorRecord]) -> Iterator[OneError]:
        """Those of some Errors that are of a model: each model counts its own."""
        names = recipes.indexed_names(model, ("job_model_repr", "job_pk", "date_time"))
        hashes = ask(self._client, (("HMGET", f"{model._name}:{error.pk}:hash", *names) for error in errors))
        for error, reply in zip(errors, hashes, strict=True):
            values = dict(zip(names, reply, strict=True))
            job = f"{values.get('job_model_repr')}:{values.get('job_pk')}"
            if (job, values.get("date_time")) == (error.job, error.date_time):
                yield model, error.pk, values

    def trim_history(self, key: str) -> None:
        """Shorten the oldest end of a history, up to the first entry of a job that is there."""
        queue_key, _, name = key.rpartition(":")
        while idents := self._client.lrange(key, 0, AT_ONCE - 1):
            gone = self._gone(idents)
            if gone:
                past = [Past(ident, None, []) for ident in idents[:gone]]
                transitions.send(self._client, transitions.purge(self._namespace, queue_key, name, past))
            if gone < len(idents):
                break

    def _gone(self, idents: Sequence[str]) -> int:
        """How many of the first of these have no record."""
        names = {ident: ident.partition(":") for ident in idents}
        known = dict(
            zip(
                names,
                self._client.hmget(f"{self._namespace}:models", [part[0] for part in names.values()]),
                strict=True,
            )
        )
        pipeline = self._client.pipeline(transaction=False)
        for ident, (_, _, pk) in names.items():
            key = json.loads(known[ident] or "{}").get("key")
            pipeline.exists(f"{key}:{pk}:hash") if key else pipeline.echo("unknown")
        exist = dict(zip(names, pipeline.execute(), strict=True))
        return next((place for place, ident in enumerate(idents) if exist[ident]), len(idents))


def _may_have_failed(record: JobRecord) -> bool:
    return record.status != STATUSES.SUCCESS or record.tries > 1


def _removal(record: JobRecord, model: Any, known: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str | None]]:
    """What goes with the record of a job, and how it was read."""
    pk = record.ident.partition(":")[2]
    names = [*NEEDED, *known["indexes"]] if model is None else recipes.indexed_names(model, NEEDED)
    values = {name: record.fields.get(name) for name in names}
    job = recipes.removal_by_recipe(known, pk, record.fields) if model is None else recipes.removal(model, pk, values)
    if job is None:
        raise JobClassError(record.ident, NOT_HERE)
    more = {name: values[name] for name in ("identifier", "queue_key") if values[name] is not None}
    return {**job, **more}, values
