"""Two small values: how long to wait, and what a server can do."""

import pytest

from workerkit.brokers.backoff import Backoff
from workerkit.brokers.rabbitmq.versions import ServerVersion


def test_delays_grow_to_a_cap_and_are_jittered() -> None:
    """Between half and all of each, so that a fleet does not come back in one instant."""
    backoff = Backoff(0.1, 2.0)
    wanted = [0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0]
    for seconds in wanted:
        assert backoff.seconds == pytest.approx(seconds)
        delays = {backoff.delay() for _ in range(20)}
        assert len(delays) > 1
        assert all(seconds / 2 <= delay <= seconds for delay in delays)
        backoff = backoff.next()


@pytest.mark.parametrize(
    ("product", "version", "numbers", "native"),
    [
        ("RabbitMQ", "3.10.8", (3, 10, 8), False),
        ("RabbitMQ", "4.2.9", (4, 2, 9), False),
        ("RabbitMQ", "4.3.0", (4, 3, 0), True),
        ("RabbitMQ", "4.3.0-rc.1", (4, 3, 0), True),
        ("RabbitMQ", "4.10.1", (4, 10, 1), True),
        ("RabbitMQ", "10.0", (10, 0), True),
        ("RabbitMQ", "", (0,), False),
        ("RabbitMQ", "unknown", (0,), False),
        ("LavinMQ", "4.3.6", (4, 3, 6), False),
        ("", "5.0.0", (5, 0, 0), False),
    ],
)
def test_native_delayed_retry_is_believed_only_of_rabbitmq_4_3(
    product: str, version: str, numbers: tuple[int, ...], native: bool
) -> None:
    """A server that ignores the arguments would give a rejected message back at once, for ever."""
    server = ServerVersion.parse(product, version)
    assert server.numbers == numbers
    assert server.delays_retries is native
