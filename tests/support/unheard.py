"""An address on which nothing listens, and nothing else can begin to: its port is kept bound."""

from __future__ import annotations

import atexit
import socket

_bound = socket.socket()
_bound.bind(("127.0.0.1", 0))
atexit.register(_bound.close)

UNHEARD = f"http://127.0.0.1:{_bound.getsockname()[1]}"
