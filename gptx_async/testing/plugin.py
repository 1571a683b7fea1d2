"""The pytest plugin: the fixture `fake_openai`.

Every pytest run in an environment with this package imports this module, so it imports only
pytest. The first test that uses the fixture imports the server.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from .server import FakeOpenAI

__all__ = ["fake_openai"]


@pytest.fixture
def fake_openai(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeOpenAI]:
    """Run a new `FakeOpenAI` for the test, and point OPENAI_BASE_URL and OPENAI_API_KEY to it."""
    from .server import FakeOpenAI

    with FakeOpenAI() as server:
        for name, value in server.openai_environment().items():
            monkeypatch.setenv(name, value)
        yield server
