"""Connecting to whichever of the configured brokers answers."""

from __future__ import annotations

from workerkit.brokers.rabbitmq.amqp import Connection
from workerkit.errors import ConnectionFailed, ConnectionLost
from workerkit.settings.model import BrokerSettings


async def connect(settings: BrokerSettings, name: str) -> Connection:
    """Connect to the first of the configured URLs that answers.

    Raises:
        ConnectionFailed: none did; each is named with its reason.
        AccessRefused: one refused.
    """
    urls = [settings.url] if isinstance(settings.url, str) else settings.url
    failures = []
    for url in urls:
        try:
            return await Connection.open(
                url, name=name, heartbeat=settings.heartbeat, attempt_timeout=settings.connection_timeout
            )
        except (ConnectionFailed, ConnectionLost) as error:
            failures.append(str(error))
    raise ConnectionFailed("; ".join(failures))
