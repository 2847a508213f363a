"""`manage.py limpyd_jobs ...`: the command `limpyd-jobs`, where the classes of the jobs are."""

from __future__ import annotations

from collections.abc import Sequence

from django.apps import apps

from .....cli import main
from ..passing import PassingCommand


class Command(PassingCommand):
    """Shows and acts on jobs, on the database of the settings."""

    help = "See what is queued, what runs, what failed, and act on it; the sub-commands are those of limpyd-jobs"

    def pass_on(self, program: str, arguments: Sequence[str]) -> None:
        """See PassingCommand."""
        database = apps.get_app_config("limpyd_jobs").settings.database
        named = [f"--database={database}"] if database and arguments else []
        main([*named, *arguments])
