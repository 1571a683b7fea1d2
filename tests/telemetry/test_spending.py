"""Prices, costs and the cost limit."""

from __future__ import annotations

from typing import Any

import pytest

from gptx_async.errors import ConfigurationError, CostLimitError
from gptx_async.telemetry.recorder import Recorder
from support.records import MODEL, PRICES, REQUEST, StatusError, adds_up, response, sent


@pytest.mark.parametrize(
    ("asked", "answering", "prices", "cost"),
    [
        (MODEL, MODEL, PRICES, 0.15 + 0.30),
        ("gpt-4o-mini-2024-07-18", "gpt-4o-mini-2024-07-18", PRICES, 0.45),
        ("my-deployment", "gpt-4o-mini-2024-07-18", PRICES, 0.45),
        (MODEL, "gpt-4o-2024-08-06", PRICES, 0.45),
        (MODEL, MODEL, {MODEL: (0.15, 0.60, 0.075)}, 0.12 + 0.30),
        ("gpt-4o-2024-08-06", "x", {**PRICES, "gpt-4o-2024-08-06": (1, 1)}, 1.5),
    ],
)
def test_prices_a_call_by_its_model(
    asked: str, answering: str, prices: dict[str, tuple[float, ...]], cost: float
) -> None:
    recorder = Recorder(prices)
    sent(recorder, {"model": asked}).answered(response(1_000_000, 500_000, 400_000, answering))
    stats = recorder.stats()
    assert stats.cost == pytest.approx(cost)
    assert stats.unpriced_calls == 0


@pytest.mark.parametrize("model", ["gpt-4o-audio", "gpt-4o-mini-search", "ft:gpt-4o-mini:org::1"])
def test_leaves_a_call_unpriced_when_the_model_is_another(model: str) -> None:
    recorder = Recorder(PRICES)
    sent(recorder, {"model": model}).answered(response(model=model))
    assert (recorder.stats().cost, recorder.stats().unpriced_calls) == (0.0, 1)


def test_sends_nothing_more_when_the_limit_is_reached() -> None:
    recorder = Recorder(PRICES, max_cost=0.45)
    sent(recorder).answered(response(1_000_000, 0))
    failing = sent(recorder)
    failing.retried(StatusError(500), 1.0, response(0, 500_000))  # 0.15 + 0.30: failures count too
    unsent = recorder.call(REQUEST)
    for call in (failing, unsent):
        with pytest.raises(CostLimitError, match=r"0\.4500 were spent.*Raise max_cost") as caught:
            call.sending()
        call.failed(caught.value)
    stats = recorder.stats()
    assert (stats.attempts, stats.failed) == (2, 2)
    assert stats.failures == {"status_500": 1, "cost_limit": 2}
    recorder.max_cost = 1.0
    sent(recorder).answered()
    assert adds_up(recorder.stats())


def test_refuses_an_unpriced_model_when_there_is_a_limit() -> None:
    recorder = Recorder(PRICES, max_cost=1)
    with pytest.raises(ConfigurationError, match="no price for the model 'another'"):
        sent(recorder, {"model": "another"})
    assert recorder.stats().attempts == 0


@pytest.mark.parametrize(
    ("prices", "max_cost"),
    [
        (None, 1.0),
        (PRICES, -1),
        (PRICES, float("nan")),
        (PRICES, True),
        ({MODEL: (1,)}, None),
        ({MODEL: (1, "2")}, None),
        ({MODEL: "12"}, None),
        ({MODEL: (1, float("inf"))}, None),
    ],
)
def test_rejects_invalid_prices_and_limits(prices: Any, max_cost: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"[Pp]rice|max_cost"):
        Recorder(prices, max_cost)
