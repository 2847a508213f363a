"""What Django's admin needs to list jobs and errors, and to ask for permissions: models without tables."""

from __future__ import annotations

from django.db import models


class Job(models.Model):
    """A job; its record is in Redis."""

    ident = models.CharField(primary_key=True, max_length=1000)

    class Meta:
        managed = False
        default_permissions = ("view", "change", "delete")

    def __str__(self) -> str:
        return str(self.ident)


class Error(models.Model):
    """An Error; its record is in Redis."""

    class Meta:
        managed = False
        default_permissions = ("view",)
