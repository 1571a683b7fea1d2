"""Arguments that make no sense: whatever is given, ours does what GPTXChatEngine does.

Or, for what is ours alone, an error says which argument is at fault. Nothing hangs, and the other
items of a batch are answered.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import copy
import datetime
import decimal
import fractions
import hashlib
import itertools
import logging
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import openai
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from symai import Symbol
from symai.backend.engines.neurosymbolic.engine_openai_gptX_chat import GPTXChatEngine

from gptx_async import AsyncGPTXBatchEngine
from gptx_async.errors import ServiceClosedError
from gptx_async.loop.service import default_service
from gptx_async.testing import FakeOpenAI, HTTPFault, RecordedRequest
from support.hostile import make_argument, outcome_of, seen

KEY, MODEL = "sk-of-the-bad-input", "gpt-4o-mini"

DEADLINE = 20.0
"""Seconds within which each way to ask ends: else it hangs."""

DRAWN = settings(
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

Make = Callable[[], Any]
"""Makes a value anew: one that is used up, or changed, is not to be seen by two engines."""


class Raising:
    """Raises whatever is done with it."""

    def _raise(self, *_args: object) -> Any:
        raise LookupError("nothing can be done with this value")

    __str__ = __repr__ = __len__ = __iter__ = __bool__ = __int__ = __float__ = __hash__ = _raise
    __eq__ = __lt__ = __gt__ = __getitem__ = __contains__ = __call__ = keys = _raise

    def __deepcopy__(self, _memo: object) -> Raising:
        return self


class TextlessError(Exception):
    """An exception that has no text."""

    def __str__(self) -> str:
        raise LookupError("this exception has no text")


def cyclic_list() -> Any:
    value: list[Any] = [1]
    value.append(value)
    return value


def cyclic_dict() -> Any:
    value: dict[str, Any] = {"type": "function"}
    value["function"] = value
    return [value]


def deep() -> Any:
    value: dict[str, Any] = {"type": "object"}
    for _ in range(5000):
        value = {"properties": value}
    return [{"type": "function", "function": {"name": "deep", "parameters": value}}]


def endless_name() -> Any:
    return "x" * 300_000


ODD: dict[str, Make] = {
    "None": lambda: None,
    "True": lambda: True,
    "0": lambda: 0,
    "-1": lambda: -1,
    "2**63": lambda: 2**63,
    "10**400": lambda: 10**400,
    "-0.0": lambda: -0.0,
    "NaN": lambda: float("nan"),
    "inf": lambda: float("inf"),
    "-inf": lambda: float("-inf"),
    "complex": lambda: 1j,
    "Decimal": lambda: decimal.Decimal("0.5"),
    "Fraction": lambda: fractions.Fraction(1, 2),
    "empty": lambda: "",
    "null byte": lambda: "\0",
    "lone surrogate": lambda: "a\ud800b",
    "reversed surrogates": lambda: "\udc00\ud800",
    "key of a surrogate": lambda: {"\ud800": "\udfff"},
    "long": endless_name,
    "special token": lambda: "<|endoftext|>",
    "bytes": lambda: b"\xff",
    "bytearray": lambda: bytearray(b"ab"),
    "empty list": list,
    "empty dict": dict,
    "empty tuple": lambda: (),
    "list of None": lambda: [None],
    "set": lambda: {1},
    "frozenset": lambda: frozenset({"a"}),
    "range": lambda: range(3),
    "keys that are no strings": lambda: {1: 2, None: 3, (1, 2): 4, 1.5: 5, False: 6},
    "tuple": lambda: ({"type": "function"},),
    "iterator": lambda: iter([{"type": "function", "function": {"name": "f"}}]),
    "generator": lambda: ({"type": "function"} for _ in range(2)),
    "cyclic list": cyclic_list,
    "cyclic dict": cyclic_dict,
    "deep": deep,
    "object": object,
    "raising": Raising,
    "list of raising": lambda: [Raising()],
    "class": lambda: int,
    "function": lambda: len,
    "exception": lambda: ValueError("a value"),
    "date": lambda: datetime.date(2026, 1, 1),
    "ellipsis": lambda: ...,
    "not given": lambda: openai.NOT_GIVEN,
    "tools of objects": lambda: [{"type": "function", "function": {"name": object()}}],
    "tools of NaN": lambda: [
        {"type": "function", "function": {"name": "f", "parameters": {"minimum": float("nan")}}}
    ],
    "tools of a set": lambda: [{"type": "function", "function": {"name": {"f"}}}],
    "tools of a date": lambda: [{"type": "function", "function": datetime.date(2026, 1, 1)}],
    "schema without a type": lambda: {"schema": {}},
    "schema of nonsense": lambda: {"type": "json_schema", "json_schema": 3},
    "Symbol": lambda: Symbol("a symbol"),
    "model": lambda: "no-such-model",
}

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(codec=None), max_size=5),
    lambda children: (
        st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=3), children, max_size=3)
    ),
    max_leaves=6,
)
"""What JSON may hold, with NaN and lone surrogates, which it may not."""


@dataclass(frozen=True)
class Made:
    """A value with a name that hypothesis can show, made anew for each engine."""

    name: str
    make: Make

    def __repr__(self) -> str:
        return f"<{self.name}>"


VALUES = st.sampled_from([Made(*each) for each in ODD.items()]) | JSON.map(
    lambda value: Made(ascii(value), lambda: copy.deepcopy(value))
)

PARAMETERS = (
    *("model", "seed", "max_tokens", "max_completion_tokens", "stop", "temperature"),
    *("frequency_penalty", "presence_penalty", "top_p", "n", "logit_bias", "tools"),
    *("tool_choice", "response_format", "logprobs", "top_logprobs"),
)
"""What becomes a part of the request."""

OPTIONS = (
    *("truncation_percentage", "truncation_type", "payload", "examples", "prompt", "raw_input"),
    *("template_suffix", "suppress_verbose_output", "response_format", "except_remedy"),
    *("input_handler", "output_handler", "preview", "raw_output", "return_metadata"),
)
"""What symbolicai itself looks at. Not `self_prompt`: it queries the registered engine."""

REFUSED = "refuse"

ADDRESS = re.compile(rb"0x[0-9a-f]{6,}")


def reply(request: RecordedRequest) -> Any:
    """Answer with what stands for the whole request, whatever `n` may be; refuse some."""
    if REFUSED in request.user_text:
        return HTTPFault(400, "bad request here")
    whole = hashlib.sha256(ADDRESS.sub(b"0x", request.raw)).hexdigest()
    message = {"role": "assistant", "content": f"{request.user_text[:40]} {whole}"}
    choice = {"index": 0, "finish_reason": "stop", "message": message}
    return {"id": "1", "object": "chat.completion", "created": 1, "choices": [choice]}


@dataclass
class Subject:
    """The two engines on one server."""

    sync: Any
    engine: AsyncGPTXBatchEngine
    in_thread: Callable[..., concurrent.futures.Future[Any]]

    def ask(self, engine: Any, make: Make) -> Any:
        """Prepare an argument and ask for it, as a query does."""

        def call() -> Any:
            argument = make()
            engine.prepare(argument)
            return engine(argument)

        return self.in_thread(outcome_of, call).result(DEADLINE)

    def ask_batch(self, *makes: Make) -> list[Any]:
        def call() -> Any:
            return self.engine([make() for make in makes])

        pairs = self.in_thread(call).result(DEADLINE)
        assert len(pairs) == len(makes)
        return [
            seen(metadata["exception"]) if metadata.get("error") else ("returned", outputs)
            for outputs, metadata in pairs
        ]

    def check(self, make: Make) -> Any:
        """Ask for a bad one in each way, and compare; return what the sync engine does."""
        expected = self.ask(self.sync, make)
        assert self.ask(self.engine, make) == expected
        first, batched, last = self.ask_batch(
            lambda: make_argument("first"), make, lambda: make_argument("last")
        )
        assert batched == expected
        for text, outcome in (("first", first), ("last", last)):
            kind, outputs = outcome
            assert kind == "returned"
            assert outputs[0].startswith(text)
        return expected


@pytest.fixture(scope="module")
def engines() -> Iterator[tuple[Any, AsyncGPTXBatchEngine]]:
    """Build the engines once, for it takes a while."""
    environment = pytest.MonkeyPatch()
    with FakeOpenAI(reply, keep_requests=10) as server:
        environment.setenv("OPENAI_BASE_URL", server.base_url)
        sync = GPTXChatEngine(KEY, MODEL, client_max_retries=0)
        yield sync, AsyncGPTXBatchEngine(KEY, MODEL, client_max_retries=0)
        sync.client.close()
    environment.undo()
    default_service().close()


@pytest.fixture
def subject(
    engines: tuple[Any, AsyncGPTXBatchEngine],
    in_thread: Callable[..., concurrent.futures.Future[Any]],
) -> Subject:
    return Subject(*engines, in_thread)


@DRAWN
@given(name=st.sampled_from(PARAMETERS), value=VALUES)
@example(name="n", value=Made("0", lambda: 0))
@example(name="n", value=Made("a billion", lambda: 10**9))
@example(name="max_tokens", value=Made("-1", lambda: -1))
@example(name="max_completion_tokens", value=Made("-1", lambda: -1))
@example(name="top_logprobs", value=Made("-1", lambda: -1))
@pytest.mark.slow
def test_a_parameter_of_the_request(subject: Subject, name: str, value: Made) -> None:
    subject.check(lambda: make_argument("text", **{name: value.make()}))


@pytest.mark.parametrize("value", ODD.values(), ids=ODD.keys())
@pytest.mark.slow
def test_tools_that_are_none(subject: Subject, value: Make) -> None:
    subject.check(lambda: make_argument("text", tools=value()))


@DRAWN
@given(name=st.sampled_from(OPTIONS), value=VALUES)
def test_an_option_that_symbolicai_looks_at(subject: Subject, name: str, value: Made) -> None:
    subject.check(lambda: make_argument("text", **{name: value.make()}))


@settings(DRAWN, max_examples=40)
@given(keywords=st.dictionaries(st.sampled_from([*PARAMETERS, *OPTIONS]), VALUES, max_size=4))
def test_several_of_them_at_once(subject: Subject, keywords: dict[str, Made]) -> None:
    subject.check(
        lambda: make_argument("text", **{name: made.make() for name, made in keywords.items()})
    )


@settings(DRAWN, max_examples=60)
@given(value=VALUES, raw=st.booleans())
@pytest.mark.slow
def test_an_input_that_is_no_text(subject: Subject, value: Made, raw: bool) -> None:
    def make() -> Any:
        argument = make_argument("text", raw_input=raw)
        argument.prop.processed_input = value.make()
        return argument

    subject.check(make)


@settings(DRAWN, max_examples=40)
@given(text=st.text(st.characters(codec=None), max_size=200))
@example(text="\ud83d\ude00 as two surrogates")
@example(text="\0\x1b[31m\u202e")
@example(text="x" * 300_000)
@pytest.mark.slow
def test_any_text(subject: Subject, text: str) -> None:
    subject.check(lambda: make_argument(text))


@settings(DRAWN, max_examples=50)
@given(value=VALUES)
def test_a_prompt_that_was_prepared_by_hand(subject: Subject, value: Made) -> None:
    """What is prepared already is not prepared again by a batch; None is."""

    def call(engine: Any) -> Callable[[], Any]:
        def forward() -> Any:
            argument = make_argument("text")
            argument.prop.prepared_input = value.make()
            return engine.forward(argument)

        return forward

    expected = subject.in_thread(outcome_of, call(subject.sync)).result(DEADLINE)
    assert subject.in_thread(outcome_of, call(subject.engine)).result(DEADLINE) == expected


@pytest.mark.parametrize("value", ODD.values(), ids=ODD.keys())
def test_a_remedy_that_is_not_callable(subject: Subject, value: Make) -> None:
    outcome = subject.check(lambda: make_argument(REFUSED, except_remedy=value()))
    assert outcome[0] == "raised"


@pytest.mark.parametrize("value", ODD.values(), ids=ODD.keys())
def test_a_remedy_that_returns_nonsense(subject: Subject, value: Make) -> None:
    subject.check(lambda: make_argument(REFUSED, except_remedy=lambda *_: value()))


RAISED: dict[str, Callable[[], BaseException]] = {
    "one without a text": TextlessError,
    "StopIteration": StopIteration,
    "StopAsyncIteration": StopAsyncIteration,
    "RecursionError": lambda: RecursionError("maximum recursion depth exceeded"),
    "MemoryError": MemoryError,
    "a timeout": TimeoutError,
    "a group": lambda: ExceptionGroup("several", [ValueError("one")]),
    "one that holds itself": lambda: _holding_itself(),
    "a text of 1 MB": lambda: ValueError("x" * 2**20),
    "a lone surrogate": lambda: ValueError("\ud800"),
}


def _holding_itself() -> BaseException:
    error = ValueError("one")
    other = ValueError("other")
    error.__cause__, other.__cause__ = other, error
    error.__context__, other.__context__ = other, error
    return error


@pytest.mark.parametrize("kind", RAISED)
@pytest.mark.parametrize("where", ["except_remedy", "input_handler", "output_handler"])
def test_what_a_callback_raises(subject: Subject, kind: str, where: str) -> None:
    def callback(*_args: Any) -> Any:
        raise RAISED[kind]()

    text = REFUSED if where == "except_remedy" else "text"
    outcome = subject.check(lambda: make_argument(text, **{where: callback}))
    assert outcome[:2] == ("raised", type(RAISED[kind]()).__qualname__)


class Shallow:
    """Like an Argument, but not enough."""

    prop = object()


class Closed:
    """Does not even say which attributes it has."""

    @property
    def prop(self) -> Any:
        raise LookupError("closed")


NO_ARGUMENTS: dict[str, Make] = {**ODD, "shallow": Shallow, "closed": Closed}


@pytest.mark.parametrize("value", NO_ARGUMENTS.values(), ids=NO_ARGUMENTS.keys())
@pytest.mark.parametrize("way", ["forward", "__call__", "aforward"])
@pytest.mark.slow
def test_an_item_that_is_no_argument(subject: Subject, value: Make, way: str) -> None:
    engine = subject.engine
    arguments = [make_argument("first"), value(), make_argument("last")]
    if way == "aforward":
        answers = subject.in_thread(asyncio.run, engine.aforward(arguments)).result(DEADLINE)
    else:
        answers = subject.in_thread(getattr(engine, way), arguments).result(DEADLINE)
    pairs = answers if way == "__call__" else list(zip(*answers, strict=True))
    (first, _), (_, metadata), (last, _) = pairs
    assert first[0].startswith("first")
    assert last[0].startswith("last")
    assert metadata["error"] is True
    assert isinstance(metadata["exception"], Exception)


@pytest.mark.parametrize(
    "value",
    [make for name, make in NO_ARGUMENTS.items() if not isinstance(make(), list | tuple)],
    ids=[name for name, make in NO_ARGUMENTS.items() if not isinstance(make(), list | tuple)],
)
@pytest.mark.parametrize("way", ["forward", "__call__"])
def test_what_is_no_argument_alone(subject: Subject, value: Make, way: str) -> None:
    """A list or a tuple is a batch."""
    expected, actual = (
        subject.in_thread(outcome_of, lambda e=engine: getattr(e, way)(value())).result(DEADLINE)
        for engine in (subject.sync, subject.engine)
    )
    assert actual == expected
    assert actual[0] == "raised"


def test_a_batch_that_holds_itself(subject: Subject) -> None:
    arguments: list[Any] = [make_argument("first")]
    arguments.append(arguments)
    outputs, metadatas = subject.in_thread(subject.engine.forward, arguments).result(DEADLINE)
    assert outputs[0][0].startswith("first")
    assert isinstance(metadatas[1]["exception"], TypeError)


def test_one_argument_many_times_in_a_batch(subject: Subject) -> None:
    one = make_argument("text")
    outputs, _ = subject.in_thread(subject.engine.forward, [one] * 50).result(DEADLINE)
    assert len(outputs) == 50
    assert all(output == outputs[0] for output in outputs)


BAD_LIMITS: dict[str, Any] = {
    "0": 0,
    "-1": -1,
    "-inf": float("-inf"),
    "NaN": float("nan"),
    "True": True,
    "text": "5",
    "bytes": b"5",
    "list": [5],
    "dict": {},
    "complex": 1j,
    "object": object(),
    "class": int,
    "raising": Raising(),
    "10**400": 10**400,
    "Decimal": decimal.Decimal(5),
}


@pytest.mark.parametrize("value", BAD_LIMITS.values(), ids=BAD_LIMITS.keys())
@pytest.mark.parametrize(
    ("where", "name"),
    [
        *itertools.product(("the engine", "an attribute"), ("window", "deadline", "timeout")),
        *itertools.product(("forward", "__call__", "aforward"), ("deadline", "timeout")),
    ],
)
@pytest.mark.slow
def test_a_limit_that_is_none_is_named_or_holds(
    subject: Subject, where: str, name: str, value: Any
) -> None:
    """What cannot be a limit is an error that names it; what can be one does not harm."""
    outcome = outcome_of(lambda: (_answer_within(subject, where, name, value), {}))
    if outcome[0] == "raised":
        assert name in outcome[2], f"the error does not name {name}: {outcome}"
    else:
        assert isinstance(value, int | decimal.Decimal)
        assert value > 0
        assert outcome[1][0][0].startswith("text"), "what is so long does not pass at once"


def _answer_within(subject: Subject, where: str, name: str, value: Any) -> Any:
    engine = subject.engine
    arguments = [make_argument("text")]
    if where == "the engine":
        engine = AsyncGPTXBatchEngine(KEY, MODEL, client_max_retries=0, **{name: value})
    elif where == "an attribute":
        before = getattr(engine, name)
        try:
            setattr(engine, name, value)
            return subject.in_thread(engine.forward, arguments).result(DEADLINE)[0]
        finally:
            setattr(engine, name, before)
    options = {} if where == "the engine" else {name: value}
    match where:
        case "aforward":
            asking = lambda: asyncio.run(engine.aforward(arguments, **options))  # noqa: E731
        case "__call__":
            asking = lambda: ([pair[0] for pair in engine(arguments, **options)],)  # noqa: E731
        case _:
            asking = lambda: engine.forward(arguments, **options)  # noqa: E731
    return subject.in_thread(asking).result(DEADLINE)[0]


@pytest.mark.parametrize("limit", [1e-320, 1e-9, 0.5, 1e300, float("inf"), 2**62])
def test_a_limit_may_be_any_number_above_zero(subject: Subject, limit: float) -> None:
    for name in ("deadline", "timeout"):
        outputs, metadatas = subject.in_thread(
            lambda name=name: subject.engine.forward([make_argument("text")], **{name: limit})
        ).result(DEADLINE)
        error = metadatas[0].get("exception")
        if limit >= 1e-3 or error is None:  # an answer may be as quick as the shortest limit
            assert outputs[0][0].startswith("text")
        else:
            assert isinstance(error, TimeoutError)


def test_a_service_that_ends_is_no_deadline(subject: Subject) -> None:
    """The clock of a deadline runs on the loop, and ends with it; that is not its time."""
    with FakeOpenAI() as held:
        held.hold()
        engine = copy.copy(subject.engine)
        engine.client.base_url = held.base_url
        asked = subject.in_thread(
            lambda: engine.forward([make_argument(f"{i}") for i in range(5)], deadline=DEADLINE)
        )
        held.wait_for(lambda server: server.in_flight == 5)
        default_service().close()
        _, metadatas = asked.result(DEADLINE)
        for metadata in metadatas:
            error = metadata["exception"]
            assert isinstance(error, ServiceClosedError) or isinstance(
                error.__context__, ServiceClosedError
            ), repr(error)


@pytest.fixture
def _no_new_handlers() -> Iterator[None]:
    """Take away the handlers that each engine of symbolicai adds to the root logger."""
    before = [*logging.getLogger().handlers]
    api_key = openai.api_key
    yield
    logging.getLogger().handlers[:] = before
    openai.api_key = api_key


def _built_and_asked(engine_class: Any, **given: Any) -> tuple[list[Any], dict[str, Any]]:
    engine = engine_class(**{"api_key": KEY, "model": MODEL, "client_max_retries": 0, **given})
    try:
        if engine.id() != "neurosymbolic":
            return [engine.id()], {}
        argument = make_argument("text")
        engine.prepare(argument)
        answer: tuple[list[Any], dict[str, Any]] = engine.forward(argument)
        return answer
    finally:
        if hasattr(engine, "client"):
            engine.client.close()


@settings(DRAWN, max_examples=50)
@given(name=st.sampled_from(["api_key", "model"]), value=VALUES)
@example(name="api_key", value=Made("a line's end", lambda: "sk-\r\nx-other: header"))
@example(name="api_key", value=Made("a null byte", lambda: "sk-\0"))
@example(name="api_key", value=Made("no ASCII", lambda: "sk-\u4e2d"))
@example(name="api_key", value=Made("a lone surrogate", lambda: "sk-\ud800"))
@pytest.mark.usefixtures("_no_new_handlers")
@pytest.mark.slow
def test_what_the_engine_is_built_with(subject: Subject, name: str, value: Made) -> None:
    """Built like the sync engine, or not; and when it is built, asking is like asking that one."""
    expected, actual = (
        subject.in_thread(
            outcome_of,
            lambda each=engine_class: _built_and_asked(each, **{name: value.make()}),
        ).result(DEADLINE)
        for engine_class in (GPTXChatEngine, AsyncGPTXBatchEngine)
    )
    if actual != expected:
        assert actual[0] == "raised"
        assert name in actual[2], f"{actual} neither is {expected} nor names {name}"


@pytest.mark.parametrize("value", BAD_LIMITS.values(), ids=BAD_LIMITS.keys())
@pytest.mark.parametrize("name", ["client_timeout", "client_max_retries"])
@pytest.mark.usefixtures("_no_new_handlers")
def test_a_limit_of_the_client_that_is_none_is_named_or_holds(
    subject: Subject, name: str, value: Any
) -> None:
    """Without the sync engine, which leaves its sockets open over some of these."""
    outcome = subject.in_thread(
        outcome_of, lambda: _built_and_asked(AsyncGPTXBatchEngine, **{name: value})
    ).result(DEADLINE)
    if outcome[0] == "raised":
        told = outcome[2].replace("Request timed out", name).replace("max_retries", name)
        assert name in told, f"the error does not name {name}: {outcome}"
    else:
        assert isinstance(value, int | decimal.Decimal)
        assert value >= 0
        assert name == "client_max_retries" or value > 0, "no time is not for ever"


@pytest.mark.parametrize("parameter", ["tools", "stop", "logit_bias"])
def test_what_a_payload_runs_when_it_is_read_runs_in_the_asking_thread(
    subject: Subject, parameter: str
) -> None:
    """On the loop's thread it would hold up every other call of the process, and may not ask."""
    threads: list[threading.Thread] = []

    class Telling(list[Any]):
        def __iter__(self) -> Iterator[Any]:
            threads.append(threading.current_thread())
            return super().__iter__()

    def generate() -> Iterator[Any]:
        threads.append(threading.current_thread())
        yield {"type": "function", "function": {"name": "f"}}

    value = generate() if parameter == "tools" else Telling(["a"])

    def ask() -> Any:
        argument = make_argument("text", **{parameter: value})
        subject.engine.prepare(argument)
        return subject.engine(argument)

    subject.in_thread(outcome_of, ask).result(DEADLINE)
    names = {thread.name for thread in threads}
    assert "gptx_async-loop" not in names, f"it ran on {names}"


def test_a_payload_that_is_slow_to_read_does_not_keep_the_others_waiting(
    subject: Subject,
) -> None:
    reading, go_on = threading.Event(), threading.Event()

    def generate() -> Iterator[Any]:
        reading.set()
        go_on.wait(DEADLINE)
        yield {"type": "function", "function": {"name": "f"}}

    def ask(**keywords: Any) -> Any:
        argument = make_argument("text", **keywords)
        subject.engine.prepare(argument)
        return subject.engine(argument)

    slow = subject.in_thread(ask, tools=generate())
    assert reading.wait(DEADLINE)
    try:
        assert subject.in_thread(ask).result(5)[0][0].startswith("text")
    finally:
        go_on.set()
        answers = slow.result(DEADLINE)
    assert answers[0][0].startswith("text")
