"""TLS is verified, or there is no connection: never a fall-back to an unverified or a plain one."""

import asyncio
import ssl
import subprocess
from pathlib import Path

import pytest

from workerkit.brokers.rabbitmq.amqp import Connection
from workerkit.errors import AccessRefused, ConnectionFailed

pytestmark = pytest.mark.integration


@pytest.mark.parametrize(
    ("scheme", "error", "text"),
    [
        ("amqps", AccessRefused, "is not accepted: self-signed certificate"),
        ("amqp", ConnectionFailed, "does not speak AMQP 0-9-1"),
    ],
)
def test_a_certificate_that_nobody_vouches_for_is_refused_before_anything_is_said(
    scheme: str, error: type[Exception], text: str, tmp_path: Path
) -> None:
    """The server hears no user name and no password."""
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=DNS:localhost", "-keyout", key, "-out", certificate],
        check=True, capture_output=True,
    )  # fmt: skip
    heard: list[bytes] = []

    async def scene() -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)

        async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            heard.append(await reader.read(100))
            writer.close()

        server = await asyncio.start_server(listen, "127.0.0.1", 0, ssl=context)
        port = server.sockets[0].getsockname()[1]
        try:
            with pytest.raises(error, match=text):
                await Connection.open(
                    f"{scheme}://u:secret@localhost:{port}/", name="t", heartbeat=5, attempt_timeout=5
                )
        finally:
            server.close()
            await server.wait_closed()

    asyncio.run(scene())
    assert heard in ([], [b""])
