"""The stand-in for openai.OpenAI and the clients behind it, over real HTTP, without symbolicai."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import copy
import fcntl
import gc
import io
import json
import pickle
import socket
import termios
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest

from gptx_async import errors
from gptx_async.batch.driver import Batch
from gptx_async.calls.request import RequestOptions
from gptx_async.errors import ServiceClosedError, UnsupportedClientError
from gptx_async.loop.call import Call
from gptx_async.loop.scope import LoopScope
from gptx_async.loop.service import default_service
from gptx_async.pacing.settings import Pacing
from gptx_async.symbolicai.v1.stand_in_client import StandInClient
from gptx_async.testing import FakeOpenAI, Reset, Stall
from gptx_async.transport.settings import ClientSettings
from support.client_calls import CallsOnLoop
from support.looking import client_on, destination_on
from support.unheard import UNHEARD

MESSAGES: Any = [{"role": "user", "content": "text"}]
CHAT: dict[str, Any] = {"model": "gpt-4o-mini", "messages": MESSAGES}


MAX_CONCURRENCY = Pacing.max_concurrency


@pytest.fixture
def client(fake_openai: FakeOpenAI) -> openai.OpenAI:
    return openai.OpenAI(api_key="sk-key", base_url=fake_openai.base_url, max_retries=0)


@pytest.fixture
def stand_in(client: openai.OpenAI) -> StandInClient:
    return StandInClient(client, CallsOnLoop())


@pytest.fixture
def sync_requests(client: openai.OpenAI) -> list[str]:
    """The requests that the sync client sends by itself, by their paths."""
    requests: list[str] = []
    client._client.event_hooks = {"request": [lambda request: requests.append(request.url.path)]}
    return requests


def test_every_resource_path_runs_on_the_loop(
    stand_in: StandInClient, client: openai.OpenAI, sync_requests: list[str]
) -> None:
    stand_in.chat.completions.create(**CHAT)
    stand_in.responses.create(model="gpt-4o-mini", input="text")
    stand_in.embeddings.create(model="text-embedding-3-small", input="text")
    stand_in.models.list()
    stand_in.chat.completions.with_raw_response.create(**CHAT).parse()
    stand_in.with_options(timeout=7).chat.completions.create(**CHAT)
    stand_in.post("/chat/completions", body=CHAT, cast_to=object)
    assert sync_requests == []


def test_answers_are_those_of_the_sync_client(
    stand_in: StandInClient, client: openai.OpenAI
) -> None:
    asked, expected = (
        stand_in.chat.completions.create(**CHAT),
        client.chat.completions.create(**CHAT),
    )
    assert type(asked) is type(expected)
    assert asked.choices == expected.choices
    listed, expected_list = stand_in.models.list(), client.models.list()
    assert type(listed) is type(expected_list)
    assert list(listed) == list(expected_list)
    embedded = stand_in.embeddings.create(model="text-embedding-3-small", input="text")
    assert (
        embedded.data == client.embeddings.create(model="text-embedding-3-small", input="text").data
    )


def test_within_a_batch_calls_leave_their_greenlets(
    stand_in: StandInClient, fake_openai: FakeOpenAI
) -> None:
    fake_openai.hold()
    with ThreadPoolExecutor(1) as pool:
        batch = Batch(lambda _: stand_in.chat.completions.create(**CHAT), range(10))
        running = pool.submit(batch.run)
        fake_openai.wait_for(lambda server: server.in_flight == 10)
        fake_openai.release()
        assert all(outcome.error is None for outcome in running.result(30))


def test_streams_are_opened_by_the_sync_client_in_the_calling_thread(
    stand_in: StandInClient, sync_requests: list[str]
) -> None:
    with pytest.raises(openai.BadRequestError, match="stream"):
        stand_in.chat.completions.create(**CHAT, stream=True)
    assert sync_requests == ["/v1/chat/completions"]


def test_other_attributes_read_and_are_set_through(
    stand_in: StandInClient, client: openai.OpenAI, fake_openai: FakeOpenAI
) -> None:
    assert stand_in.api_key == "sk-key"
    assert str(stand_in.base_url) == fake_openai.base_url + "/"
    assert stand_in.timeout == client.timeout
    stand_in.api_key = "sk-new"
    assert client.api_key == "sk-new"
    stand_in.chat.completions.create(**CHAT)
    assert fake_openai.requests[-1].headers["Authorization"] == "Bearer sk-new"
    with pytest.raises(AttributeError, match="no_such_thing"):
        stand_in.no_such_thing  # noqa: B018
    assert not callable(getattr(stand_in.chat.completions, "_client", None))


def test_a_name_of_it_says_what_it_stands_for(stand_in: StandInClient) -> None:
    assert repr(stand_in.chat.completions.create).startswith("<chat.completions.create of <StandIn")
    assert repr(stand_in.chat).startswith("<chat of <StandInClient of <openai.OpenAI")
    assert "sk-key" not in repr(stand_in)
    assert stand_in.chat.completions.create.__name__ == "create"


def test_copy_and_pickle_find_nothing_to_follow(stand_in: StandInClient) -> None:
    """They ask an object that has no attributes yet, which must not recurse."""
    assert copy.copy(stand_in).api_key == "sk-key"
    with pytest.raises((TypeError, pickle.PicklingError, AttributeError)):
        pickle.dumps(stand_in)


def test_what_a_sync_client_sends_is_sent(fake_openai: FakeOpenAI) -> None:
    client = openai.OpenAI(
        api_key="sk-key",
        base_url=fake_openai.base_url,
        organization="org-1",
        project="proj-1",
        default_headers={"X-Header": "of the client"},
        default_query={"version": "3"},
        max_retries=0,
    )
    client.chat.completions.create(**CHAT)
    StandInClient(client, CallsOnLoop()).chat.completions.create(**CHAT)
    expected, sent = fake_openai.requests
    assert sent.path == expected.path
    assert sent.body == expected.body
    for header in ("Authorization", "OpenAI-Organization", "OpenAI-Project", "X-Header"):
        assert sent.headers[header] == expected.headers[header]


def test_a_proxy_of_the_environment_is_used(
    fake_openai: FakeOpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server takes the proxy's part: it answers for a host that there is not."""
    monkeypatch.delenv("NO_PROXY")
    monkeypatch.setenv("HTTP_PROXY", fake_openai.base_url.removesuffix("/v1"))
    client = openai.OpenAI(
        api_key="sk-key", base_url="http://no-such-host.invalid/v1", max_retries=0
    )
    expected = client.chat.completions.create(**CHAT)
    assert StandInClient(client, CallsOnLoop()).chat.completions.create(**CHAT) == expected
    assert [r.headers["Host"] for r in fake_openai.requests] == ["no-such-host.invalid"] * 2


