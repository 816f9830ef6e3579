"""The broker dies, freezes, cancels, forgets: the worker consumes again by itself, and nothing confirmed is lost."""

import socket
import threading
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pika.exceptions
import pytest
from support.chroot import ordinary_node
from support.rabbit import Rabbit
from support.workers import Project, Worker, eventually

from workerkit.testing.rabbitmq import PrivateRabbitmq, RabbitmqMissing

pytestmark = pytest.mark.faults

TASK = """
    class Quick(WorkerTask):
        def callback(self, message):
            note("start", message.data, message.attempt)
            time.sleep(0.005)
            note("end", message.data)
            message.ack()
"""

REJECTING = """
    class Rejecting(WorkerTask):
        def callback(self, message):
            message.reject("never")
"""


def configure(project: Project, queue: str, **settings: str) -> None:
    project.task(TASK)
    lines = "".join(f"\n    {key}: {value}" for key, value in settings.items())
    project.config(f"""
workers:
  quick:
    task: workers.task:Quick
    queue: {queue}{lines}
""")


@pytest.fixture(scope="module")
def node() -> Iterator[PrivateRabbitmq]:
    """A node that these tests may kill."""
    try:
        with ordinary_node() as node:
            yield node
    except RabbitmqMissing as missing:
        pytest.skip(str(missing))


@pytest.fixture
def fragile(tmp_path: Path, node: PrivateRabbitmq) -> Iterator[Project]:
    """A project on that node."""
    project = Project(tmp_path, node.url)
    yield project
    project.close()


