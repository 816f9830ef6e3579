"""What differs between RabbitMQ versions, as data. Measured on 3.10.8, 4.0.5 and 4.3.6."""

from __future__ import annotations

import re
from dataclasses import dataclass

from workerkit.settings.model import QueueSettings


@dataclass(frozen=True, slots=True)
class ServerVersion:
    """Product and version as the server says them in connection.start."""

    product: str
    numbers: tuple[int, ...]

    @classmethod
    def parse(cls, product: str, version: str) -> ServerVersion:
        """Read ``4.3.6`` or ``4.3.0-rc.1``; what cannot be read counts as the oldest."""
        numbers = tuple(int(number) for number in re.findall(r"\d+", version.partition("-")[0])[:3])
        return cls(product, numbers or (0,))

    @property
    def delays_retries(self) -> bool:
        """Whether quorum queues can delay rejected messages by themselves.

        Older servers, and other products that speak AMQP, accept the arguments and ignore them, so a rejected message
        comes back within 10 ms: deciding by the arguments alone would spin.
        """
        return self.product == "RabbitMQ" and self.numbers >= (4, 3)

    @property
    def moves_consumers_silently(self) -> bool:
        """Whether a consumer can be left on a re-created queue without being told.

        When a quorum queue is deleted and made again at once, 4.0.5 and 4.3.6 cancel the consumers of the old one.
        3.10.8 moves the subscription over in silence, and the channel then takes what the new queue delivers for
        duplicates and drops it: the consumer is listed, nothing is ready, nothing arrives. Only a new channel helps.
        It also refuses the consumer argument ``x-cancel-on-ha-failover``, which asks for the cancel, on quorum queues.
        """
        return self.numbers < (4, 0)


@dataclass(frozen=True, slots=True)
class QueueTraits:
    """What one queue does on one server; from the server that answered, never guessed from the arguments alone.

    Attributes:
        native: it delays rejected messages by itself, and counts failures.
        limited: it drops a message that has come back often (from 4.0 on after 20 returns, where it has no limit of its
            own), and nobody else counts.
        ordered: its meaning depends on its order.
        counts_losses: it tells how often a message has lost its whole worker. Classic queues do not; with native retry
            a loss is a failed attempt like others. Where hand-backs count too, they have to be copies to be told
            apart, which an ordered queue cannot have.
        counts_hand_backs: what is merely handed back (basic.nack) counts as a loss, as it does before 4.3.
    """

    native: bool = False
    limited: bool = False
    ordered: bool = False
    counts_losses: bool = False
    counts_hand_backs: bool = False

    @classmethod
    def of(cls, settings: QueueSettings, version: ServerVersion) -> QueueTraits:
        """The traits of a queue with these settings on a server of this version."""
        native = version.delays_retries and settings.delayed_retry is not None
        counting = settings.type == "quorum" and not native
        hand_backs = counting and not version.delays_retries
        ordered = bool(settings.arguments.get("x-single-active-consumer"))
        return cls(
            native=native,
            limited=counting and version.numbers >= (4, 0),
            ordered=ordered,
            counts_losses=counting and not (ordered and hand_backs),
            counts_hand_backs=hand_backs,
        )
