"""Large responses are limited in size, and decoded and parsed without delaying other calls.

Each test runs on both paths of a call: the package's route, and the SDK's path, which is used when
there is a listener to the SDK's log.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import logging
import pickle
import socket
import threading
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from symai.backend.engines.neurosymbolic.engine_openai_gptX_chat import GPTXChatEngine

from gptx_async import AsyncBatchEngine, AsyncGPTXBatchEngine, errors
from gptx_async.cli import doctor
from gptx_async.transport import response_body as body
from gptx_async.transport import route as wire
from support import TESTS
from support.child import run_child
from support.hostile import HostileServer, Received, answer, completion, make_argument, outcome_of

MIB = 2**20
ACCOUNT = ("sk-of-the-tests", "gpt-4o-mini")


@pytest.fixture(params=["own path", "SDK's path"])
def path(request: pytest.FixtureRequest) -> Iterator[str]:
    logger = logging.getLogger("openai._base_client")
    level = logger.level
    if request.param == "SDK's path":
        logger.setLevel(logging.DEBUG)
    yield request.param
    logger.setLevel(level)


def http(content: bytes, *, status: int = 200, encoding: str = "", chunked: bool = False) -> bytes:
    head = f"HTTP/1.1 {status} Status\r\ncontent-type: application/json\r\n"
    if encoding:
        head += f"content-encoding: {encoding}\r\n"
    if not chunked:
        return f"{head}content-length: {len(content)}\r\n\r\n".encode() + content
    size = f"{len(content):x}".encode()
    head += "transfer-encoding: chunked\r\n\r\n"
    return head.encode() + size + b"\r\n" + content + b"\r\n0\r\n\r\n"


def of_size(size: int) -> bytes:
    return json.dumps(completion("x" * size)).encode()


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[bytes], HostileServer]]:
    """Return a function that starts a server which answers every request with given bytes."""
    with HostileServer(lambda _received, connection: connection.sendall(answer("small"))) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)

        def serve(response: bytes) -> HostileServer:
            server.respond = lambda _received, connection: connection.sendall(response)
            return server

        yield serve


@pytest.fixture
def sync_engine(serve: Callable[[bytes], HostileServer]) -> Iterator[Any]:
    engine = GPTXChatEngine(*ACCOUNT)
    yield engine
    engine.client.close()


def ask(engine: Any, text: str = "text") -> Any:
    argument = make_argument(text)
    engine.prepare(argument)
    return engine(argument)


TOO_LARGE: dict[str, Callable[[bytes], bytes]] = {
    "plain": http,
    "chunked": lambda content: http(content, chunked=True),
    "gzip": lambda content: http(gzip.compress(content), encoding="gzip"),
    "deflate": lambda content: http(zlib.compress(content), encoding="deflate"),
    "gzip twice": lambda content: http(
        gzip.compress(gzip.compress(content)), encoding="gzip, gzip"
    ),
    "gzip in chunks": lambda content: http(gzip.compress(content), encoding="gzip", chunked=True),
    "a 400": lambda content: http(gzip.compress(content), status=400, encoding="gzip"),
    "a 500": lambda content: http(content, status=500),
}


@pytest.mark.parametrize("form", TOO_LARGE)
@pytest.mark.slow
def test_a_response_that_is_too_large_is_an_error_and_not_asked_for_again(
    serve: Callable[[bytes], HostileServer], path: str, form: str
) -> None:
    server = serve(TOO_LARGE[form](of_size(2 * MIB)))
    engine = AsyncGPTXBatchEngine(*ACCOUNT, max_response_bytes=MIB)
    with pytest.raises(errors.ResponseTooLargeError, match="max_response_bytes") as caught:
        ask(engine)
    assert isinstance(caught.value, ValueError)
    [(outputs, metadata)] = engine([make_argument("text")])
    assert type(metadata["exception"]) is errors.ResponseTooLargeError
    assert outputs == [str(caught.value)]
    assert len(server.received) == 2
    serve(answer("small"))
    assert ask(engine)[0] == ["small"]


def test_a_response_that_declares_too_many_bytes_is_not_awaited(
    serve: Callable[[bytes], HostileServer], path: str
) -> None:
    """The server never sends the body."""
    head = http(b"").replace(b"content-length: 0", b"content-length: 1000000000")
    gone = threading.Event()

    def respond(_received: Received, connection: socket.socket) -> None:
        connection.sendall(head)
        if not connection.recv(1):  # the client has closed it
            gone.set()

    serve(b"").respond = respond
    engine = AsyncGPTXBatchEngine(
        *ACCOUNT, max_response_bytes=MIB, timeout=20, client_max_retries=0
    )
    with pytest.raises(errors.ResponseTooLargeError):
        ask(engine)
    assert gone.wait(20)


@pytest.mark.parametrize("form", ["plain", "gzip", "gzip twice", "deflate", "gzip in chunks"])
@pytest.mark.parametrize("size", [10, 300_000, 2 * MIB])
@pytest.mark.slow
def test_a_response_within_the_bound_is_answered_as_by_the_sync_engine(
    serve: Callable[[bytes], HostileServer], sync_engine: Any, path: str, form: str, size: int
) -> None:
    serve(TOO_LARGE[form](of_size(size)))
    theirs, ours = ask(sync_engine), ask(AsyncGPTXBatchEngine(*ACCOUNT))
    assert ours[0] == theirs[0] == ["x" * size]
    assert ours[1]["raw_output"] == theirs[1]["raw_output"]


@pytest.mark.parametrize("size", [10, 300_000])
def test_an_error_keeps_its_headers_and_body(
    serve: Callable[[bytes], HostileServer], sync_engine: Any, path: str, size: int
) -> None:
    content = json.dumps({"error": {"message": "x" * size, "code": "odd"}}).encode()
    serve(http(gzip.compress(content), status=400, encoding="gzip"))
    seen = []
    for engine in (sync_engine, AsyncGPTXBatchEngine(*ACCOUNT)):
        with pytest.raises(ValueError, match="Error code: 400") as caught:
            ask(engine)
        error: Any = caught.value.__context__
        response = error.response
        seen.append(
            (str(caught.value), error.code, error.body, dict(response.headers), response.text)
        )
    assert seen[0] == seen[1]
    assert seen[1][3]["content-encoding"] == "gzip"


@pytest.mark.parametrize("status", [200, 400])
@pytest.mark.parametrize("form", ["plain", "gzip"])
def test_a_large_response_is_decoded_and_parsed_off_the_loop(
    serve: Callable[[bytes], HostileServer],
    monkeypatch: pytest.MonkeyPatch,
    path: str,
    form: str,
    status: int,
) -> None:
    threads: list[tuple[str, str]] = []

    def watch(owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def note(*args: Any, **kwargs: Any) -> Any:
            threads.append((name, threading.current_thread().name))
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, note)

    watch(body, "_collect")
    watch(json, "loads")
    watch(wire, "parse")
    compress = gzip.compress if form == "gzip" else bytes
    encoding = "gzip" if form == "gzip" else ""
    for size, is_large in ((10, False), (600_000, True)):
        serve(http(compress(of_size(size)), status=status, encoding=encoding))
        threads.clear()
        outcome_of(lambda: ask(AsyncGPTXBatchEngine(*ACCOUNT)))
        parsed = [thread for name, thread in threads if name != "_collect" and "gptx" in thread]
        assert parsed
        assert all(("executor" in thread) == is_large for thread in parsed)
        collected = [thread for name, thread in threads if name == "_collect"]
        assert any("executor" in thread for thread in collected) == (is_large and form == "gzip")


def test_the_bound_is_an_option(serve: Callable[[bytes], HostileServer]) -> None:
    engine = AsyncGPTXBatchEngine(*ACCOUNT)
    assert engine.max_response_bytes == 64 * MIB
    for wrong in (0, -1, 1.5, "64M"):
        with pytest.raises(errors.ConfigurationError, match="max_response_bytes"):
            engine.max_response_bytes = wrong  # type: ignore[assignment]
    engine.max_response_bytes = 1000
    assert pickle.loads(pickle.dumps(engine)).max_response_bytes == 1000
    serve(http(of_size(2000)))
    with pytest.raises(errors.ResponseTooLargeError):
        ask(engine)
    engine.max_response_bytes = None
    assert ask(engine)[0] == ["x" * 2000]


BOMB = """
import resource, sys, threading
sys.path.insert(0, sys.argv[1])
from support.hostile import make_argument
from gptx_async import AsyncGPTXBatchEngine
import logging
if sys.argv[2] == "SDK's path":
    logging.getLogger("openai._base_client").setLevel(logging.DEBUG)