def answers(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(0.2)
        return probe.connect_ex(("127.0.0.1", port)) == 0


class Feeder(threading.Thread):
    """Publishes until stopped, through broker failures, and keeps the list of what was confirmed."""

    def __init__(self, url: str, queue: str) -> None:
        super().__init__(daemon=True)
        self._url, self._queue = url, queue
        self._stopping = threading.Event()
        self.confirmed: list[str] = []

    def run(self) -> None:
        number = 0
        while not self._stopping.is_set():
            try:
                with Rabbit(self._url) as rabbit:
                    while not self._stopping.is_set():
                        rabbit.publish(self._queue, f"m{number}")
                        self.confirmed.append(f"m{number}")
                        number += 1
            except (pika.exceptions.AMQPError, OSError):
                number += 1
                self._stopping.wait(0.1)

    def stop(self) -> list[str]:
        self._stopping.set()
        self.join(20)
        return self.confirmed


def _crash_and_time_the_recovery(node: PrivateRabbitmq, worker: Worker, feeder: Feeder, round_: int) -> float:
    """Seconds from the first answer of the restarted node's port until the worker consumes."""
    enough = len(feeder.confirmed) + 100
    eventually(lambda: len(feeder.confirmed) >= enough, "some load")
    node.flush()
    node.kill()
    worker.wait_for("conn.lost", count=round_)
    answered: list[float] = []

    def watch() -> None:
        eventually(lambda: answers(node.port), "the port answers")
        answered.append(time.time())

    watcher = threading.Thread(target=watch)
    watcher.start()
    node.start()
    watcher.join()
    up = worker.wait_for("conn.up", count=round_)
    return datetime.fromisoformat(up["timestamp"]).timestamp() - answered[0]


@pytest.mark.alone
@pytest.mark.timeout(180)
def test_a_broker_killed_under_load_loses_nothing_and_is_consumed_again_within_two_seconds(
    fragile: Project, node: PrivateRabbitmq
) -> None:
    """SIGKILL to the node while it is published to and consumed from; twice."""
    configure(fragile, "load", prefetch_count="10")
    worker = fragile.start("quick")
    feeder = Feeder(node.url, "load")
    feeder.start()
    for round_ in (1, 2):
        late = _crash_and_time_the_recovery(node, worker, feeder, round_)
        print(f"consuming {late:.2f} s after the port answered")
        assert late < 2.0
    confirmed = feeder.stop()
    eventually(lambda: set(confirmed) <= {line.split()[1] for line in fragile.ledger}, "all confirmed work", within=60)
    with Rabbit(node.url) as rabbit:
        eventually(lambda: rabbit.ready("load") == 0, "an empty queue")
        assert rabbit.consumers("load") == 1
        assert rabbit.ready("load.dead") == 0
    assert worker.stop() == 0


@pytest.mark.timeout(120)
def test_connections_closed_again_and_again_leave_exactly_one_consumer(fragile: Project, node: PrivateRabbitmq) -> None:
    """Whatever is lost is made again, and only once."""
    configure(fragile, "closed")
    worker = fragile.start("quick")
    for round_ in range(1, 6):
        node.ctl("close_all_connections", "--vhost", "/", "test")
        worker.wait_for("conn.up", count=round_)
    with Rabbit(node.url) as rabbit:
        assert rabbit.consumers("closed") == 1
        rabbit.publish("closed", "after")
    worker.wait_for("message.settled", outcome="acked")
    assert worker.stop() == 0


@pytest.mark.alone
@pytest.mark.timeout(120)
def test_a_frozen_broker_is_noticed_by_heartbeat_and_a_stop_does_not_hang_on_it(
    fragile: Project, node: PrivateRabbitmq
) -> None:
    """A broker that accepts and says nothing must neither keep a worker from noticing nor from ending."""
    configure(fragile, "frozen")
    worker = fragile.start("quick", WORKERKIT_BROKER__HEARTBEAT="1s")
    node.freeze()
    try:
        worker.wait_for("conn.lost", within=30)
        began = time.monotonic()
        assert worker.stop() == 0
        assert time.monotonic() - began < 10
    finally:
        node.thaw()


def test_a_worker_started_before_its_broker_waits_for_it(tmp_path: Path) -> None:
    """No broker is no reason to exit: one line per try, then work; a stop meanwhile is obeyed."""
    project = Project(tmp_path, "amqp://guest:guest@127.0.0.1:1/%2F")
    configure(project, "later")
    worker = project.run("quick")
    try:
        line = worker.wait_for("conn.failed", count=3)
        assert "connection refused" in line["error"]
        assert "guest:guest" not in "".join(worker.raw)
        assert "Traceback" not in "".join(worker.raw)
        assert worker.stop(5) == 0
    finally:
        project.close()


def test_a_queue_deleted_and_made_again_under_the_worker_is_consumed_again(
    project: Project, rabbit: Rabbit, queue: str
) -> None:
    """The broker cancels the consumer of a deleted queue; a worker that does not notice would look healthy for ever."""
    configure(project, queue)
    worker = project.start("quick")
    rabbit.delete(queue)
    worker.wait_for("source.up")
    rabbit.publish(queue, "afterwards")
    assert worker.wait_for("message.settled")["outcome"] == "acked"
    rabbit.delete(queue)
    rabbit.declare(queue, queue_type="quorum")
    eventually(lambda: rabbit.consumers(queue) == 1, "a consumer on the new queue")
    rabbit.publish(queue, "again")
    worker.wait_for("message.settled", count=2)
    assert worker.stop() == 0


def test_a_missing_dead_letter_queue_keeps_the_original_until_it_is_back(
    project: Project, rabbit: Rabbit, queue: str
) -> None:
    """A dead letter that no queue takes is not acknowledged away: the worker waits, and says what for."""
    project.task(REJECTING)
    project.config(f"""
        workers:
          rejecting: {{task: "workers.task:Rejecting", queue: {queue}}}
    """)
    worker = project.start("rejecting")
    rabbit.delete(f"{queue}.dead")
    rabbit.publish(queue, "kept")
    failed = worker.wait_for("publish.failed", count=2)
    assert "NO_ROUTE" in failed["error"]
    rabbit.declare(f"{queue}.dead", queue_type="quorum", delivery_limit=1_000_000)
    assert worker.wait_for("message.settled")["outcome"] == "dead-lettered"
    assert [body for body, _ in rabbit.dead(queue)] == ["kept"]
    assert worker.stop() == 0


def test_a_stop_while_a_dead_letter_cannot_be_published_hands_the_original_back(
    project: Project, rabbit: Rabbit, queue: str
) -> None:
    """Without a confirm the original is never acknowledged, whatever ends the wait."""
    project.task(REJECTING)
    project.config(f"""
        workers:
          rejecting: {{task: "workers.task:Rejecting", queue: {queue}}}
        supervisor: {{stopwaitsecs: 3}}
    """)
    worker = project.start("rejecting")
    rabbit.delete(f"{queue}.dead")
    rabbit.publish(queue, "kept")
    worker.wait_for("publish.failed")
    assert worker.stop(6) == 0
    eventually(lambda: rabbit.ready(queue) == 1, "the original is ready again")
    rabbit.declare(f"{queue}.dead", queue_type="quorum", delivery_limit=1_000_000)


@pytest.mark.timeout(120)
def test_a_memory_alarm_holds_retries_back_but_not_acknowledgements(fragile: Project, node: PrivateRabbitmq) -> None:
    """Publishing has a connection of its own: a broker that blocks it must not block acks."""
    fragile.task("""
        class Mixed(WorkerTask):
            def callback(self, message):
                if message.data == "bad" and message.attempt == 1:
                    raise ValueError("once")
                message.ack()
    """)
    fragile.config("""
        workers:
          mixed:
            task: workers.task:Mixed
            queue: alarm
            prefetch_count: 10
            retry: {max_attempts: 2, delays: [100ms]}
    """)
    worker = fragile.start("mixed")
    with Rabbit(node.url) as rabbit:
        rabbit.publish("alarm", "bad")
        worker.wait_for("message.settled", outcome="acked", attempt=2)  # the publishing connection is open now
        worker.signal(12)
        worker.wait_for("worker.paused")
        eventually(lambda: rabbit.consumers("alarm") == 0, "paused")
        rabbit.publish("alarm", "bad", "good", "good")
        node.ctl("set_vm_memory_high_watermark", "0.00001")
        try:
            worker.signal(18)
            worker.wait_for("message.settled", count=3, outcome="acked")
            assert not worker.events("message.settled", count=2, outcome="retried")
        finally:
            node.ctl("set_vm_memory_high_watermark", "0.4")
        worker.wait_for("message.settled", count=4, outcome="acked", within=60)
    assert worker.stop() == 0
