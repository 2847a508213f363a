"""Who is compared, and the environment that each one runs in."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
PEERS = HERE / "peers"
REQUIREMENTS = HERE / "requirements"
ENVIRONMENTS = HERE / ".venvs"

INSTALL_TIMEOUT_SECONDS = 600

BASELINE = "limpyd_jobs_default"
FASTEST = "limpyd_jobs_fastest"
FLOOR = "floor"


class NotInstalled(Exception):
    """A contender cannot be run here; says why."""


@dataclass(frozen=True)
class Contender:
    """One row of the table.

    Attributes:
        key: names it on the command line, its adapter and its requirements.
        server: "redis" or "postgres".
        is_own: runs in our own environment, with this interpreter.
        is_deep: is measured with up to a million waiting jobs, too.
        source: where limpyd_jobs is imported from, when it is not the installed one.
    """

    key: str
    server: str = "redis"
    is_own: bool = False
    is_deep: bool = False
    source: str = ""

    @property
    def is_peer(self) -> bool:
        """Is it another library?"""
        return not self.is_own

    @property
    def name(self) -> str:
        """Its key, and where it comes from when that is not here."""
        return f"{self.key} at {self.source}" if self.source else self.key

    @property
    def adapter(self) -> Path:
        """Its adapter: NAME.py, or NAME_peer.py where that would hide the library of the same name."""
        path = PEERS / f"{self.key}_peer.py"
        return path if path.exists() else PEERS / f"{self.key}.py"

    def python(self) -> str:
        """The interpreter to run its adapter with; its environment is made when it is missing.

        Raises:
            NotInstalled: there is no adapter, or its packages cannot be installed.
        """
        if not self.adapter.exists():
            raise NotInstalled(f"{self.adapter.name} is not there")
        return sys.executable if self.is_own else _environment(self.key)


CONTENDERS = (
    Contender(BASELINE, is_own=True, is_deep=True),
    Contender(FASTEST, is_own=True, is_deep=True),
    Contender(FLOOR, is_own=True, is_deep=True),
    Contender("huey"),
    Contender("dramatiq"),
    Contender("spinach"),
    Contender("taskiq"),
    Contender("streaq"),
    Contender("saq"),
    Contender("arq"),
    Contender("rq"),
    Contender("celery"),
    Contender("pgqueuer", server="postgres"),
    Contender("redis_limpyd_jobs_2"),
)

QUICK = (BASELINE, FASTEST, FLOOR, "huey", "dramatiq", "spinach")


def _environment(key: str) -> str:
    """The interpreter of a virtual environment with the packages of a peer, as they are pinned."""
    requirements = REQUIREMENTS / f"{key}.txt"
    if not requirements.exists():
        raise NotInstalled(f"{requirements.name} is not there")
    folder = ENVIRONMENTS / key
    python, stamp = folder / "bin" / "python", folder / "installed"
    wanted = hashlib.sha256(requirements.read_bytes() + sys.version.encode()).hexdigest()
    if not stamp.exists() or stamp.read_text() != wanted:
        print(f"making an environment for {key}", file=sys.stderr)
        _run([sys.executable, "-m", "venv", "--clear", str(folder)])
        _run([str(python), "-m", "pip", "install", "-q", "-r", str(requirements)])
        stamp.write_text(wanted)
    return str(python)


def _run(words: list[str]) -> None:
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise NotInstalled(f"{' '.join(words)} took too long") from error
    if done.returncode != 0:
        raise NotInstalled(f"{' '.join(words)}: {done.stderr.strip()[-300:]}")
