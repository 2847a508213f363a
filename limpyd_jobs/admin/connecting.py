"""Which database is meant, and which queues."""

from __future__ import annotations

from typing import Any

from ..database import JobsDatabase, connect_to, parse_database, show_database
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
        connect_to(one, settings)
    meant = queue_model.database
    return str(meant) if isinstance(meant, JobsDatabase) else show_database(meant.connection_settings)
