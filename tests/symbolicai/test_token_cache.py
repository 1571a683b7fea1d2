"""The tokenizer that remembers: tiktoken's answers and errors, with fewer encodings."""

from __future__ import annotations

import copy
import pickle
from collections import Counter
from typing import Any

import pytest
import tiktoken
from symai import Symbol
from symai.backend.engines.neurosymbolic.engine_openai_gptX_chat import GPTXChatEngine
from symai.core import Argument

import gptx_async
from gptx_async.symbolicai.token_cache import REMEMBERED, RememberingEncoding, remembering
from gptx_async.testing import FakeOpenAI

KEY, MODEL = "sk-key", "gpt-4o-mini"
SPECIAL = "It ends <|endoftext|> here."


@pytest.fixture
def encoding() -> tiktoken.Encoding:
    return tiktoken.get_encoding("o200k_base")


TEXTS = ["", "a text", "é\u2028\U0001f600", "a lone \ud83d surrogate", "word " * 9000, "<|x|>"]


@pytest.mark.parametrize("text", [*TEXTS, SPECIAL], ids=lambda text: repr(text[:20]))
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"disallowed_special": ()},
        {"disallowed_special": {"<|x|>"}},
        {"allowed_special": "all"},
        {"allowed_special": {"<|endoftext|>"}},
        {"allowed_special": set(), "disallowed_special": frozenset()},
    ],
    ids=str,
)
def test_it_encodes_as_tiktoken_does_the_first_time_and_again(
    encoding: tiktoken.Encoding, text: str, options: dict[str, Any]
) -> None:
    def outcome(each: tiktoken.Encoding) -> Any:
        try:
            return each.encode(text, **options)
        except ValueError as error:
            return str(error)

    ours = RememberingEncoding(encoding)
    assert [outcome(ours), outcome(ours)] == [outcome(encoding)] * 2


@pytest.mark.parametrize("text", [None, 5, b"bytes", ["list"]])
def test_what_is_no_text_is_refused_as_by_tiktoken(encoding: tiktoken.Encoding, text: Any) -> None:
    def outcome(each: tiktoken.Encoding) -> Any:
        try:
            return each.encode(text)
        except Exception as error:
            return type(error), str(error)

    assert outcome(RememberingEncoding(encoding)) == outcome(encoding)


def test_the_list_is_the_callers_own(encoding: tiktoken.Encoding) -> None:
    ours = RememberingEncoding(encoding)
    ours.encode("a text").clear()
    assert ours.encode("a text") == encoding.encode("a text")


def test_it_is_like_the_other_in_everything_else(encoding: tiktoken.Encoding) -> None:
    ours = remembering(encoding)
    assert isinstance(ours, tiktoken.Encoding)
    assert (repr(ours), ours.n_vocab, ours.name) == (
        repr(encoding),
        encoding.n_vocab,
        encoding.name,
    )
    assert ours.decode(encoding.encode("a text")) == "a text"
    assert remembering(ours) is ours
    for again in (pickle.loads(pickle.dumps(ours)), copy.copy(ours), copy.deepcopy(ours)):
        assert again.encode("a text") == encoding.encode("a text")
    assert len(pickle.dumps(ours)) < 1000, "the vocabulary is not in it"
    assert remembering("another tokenizer") == "another tokenizer"


def test_it_forgets_the_oldest(encoding: tiktoken.Encoding) -> None:
    ours = RememberingEncoding(encoding)
    for number in range(3 * REMEMBERED):
        ours.encode(f"text {number}")
    assert ours._tokens_of.cache_info().currsize == REMEMBERED  # type: ignore[attr-defined]


def encodings_of_an_item(
    engine: Any, fake_openai: FakeOpenAI, monkeypatch: pytest.MonkeyPatch
) -> Counter[str]:
    """Return how often which text is encoded, in truth, for one item."""
    counted: Counter[str] = Counter()
    original = tiktoken.Encoding.encode

    def encode(self: Any, text: str, **options: Any) -> list[int]:
        counted[text] += 1
        return original(self, text, **options)

    argument = Argument((), {}, {"prompt": "Answer."})
    argument.prop.instance = Symbol("a text")
    argument.prop.processed_input = "word " * 8000
    engine.client.base_url = fake_openai.base_url
    with monkeypatch.context() as patch:
        patch.setattr(tiktoken.Encoding, "encode", encode)
        if hasattr(engine, "_sync_engine"):
            engine._sync_engine.tokenizer = remembering(engine.tokenizer._encoding)
        engine.prepare(argument)
        engine.forward(argument)
    return counted


def test_an_item_is_tokenised_a_fraction_as_often_as_by_the_sync_engine(
    fake_openai: FakeOpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync = encodings_of_an_item(GPTXChatEngine(KEY, MODEL), fake_openai, monkeypatch)
    engine = gptx_async.install(KEY, MODEL)  # which a Symbol asks for its tokens
    ours = encodings_of_an_item(engine, fake_openai, monkeypatch)
    gptx_async.uninstall()
    assert ours.keys() == sync.keys()
    assert set(ours.values()) == {1}
    assert ours.total() <= 0.4 * sync.total(), (ours.total(), sync.total())


class Alike(str):
    """A text that says to be equal to any other."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return True

    def __hash__(self) -> int:
        return hash("a text")


def test_a_kind_of_text_of_its_own_is_not_taken_for_another(encoding: tiktoken.Encoding) -> None:
    remembers = remembering(encoding)
    assert remembers.encode(Alike("a text")) == encoding.encode("a text")
    assert remembers.encode(Alike("another")) == encoding.encode("another")
