"""pika's exceptions, translated at the adapter's edge."""

from __future__ import annotations

import socket
import ssl
from urllib.parse import urlsplit

import pika.adapters.utils.connection_workflow as workflow
import pika.exceptions

from workerkit.errors import AccessRefused, BrokerError, ConnectionFailed, ConnectionLost, QueueNotFound


class PreconditionFailed(BrokerError):
    """The broker refused a declaration: the object exists with other arguments (reply code 406)."""


def translate(error: BaseException, url: str | None = None) -> BrokerError:
    """Turn what pika says into what happened. ``url`` is named without its password."""
    if isinstance(error, BrokerError):
        return error
    where = f" at {address(url)}" if url else ""
    causes = _causes(error)
    for cause in causes:
        refused = _refusal(cause, url)
        if refused is not None:
            return refused
    root = causes[-1]
    if isinstance(root, pika.exceptions.ChannelClosedByBroker):
        kind = {403: AccessRefused, 404: QueueNotFound, 406: PreconditionFailed}.get(root.reply_code, ConnectionLost)
        return kind(f"{root.reply_code} {root.reply_text}")
    if isinstance(root, pika.exceptions.ConnectionClosedByBroker):
        return ConnectionLost(f"closed by the broker: {root.reply_code} {root.reply_text}")
    if isinstance(root, ssl.SSLCertVerificationError):
        return AccessRefused(f"the certificate of RabbitMQ{where} is not accepted: {root.verify_message}")
    text = _plain(root)
    if url:
        return ConnectionFailed(f"no RabbitMQ answered{where}: {text}")
    return ConnectionLost(text)


def address(url: str) -> str:
    """Host, port and virtual host of an AMQP URL; never its credentials."""
    parts = urlsplit(url)
    port = parts.port or (5671 if parts.scheme == "amqps" else 5672)
    return f"{parts.hostname or 'localhost'}:{port}"


def _refusal(cause: BaseException, url: str | None) -> AccessRefused | None:
    where = f" at {address(url)}" if url else ""
    user = urlsplit(url).username or "guest" if url else "?"
    vhost = (urlsplit(url).path[1:].replace("%2F", "/").replace("%2f", "/") or "/") if url else "?"
    if isinstance(cause, pika.exceptions.ProbableAuthenticationError | pika.exceptions.AuthenticationError) or (
        isinstance(cause, pika.exceptions.ConnectionClosedByBroker) and cause.reply_code == 403
    ):
        return AccessRefused(f"RabbitMQ{where} refused the user name or the password of user {user!r}")
    if isinstance(cause, pika.exceptions.ProbableAccessDeniedError) or (
        isinstance(cause, pika.exceptions.ConnectionClosedByBroker) and cause.reply_code == 530
    ):
        text = str(cause)
        if "is down" in text or "limit" in text:
            return None  # starting up, or full: it may answer later
        return AccessRefused(
            f"RabbitMQ{where} refused virtual host {vhost!r} to user {user!r}: it does not exist, or "
            f"the user has no permission on it"
        )
    return None


def _causes(error: BaseException) -> list[BaseException]:
    """From the outermost wrapper that pika's connection workflow made to the root."""
    chain = [error]
    while True:
        last = chain[-1]
        inner: BaseException | None = None
        if isinstance(last, workflow.AMQPConnectionWorkflowFailed):
            inner = last.exceptions[-1]
        elif isinstance(last, workflow.AMQPConnectorPhaseErrorBase):
            inner = last.exception
        elif (
            isinstance(last, pika.exceptions.AMQPConnectionError)
            and last.args
            and isinstance(last.args[0], BaseException)
        ):
            inner = last.args[0]
        if inner is None or inner in chain:
            return chain
        chain.append(inner)


def _plain(error: BaseException) -> str:
    if isinstance(error, ConnectionRefusedError):
        return "connection refused"
    if isinstance(error, socket.gaierror):
        return f"the host name does not resolve ({error.strerror})"
    if isinstance(error, workflow.AMQPConnectorStackTimeout | workflow.AMQPConnectorSocketConnectError | TimeoutError):
        return "timed out"
    if isinstance(error, pika.exceptions.IncompatibleProtocolError):
        return "what answers there does not speak AMQP 0-9-1"
    text = str(error) or repr(error)
    return f"{type(error).__name__}: {text}"
