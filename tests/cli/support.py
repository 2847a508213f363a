"""Running the command: in this process, and in a terminal of its own."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyte

from ..base import PROCESS_SECONDS, ROOT, wait_until


@dataclass(frozen=True)
class Outcome:
    """What a run of the command has answered."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def rows(self) -> list[list[str]]:
        """The lines of a table, without its titles."""
        return [line.split("\t") for line in self.out.splitlines()[1:]]


Command = Callable[..., Outcome]


class Terminal:
    """The command in a pseudo-terminal, and what is to be seen on its screen.

    with Terminal("status", "--watch", database=server.url) as terminal:
        terminal.wait_for("mail")
        terminal.press("q")
        assert terminal.wait() == 0
    """

    def __init__(
        self,
        *arguments: str,
        database: str,
        columns: int = 120,
        lines: int = 24,
        environment: dict[str, str] | None = None,
    ) -> None:
        self.screen = pyte.Screen(columns, lines)
        self.stream = pyte.ByteStream(self.screen)
        self.received = b""
        self.master, slave = pty.openpty()
        self.resize(columns, lines)
        inherited = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "limpyd_jobs", *arguments],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            cwd=ROOT,
            env={
                **inherited,
                "TERM": "xterm-256color",
                "PYTHONPATH": str(ROOT),
                "LIMPYD_JOBS_DATABASE": database,
                **(environment or {}),
            },
            preexec_fn=_own_terminal,
        )
        os.close(slave)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *exception: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self.master)

    def resize(self, columns: int, lines: int) -> None:
        """Give the terminal another size, as a user does with its window."""
        self.screen.resize(lines, columns)
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def press(self, keys: str) -> None:
        os.write(self.master, keys.encode())

    def send_signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def look(self) -> list[str]:
        """The lines of the screen, as they are now."""
        while select.select([self.master], [], [], 0)[0]:
            try:
                data = os.read(self.master, 65536)
            except OSError:  # the process has ended
                break
            if not data:
                break
            self.received += data
            self.stream.feed(data)
        return [line.rstrip() for line in self.screen.display]

    @property
    def text(self) -> str:
        """All lines of the screen as one text."""
        return "\n".join(self.look())

    def wait_for(self, text: str, timeout: float = PROCESS_SECONDS) -> str:
        """Wait until the screen shows a text; gives all that it shows then."""
        try:
            wait_until(lambda: text in self.text, timeout)
        except AssertionError:
            raise AssertionError(f"{text!r} is not on the screen:\n{self.text}") from None
        return self.text

    def wait(self, timeout: float = PROCESS_SECONDS) -> int:
        """The exit code, when it ends."""

        def has_ended() -> bool:
            self.look()
            return self.process.poll() is not None

        wait_until(has_ended, timeout, f"it ends; its screen:\n{self.text}")
        self.look()
        return self.process.returncode


def _own_terminal() -> None:
    """In the child: the terminal becomes that of its session, so that Ctrl-C in it reaches it."""
    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
