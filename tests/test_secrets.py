"""Keys: sent to the server, and to be read nowhere else.

That no test of the suite prints or logs one is seen to by `secrets_scan`, which is tested here.
"""

from __future__ import annotations

import asyncio
import logging
import os
import pickle
import reprlib
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import openai
import pytest
from symai import Symbol

import gptx_async
from gptx_async import AsyncGPTXBatchEngine
from gptx_async.errors import GPTXAsyncError
from gptx_async.loop.service import default_service
from gptx_async.testing import (
    HTML,
    BadJSON,
    BatchScheduler,
    EmptyBody,
    EmptyChoices,
    FakeOpenAI,
    Fault,
    HTTPFault,
    NoChoices,
    Reset,
    Stall,
    TruncatedJSON,
)
from gptx_async.transport.settings import ClientSettings
from support.child import DEADLINE
from support.client_calls import CODE as CLIENT_CALLS
from support.hostile import HostileServer, make_argument
from support.secrets_scan import keys_in

KEY, MODEL = "sk-of-the-secrets-0123456789", "gpt-4o-mini"

FAULTS: dict[str, Fault] = {
    **{f"status {status}": HTTPFault(status) for status in (400, 401, 403, 404, 429, 500, 503)},
    "no quota": HTTPFault(429, code="insufficient_quota"),
    "bad JSON": BadJSON(),
    "empty body": EmptyBody(),
    "HTML": HTML(),
    "truncated JSON": TruncatedJSON(),
    "no choices": NoChoices(),
    "empty choices": EmptyChoices(),
    "reset before": Reset("before"),
    "reset in the middle": Reset("middle"),
    "stall": Stall(),
    "redirect to nowhere": HTTPFault(307, headers={"location": "http://127.0.0.1:9/v1"}),
}


@pytest.fixture
def engine(fake_openai: FakeOpenAI) -> Iterator[AsyncGPTXBatchEngine]:
    engine = gptx_async.install(KEY, MODEL, client_max_retries=0, rate_limit_patience=0)
    yield engine
    gptx_async.uninstall()


@pytest.fixture
def log() -> Iterator[list[str]]:
    """Every line that anybody logs, however quiet its logger was made, with its traceback."""
    lines: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(self.format(record))
            lines.append(repr(record.__dict__))

    root, handler = logging.getLogger(), Keep()
    loggers = [root, *(each for each in _loggers() if not each.name.startswith("asyncio."))]
    before = [(each, each.level, each.disabled) for each in loggers]
    for each in loggers:
        each.setLevel(logging.DEBUG)
    root.addHandler(handler)
    yield lines
    root.removeHandler(handler)
    for each, level, disabled in before:
        each.setLevel(level)
        each.disabled = disabled


def _loggers() -> list[logging.Logger]:
    for name in ("openai", "httpx", "httpx2", "httpcore", "httpcore2", "aiohttp.client", "asyncio"):
        logging.getLogger(name)
    known = logging.getLogger().manager.loggerDict.values()
    return [each for each in known if isinstance(each, logging.Logger)]


def texts_of(error: BaseException) -> Iterator[str]:
    """Say all that may be said of an exception, and of those that it came from."""
    yield "".join(traceback.format_exception(error))
    seen: set[int] = set()
    errors: list[BaseException | None] = [error]
    while errors:
        each = errors.pop()
        if each is None or id(each) in seen:
            continue
        seen.add(id(each))
        yield from (str(each), repr(each), repr(each.args))
        yield from locals_of(each.__traceback__)
        errors += [each.__cause__, each.__context__]


def locals_of(trace: TracebackType | None) -> Iterator[str]:
    """Show the variables of the package's own frames, as debuggers and rich tracebacks do."""
    while trace is not None:
        if "gptx_async" in trace.tb_frame.f_code.co_filename:
            for value in trace.tb_frame.f_locals.values():
                yield reprlib.repr(value)
                yield repr(value)
        trace = trace.tb_next


