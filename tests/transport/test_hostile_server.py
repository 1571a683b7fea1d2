"""A server that breaks HTTP, JSON or its own declarations.

In each case `GPTXChatEngine` and the package's engine get the same bytes. The package's engine has
the same outcome or raises a typed error. It never hangs, and it answers the other items of a batch
and the next call.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import copy
import gzip
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import openai
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from symai.backend.engines.neurosymbolic.engine_openai_gptX_chat import GPTXChatEngine

from gptx_async import AsyncGPTXBatchEngine, errors
from gptx_async.loop.service import default_service
from support.hostile import (
    HostileServer,
    Received,
    Respond,
    answer,
    completion,
    make_argument,
    outcome_of,
    seen,
)

KEY, MODEL = "sk-of-the-hostile-server", "gpt-4o-mini"

DEADLINE = 20.0
"""Seconds within which each call must end, whatever the server does."""

InThread = Callable[..., concurrent.futures.Future[Any]]

# A response after which the server closes the connection says so. Otherwise the next request might
# be sent on the closing connection, which the sync engine cannot handle either.
CLOSE = b"connection: close\r\n"
JSON_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n" + CLOSE
BODY = json.dumps(completion("the answer")).encode()
WHOLE = JSON_HEAD + b"content-length: %d\r\n\r\n" % len(BODY) + BODY


def good(received: Received) -> bytes:
    return answer(f"answer to {received.question}")


def for_bad_ones(hostile: Respond) -> Respond:
    """Return a handler that answers normally, except for a question that contains 'bad'."""

    def respond(received: Received, connection: socket.socket) -> object:
        if "bad" in received.question:
            return hostile(received, connection)
        connection.sendall(good(received))
        return False

    return respond


def sending(content: bytes) -> Respond:
    """Return a handler that sends these bytes and closes the connection."""

    def respond(_received: Received, connection: socket.socket) -> bool:
        connection.sendall(content)
        return True

    return for_bad_ones(respond)


@dataclass
class Subject:
    """The two engines on one server."""

    server: HostileServer
    sync: Any
    engine: AsyncGPTXBatchEngine
    in_thread: InThread

    def ask(self, engine: Any, text: str) -> Any:
        def forward() -> Any:
            argument = make_argument(text)
            engine.prepare(argument)
            return engine.forward(argument)

        return self.in_thread(outcome_of, forward).result(DEADLINE)

    def ask_batch(self, *texts: str) -> list[Any]:
        arguments = [make_argument(text) for text in texts]
        outputs, metadatas = self.in_thread(self.engine.forward, arguments).result(DEADLINE)
        return [
            seen(metadata["exception"]) if metadata.get("error") else ("returned", output)
            for output, metadata in zip(outputs, metadatas, strict=True)
        ]


def answered(text: str) -> Any:
    return "returned", [f"answer to {text}"]


CONNECTION_ERROR = (
    *("raised", "ValueError", "Error during generation. Caused by: Connection error."),
    "APIConnectionError",
)


def ask_sync(subject: Subject) -> Any:
    """Send a bad item with the sync engine, and let the server close its connections."""
    outcome = subject.ask(subject.sync, "bad")
    subject.server.settle()
    return outcome


def check_like_sync(
    subject: Subject, differently: Any = None, check: Callable[[Any, Any], object] | None = None
) -> Any:
    """Send a bad item with both engines; return our engine's outcome for the item alone.

    Our engine sends it alone and in a batch.

    Args:
        subject: Both engines, whose outcomes must be the same.
        differently: Our engine's outcome where it is known to differ from the sync engine's.
        check: Compares the sync engine's outcome with ours, in place of `==`.
    """
    expected = ask_sync(subject)
    alone = subject.ask(subject.engine, "bad")
    subject.server.settle()
    if check is not None:
        check(expected, alone)
    elif differently is not None:
        assert alone == differently != expected
    else:
        assert alone == expected
    # The bad item comes last: a damaged head may not tell that the connection closes.
    batch = subject.ask_batch("first", "second", "bad")
    subject.server.settle()
    assert batch == [answered("first"), answered("second"), alone]
    assert subject.ask(subject.engine, "next") == answered("next")
    return alone


@pytest.fixture(scope="module")
def module_engines() -> Iterator[tuple[HostileServer, Any, AsyncGPTXBatchEngine]]:
    """Build the engines once, because it is slow, and with a timeout in case a call hangs."""
    environment = pytest.MonkeyPatch()
    with HostileServer(lambda received, connection: connection.sendall(good(received))) as server:
        environment.setenv("OPENAI_BASE_URL", server.base_url)
        options = {"client_max_retries": 0, "client_timeout": 10.0}
        sync = GPTXChatEngine(KEY, MODEL, **options)
        yield (
            server,
            sync,
            AsyncGPTXBatchEngine(KEY, MODEL, client_max_retries=0, client_timeout=10.0),
        )
        sync.client.close()
    environment.undo()
    default_service().close()


@pytest.fixture
def subject(
    module_engines: tuple[HostileServer, Any, AsyncGPTXBatchEngine], in_thread: InThread
) -> Iterator[Subject]:
    server, sync, engine = module_engines
    engine.client.timeout = 10.0
    yield Subject(server, sync, engine, in_thread)
    engine.client.timeout = 10.0


def chunked(*chunks: bytes) -> bytes:
    return JSON_HEAD + b"transfer-encoding: chunked\r\n\r\n" + b"".join(chunks)


def chunk(content: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(content), content)


def with_type(content_type: str, body: bytes = BODY) -> bytes:
    head = f"HTTP/1.1 200 OK\r\ncontent-type: {content_type}\r\ncontent-length: {len(body)}\r\n"
    return head.encode() + CLOSE + b"\r\n" + body


def with_header(line: bytes, body: bytes = BODY) -> bytes:
    return JSON_HEAD + b"content-length: %d\r\n%b\r\n\r\n" % (len(body), line) + body


def with_length(length: str) -> bytes:
    return JSON_HEAD + f"content-length: {length}\r\n\r\n".encode() + BODY


def with_status(line: str) -> bytes:
    return f"{line}\r\ncontent-length: {len(BODY)}\r\n".encode() + CLOSE + b"\r\n" + BODY


def redirect(status: int, location: str | None) -> bytes:
    line = "" if location is None else f"location: {location}\r\n"
    return f"HTTP/1.1 {status} Go\r\n{line}content-length: 0\r\n".encode() + CLOSE + b"\r\n"


def refusal(body: bytes) -> bytes:
    return with_type("application/json", body).replace(b"200 OK", b"400 Bad")


def nested(depth: int) -> bytes:
    return b"[" * depth + b"]" * depth


ANSWERS: dict[str, bytes] = {
    "header of 1 MB": with_header(b"x-big: " + b"x" * 2**20),
    "header of 1 MB that never ends": JSON_HEAD + b"x-big: " + b"x" * 2**20,
    "header of 1 MB in many lines": with_header(b"\r\n".join([b"x-many: " + b"x" * 100] * 10_000)),
    "header name of 1 MB": with_header(b"x" * 2**20 + b": big"),
    "status line of 1 MB": with_status("HTTP/1.1 200 " + "x" * 2**20),
    "header without a colon": with_header(b"no colon here"),
    "header with a null byte": with_header(b"x-null: a\0b"),
    "header that is not ASCII": with_header("x-name: \u00e9\u4e2d".encode()),
    "text/plain": with_type("text/plain"),
    "text/html": with_type("text/html"),
    "octets": with_type("application/octet-stream"),
    "no content type": WHOLE.replace(b"content-type: application/json\r\n", b""),
    "content type that is none": with_type(";;;=\\"),
    "charset that is none": with_type("application/json; charset=nonsense"),
    "UTF-16 that is said to be": with_type(
        "application/json; charset=utf-16", json.dumps(completion("wide")).encode("utf-16")
    ),
    "UTF-16 that is not said to be": with_type(
        "application/json", json.dumps(completion("wide")).encode("utf-16")
    ),
    "event stream": with_type("text/event-stream", b"data: [DONE]\n\n"),
    "gzip": with_header(b"content-encoding: gzip", gzip.compress(BODY)),
    "gzip that is none": with_header(b"content-encoding: gzip"),
    "gzip that is cut": with_header(b"content-encoding: gzip", gzip.compress(BODY)[:-20]),
    "encoding that is none": with_header(b"content-encoding: nonsense"),
    "chunks": chunked(chunk(BODY[:50]), chunk(BODY[50:]), b"0\r\n\r\n"),
    "chunks that are garbage": chunked(b"zz\r\n\xff\xfe\0garbage"),
    "chunk of a huge size": chunked(b"ffffffffffffffffffff\r\n", BODY),
    "chunk of a negative size": chunked(b"-5\r\n", BODY),
    "chunks without an end": chunked(chunk(BODY)),
    "chunk that is cut": chunked(chunk(BODY)[:40]),
    "chunk longer than it says": chunked(b"5\r\n" + BODY + b"\r\n0\r\n\r\n"),
    "chunk extension of 1 MB": chunked(b"5;" + b"x" * 2**20 + b"\r\n"),
    "length too large": with_length(str(len(BODY) + 10)),
    "length too small": with_length(str(len(BODY) - 10)),
    "length of zero": with_length("0"),
    "length that is negative": with_length("-1"),
    "length that is no number": with_length("many"),
    "length of 400 digits": with_length("9" * 400),
    "two lengths": with_length(f"{len(BODY)}\r\ncontent-length: {len(BODY) + 1}"),
    "length and chunks": with_length(f"{len(BODY)}\r\ntransfer-encoding: chunked"),
    "no length": JSON_HEAD + b"\r\n" + BODY,
    "nothing": b"",
    "half a status line": b"HTTP/1.",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "SSH": b"SSH-2.0-OpenSSH_9.6\r\n",
    "HTTP/0.9": BODY,
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/1.0": with_status("HTTP/1.0 200 OK"),
    "version that is none": with_status("HTTP/7.7 200 OK"),
    "status 0": with_status("HTTP/1.1 000 Zero"),
    "status 99": with_status("HTTP/1.1 99 Odd"),
    "status 600": with_status("HTTP/1.1 600 Odd"),
    "status 999": with_status("HTTP/1.1 999 Odd"),
    "status that is no number": with_status("HTTP/1.1 OK OK"),
    "status 204": b"HTTP/1.1 204 No Content\r\n" + CLOSE + b"\r\n",
    "status 304": b"HTTP/1.1 304 Not Modified\r\n" + CLOSE + b"\r\n",
    "status 101": b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",
    "200 times Continue": b"HTTP/1.1 100 Continue\r\n\r\n" * 200 + WHOLE,
    "redirect to nowhere": redirect(307, None),
    "redirect to a bad address": redirect(307, "http://[::1"),
    "redirect to a file": redirect(307, "file:///etc/passwd"),
    "redirect to itself": redirect(307, "/v1/chat/completions"),
    "body of 8 MB": with_type("application/json", json.dumps(completion("x" * 2**23)).encode()),
    "body of lists in lists": with_type("application/json", nested(100_000)),
    "body of NaN": with_type("application/json", b'{"choices": [NaN, Infinity, 1e999]}'),
    "body of a number of 5000 digits": with_type("application/json", b"9" * 5000),
    "body that is not UTF-8": with_type("application/json", b'{"choices": "\xff\xfe"}'),
    "body with a byte order mark": with_type("application/json", b"\xef\xbb\xbf" + BODY),
    "body with lone surrogates": with_type(
        "application/json", json.dumps(completion("\ud800")).encode()
    ),
    "body that is null": with_type("application/json", b"null"),
    "body that is a list": with_type("application/json", b"[" + BODY + b"]"),
    "body that is a string": with_type("application/json", json.dumps("choices").encode()),
    "error body that is a number": refusal(b"7"),
    "error body of lists in lists": refusal(nested(100_000)),
}


DIFFERENTLY = {
    "length too small": CONNECTION_ERROR,
    "length of zero": CONNECTION_ERROR,
    "version that is none": CONNECTION_ERROR,
    "status 101": (
        *("raised", "ValueError", "Error during generation. Caused by: Error code: 101"),
        "APIStatusError",
    ),
}
"""Responses that aiohttp's parser treats unlike httpx's. It is stricter in three cases."""


@pytest.mark.parametrize("name", ANSWERS)
@pytest.mark.slow
def test_an_odd_answer_ends_as_with_the_sync_engine(subject: Subject, name: str) -> None:
    subject.server.respond = sending(ANSWERS[name])
    check_like_sync(subject, DIFFERENTLY.get(name))


REGULAR = ["gzip", "chunks", "no length", "text/plain", "200 times Continue", "body of 8 MB"]


@pytest.mark.parametrize("name", REGULAR)
def test_what_the_sync_client_accepts_is_accepted(subject: Subject, name: str) -> None:
    """Without this test an engine that always raises a connection error would pass the others."""
    subject.server.respond = sending(ANSWERS[name])
    assert check_like_sync(subject) == ask_sync(subject)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_to_another_host_does_not_take_the_key_along(
    subject: Subject, status: int
) -> None:
    with HostileServer(lambda _received, connection: connection.sendall(answer("moved"))) as other:
        subject.server.respond = sending(redirect(status, f"{other.base_url}/elsewhere"))
        check_like_sync(subject)
        assert len(other.received) == 3, "one from the sync engine; ours sends alone and in a batch"
        assert not [each.raw for each in other.received if KEY.encode() in each.raw]
        heads = [each.raw.partition(b"\r\n")[0] for each in other.received]
        assert len(set(heads)) == 1, "the same method and path as with the sync client"
    assert any(KEY.encode() in each.raw for each in subject.server.received)


def test_a_redirect_within_the_host_takes_the_key_along(subject: Subject) -> None:
    """This shows that the test above can fail."""

    def respond(received: Received, connection: socket.socket) -> bool:
        if received.raw.startswith(b"POST /v1/moved"):
            connection.sendall(good(received))
            return False
        connection.sendall(redirect(307, "/v1/moved"))
        return True

    subject.server.respond = respond
    assert subject.ask(subject.engine, "text") == answered("text")
    assert KEY.encode() in subject.server.received[-1].raw


@pytest.mark.parametrize("when", ["with the answer", "after it"])
def test_an_unsolicited_answer_is_not_used_for_another_request(subject: Subject, when: str) -> None:
    """Data received on an idle pooled connection must not become the next request's response.

    The sync client's pool checks whether an idle connection has data to read (httpcore
    `_async/http11.py`, has_expired); aiohttp's pool does not.
    """
    sent = threading.Event()
    go_on = threading.Event()

    def respond(received: Received, connection: socket.socket) -> bool:
        foreign = answer("for somebody else")
        if "bad" not in received.question:
            connection.sendall(good(received))
        elif when == "with the answer":
            connection.sendall(good(received) + foreign)
        else:
            connection.sendall(good(received))
            go_on.wait(DEADLINE)
            connection.sendall(foreign)
        sent.set()
        return False

    default_service().close()  # so that there is one connection, and the test knows its data
    subject.server.respond = respond
    assert subject.ask(subject.engine, "bad") == answered("bad")
    sent.clear()
    go_on.set()
    if when == "after it":
        sent.wait(DEADLINE)
        _let_the_loop_read()
    assert [subject.ask(subject.engine, f"{i}") for i in range(3)] == [
        answered(f"{i}") for i in range(3)
    ]
    assert subject.ask_batch("4", "5") == [answered("4"), answered("5")]


def _let_the_loop_read() -> None:
    """Let the loop read all sockets, which it does in each iteration."""

    async def turn(_scope: Any) -> None:
        for _ in range(3):
            await asyncio.sleep(0)

    default_service().run(turn)


def drip(stop: threading.Event, part: str) -> Respond:
    """Return a handler that sends single bytes forever, in the head or in the body."""
    begin = {
        "head": JSON_HEAD + b"x-drip: ",
        "body": JSON_HEAD + b"content-length: 1000000\r\n\r\n",
        "chunks": JSON_HEAD + b"transfer-encoding: chunked\r\n\r\n",
        "body without a length": JSON_HEAD + b"\r\n",
    }[part]
    drop = chunk(b" ") if part == "chunks" else b" "

    def respond(_received: Received, connection: socket.socket) -> bool:
        connection.sendall(begin)
        until = time.monotonic() + DEADLINE
        while not stop.wait(0.02) and time.monotonic() < until:
            connection.sendall(drop)
        return True

    return for_bad_ones(respond)


@pytest.fixture
def stop() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


PARTS = ["head", "body", "chunks", "body without a length"]


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("limit", ["deadline", "timeout"])
@pytest.mark.slow
def test_an_answer_that_never_ends_is_bounded_by_every_limit(
    subject: Subject, stop: threading.Event, part: str, limit: str
) -> None:
    """`client_timeout` bounds each read, so each byte restarts it."""
    subject.server.respond = drip(stop, part)  # lasts four times the deadline for the result
    arguments = [make_argument(text) for text in ("first", "bad", "last")]
    asked = subject.in_thread(lambda: subject.engine.forward(arguments, **{limit: 0.5}))
    outputs, metadatas = asked.result(DEADLINE / 4)
    assert [outputs[0], outputs[2]] == [["answer to first"], ["answer to last"]]
    assert isinstance(metadatas[1]["exception"], errors.TimeoutError)
    subject.server.wait_for(
        lambda: subject.server.open_connections <= subject.server.connections - 1
    )
    assert subject.ask(subject.engine, "next") == answered("next")


@pytest.mark.parametrize("part", PARTS)
def test_an_answer_that_never_ends_is_given_up_when_its_caller_is_cancelled(
    subject: Subject, stop: threading.Event, part: str
) -> None:
    server = subject.server
    arrived, gone = threading.Event(), threading.Event()
    endless = drip(stop, part)

    def respond(received: Received, connection: socket.socket) -> object:
        arrived.set()
        try:
            return endless(received, connection)
        except OSError:
            gone.set()
            raise

    server.respond = respond

    async def main() -> None:
        running = asyncio.create_task(subject.engine.aforward([make_argument("bad")]))
        await asyncio.to_thread(arrived.wait, DEADLINE)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

    subject.in_thread(asyncio.run, main()).result(DEADLINE / 2)  # the server goes on for longer
    assert gone.wait(5), "the server notices that the connection is closed"
    assert subject.ask(subject.engine, "next") == answered("next")


def test_a_body_that_floods_does_not_keep_the_others_waiting(
    subject: Subject, stop: threading.Event
) -> None:
    """One body sends megabytes a second forever; other calls must still be answered."""
    flooding = threading.Event()

    def flood(_received: Received, connection: socket.socket) -> bool:
        connection.sendall(JSON_HEAD + b"\r\n")
        while not stop.wait(0.005):
            connection.sendall(b" " * 65536)
            flooding.set()
        return True

    subject.server.respond = for_bad_ones(flood)
    asked = subject.in_thread(
        lambda: subject.engine.forward([make_argument("bad")], deadline=DEADLINE)
    )
    assert flooding.wait(5)
    for index in range(20):
        assert subject.ask(subject.engine, f"{index}") == answered(f"{index}")
    assert not asked.done()
    stop.set()
    outputs, metadatas = asked.result(DEADLINE)
    assert isinstance(metadatas[0]["exception"], Exception), outputs


def test_many_concurrent_hostile_answers_harm_no_good_one(subject: Subject) -> None:
    contents = [*ANSWERS.values()]

    def respond(received: Received, connection: socket.socket) -> bool:
        kind, _, number = received.question.partition(" ")
        if kind == "bad":
            connection.sendall(contents[int(number)])
            return True
        connection.sendall(good(received))
        return False

    subject.server.respond = respond
    texts = [f"{kind} {i}" for i in range(len(contents)) for kind in ("bad", "good")]
    results = subject.ask_batch(*texts)
    assert len(results) == len(texts)
    assert results[1::2] == [answered(text) for text in texts[1::2]]


Path = tuple[str | int, ...]


def _paths(value: Any, path: Path = ()) -> Iterator[Path]:
    if path:
        yield path
    children: Any = ()
    if isinstance(value, Mapping):
        children = value.items()
    elif isinstance(value, list):
        children = enumerate(value)
    for key, child in children:
        yield from _paths(child, (*path, key))


def _replaced(path: Path, new: Any) -> Any:
    body: Any = copy.deepcopy(completion("the answer"))
    parent = body
    for key in path[:-1]:
        parent = parent[key]
    parent[path[-1]] = new
    return body


def _removed(path: Path) -> Any:
    body: Any = copy.deepcopy(completion("the answer"))
    parent = body
    for key in path[:-1]:
        parent = parent[key]
    del parent[path[-1]]
    return body


def _doubled(path: Path, new: Any) -> bytes:
    """Duplicate the innermost key of a path in its object, with a wrong second value."""
    key = next(each for each in reversed(path) if isinstance(each, str))
    name = json.dumps(key).encode()
    return BODY.replace(name + b":", name + b": " + json.dumps(new).encode() + b", " + name + b":")


WRONG: st.SearchStrategy[Any] = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=5),
    st.sampled_from([[], {}, [None], [[]], {"": None}, "", 0, -1, 1e308, "\ud800", "9" * 5000]),
)
PATHS = st.sampled_from([*_paths(completion("the answer"))])

BODIES = st.one_of(
    st.builds(lambda path, new: json.dumps(_replaced(path, new)).encode(), PATHS, WRONG),
    st.builds(lambda path: json.dumps(_removed(path)).encode(), PATHS),
    st.builds(_doubled, PATHS, WRONG),
    st.integers(0, len(BODY) - 1).map(lambda end: BODY[:end]),
    st.builds(
        lambda at, mask: BODY[:at] + bytes([BODY[at] ^ mask]) + BODY[at + 1 :],
        st.integers(0, len(BODY) - 1),
        st.integers(1, 255),
    ),
    st.builds(
        lambda at, junk: BODY[:at] + junk + BODY[at:],
        st.integers(0, len(BODY)),
        st.binary(min_size=1, max_size=8),
    ),
    st.binary(max_size=40),
)
"""Damaged bodies with a correct head."""

WIRES = st.one_of(
    st.integers(0, len(WHOLE) - 1).map(lambda end: WHOLE[:end]),
    st.builds(
        lambda at, mask: WHOLE[:at] + bytes([WHOLE[at] ^ mask]) + WHOLE[at + 1 :],
        st.integers(0, len(WHOLE) - len(BODY) - 1),
        st.integers(1, 255),
    ),
    st.builds(
        lambda at, junk: WHOLE[:at] + junk + WHOLE[at:],
        st.integers(0, len(WHOLE) - len(BODY)),
        st.binary(min_size=1, max_size=8),
    ),
    st.builds(
        lambda at, count: WHOLE[:at] + WHOLE[at + count :],
        st.integers(0, len(WHOLE) - len(BODY)),
        st.integers(1, 8),
    ),
)
"""Damaged responses; most of the damage is in the head."""

DRAWN = settings(
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@DRAWN
@given(body=BODIES)
def test_a_damaged_body_ends_as_with_the_sync_engine(subject: Subject, body: bytes) -> None:
    subject.server.respond = sending(with_type("application/json", body))
    assert check_like_sync(subject) == ask_sync(subject)


def test_a_damaged_head_ends_as_with_the_sync_engine_or_rarely_by_one_of_the_two_parsers(
    subject: Subject,
) -> None:
    """One parser may report a broken connection where the other returns a response."""
    equal, refused = 0, []

    def check(expected: Any, actual: Any) -> None:
        nonlocal equal
        if actual == expected:
            equal += 1
        else:
            assert CONNECTION_ERROR in (expected, actual)
            refused.append((expected, actual))

    @DRAWN
    @given(wire=WIRES)
    @example(wire=WHOLE.replace(b"close\r\n", b"close\x0c\n"))
    def damage(wire: bytes) -> None:
        subject.server.respond = sending(wire)
        check_like_sync(subject, check=check)

    damage()
    assert equal > 20
    assert len(refused) <= equal / 10, refused


def test_the_cause_of_a_connection_error_is_the_sdks(subject: Subject) -> None:
    """`remedy` gets the error with its cause."""
    given_to_it: list[Exception] = []

    def remedy(_engine: Any, error: Exception, _callback: Any, _argument: Any) -> Any:
        given_to_it.append(error)
        raise error

    subject.server.respond = sending(ANSWERS["TLS"])
    for engine in (subject.sync, subject.engine):
        argument = make_argument("bad", except_remedy=remedy)
        engine.prepare(argument)
        with pytest.raises(openai.APIConnectionError):
            engine.forward(argument)
    expected, actual = given_to_it
    assert type(actual) is type(expected)
    assert type(actual.__cause__).__name__ == type(expected.__cause__).__name__
