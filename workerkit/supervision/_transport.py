"""Supervisor's own way to its XML-RPC socket, with a limit on waiting.

A module of its own, imported when a connection is made: importing ``supervisor`` is slow.
"""

from supervisor.xmlrpc import SupervisorTransport, UnixStreamHTTPConnection

_PATIENCE = 10.0
"""Seconds. Supervisor answers within milliseconds; a stopped or stuck one accepts the connection and never answers."""


class _Connection(UnixStreamHTTPConnection):  # type: ignore[misc]  # supervisor is untyped
    def connect(self) -> None:
        super().connect()
        self.sock.settimeout(_PATIENCE)


class PatientTransport(SupervisorTransport):  # type: ignore[misc]  # supervisor is untyped
    """For ``xmlrpc.client.ServerProxy``, whatever the URL given to that."""

    def __init__(self, socket_path: str) -> None:
        super().__init__(serverurl=f"unix://{socket_path}")

        def connect() -> _Connection:
            connection = _Connection("localhost")
            connection.socketfile = socket_path
            return connection

        # Supervisor, too, binds the factory to the instance: there is no method to override.
        self._get_connection = connect
