"""The worker's command line: from its arguments to a worker that runs.

    WorkerConfig().execute()

Each step is a method to override. A mistake in the arguments ends the program with the exit code 2 and one line on
stderr, after the usage. **Passwords** (of `--database`) are in no line, no title and no error.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from optparse import Option, OptionParser, Values
from typing import Any, NoReturn

import limpyd
from setproctitle import setproctitle

from .. import utils
from ..database import (
    DATABASE_VARIABLE,
    JobsDatabase,
    Settings,
    connect_to,
    hide_secret,
    parse_database,
    show_database,
)
from ..exceptions import ConfigurationException, InvalidDatabaseURL, LimpydJobsException
from ..models import BaseJobsModel, Error, Queue
from ..modules import import_all
from ..version import EXACT_VERSION
from .asynchronous import AsyncWorker, is_async
from .base import LOGGER_NAME
from .blocking import Worker
from .logs import make_log_handler
from .member import Member
from .options import OPTIONS, complaint, option_name, parse_logger_level
from .pool import WorkerPool
from .title import JobCounts, show_program, show_progress, show_status


class WorkerConfig:
    """Runs a worker as the command line says.

    Subclasses extend `option_list`; an option whose destination is in the `parameters` of the worker class is handed
    over to it. What must be done before the worker is loaded goes in `__init__`, before the call of super.

    Attributes:
        argv: the program and its arguments.    prog_name: the file name of the program.
        parser: optparse's.                     args: the program, and the arguments that are not options.
        options: the values of the options, None when not given; classes and the callback are imported already.
        logger_level: the number of `--logger-level`, or None.
        database_config: what `parse_database` read; None when no database is named: the models stay where they are.
        update_title: whether the process has a title.
        worker: None before `prepare_worker`.
        member: in a process of a pool, what ties it to the pool; else None.
    """

    help = "Run a worker using redis-limpyd-jobs"
    option_list: tuple[Option, ...] = OPTIONS
    # What --print-options shows besides the parameters of the worker.
    script_options: tuple[str, ...] = ("processes", "reload", "dry_run", "worker_config", "database", "worker_class")

    def __init__(self, argv: Sequence[str] | None = None) -> None:
        """Read the arguments and import what they name; no database is contacted.

        Args:
            argv: the program and its arguments; `sys.argv` when None or empty. The program may be left out.
        """
        self.argv = list(argv or sys.argv)
        program, self._arguments = split_program(argv)
        self.prog_name = os.path.basename(program)
        self.args = [program]
        self.logger_level: int | None = None
        self.database_config: Settings | None = None
        self.update_title = True
        self.worker: Any = None
        self.member: Member | None = None
        self._counts = JobCounts()
        self.parser = self.create_parser()
        if isinstance(self.parser, DiscreetParser):
            self.parser.secrets = tuple(self._arguments)
        self.options = Values()
        self.manage_options()

    # --- the arguments ---

    def get_version(self) -> str:
        """What `--version` prints after the name of the program."""
        return f"(redis-limpyd-jobs {EXACT_VERSION}, redis-limpyd {limpyd.EXACT_VERSION})"

    def usage(self) -> str:
        """The first lines of `--help`."""
        return f"%prog [options]\n\n{self.help}"

    def create_parser(self) -> OptionParser:
        """A parser for the options in `option_list`."""
        return DiscreetParser(
            prog=self.prog_name,
            usage=self.usage(),
            version=f"%prog {self.get_version()}",
            option_list=self.option_list,
        )

    def manage_options(self) -> None:
        """Read the arguments, check each value, import what is named."""
        self._hide_passwords()
        self.options, extra = self.parser.parse_args(self._arguments)
        self.args = [*self.args[:1], *extra]
        self.update_title = bool(self.options.update_title)
        self.check_arguments(extra)
        self._check_numbers()
        self._read_database()
        self.update_proc_title()  # before the imports, which can take long: the whole command line is seen till then
        self.do_imports()
        self._read_logger_level()

    def check_arguments(self, arguments: Sequence[str]) -> None:
        """Refuse what is not an option: ignoring it would hide a mistake (`--queues foo bar`)."""
        if arguments:
            self.parser.error(f"Unexpected arguments, only options are accepted: {' '.join(map(repr, arguments))}")

    def _check_numbers(self) -> None:
        for option in self.parser.option_list:
            value = getattr(self.options, str(option.dest), None)
            message = complaint(option, value) if isinstance(value, (int, float)) else None
            if message:
                self.parser.error(message)

    def _check_queues(self) -> None:
        """Before any database is contacted."""
        try:
            self.options.worker_class._parse_queues(self._worker_option("queues"))
        except ConfigurationException as error:
            self.parser.error(one_line(error))

    def _read_database(self) -> None:
        """Read `--database`, or else the environment variable LIMPYD_JOBS_DATABASE."""
        name = self.options.database
        if name is None:
            name = os.environ.get(DATABASE_VARIABLE) or None
        try:
            self.database_config = None if name is None else parse_database(name)
        except InvalidDatabaseURL as error:
            where = "" if self.options.database else f" (from the environment variable {DATABASE_VARIABLE})"
            self.parser.error(f"{error}{where}")

    def _read_logger_level(self) -> None:
        """After the imports: they may have named levels of their own."""
        if self.options.logger_level is not None:
            self.logger_level = parse_logger_level(self.options.logger_level)
            if self.logger_level is None:
                self.parser.error(f"Invalid logger-level {self.options.logger_level}")
            self.options.logger_level = self.logger_level

    # --- imports ---

    def do_import(self, name: str, default: Any) -> None:
        """Put what an option names in its place, or the default when it names nothing."""
        path = getattr(self.options, name)
        try:
            setattr(self.options, name, import_path(path) if path else default)
        except ConfigurationException as error:
            self.parser.error(f'Unable to import "{name}": {error}')

    def do_imports(self) -> None:
        """Import the worker class, the models and the callback."""
        self.do_import("callback", None)
        if self.options.callback is not None and not callable(self.options.callback):
            self.parser.error("The callback is not callable")
        wants_loop = self.options.is_async or is_async(self.options.callback)
        self._import_class("worker_class", AsyncWorker if wants_loop else Worker, Worker)
        self._check_async()
        self._import_class("queue_model", self.options.worker_class.queue_model, Queue)
        self._import_class("error_model", self.options.worker_class.error_model, Error)
        self._import_tasks()

    def _import_tasks(self) -> None:
        """Before the models are connected, as a module may do so, too: what the command line says comes last."""
        try:
            import_all("tasks", self._worker_option("tasks") or ())
        except ConfigurationException as error:
            self.parser.error(one_line(error))

    def _check_async(self) -> None:
        """Refuse what only a worker with an event loop does, with another one."""
        if issubclass(self.options.worker_class, AsyncWorker):
            return
        shown = show_name(self.options.worker_class)
        if self.options.is_async:
            self.parser.error(f"The worker-class argument ({shown}) must be an AsyncWorker, as --async is given")
        if self.options.concurrency is not None and "concurrency" not in self.options.worker_class.more_parameters:
            self.parser.error(f"The concurrency argument is for an AsyncWorker, not for {shown}: give --async")

    def _import_class(self, name: str, default: Any, base: type) -> None:
        path = getattr(self.options, name)
        self.do_import(name, default)
        value = getattr(self.options, name)
        if not (isinstance(value, type) and issubclass(value, base)):
            shown = path or repr(value)
            self.parser.error(f"The {option_name(name)} argument ({shown}) must be {show_name(base)} or a subclass")

    # --- what happened to the options ---

    def print_options(self) -> None:
        """Print the options in force; of the worker, when it exists, those that it really has."""
        print("The script is running with the following options:")
        for name in self.script_options:
            self._print_option(name, self._script_option(name))
        print("The worker will run with the following options:")
        worker_class = self.options.worker_class
        more = (name for name in worker_class.more_parameters if name != "terminate_gracefully")  # is there already
        for name in (*worker_class.parameters, *more):
            self._print_option(name, self._worker_option(name))
        sys.stdout.flush()  # so that it stands before the log lines, wherever they go

    def _print_option(self, name: str, value: Any) -> None:
        print(f" - {option_name(name)} = {show_value(value)}")

    def _script_option(self, name: str) -> Any:
        if name == "worker_config":
            return type(self)
        return self._show_database() if name == "database" else getattr(self.options, name, None)

    def _show_database(self) -> str:
        """The database as it was named, without its password; else the one that the models are on."""
        named: str = self.options.database or os.environ.get(DATABASE_VARIABLE) or ""
        if named:
            return show_database(named) if "://" in named else named
        return show_models_database()

    def _worker_option(self, name: str) -> Any:
        if self.worker is None:
            value = getattr(self.options, name, None)
            value = getattr(self.options.worker_class, name, None) if value is None else value
        else:
            value = getattr(self.worker, name, None)
        return '<jobs "run" method>' if name == "callback" and self._is_default_callback(value) else value

    def _is_default_callback(self, callback: Any) -> bool:
        """Whether it is the `execute` of the worker, not overridden, which calls `job.run(queue)`."""
        return callback is None or getattr(callback, "__func__", callback) is Worker.execute

    # --- the worker ---

    def execute(self) -> None:
        """Prepare the worker, and run it to its end; with `--processes` or `--reload`, do so in each process of a pool.

        Raises:
            SystemExit: a pool has ended with another exit code than 0.
        """
        if self.member is None and wants_pool(self.options):
            run_pool(lambda: self, self.prog_name, self.options)
            return
        self._check_queues()
        self.prepare_models()
        self.prepare_worker()
        if self.options.print_options:
            self.print_options()
        if self.member is not None:
            self.member.join(self.worker)
        self.run()

    def prepare_models(self) -> None:
        """Bring all models to the database that is named, or else check the one that they are on."""
        try:
            for database in self._databases():
                connect_to(database, self.database_config or {})
        except LimpydJobsException as error:
            self.parser.error(one_line(error))

    def _databases(self) -> Iterator[Any]:
        """The databases of the models, each once."""
        seen: list[Any] = []
        for model in (BaseJobsModel, self.options.queue_model, self.options.error_model):
            if not any(model.database is database for database in seen):
                seen.append(model.database)
        yield from seen

    def prepare_worker_options(self) -> dict[str, Any]:
        """The arguments for the worker class: the options that were given, among its `parameters`."""
        worker_class = self.options.worker_class
        names = (*worker_class.parameters, *worker_class.more_parameters)
        found = {name: getattr(self.options, name, None) for name in names}
        return {name: value for name, value in found.items() if value is not None}

    def prepare_worker(self) -> None:
        """Make the worker, give its logger a handler, follow it with the title of the process."""
        try:
            self.worker = self.options.worker_class(**self.prepare_worker_options())
        except LimpydJobsException as error:
            self.parser.error(one_line(error))
        self.prepare_logger()
        self.update_proc_title()
        if self.update_title:
            self.worker._add_update_status_callback(self.update_proc_title)

    def prepare_logger(self) -> None:
        """Make sure that what the worker logs is seen: on stderr, unless the program says otherwise."""
        logger = self.worker.logger
        if not logger.hasHandlers():
            logger.addHandler(make_log_handler())

    def run(self) -> None:
        """Run the worker; with `--dry-run` it ends before the first job."""
        if self.options.dry_run:
            self.worker.end_forced = True
        self.worker.run()

    # --- the title of the process ---

    def get_proc_title(self) -> str:
        """The title of the process, as title.py describes it. The jobs are counted now: two round trips."""
        number = os.getpid() if self.worker is None else self.worker.id
        parts = [show_program(self.prog_name, number), show_status(self.worker)]
        queues = show_value(self._worker_option("queues") or "")
        if queues:
            parts.append(f"queues={queues}")
        if self.worker is not None and self.worker.status:
            parts += show_progress(self.worker, self._counts.get(self.worker))
        return " ".join(parts)

    def _hide_passwords(self) -> None:
        """The command line stays as the title of the process, but for a password in it."""
        if self.worker is None:
            hide_passwords(self.prog_name, self._arguments)

    def update_proc_title(self, worker: Any = None) -> None:
        """Set the title, with counts that may be old (see JobCounts); called at each change of the worker's status."""
        if not self.update_title:
            return
        self._counts.may_be_old = True
        try:
            setproctitle(self.get_proc_title())
        finally:
            self._counts.may_be_old = False


