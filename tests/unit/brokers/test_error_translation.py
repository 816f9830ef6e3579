"""What pika says, and what an operator reads."""

import errno
import socket
import ssl

import pika.adapters.utils.connection_workflow as workflow
import pika.exceptions
import pytest

from workerkit.brokers.rabbitmq.errors import PreconditionFailed, address, translate
from workerkit.errors import AccessRefused, BrokerError, ConnectionFailed, ConnectionLost, QueueNotFound

URL = "amqp://alice:s3cret@rabbit.example:5673/orders%2Feu"


def wrapped(error: Exception) -> Exception:
    """As pika's connection workflow hands it over: two wrappers deep."""
    return pika.exceptions.AMQPConnectionError(
        workflow.AMQPConnectionWorkflowFailed([workflow.AMQPConnectorSocketConnectError(error)])
    )


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (ConnectionRefusedError(errno.ECONNREFUSED, "x"), ConnectionFailed, "connection refused"),
        (socket.gaierror(-2, "Name or service not known"), ConnectionFailed, "the host name does not resolve"),
        (TimeoutError(), ConnectionFailed, "timed out"),
        (pika.exceptions.IncompatibleProtocolError("x"), ConnectionFailed, "does not speak AMQP 0-9-1"),
        (
            pika.exceptions.ProbableAuthenticationError("x"),
            AccessRefused,
            "refused the user name or the password of user 'alice'",
        ),
        (pika.exceptions.ConnectionClosedByBroker(403, "ACCESS_REFUSED"), AccessRefused, "user 'alice'"),
        (
            pika.exceptions.ConnectionClosedByBroker(530, "NOT_ALLOWED - vhost not found"),
            AccessRefused,
            "virtual host 'orders/eu'",
        ),
        (pika.exceptions.ProbableAccessDeniedError("x"), AccessRefused, "virtual host 'orders/eu'"),
        (pika.exceptions.ConnectionClosedByBroker(530, "NOT_ALLOWED - vhost 'x' is down"), ConnectionLost, "is down"),
        (pika.exceptions.ConnectionClosedByBroker(530, "connection limit is reached"), ConnectionLost, "limit"),
        (ValueError("odd"), ConnectionFailed, "ValueError: odd"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_a_failed_connection_says_where_and_why(error: Exception, kind: type[BrokerError], text: str) -> None:
    """Through all of pika's wrappers, with host and port, never with the password."""
    for found in (translate(wrapped(error), URL), translate(error, URL)):
        assert type(found) is kind
        assert text in str(found)
        assert "s3cret" not in str(found)
        if kind is not ConnectionLost:
            assert "rabbit.example:5673" in str(found)


def test_a_certificate_that_is_not_accepted_says_so() -> None:
    """The reason is OpenSSL's."""
    error = ssl.SSLCertVerificationError("x")
    error.verify_message = "certificate has expired"
    refused = translate(wrapped(error), URL)
    assert isinstance(refused, AccessRefused)
    assert str(refused) == "the certificate of RabbitMQ at rabbit.example:5673 is not accepted: certificate has expired"


@pytest.mark.parametrize(
    ("code", "kind"),
    [(403, AccessRefused), (404, QueueNotFound), (406, PreconditionFailed), (541, ConnectionLost)],
)
def test_a_closed_channel_says_what_the_broker_said(code: int, kind: type[BrokerError]) -> None:
    """The reply code decides; the text is the broker's."""
    found = translate(pika.exceptions.ChannelClosedByBroker(code, "no queue 'x'"))
    assert type(found) is kind
    assert str(found) == f"{code} no queue 'x'"


def test_a_connection_that_was_open_is_lost_not_failed() -> None:
    """Without a URL nobody was connecting."""
    assert type(translate(pika.exceptions.ConnectionClosedByBroker(320, "shutdown"))) is ConnectionLost
    assert type(translate(pika.exceptions.StreamLostError("reset"))) is ConnectionLost


def test_an_error_of_ours_stays_what_it_is() -> None:
    """Translated once."""
    error = QueueNotFound("x")
    assert translate(error) is error


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        (URL, "rabbit.example:5673"),
        ("amqps://h/", "h:5671"),
        ("amqp://u:p@h", "h:5672"),
        ("amqp://", "localhost:5672"),
    ],
)
def test_an_address_is_host_and_port(url: str, expected: str) -> None:
    """Never the credentials."""
    assert address(url) == expected
