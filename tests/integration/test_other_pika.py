"""The short cuts into pika, on a real broker: they change nothing, and a pika without them is no trouble."""

import asyncio
import textwrap
from typing import Any

import pytest
from support.rabbit import Rabbit
from support.workers import Project

from workerkit.brokers.rabbitmq import amqp, fastpath
from workerkit.brokers.rabbitmq.amqp import Connection
from workerkit.brokers.rabbitmq.fastpath import Settling
from workerkit.ports import Delivery
from workerkit.properties import Properties, decode
from workerkit.testing.rabbitmq import PrivateRabbitmq

pytestmark = pytest.mark.integration

FRAME_MAX = 131_072
BODIES = [b"", b"x", b"y" * (FRAME_MAX - 8), b"z" * (FRAME_MAX - 7), b"w" * 700_000, *(b"%d" % n for n in range(300))]

# A pika that has moved one of the things that the short cuts use, and is otherwise sound.
MOVED = """
    import pika.connection, pika.frame
    decode = pika.frame.decode_frame
    del pika.frame.decode_frame
    pika.connection.Connection._read_frame = lambda self: decode(self._frame_buffer)
"""


async def consume(url: str, queue: str, count: int) -> list[Delivery]:
    """Take ``count`` messages, then give them all back."""
    connection = await Connection.open(url, name="test", heartbeat=10, attempt_timeout=10)
    channel = await connection.channel()
    await channel.qos(0)
    taken: list[Delivery] = []
    complete = asyncio.Event()

    def take(batch: list[Delivery]) -> None:
        taken.extend(batch)
        if len(taken) >= count:
            complete.set()

    await channel.consume(queue, "tag", take, receipt=5)
    await asyncio.wait_for(complete.wait(), 20)
    await channel.cancel("tag")  # what is given back must not come again at once
    channel.ack([(taken[0].tag, False)])
    channel.settle(Settling.REJECT, [(taken[1].tag, False)])
    channel.nack([(taken[-1].tag, True)])
    await connection.close()
    return taken


def facts(delivery: Delivery) -> tuple[Any, ...]:
    properties: Properties = decode(delivery.raw_properties)
    return delivery.queue, delivery.routing_key, delivery.receipt, properties, delivery.body


def test_the_short_cuts_deliver_and_settle_as_pika_does(
    rabbitmq: PrivateRabbitmq, rabbit: Rabbit, queue: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Empty bodies, bodies of exactly a frame and of many, and runs of alike messages, with every settling method."""
    rabbit.declare(queue)
    rabbit.publish(queue, *BODIES, headers={"n": 1, "text": "é"}, content_type="text/plain")
    quick = asyncio.run(consume(rabbitmq.url, queue, len(BODIES)))
    assert rabbit.ready(queue) == len(BODIES) - 1
    rabbit.publish(queue, BODIES[0], headers={"n": 1, "text": "é"}, content_type="text/plain")
    monkeypatch.setattr(amqp, "missing_in_pika", lambda: ["something"])
    plain = asyncio.run(consume(rabbitmq.url, queue, len(BODIES)))
    assert rabbit.ready(queue) == len(BODIES) - 1
    assert sorted(map(repr, map(facts, quick))) == sorted(map(repr, map(facts, plain)))


def test_a_worker_on_a_pika_without_what_the_short_cuts_need_does_the_same_and_says_so_once(
    project: Project, rabbit: Rabbit, queue: str
) -> None:
    """Upgrading pika can make a worker slower, never wrong."""
    (project.root / "sitecustomize.py").write_text(textwrap.dedent(MOVED))
    project.task("""
        class Verbs(WorkerTask):
            def callback(self, message):
                if message.data["do"] == "fail":
                    raise ValueError("boo")
                message.ack()
    """)
    project.config(f"""
workers:
  verbs: {{task: workers.task:Verbs, queue: {queue}, prefetch_count: 20, retry: {{max_attempts: 2, delays: [100ms]}}}}
""")
    worker = project.start("verbs", PYTHONPATH=str(project.root))
    rabbit.publish(queue, *({"do": "ack", "n": n} for n in range(50)), {"do": "fail"})
    worker.wait_for("message.settled", count=50, outcome="acked")
    worker.wait_for("message.settled", outcome="dead-lettered", attempt=2)
    assert worker.stop() == 0
    (said,) = worker.events("amqp.short_cuts_off")
    assert said["missing"] == ["pika.frame.decode_frame"]
    assert rabbit.ready(queue) == 0
    ((_, headers),) = rabbit.dead(queue)
    assert headers["workerkit-reason"] == "exception"


def test_the_installed_pika_has_what_the_short_cuts_need() -> None:
    """Otherwise nearly everything that these tests test is the slow way."""
    assert fastpath.missing_in_pika() == []
