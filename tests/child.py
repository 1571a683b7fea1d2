"""Programs in child processes: for forks, signals and exits, which the test's own must survive."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Callable

DEADLINE = 120.0
"""Seconds after which a child process hangs: many, for a busy machine that imports symbolicai."""


def run_child(
    program: str,
    *arguments: str,
    strict: bool = True,
    seconds: float = DEADLINE,
    until: Callable[[], object] = lambda: None,
    lines: int = 1,
) -> subprocess.CompletedProcess[str]:
    """Run a Python program, with a deadline.

    Args:
        program: The source.
        *arguments: What it finds in `sys.argv`.
        strict: Whether warnings are errors and Python is in its development mode; symbolicai's
            import does not survive that.
        seconds: The deadline.
        until: Waits for something that the program brings about; the program then finds a line on
            its standard input.
        lines: How many it finds there.
    """
    options = ["-X", "dev", "-W", "error"] if strict else []
    command = [sys.executable, *options, "-c", textwrap.dedent(program), *arguments]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            until()
            output, errors = process.communicate("\n" * lines, timeout=seconds)
        except BaseException:
            process.kill()
            raise
    return subprocess.CompletedProcess(command, process.returncode, output, errors)
