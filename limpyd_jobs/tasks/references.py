"""Results of other jobs among the arguments of a call: they travel as references, and are read when it runs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..exceptions import JobCanceled, JobFailed
from ..models import NOT_GIVEN, Job
from ..serializers import ResultOf

CHUNK = 500  # results that one round trip reads


def references_in(value: Any) -> Iterator[ResultOf]:
    """The references in a value: in it, in its lists, tuples, sets and dicts."""
    if type(value) is ResultOf:
        yield value
    elif type(value) is dict:
        for key, one in value.items():
            yield from references_in(key)
            yield from references_in(one)
    elif type(value) in (list, tuple, set, frozenset):
        for one in value:
            yield from references_in(one)


def resolved(value: Any, is_tolerant: bool = False) -> Any:
    """The value with the results instead of the references.

    Args:
        is_tolerant: None stands for the result of a job that has failed or was canceled.
    Raises:
        JobFailed, JobCanceled, NoResult, ResultNotStored: there is no result. JobClassError: nor a class for its job.
    """
    idents = list(dict.fromkeys(one.ident for one in references_in(value)))
    return _replaced(value, _results_of(idents, is_tolerant)) if idents else value


def _results_of(idents: list[str], is_tolerant: bool) -> dict[str, Any]:
    jobs = {ident: Job.class_of(ident).from_pk(ident.partition(":")[2]) for ident in idents}
    found: dict[str, Any] = {}
    for model in dict.fromkeys(type(job) for job in jobs.values()):
        of_model = [(ident, job) for ident, job in jobs.items() if type(job) is model]
        for start in range(0, len(of_model), CHUNK):
            chunk = of_model[start : start + CHUNK]
            for (ident, job), replies in zip(chunk, _read_together(model, chunk), strict=True):
                found[ident] = _result(job, replies, is_tolerant)
    return found


def _result(job: Any, replies: list[Any], is_tolerant: bool) -> Any:
    try:
        return job._result_of(replies, NOT_GIVEN, Any, None)
    except (JobFailed, JobCanceled):
        if is_tolerant:
            return None
        raise


def _read_together(model: Any, jobs: list[tuple[str, Any]]) -> list[list[Any]]:
    """What Redis has of the results of some jobs of a class, in one round trip."""

    def ask(client: Any) -> list[Any]:
        pipeline = client.pipeline(transaction=False)
        for _, job in jobs:
            job._ask_for_result(pipeline)
        replies: list[Any] = pipeline.execute()
        return replies

    replies = model._patiently(ask, model.retry_for)
    width = len(replies) // len(jobs)
    return [replies[place * width : (place + 1) * width] for place in range(len(jobs))]


def _replaced(value: Any, results: dict[str, Any]) -> Any:
    if type(value) is ResultOf:
        return results[value.ident]
    if type(value) is dict:
        return {_replaced(key, results): _replaced(one, results) for key, one in value.items()}
    if type(value) in (list, tuple, set, frozenset):
        return type(value)(_replaced(one, results) for one in value)
    return value
