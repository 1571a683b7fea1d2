"""What is asked of every rival: how many calls, how many at once, about what.

Every rival gets the same texts and sends the same bodies, those that symbolicai's `GPTXChatEngine`
would send (`body`); a test holds them to that.
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
"""Words that make 8,000 and 2,000 tokens, with what symbolicai puts around them."""

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
"""Each is one token of o200k_base, with the space before it."""


class Item(NamedTuple):
    """One thing to ask.

    Attributes:
        name: Its marker, unlike that of every other item of the run.
        text: What is asked.
    """

    name: str
    text: str


@dataclass(frozen=True)
class Workload:
    """One row of the report's workloads.

    Attributes:
        name: How the table and the command line call it.
        in_flight: How many calls are to be out at once.
        calls: How many calls are timed.
        delay: The median of the seconds that the server takes for an answer.
        sigma: The standard deviation of the delay's logarithm; 0 for a fixed delay.
        prompt: A sentence; 8,000 tokens of its own for each; or a sentence, under an instruction of
            2,000 tokens that all share.
    """

    name: str
    in_flight: int
    calls: int
    delay: float = 0.0
    sigma: float = 0.0
    prompt: Literal["short", "long", "shared"] = "short"

    @property
    def instruction(self) -> str:
        """What every item is asked to be done with."""
        if self.prompt == "shared":
            return " ".join(random.Random("instruction").choices(WORDS, k=SHARED_WORDS))
        return "Name the one word that fits best, and say why in a short sentence."

    @property
    def is_plain(self) -> bool:
        """Whether it is of those that make up the curve: no delay, short prompts."""
        return not self.delay and self.prompt == "short"


Answer: TypeAlias = "str | None"
"""What came of an item: the answer, or the text of an error, which is never right; or nothing."""

Ask: TypeAlias = Callable[[Sequence[Item]], Sequence[Answer]]
Open: TypeAlias = Callable[[Workload, str], AbstractContextManager[Ask]]
"""How a rival is used: given the workload and the server's base URL, a context whose value asks."""


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
"""All workloads. With a sigma of 0.6 one answer of a hundred takes four times the median."""

QUICK = (
    _plain(1, 60),
    _plain(64, 256),
    _plain(512, 1_024),
    Workload("200 ms, 64 in flight", 64, 256, 0.2),
    Workload("8,000 tokens, 64 in flight", 64, 64, prompt="long"),
)
"""What `--quick` runs: enough to see that all works, too little for a figure to be quoted."""


def items(workload: Workload, count: int, seed: str) -> list[Item]:
    """Make the items of one measurement.

    Args:
        workload: Of what kind.
        count: How many.
        seed: Makes them unlike those of another measurement.
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
    """Return what symbolicai's `GPTXChatEngine` calls the SDK with."""
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
