"""A whole worker on a broker in memory: consumer, executor processes, deaths and all."""

from __future__ import annotations

import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
from support.whole import WholeWorker
from support.workers import Project

from workerkit.brokers.memory.broker import MemoryBroker
from workerkit.brokers.memory.store import MemoryStore

TASK = """
    import os, signal, sys, time
    from workerkit import WorkerTask

    class Whole(WorkerTask):
        def callback(self, message):
            do = message.data
            if do == "die" and message.attempt == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            if do == "die always":
                os._exit(7)
            if do == "fail":
                raise ValueError("no")
            if do == "hang":
                time.sleep(60)
            if do == "wait":
                self.logger.info("waiting")
                while not os.path.exists("GO"):
                    time.sleep(0.01)
            if do == "pass on":
                message.publish("mail", "fine")
            if do == "pass on nowhere":
                message.publish("nowhere", "fine")
            message.ack()
"""


@pytest.fixture
def store() -> MemoryStore:
    store = MemoryStore(time.monotonic)
    for queue in ("jobs", "mail"):
        store.declare(queue)
    return store


@pytest.fixture
def root(tmp_path: Path) -> Path:
    text = textwrap.dedent(TASK).replace("GO", str(tmp_path / "go"))
    (tmp_path / "whole_task.py").write_text(text)
    return tmp_path


def worker(root: Path, store: MemoryStore, *, broker: MemoryBroker | None = None, **settings: Any) -> WholeWorker:
    policy = {"retry": {"max_attempts": 2, "delays": [0.1]}}
    return WholeWorker(root, "whole_task:Whole", store, broker, **{"queue": "jobs", **policy, **settings})


async def test_every_message_has_its_end_whatever_the_callback_does(root: Path, store: MemoryStore) -> None:
    """Acknowledged, tried again after a death, kept with the reason."""
    async with worker(root, store) as whole:
        whole.put("jobs", "fine", "die", "fine", "die always", "fail")
        await whole.wait_for("message.settled", 3, outcome="acked")
        await whole.wait_for("message.settled", 2, outcome="dead-lettered")
        assert await whole.stop() == 0
    letters = {record.data: record for record in store.ready("jobs.dead")}
    assert {body: letter.headers["workerkit-reason"] for body, letter in letters.items()} == {
        "die always": "exit",
        "fail": "exception",
    }
    assert letters["die always"].headers["workerkit-exit-code"] == 7
    assert [letter.attempt for letter in letters.values()] == [2, 2]
    assert (store.ready("jobs"), store.delayed("jobs")) == ([], [])


async def test_several_queues_and_several_executors(root: Path, store: MemoryStore) -> None:
    """Each message is worked on once."""
    async with worker(root, store, queue=None, queues={"jobs": 3, "mail": 1}, executors=2) as whole:
        for number in range(50):
            whole.put("jobs", number)
            whole.put("mail", number)
        await whole.wait_for("message.settled", 100, outcome="acked")
        assert await whole.stop() == 0
    done = [(line["queue"], line["message_id"]) for line in whole.events("message.settled")]
    assert len(set(done)) == len(done) == 100


async def test_what_was_not_finished_by_the_deadline_goes_back(root: Path, store: MemoryStore) -> None:
    """As the same attempt, the started one too; the next worker has it."""
    async with worker(root, store, prefetch_count=2) as whole:
        whole.put("jobs", "hang", "fine")
        await whole.wait_for("worker.consuming")
        await whole.until(lambda: not store.ready("jobs"), "both are taken")
        whole.consumer.stop_by_signal("SIGTERM")
        whole.consumer.stop_by_signal("SIGTERM")
        assert await whole.ended() == 0
    assert [(record.data, record.attempt) for record in store.ready("jobs")] == [("hang", 1), ("fine", 1)]


async def test_a_lost_source_is_consumed_again(root: Path, store: MemoryStore) -> None:
    """What ran is settled in vain, which has a line of its own; its other hand-over is the one that counts."""
    broker = MemoryBroker(store)
    async with worker(root, store, broker=broker, prefetch_count=2) as whole:
        whole.put("jobs", "wait", "fine")
        await whole.until(lambda: whole.events("waiting"), "the first one runs")
        broker.lose("jobs")
        (root / "go").touch()
        await whole.wait_for("settle.dropped")
        await whole.wait_for("message.settled", 2, outcome="acked")
        assert await whole.stop() == 0
    assert [line["message_id"] for line in whole.events("settle.dropped")] == ['"wait"']
    assert len(whole.events("message.settled")) == 2
    assert store.ready("jobs") == []


async def test_a_chain_of_queues_that_callbacks_publish(root: Path, store: MemoryStore) -> None:
    """With the acknowledgement, in this process: what `memory://` is for beside tests."""
    async with worker(root, store, queue=None, queues={"jobs": 1, "mail": 1}) as whole:
        whole.put("jobs", "pass on", message_id="m")
        await whole.wait_for("message.settled", outcome="acked", queue="mail", message_id="m/1")
        assert await whole.stop() == 0


async def test_what_cannot_be_published_is_a_failed_attempt(root: Path, store: MemoryStore) -> None:
    """Nobody consumes that queue, nor declares it."""
    async with worker(root, store) as whole:
        whole.put("jobs", "pass on nowhere")
        await whole.wait_for("message.settled", outcome="dead-lettered")
        assert await whole.stop() == 0
    (letter,) = store.ready("jobs.dead")
    assert (letter.attempt, letter.headers["workerkit-reason"]) == (2, "exception")
    assert "nowhere" in letter.headers["workerkit-message"]


def test_a_worker_is_run_on_memory_by_its_url(tmp_path: Path) -> None:
    """`workerkit run` as on any broker; it has only what its own callbacks publish."""
    project = Project(tmp_path, "memory://shop")
    project.task("""
        class Idle(WorkerTask):
            def callback(self, message):
                message.ack()
    """)
    project.config("workers: {idle: {task: 'workers.task:Idle', queue: jobs}}")
    try:
        worker = project.start("idle")
        assert worker.stop() == 0
    finally:
        project.close()
