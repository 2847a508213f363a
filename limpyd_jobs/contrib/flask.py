"""Jobs of a Flask application: see docs/flask.md.

jobs = LimpydJobs(app)    # or `LimpydJobs()`, and `jobs.init_app(app)` in the factory
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import click
from flask import Flask
from flask.cli import NoAppException, ScriptInfo

from ..database import DATABASE_VARIABLE, parse_database
from ..exceptions import ConfigurationException, InvalidDatabaseURL
from ..instruments import Instrument, add_instrument
from ..models import BaseJobsModel
from ..scripts import worker
from ..workers import WorkerConfig

DATABASE = "LIMPYD_JOBS_DATABASE"
CONFIG = f"--worker-config={__name__}.FlaskWorkerConfig"


class LimpydJobs:
    """The extension: brings the models to the database of an application, and runs jobs in its context.

    The models are one set for a process, and so is their database: it is that of the application initialized last, in
    whose context jobs run.
    """

    def __init__(self, app: Flask | None = None) -> None:
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Read LIMPYD_JOBS_DATABASE of the application; nothing is sent to Redis.

        Without it, the environment variable of this name counts; without both the models stay where they are.

        Raises:
            ConfigurationException: it names no database.
        """
        app.config.setdefault(DATABASE, None)
        database = _database_of(app)
        if database is not None:
            BaseJobsModel.database.reset(database)
        app.extensions["limpyd_jobs"] = self
        app.cli.add_command(
            _command("jobs", "See what is queued, what runs, what failed, and act on it.", _run_command)
        )
        app.cli.add_command(_command("jobs-worker", "Run a worker.", _run_worker))
        _contexts.app = app
        add_instrument(_contexts)


class ApplicationContexts(Instrument):
    """An application context around each job, of its own: what is torn down with it is so after each job."""

    app: Flask | None = None

    def around(self, job: Any, queue: Any, worker: Any) -> AbstractContextManager[Any]:
        """See Instrument."""
        return nullcontext() if self.app is None else self.app.app_context()


_contexts = ApplicationContexts()


class FlaskWorkerConfig(WorkerConfig):
    """The worker's command line for an application: that of this process, or else that of FLASK_APP.

    Raises:
        ConfigurationException: there is none, or it has no `LimpydJobs`.
    """

    def __init__(self, argv: Sequence[str] | None = None) -> None:
        if _contexts.app is None:
            try:
                ScriptInfo(app_import_path=os.environ.get("FLASK_APP")).load_app()
            except NoAppException as error:
                raise ConfigurationException(
                    f"Unable to load the Flask application: {error.format_message()}"
                ) from error
        if _contexts.app is None:
            raise ConfigurationException("The Flask application has no LimpydJobs: call LimpydJobs(app)")
        super().__init__(argv)

    def _read_database(self) -> None:
        if self.options.database is None and _contexts.app is not None:
            self.options.database = _database_of(_contexts.app)
        super()._read_database()


def _database_of(app: Flask) -> str | None:
    """The name of the database of an application; its configuration comes before the environment."""
    configured = app.config.get(DATABASE)
    database: Any = configured or os.environ.get(DATABASE_VARIABLE) or None
    try:
        if database is not None:
            parse_database(database)
    except InvalidDatabaseURL as error:
        where = "configuration" if configured else "environment"
        raise ConfigurationException(f"{DATABASE}, of the {where}, cannot be used: {error}") from error
    return None if database is None else str(database)


# --- Commands of `flask`


def _command(name: str, text: str, run: Any) -> click.Command:
    """A command that passes on all its arguments."""
    return click.Command(
        name,
        help=text,
        callback=run,
        params=[click.Argument(["arguments"], nargs=-1, type=click.UNPROCESSED)],
        add_help_option=False,
        context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
    )


def _run_command(arguments: tuple[str, ...]) -> None:
    """`flask jobs ...`: the command `limpyd-jobs`, on the database of the application."""
    from ..cli import main

    database = None if _contexts.app is None else _database_of(_contexts.app)
    named = [f"--database={database}"] if database and arguments else []
    main([*named, *arguments])


def _run_worker(arguments: tuple[str, ...]) -> None:
    """`flask jobs-worker ...`: a worker, or a pool whose parent has nothing of the application loaded.

    An application that a program has made, as tests do, cannot be loaded anew: then that process goes on.
    """
    info = click.get_current_context().ensure_object(ScriptInfo)
    if info.create_app is None and worker.read_pool_options(list(arguments)) is not None:
        named = {"FLASK_APP": info.app_import_path} if info.app_import_path else {}
        worker.begin_anew([CONFIG, *arguments], os.getcwd(), **named)
    worker.main(["flask-jobs-worker", CONFIG, *arguments])
