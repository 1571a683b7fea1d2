"""Which httpx an SDK uses: openai 3 uses httpx2, older SDKs use httpx.

httpx is never imported by name. Both packages may be installed, and an SDK accepts only the classes
of its own.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

__all__ = ["httpx_of", "package_of"]


def httpx_of(sdk: Any) -> ModuleType:
    """Return the httpx package that an SDK uses.

    Args:
        sdk: The module `openai` or `cerebras.cloud.sdk`.
    """
    return package_of(type(sdk.DEFAULT_CONNECTION_LIMITS))


def package_of(kind: type) -> ModuleType:
    """Return the top-level package that defines a class."""
    return sys.modules[kind.__module__.partition(".")[0]]
