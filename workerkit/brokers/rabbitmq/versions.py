"""What differs between RabbitMQ versions, as data. Measured on 3.10.8, 4.0.5 and 4.3.6."""

from __future__ import annotations

import re
from dataclasses import dataclass

NATIVE_DELAYED_RETRY = (4, 3)
"""Quorum queues delay rejected messages by themselves. Older servers accept the arguments and ignore them, so a
rejected message comes back within 10 ms: deciding by the arguments alone would spin."""


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
