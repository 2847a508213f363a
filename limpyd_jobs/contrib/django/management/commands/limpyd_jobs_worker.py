"""`manage.py limpyd_jobs_worker ...`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from django.db import connections

from .....scripts import worker
from ..passing import PassingCommand

CONFIG = "--worker-config=limpyd_jobs.contrib.django.worker.DjangoWorkerConfig"


class Command(PassingCommand):
    """Runs a worker, or a pool of them."""

    help = "Run a worker; the options are those of limpyd-jobs-worker"

    def pass_on(self, program: str, arguments: Sequence[str]) -> None:
        """See PassingCommand. A pool begins anew, unless the settings have no module that it could read."""
        if worker.read_pool_options(list(arguments)) is not None:
            if getattr(self, "_called_from_command_line", False) and "DJANGO_SETTINGS_MODULE" in os.environ:
                worker.begin_anew([CONFIG, *arguments], os.path.dirname(os.path.abspath(sys.argv[0])))  # of manage.py
            connections.close_all()  # the workers are copies of this process, and must not share any
        worker.main([program, CONFIG, *arguments])
