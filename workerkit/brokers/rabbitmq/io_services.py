"""The event loop as pika sees it, with one way to fail that pika leaves out."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from typing import Any

from pika.adapters.asyncio_connection import _AsyncioIOServicesAdapter


class IoServices(_AsyncioIOServicesAdapter):  # type: ignore[misc] # untyped library
    """Reports a connection that is reset between its establishment and the next turn of the loop.

    pika 1.3 and 1.4 raise ``ValueError`` into the loop for it (``_AsyncStreamConnector`` asks for the peer's name), and
    the attempt hangs until its timeout. A balancer without a server behind it does this: in 1 of 1,500 attempts here.
    """

    def create_streaming_connection(
        self,
        protocol_factory: Callable[[], Any],
        sock: socket.socket,
        on_done: Callable[[Any], None],
        ssl_context: Any = None,
        server_hostname: str | None = None,
    ) -> Any:
        """Begin TLS and the protocol on a connected socket, as pika does."""
        try:
            sock.getpeername()
        except OSError:
            sock.close()
            reset = ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
            return self.call_later(0, lambda: on_done(reset))
        return super().create_streaming_connection(protocol_factory, sock, on_done, ssl_context, server_hostname)
