"""The fork server's program: imports symbolicai once, then forks a child for each request.

    python fork_server.py SOCKET HOME OWNER

It ends with the process OWNER. `forked.py` is its client, and says what a request is.

The server has one thread and never runs test code: each child is forked from the same state, with
symbolicai, the SDKs and the vocabularies loaded, and without gptx_async. A child takes over the
file descriptors, environment and arguments of its request, and runs its program to the end of the
interpreter, so that exit status, signals, exit handlers and tracebacks are Python's own.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import struct
import sys
import types
from typing import Any

MOST_DESCRIPTORS = 32
ABOVE_ALL = 100
"""Where received descriptors wait, above the numbers that they get in the child."""


def preload() -> None:
    # No pools of threads: they do not survive a fork. One native thread remains, of the allocator
    # that Arrow brings; it prepares itself for forks by pthread_atfork.
    os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")
    os.environ.update(ARROW_DEFAULT_MEMORY_POOL="system")
    import tiktoken

    for module in ("aiohttp", "openai.resources.responses", "symai.extended"):
        importlib.import_module(module)
    for name in ("o200k_base", "cl100k_base"):
        tiktoken.get_encoding(name).encode("text")
    gc.collect()
    gc.freeze()  # the children's collections need not walk all of it


def serve(path: str, owner: int) -> tuple[dict[str, Any], list[int]] | None:
    """Fork a child for each request, and report how it ended.

    Returns:
        In a child its request, with its descriptors; in the server `None`, when the owner has
        ended.
    """
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(path + ".new")
    listening.listen(64)
    os.rename(path + ".new", path)  # only now do clients find it
    owned = os.pidfd_open(owner)
    children: dict[int, tuple[int, socket.socket]] = {}
    while True:
        ready, _, _ = select.select([listening.fileno(), owned, *children], [], [])
        if owned in ready:
            return None
        for descriptor in children.keys() & ready:
            pid, connection = children.pop(descriptor)
            os.close(descriptor)
            _reply(connection, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
            connection.close()
        if listening.fileno() in ready:
            connection, _ = listening.accept()
            _, descriptors, _, _ = socket.recv_fds(connection, 1, MOST_DESCRIPTORS)
            pid = os.fork()
            if not pid:
                connection.close()
                listening.close()
                for descriptor in (owned, *children):
                    os.close(descriptor)
                for _, other in children.values():
                    other.close()
                with open(descriptors[0], encoding="utf-8") as file:
                    return json.load(file), descriptors[1:]
            for descriptor in descriptors:
                os.close(descriptor)
            children[os.pidfd_open(pid)] = pid, connection
            _reply(connection, pid)


def _reply(connection: socket.socket, number: int) -> None:
    with contextlib.suppress(OSError):  # of a client that has gone
        connection.sendall(struct.pack("i", number))


def become(request: dict[str, Any], descriptors: list[int]) -> None:
    """Take over what a new process would have been started with."""
    moved = [fcntl.fcntl(each, fcntl.F_DUPFD_CLOEXEC, ABOVE_ALL) for each in descriptors]
    for each in descriptors:
        os.close(each)
    for each, number in zip(moved, request["descriptors"], strict=True):
        os.dup2(each, number)
        os.close(each)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if request["start_new_session"]:
        os.setsid()
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])


def run(command: list[str]) -> None:
    """Run `-c program`, `-m module` or a file, with arguments, as Python does."""
    option, *rest = command
    searched = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    sys.path[:0] = searched
    if option == "-c":
        sys.argv = ["-c", *rest[1:]]
        sys.path.insert(0, "")
        main = types.ModuleType("__main__")
        sys.modules["__main__"] = main
        exec(compile(rest[0], "<string>", "exec"), main.__dict__)
    elif option == "-m":
        sys.argv = rest
        sys.path.insert(0, os.getcwd())
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv = command
        sys.path.insert(0, os.path.dirname(option))
        runpy.run_path(option, run_name="__main__")


if __name__ == "__main__":
    path, home, owner = sys.argv[1:]
    ours = {os.path.dirname(__file__), *os.environ.pop("PYTHONPATH", "").split(os.pathsep)}
    sys.path[:] = [entry for entry in sys.path if entry not in ours]
    os.chdir(home)
    preload()
    work = serve(path, int(owner))
    if work is not None:
        become(*work)
        run(work[0]["command"])
