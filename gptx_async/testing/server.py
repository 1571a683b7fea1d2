"""`FakeOpenAI`: an OpenAI-compatible server on the loopback interface, in a thread of its own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import signal
import threading
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator, Mapping
from types import TracebackType
from typing import Any, NamedTuple

from aiohttp import web

from .. import clock
from ..checks import check_choice
from .answers import ENDPOINTS, Body, find_mistake, is_for_model, make_body
from .faults import Exchange, Fault, HTTPFault, error_body
from .limits import ADMITTED, Decision, Limiters, RateLimits, charged_tokens
from .replies import LatencyFunction, RecordedRequest, ReplyFunction, Said, digest, echo
from .server_thread import ServerThread

__all__ = ["Answered", "FakeOpenAI", "serve"]

NO_KEY = (
    "You didn't provide an API key. You need to provide your API key in an Authorization header "
    "using Bearer auth (i.e. Authorization: Bearer YOUR_KEY)."
)

OVERLOADED = HTTPFault(503, "The server is overloaded or not ready yet.", "server_error")
"""As https://github.com/openai/web-crawl-q-and-a-example/issues/6 and many others report it."""


class Answered(NamedTuple):
    """An answer that was begun.

    Attributes:
        at: When, in seconds of `gptx_async.clock`.
        model: The model that was asked, if one was.
        status: The HTTP status.
    """

    at: float
    model: str | None
    status: int


class _Outage(NamedTuple):
    """How every request fails, and until when, in seconds of `gptx_async.clock`."""

    fault: Fault
    until: float


