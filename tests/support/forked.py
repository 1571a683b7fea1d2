"""Python processes that find symbolicai imported, because a fork server has done so.

The first process that is wanted starts the server; the workers of pytest-xdist share it. Where
there is no `os.pidfd_open` (outside Linux) nothing is forked.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Self

PROGRAM = Path(__file__).with_name("fork_server.py")
FOLDER, OWNER = "GPTX_ASYNC_TESTS_FOLDER", "GPTX_ASYNC_TESTS_OWNER"
"""Environment variables: the folder that the suite's processes share, and the id of its owner."""

IS_AVAILABLE = hasattr(os, "pidfd_open")
START_SECONDS = 120.0
NUMBER = struct.Struct("i")
"""What the server sends: the process's id, and at its end how it ended."""


def _address() -> str:
    """Return the server's socket; start the server first if it is not there."""
    folder = Path(os.environ[FOLDER])
    path = folder / "fork_server"
    with (folder / "fork_server.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            _start(path, folder)
    return str(path)


def _start(path: Path, folder: Path) -> None:
    log = folder / "fork_server.log"
    environment = os.environ | {"HOME": str(folder)}
    command = [sys.executable, str(PROGRAM), str(path), str(folder), os.environ[OWNER]]
    write = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    # Not by `subprocess`, which would expect its end to be waited for: it outlives this worker.
    pid = os.posix_spawn(
        sys.executable,
        command,
        environment,
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(log), write, 0o600),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
        setsid=True,
    )
    ended = os.pidfd_open(pid)
    try:
        _wait_until(path.exists, ended, log)
    finally:
        os.close(ended)


def _wait_until(is_there: Callable[[], bool], ended: int, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not is_there():
        if select.select([ended], [], [], 0.02)[0] or time.monotonic() > deadline:
            raise RuntimeError(f"The fork server did not start:\n{log.read_text()}")


class ForkedProcess:
    """A child of the fork server, with the methods of `subprocess.Popen` that the tests use.

    Args:
        command: What follows `python` on a command line: `-c` and a program, `-m` and a module, or
            a file, and arguments.
        stdin: As for `subprocess.Popen`, as are the others.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        stdin: int | IO[str] | None = None,
        stdout: int | IO[str] | None = None,
        stderr: int | IO[str] | None = None,
        cwd: str | os.PathLike[str] | None = None,
        env: Mapping[str, str] | None = None,
        pass_fds: Sequence[int] = (),
        start_new_session: bool = False,
    ) -> None:
        self.args = [sys.executable, *command]
        self.returncode: int | None = None
        with contextlib.ExitStack() as theirs:
            self.stdin, in_ = _stream(stdin, 0, theirs)
            self.stdout, out = _stream(stdout, 1, theirs)
            self.stderr, err = (
                (None, out) if stderr is subprocess.STDOUT else _stream(stderr, 2, theirs)
            )
            request = {
                "command": list(command),
                "cwd": os.fspath(cwd or os.getcwd()),
                "env": dict(os.environ if env is None else env),
                "descriptors": [0, 1, 2, *pass_fds],
                "start_new_session": start_new_session,
            }
            file = theirs.enter_context(tempfile.TemporaryFile("w+"))
            json.dump(request, file)
            file.flush()
            file.seek(0)
            self._connection = socket.socket(socket.AF_UNIX)
            self._connection.connect(_address())
            socket.send_fds(self._connection, [b"."], [file.fileno(), in_, out, err, *pass_fds])
        self.pid = self._number(START_SECONDS)
        self._readers: dict[IO[str], tuple[threading.Thread, list[str]]] = {}

    def _number(self, timeout: float | None) -> int:
        self._connection.settimeout(timeout)
        data = self._connection.recv(NUMBER.size)
        if not data:
            raise RuntimeError("The fork server has ended, or could not fork.")
        return int(NUMBER.unpack(data)[0])

    def poll(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.wait(0)
        return None

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            try:
                self.returncode = self._number(timeout)
            except (TimeoutError, BlockingIOError):
                raise subprocess.TimeoutExpired(self.args, timeout or 0.0) from None
            self._connection.close()
        return self.returncode

    def communicate(
        self, given: str | None = None, timeout: float | None = None
    ) -> tuple[str, str]:
        deadline = None if timeout is None else time.monotonic() + timeout

        def rest() -> float | None:
            return None if deadline is None else max(0.0, deadline - time.monotonic())

        if self.stdin is not None and not self.stdin.closed:
            with contextlib.suppress(BrokenPipeError):
                self.stdin.write(given or "")
            with contextlib.suppress(BrokenPipeError):
                self.stdin.close()
        pipes = [pipe for pipe in (self.stdout, self.stderr) if pipe is not None]
        for pipe in pipes:
            if pipe not in self._readers:
                self._readers[pipe] = _start_reader(pipe)
        for pipe in pipes:
            thread, _ = self._readers[pipe]
            thread.join(rest())
            if thread.is_alive():
                raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
        self.wait(rest())
        output, errors = (
            "".join(self._readers[pipe][1]) if pipe is not None else ""
            for pipe in (self.stdout, self.stderr)
        )
        return output, errors

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for pipe in (self.stdin, self.stdout, self.stderr):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        self.wait()


def _start_reader(pipe: IO[str]) -> tuple[threading.Thread, list[str]]:
    read: list[str] = []

    def read_all() -> None:
        with pipe:
            read.append(pipe.read())

    thread = threading.Thread(target=read_all, name="pipe", daemon=True)
    thread.start()
    return thread, read


def _stream(
    given: int | IO[str] | None, number: int, theirs: contextlib.ExitStack
) -> tuple[IO[str] | None, int]:
    """Return our end of a pipe, if it is to be one, and the child's descriptor."""
    if given == subprocess.PIPE:
        readable, writable = os.pipe()
        ours, their = (writable, readable) if number == 0 else (readable, writable)
        theirs.callback(os.close, their)
        return open(ours, "w" if number == 0 else "r", encoding="utf-8"), their
    if given == subprocess.DEVNULL:
        file = theirs.enter_context(open(os.devnull, "r+"))  # noqa: SIM115
        return None, file.fileno()
    if given is None:
        return None, number
    return None, given if isinstance(given, int) else given.fileno()
