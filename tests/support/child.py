"""Programs in child processes: for forks, signals and exits, which the test's own must survive.

`run_child` runs a program to its end, `start_python` starts one. By default they fork it from a
server that has symbolicai imported (`support/forked.py`), which takes a second and not ten. Give
`fresh=True` for what is about the import, the configuration, the start or the hash seed of a
process, or about a fork in a process that must be clean.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import IO

from support.forked import IS_AVAILABLE, ForkedProcess

DEADLINE = 120.0
"""Seconds after which a child process hangs: many, for a busy machine that imports symbolicai."""

Process = subprocess.Popen[str] | ForkedProcess


def start_python(
    *command: str,
    fresh: bool = False,
    stdin: int | IO[str] | None = None,
    stdout: int | IO[str] | None = None,
    stderr: int | IO[str] | None = None,
    cwd: str | os.PathLike[str] | None = None,
    env: Mapping[str, str] | None = None,
    pass_fds: Sequence[int] = (),
    start_new_session: bool = False,
) -> Process:
    """Start what follows `python` on a command line.

    Args:
        *command: `-c` and a program, `-m` and a module, or a file; then arguments.
        fresh: Whether to start a Python, and not to fork one that has symbolicai imported.
        stdin: As for `subprocess.Popen`, as are the others.
    """
    if IS_AVAILABLE and not fresh:
        return ForkedProcess(
            command,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            cwd=cwd,
            env=env,
            pass_fds=pass_fds,
            start_new_session=start_new_session,
        )
    return subprocess.Popen(
        [sys.executable, *command],
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        cwd=cwd,
        env=env,
        pass_fds=pass_fds,
        start_new_session=start_new_session,
        text=True,
    )


def run_python(
    *command: str,
    fresh: bool = False,
    seconds: float = DEADLINE,
    until: Callable[[], object] = lambda: None,
    given: str = "",
    cwd: str | os.PathLike[str] | None = None,
    env: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run what follows `python` on a command line, with a deadline.

    Args:
        *command: As of `start_python`, as are `fresh`, `cwd` and `env`.
        seconds: The deadline.
        until: Waits for something that the program brings about, before it is given its input.
        given: What the program finds on its standard input.
    """
    pipe = subprocess.PIPE
    with start_python(
        *command, fresh=fresh, stdin=pipe, stdout=pipe, stderr=pipe, cwd=cwd, env=env
    ) as process:
        try:
            until()
            output, errors = process.communicate(given, timeout=seconds)
        except BaseException:
            process.kill()
            raise
    assert process.returncode is not None
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors)


def run_child(
    program: str,
    *arguments: str,
    strict: bool = True,
    fresh: bool = False,
    seconds: float = DEADLINE,
    until: Callable[[], object] = lambda: None,
    lines: int = 1,
) -> subprocess.CompletedProcess[str]:
    """Run a Python program, with a deadline.

    Args:
        program: The source.
        *arguments: What it finds in `sys.argv`.
        strict: Whether warnings are errors and Python is in its development mode; symbolicai's
            import does not survive that. Such a program is always a new process.
        fresh: Whether it is a new process, and not forked from one that has symbolicai imported.
        seconds: The deadline.
        until: Waits for something that the program brings about; the program then finds a line on
            its standard input.
        lines: How many it finds there.
    """
    options = ["-X", "dev", "-W", "error"] if strict else []
    completed = run_python(
        *options,
        "-c",
        textwrap.dedent(program),
        *arguments,
        fresh=strict or fresh,
        seconds=seconds,
        until=until,
        given="\n" * lines,
    )
    completed.stderr = without_slow_callbacks(completed.stderr)
    return completed


SLOW_CALLBACK = re.compile(r"^Executing <.*> took \d+\.\d+ seconds\n", re.MULTILINE)


def without_slow_callbacks(errors: str) -> str:
    """Leave out what asyncio's debug mode (of `-X dev`) writes when the machine is busy."""
    return SLOW_CALLBACK.sub("", errors)