def assert_no_key(*texts: object) -> None:
    for text in texts:
        shown = text if isinstance(text, str) else repr(text)
        assert KEY not in shown
        assert not keys_in(shown)


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS.keys())
@pytest.mark.slow
def test_a_failed_item_tells_no_key(
    engine: AsyncGPTXBatchEngine, fake_openai: FakeOpenAI, fault: Fault, log: list[str]
) -> None:
    fake_openai.reply = lambda request: fault if "bad" in request.user_text else "answer"
    outputs, metadatas = engine.forward(
        [make_argument("good"), make_argument("bad")], timeout=0.5 if fault == Stall() else None
    )
    assert_no_key(outputs, metadatas, *log)
    assert "error" not in metadatas[0]
    failure = metadatas[1].get("exception")
    if failure is None:
        assert isinstance(fault, EmptyChoices)
    else:
        assert_no_key(*texts_of(failure))
    assert KEY.encode() not in pickle.dumps((outputs, metadatas))
    assert log, "the loggers do speak"
    assert fake_openai.requests[-1].api_key == KEY


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS.keys())
@pytest.mark.slow
def test_a_query_that_fails_tells_no_key(
    engine: AsyncGPTXBatchEngine, fake_openai: FakeOpenAI, fault: Fault
) -> None:
    fake_openai.faults = lambda _request: fault
    engine.timeout = 0.5 if fault == Stall() else None
    given: list[BaseException] = []

    def remedy(_engine: Any, error: Exception, _callback: Any, _argument: Any) -> Any:
        given.append(error)
        raise error

    for keywords in ({}, {"except_remedy": remedy}):
        try:
            Symbol("text").query("Answer.", **keywords)
        except Exception as error:
            given.append(error)
    for each in given:
        assert_no_key(*texts_of(each))
    assert given or isinstance(fault, EmptyChoices)


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS.keys())
def test_an_sdk_error_that_a_remedy_raises_again_takes_no_key_into_a_pickle(
    engine: AsyncGPTXBatchEngine, fake_openai: FakeOpenAI, fault: Fault
) -> None:
    """Such an error has its request, and that its headers."""

    def remedy(_engine: Any, error: Exception, _callback: Any, _argument: Any) -> Any:
        raise error

    fake_openai.faults = lambda _request: fault
    outputs, metadatas = engine.forward(
        [make_argument("text", except_remedy=remedy)], timeout=0.5 if fault == Stall() else None
    )
    try:
        pickled = pickle.dumps((outputs, metadatas))
    except Exception as error:  # it may be one that cannot be pickled
        assert_no_key(*texts_of(error))
    else:
        assert KEY.encode() not in pickled


def test_an_error_without_a_request_that_a_remedy_raises_harms_no_other_item(
    engine: AsyncGPTXBatchEngine, fake_openai: FakeOpenAI
) -> None:
    def remedy(_engine: Any, _error: Exception, _callback: Any, _argument: Any) -> Any:
        raise openai.APIError("made by hand", request=None, body=None)  # type: ignore[arg-type]

    fake_openai.reply = lambda request: HTTPFault(400) if "bad" in request.user_text else "answer"
    outputs, metadatas = engine.forward(
        [make_argument("good"), make_argument("bad", except_remedy=remedy)]
    )
    assert outputs == [["answer"], ["made by hand"]]
    assert isinstance(metadatas[1]["exception"], openai.APIError)


def test_a_key_is_found_behind_a_cause_and_behind_a_context(
    engine: AsyncGPTXBatchEngine, fake_openai: FakeOpenAI
) -> None:
    def remedy(_engine: Any, error: Exception, _callback: Any, _argument: Any) -> Any:
        raise KeyError("another") from LookupError("the cause")  # its context is the SDK's

    fake_openai.fail_next(HTTPFault(400))
    _, [metadata] = engine.forward([make_argument("text", except_remedy=remedy)])
    context = metadata["exception"].__context__
    assert isinstance(context, openai.BadRequestError)
    assert context.request.headers["authorization"] == "[secure]"


def test_what_is_shown_of_the_parts_tells_no_key(
    engine: AsyncGPTXBatchEngine, fake_openai: FakeOpenAI, capsys: pytest.CaptureFixture[str]
) -> None:
    client = engine.client
    assert client.api_key == KEY
    parts: list[Any] = [
        *(engine, client, client.chat, client.chat.completions, client.chat.completions.create),
        *(client.settings, default_service(), client.models.list, client.with_options(timeout=3)),
        openai.OpenAI(api_key="other", default_headers={"X-Api-Key": KEY}, organization="org"),
    ]
    parts.append(ClientSettings.of(parts[-1]))
    engine.command(verbose=True, time_clock=True, logging=True)
    engine([make_argument("text")])
    for part in parts:
        assert_no_key(repr(part), str(part), f"{part!r:>10}", reprlib.repr(part))
    assert_no_key(*capsys.readouterr())


def test_a_password_in_the_address_is_not_shown(fake_openai: FakeOpenAI) -> None:
    address = fake_openai.base_url.replace("://", f"://user:{KEY}@")
    engine = AsyncGPTXBatchEngine("other", MODEL, client_max_retries=0)
    engine.client.base_url = address
    assert_no_key(repr(engine.client.settings), repr(engine.client))
    fake_openai.fail_next(HTTPFault(400))
    _, metadatas = engine.forward([make_argument("text")])
    # Not the variables of its frames: httpx itself shows a request's whole address.
    assert_no_key("".join(traceback.format_exception(metadatas[0]["exception"])))