@pytest.mark.parametrize("when", ["before", "middle"])
def test_a_lost_connection_is_no_timeout(
    stand_in: StandInClient, client: openai.OpenAI, fake_openai: FakeOpenAI, when: Any
) -> None:
    """The SDK's aiohttp transport calls it one."""
    for ask in (client.chat.completions.create, stand_in.chat.completions.create):
        fake_openai.fail_next(Reset(when=when))
        with pytest.raises(openai.APIConnectionError) as caught:
            ask(**CHAT)
        assert type(caught.value) is openai.APIConnectionError


def test_a_timeout_is_a_timeout(stand_in: StandInClient, fake_openai: FakeOpenAI) -> None:
    fake_openai.fail_next(Stall())
    with pytest.raises(openai.APITimeoutError):
        stand_in.with_options(timeout=0.2).chat.completions.create(**CHAT)


def test_no_server_is_a_connection_error(client: openai.OpenAI) -> None:
    client.base_url = f"{UNHEARD}/v1"
    with pytest.raises(openai.APIConnectionError) as caught:
        StandInClient(client, CallsOnLoop()).chat.completions.create(**CHAT)
    assert type(caught.value) is openai.APIConnectionError


def test_clients_with_equal_settings_are_one_and_others_are_not(
    fake_openai: FakeOpenAI, client: openai.OpenAI
) -> None:
    twin = openai.OpenAI(api_key="sk-key", base_url=fake_openai.base_url, max_retries=0)
    assert ClientSettings.of(twin).key == ClientSettings.of(client).key
    for change in (
        {"api_key": "sk-other"},
        {"base_url": "http://127.0.0.1:9/v1"},
        {"organization": "org-2"},
        {"project": "proj-2"},
        {"timeout": 3.0},
        {"default_headers": {"X-Header": "1"}},
        {"default_query": {"version": "1"}},
    ):
        assert ClientSettings.of(client.with_options(**change)).key != ClientSettings.of(client).key
    patient = client.with_options(max_retries=5)  # which is not the async client's business
    assert ClientSettings.of(patient).key == ClientSettings.of(client).key


