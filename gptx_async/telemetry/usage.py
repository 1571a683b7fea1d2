"""Read the tokens that a server reports with an answer."""

from __future__ import annotations

from ..checks import token_count

__all__ = ["Usage", "tokens_of", "usage_of"]

Usage = tuple[int, int, int]
"""Input tokens, how many of them were cached, and output tokens."""


def usage_of(response: object) -> Usage | None:
    """Return the tokens of a chat or responses answer, or None if the server reports none."""
    usage = getattr(response, "usage", None)
    if usage is None:
        return None
    if getattr(usage, "prompt_tokens", None) is not None:
        names = ("prompt_tokens", "completion_tokens", "prompt_tokens_details")
    else:
        names = ("input_tokens", "output_tokens", "input_tokens_details")
    reported_in, reported_out, details = (getattr(usage, name, None) for name in names)
    tokens_in = token_count(reported_in)
    tokens_out = token_count(0 if reported_out is None else reported_out)  # embeddings have none
    if tokens_in is None or tokens_out is None:
        return None
    cached = token_count(getattr(details, "cached_tokens", None)) or 0
    return tokens_in, min(cached, tokens_in), tokens_out


def tokens_of(response: object) -> int | None:
    """Return the tokens of an answer and its prompt, or None if the server reports none."""
    usage = usage_of(response)
    return None if usage is None else usage[0] + usage[2]