class FakeOpenAI:
    """An OpenAI-compatible server for tests, on a port that the system picks.

    It answers `POST /v1/chat/completions`, `/v1/responses`, `/v1/embeddings` and `GET /v1/models`,
    keeps what it was sent, and can be late or faulty. It runs on its own daemon thread, whatever
    loops the test has; all its methods and attributes may be used in any thread. Equal requests get
    equal answers, unless the reply says otherwise.

        with FakeOpenAI(reply=canned("Hello"), latency=0.2) as server:
            client = openai.OpenAI(base_url=server.base_url, api_key="sk-test")

    Attributes:
        reply: Decides what the model says, a function of the request; may be set at any time.
        latency: After how many seconds a request is answered: a number, or a function of the
            request; may be set at any time.
        faults: Decides what goes wrong with a request: a function of it, which returns a `Fault` or
            None; may be set at any time.
        api_keys: The keys that are accepted; None for any but an empty one.
        max_concurrent: How many requests may be in flight; those above are answered 503, at once.
            None for no limit; may be set at any time.

    Args:
        reply: See above.
        latency: See above.
        faults: See above.
        api_keys: See above.
        rate_limits: See the attribute.
        max_concurrent: See above.
        host: The address to listen on.
        port: The port to listen on; 0 for one that is free.
        keep_requests: How many of the last requests, and of the last answers, are kept; None for
            all of them.

    Raises:
        TypeError: The rate limits are of another type.
    """

    def __init__(
        self,
        reply: ReplyFunction = digest,
        *,
        latency: float | LatencyFunction = 0.0,
        faults: Callable[[RecordedRequest], Fault | None] | None = None,
        api_keys: Collection[str] | None = None,
        rate_limits: RateLimits | Mapping[str, RateLimits] | None = None,
        max_concurrent: int | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
        keep_requests: int | None = None,
    ) -> None:
        self.reply = reply
        self.latency = latency
        self.faults = faults
        self.api_keys = api_keys
        self.max_concurrent = max_concurrent
        self._host = host
        self._port = port
        self._lifecycle = threading.Lock()
        self._running: ServerThread | None = None
        # Guards the figures below, and tells those who wait that one has changed.
        self._changed = threading.Condition()
        self._requests: deque[RecordedRequest] = deque(maxlen=keep_requests)
        self._answers: deque[Answered] = deque(maxlen=keep_requests)
        self._statuses: Counter[int] = Counter()
        self._outage: _Outage | None = None
        self._limiters = Limiters(rate_limits)
        self._next_faults: deque[Fault] = deque()
        self._held = False
        self._waiters: list[asyncio.Future[None]] = []
        self._in_flight = 0
        self._max_in_flight = 0
        self._disconnected = 0

    def start(self) -> FakeOpenAI:
        """Start to listen, and return the server itself; if it runs already, only that.

        Raises:
            OSError: The address can't be listened on, or descriptors have run out.
            RuntimeError: No thread can be started.
        """
        with self._lifecycle:
            if self._running is None:
                running = ServerThread(self._handle, self._host, self._port)
                self._port = running.start()
                self._running = running
        return self

    def close(self) -> None:
        """Stop, dropping the requests in flight; a second call does nothing.

        What was recorded stays. The server can be started again, and then has the same port.
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
        """Return what a client takes as its base URL; after `close`, where the server was.

        Raises:
            RuntimeError: The server was not started yet.
        """
        if not self._port:
            raise RuntimeError("The fake server has no address before it is started: start it.")
        return f"http://{self._host}:{self._port}/v1"

    def openai_environment(self) -> dict[str, str]:
        """Return the environment variables that lead OpenAI's clients here, of a child process say.

        Raises:
            RuntimeError: The server was not started yet.
        """
        key = next(iter(self.api_keys)) if self.api_keys else "sk-fake"
        return {"OPENAI_BASE_URL": self.base_url, "OPENAI_API_KEY": key}

    @property
    def requests(self) -> list[RecordedRequest]:
        """Return the requests in their order of arrival; the list is a copy."""
        with self._changed:
            return list(self._requests)

    @property
    def rate_limits(self) -> RateLimits | Mapping[str, RateLimits] | None:
        """What is admitted of each model with each key; None for all.

        A mapping has the limits of each model, and none for others. May be set at any time, and
        then begins with full buckets. Charged is what a model would answer, at any endpoint: not a
        request that fails by its key, a mistake in it, `fail_next`, `faults`, an outage or
        `max_concurrent`.

        Raises:
            TypeError: What is set is neither `RateLimits` nor a mapping to such.
        """
        return self._limiters.limits

    @rate_limits.setter
    def rate_limits(self, limits: RateLimits | Mapping[str, RateLimits] | None) -> None:
        self._limiters = Limiters(limits)

    @property
    def answers(self) -> list[Answered]:
        """Return the answers in the order in which they were begun; the list is a copy.

        A request of which the connection is lost, by a fault or by the client, has none.
        """
        with self._changed:
            return list(self._answers)

    @property
    def statuses(self) -> Counter[int]:
        """Return how many answers had which HTTP status; a lost connection has none.

        It is a copy, and counts all answers since `clear`, whatever `keep_requests` is.
        """
        with self._changed:
            return self._statuses.copy()

    @property
    def in_flight(self) -> int:
        """Return how many requests have arrived and are not answered yet."""
        with self._changed:
            return self._in_flight

    @property
    def max_in_flight(self) -> int:
        """Return the most requests that were in flight at once."""
        with self._changed:
            return self._max_in_flight

    @property
    def disconnected(self) -> int:
        """Return of how many requests the client went away before the answer."""
        with self._changed:
            return self._disconnected

    def clear(self) -> None:
        """Forget the requests and answers, and count the disconnected, the most in flight anew.

        The buckets of `rate_limits` stay as they are.
        """
        with self._changed:
            self._requests.clear()
            self._answers.clear()
            self._statuses.clear()
            self._max_in_flight = self._in_flight
            self._disconnected = 0
            self._changed.notify_all()

    def wait_for(self, predicate: Callable[[FakeOpenAI], bool], timeout: float = 10.0) -> None:
        """Block the calling thread until the predicate holds, without polling.

            server.wait_for(lambda server: server.in_flight == 2)

        Args:
            predicate: Called with the server now and whenever one of its figures has changed. The
                server stands still meanwhile, so it must not block.
            timeout: How long to wait, in seconds.

        Raises:
            TimeoutError: The predicate did not hold in time; the message has the figures.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: predicate(self), timeout):
                raise TimeoutError(
                    f"The fake server was not as expected within {timeout} s. Requests recorded: "
                    f"{len(self._requests)}, in flight: {self._in_flight}, most in flight at once: "
                    f"{self._max_in_flight}, disconnected: {self._disconnected}, answered by "
                    f"status: {dict(self._statuses)}."
                )

    def hold(self) -> None:
        """Answer nothing from now on; requests are received and recorded, and wait."""
        with self._changed:
            self._held = True

    def release(self) -> None:
        """Answer again, first what was held back, in its order of arrival."""
        with self._changed:
            self._held = False
            waiters, self._waiters = self._waiters, []
        if waiters:
            with contextlib.suppress(RuntimeError):  # their loop is closed: the server was
                waiters[0].get_loop().call_soon_threadsafe(_wake, waiters)

    def begin_outage(self, fault: Fault = OVERLOADED) -> None:
        """Let every request fail that arrives from now on, whatever its key, until `end_outage`.

        Args:
            fault: How; `Reset()` for a server that drops its connections.
        """
        self._set_outage(fault, math.inf)

    def end_outage(self) -> None:
        """Answer again as before the outage; without one, this does nothing."""
        with self._changed:
            self._outage = None

    def outage_for(self, seconds: float, fault: Fault = OVERLOADED) -> None:
        """Let every request fail that arrives within a time, and return at once.

        Args:
            seconds: How long the outage lasts from now on; it takes the place of one that lasts.
            fault: How, as with `begin_outage`.
        """
        self._set_outage(fault, clock.seconds() + seconds)

    @contextlib.contextmanager
    def outage(self, fault: Fault = OVERLOADED) -> Iterator[None]:
        """Let every request fail that arrives while the block runs.

        Args:
            fault: How, as with `begin_outage`.
        """
        self.begin_outage(fault)
        try:
            yield
        finally:
            self.end_outage()

    def _set_outage(self, fault: Fault, until: float) -> None:
        with self._changed:
            self._outage = _Outage(fault, until)

    def fail_next(self, fault: Fault, times: int = 1) -> None:
        """Let the next requests fail, before what `faults` and `reply` say; calls add up.

        Args:
            fault: What goes wrong.
            times: With how many requests.
        """
        with self._changed:
            self._next_faults.extend([fault] * times)

    async def _handle(self, http: web.Request) -> web.StreamResponse:
        raw = await http.read()
        request = RecordedRequest(
            http.method, http.path, http.headers, _parse(raw), raw, clock.seconds()
        )
        with self._counted(request):
            try:
                response = await self._answer(request, http)
            except Exception as error:
                # Said to the client, for there the test looks; a log would be seen by no one.
                response = await HTTPFault(
                    500, f"The fake server's reply, latency or fault raised {error!r}. Correct it."
                ).respond(Exchange(request, http, dict))
            self._note_answer(request, http, response.status)
            return response

    @contextlib.contextmanager
    def _counted(self, request: RecordedRequest) -> Iterator[None]:
        """Record the request, and count it as in flight until the block ends."""
        with self._changed:
            self._requests.append(request)
            self._in_flight += 1
            self._max_in_flight = max(self._max_in_flight, self._in_flight)
            self._changed.notify_all()
        gone = False
        try:
            yield
        except asyncio.CancelledError:  # aiohttp cancels the handler when the connection is lost
            gone = self._running is not None
            raise
        finally:
            with self._changed:
                self._in_flight -= 1
                self._disconnected += gone
                self._changed.notify_all()

    async def _answer(self, request: RecordedRequest, http: web.Request) -> web.StreamResponse:
        # All is decided at once, so that functions with a memory are called in order of arrival.
        seconds = self.latency(request) if callable(self.latency) else self.latency
        fault = self._find_fault(request)
        decision = ADMITTED if fault is not None else self._admit(request)
        said = fault or decision.fault or self._ask(request)
        await self._pass_gate()
        # What a limit refuses is no work, and told at once: it keeps nobody else out.
        if seconds and decision.fault is None:
            await asyncio.sleep(seconds)
        if not isinstance(said, Fault):
            return web.json_response(make_body(request, said), headers=decision.headers)
        response = await said.respond(Exchange(request, http, lambda: self._regular(request)))
        if not response.prepared:
            response.headers.update(decision.headers)
        return response

    async def _pass_gate(self) -> None:
        with self._changed:
            if not self._held:
                return
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
        await waiter

    def _find_fault(self, request: RecordedRequest) -> Fault | None:
        """Return what goes wrong with the request: by itself, or because the test wants it."""
        with self._changed:
            if self._outage is not None and request.arrived < self._outage.until:
                return self._outage.fault
        fault = self._check_key(request) or find_mistake(request)
        if fault is not None:
            return fault
        with self._changed:
            if self._next_faults:
                return self._next_faults.popleft()
        return self.faults(request) if self.faults is not None else None

    def _admit(self, request: RecordedRequest) -> Decision:
        """Refuse a request that is good if there are too many of them; else charge it."""
        most = self.max_concurrent
        if most is not None and self.in_flight > most:  # which counts the request itself
            return Decision(OVERLOADED, {})
        model = _model(request)
        if model is None or "model" not in ENDPOINTS[request.method, request.path].required:
            return ADMITTED
        tokens = charged_tokens(request.body)
        return self._limiters.admit(request.api_key, model, tokens, request.arrived)

    def _note_answer(self, request: RecordedRequest, http: web.Request, status: int) -> None:
        """Write the answer into the book; `_counted`, about to end, tells those who wait."""
        if http.transport is None or http.transport.is_closing():
            return  # the fault was to lose the connection
        with self._changed:
            self._answers.append(Answered(clock.seconds(), _model(request), status))
            self._statuses[status] += 1

    def _check_key(self, request: RecordedRequest) -> HTTPFault | None:
        key = request.api_key
        if not key:
            return HTTPFault(401, body=error_body(NO_KEY, "invalid_request_error"))
        if self.api_keys is not None and key not in self.api_keys:
            return HTTPFault(401)
        return None

    def _regular(self, request: RecordedRequest) -> Body:
        """Make the body that a fault spoils; what the reply says may be a fault itself."""
        said = self._ask(request)
        return make_body(request, digest(request) if isinstance(said, Fault) else said)

    def _ask(self, request: RecordedRequest) -> Said | Fault:
        return self.reply(request) if is_for_model(request) else ""


