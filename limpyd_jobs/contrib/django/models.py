"""What Django's admin needs to list jobs and errors, and to ask for permissions: models without tables."""

from __future__ import annotations

from typing import Any

from django.db import models


class NoTable(models.Manager):
    """Finds nothing, and asks no database: for commands like `dumpdata`, which read each model."""

    def get_queryset(self) -> Any:
        """See Django."""
        return super().get_queryset().none()


class Job(models.Model):
    """A job; its record is in Redis."""

    ident = models.CharField(primary_key=True, max_length=1000)
    objects = NoTable()

    class Meta:
        managed = False
        base_manager_name = "objects"
        default_permissions = ("view", "change", "delete")

    def __str__(self) -> str:
        return str(self.ident)


class Error(models.Model):
    """An Error; its record is in Redis."""

    objects = NoTable()

    class Meta:
        managed = False
        base_manager_name = "objects"
        default_permissions = ("view",)
