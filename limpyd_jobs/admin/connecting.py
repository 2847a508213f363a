"""Which database is meant, and which queues."""

from __future__ import annotations

from typing import Any

from ..database import JobsDatabase, check_server, client_settings, parse_database, show_database
from ..exceptions import InvalidArgument
from ..models import BaseJobsModel, Queue


def connect(database: str | None = None, queue_model: Any = Queue) -> str:
    """Bring the models to a database, as a worker does with its `--database`, and look whether it can be used.

    Args:
        database: a name, see `limpyd_jobs.database`; None: the models stay where they are.
    Returns:
        The name of the database that the queue model is on, without a password.
    Raises:
        InvalidArgument: the name cannot be read, or the model is no subclass of Queue; nothing was moved.
        DatabaseException: the server cannot be used.
    """
    if not (isinstance(queue_model, type) and issubclass(queue_model, Queue)):
        raise InvalidArgument("queue_model", queue_model, "Queue or a subclass")
    settings = parse_database(database) if database is not None else {}
    used = [BaseJobsModel.database]
    used += [queue_model.database] if queue_model.database is not BaseJobsModel.database else []
    for one in used:
        _connect(one, settings)
    return _show(queue_model.database)


def _connect(database: Any, settings: dict[str, Any]) -> None:
    if isinstance(database, JobsDatabase):
        database.connect(**settings)
        return
    # one of limpyd's own, given to `use_database`: its `connect` moves nothing
    check_server(settings or database.connection_settings)
    if settings:
        database.reset(**client_settings(settings))


def _show(database: Any) -> str:
    return str(database) if isinstance(database, JobsDatabase) else show_database(database.connection_settings)