BAD_KEYS = {
    "a line's end": f"{KEY}\r\nx-other: header",
    "a null byte": f"{KEY}\0",
    "no ASCII": f"{KEY}\u4e2d",
    "a lone surrogate": f"{KEY}\ud800",
}


@pytest.mark.parametrize("key", BAD_KEYS.values(), ids=BAD_KEYS.keys())
def test_a_key_that_cannot_be_sent_is_not_told_either(
    fake_openai: FakeOpenAI, key: str, log: list[str]
) -> None:
    engine = AsyncGPTXBatchEngine(key, MODEL, client_max_retries=0)
    outputs, metadatas = engine.forward([make_argument("text")])
    error = metadatas[0]["exception"]
    assert_no_key(outputs, metadatas, "".join(traceback.format_exception(error)), *log)
    assert KEY.encode() not in pickle.dumps((outputs, metadatas))
    # The server has then seen the connection that was made and not used, and can close it.
    after = AsyncGPTXBatchEngine("sk-that-can-be-sent", MODEL, client_max_retries=0)
    assert "error" not in after.forward([make_argument("text")])[1][0]
    assert [request.api_key for request in fake_openai.requests] == ["sk-that-can-be-sent"]


@pytest.mark.parametrize(
    "options",
    [{"window": 0}, {"deadline": -1}, {"timeout": float("nan")}, {"client_max_retries": "many"}],
    ids=str,
)
def test_an_engine_that_cannot_be_built_tells_no_key(
    fake_openai: FakeOpenAI, options: dict[str, Any]
) -> None:
    def build() -> None:
        AsyncGPTXBatchEngine(KEY, MODEL, **options).forward([make_argument("text")])

    try:
        build()
    except Exception as error:
        assert_no_key("".join(traceback.format_exception(error)), repr(error))
    else:
        pytest.fail("it can be built with these")


def test_a_service_that_ends_under_a_call_tells_no_key(
    engine: AsyncGPTXBatchEngine, fake_openai: FakeOpenAI, in_thread: Callable[..., Any]
) -> None:
    fake_openai.hold()
    asked = in_thread(engine.forward, [make_argument("text")])
    fake_openai.wait_for(lambda server: server.in_flight == 1)
    default_service().close()
    _, metadatas = asked.result(10)
    error = metadatas[0]["exception"]
    assert isinstance(error.__context__, GPTXAsyncError)
    assert_no_key(*texts_of(error))


def test_a_cancelled_call_tells_no_key_to_a_loop_in_debug_mode(
    engine: AsyncGPTXBatchEngine, fake_openai: FakeOpenAI, log: list[str]
) -> None:
    """Which names tasks and handles, with what they call, when something is slow or left over."""
    fake_openai.hold()
    caught: list[BaseException] = []
    shown: list[str] = []

    async def show(_scope: Any) -> None:
        for task in asyncio.all_tasks():
            shown.extend([repr(task), str(task.get_coro()), *map(str, task.get_stack())])

    async def main() -> None:
        running = asyncio.create_task(engine.aforward([make_argument("text")]))
        await asyncio.to_thread(fake_openai.wait_for, lambda server: server.in_flight == 1)
        await asyncio.to_thread(default_service().run, show)
        running.cancel()
        try:
            await running
        except asyncio.CancelledError as error:
            caught.append(error)

    asyncio.run(main(), debug=True)
    assert shown
    assert_no_key(*shown, *log, *texts_of(caught[0]))


def test_a_query_that_fails_under_a_scheduler_tells_no_key(
    engine: AsyncGPTXBatchEngine, fake_openai: FakeOpenAI, log: list[str]
) -> None:
    fake_openai.faults = lambda _request: HTTPFault(401)
    scheduler = BatchScheduler(num_workers=2, batch_size=2)
    results = scheduler.forward(lambda text: Symbol(text).query("Answer."), ["one", "two"])
    assert all(isinstance(result, Exception) for result in results)
    assert_no_key(results, *log, *(text for error in results for text in texts_of(error)))


@pytest.mark.slow
def test_a_child_process_that_ends_by_an_error_tells_no_key(fake_openai: FakeOpenAI) -> None:
    """On its standard error: an uncaught error, one in a thread, and the stacks of a dump."""
    program = f"""{CLIENT_CALLS}
import faulthandler, logging, sys, threading
logging.basicConfig(level=logging.DEBUG)
import openai
from gptx_async.symbolicai.v1.stand_in_client import StandInClient
client = StandInClient(openai.OpenAI(max_retries=0), CallsOnLoop())
def ask():
    client.chat.completions.create(model="m", messages=[{{"role": "user", "content": "x"}}])
thread = threading.Thread(target=ask)
thread.start()
thread.join()
faulthandler.dump_traceback(all_threads=True)
ask()
"""
    fake_openai.faults = lambda _request: HTTPFault(401)
    child = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "OPENAI_API_KEY": KEY, "OPENAI_LOG": "debug"},
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert child.returncode == 1
    assert child.stderr.count("AuthenticationError") >= 2
    assert "DEBUG" in child.stderr
    assert_no_key(child.stdout, child.stderr)
    assert fake_openai.requests[0].api_key == KEY


