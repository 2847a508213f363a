"""`manage.py limpyd_jobs ...`: the command `limpyd-jobs`, where the classes of the jobs are."""

from __future__ import annotations

from collections.abc import Sequence

from .....cli import main
from ...settings import read_settings
from ..passing import PassingCommand


class Command(PassingCommand):
    """Shows and acts on jobs, on the database of the settings."""

    help = "See what is queued, what runs, what failed, and act on it; the sub-commands are those of limpyd-jobs"

    def pass_on(self, program: str, arguments: Sequence[str]) -> None:
        """See PassingCommand."""
        database = read_settings().database
        named = [f"--database={database}"] if database and arguments else []
        main([*named, *arguments])
