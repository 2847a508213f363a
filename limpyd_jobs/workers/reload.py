"""For development: noticing that a loaded source file has changed. The library watchfiles tells when to look."""

from __future__ import annotations

import os
import sys
import sysconfig
import threading
import time
from collections.abc import Callable
from importlib.util import find_spec
from typing import TypeAlias

from ..exceptions import ConfigurationException

Stamps: TypeAlias = "dict[str, tuple[int, int, int]]"  # of files: what differs when one is written or replaced

LOOK_SECONDS = 1.0  # how often to see whether more modules are loaded
# What a developer does not write: the standard library, and what is installed.
INSTALLED = tuple(
    {os.path.join(sysconfig.get_path(name), "") for name in ("stdlib", "platstdlib", "purelib", "platlib")}
)

INSTALLED_NAMES = {"site-packages", "dist-packages"}  # wherever: that of the user, that of the system


def check_reload() -> None:
    """See whether sources can be watched.

    Raises:
        ConfigurationException: watchfiles is not installed.
    """
    if find_spec("watchfiles") is None:
        raise ConfigurationException("reload needs the library watchfiles: pip install 'redis-limpyd-jobs[reload]'")


def source_files(known: set[str]) -> list[str]:
    """The source files of the modules that are loaded now, but for the known ones and those that are installed."""
    modules = [module for name, module in list(sys.modules.items()) if name not in known]
    paths = [getattr(module, "__dict__", {}).get("__file__") for module in modules]  # asks no lazy module for it
    files = [os.path.abspath(path) for path in paths if isinstance(path, str) and path.endswith(".py")]
    return [path for path in files if not (path.startswith(INSTALLED) or INSTALLED_NAMES & set(path.split(os.sep)))]


class SourceWatch(threading.Thread):
    """Calls, once, when a source file has changed since it was seen first.

    Args:
        known: the names of modules to leave alone.
        on_change: called in this thread, with the path.
    """

    def __init__(self, known: set[str], on_change: Callable[[str], None]) -> None:
        super().__init__(name="limpyd-jobs-reload", daemon=True)
        self._known, self._on_change = known, on_change
        self._seen: Stamps = {}

    def run(self) -> None:
        """Look each time that something happens in the directories of the files."""
        changed = self._find_changed()
        while changed is None:
            directories = self._directories()
            if directories:
                changed = self._watch(directories)
            else:
                time.sleep(LOOK_SECONDS)
                changed = self._find_changed()
        self._on_change(changed)

    def _directories(self) -> set[str]:
        return {path for path in map(os.path.dirname, self._seen) if os.path.isdir(path)}

    def _watch(self, directories: set[str]) -> str | None:
        """The file that has changed; None when there are other directories to watch by now."""
        import watchfiles  # an extra, for development

        # a directory rather than its files: editors replace a file by a new one
        events = watchfiles.watch(
            *directories,
            watch_filter=lambda change, path: path.endswith(".py"),
            debounce=200,
            rust_timeout=int(LOOK_SECONDS * 1000),
            yield_on_timeout=True,
            raise_interrupt=False,
            recursive=False,
        )
        for _ in events:
            changed = self._find_changed()
            if changed is not None or self._directories() != directories:
                return changed
        return None

    def _find_changed(self) -> str | None:
        """Compare with what was seen: so nothing is missed between two watches, nor seen where a file is only read."""
        current: Stamps = {}
        for path in source_files(self._known):
            try:
                stat = os.stat(path)
            except OSError:  # it is being replaced
                continue
            current[path] = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
        self._seen = {**current, **self._seen}
        return next((path for path, stamp in current.items() if self._seen[path] != stamp), None)