def test_a_redirected_key_is_in_no_log(
    engine: AsyncGPTXBatchEngine, fake_openai: FakeOpenAI, log: list[str]
) -> None:
    with HostileServer(lambda _received, _connection: True) as other:
        location = {"location": f"{other.base_url}/chat/completions"}
        fake_openai.fail_next(HTTPFault(307, headers=location))
        _, metadatas = engine.forward([make_argument("text")])
        assert len(other.received) == 1
        assert KEY.encode() not in other.received[0].raw
    assert_no_key(*log, *texts_of(metadatas[0]["exception"]))


LEAKS = {
    "stdout": 'print("the key is {key}")',
    "stderr": 'import sys; print("Bearer {key}", file=sys.stderr)',
    "log": 'import logging; logging.getLogger("x").warning("key=%s", "{key}")',
    "child": 'import subprocess; subprocess.run(["echo", "{key}"], check=True)',
    "warning": 'import warnings; warnings.warn("with {key}")',
    "skip": 'import pytest; pytest.skip("for {key}")',
    "file": 'import pathlib; (pathlib.Path.home() / "engine.log").write_text("{key}")',
}


def run_pytest(folder: Path, *options: str, **modules: str) -> subprocess.CompletedProcess[str]:
    """Run a suite of its own, with the plugin and a home directory that is the suite's."""
    home = folder / "gptx_async-tests-home"
    home.mkdir()
    for name, tests in modules.items():
        (folder / f"{name}.py").write_text(tests)
    (folder / "conftest.py").write_text('pytest_plugins = ["support.secrets_scan"]\n')
    (folder / "pytest.ini").write_text("[pytest]\n")
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options, str(folder)],
        env={**os.environ, "HOME": str(home), "PYTHONPATH": os.path.dirname(__file__)},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )


@pytest.mark.parametrize("options", [(), ("-n", "2")], ids=["one process", "two workers"])
@pytest.mark.slow
def test_the_scan_finds_a_key_wherever_a_passing_test_leaves_it(
    tmp_path: Path, options: tuple[str, ...]
) -> None:
    lines = [f"def test_{name}():\n    {leak.format(key=KEY)}\n" for name, leak in LEAKS.items()]
    finished = run_pytest(tmp_path, *options, test_it="\n".join(lines))
    assert finished.returncode == 1, finished.stdout
    _, _, found = finished.stdout.partition("keys in what was printed or logged")
    for name in LEAKS:
        place = "the file engine.log" if name == "file" else f"test_it.py::test_{name},"
        assert place in found, f"the scan did not find the key of {name}: {finished.stdout}"
    assert KEY not in found, "the scan itself does not say the key"


@pytest.mark.slow
def test_the_scan_keeps_the_tests_of_two_workers_apart(tmp_path: Path) -> None:
    """A test that fails in one worker does not excuse a test that runs in the other."""
    fails = f"""
import pathlib, pytest
@pytest.fixture
def after():
    yield
    pathlib.Path({str(tmp_path)!r}, "failed").touch()
def test_fails(after):
    assert False
"""
    leaks = f"""
import pathlib, time
def test_leaks():
    print("{KEY}")
    while not pathlib.Path({str(tmp_path)!r}, "failed").exists():
        time.sleep(0.01)
"""
    options = ("-n", "2", "--dist", "loadfile")
    finished = run_pytest(tmp_path, *options, test_fails=fails, test_leaks=leaks)
    assert "1 failed, 1 passed" in finished.stdout
    _, _, found = finished.stdout.partition("keys in what was printed or logged")
    assert "test_leaks.py::test_leaks, captured stdout call" in found, finished.stdout


@pytest.mark.slow
def test_the_scan_passes_what_has_no_key_and_failed_tests_as_they_are(tmp_path: Path) -> None:
    tests = f"""
import pytest
def test_words():
    print("task-force disk-full sk-... risk-free")
@pytest.mark.xfail(strict=True)
def test_compares_headers():
    print("{KEY}")
    assert "{KEY}" == "other"
"""
    finished = run_pytest(tmp_path, test_it=tests)
    assert finished.returncode == 0, finished.stdout
    assert "keys in what" not in finished.stdout


def test_the_scan_is_loaded(pytestconfig: pytest.Config) -> None:
    assert pytestconfig.pluginmanager.has_plugin("gptx_async-secrets-scan")
