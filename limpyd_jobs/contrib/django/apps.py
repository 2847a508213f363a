"""What happens when Django is ready."""

from __future__ import annotations

from django.apps import AppConfig
from django.core import checks
from django.utils.module_loading import autodiscover_modules

from ...instruments import add_instrument
from ...models import BaseJobsModel
from .connections import CloseConnections, LeaveNoConnections
from .settings import Settings, check_settings, read_settings


class JobsConfig(AppConfig):
    """Brings the models to the database of the settings, and imports the modules of the apps that have jobs.

    Attributes:
        settings: what LIMPYD_JOBS says, from `ready` on.
    """

    name = "limpyd_jobs.contrib.django"
    label = "limpyd_jobs"
    verbose_name = "Jobs"
    default_auto_field = "django.db.models.BigAutoField"
    settings = Settings()
    instruments = (LeaveNoConnections(), CloseConnections())

    def ready(self) -> None:
        """See Django.

        Raises:
            ImproperlyConfigured: LIMPYD_JOBS cannot be used; jobs must not go to another database than the one meant.
        """
        self.settings = read_settings()
        if self.settings.database is not None:
            BaseJobsModel.database.reset(self.settings.database)  # nothing is opened: not each command needs Redis
        for one in self.instruments:
            add_instrument(one)
        checks.register(check_settings)
        autodiscover_modules(*self.settings.modules)