class CommandPool(WorkerPool):
    """The pool of the command: each child does what the command does alone.

    Args:
        make_config: called in each child.
        options: `processes`, `reload`, `queues`, `update_title`, `logger_name`, `logger_level` and `log_format`
            are looked at.
    """

    def __init__(self, make_config: Callable[[], WorkerConfig], prog_name: str, options: Any) -> None:
        self.make_config, self.prog_name, self.command_options = make_config, prog_name, options
        super().__init__(processes=options.processes or 1, reload=bool(options.reload))

    def make_logger(self) -> Any:
        """A logger that the children do not find: in theirs the user's modules may set up logging as they like."""
        logger = logging.Logger(self.command_options.logger_name or LOGGER_NAME)
        level = parse_logger_level(self.command_options.logger_level or logging.INFO)
        logger.setLevel(logging.INFO if level is None else level)  # a child refuses what is no level
        logger.addHandler(make_log_handler(self.command_options.log_format or "text"))
        return logger

    def work(self, member: Member) -> None:
        """Do what the command does; what it prints once is printed by the first child."""
        config = self.make_config()
        config.member = member
        if not member.is_first:
            config.options.print_options = None
        config.execute()
        member.leave(bool(config.options.dry_run) or config.worker.is_drained)

    def update_title(self) -> None:
        """Set the title of the process, as title.py describes it."""
        if self.command_options.update_title:
            queues = self.command_options.queues
            parts = [show_program(self.prog_name, os.getpid()), f"[{self.status}]"]
            parts += [f"queues={queues}"] if queues else []
            setproctitle(" ".join([*parts, f"processes={self.ready_count}/{self.processes}"]))


