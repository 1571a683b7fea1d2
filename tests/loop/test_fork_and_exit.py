"""Forks and exits of processes with requests in flight over real HTTP."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable

import pytest

from gptx_async.testing import FakeOpenAI
from support.child import DEADLINE, run_child
from support.client_calls import CODE as CLIENT_CALLS
from support.hostile import HostileServer, Received, answer

PRELUDE = (
    CLIENT_CALLS
    + """
import atexit, concurrent.futures, gc, multiprocessing, os, signal, sys, threading, time
import openai
from gptx_async.batch.driver import wait_for
from gptx_async.symbolicai.v1.stand_in_client import StandInClient
from gptx_async.errors import GPTXAsyncError, ServiceClosedError
from gptx_async.loop.call import Call
from gptx_async.loop.service import default_service

client = StandInClient(openai.OpenAI(max_retries=0), CallsOnLoop())

def ask(text="text"):
    messages = [{"role": "user", "content": text}]
    answer = client.chat.completions.create(model="gpt-4o-mini", messages=messages)
    return answer.choices[0].message.content

def ask_or_error(text="text"):
    try:
        return ask(text)
    except GPTXAsyncError as error:
        return type(error).__name__
"""
)


def run(program: str, until: Callable[[], object] = lambda: None) -> tuple[list[str], str, int]:
    """Run a program after the prelude; return its output lines, standard error and exit code."""
    completed = run_child(PRELUDE + program, until=until)
    return completed.stdout.split("\n")[:-1], completed.stderr, completed.returncode


@pytest.fixture(autouse=True)
def _server(fake_openai: FakeOpenAI) -> None:
    fake_openai.reply = lambda request: f"answer to {request.body['messages'][0]['content']}"


FORKED_CHILD = """
ask("before the fork")
def tell():  # one write per line: three processes may print concurrently
    print(ask("of the parent") + "\\n", end="", flush=True)
parents = [threading.Thread(target=tell) for _ in range(3)]
for thread in parents:
    thread.start()
pid = os.fork()
if pid == 0:
    print(ask("of the child"), flush=True)
    {leave}
