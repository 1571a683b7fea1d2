"""`FakeOpenAI`: an OpenAI-compatible server on the loopback interface, in its own thread."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Collection, Mapping
from types import TracebackType
from typing import Any

from aiohttp import web

from .. import clock
from .answers import ENDPOINTS, Body, find_mistake, is_for_model, make_body
from .disruptions import OVERLOADED, Disruptions
from .faults import Fault, HTTPFault, PendingRequest, error_body
from .limits import ADMITTED, Decision, FakeRateLimits, Limiters, charged_tokens
from .record import RecordedAnswer, TrafficRecord
from .replies import LatencyFunction, RecordedRequest, ReplyFunction, Said, digest
from .server_thread import ServerThread

__all__ = ["FakeOpenAI"]

NO_KEY = (
    "You didn't provide an API key. You need to provide your API key in an Authorization header "
    "using Bearer auth (i.e. Authorization: Bearer YOUR_KEY)."
)


class FakeOpenAI(TrafficRecord, Disruptions):
    """An OpenAI-compatible server for tests, on a free port.

    It answers `POST /v1/chat/completions`, `/v1/responses`, `/v1/embeddings` and `GET /v1/models`,
    records the requests, and can be slow or faulty. It runs on its own daemon thread, so it works
    with any event loop of the test. All methods and attributes are allowed in any thread. Equal
    requests get equal answers, unless the reply function decides otherwise.

        with FakeOpenAI(reply=canned("Hello"), latency=0.2) as server:
            client = openai.OpenAI(base_url=server.base_url, api_key="sk-test")

    Attributes:
        reply: A function of the request that returns what the model says; may be set at any time.
        latency: The seconds before each answer: a number, or a function of the request; may be set
            at any time.
        faults: A function of the request that returns a `Fault` or None; may be set at any time.
        api_keys: The accepted keys; None to accept any key that is not empty.
        max_concurrent: How many requests may be in flight; further ones are answered 503 at once.
            None for no limit; may be set at any time.

    Args:
        reply: See above.
        latency: See above.
        faults: See above.
        api_keys: See above.
        rate_limits: See the attribute.
        max_concurrent: See above.
        host: The address to listen on.
        port: The port to listen on; 0 for any free port.
        keep_requests: How many of the latest requests, and of the latest answers, to keep; None for
            all.

    Raises:
        TypeError: The rate limits have another type.
    """

    def __init__(
        self,
        reply: ReplyFunction = digest,
        *,
        latency: float | LatencyFunction = 0.0,
        faults: Callable[[RecordedRequest], Fault | None] | None = None,
        api_keys: Collection[str] | None = None,
        rate_limits: FakeRateLimits | Mapping[str, FakeRateLimits] | None = None,
        max_concurrent: int | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
        keep_requests: int | None = None,
    ) -> None:
        TrafficRecord.__init__(self, keep_requests)
        Disruptions.__init__(self)
        self.reply = reply
        self.latency = latency
        self.faults = faults
        self.api_keys = api_keys
        self.max_concurrent = max_concurrent
        self._host = host
        self._port = port
        self._lifecycle = threading.Lock()
        self._running: ServerThread | None = None
        self._limiters = Limiters(rate_limits)

    def start(self) -> FakeOpenAI:
        """Start to listen, if the server does not run yet, and return the server.

        Raises:
            OSError: The server can't listen on the address, or there are no free descriptors.
            RuntimeError: No thread can be started.
        """
        with self._lifecycle:
            if self._running is None:
                running = ServerThread(self._handle, self._host, self._port)
                self._port = running.start()
                self._running = running
        return self

    def close(self) -> None:
        """Stop the server and drop the requests in flight. A second call does nothing.

        The record stays. The server can start again, and then has the same port.
        """
        with self._lifecycle:
            running, self._running = self._running, None
            if running is not None:
                running.close()

    def __enter__(self) -> FakeOpenAI:
        return self.start()

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def base_url(self) -> str:
        """The base URL for clients. It stays the same after `close`.

        Raises:
            RuntimeError: The server was not started yet.
        """
        if not self._port:
            raise RuntimeError("The fake server has no address before it is started: start it.")
        return f"http://{self._host}:{self._port}/v1"

    def openai_environment(self) -> dict[str, str]:
        """Return environment variables that make OpenAI's clients use this server.

        Raises:
            RuntimeError: The server was not started yet.
        """
        key = next(iter(self.api_keys)) if self.api_keys else "sk-fake"
        return {"OPENAI_BASE_URL": self.base_url, "OPENAI_API_KEY": key}

    @property
    def rate_limits(self) -> FakeRateLimits | Mapping[str, FakeRateLimits] | None:
        """The rate limits of each key and model; None for no limits.

        A mapping has the limits of each model; other models have none. May be set at any time; the
        buckets are then full. Only requests that reach a model are charged: not requests that fail
        because of their key, a mistake, `fail_next`, `faults`, an outage or `max_concurrent`.

        Raises:
            TypeError: The new value is neither `FakeRateLimits` nor a mapping to such limits.
        """
        return self._limiters.limits

    @rate_limits.setter
    def rate_limits(self, limits: FakeRateLimits | Mapping[str, FakeRateLimits] | None) -> None:
        self._limiters = Limiters(limits)

    async def _handle(self, http: web.Request) -> web.StreamResponse:
        raw = await http.read()
        request = RecordedRequest(
            http.method, http.path, http.headers, _parse(raw), raw, clock.seconds()
        )
        with self._counted(request, lambda: self._running is not None):
            try:
                response = await self._answer(request, http)
            except Exception as error:
                # Sent to the client, because the test sees that; nobody would read a log.
                response = await HTTPFault(
                    500, f"The fake server's reply, latency or fault raised {error!r}. Correct it."
                ).respond(PendingRequest(request, http, dict))
            if http.transport is not None and not http.transport.is_closing():
                self._record_answer(
                    RecordedAnswer(clock.seconds(), _model(request), response.status)
                )
            return response

    async def _answer(self, request: RecordedRequest, http: web.Request) -> web.StreamResponse:
        # Decided without waiting, so that functions with state are called in order of arrival.
        seconds = self.latency(request) if callable(self.latency) else self.latency
        fault = self._find_fault(request)
        decision = ADMITTED if fault is not None else self._admit(request)
        said = fault or decision.fault or self._ask(request)
        await self._wait_for_release()
        # A rate-limited request is answered at once: it takes no time of the model.
        if seconds and decision.fault is None:
            await asyncio.sleep(seconds)
        if not isinstance(said, Fault):
            return web.json_response(make_body(request, said), headers=decision.headers)
        pending = PendingRequest(request, http, lambda: self._regular(request))
        response = await said.respond(pending)
        if not response.prepared:
            response.headers.update(decision.headers)
        return response

    def _find_fault(self, request: RecordedRequest) -> Fault | None:
        """Return the fault of a request: a mistake in it, or one that the test ordered."""
        return (
            self._outage_at(request.arrived)
            or self._check_key(request)
            or find_mistake(request)
            or self._take_next_fault()
            or (self.faults(request) if self.faults is not None else None)
        )

    def _admit(self, request: RecordedRequest) -> Decision:
        """Refuse a request if there are too many of them, or charge it."""
        most = self.max_concurrent
        if most is not None and self.in_flight > most:  # in_flight includes this request
            return Decision(OVERLOADED, {})
        model = _model(request)
        if model is None or "model" not in ENDPOINTS[request.method, request.path].required:
            return ADMITTED
        tokens = charged_tokens(request.body)
        return self._limiters.admit(request.api_key, model, tokens, request.arrived)

    def _check_key(self, request: RecordedRequest) -> HTTPFault | None:
        key = request.api_key
        if not key:
            return HTTPFault(401, body=error_body(NO_KEY, "invalid_request_error"))
        if self.api_keys is not None and key not in self.api_keys:
            return HTTPFault(401)
        return None

    def _regular(self, request: RecordedRequest) -> Body:
        """Make the body that a fault alters, even if the reply function returns a fault."""
        said = self._ask(request)
        return make_body(request, digest(request) if isinstance(said, Fault) else said)

    def _ask(self, request: RecordedRequest) -> Said | Fault:
        return self.reply(request) if is_for_model(request) else ""


def _model(request: RecordedRequest) -> str | None:
    model = request.body.get("model") if isinstance(request.body, dict) else None
    return model if isinstance(model, str) else None


def _parse(raw: bytes) -> Any:
    try:
        return json.loads(raw)
    except ValueError:
        return None