def serve(
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    latency: float | LatencyFunction = 0.0,
    reply: str = "digest",
    api_keys: Collection[str] | None = None,
    faults: Callable[[RecordedRequest], Fault | None] | None = None,
    requests_per_minute: float | None = None,
    tokens_per_minute: float | None = None,
    burst_seconds: float = 60.0,
    tell_limits: bool = True,
    max_concurrent: int | None = None,
) -> None:
    """Run a `FakeOpenAI` in the foreground, until SIGINT or SIGTERM: the command line's server.

    Prints the base URL on standard output when it listens. Call it in the main thread, before
    other threads are started.

    Args:
        host: The address to listen on.
        port: The port to listen on; 0 for one that is free.
        latency: After how many seconds a request is answered: a number, or a function of it.
        reply: What the model says: 'digest' or 'echo'.
        api_keys: The keys that are accepted; None for any but an empty one.
        faults: As for `FakeOpenAI`; `sometimes` makes such.
        requests_per_minute: The rate limit of each model with each key; None for no limit.
        tokens_per_minute: The same in tokens.
        burst_seconds: Of how many seconds' rate they admit a burst.
        tell_limits: Whether answers tell of them, in `x-ratelimit-*` headers and `retry-after`.
        max_concurrent: How many requests may be in flight; None for no limit.

    Raises:
        ConfigurationError: There is no such reply, or a rate limit is not above 0; it is a
            ValueError, too.
        OSError: The address can't be listened on.
    """
    replies: dict[str, ReplyFunction] = {"digest": digest, "echo": echo}
    check_choice("reply", reply, replies)
    limits = RateLimits(
        requests_per_minute,
        tokens_per_minute,
        burst_seconds=burst_seconds,
        send_headers=tell_limits,
        send_retry_after=tell_limits,
    )
    signals = {signal.SIGINT, signal.SIGTERM}
    # Blocked before the server's thread is started, which inherits that: sigwait alone takes them.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    server = FakeOpenAI(
        replies[reply],
        latency=latency,
        faults=faults,
        api_keys=api_keys,
        rate_limits=limits,
        max_concurrent=max_concurrent,
        host=host,
        port=port,
        keep_requests=0,
    )
    try:
        with server:
            print(server.base_url, flush=True)
            signal.sigwait(signals)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _model(request: RecordedRequest) -> str | None:
    model = request.body.get("model") if isinstance(request.body, dict) else None
    return model if isinstance(model, str) else None


def _parse(raw: bytes) -> Any:
    try:
        return json.loads(raw)
    except ValueError:
        return None


def _wake(waiters: list[asyncio.Future[None]]) -> None:
    for waiter in waiters:
        if not waiter.done():  # its client may have gone away
            waiter.set_result(None)
