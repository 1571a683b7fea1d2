"""How many tokens a request is expected to use, until its answer says how many it did."""

from __future__ import annotations

from .queue import Permit, Ticket

__all__ = ["TokenReservation"]

GUESSED_ANSWER = 256.0
"""Tokens assumed for an answer without a limit before the first answer has come."""

OUTLIER = 64
"""The most that one answer counts in the mean, in multiples of the mean.

One `usage` that lies, or one very long answer, says little about the next.
"""


class TokenReservation:
    """The tokens to reserve for a request: prompt, and the answer's limit or the mean so far."""

    def __init__(self) -> None:
        self._mean: float | None = None

    def of(self, ticket: Ticket) -> float:
        """Return the tokens to reserve for a request."""
        answer: float | None = ticket.answer_tokens
        return ticket.prompt_tokens + (self._usual_answer if answer is None else answer)

    def learn(self, permit: Permit, tokens: float) -> None:
        """Learn from an answer's `usage.total_tokens` how long answers are."""
        answer = max(0.0, tokens - permit.ticket.prompt_tokens)
        answer = min(answer, OUTLIER * self._usual_answer)
        mean = answer if self._mean is None else self._mean
        self._mean = max(1.0, mean + (answer - mean) / 20)

    @property
    def _usual_answer(self) -> float:
        return GUESSED_ANSWER if self._mean is None else self._mean