def test_connections_are_kept_and_shared_by_threads_and_stand_ins(
    client: openai.OpenAI, fake_openai: FakeOpenAI
) -> None:
    async def connections(scope: LoopScope) -> int:
        loop_client = client_on(scope, ClientSettings.of(client))
        transport = loop_client.sdk._client._transport
        pools = (
            transport.client.connector._conns.items()
        )  # the pool has those to other servers, too
        return sum(
            len(each) for key, each in pools if fake_openai.base_url.endswith(f"{key.port}/v1")
        )

    def ask(_number: int) -> Any:
        return StandInClient(client, CallsOnLoop()).chat.completions.create(**CHAT)

    fake_openai.hold()
    with ThreadPoolExecutor(20) as pool:
        answers = [pool.submit(ask, number) for number in range(20)]
        fake_openai.wait_for(lambda server: server.in_flight == 20)
        fake_openai.release()
        for answer in answers:
            answer.result(30)
    assert default_service().run(connections) == 20
    ask(0)
    assert default_service().run(connections) == 20


def test_no_more_requests_are_out_than_permits(
    stand_in: StandInClient, fake_openai: FakeOpenAI
) -> None:
    fake_openai.hold()
    count = MAX_CONCURRENCY + 50
    with ThreadPoolExecutor(1) as pool:
        batch = Batch(
            lambda _: stand_in.chat.completions.create(**CHAT), range(count), window=count
        )
        running = pool.submit(batch.run)
        fake_openai.wait_for(lambda server: server.in_flight == MAX_CONCURRENCY)
        fake_openai.release()
        assert len(running.result(30)) == count
    assert fake_openai.max_in_flight == MAX_CONCURRENCY


SECONDS = 3.0


@pytest.mark.slow
def test_waiting_for_a_permit_does_not_run_down_the_timeout(
    client: openai.OpenAI, fake_openai: FakeOpenAI
) -> None:
    """The second is sent when the first's time, in which both would have had to end, is over."""
    fake_openai.latency = lambda request: 3600.0 if b"the first" in request.raw else 0.0
    terms = RequestOptions(timeout=SECONDS, pacing=Pacing(1), patience=0)
    stand_in = StandInClient(client, CallsOnLoop(terms))

    def ask(text: str) -> Any:
        messages: Any = [{"role": "user", "content": text}]
        return stand_in.chat.completions.create(model="gpt-4o-mini", messages=messages)

    first, second = Batch(ask, ["the first", "the second"], window=2).run()
    assert isinstance(first.error, errors.TimeoutError)
    assert second.error is None


def test_closing_the_service_closes_the_connections(
    stand_in: StandInClient, fake_openai: FakeOpenAI
) -> None:
    fake_openai.hold()
    failed: list[BaseException] = []

    def ask() -> None:
        try:
            stand_in.chat.completions.create(**CHAT)
        except ServiceClosedError as error:
            failed.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    fake_openai.wait_for(lambda server: server.in_flight == 1)
    default_service().close()
    thread.join(10)
    assert len(failed) == 1
    fake_openai.wait_for(lambda server: server.disconnected == 1)
    fake_openai.release()
    stand_in.chat.completions.create(**CHAT)


def test_clients_that_are_not_plain_are_refused(fake_openai: FakeOpenAI) -> None:
    azure = openai.AzureOpenAI(
        api_key="sk-key", azure_endpoint=fake_openai.base_url, api_version="2024-06-01"
    )
    with pytest.raises(UnsupportedClientError, match="AzureOpenAI"):
        StandInClient(azure, CallsOnLoop())
    provider = openai.OpenAI(api_key=lambda: "sk-key", base_url=fake_openai.base_url)
    with pytest.raises(UnsupportedClientError, match="string"):
        StandInClient(provider, CallsOnLoop())
    with openai.DefaultHttpxClient() as http_client:
        own = openai.OpenAI(
            api_key="sk-key", base_url=fake_openai.base_url, http_client=http_client
        )
        with pytest.raises(UnsupportedClientError, match="http_client"):
            StandInClient(own, CallsOnLoop())


def test_settings_show_no_key() -> None:
    settings = ClientSettings.of(openai.OpenAI(api_key="sk-secret", base_url="http://127.0.0.1:9"))
    assert "sk-secret" not in repr(settings)


def test_settings_survive_a_pickle_and_build_the_same_client() -> None:
    settings = ClientSettings.of(
        openai.OpenAI(api_key="sk-key", base_url="http://127.0.0.1:9/v1", timeout=3.0)
    )
    again = pickle.loads(pickle.dumps(settings))
    assert ClientSettings.of(again.build_sync()).key == settings.key


