"""The worker's command line in a Django project."""

from __future__ import annotations

from collections.abc import Sequence

import django
from django.apps import apps

from ...exceptions import ConfigurationException
from ...workers import WorkerConfig


class DjangoWorkerConfig(WorkerConfig):
    """Sets Django up first; the database is that of the settings, unless `--database` says otherwise.

    `limpyd-jobs-worker --worker-config=limpyd_jobs.contrib.django.worker.DjangoWorkerConfig ...`, with
    DJANGO_SETTINGS_MODULE in the environment, is what `manage.py limpyd_jobs_worker ...` does.

    Raises:
        ConfigurationException: the project has not installed the app.
    """

    def __init__(self, argv: Sequence[str] | None = None) -> None:
        if not apps.ready:
            django.setup()
        if not apps.is_installed("limpyd_jobs.contrib.django"):
            raise ConfigurationException("limpyd_jobs.contrib.django must be in INSTALLED_APPS: it is not")
        super().__init__(argv)

    def _read_database(self) -> None:
        self.options.database = self.options.database or apps.get_app_config("limpyd_jobs").settings.database
        super()._read_database()