engine = AsyncGPTXBatchEngine("sk-test", "gpt-4o-mini")

def ask(text):
    [outputs, metadata] = engine([make_argument(text)])[0]
    error = metadata.get("exception")
    return type(error).__name__ if error else outputs[0]

print(ask("first"), flush=True)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
outcomes = []
threads = [threading.Thread(target=lambda: outcomes.append(ask("bomb"))) for _ in range(2)]
for thread in threads:
    thread.start()
for _ in range(20):
    ask("meanwhile")
for thread in threads:
    thread.join()
print(*outcomes, sep="\\n")
grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
print("grown" if grown > 500 else "bounded", grown)
"""


@pytest.mark.timeout(300)
@pytest.mark.parametrize("status", [200, 400])
@pytest.mark.slow
def test_a_gzip_bomb_blocks_no_call_and_takes_little_memory(path: str, status: int) -> None:
    """955 KiB decode to 960 MiB; httpx would decode it in one go, on the loop, in 3 GiB or more."""
    compressor = zlib.compressobj(9, zlib.DEFLATED, zlib.MAX_WBITS | 16)
    bomb = b"".join([*(compressor.compress(bytes(MIB)) for _ in range(960)), compressor.flush()])
    assert len(bomb) < MIB
    small, large = answer("small"), http(bomb, status=status, encoding="gzip")
    with (
        HostileServer(
            lambda received, connection: connection.sendall(
                large if "bomb" in received.question else small
            )
        ) as server,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("OPENAI_BASE_URL", server.base_url)
        tests = TESTS
        completed = run_child(BOMB, tests, path, strict=False, seconds=200)
    lines = [line for line in completed.stdout.splitlines() if line]
    assert lines[0] == "small", completed.stderr
    assert lines[1:3] == ["ResponseTooLargeError"] * 2, completed.stderr
    assert lines[3].startswith("bounded"), lines[3]


def test_another_sdk_has_the_bound_as_well(
    serve: Callable[[bytes], HostileServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    from symai.backend.engines.neurosymbolic.engine_cerebras import CerebrasEngine

    server = serve(http(gzip.compress(of_size(2 * MIB)), encoding="gzip"))
    monkeypatch.setenv("CEREBRAS_BASE_URL", server.origin)
    engine = AsyncBatchEngine(
        CerebrasEngine("csk-test", "cerebras:gpt-oss-120b"), max_response_bytes=MIB
    )
    received = len(server.received)
    [(_, metadata)] = engine([make_argument("text")])
    assert isinstance(metadata["exception"], errors.ResponseTooLargeError)
    assert len(server.received) == received + 1


def doctor_check(server: HostileServer) -> doctor.Check:
    return doctor._ask_base_url(
        doctor.Subject("gpt-4o-mini", "sk-test", "", server.base_url, 1, timeout=2.0)
    )


def test_doctor_reads_no_more_than_the_bound(serve: Callable[[bytes], HostileServer]) -> None:
    server = serve(http(gzip.compress(bytes(65 * MIB)), encoding="gzip"))
    check = doctor_check(server)
    assert (check.status, "ResponseTooLargeError" in check.text) == ("fail", True)


@pytest.mark.slow
def test_doctor_waits_for_a_response_that_drips_no_longer_than_its_timeout() -> None:
    gone = threading.Event()

    def drip(_received: Received, connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n")
        with contextlib.suppress(OSError):
            while not gone.wait(0.05):
                connection.sendall(b" ")
        gone.set()

    with HostileServer(drip) as server:
        check = doctor_check(server)
        assert gone.wait(30)
    assert (check.status, "does not answer within 2 s" in check.text) == ("fail", True)
