"""Ready-made tasks that run other programs, and what they are made of.

A worker has these tasks with `--tasks=limpyd_jobs.tasks.commands`, and only then: whoever may write to its Redis can
run anything there.
"""

from __future__ import annotations

import asyncio
import sys
from asyncio.subprocess import PIPE
from collections.abc import Sequence
from contextlib import suppress

from ..exceptions import CommandFailed, InvalidArgument
from .definition import task


async def shell(command: str | Sequence[str], input: str = "", cwd: str | None = None) -> str:
    """What a program prints, for the coroutine of a job. It is killed when the coroutine is cancelled.

    Args:
        command: a text for `/bin/sh`; or the program and its arguments, which no shell reads.
        input: what the program reads.
        cwd: the directory that it runs in; that of this process when None.
    Raises:
        InvalidArgument: no command. CommandFailed: it ended with another code than 0. OSError: it cannot be started.
    """
    if not command or not (isinstance(command, str) or all(isinstance(part, str) for part in command)):
        raise InvalidArgument("command", command, "a text, or a program and its arguments, as texts")
    if not isinstance(input, str):
        raise InvalidArgument("input", input, "a text")
    if isinstance(command, str):
        process = await asyncio.create_subprocess_shell(command, stdin=PIPE, stdout=PIPE, stderr=PIPE, cwd=cwd)
    else:
        process = await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE, stderr=PIPE, cwd=cwd)
    try:
        output, errors = await process.communicate(input.encode())
    except BaseException:  # above all a cancellation
        with suppress(ProcessLookupError):  # it has just ended
            process.kill()
        await process.wait()
        raise
    if process.returncode:
        raise CommandFailed(command, process.returncode, errors.decode(errors="replace"))
    return output.decode(errors="replace")


@task
async def run_command(command: str | list[str], input: str = "", cwd: str | None = None) -> str:
    """What a program prints; as `shell`."""
    return await shell(command, input, cwd)


@task
async def run_python(code: str, input: str = "") -> str:
    """What some Python code prints, in a process of its own."""
    return await shell([sys.executable, "-c", code], input)


@task
async def run_script(path: str, arguments: tuple[str, ...] = ()) -> str:
    """What a Python script prints, in a process of its own."""
    return await shell([sys.executable, path, *arguments])
