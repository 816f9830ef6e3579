"""Publishing against a broker that does not answer: never in silence, never twice."""

import asyncio
from collections.abc import Iterator

import pytest
from support.rabbit import Rabbit

from workerkit.brokers.rabbitmq import publisher as publisher_module
from workerkit.brokers.rabbitmq.amqp import Connection
from workerkit.brokers.rabbitmq.publisher import Publisher
from workerkit.errors import PublishFailed
from workerkit.properties import Properties, encode
from workerkit.testing.rabbitmq import PrivateRabbitmq

pytestmark = pytest.mark.integration

PLAIN = encode(Properties(delivery_mode=2))


@pytest.fixture
def alarm(rabbitmq: PrivateRabbitmq, monkeypatch: pytest.MonkeyPatch) -> Iterator[PrivateRabbitmq]:
    """A node under a memory alarm: it reads nothing from connections that publish."""
    monkeypatch.setattr(publisher_module, "PUBLISH_TIMEOUT", 0.5)
    rabbitmq.ctl("set_vm_memory_high_watermark", "0.00001")
    yield rabbitmq
    rabbitmq.ctl("set_vm_memory_high_watermark", "0.4")


def test_a_blocked_broker_gets_the_message_once_however_long_it_takes(
    rabbitmq: PrivateRabbitmq, rabbit: Rabbit, queue: str, alarm: PrivateRabbitmq
) -> None:
    """A worker's retries and dead letters wait out the alarm; each time-out would add a copy of the same message."""
    rabbit.declare(queue, queue_type="quorum")
    rabbit.declare(f"{queue}.dead", queue_type="quorum")

    async def scene() -> None:
        publisher = Publisher(lambda: connect(rabbitmq), wait_while_blocked=True)
        publish = asyncio.create_task(publisher.publish("", queue, PLAIN, b"once"))
        assert not (await asyncio.wait({publish}, timeout=3))[0]
        await asyncio.to_thread(alarm.ctl, "set_vm_memory_high_watermark", "0.4")
        await asyncio.wait_for(publish, 20)
        await publisher.close()

    asyncio.run(scene())
    assert rabbit.ready(queue) == 1


def test_a_command_does_not_wait_for_a_blocked_broker(rabbitmq: PrivateRabbitmq, queue: str, alarm: object) -> None:
    """It says what blocks and that the outcome is not known, and leaves the connection behind."""

    async def scene() -> None:
        publisher = Publisher(lambda: connect(rabbitmq))
        with pytest.raises(PublishFailed, match=r"blocks publishers .*may still arrive"):
            await publisher.publish("", queue, PLAIN, b"perhaps")
        await publisher.close()

    asyncio.run(scene())


async def connect(node: PrivateRabbitmq) -> Connection:
    return await Connection.open(node.url, name="test", heartbeat=10, attempt_timeout=10)
