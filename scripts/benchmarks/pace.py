"""`scripts/bench pace`: how well the limits of a server are used, and what an outage costs.

Real HTTP on loopback, real limits, real clocks: a `FakeOpenAI` with token buckets admits 20
requests a second, and 100 threads ask `AsyncGPTXBatchEngine` about texts of mixed size. What was
used and what was refused is read off the server's own book.

Each trial has a server of its own, so several may run side by side in one process.
"""

from __future__ import annotations

import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from gptx_async.testing.faults import Fault, HTTPFault
from gptx_async.testing.limits import FakeRateLimits
from gptx_async.testing.record import RecordedAnswer
from gptx_async.testing.server import FakeOpenAI

__all__ = ["TRIALS", "Account", "Trial", "account_for", "main", "run_trial"]

KEY, MODEL, OTHER_MODEL = "sk-of-the-bench", "gpt-4o-mini", "gpt-4o"

REQUESTS_PER_MINUTE = 1200
ITEMS, THREADS = 400, 100

BURST_SECONDS = 1.0
"""The buckets hold one second's share: with a minute's share they would admit all items at once."""

FIRST_WINDOW = 3.0
"""Seconds after the first answer that the figures leave out.

At first the buckets are full, and nothing is known about the server.
"""

LATENCY = (0.05, 0.4)
"""The least and the most seconds until an answer, distributed evenly."""


@dataclass(frozen=True)
class Trial:
    """One server, and its load.

    Attributes:
        name: What the table calls it.
        limits: What the server admits, for each model.
        models: Which models are asked, each by an engine and threads of its own.
        items: How many items in all.
        outage: After how many answers the server fails, and for how many seconds.
        forever: How every request fails, for ever.
        patience: The engines' `rate_limit_patience`, in seconds.
    """

    name: str
    limits: FakeRateLimits | None = None
    models: Sequence[str] = (MODEL,)
    items: int = ITEMS
    outage: tuple[int, float] | None = None
    forever: Fault | None = None
    patience: float = 300.0


LIMITS = FakeRateLimits(REQUESTS_PER_MINUTE, burst_seconds=BURST_SECONDS)
TOKENS = FakeRateLimits(tokens_per_minute=600_000, burst_seconds=BURST_SECONDS)

TRIALS = (
    Trial("headers tell of the limits", LIMITS),
    Trial("headers hidden", replace(LIMITS, send_headers=False)),
    Trial("not even retry-after", replace(LIMITS, send_headers=False, send_retry_after=False)),
    Trial("two models on one key", LIMITS, models=(MODEL, OTHER_MODEL)),
    Trial("limited by tokens", TOKENS),
    Trial("an outage of 30 s", outage=(200, 30.0)),
    Trial("429 for ever, 10 s of patience", items=100, forever=HTTPFault(429), patience=10.0),
)


@dataclass(frozen=True)
class Account:
    """The outcome of a trial.

    Attributes:
        asked: How many items were asked.
        answered: How many have their own answer.
        errors: How many ended with an error, by its class.
        wrong: How many have an answer that is not theirs.
        use: What was admitted after the first window, as a part of what the limits allowed, while
            there was work for all threads; the least of the models. None without a limit.
        refused: Which part of the answers after the first window was a 429; None without one.
        refused_in_all: Which part of all answers was a 429.
        seconds: How long it took.
    """

    asked: int
    answered: int
    errors: Counter[str]
    wrong: int
    use: float | None
    refused: float | None
    refused_in_all: float
    seconds: float

    @property
    def lost(self) -> int:
        """The number of items without an outcome."""
        return self.asked - self.answered - self.errors.total() - self.wrong


