"""Commands of `manage.py` that are commands of ours, with all their arguments."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from django.core.management.base import BaseCommand, CommandParser


class _Parser(CommandParser):
    """Takes the options that are Django's, wherever they stand, and leaves the others as they are."""

    def parse_args(self, args: Any = None, namespace: Any = None) -> argparse.Namespace:
        options: argparse.Namespace
        options, options.args = self.parse_known_args(args, namespace)
        options.pythonpath = None  # ours knows it, too, and Django has looked at it before this
        return options


class PassingCommand(BaseCommand):
    """Calls `pass_on` with the arguments; `--help` and `--version` are among them, `--settings` is not."""

    def create_parser(self, prog_name: str, subcommand: str, **kwargs: Any) -> Any:
        """See Django; called by `call_command`, too."""
        parser = _Parser(
            prog=f"{prog_name} {subcommand}", add_help=False, allow_abbrev=False, called_from_command_line=True
        )
        parser.add_argument("--settings")
        for switch in ("--traceback", "--no-color", "--force-color", "--skip-checks"):
            parser.add_argument(switch, action="store_true")
        return parser

    def print_help(self, prog_name: str, subcommand: str) -> None:
        """See Django."""
        self.pass_on(subcommand, ["--help"])

    def handle(self, *args: str, **options: Any) -> None:
        """See Django."""
        self.pass_on(type(self).__module__.rpartition(".")[2], args)

    def pass_on(self, program: str, arguments: Sequence[str]) -> None:
        """Do it.

        Args:
            program: what the command calls itself.
        """
        raise NotImplementedError