print("child ended with", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
ask("after the child")
for thread in parents:
    thread.join()
print(ask("after the fork"))
"""


@pytest.mark.parametrize("leave", ["sys.exit(0)", "os._exit(0)"])
@pytest.mark.slow
def test_the_parents_requests_finish_when_it_forks_in_the_middle_of_them(
    monkeypatch: pytest.MonkeyPatch, leave: str
) -> None:
    """A child that closes inherited clients breaks the parent's sockets (redis-py#2910)."""
    child_ended = threading.Event()

    def respond(received: Received, connection: socket.socket) -> bool:
        if received.question == "of the parent":
            assert child_ended.wait(DEADLINE)
        if received.question == "after the child":
            child_ended.set()
        connection.sendall(answer(f"answer to {received.question}"))
        return False

    with HostileServer(respond) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
        lines, errors, code = run(FORKED_CHILD.format(leave=leave))
    assert sorted(lines[:2]) == ["answer to of the child", "child ended with 0"], errors
    assert lines[2:] == ["answer to of the parent"] * 3 + ["answer to after the fork"]
    assert (errors, code) == ("", 0)


@pytest.mark.slow
def test_a_fork_from_a_thread_while_another_holds_the_start_lock() -> None:
    """Without a new lock the child hangs (fsspec/filesystem_spec#1790, zarr-python#2812)."""
    lines, errors, code = run("""
service = default_service()
held, go_on = threading.Event(), threading.Event()
def hold():
    with service._lock:
        held.set()
        go_on.wait(10)
threading.Thread(target=hold).start()
held.wait(10)
def fork():
    pid = os.fork()
    if pid == 0:
        print(ask("of the child"), flush=True)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
forker = threading.Thread(target=fork)
forker.start()
forker.join()
go_on.set()
print(ask("of the parent"))
""")
    assert lines == ["answer to of the child", "0", "answer to of the parent"], errors
    assert (errors, code) == ("", 0)


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
@pytest.mark.slow
def test_the_children_of_multiprocessing_start_their_own_loop(method: str) -> None:
    """The program is a file, because spawn and forkserver import what they run."""
    program = """
import pathlib, sys, tempfile
folder = pathlib.Path(tempfile.mkdtemp())
(folder / "asking.py").write_text(sys.argv[1])
sys.path.insert(0, str(folder))
import asking, multiprocessing
print(asking.ask("of the parent"))
context = multiprocessing.get_context(sys.argv[2])
with context.Pool(2) as pool:
    print(pool.map(asking.ask, ["a", "b", "c"]))
print(asking.ask("after it"))
"""
    completed = run_child(program, PRELUDE, method, strict=False, fresh=True)
    assert completed.stdout.split("\n")[:-1] == [
        "answer to of the parent",
        "['answer to a', 'answer to b', 'answer to c']",
        "answer to after it",
    ], completed.stderr
    assert (completed.stderr, completed.returncode) == ("", 0)


@pytest.mark.parametrize("daemon", [True, False])
@pytest.mark.parametrize("end", ["", "sys.exit(3)"])
@pytest.mark.slow
def test_exit_with_requests_in_flight_is_quick_and_silent(
    fake_openai: FakeOpenAI, daemon: bool, end: str
) -> None:
    fake_openai.hold()
    program = f"""
for _ in range(5):
    threading.Thread(target=ask_or_error, daemon={daemon}).start()
sys.stdin.readline()  # until the requests have reached the server
began = time.monotonic()
def report():
    print("ended in time" if time.monotonic() - began < 60 else "ended late", flush=True)
atexit.register(report)  # runs after the interpreter has waited for non-daemon threads
{end}
"""
    lines, errors, code = run(
        program, until=lambda: fake_openai.wait_for(lambda server: server.in_flight == 5)
    )
    fake_openai.release()
    assert lines == ["ended in time"], errors
    assert (errors, code) == ("", 3 if end else 0)


@pytest.mark.slow
def test_a_thread_that_outlives_the_main_thread_gets_an_error() -> None:
    lines, errors, _ = run("""
def late():
    threading.main_thread().join()
    print(ask_or_error(), flush=True)
threading.Thread(target=late).start()
ask()
""")
    assert lines == ["ServiceClosedError"], errors


@pytest.mark.parametrize("warm", [True, False])
@pytest.mark.slow
def test_calls_in_exit_handlers_before_and_after_ours_answer_or_fail(warm: bool) -> None:
    """Handlers run in reverse order; ours is registered by the import (cpython#113964)."""
    program = (
        """
import atexit
atexit.register(lambda: print("after ours:", ask_or_error(), ask_or_error(), flush=True))
"""
        + PRELUDE
    )
    program += """
atexit.register(lambda: print("before ours:", ask_or_error("1"), ask_or_error("2"), flush=True))
"""
    completed = run_child(program + ("ask()" if warm else ""))
    lines = completed.stdout.split("\n")[:-1]
    if warm:
        assert lines[0] == "before ours: answer to 1 answer to 2", completed.stderr
    else:  # for a client's first request the SDK starts a thread, which Python no longer allows
        assert lines[0] == "before ours: ServiceClosedError ServiceClosedError", completed.stderr
    assert lines[1] == "after ours: ServiceClosedError ServiceClosedError"
    assert (completed.stderr, completed.returncode) == ("", 0)


@pytest.mark.slow
def test_the_first_call_may_be_made_while_a_module_is_imported() -> None:
    """Waiting for another thread during an import hangs if that thread imports (crochet#43)."""
    program = """
import pathlib, sys, tempfile
folder = pathlib.Path(tempfile.mkdtemp())
(folder / "asks_when_imported.py").write_text(sys.argv[1] + "print(ask())")
sys.path.insert(0, str(folder))
import asks_when_imported
"""
    completed = run_child(program, PRELUDE)
    assert completed.stdout == "answer to text\n", completed.stderr


@pytest.mark.slow
def test_a_call_of_a_finaliser_on_the_loop_thread_fails_and_the_loop_lives() -> None:
    """A finaliser that waits for its own thread would never return (h5py#2019)."""
    lines, errors, _ = run("""
class Asks:
    def __init__(self):
        self.myself = self  # a cycle, which only the garbage collector can free
    def __del__(self):
        print(threading.current_thread().name, ask_or_error(), flush=True)

async def collect(scope):
    Asks()
    gc.collect()

gc.disable()
default_service().run(collect)
print(ask())
""")
    assert lines == ["gptx_async-loop LoopThreadError", "answer to text"], errors


@pytest.mark.slow
def test_a_call_of_a_finaliser_in_the_middle_of_a_submit_does_not_hang() -> None:
    lines, errors, _ = run("""
class Asks:
    def __del__(self):
        print("finaliser:", ask_or_error(), flush=True)

service = default_service()
with service._lock:  # as the garbage collector may find it
    Asks()
print(ask())
""")
    assert lines == ["finaliser: answer to text", "answer to text"], errors


@pytest.mark.linux
@pytest.mark.slow
def test_closing_and_starting_again_leaves_no_thread_and_no_descriptor() -> None:
    lines, _, _ = run("""
def cycle():
    ask()
    default_service().close()

def figures():
    gc.collect()
    return threading.active_count(), len(os.listdir("/proc/self/fd"))

cycle()
before = figures()
for _ in range(50):
    cycle()
print(figures() == before, before, figures())
""")
    assert lines[0].startswith("True"), lines


@pytest.mark.slow
def test_ctrl_c_in_a_query_is_seen_by_the_server_before_it_is_raised(
    fake_openai: FakeOpenAI,
) -> None:
    fake_openai.hold()
    program = """
def interrupt():
    sys.stdin.readline()  # until the request has reached the server
    os.kill(os.getpid(), signal.SIGINT)
threading.Thread(target=interrupt).start()
try:
    ask()
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""
    lines, errors, _ = run(
        program, until=lambda: fake_openai.wait_for(lambda server: server.in_flight == 1)
    )
    fake_openai.wait_for(lambda server: server.disconnected == 1)
    fake_openai.release()
    assert lines == ["interrupted"], errors
