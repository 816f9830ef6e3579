"""pika's exceptions, translated at the adapter's edge."""

from __future__ import annotations

import socket
import ssl
from urllib.parse import unquote, urlsplit

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
    root = _root(error)
    if refused := _refused(root, url):
        return AccessRefused(f"RabbitMQ{where} refused {refused}")
    if isinstance(root, pika.exceptions.ChannelClosedByBroker):
        kind = {403: AccessRefused, 404: QueueNotFound, 406: PreconditionFailed}.get(root.reply_code, ConnectionLost)
        return kind(f"{root.reply_code} {root.reply_text}")
    if isinstance(root, pika.exceptions.ConnectionClosedByBroker):
        return ConnectionLost(f"closed by the broker: {root.reply_code} {root.reply_text}")
    if isinstance(root, ssl.SSLCertVerificationError):
        return AccessRefused(f"the certificate of RabbitMQ{where} is not accepted: {root.verify_message}")
    text = _plain(root)
    return ConnectionFailed(f"no RabbitMQ answered{where}: {text}") if url else ConnectionLost(text)


def address(url: str) -> str:
    """Host, port and virtual host of an AMQP URL; never its credentials."""
    parts = urlsplit(url)
    port = parts.port or (5671 if parts.scheme == "amqps" else 5672)
    return f"{parts.hostname or 'localhost'}:{port}"


def _refused(error: BaseException, url: str | None) -> str:
    """What the broker refused of a connection; empty when it did not."""
    parts = urlsplit(url) if url else None
    user = (parts.username or "guest") if parts else "?"
    code = error.reply_code if isinstance(error, pika.exceptions.ConnectionClosedByBroker) else None
    if code == 403 or isinstance(
        error, pika.exceptions.ProbableAuthenticationError | pika.exceptions.AuthenticationError
    ):
        return f"the user name or the password of user {user!r}"
    # A virtual host that is down, or has all the connections that it may have, can answer later.
    if (code == 530 or isinstance(error, pika.exceptions.ProbableAccessDeniedError)) and not (
        "is down" in str(error) or "limit" in str(error)
    ):
        vhost = (unquote(parts.path[1:]) or "/") if parts else "?"
        return f"virtual host {vhost!r} to user {user!r}: it does not exist, or the user has no permission on it"
    return ""


def _root(error: BaseException) -> BaseException:
    """What pika's connection workflow has wrapped."""
    while True:
        if isinstance(error, workflow.AMQPConnectionWorkflowFailed):
            error = error.exceptions[-1]
        elif isinstance(error, workflow.AMQPConnectorPhaseErrorBase):
            error = error.exception
        elif isinstance(error, pika.exceptions.AMQPConnectionError) and isinstance(
            cause := next(iter(error.args), None), BaseException
        ):
            error = cause
        else:
            return error


def _plain(error: BaseException) -> str:
    if isinstance(error, ConnectionRefusedError):
        return "connection refused"
    if isinstance(error, socket.gaierror):
        return f"the host name does not resolve ({error.strerror})"
    if isinstance(error, workflow.AMQPConnectorStackTimeout | TimeoutError):
        return "timed out"
    if isinstance(error, pika.exceptions.IncompatibleProtocolError):
        return "what answers there does not speak AMQP 0-9-1"
    return f"{type(error).__name__}: {str(error) or repr(error)}"
