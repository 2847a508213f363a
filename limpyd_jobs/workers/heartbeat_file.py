"""A file whose mtime says that a worker lives, for those who cannot ask Redis."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

from ..exceptions import ConfigurationException


def renew_file(path: Any) -> None:
    """Set the mtime of a file to now. When that fails it stays old: whoever looks at it learns enough."""
    with contextlib.suppress(OSError):
        Path(path).touch()


def check_heartbeat_file(value: Any) -> None:
    """Refuse what no file can be written to.

    Raises:
        ConfigurationException: the option cannot work.
    """
    accepted = "the path of a file in a directory that exists and can be written to"
    try:
        directory = Path(value).absolute().parent
        is_good = "\0" not in str(value) and not Path(value).is_dir() and os.access(directory, os.W_OK | os.X_OK)
    except (TypeError, ValueError, OSError):
        is_good = False
    if not is_good:
        raise ConfigurationException(f"Invalid heartbeat_file: {value!r}: must be {accepted}")
