"""A tokenizer that remembers: symbolicai's `forward` tokenises each prompt several times over.

It counts and cuts by `encode`, some ten times for one item, of the same few texts. What was encoded
lately is encoded no second time; everything else is tiktoken's own.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Set
from typing import Any, Literal

import tiktoken

__all__ = ["RememberingEncoding", "remembering"]

REMEMBERED = 32
"""How many texts are remembered: those of one item are few, and come one after the other, but from
several threads at once. A prompt of 8,000 tokens takes some 100 kB here."""


class RememberingEncoding(tiktoken.Encoding):
    """An `Encoding` that shares all with another one, and remembers what it has encoded.

    Allowed in any thread.

    Args:
        encoding: The other one.
    """

    def __init__(self, encoding: tiktoken.Encoding) -> None:
        self.__dict__.update(encoding.__dict__)
        self._encoding = encoding
        self._tokens_of: Callable[[str], list[int]] = functools.lru_cache(REMEMBERED)(
            lambda text: encoding.encode(text, disallowed_special=())
        )

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle by the other one, which is pickled by its name."""
        return type(self), (self._encoding,)

    def encode(
        self,
        text: str,
        *,
        allowed_special: Literal["all"] | Set[str] = frozenset(),
        disallowed_special: Literal["all"] | Collection[str] = "all",
    ) -> list[int]:
        """Encode a text, as `tiktoken.Encoding.encode` does; the list is the caller's own.

        Args:
            text: The text.
            allowed_special: Which special tokens it may hold.
            disallowed_special: Which special tokens it may not hold.

        Raises:
            ValueError: It holds a special token that it may not.
        """
        if type(text) is str and not allowed_special:
            if disallowed_special == "all":
                # As tiktoken's own pattern: any of them, anywhere. It makes the error, too.
                is_plain = not any(special in text for special in self.special_tokens_set)
            else:
                is_plain = not disallowed_special
            if is_plain:
                return [*self._tokens_of(text)]
        return self._encoding.encode(
            text, allowed_special=allowed_special, disallowed_special=disallowed_special
        )


def remembering(tokenizer: Any) -> Any:
    """Return a tokenizer that remembers, if it is tiktoken's own; any other as it is."""
    return RememberingEncoding(tokenizer) if type(tokenizer) is tiktoken.Encoding else tokenizer
