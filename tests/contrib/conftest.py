"""What these tests share: what those of the workers have."""

from ..workers.conftest import _locks_of_the_log_are_free, log, signal_handlers

__all__ = ["_locks_of_the_log_are_free", "log", "signal_handlers"]
