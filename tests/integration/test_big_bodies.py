"""Messages of a megabyte each: how far ahead of the executor the consumer reads."""

from pathlib import Path

import pytest
from support.rabbit import Rabbit
from support.workers import Project, eventually

pytestmark = pytest.mark.integration

MIB = 1024 * 1024


def peak_memory(pid: int) -> int:
    """Bytes that a process has had resident at most."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


@pytest.mark.alone  # an executor that gets no processor for long is read ahead of: it could be a long callback
def test_a_prefetch_window_of_big_bodies_is_not_read_into_memory_at_once(
    project: Project, rabbit: Rabbit, queue: str
) -> None:
    """150 MB are ours to work on; a few of them are in memory. What is held back is read as there is room, whole."""
    project.task("""
        class Big(WorkerTask):
            def callback(self, message):
                time.sleep(0.01)
                assert message.body == message.body[:1] * 1_000_000
                message.ack()
    """)
    project.config(f"workers: {{big: {{task: 'workers.task:Big', queue: {queue}, prefetch_count: 200}}}}")
    rabbit.declare(queue, queue_type="quorum")
    rabbit.publish(queue, *(b"%c" % (97 + n % 26) * 1_000_000 for n in range(150)))
    worker = project.start("big")
    worker.wait_for("message.settled", count=150, outcome="acked")
    assert peak_memory(worker.pid) < 100 * MIB
    assert worker.stop() == 0
    assert rabbit.ready(queue) == 0


def test_a_connection_with_a_backlog_stays_alive(project: Project, rabbit: Rabbit, queue: str) -> None:
    """A callback of several heartbeats, and more behind it than it takes: neither side takes the other for dead."""
    project.task("""
        class Big(WorkerTask):
            def callback(self, message):
                note(message.message_id[:1])
                if len(message.message_id) == 1:
                    time.sleep(13)  # pika looks for signs of life every heartbeat and five seconds
                message.ack()
    """)
    project.config(f"workers: {{big: {{task: 'workers.task:Big', queue: {queue}, prefetch_count: 100}}}}")
    text = (project.root / "config/workerkit.yaml").read_text()
    (project.root / "config/workerkit.yaml").write_text(text.replace("heartbeat: 5s", "heartbeat: 1s"))
    rabbit.declare(queue, queue_type="quorum")
    rabbit.publish(queue, b"1")
    rabbit.publish(queue, *[b"22" + b"x" * 1_000_000] * 40)
    worker = project.start("big")
    worker.wait_for("message.settled", count=41, outcome="acked")
    assert worker.events("conn.lost") == worker.events("source.lost") == []
    assert worker.stop() == 0
    assert len(project.ledger) == 41


def test_a_stop_does_not_wait_for_a_backlog(project: Project, rabbit: Rabbit, queue: str) -> None:
    """What is still on its way goes back unread by the task and uncounted, and what was done stays done."""
    project.task("""
        class Big(WorkerTask):
            def callback(self, message):
                time.sleep(0.01)
                message.ack()
                note(message.message_id[:3])
    """)
    project.config(f"workers: {{big: {{task: 'workers.task:Big', queue: {queue}, prefetch_count: 200}}}}")
    rabbit.declare(queue, queue_type="quorum")
    rabbit.publish(queue, *(b"%03d" % n + b"x" * 1_000_000 for n in range(150)))
    worker = project.start("big")
    worker.wait_for("message.settled", count=20, outcome="acked")
    assert worker.stop() == 0
    done = len(project.ledger)
    assert done < 150
    eventually(lambda: rabbit.ready(queue) == 150 - done, "exactly what was not done is ready again")
