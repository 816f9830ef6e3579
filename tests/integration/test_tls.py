"""TLS is verified, or there is no connection: never a fall-back to an unverified or a plain one."""

import asyncio
import ssl
import subprocess
from pathlib import Path

import pytest
from support.rabbit import Rabbit
from support.workers import Project

from workerkit.brokers.rabbitmq.amqp import Connection
from workerkit.errors import AccessRefused, ConnectionFailed
from workerkit.testing.rabbitmq import PrivateRabbitmq
from workerkit.testing.system import free_ports

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


@pytest.fixture
def authority(tmp_path: Path) -> Path:
    """A folder with a certificate authority (``ca.pem``) and what it vouches for: ``localhost`` (``server.pem``)."""
    folder = tmp_path / "authority"
    folder.mkdir()
    new_key = ["-newkey", "rsa:2048", "-nodes"]
    for command in (
        ["req", "-x509", *new_key, "-days", "2", "-subj", "/CN=Test authority", "-keyout", "ca.key", "-out", "ca.pem"],
        ["req", *new_key, "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost",
         "-keyout", "server.key", "-out", "server.csr"],
        ["x509", "-req", "-in", "server.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2",
         "-copy_extensions", "copy", "-out", "server.pem"],
    ):  # fmt: skip
        subprocess.run(["openssl", *command], cwd=folder, check=True, capture_output=True)
    return folder


@pytest.fixture
def tls_url(rabbitmq: PrivateRabbitmq, authority: Path) -> str:
    """The shared node, which listens for TLS too from now on."""
    (port,) = free_ports(1)
    certificate, key, ca = (_encoded(authority / name) for name in ("server.pem", "server.key", "ca.pem"))
    options = (
        f"{{cert, {certificate}}}, {{key, {{'PrivateKeyInfo', {key}}}}}, {{cacerts, [{ca}]}}, {{verify, verify_none}}"
    )
    rabbitmq.ctl(
        "--quiet",
        "eval",
        "{ok, _} = application:ensure_all_started(ssl), "
        f'rabbit_networking:start_ssl_listener({{"127.0.0.1", {port}}}, [{options}], 2).',
    )
    return f"amqps://guest:guest@localhost:{port}/%2F"


def _encoded(pem: Path) -> str:
    """What a PEM file holds as an Erlang expression; a node in a chroot could not read the file."""
    lines = [line for line in pem.read_text().splitlines() if not line.startswith("-----")]
    return f'base64:decode("{"".join(lines)}")'


TASK = """
    class Secret(WorkerTask):
        def callback(self, message):
            note(len(message.body))
            message.reject("asked to") if message.data == "no" else message.ack()
"""


def test_a_worker_and_a_publisher_work_over_tls(
    tls_url: str, authority: Path, rabbitmq: PrivateRabbitmq, project: Project, rabbit: Rabbit, queue: str
) -> None:
    """Both connections of a worker, the acknowledged and the dead-lettered, the small and the big, and a command."""
    project.task(TASK)
    project.config(f"""
workers:
  secret: {{task: "workers.task:Secret", queue: {queue}, prefetch_count: 20}}
""")
    project.environment |= {"AMQP_URL": tls_url, "SSL_CERT_FILE": str(authority / "ca.pem")}
    worker = project.start("secret")
    published = project.command("publish", queue, '"no"')
    assert published.returncode == 0, published.stderr
    big = b'"' + b"x" * 3_000_000 + b'"'
    rabbit.publish(queue, *[big] * 3, *["small"] * 200)
    worker.wait_for("message.settled", count=203, outcome="acked")
    worker.wait_for("message.settled", outcome="dead-lettered")
    listed = rabbitmq.ctl("--quiet", "list_connections", "ssl", "client_properties").splitlines()
    ours = [line for line in listed if "secret_00@" in line and str(worker.pid) in line]
    assert len(ours) == 2
    assert all(line.startswith("true") for line in ours)
    assert worker.stop() == 0
    assert [body for body, _ in rabbit.dead(queue)] == ["no"]
    assert rabbit.ready(queue) == 0
    assert worker.events("conn.lost") == worker.events("source.lost") == []


def test_a_worker_that_does_not_know_the_authority_is_refused(tls_url: str, project: Project, queue: str) -> None:
    """The same node, the same certificate: without the authority's own there is no connection, and no waiting."""
    project.task(TASK)
    project.config(f"""
workers:
  secret: {{task: "workers.task:Secret", queue: {queue}}}
""")
    project.environment["AMQP_URL"] = tls_url
    worker = project.run("secret")
    assert worker.wait() == 77
    assert "is not accepted" in worker.events("worker.failed")[0]["cause"]
    assert "guest:guest" not in "".join(worker.raw)
