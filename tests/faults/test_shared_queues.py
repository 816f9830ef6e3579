"""What the broker decides about consumers: which of them works, and how long one may keep a message."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.chroot import ordinary_node
from support.rabbit import Rabbit
from support.workers import Project, Worker, eventually

from workerkit.testing.rabbitmq import PrivateRabbitmq, RabbitmqMissing

pytestmark = pytest.mark.faults

CONSUMER_TIMEOUT = 3
"""Seconds that the broker gives a consumer, for a callback of twice as many."""


def test_a_single_active_consumer_is_replaced_when_it_dies(project: Project, rabbit: Rabbit, queue: str) -> None:
    """The second worker stands by, works on nothing, and takes over within seconds."""
    project.task("""
        class Single(WorkerTask):
            def callback(self, message):
                note(os.getppid(), message.data)
                if message.data == "last words":
                    time.sleep(60)
                message.ack()
    """)
    project.config(f"""
queues:
  {queue}: {{arguments: {{x-single-active-consumer: true}}}}
workers:
  single: {{task: "workers.task:Single", queue: {queue}}}
""")
    first = project.start("single")
    second = project.start("single", WORKERKIT_INSTANCE="01")
    rabbit.publish(queue, *range(20))
    first.wait_for("message.settled", count=20, outcome="acked")
    rabbit.publish(queue, "last words", *range(20, 40))
    eventually(lambda: f"{first.pid} last words" in project.ledger, "the first works on it")
    assert second.events("message.settled") == []
    assert {line.split()[0] for line in project.ledger} == {str(first.pid)}

    os.kill(first.pid, signal.SIGKILL)
    took_over = f"{second.pid} last words"
    eventually(lambda: took_over in project.ledger, "the second has taken over", within=5)
    assert not second.events("source.lost") + second.events("conn.lost"), (
        "a consumer that stands by is served as it should be"
    )
    second.signal(signal.SIGTERM)
    second.wait_for("worker.stopping")
    second.signal(signal.SIGTERM)
    assert second.wait() == 0
    assert rabbit.ready(queue) == 21


def start_slow(project: Project, queue: str, settings: str = "") -> Worker:
    """A worker whose first callback takes longer than the broker waits for an acknowledgement."""
    project.task(f"""
        class Slow(WorkerTask):
            runs = 0

            def callback(self, message):
                note("start", message.data, message.attempt)
                self.runs += 1
                if self.runs == 1:
                    time.sleep({2 * CONSUMER_TIMEOUT})
                note("end", message.data)
                message.ack()
    """)
    project.config(f"""
queues:
  {queue}: {{arguments: {{{settings}}}}}
workers:
  slow: {{task: "workers.task:Slow", queue: {queue}, retry: {{max_attempts: 2}}}}
""")
    return project.start("slow")


def see_it_given_again(project: Project, worker: Worker, rabbit: Rabbit, queue: str, why: str) -> None:
    """The message is the broker's again while its callback runs: that may end, and then both begin anew."""
    rabbit.publish(queue, "long")
    lost = worker.wait_for("source.lost", within=4 * CONSUMER_TIMEOUT)
    assert why in lost["why"]
    assert project.ledger == ["start long 1"], "the callback goes on"
    worker.wait_for("source.up")
    worker.wait_for("settle.dropped")
    worker.wait_for("message.settled", outcome="acked")
    rabbit.publish(queue, "next")
    worker.wait_for("message.settled", count=2, outcome="acked")
    assert project.ledger == ["start long 1", "end long", "start long 1", "end long", "start next 1", "end next"]
    assert not worker.events("executor.exit")
    assert worker.stop() == 0
    assert rabbit.ready(queue) == 0


@pytest.fixture
def impatient(tmp_path: Path) -> Iterator[PrivateRabbitmq]:
    """A node that waits for an acknowledgement no longer than a few seconds, and looks twice a second."""
    try:
        with ordinary_node(root=tmp_path) as node:
            wanted = {"consumer_timeout": CONSUMER_TIMEOUT * 1000, "channel_tick_interval": 500}
            node.ctl(
                "--quiet", "eval", "".join(f"application:set_env(rabbit, {k}, {v})," for k, v in wanted.items()) + "ok."
            )
            yield node
    except RabbitmqMissing as missing:
        pytest.skip(str(missing))


def test_a_callback_longer_than_the_brokers_patience_costs_its_settlement_and_nothing_else(
    impatient: PrivateRabbitmq, tmp_path: Path, queue_name: str
) -> None:
    """The channel is closed, the message given again, its late settlement dropped and logged; the worker goes on."""
    if impatient.version.split(".") >= ["4", "3"]:
        pytest.skip("this RabbitMQ cancels the consumer instead")
    queue = f"q-{queue_name[-8:]}"
    project = Project(tmp_path / "project", impatient.url)
    try:
        with Rabbit(impatient.url) as rabbit:
            see_it_given_again(project, start_slow(project, queue), rabbit, queue, "delivery acknowledgement")
    finally:
        project.close()


def test_where_the_broker_cancels_the_consumer_instead_it_is_the_same(
    rabbitmq_next: PrivateRabbitmq, tmp_path: Path, queue_name: str
) -> None:
    """From RabbitMQ 4.3 the channel stays open; the worker consumes again all the same."""
    queue = f"q-{queue_name[-8:]}"
    project = Project(tmp_path / "project", rabbitmq_next.url)
    try:
        with Rabbit(rabbitmq_next.url) as rabbit:
            worker = start_slow(project, queue, f"x-consumer-timeout: {CONSUMER_TIMEOUT * 1000}")
            see_it_given_again(project, worker, rabbit, queue, "cancelled the consumer")
            rabbit.delete(queue, f"{queue}.dead")
    finally:
        project.close()
