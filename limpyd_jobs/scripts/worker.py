"""The command `limpyd-jobs-worker`; the options are in `workers/options.py`, what they do in `workers/config.py`."""

from __future__ import annotations

import argparse
import glob
import os
import sys
from collections.abc import Iterable, Sequence
from optparse import OptionParser

from ..exceptions import ConfigurationException
from ..workers import WorkerConfig
from ..workers.config import import_path, show_name


def main(argv: Sequence[str] | None = None) -> None:
    """Run a worker.

    `--pythonpath` and `--worker-config` are read first, so that the rest can be imported from the one, by the other.

    Args:
        argv: the program and its arguments; `sys.argv` when None.
    Raises:
        SystemExit: for `--help`, `--version`, and a mistake in the arguments (exit code 2).
    """
    early = read_early_options(sys.argv if argv is None else argv)
    sys.path[:0] = find_directories(filter(None, early.pythonpath))
    config_class = load_config_class(early.worker_config) if early.worker_config else WorkerConfig
    # as in version 2, and for subclasses whose __init__ takes nothing
    config = config_class() if argv is None else config_class(argv)
    config.execute()


def read_early_options(argv: Sequence[str]) -> argparse.Namespace:
    """The two options that matter before the others; those are left alone, as only the WorkerConfig knows them all."""
    parser = argparse.ArgumentParser(add_help=False)
    # values can be missing here: it is for the real parser to complain
    parser.add_argument("--pythonpath", action="append", nargs="?", default=[])
    parser.add_argument("--worker-config", nargs="?")
    return parser.parse_known_args(list(argv))[0]


def find_directories(patterns: Iterable[str]) -> list[str]:
    """The absolute paths that the patterns match; what matches nothing is kept: Python passes over missing paths."""
    return [os.path.abspath(path) for pattern in patterns for path in sorted(glob.glob(pattern)) or [pattern]]


def load_config_class(path: str) -> type[WorkerConfig]:
    """The class that `--worker-config` names; ends the program when there is none."""
    parser = OptionParser(usage=f"%prog [options]\n\n{WorkerConfig.help}")
    try:
        found = import_path(path)
    except ConfigurationException as error:
        parser.error(f'Unable to import "worker_config": {error}')
    if not (isinstance(found, type) and issubclass(found, WorkerConfig)):
        parser.error(f"The worker-config argument ({path}) must be {show_name(WorkerConfig)} or a subclass")
    return found


if __name__ == "__main__":
    main()
