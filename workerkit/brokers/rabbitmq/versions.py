"""What differs between RabbitMQ versions, as data. Measured on 3.10.8, 4.0.5 and 4.3.6."""

from __future__ import annotations

import re
from dataclasses import dataclass

NATIVE_DELAYED_RETRY = (4, 3)
"""Quorum queues delay rejected messages by themselves. Older servers accept the arguments and ignore them, so a
rejected message comes back within 10 ms: deciding by the arguments alone would spin."""

CANCELS_CONSUMERS_OF_RECREATED_QUEUES = (4, 0)
"""When a quorum queue is deleted and made again at once, 4.0.5 and 4.3.6 cancel the consumers of the old one.

3.10.8 moves the subscription over in silence, and the channel then takes what the new queue delivers for duplicates and
drops it: the consumer is listed, nothing is ready, nothing arrives. Only a new channel helps. It also refuses the
consumer argument ``x-cancel-on-ha-failover``, which asks for the cancel, on quorum queues."""

DEFAULT_DELIVERY_LIMIT = (4, 0)
"""Quorum queues without a delivery limit of their own have one of 20 from this version on."""


@dataclass(frozen=True, slots=True)
class ServerVersion:
    """Product and version as the server says them in connection.start."""

    product: str
    numbers: tuple[int, ...]
    text: str

    @classmethod
    def parse(cls, product: str, version: str) -> ServerVersion:
        """Read ``4.3.6`` or ``4.3.0-rc.1``; what cannot be read counts as the oldest."""
        numbers = tuple(int(number) for number in re.findall(r"\d+", version.partition("-")[0])[:3])
        return cls(product, numbers or (0,), version)

    @property
    def delays_retries(self) -> bool:
        """Whether this server has native delayed retry. Other products that speak AMQP do not."""
        return self.product == "RabbitMQ" and self.numbers >= NATIVE_DELAYED_RETRY

    @property
    def moves_consumers_silently(self) -> bool:
        """Whether a consumer can be left on a re-created queue without being told."""
        return self.numbers < CANCELS_CONSUMERS_OF_RECREATED_QUEUES

    @property
    def limits_deliveries(self) -> bool:
        """Whether a quorum queue drops a message that came back often."""
        return self.numbers >= DEFAULT_DELIVERY_LIMIT
