"""TLS on loopback, by a certificate authority that only a test's environment trusts."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from types import TracebackType

import trustme

__all__ = ["TLSRelay", "server_context"]


def server_context(authority: trustme.CA) -> ssl.SSLContext:
    """Return a server's context with a certificate for this machine."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost", "127.0.0.1").configure_cert(context)
    return context


class TLSRelay:
    """Takes TLS connections on loopback and passes what they carry to a plain server.

    Args:
        authority: Signs its certificate.
        origin: The plain server: http://127.0.0.1:port.

    Attributes:
        base_url: Where to ask it.
    """

    def __init__(self, authority: trustme.CA, origin: str) -> None:
        host, _, port = origin.removeprefix("http://").partition(":")
        self._target = host, int(port)
        self._context = server_context(authority)
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.base_url = f"https://127.0.0.1:{self._listener.getsockname()[1]}/v1"
        threading.Thread(target=self._accept, name="tls", daemon=True).start()

    def __enter__(self) -> TLSRelay:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._relay, args=(connection,), daemon=True).start()

    def _relay(self, connection: socket.socket) -> None:
        with (
            contextlib.suppress(OSError),
            connection,
            self._context.wrap_socket(connection, server_side=True) as outside,
            socket.create_connection(self._target) as inside,
        ):
            back = threading.Thread(target=_pump, args=(inside, outside), daemon=True)
            back.start()
            _pump(outside, inside)
            back.join()


def _pump(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError, ValueError):
        while part := source.recv(65536):
            target.sendall(part)
    for each in (source, target):
        with contextlib.suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)