def run_trial(trial: Trial) -> Account:
    """Run a trial in this thread. symbolicai must be imported and configured already.

    Args:
        trial: What to try.
    """
    import symai.core  # noqa: F401 - before the threads do

    from gptx_async import AsyncGPTXBatchEngine

    rng = random.Random(trial.name)
    server = FakeOpenAI(
        lambda request: _answer_to(request.user_text),
        latency=lambda _request: rng.uniform(*LATENCY),
        rate_limits=trial.limits,
    )
    outcomes: list[str] = []
    last_begun: dict[str, float] = {}
    with server:
        if trial.forever is not None:
            server.begin_outage(trial.forever)
        began = time.monotonic()
        with ThreadPoolExecutor(THREADS) as pool:
            done = []
            for model in trial.models:
                engine = AsyncGPTXBatchEngine(KEY, model, rate_limit_patience=trial.patience)
                engine.client.base_url = server.base_url
                texts = _Texts(rng, trial.items // len(trial.models), model, last_begun)
                workers = THREADS // len(trial.models)
                done += [pool.submit(_work, engine, texts, outcomes) for _ in range(workers)]
            if trial.outage is not None:
                _fail_for_a_while(server, *trial.outage)
            for each in done:
                each.result()
        seconds = time.monotonic() - began
        answers = server.answers
    return account_for(trial, outcomes, answers, last_begun, seconds)


def account_for(
    trial: Trial,
    outcomes: Sequence[str],
    answers: Sequence[RecordedAnswer],
    last_begun: dict[str, float],
    seconds: float,
) -> Account:
    """Compute the figures of a trial from the results of its threads and the records of its server.

    Args:
        trial: What was tried.
        outcomes: Of each item 'answered', 'wrong', or the class of its error.
        answers: The server's book.
        last_begun: When the last item of each model was begun: until then there was work for all.
        seconds: How long it took.
    """
    known = Counter(outcomes)
    answered, wrong = known.pop("answered", 0), known.pop("wrong", 0)
    use = refused = None
    if trial.limits is not None:
        shares = [
            _shares(trial, [each for each in answers if each.model == model], until)
            for model, until in last_begun.items()
        ]
        refused = max(share for _, share in shares)
        if trial.limits.requests_per_minute is not None:
            use = min(share for share, _ in shares)
    refused_in_all = sum(each.status == 429 for each in answers) / max(1, len(answers))
    return Account(trial.items, answered, known, wrong, use, refused, refused_in_all, seconds)


def _shares(trial: Trial, answers: Sequence[RecordedAnswer], until: float) -> tuple[float, float]:
    """Return the shares of the limit that were used and refused after the first window."""
    assert trial.limits is not None
    # An answer begins after its latency, which is the same for all on average.
    late = sum(LATENCY) / 2
    start = min(each.at for each in answers) + FIRST_WINDOW
    counted = [each.status for each in answers if start <= each.at < until + late]
    accepted = sum(status == 200 for status in counted)
    allowed = (trial.limits.requests_per_minute or 0) / 60 * (until + late - start)
    refused = sum(status == 429 for status in counted)
    return accepted / max(1.0, allowed), refused / max(1, len(counted))


class _Texts:
    """The texts of a trial, which its threads take one by one."""

    def __init__(
        self, rng: random.Random, count: int, model: str, last_begun: dict[str, float]
    ) -> None:
        self._texts = iter([f"item {i} " + "word " * rng.randint(1, 300) for i in range(count)])
        self._lock = threading.Lock()
        self._model = model
        self._last_begun = last_begun

    def __iter__(self) -> Iterator[str]:
        while True:
            with self._lock:
                text = next(self._texts, None)
                if text is None:
                    return
                self._last_begun[self._model] = time.monotonic()
            yield text


def _work(engine: Any, texts: _Texts, outcomes: list[str]) -> None:
    """Ask about the texts one by one, and record each outcome."""
    for text in texts:
        try:
            outputs, _ = engine(_argument(engine, text))
        except Exception as error:
            outcomes.append(type(error.__context__ or error).__name__)
        else:
            outcomes.append("answered" if outputs == [_answer_to(text)] else "wrong")


def _argument(engine: Any, text: str) -> Any:
    from symai import Symbol
    from symai.core import Argument

    argument = Argument((), {}, {"prompt": "Answer."})
    argument.prop.instance = Symbol(text)
    argument.prop.processed_input = text
    engine.prepare(argument)
    return argument


def _answer_to(text: str) -> str:
    """Return the correct answer: the item's number and the length of its text."""
    words = text[text.index("item ") :].split()
    return f"{words[1]} has {words.count('word')} words"


def _fail_for_a_while(server: FakeOpenAI, answers: int, seconds: float) -> None:
    """Make the server fail after so many answers, for so many seconds."""
    server.wait_for(lambda server: server.statuses[200] >= answers, timeout=120)
    with server.outage():
        time.sleep(seconds)


HEADS = ("trial", "items", "answered", "errors", "wrong", "lost", "use", "429", "429 in all", "s")


def row(trial: Trial, account: Account) -> tuple[str, ...]:
    """Return a row of the table."""
    errors = ", ".join(f"{count} {name}" for name, count in account.errors.items())
    return (
        trial.name,
        f"{account.asked}",
        f"{account.answered}",
        errors or "0",
        f"{account.wrong}",
        f"{account.lost}",
        _percent(account.use),
        _percent(account.refused),
        _percent(account.refused_in_all),
        f"{account.seconds:.0f}",
    )


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f} %"


def is_well(trial: Trial, account: Account) -> bool:
    """Return whether every item has an outcome, and the right one."""
    if trial.forever is not None:
        return account.errors.keys() == {"RateLimitError"} and not account.lost
    return account.answered == account.asked


def main(say: Callable[[str], None] = print) -> int:
    """Run the trials one by one, and print the table. Return 1 if an item was lost, otherwise 0."""
    from gptx_async.cli.demo import symbolicai_sandbox

    code = 0
    with symbolicai_sandbox(MODEL):
        say("| " + " | ".join(HEADS) + " |\n" + "|---" * len(HEADS) + "|")
        for trial in TRIALS:
            account = run_trial(trial)
            say("| " + " | ".join(row(trial, account)) + " |")
            code |= not is_well(trial, account)
    return code


if __name__ == "__main__":
    sys.exit(main())
