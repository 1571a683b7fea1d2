"""Estimate the tokens of a call from its arguments, without a tokenizer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ..checks import MOST_TOKENS

__all__ = ["CHARACTERS_PER_TOKEN", "estimate_tokens", "most_answer_tokens", "prompt_texts"]

CHARACTERS_PER_TOKEN = 4
"""OpenAI's rule of thumb for English text
(https://help.openai.com/en/articles/4936856-what-are-tokens-and-how-to-count-them)."""

_PROMPTS = ("messages", "input", "prompt", "instructions")

_ANSWER_LIMITS = ("max_completion_tokens", "max_tokens", "max_output_tokens")


def estimate_tokens(kwargs: Mapping[str, Any]) -> int:
    """Return an estimate of the prompt's tokens, from the number of characters.

    Pictures and files are not counted, because their size says nothing about their tokens.

    Args:
        kwargs: The keyword arguments of the client's method.
    """
    characters = sum(map(len, prompt_texts(kwargs)))
    return -(-characters // CHARACTERS_PER_TOKEN)


def most_answer_tokens(kwargs: Mapping[str, Any]) -> int | None:
    """Return the most tokens that the call's answers may have, or None if nothing limits them.

    Args:
        kwargs: The keyword arguments of the client's method.
    """
    for name in _ANSWER_LIMITS:
        limit = kwargs.get(name)
        if isinstance(limit, int) and limit >= 0:
            answers = kwargs.get("n")
            most = limit * (answers if isinstance(answers, int) and answers > 0 else 1)
            return min(most, MOST_TOKENS)
    return None


def prompt_texts(kwargs: Mapping[str, Any]) -> Iterator[str]:
    """Yield all texts of a call's prompt.

    Args:
        kwargs: The keyword arguments of the client's method.
    """
    return _texts([kwargs.get(name) for name in _PROMPTS])


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from _texts(value.get("content"))
        yield from _texts(value.get("text"))
    elif isinstance(value, list):
        for each in value:
            yield from _texts(each)
