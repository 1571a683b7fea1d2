"""The pytest plugin: the fixture `fake_openai`.

Every pytest run of an environment that has the package installed imports this file, so it imports
nothing but pytest; the server is imported by the first test that asks for it.
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
    """Run a new `FakeOpenAI` for the test, with OPENAI_BASE_URL and OPENAI_API_KEY naming it."""
    from .server import FakeOpenAI

    with FakeOpenAI() as server:
        for name, value in server.openai_environment().items():
            monkeypatch.setenv(name, value)
        yield server
