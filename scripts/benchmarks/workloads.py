"""The workloads: how many calls, how many of them in flight, with which texts.

Every rival gets the same texts and sends the same bodies as symbolicai's `GPTXChatEngine` (`body`),
which a test checks.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

from .server import marked

__all__ = [
    "FULL",
    "KEY",
    "MODEL",
    "QUICK",
    "Answer",
    "Ask",
    "Item",
    "Open",
    "Workload",
    "body",
    "items",
]

KEY, MODEL = "sk-of-the-bench", "gpt-4o-mini"

LONG_WORDS, SHARED_WORDS = 7960, 1990
"""The numbers of words for 8,000 and 2,000 tokens, including what symbolicai adds."""

WORDS = [
    "time",
    "year",
    "people",
    "way",
    "day",
    "man",
    "thing",
    "woman",
    "life",
    "child",
    "world",
    "school",
    "state",
    "family",
    "student",
    "group",
    "country",
    "problem",
    "hand",
    "part",
    "place",
    "case",
    "week",
    "company",
    "system",
    "program",
    "question",
    "work",
    "government",
    "number",
    "night",
    "point",
    "home",
    "water",
    "room",
    "mother",
    "area",
    "money",
    "story",
    "fact",
]
"""Words that are one token of o200k_base each, with the space before them."""


class Item(NamedTuple):
    """One text to send.

    Attributes:
        name: The marker in the text, unique in the run.
        text: The text.
    """

    name: str
    text: str


@dataclass(frozen=True)
class Workload:
    """A workload: a row of the report.

    Attributes:
        name: The name in the table and on the command line.
        in_flight: How many calls are in flight.
        calls: How many calls are timed.
        delay: The median delay of the server, in seconds.
        sigma: The standard deviation of the delay's logarithm; 0 for a fixed delay.
        prompt: 'short' for a sentence, 'long' for 8,000 different tokens per item, 'shared' for a
            sentence with an instruction of 2,000 tokens that all items share.
    """

    name: str
    in_flight: int
    calls: int
    delay: float = 0.0
    sigma: float = 0.0
    prompt: Literal["short", "long", "shared"] = "short"

    @property
    def instruction(self) -> str:
        """The instruction for every item."""
        if self.prompt == "shared":
            return " ".join(random.Random("instruction").choices(WORDS, k=SHARED_WORDS))
        return "Name the one word that fits best, and say why in a short sentence."

    @property
    def is_plain(self) -> bool:
        """Whether the workload is a point of the curve: no delay, short prompts."""
        return not self.delay and self.prompt == "short"


Answer: TypeAlias = "str | None"
"""The result of an item: the answer, or the text of an error, or None if there is none."""

Ask: TypeAlias = Callable[[Sequence[Item]], Sequence[Answer]]
Open: TypeAlias = Callable[[Workload, str], AbstractContextManager[Ask]]
"""Called with a workload and the base URL: a context manager that gives the `Ask` function."""


def _plain(in_flight: int, calls: int) -> Workload:
    return Workload(f"{in_flight} in flight", in_flight, calls)


FULL = (
    _plain(1, 300),
    _plain(16, 800),
    _plain(64, 1_000),
    _plain(512, 2_048),
    _plain(2_048, 4_096),
    Workload("200 ms, 64 in flight", 64, 384, 0.2),
    Workload("200 ms, 512 in flight", 512, 2_000, 0.2),
    Workload("long tail, 64 in flight", 64, 384, 0.2, 0.6),
    Workload("long tail, 512 in flight", 512, 1_536, 0.2, 0.6),
    Workload("8,000 tokens, 64 in flight", 64, 192, prompt="long"),
    Workload("shared 2,000 tokens, 64 in flight", 64, 512, prompt="shared"),
)
"""All workloads. With a sigma of 0.6, one answer in a hundred takes four times the median."""

QUICK = (
    _plain(1, 60),
    _plain(64, 256),
    _plain(512, 1_024),
    Workload("200 ms, 64 in flight", 64, 256, 0.2),
    Workload("8,000 tokens, 64 in flight", 64, 64, prompt="long"),
)
"""The workloads of `--quick`: they show that everything works, but are too small to quote."""


def items(workload: Workload, count: int, seed: str) -> list[Item]:
    """Make the items of one measurement.

    Args:
        workload: The workload.
        count: How many items.
        seed: Makes the items of each measurement different.
    """
    made = []
    for number in range(count):
        name = f"{seed}.{number}"
        text = "A river, a road, a roof and a ring walk into a story; which of them is to stay?"
        if workload.prompt == "long":
            text = " ".join(random.Random(name).choices(WORDS, k=LONG_WORDS))
        made.append(Item(name, marked(text, name)))
    return made


def body(instruction: str, text: str) -> Mapping[str, Any]:
    """Return the arguments with which symbolicai's `GPTXChatEngine` calls the SDK."""
    return {
        "messages": [
            {"role": "system", "content": f"<INSTRUCTION/>\n{instruction}\n\n"},
            {"role": "user", "content": [{"type": "text", "text": text}]},
        ],
        "model": MODEL,
        "seed": None,
        "max_completion_tokens": None,
        "stop": "",
        "temperature": 1,
        "frequency_penalty": 0,
        "presence_penalty": 0,
        "top_p": 1,
        "n": 1,
        "logit_bias": None,
        "tools": None,
        "tool_choice": None,
        "response_format": None,
        "logprobs": None,
        "top_logprobs": None,
    }
