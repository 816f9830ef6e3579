"""A callback may take as long as it likes, and hold the interpreter while it does."""

import pytest
from support.rabbit import Rabbit
from support.workers import Project, eventually

pytestmark = [pytest.mark.faults, pytest.mark.alone]

HEARTBEAT = 1

LONG = {
    "sleeps for ten heartbeats": f"time.sleep({10 * HEARTBEAT})",
    # One C call: neither signals nor other threads of the process get the interpreter while it runs.
    "holds the GIL in one C call for four heartbeats": (
        "n = 10**6; began = time.monotonic(); sum(itertools.repeat(0, n)); cost = time.monotonic() - began; "
        f"sum(itertools.repeat(0, int(n * {6 * HEARTBEAT} / cost)))"
    ),
}


@pytest.mark.parametrize("name", LONG)
def test_a_long_callback_is_delivered_once_and_acknowledged_once(
    name: str, project: Project, rabbit: Rabbit, queue: str
) -> None:
    """Heartbeats go on in the consumer process, whatever the callback does to its own."""
    project.task(f"""
        class Long(WorkerTask):
            def callback(self, message):
                note("start", message.data, message.attempt)
                {LONG[name]}
                note("end", message.data)
                message.ack()
    """)
    project.config(f"""
        workers:
          long: {{task: "workers.task:Long", queue: {queue}}}
    """)
    worker = project.start("long", WORKERKIT_BROKER__HEARTBEAT=f"{HEARTBEAT}s")
    rabbit.publish(queue, "patience")
    settled = worker.wait_for("message.settled")
    assert settled["outcome"] == "acked"
    assert settled["duration_ms"] >= 4000 * HEARTBEAT
    assert project.ledger == ["start patience 1", "end patience"]
    eventually(lambda: rabbit.ready(queue) == 0, "an empty queue")
    assert worker.events("conn.lost") == worker.events("source.lost") == []
    assert worker.stop() == 0
    assert rabbit.ready(queue) == 0
