"""The worker's command line in a Django project."""

from __future__ import annotations

from collections.abc import Sequence

import django
from django.apps import apps

from ...workers import WorkerConfig
from .settings import read_settings


class DjangoWorkerConfig(WorkerConfig):
    """Sets Django up first; the database is that of the settings, unless `--database` says otherwise.

    `limpyd-jobs-worker --worker-config=limpyd_jobs.contrib.django.worker.DjangoWorkerConfig ...`, with
    DJANGO_SETTINGS_MODULE in the environment, is what `manage.py limpyd_jobs_worker ...` does.
    """

    def __init__(self, argv: Sequence[str] | None = None) -> None:
        if not apps.ready:
            django.setup()
        super().__init__(argv)

    def _read_database(self) -> None:
        self.options.database = self.options.database or read_settings().database
        super()._read_database()
