"""One laboratory for all of the directory: building an engine takes a while."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from gptx_async.testing import FakeOpenAI

if TYPE_CHECKING:
    from .harness import Laboratory


@pytest.fixture(scope="package")
def laboratory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Laboratory]:
    # Here, for symbolicai reads its configuration at import: after tests/conftest.py has set it up.
    from .harness import Laboratory

    with FakeOpenAI() as server:
        yield Laboratory(server, tmp_path_factory.mktemp("cases"))
