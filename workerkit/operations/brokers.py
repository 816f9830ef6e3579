"""The broker of the configuration, for an operator. The one place that knows which adapter a URL's scheme means."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager

from workerkit.brokers.administration import Administration
from workerkit.brokers.rabbitmq.admin import RabbitmqAdministration
from workerkit.errors import ConfigurationError
from workerkit.settings import Settings


def administer(settings: Settings, command: str) -> AbstractAsyncContextManager[Administration]:
    """A connection to the broker for the length of one command.

    Args:
        settings: ``broker.url`` says which; of several, all have the same scheme.
        command: part of the name under which the broker lists the connection.

    Raises:
        ConfigurationError: there is nothing that a command could look at.
        BrokerError: in the context, when the broker is away or refuses.
    """
    url = settings.broker.url if isinstance(settings.broker.url, str) else settings.broker.url[0]
    scheme = url.partition("://")[0]
    if scheme == "memory":
        raise ConfigurationError(
            "`broker.url` is memory://, a broker that lives in one process and ends with it: there is nothing to show"
        )
    if scheme not in {"amqp", "amqps"}:
        raise ConfigurationError(f"`broker.url` begins with {scheme}://, which no command can look at")
    return RabbitmqAdministration.connected(settings, command)
