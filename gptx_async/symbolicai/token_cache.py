"""A tokenizer with a cache, because symbolicai's `forward` tokenizes each prompt several times.

It counts and truncates by `encode`, about ten times per item, for the same few texts. Recently
encoded texts come from the cache; everything else is tiktoken's own code.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Set
from typing import Any, Literal

import tiktoken

__all__ = ["RememberingEncoding", "remembering"]

REMEMBERED = 32
"""Number of texts in the cache. An item has a few texts, encoded one after another, but several
threads encode at once. A prompt of 8,000 tokens takes about 100 kB."""


class RememberingEncoding(tiktoken.Encoding):
    """An `Encoding` that shares the data of another encoding and caches what it encodes.

    Allowed in any thread.

    Args:
        encoding: The other encoding.
    """

    def __init__(self, encoding: tiktoken.Encoding) -> None:
        self.__dict__.update(encoding.__dict__)
        self._encoding = encoding
        self._tokens_of: Callable[[str], list[int]] = functools.lru_cache(REMEMBERED)(
            lambda text: encoding.encode(text, disallowed_special=())
        )

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as the other encoding, which is pickled by its name."""
        return type(self), (self._encoding,)

    def encode(
        self,
        text: str,
        *,
        allowed_special: Literal["all"] | Set[str] = frozenset(),
        disallowed_special: Literal["all"] | Collection[str] = "all",
    ) -> list[int]:
        """Encode a text as `tiktoken.Encoding.encode` does. The caller may change the list.

        Args:
            text: The text.
            allowed_special: Special tokens that the text may contain.
            disallowed_special: Special tokens that the text must not contain.

        Raises:
            ValueError: The text contains a disallowed special token.
        """
        if type(text) is str and not allowed_special:
            if disallowed_special == "all":
                # As tiktoken's own pattern finds them. tiktoken itself raises the error below.
                is_plain = not any(special in text for special in self.special_tokens_set)
            else:
                is_plain = not disallowed_special
            if is_plain:
                return [*self._tokens_of(text)]
        return self._encoding.encode(
            text, allowed_special=allowed_special, disallowed_special=disallowed_special
        )


def remembering(tokenizer: Any) -> Any:
    """Return a caching tokenizer for one of tiktoken; return any other tokenizer unchanged."""
    return RememberingEncoding(tokenizer) if type(tokenizer) is tiktoken.Encoding else tokenizer
