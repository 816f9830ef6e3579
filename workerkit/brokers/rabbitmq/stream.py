"""Many confirmed publishes to one queue, in order, up to the first that fails."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from workerkit.brokers.rabbitmq.publisher import ConfirmedPublisher
from workerkit.errors import BrokerError


@dataclass(frozen=True, slots=True)
class Failure:
    """The earliest message that the broker does not have. Later ones may be confirmed: many are in flight at once."""

    number: int
    """As its sender counts."""
    before: int
    """How many messages were sent before it; all of them are confirmed."""
    error: Exception


class Stream:
    """Sends as the publisher has room, and no more once one has failed.

    Args:
        publisher: its window says how many are in flight.
    """

    def __init__(self, publisher: ConfirmedPublisher) -> None:
        self.confirmed = 0
        self.failure: Failure | None = None
        self._publisher = publisher
        self._sent = 0

    async def send(self, number: int, queue: str, properties: bytes, body: bytes) -> bool:
        """Publish message ``number`` when there is room. False: one has failed, and no more will be published.

        Args:
            number: to be named when it fails.
            queue: where it goes.
            properties: encoded AMQP properties.
            body: the payload.
        """
        ended = partial(self._ended, number, self._sent)
        try:
            if not self._publisher.ready:
                await self._publisher.room()
            if self.failure is not None:
                return False
            self._publisher.submit("", queue, properties, body, ended)
        except BrokerError as error:
            ended(error)
            return False
        self._sent += 1
        return True

    def _ended(self, number: int, before: int, error: BrokerError | None) -> None:
        if error is None:
            self.confirmed += 1
        elif self.failure is None or before < self.failure.before:
            self.failure = Failure(number, before, error)
