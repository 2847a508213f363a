"""The command `limpyd-jobs-worker`; the options are in `workers/options.py`, what they do in `workers/config.py`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from functools import partial
from typing import NoReturn

from ..exceptions import ConfigurationException
from ..modules import allowed_modules, find_directories
from ..workers import WorkerConfig
from ..workers.config import (
    DiscreetParser,
    hide_passwords,
    import_path,
    run_pool,
    show_name,
    split_program,
    wants_pool,
)


def main(argv: Sequence[str] | None = None) -> None:
    """Run a worker.

    With `--processes` or `--reload`, run a pool of them: then this process imports nothing of the user's, and each
    child does anew what the command does alone. So what is started later has the code as it is by then.

    Args:
        argv: the program and its arguments; `sys.argv` when None or empty; the program may be left out.
    Raises:
        SystemExit: for `--help`, `--version`, a mistake in the arguments (exit code 2), a pool that has not ended well.
    """
    program, arguments = split_program(argv)
    options = read_pool_options(arguments)
    if options is None:
        load_config(argv).execute()
        return
    prog_name = os.path.basename(program)
    hide_passwords(prog_name, arguments)
    run_pool(partial(load_config, argv), prog_name, options)


def read_pool_options(arguments: list[str]) -> argparse.Namespace | None:
    """What the parent of a pool needs to know; None when no pool is asked for, or not as one can be: then it is for the
    real parser to complain.
    """
    # no abbreviations: they may be options of a WorkerConfig, which is not loaded here; where they are ours,
    # `WorkerConfig.execute` runs the pool
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    # values can be missing here, or too many: it is for the real parser to complain
    for name in ("--processes", "--queues", "--logger-name", "--logger-level", "--log-format"):
        parser.add_argument(name, nargs="?")
    for switch in ("--reload", "--no-title"):
        parser.add_argument(switch, nargs="?", const=True)
    options = parser.parse_known_args(arguments)[0]
    options.update_title = options.no_title is None
    try:
        options.processes = None if options.processes is None else int(options.processes)
    except ValueError:
        return None
    is_possible = options.processes is None or options.processes >= 1
    return options if is_possible and wants_pool(options) else None


def load_config(argv: Sequence[str] | None) -> WorkerConfig:
    """The WorkerConfig that the arguments ask for.

    `--pythonpath` and `--worker-config` are read first, so that the rest can be imported from the one, by the other.
    """
    program, arguments = split_program(argv)
    early = read_early_options(arguments)
    directories = find_directories(filter(None, early.pythonpath))
    sys.path[:0] = directories
    allowed_modules.add_directories(directories)
    path = early.worker_config
    config_class = load_config_class(path, os.path.basename(program)) if path else WorkerConfig
    # without arguments as in version 2, and for subclasses whose __init__ takes none
    return config_class(argv) if argv else config_class()


def read_early_options(arguments: list[str]) -> argparse.Namespace:
    """The two options that matter before the others; those are left alone, as only the WorkerConfig knows them all."""
    parser = argparse.ArgumentParser(add_help=False)
    # values can be missing here: it is for the real parser to complain
    parser.add_argument("--pythonpath", action="append", nargs="?", default=[])
    parser.add_argument("--worker-config", nargs="?")
    return parser.parse_known_args(arguments)[0]


def load_config_class(path: str, program: str) -> type[WorkerConfig]:
    """The class that `--worker-config` names; ends the program when there is none."""
    parser = DiscreetParser(prog=program, usage=f"%prog [options]\n\n{WorkerConfig.help}")
    parser.secrets = (path,)
    try:
        found = import_path(path)
    except ConfigurationException as error:
        parser.error(f'Unable to import "worker_config": {error}')
    if not (isinstance(found, type) and issubclass(found, WorkerConfig)):
        parser.error(f"The worker-config argument ({path}) must be {show_name(WorkerConfig)} or a subclass")
    return found


def begin_anew(arguments: Sequence[str], directory: str, **environment: str) -> NoReturn:
    """Become the command with these arguments, in this process and with nothing loaded.

    For commands of a framework, which loads the program before it calls them, and pools: the children are copies of
    their parent, and with the code in it they could not load what has changed, at SIGHUP or by `--reload`.

    Args:
        directory: where the program is; the first one on the Python path.
        environment: variables to be set.
    """
    path = os.pathsep.join(filter(None, [directory, os.environ.get("PYTHONPATH")]))
    sys.stdout.flush()
    sys.stderr.flush()
    command = [sys.executable, "-m", f"{__package__}.worker", *arguments]
    os.execve(sys.executable, command, {**os.environ, **environment, "PYTHONPATH": path})


if __name__ == "__main__":
    main()