def wants_pool(options: Any) -> bool:
    """Do the options ask for a pool, also one of a single process?"""
    return options.processes is not None or bool(options.reload)


def run_pool(make_config: Callable[[], WorkerConfig], prog_name: str, options: Any) -> None:
    """Run the pool that the options ask for.

    Raises:
        SystemExit: it has ended with another exit code than 0.
    """
    try:
        pool = CommandPool(make_config, prog_name, options)
    except ConfigurationException as error:
        DiscreetParser(prog=prog_name, usage=f"%prog [options]\n\n{WorkerConfig.help}").error(one_line(error))
    code = pool.run()
    if code:
        raise SystemExit(code)


def hide_passwords(prog_name: str, arguments: list[str]) -> None:
    """Make the command line the title of the process if there is a password in it, without that."""
    shown = [hide_secret(argument) for argument in arguments]
    if shown != arguments:
        setproctitle(" ".join([prog_name, *shown]))


class DiscreetParser(OptionParser):
    """Its errors quote what was typed, which may hold a password."""

    secrets: tuple[str, ...] = ()  # the arguments of the command line that may hold one

    def error(self, msg: str) -> NoReturn:
        for argument in self.secrets:
            value = argument.partition("=")[2] or argument
            for text in (argument, value, value.rpartition(".")[0]):  # the last: of what looks like a dotted path
                if text and hide_secret(text) != text:
                    msg = msg.replace(text, hide_secret(text)).replace(repr(text)[1:-1], hide_secret(text))
        super().error(msg)


