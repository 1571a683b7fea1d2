"""Private names of other packages are checked, and calls are answered without them."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import aiohttp
import openai
import pytest
import symai.context
from aiohttp import client_proto, http_writer
from openai._base_client import AsyncAPIClient
from symai import core_ext
from symai.functional import EngineRepository

import gptx_async
from gptx_async import AsyncGPTXBatchEngine, private_names
from gptx_async.cli import doctor
from gptx_async.loop.service import default_service
from gptx_async.symbolicai.private_names import NAMES as OF_SYMBOLICAI
from gptx_async.symbolicai.v1 import engine_lookup as lookup
from gptx_async.testing import FakeOpenAI
from gptx_async.transport.exchange import is_known
from gptx_async.transport.patching import PatchDetector
from gptx_async.transport.private_names import NAMES, POOL, has_settings
from support.hostile import HostileServer, Received, answer, make_argument

ACCOUNT = ("sk-of-the-tests", "gpt-4o-mini")


@pytest.fixture(autouse=True)
def _new_service() -> Iterator[None]:
    """Restart the service, because its clients would keep the names they were built with."""
    default_service().close()
    yield
    default_service().close()


def ask(engine: Any, text: str = "text") -> Any:
    [(outputs, metadata)] = engine([make_argument(text)])
    assert "exception" not in metadata, metadata
    return outputs[0]


def named(names: Any) -> set[str]:
    return {each.name for each in private_names.missing(names)}


def test_all_are_as_known() -> None:
    assert named([*NAMES, *OF_SYMBOLICAI]) == set()
    [check] = doctor._check_private_names()
    assert check.status == "ok"
    for each in (*NAMES, *OF_SYMBOLICAI):
        assert each.name in check.text
        assert each.package in check.text


def other_parameters(self: Any, *, another: int) -> None: ...


FAST: dict[str, tuple[Any, str, Any]] = {
    "BaseConnector.connect": (aiohttp.BaseConnector, "connect", other_parameters),
    "client_proto.ResponseHandler": (
        client_proto.ResponseHandler,
        "set_response_params",
        other_parameters,
    ),
    "http_writer._serialize_headers": (http_writer, "_serialize_headers", None),
}


@pytest.mark.parametrize("name", FAST)
def test_without_a_name_of_the_fast_path_it_is_off_and_doctor_says_so(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    assert is_known()
    monkeypatch.setattr(*FAST[name])
    assert name in named(NAMES)
    assert not is_known()
    checks = [check for check in doctor._check_private_names() if name in check.text]
    assert [check.status for check in checks] == ["warn"]
    assert "the SDK sends every call" in checks[0].text


def test_a_client_that_sends_by_another_method_sends_no_request_on_trial(
    fake_openai: FakeOpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def send(self: Any, request: Any, *, stream: bool, **_: Any) -> Any:
        response = await self._client._transport.handle_async_request(request)
        await response.aread()
        return response

    monkeypatch.setattr(AsyncAPIClient, "_send_request", send, raising=False)
    assert "AsyncAPIClient, by AsyncClient.send" in named(NAMES)
    monkeypatch.setattr(openai.AsyncOpenAI, "_send_request", send, raising=False)
    monkeypatch.setattr(PatchDetector, "are_none", lambda _self: True)
    fake_openai.reply = lambda _request: "an answer"
    assert ask(AsyncGPTXBatchEngine(*ACCOUNT)) == "an answer"
    assert len(fake_openai.requests) == 1


def test_where_the_pool_is_another_no_connection_is_used_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Data received on an idle connection must not become the next request's response."""
    monkeypatch.setattr(
        aiohttp.BaseConnector, "_get", lambda self, key, _another, _traces: None, raising=True
    )
    assert named(POOL) == {"BaseConnector._get"}
    monkeypatch.undo()
    monkeypatch.setattr("gptx_async.transport.openai_transport.are_there", lambda _names: False)

    def respond(_received: Received, connection: socket.socket) -> None:
        connection.sendall(answer("right") + answer("wrong"))

    with HostileServer(respond) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.base_url)
        engine = AsyncGPTXBatchEngine(*ACCOUNT)
        assert [ask(engine) for _ in range(5)] == ["right"] * 5
        assert server.connections == 5
        default_service().close()


@pytest.mark.parametrize("name", ["_custom_headers", "_custom_query"])
def test_a_client_whose_settings_cannot_be_read_makes_its_own_calls(
    fake_openai: FakeOpenAI, name: str
) -> None:
    engine = AsyncGPTXBatchEngine(*ACCOUNT)
    client = engine.client._behind
    fake_openai.reply = lambda _request: "an answer"
    value = vars(client).pop(name)
    assert not has_settings(client)
    vars(client)[f"{name}_"] = value
    kind = type("Another", (openai.OpenAI,), {"__getattr__": renamed})
    client.__class__ = kind
    sent = engine.stats().answered
    assert engine.client.models.list().data
    assert engine.stats().answered == sent


def renamed(self: Any, name: str) -> Any:
    """Imitate an SDK that has renamed an attribute in its own code."""
    import sys

    caller = sys._getframe(1).f_code.co_filename
    if f"{name}_" in vars(self) and "gptx_async" not in caller:
        return vars(self)[f"{name}_"]
    raise AttributeError(name)


def test_without_symbolicais_names_calls_are_answered(
    fake_openai: FakeOpenAI, engine_repository: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_openai.reply = lambda _request: "an answer"
    monkeypatch.delattr(core_ext, "time")
    monkeypatch.delattr(symai.context, "CURRENT_ENGINE_VAR")
    monkeypatch.setattr(lookup, "_CURRENT", None)
    assert named(OF_SYMBOLICAI) == {"core_ext.time", "context.CURRENT_ENGINE_VAR"}
    engine = gptx_async.install(*ACCOUNT)
    assert ask(engine) == "an answer"
    gptx_async.uninstall()
    assert EngineRepository.list().get("neurosymbolic") is not engine
