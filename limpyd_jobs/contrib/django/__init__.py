"""An app for `INSTALLED_APPS`: settings, commands, connections, transactions, the admin. See docs/django.md."""

from .commit import OnCommit, on_commit

__all__ = ["OnCommit", "on_commit"]
