"""`manage.py limpyd_jobs_worker ...`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from .....scripts import worker
from ..passing import PassingCommand

CONFIG = "--worker-config=limpyd_jobs.contrib.django.worker.DjangoWorkerConfig"


class Command(PassingCommand):
    """Runs a worker, or a pool of them."""

    help = "Run a worker; the options are those of limpyd-jobs-worker"

    def pass_on(self, program: str, arguments: Sequence[str]) -> None:
        """See PassingCommand."""
        if getattr(self, "_called_from_command_line", False) and worker.read_pool_options(list(arguments)) is not None:
            self._begin_anew(arguments)
        worker.main([program, CONFIG, *arguments])

    def _begin_anew(self, arguments: Sequence[str]) -> None:
        """Become the parent of a pool, which has nothing of the project loaded.

        Its children are copies of it: with the code in it they could not load what has changed, at SIGHUP or by
        `--reload`. A project whose settings have no module goes on as it is.
        """
        if "DJANGO_SETTINGS_MODULE" not in os.environ:
            return
        directory = os.path.dirname(os.path.abspath(sys.argv[0]))  # of manage.py, where the project is
        path = os.pathsep.join(filter(None, [directory, os.environ.get("PYTHONPATH")]))
        sys.stdout.flush()
        sys.stderr.flush()
        command = [sys.executable, "-m", worker.__name__, CONFIG, *arguments]
        os.execve(sys.executable, command, {**os.environ, "PYTHONPATH": path})
