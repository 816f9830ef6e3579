"""The seam to brokers: what publishing needs of one, and which one it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol
from urllib.parse import urlsplit

from workerkit.brokers.ended import Ended
from workerkit.outgoing import Outgoing
from workerkit.settings.model import BrokerSettings, Settings


class PublishAdapter(Protocol):
    """One broker, published to from one event loop. Connects when it is first needed, and again after a loss."""

    @property
    def blocked_by(self) -> str:
        """Why the broker does not read what is published at present; empty when it does."""

    def ready(self, message: Outgoing) -> bool:
        """Whether ``submit`` may be called with this message, now."""

    async def room(self, message: Outgoing) -> None:
        """Wait for that; makes one attempt at what is missing. It may be over again when that returns.

        Raises:
            Unroutable: there is no queue for the message.
            ConfigurationError: the broker has something else than the configuration says.
            BrokerError: there is no connection.
        """

    def submit(self, message: Outgoing, ended: Ended) -> None:
        """Publish without waiting; ``ended`` is called when the broker has answered, or cannot any more.

        Raises:
            BrokerError: nothing was published; ``ended`` will not be called.
        """

    async def close(self) -> None:
        """Close the connection in order, if there is one."""


MakeAdapter = Callable[[], PublishAdapter]
"""Called once for each loop that publishes."""


def adapter_for(broker: BrokerSettings, settings: Settings | None, timeout: float) -> MakeAdapter:
    """The adapter that the scheme of the URL means.

    Imports what it needs at once: in a thread, later, an import may be cut in two by a fork.

    Args:
        broker: one URL, or several that are tried in turn.
        settings: which queues delay messages for how long; None when no more is known than where the broker is.
        timeout: seconds for one message.

    Raises:
        ValueError: it is no URL of a broker that can be published to, or the time is not more than 0.
    """
    if not timeout > 0:
        raise ValueError(f"a timeout is more than 0 seconds, not {timeout!r}")
    urls = [broker.url] if isinstance(broker.url, str) else broker.url
    schemes = {urlsplit(url).scheme for url in urls}
    if urls and schemes <= {"amqp", "amqps"}:
        from workerkit.brokers.rabbitmq.publishing import RabbitmqPublishing, check_url  # noqa: PLC0415

        for url in urls:
            check_url(url)
        return lambda: RabbitmqPublishing(broker, settings, timeout)
    raise ValueError("a broker's URL must begin with amqp:// or amqps://, like amqp://user:password@host:5672/vhost")