def split_program(argv: Sequence[str] | None) -> tuple[str, list[str]]:
    """The program and its arguments; a list that begins with an option names no program: then it is the running one."""
    if argv and argv[0].startswith("-"):
        return sys.argv[0], list(argv)
    program, *arguments = argv or sys.argv
    return program, arguments


# --- importing what the user names ---


def import_path(path: str) -> Any:
    """What a dotted path names.

    Raises:
        ConfigurationException: in one line, why it cannot be imported, and where that happened.
    """
    try:
        return utils.import_class(path)
    except (Exception, SystemExit) as error:  # the modules are the user's: they can raise anything, and can be programs
        raise ConfigurationException(_import_failure(path, error)) from error


def _import_failure(path: str, error: BaseException) -> str:
    where = _where_raised(error)
    if where:
        message = error.msg if isinstance(error, SyntaxError) else error
        return f"{type(error).__name__}: {one_line(message)} ({where})"
    missing = error.name if isinstance(error, ModuleNotFoundError) else None
    hint = " (is its directory in --pythonpath?)" if missing and missing == path.partition(".")[0] else ""
    return one_line(error) + hint


def _where_raised(error: BaseException) -> str | None:
    """`file:line` in the user's code; None when the import itself failed, before any of it ran."""
    if isinstance(error, SyntaxError):
        return f"{error.filename}:{error.lineno}"
    machinery = {__file__, utils.__file__, importlib.__file__}
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename not in machinery and not frame.filename.startswith("<frozen importlib")
    ]
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else None


# --- showing values ---


def one_line(value: object) -> str:
    """The text of an error in one line."""
    return " ".join(str(value).split())


def show_value(value: Any) -> str:
    """The value of an option, as it is given on the command line where that is possible."""
    if isinstance(value, (list, tuple)):
        return ",".join(map(str, value))
    if isinstance(value, type):
        return f"<class '{show_name(value)}'>"
    return show_name(value) if callable(value) else str(value)


def show_name(value: Callable[..., Any]) -> str:
    """The dotted path of a class or a function; ours under the package that exports it."""
    package = __name__.rpartition(".")[0]
    module = str(getattr(value, "__module__", None))
    name = getattr(value, "__qualname__", None) or repr(value)
    return f"{package if module.startswith(f'{package}.') else module}.{name}"


def show_models_database() -> str:
    """The database that the models are on."""
    database = BaseJobsModel.database
    settings: Settings = database.connection_settings
    if settings.keys() <= {"host", "port", "db"}:
        return f"{settings.get('host', 'localhost')}:{settings.get('port', 6379)}:{settings.get('db', 0)}"
    return str(database) if isinstance(database, JobsDatabase) else show_database(settings)
