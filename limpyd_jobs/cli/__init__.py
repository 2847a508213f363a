"""The command `limpyd-jobs`: what `limpyd_jobs.admin` does, from a terminal or a script.

    main        runs it: arguments in, an exit code out
    common      the options that each sub-command has, and what may be given as a value
    output      tables, JSON, progress
    rows        records as rows of tables
    filters     the options that say which jobs are meant
    seeing      status, jobs, show, errors, explain
    watching    status --watch
    acting      add, requeue, cancel, move, delete, purge
    operating   pause, resume, drain, workers, check, doctor, server, bench, metrics, health

Exit codes: 0 all is well; 1 something is wrong (a problem was found, there is no such job, some of many failed); 2 the
arguments are wrong; 3 Redis cannot be reached, or refuses; 130 interrupted.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NoReturn

import click
import redis

from ..database import hide_secret
from ..exceptions import ConfigurationException, DatabaseException, InvalidArgument, LimpydJobsException
from ..version import EXACT_VERSION
from . import acting, operating, seeing
from .common import FINE, INTERRUPTED, NO_REDIS, PROGRAM, USAGE, WRONG, Group
from .output import clean, print_json


@click.group(cls=Group, name=PROGRAM, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(EXACT_VERSION, prog_name=PROGRAM)
def commands() -> None:
    """See what is queued, what runs where, what failed and why; and act on it."""


for module in (seeing, acting, operating):
    for command in module.COMMANDS:
        commands.add_command(command)


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the command.

    Args:
        argv: its arguments, without the program; those of the process when None.
    Raises:
        SystemExit: always, with the exit code.
    """
    arguments = sys.argv[1:] if argv is None else list(argv)
    _hide_passwords(arguments)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # whatever Redis holds, and whatever the terminal can show
    sys.exit(run(arguments))


def run(arguments: Sequence[str]) -> int:
    """Run the command, say on stderr what went wrong, and give the exit code.

    With `--json` what went wrong is a document on stdout, too: who reads that one would otherwise get none.
    """
    code, message = _run(arguments)
    if message:
        message = clean(" ".join(_without_passwords(message, arguments).split()))
        print(message, file=sys.stderr, flush=True)
        if "--json" in arguments:
            print_json({"error": message, "code": code})
    return code


def _run(arguments: Sequence[str]) -> tuple[int, str]:
    """The exit code, and what went wrong."""
    try:
        code = commands.main(list(arguments) or ["--help"], prog_name=PROGRAM, standalone_mode=False)
        return int(code or FINE), ""
    except (KeyboardInterrupt, click.Abort):
        return INTERRUPTED, "Interrupted"
    except click.UsageError as error:
        path = error.ctx.command_path if error.ctx else PROGRAM
        return USAGE, f"{path}: {error.format_message()}"
    except (InvalidArgument, ConfigurationException) as error:
        return USAGE, f"{PROGRAM}: {error}"
    except (DatabaseException, redis.RedisError) as error:
        return NO_REDIS, f"{PROGRAM}: {error}"
    except LimpydJobsException as error:
        return WRONG, f"{PROGRAM}: {error}"
    except OSError as error:  # a port that is taken, a directory that is no one's to write
        return WRONG, f"{PROGRAM}: {error}"


def _without_passwords(message: str, arguments: Sequence[str]) -> str:
    """What was typed may be quoted in it, and hold a password."""
    for argument in arguments:
        for text in (argument, argument.partition("=")[2]):
            if hide_secret(text) != text:
                message = message.replace(text, hide_secret(text))
    return message


def _hide_passwords(arguments: list[str]) -> None:
    """The command line is seen by all users of the machine."""
    if any(hide_secret(argument) != argument for argument in arguments):
        from ..workers.config import hide_passwords

        hide_passwords(PROGRAM, arguments)