def test_a_call_can_be_cancelled_in_each_state(
    stand_in: StandInClient, fake_openai: FakeOpenAI
) -> None:
    """Waiting for a permit, and in the attempt: the permits are all there again afterwards."""
    fake_openai.hold()
    count = MAX_CONCURRENCY + 10

    async def main() -> None:
        batch = Batch(
            lambda _: stand_in.chat.completions.create(**CHAT), range(count), window=count
        )
        running = asyncio.create_task(batch.run_async())
        await asyncio.to_thread(
            fake_openai.wait_for, lambda server: server.in_flight == MAX_CONCURRENCY
        )
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

    asyncio.run(main())
    fake_openai.wait_for(lambda server: server.disconnected == MAX_CONCURRENCY)
    fake_openai.release()

    async def in_flight_and_waiting(scope: LoopScope) -> tuple[int, int]:
        line = destination_on(scope, stand_in.settings, CHAT["model"])
        assert not line.unsent
        return line.governor.in_flight, line.governor.waiting

    assert Call(in_flight_and_waiting).wait().result() == (0, 0)
    assert_all_at_once(stand_in, fake_openai)


def assert_all_at_once(stand_in: StandInClient, fake_openai: FakeOpenAI) -> None:
    """Cancelled requests leave no slot of the pool taken (encode/httpcore#1093)."""
    fake_openai.hold()
    with ThreadPoolExecutor(1) as pool:
        batch = Batch(lambda _: stand_in.chat.completions.create(**CHAT), range(MAX_CONCURRENCY))
        running = pool.submit(batch.run)
        fake_openai.wait_for(lambda server: server.in_flight == MAX_CONCURRENCY)
        fake_openai.release()
        assert all(outcome.error is None for outcome in running.result(30))


class Value:
    """What a caller keeps in a context variable."""


def test_the_service_keeps_no_context_variable_of_a_caller(stand_in: StandInClient) -> None:
    """A connection outlives its first caller; its timers kept that one's (ogx-ai/ogx#5168)."""
    variable: contextvars.ContextVar[Value] = contextvars.ContextVar("variable")

    def ask() -> weakref.ref[Value]:
        value = Value()
        variable.set(value)
        stand_in.chat.completions.create(**CHAT)
        Batch(lambda _: stand_in.chat.completions.create(**CHAT), range(3)).run()
        return weakref.ref(value)

    reference = contextvars.Context().run(ask)
    gc.collect()
    assert reference() is None


def answer_bytes(content: str) -> bytes:
    message = {"role": "assistant", "content": content}
    body = json.dumps(
        {
            "id": "1",
            "object": "chat.completion",
            "created": 1,
            "model": "gpt-4o-mini",
            "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
        }
    )
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    return f"{head}\r\n{body}".encode()


@pytest.mark.linux
def test_an_answer_that_nobody_asked_for_is_not_that_of_the_next_request() -> None:
    """It lies on a connection that is kept; aiohttp takes it for what the next request gets."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        server.settimeout(10)
        host, port = server.getsockname()
        client = openai.OpenAI(api_key="sk-key", base_url=f"http://{host}:{port}/v1", max_retries=0)
        ask = StandInClient(client, CallsOnLoop()).chat.completions.create
        pool = stack.enter_context(ThreadPoolExecutor(1))
        for asked in range(2):
            answer = pool.submit(ask, **CHAT)
            connection, _ = server.accept()  # the second time too: the first is not used again
            stack.enter_context(connection).recv(65536)
            connection.sendall(answer_bytes(f"answer {asked}"))
            assert answer.result(10).choices[0].message.content == f"answer {asked}"
            connection.sendall(answer_bytes("for somebody else"))
            arrived_at_the_client(connection)


def arrived_at_the_client(connection: socket.socket) -> None:
    """Wait until the loop has read what was sent: nothing of it waits in the kernel any more."""
    deadline = time.monotonic() + 10
    while fcntl.ioctl(connection, termios.TIOCOUTQ, b"\0" * 4) != b"\0" * 4:
        assert time.monotonic() < deadline
    for _ in range(3):
        default_service().run(lambda _scope: asyncio.sleep(0))


def test_file_is_sent_as_it_was_given(client: openai.OpenAI, fake_openai: FakeOpenAI) -> None:
    """A file is a tuple with an object that is no JSON: it has to stay a tuple."""
    files = StandInClient(client, CallsOnLoop()).files
    with pytest.raises(openai.NotFoundError):  # the fake server has no files, but was asked
        files.create(file=("items.jsonl", io.BytesIO(b"the content")), purpose="batch")
    assert b"the content" in fake_openai.requests[-1].raw
