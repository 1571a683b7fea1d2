"""Forked children behave as new processes do: the same programs, run both ways."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from support.child import DEADLINE, run_child, run_python, start_python, without_slow_callbacks

pytestmark = pytest.mark.parametrize("fresh", [False, True], ids=["forked", "new"])

PIPE = subprocess.PIPE


@pytest.mark.parametrize(
    ("program", "code", "output", "errors"),
    [
        ("print('out'); import sys; print('err', file=sys.stderr)", 0, "out\n", "err\n"),
        ("import sys; sys.exit(7)", 7, "", ""),
        ("import sys; sys.exit('why')", 1, "", "why\n"),
        ("import os; os._exit(9)", 9, "", ""),
        ("import os; os.kill(os.getpid(), 15)", -15, "", ""),
        ("import atexit; atexit.register(print, 'exit'); print('end')", 0, "end\nexit\n", ""),
        ("import sys; print(sys.argv, __name__)", 0, "['-c', 'a', 'b'] __main__\n", ""),
        ("import sys; print(sys.stdin.read())", 0, "given\n", ""),
        (
            "import threading, time\n"
            "threading.Thread(target=lambda: (time.sleep(0.01), print('thread'))).start()",
            0,
            "thread\n",
            "",
        ),
        (
            "import asyncio, sqlite3, subprocess, sys\n"
            "async def main():\n"
            "    print(await asyncio.to_thread(str.upper, 'loop'))\n"
            "asyncio.run(main())\n"
            "print(*sqlite3.connect(':memory:').execute('SELECT 1').fetchone())\n"
            "sys.stdout.flush()\n"
            "subprocess.run([sys.executable, '-c', 'print(2)'], check=True)",
            0,
            "LOOP\n1\n2\n",
            "",
        ),
        (
            "import multiprocessing, signal\n"
            "print(multiprocessing.get_context('fork').Pool(2).map(abs, [-1, -2]))\n"
            "print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)",
            0,
            "[1, 2]\nTrue\n",
            "",
        ),
    ],
)
@pytest.mark.slow
def test_a_program_ends_and_writes_as_in_a_process_of_its_own(
    fresh: bool, program: str, code: int, output: str, errors: str
) -> None:
    done = run_python("-c", program, "a", "b", fresh=fresh, given="given")
    assert (done.returncode, done.stdout, done.stderr) == (code, output, errors)


@pytest.mark.slow
def test_an_uncaught_error_ends_it_with_a_traceback(fresh: bool) -> None:
    done = run_python("-c", "def f():\n    raise ValueError('why')\nf()", fresh=fresh)
    assert done.returncode == 1
    assert done.stderr.startswith("Traceback (most recent call last):\n")
    assert 'File "<string>", line 2, in f\n' in done.stderr
    assert done.stderr.endswith("ValueError: why\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
@pytest.mark.slow
def test_a_signal_ends_it(fresh: bool, number: signal.Signals) -> None:
    program = "print('started', flush=True); import threading; threading.Event().wait()"
    with start_python("-c", program, stdout=PIPE, stderr=PIPE, fresh=fresh) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
        assert process.poll() is None
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.01)
        with pytest.raises(subprocess.TimeoutExpired):
            process.communicate(timeout=0.01)
        process.send_signal(number)
        _, errors = process.communicate(timeout=DEADLINE)
    assert process.returncode == process.poll() == -number
    assert ("KeyboardInterrupt" in errors) == (number == signal.SIGINT)


@pytest.mark.slow
def test_it_has_the_directory_environment_and_descriptors_that_it_is_given(
    fresh: bool, tmp_path: Path
) -> None:
    (tmp_path / "told.py").write_text(
        "import os, sys; print(os.getcwd(), os.environ['A'], sys.argv)"
    )
    environment = {**os.environ, "A": "B"}
    done = run_python("-m", "told", "x", fresh=fresh, cwd=tmp_path, env=environment)
    assert done.stdout == f"{tmp_path} B ['{tmp_path}/told.py', 'x']\n", done.stderr
    done = run_python("told.py", fresh=fresh, cwd=tmp_path, env=environment)
    assert done.stdout == f"{tmp_path} B ['told.py']\n", done.stderr
    environment["PYTHONPATH"] = str(tmp_path)
    done = run_python("-c", "import told", fresh=fresh, env=environment)
    assert done.stdout == f"{os.getcwd()} B ['-c']\n", done.stderr
    program = "import socket, sys; socket.socket(fileno=int(sys.argv[1])).sendall(b'here')"
    ours, theirs = socket.socketpair()
    with ours, theirs:
        number = str(theirs.fileno())
        with start_python("-c", program, number, pass_fds=[int(number)], fresh=fresh) as process:
            assert ours.recv(10) == b"here"
            assert process.wait(DEADLINE) == 0


@pytest.mark.slow
def test_it_may_lead_a_session(fresh: bool) -> None:
    program = "import os; print(os.getsid(0) == os.getpid())"
    for leads in (True, False):
        with start_python(
            "-c", program, stdout=PIPE, start_new_session=leads, fresh=fresh
        ) as process:
            assert process.communicate(timeout=DEADLINE)[0] == f"{leads}\n"


@pytest.mark.slow
def test_its_errors_may_go_to_its_output(fresh: bool) -> None:
    program = "import sys; print('err', file=sys.stderr); print('out')"
    with start_python("-c", program, stdout=PIPE, stderr=subprocess.STDOUT, fresh=fresh) as process:
        assert process.communicate(timeout=DEADLINE)[0] == "err\nout\n"


@pytest.mark.linux
@pytest.mark.slow
def test_symbolicai_is_there_and_the_package_is_not_yet(fresh: bool) -> None:
    program = "import sys; print('symai' in sys.modules, 'gptx_async' in sys.modules)"
    assert run_child(program, strict=False, fresh=fresh).stdout == f"{not fresh} False\n"


def test_slow_callbacks_are_left_out_and_nothing_else(fresh: bool) -> None:
    program = """
    import asyncio, sys, time
    async def main():
        time.sleep(0.2)
        print("error", file=sys.stderr)
    asyncio.run(main())
    """
    assert run_child(program).stderr == "error\n"
    line = "Executing <Task finished name='Task-1' coro=<main() done>> took 0.200 seconds\n"
    assert without_slow_callbacks(f"a\n{line}b\n{line}") == "a\nb\n"
