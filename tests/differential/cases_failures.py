"""Cases of what goes wrong: statuses, answers that are none, connections, retries, missing keys."""

from __future__ import annotations

import asyncio
import gzip
import json
from dataclasses import dataclass
from typing import Any

import openai
from aiohttp import web
from symai import Symbol

from gptx_async.testing import (
    HTML,
    BadJSON,
    EmptyBody,
    EmptyChoices,
    Fault,
    HTTPFault,
    NoChoices,
    Reset,
    Stall,
    TruncatedJSON,
)
from gptx_async.testing.faults import PendingRequest
from support.unheard import UNHEARD

from .asking import SKY, ask_by_hand
from .harness import KEY, World, case, cases
from .outcomes import error_of


@dataclass(frozen=True)
class Slow(Fault):
    """The regular body in parts, with a pause before each; the last may never come."""

    parts: int
    pause: float
    complete: bool = True

    async def respond(self, pending: PendingRequest, /) -> web.StreamResponse:
        content = json.dumps(pending.regular_body()).encode()
        size = -(-len(content) // self.parts)
        response = web.StreamResponse(headers={"content-type": "application/json"})
        response.content_length = len(content)
        await response.prepare(pending.http)
        for start in range(0, len(content), size):
            await asyncio.sleep(self.pause)
            if not self.complete and start + size >= len(content):
                await asyncio.Event().wait()
            await response.write(content[start : start + size])
        return response


@dataclass(frozen=True)
class Bytes(Fault):
    """Bytes, perhaps none, in place of an answer; then the connection is closed regularly.

    The regular body stands where they say BODY.
    """

    content: bytes

    async def respond(self, pending: PendingRequest, /) -> web.StreamResponse:
        body = json.dumps(pending.regular_body()).encode()
        transport = pending.http.transport
        assert transport is not None
        transport.write(self.content.replace(b"BODY", body))
        transport.close()
        return web.StreamResponse()


@dataclass(frozen=True)
class Regular(Fault):
    """The regular answer, with headers of its own."""

    headers: tuple[tuple[str, str], ...]
    compressed: bool = False

    async def respond(self, pending: PendingRequest, /) -> web.StreamResponse:
        content = json.dumps(pending.regular_body()).encode()
        return web.Response(
            body=gzip.compress(content) if self.compressed else content,
            headers={"content-type": "application/json", **dict(self.headers)},
        )


FAULTS: dict[str, Fault] = {
    "status_400": HTTPFault(400, "bad request here"),
    "status_404": HTTPFault(404),
    "status_409": HTTPFault(409),
    "status_422": HTTPFault(422, param="messages", code="unprocessable"),
    "status_429": HTTPFault(429, retry_after=1),
    "status_500": HTTPFault(500),
    "status_503": HTTPFault(503),
    "status_502_in_html": HTTPFault(502, body="<h1>Bad Gateway</h1>", content_type="text/html"),
    "status_400_with_bad_json": HTTPFault(400, body="{nonsense"),
    "status_500_without_a_body": HTTPFault(500, body=""),
    "status_204": HTTPFault(204, body=""),
    "status_304": HTTPFault(304, body=""),
    "bad_json": BadJSON(),
    "bad_utf_8": HTTPFault(200, body=b'{"choices": "\xff\xfe"}'),
    "truncated_json": TruncatedJSON(),
    "empty_body": EmptyBody(),
    "json_null": HTTPFault(200, body="null"),
    "json_list": HTTPFault(200, body="[]"),
    "html": HTML(),
    "no_choices": NoChoices(),
    "empty_choices": EmptyChoices(),
    "choice_without_a_message": HTTPFault(200, body={"choices": [{"index": 0}]}),
    "reset_in_the_middle": Reset("middle"),
    "closed_in_the_headers": Bytes(b"HTTP/1.1 200 OK\r\ncontent-le"),
    "closed_in_the_middle": Bytes(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{"),
    "no_http": Bytes(b"220 mail.example ESMTP\r\n\r\n"),
    "bad_compression": Regular((("content-encoding", "gzip"),)),
}


REFUSALS: dict[str, Fault] = {
    "status_401": HTTPFault(401),
    "status_403": HTTPFault(403),
    "status_429_for_the_quota": HTTPFault(429, code="insufficient_quota"),
}
"""Each alone: a refused key ends what its batch has not sent yet."""


def ask_twice(world: World) -> Any:
    """Ask without a remedy, then with one that notes what it gets, and raises it again."""

    def remedy(_engine: Any, error: Exception, _callback: Any, _argument: Any) -> Any:
        world.note("remedy", error)
        raise error

    try:
        seen = Symbol(SKY).query("Which colour?", return_metadata=True)
    except Exception as error:
        world.note("raised", error_of(error))
    else:
        world.note("returned", seen)
    return ask_by_hand(world, {"except_remedy": remedy})


@cases(
    {"reset_before_the_answer": Reset("before"), "closed_before_the_answer": Bytes(b"")},
    prefix="failure",
    alone=True,  # on a connection of another query each request would be sent once more
)
@cases(REFUSALS, prefix="failure", alone=True)
@cases(FAULTS)
def failure(world: World, fault: Fault) -> Any:
    world.fail(fault, 2)
    return ask_twice(world)


@case(environment={"OPENAI_BASE_URL": f"{UNHEARD}/v1"}, alone=True, silent=True)
def failure_no_server(world: World) -> Any:
    return ask_twice(world)


@case(environment={"OPENAI_BASE_URL": "ftp://127.0.0.1/v1"}, alone=True, silent=True)
def failure_no_http_address(world: World) -> Any:
    return ask_twice(world)


@cases(
    {"before_the_answer": Stall(), "in_the_middle": Slow(2, 0.0, complete=False)},
    options={"client_timeout": 0.2},
    alone=True,
)
def timeout(world: World, fault: Fault) -> Any:
    world.fail(fault, 2)
    return ask_twice(world)


@case(options={"client_timeout": 0.8}, alone=True)
def timeout_that_no_part_of_a_slow_answer_meets(world: World) -> Any:
    world.fail(Slow(5, 0.2))
    return Symbol(SKY).query("Which colour?")


ODD_ANSWERS: dict[str, Fault] = {
    "compressed": Regular((("content-encoding", "gzip"),), compressed=True),
    "that_closes_the_connection": Regular((("connection", "close"),)),
    "with_another_content_type": HTTPFault(200, body="plainly", content_type="text/plain"),
    "with_a_redirect": HTTPFault(307, headers={"location": "/v1/chat/completions"}),
    "with_a_redirect_that_changes_the_method": HTTPFault(303, headers={"location": "/v1/models"}),
    "by_http_1_0": Bytes(b"HTTP/1.0 200 OK\r\ncontent-type: application/json\r\n\r\nBODY"),
    "after_early_hints": Bytes(
        b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n"
        b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\n\r\nBODY"
    ),
    "with_many_headers": Regular(tuple((f"x-header-{number}", "x") for number in range(200))),
    "with_a_header_name_of_utf_8": Bytes(
        b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nx-caf\xc3\xa9: x\r\n\r\nBODY"
    ),
    "with_a_header_value_of_latin_1": Bytes(
        b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nx-name: caf\xe9\r\n\r\nBODY"
    ),
    "with_bare_line_feeds": Bytes(b"HTTP/1.1 200 OK\ncontent-type: application/json\n\nBODY"),
    "with_spaces_in_headers": Bytes(
        b"HTTP/1.1 200 OK\r\ncontent-type : application/json\r\n\r\nBODY"
    ),
    "without_a_reason": Bytes(b"HTTP/1.1 200\r\ncontent-type: application/json\r\n\r\nBODY"),
    "with_long_headers": Regular((("content-security-policy", "x" * 7000),)),
    "with_very_long_headers": Regular((("content-security-policy", "x" * 30_000),)),
}


# With a key of its own: engines of the same settings share a client, and so its cookies.
@case(options={"api_key": f"{KEY}-for-a-cookie"})
def answer_with_a_cookie(world: World) -> Any:
    """It expires in the end, so that the client is as before."""
    world.fail(Regular((("set-cookie", "__cf_bm=abc; Path=/"),)))
    world.note("set", Symbol(SKY).query("Which colour?"))
    world.note("sent", Symbol(SKY).query("And now?"))
    world.fail(Regular((("set-cookie", "__cf_bm=; Path=/; Max-Age=0"),)))
    return Symbol(SKY).query("And then?")


@cases(ODD_ANSWERS)
def answer(world: World, fault: Fault) -> Any:
    world.fail(fault)
    try:
        world.note("returned", Symbol(SKY).query("Which colour?", return_metadata=True))
    except Exception as error:
        world.note("raised", error)
    return Symbol(SKY).query("And now?")


RETRIES: dict[str, tuple[Fault, int]] = {
    "twice_then_good": (HTTPFault(500, retry_after_ms=1), 2),
    "until_they_are_used_up": (HTTPFault(503, retry_after_ms=1), 3),
    "for_a_conflict": (HTTPFault(409, retry_after_ms=1), 1),
    "not_for_a_bad_request": (HTTPFault(400, retry_after_ms=1), 1),
    "not_when_told_so": (HTTPFault(500, headers={"x-should-retry": "false"}), 1),
    "when_told_so": (HTTPFault(404, retry_after_ms=1, headers={"x-should-retry": "true"}), 1),
    "not_for_bad_json": (BadJSON(), 1),
}
"""None is of status 429: there the engine is more patient than the SDK, by DESIGN.md."""


@cases(RETRIES, options={"client_max_retries": 2})
def retried(world: World, fault_and_times: tuple[Fault, int]) -> Any:
    fault, times = fault_and_times
    world.fail(fault, times)
    return Symbol(SKY).query("Which colour?", return_metadata=True)


LOST = {
    "a_reset_before": Reset("before"),
    "a_reset_in_the_middle": Reset("middle"),
    "a_close": Bytes(b""),
    "no_http": Bytes(b"220 mail.example ESMTP\r\n\r\n"),
}


@cases(LOST, options={"client_max_retries": 1}, alone=True)  # as in `failure`
def retried_after(world: World, fault: Fault) -> Any:
    world.fail(fault)
    return Symbol(SKY).query("Which colour?")


@case(options={"client_max_retries": 1, "client_timeout": 0.3}, alone=True)
def retried_after_timeouts(world: World) -> Any:
    world.fail(Stall(), 2)
    return Symbol(SKY).query("Which colour?")


KEYS: dict[str, tuple[Any, Any, Fault | None]] = {
    "none_and_failing": (None, None, HTTPFault(401)),
    "empty_and_failing": ("", "", HTTPFault(401)),
    "none_and_answered": (None, None, None),
    "restored_from_config": (None, "sk-of-the-config", HTTPFault(401)),
}


@cases(KEYS, fresh=True, alone=True)
def missing_key(world: World, settings: tuple[Any, Any, Fault | None]) -> Any:
    key, configured, fault = settings
    openai.api_key = key
    world.engine.config["NEUROSYMBOLIC_ENGINE_API_KEY"] = configured
    if fault is not None:
        world.fail(fault, 2)
    try:
        return ask_twice(world)
    finally:
        world.note("the key after it", openai.api_key)
