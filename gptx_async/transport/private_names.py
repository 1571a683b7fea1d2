"""The private names of aiohttp, openai and httpx that transport/ uses, each with a check."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from typing import Any

import aiohttp
import openai
from aiohttp import client_proto, http_writer
from openai import _base_client
from openai.types.chat import ChatCompletion

from ..private_names import PrivateName
from .httpx_package import httpx_of

__all__ = ["FAST_PATH", "NAMES", "POOL", "has_settings"]

_HTTPX = httpx_of(openai)

_SLOWER = "the SDK sends every call, which takes more processor time"
_NEW_CONNECTIONS = "no connection is used twice"
_IN_CALLER = "the sync client makes each call, in the calling thread"


def _takes(owner: Any, name: str, *parameters: str) -> Callable[[], bool]:
    """Return a check that a method exists and has these parameters after `self`."""
    return lambda: [*inspect.signature(getattr(owner, name)).parameters][1:] == [*parameters]


def _has(owner: Callable[[], Any], *names: str) -> Callable[[], bool]:
    return lambda: all(hasattr(owner(), name) for name in names)


def _uses(method: Callable[..., Any], name: str) -> bool:
    return name in inspect.unwrap(method).__code__.co_names


def _takes_request_id() -> bool:
    completion = ChatCompletion.model_construct()
    completion._request_id = "req_1"
    return completion._request_id == "req_1" and "_request_id" in inspect.getsource(openai._models)


def has_settings(client: Any) -> bool:
    """Return whether a sync client has the attributes that hold its settings."""
    return (
        hasattr(client, "_client")
        and hasattr(client, "_custom_headers")
        and hasattr(client, "_custom_query")
    )


def _new_client_has_settings() -> bool:
    with openai.OpenAI(api_key="none", base_url="http://127.0.0.1:9") as client:
        return has_settings(client)


def _sends_by_httpx_client() -> bool:
    kind = _base_client.AsyncAPIClient
    return _uses(getattr(kind, "_send_request", kind.request), "send")


FAST_PATH = (
    PrivateName(
        "aiohttp",
        "BaseConnector.connect",
        _SLOWER,
        _takes(aiohttp.BaseConnector, "connect", "req", "traces", "timeout"),
    ),
    PrivateName(
        "aiohttp",
        "client_proto.ResponseHandler",
        _SLOWER,
        lambda: (
            _takes(
                client_proto.ResponseHandler,
                "set_response_params",
                *("timer", "skip_payload", "read_until_eof", "auto_decompress", "read_timeout"),
                *("read_bufsize", "timeout_ceil_threshold", "max_line_size", "max_field_size"),
                "max_headers",
            )()
            and _has(lambda: client_proto.ResponseHandler, "read", "start_timeout")()
        ),
    ),
    PrivateName(
        "aiohttp",
        "http_writer._serialize_headers",
        _SLOWER,
        lambda: callable(http_writer._serialize_headers),
    ),
    PrivateName(
        "openai",
        "BaseModel._request_id",
        _SLOWER,
        _takes_request_id,
    ),
    PrivateName(
        _HTTPX.__name__,
        "AsyncClient._transport_for_url",
        _SLOWER,
        _has(lambda: _HTTPX.AsyncClient, "_transport_for_url"),
    ),
)
"""The names that a route past the SDK needs."""

POOL = (
    PrivateName(
        "aiohttp",
        "BaseConnector._get",
        _NEW_CONNECTIONS,
        lambda: (
            _takes(aiohttp.BaseConnector, "_get", "key", "traces")()
            and _uses(aiohttp.BaseConnector.connect, "_get")
        ),
    ),
    PrivateName(
        "aiohttp",
        "TCPConnector._factory",
        _NEW_CONNECTIONS,
        lambda: (
            _uses(aiohttp.BaseConnector.__init__, "_factory")
            and _uses(aiohttp.TCPConnector._create_direct_connection, "_factory")
        ),
    ),
)
"""The names that the pool needs to detect data that came on an idle connection."""

NAMES = (
    *FAST_PATH,
    *POOL,
    PrivateName(
        "openai",
        "OpenAI._client, _custom_headers, _custom_query",
        _IN_CALLER,
        _new_client_has_settings,
    ),
    PrivateName(
        "openai",
        "AsyncAPIClient, by AsyncClient.send",
        "a timeout bounds each read, not the whole attempt",
        _sends_by_httpx_client,
    ),
    PrivateName(
        "openai",
        "SyncPage._set_private_attributes",
        "a list, for example of models, is the SDK's asynchronous page",
        _has(lambda: openai.pagination.SyncPage, "_set_private_attributes"),
    ),
    PrivateName(
        _HTTPX.__name__,
        "_utils.get_environment_proxies",
        "urllib's rules for NO_PROXY apply",
        _has(lambda: sys.modules[f"{_HTTPX.__name__}._utils"], "get_environment_proxies"),
    ),
)
