"""Which modules the ident of a job may import.

An ident in Redis names a class. Whoever can write to Redis could have any module imported by it, so that its code runs:
only the modules that this process was told of are imported.
"""

from __future__ import annotations

import glob
import os
import traceback
from collections.abc import Iterable
from importlib import import_module
from importlib.util import find_spec
from pkgutil import iter_modules
from typing import Any

from .exceptions import ConfigurationException

ANY = "*"
TASKS = f"{__package__}.tasks.models"  # ours: it imports nothing of a job's but what is allowed


class AllowedModules:
    """The modules that idents may import: by name, with what is below them, and by directory.

    Attributes:
        names: dotted names; a package includes its modules.
        directories: all modules found in them.
    """

    def __init__(self) -> None:
        self.names: set[str] = {TASKS}
        self.directories: set[str] = set()

    def add(self, names: str | Iterable[str]) -> None:
        """Allow modules: dotted names as a list, or in a string with commas; `*` is any module.

        Raises:
            ConfigurationException: a name that no module can have; nothing was allowed.
        """
        self.names |= set(parse_modules(names))

    def add_directories(self, paths: Iterable[str]) -> None:
        """Allow what can be imported from some directories."""
        self.directories |= {os.path.abspath(path) for path in paths}

    def allows(self, module: str) -> bool:
        """May this module be imported? Nothing is imported to find out."""
        if ANY in self.names or any(module == name or module.startswith(f"{name}.") for name in self.names):
            return True
        return bool(self.directories) and self._is_in_directories(module.partition(".")[0])

    def _is_in_directories(self, top: str) -> bool:
        """Would Python find this module, which has no dot, in one of the directories? It may find another before."""
        try:
            spec = find_spec(top)
        except ValueError:  # it is imported, and does not say from where
            return False
        if spec is None:
            return False
        places = list(spec.submodule_search_locations or [spec.origin or ""])
        return all(any(_is_below(place, directory) for directory in self.directories) for place in places)


def _is_below(path: str, directory: str) -> bool:
    return os.path.abspath(path).startswith(os.path.join(directory, ""))


def find_directories(patterns: Iterable[str]) -> list[str]:
    """The absolute paths that the patterns of `--pythonpath` match; what matches nothing is kept: Python passes over
    missing paths.
    """
    return [os.path.abspath(path) for pattern in patterns for path in sorted(glob.glob(pattern)) or [pattern]]


def import_all(option: str, names: str | Iterable[str]) -> list[str]:
    """Import modules, and all that is in packages among them but programs (`__main__`).

    Args:
        option: that has named them, for errors.
        names: dotted names as a list, or in strings with commas.
    Returns:
        The names that were given, as a list.
    Raises:
        ConfigurationException: a name that no module can have, or what its import raises.
    """
    texts: list[Any] = list(names) if isinstance(names, Iterable) and not isinstance(names, (str, bytes)) else [names]
    given = [text.split(",") if isinstance(text, str) else [text] for text in texts if text]
    found = [part.strip() if isinstance(part, str) else part for parts in given for part in parts]
    for name in found:
        if not (isinstance(name, str) and is_dotted_name(name)):
            raise ConfigurationException(
                f"Invalid {option}: {name!r}: must be the dotted name of a module or a package"
            )
    for name in found:
        _import_below(option, name)
    return found


def _import_below(option: str, name: str) -> None:
    try:
        module = import_module(name)
    except (Exception, SystemExit) as error:  # the modules are the user's: they can raise anything, and can be programs
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConfigurationException(f"Unable to import {name!r}, of {option}: {reason}{_place_of(error)}") from error
    for found in iter_modules(getattr(module, "__path__", ()), f"{name}."):
        if not found.name.endswith(".__main__"):
            _import_below(option, found.name)


def _place_of(error: BaseException) -> str:
    """Where the modules of the user raised it, for who sees its message only."""
    ours = os.path.join(os.path.dirname(__file__), "")
    frames = traceback.extract_tb(error.__traceback__)
    places = [frame for frame in frames if "importlib" not in frame.filename and not _is_below(frame.filename, ours)]
    return f" ({places[-1].filename}:{places[-1].lineno})" if places else ""


def parse_modules(names: str | Iterable[str]) -> list[str]:
    """The names of modules as a list, from a list or a string with commas.

    Raises:
        ConfigurationException: one of them is no dotted name, nor `*`.
    """
    if isinstance(names, bytes) or not isinstance(names, (str, Iterable)):
        raise ConfigurationException(f"Invalid job_modules: {names!r}: must be names of modules, or *")
    found = [name.strip() for name in names.split(",")] if isinstance(names, str) and names else list(names)
    for name in found:
        if name != ANY and not (isinstance(name, str) and is_dotted_name(name)):
            raise ConfigurationException(f"Invalid job_modules: {name!r}: must be the dotted name of a module, or *")
    return found


def is_dotted_name(text: str) -> bool:
    """Can a module or a class be imported by this name?"""
    return all(part.isidentifier() for part in text.split("."))


allowed_modules = AllowedModules()
"""Those of this process."""
