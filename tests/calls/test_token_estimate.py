"""Estimates of a call's tokens."""

from __future__ import annotations

from typing import Any

import pytest

from gptx_async.calls.token_estimate import (
    CHARACTERS_PER_TOKEN,
    estimate_tokens,
    most_answer_tokens,
    prompt_texts,
)
from gptx_async.checks import MOST_TOKENS


def test_text_is_counted_and_pictures_are_not() -> None:
    content = [
        {"type": "text", "text": "x" * 40},
        {"type": "image_url", "image_url": {"url": "data:" + "x" * 10_000}},
    ]
    messages = [{"role": "system", "content": "y" * 40}, {"role": "user", "content": content}]
    assert estimate_tokens({"messages": messages}) == 80 // CHARACTERS_PER_TOKEN


@pytest.mark.parametrize("messages", [None, 5, [None], [{"content": {"text": []}}], "text"])
def test_a_prompt_of_any_shape_is_estimated(messages: Any) -> None:
    assert estimate_tokens({"messages": messages}) in (0, 1)


@pytest.mark.parametrize(("text", "tokens"), [("", 0), ("x", 1), ("xxxx", 1), ("xxxxx", 2)])
def test_an_estimate_is_rounded_up(text: str, tokens: int) -> None:
    assert estimate_tokens({"messages": [{"role": "user", "content": text}]}) == tokens


def test_the_texts_of_every_kind_of_prompt_are_found() -> None:
    texts = {"messages": "a", "input": ["b", "c"], "prompt": "d", "instructions": "e"}
    assert [*prompt_texts({**texts, "model": "f"})] == [*"abcde"]


@pytest.mark.parametrize(
    ("kwargs", "tokens"),
    [
        ({}, None),
        ({"max_tokens": 7}, 7),
        ({"max_output_tokens": 7, "n": 3}, 21),
        ({"max_completion_tokens": 5, "max_tokens": 7}, 5),
        ({"max_tokens": 7, "n": 0}, 7),
        ({"max_tokens": -1}, None),
        ({"max_tokens": "7"}, None),
        ({"max_tokens": 10**400}, MOST_TOKENS),
    ],
    ids=str,
)
def test_the_most_tokens_of_an_answer(kwargs: dict[str, Any], tokens: int | None) -> None:
    assert most_answer_tokens(kwargs) == tokens
