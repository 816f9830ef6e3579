"""A whole worker whose callbacks are coroutines, several at once, on a broker in memory."""

from __future__ import annotations

import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
from support.whole import WholeWorker

from workerkit.brokers.memory.store import MemoryStore

TASK = """
    import asyncio, os, random, signal, sys, time
    from workerkit import WorkerTask

    class Whole(WorkerTask):
        queue = "jobs"
        concurrency = 20

        async def callback(self, message):
            do = message.data[0]
            try:
                await asyncio.sleep(0.02 * random.Random(message.message_id).random())
                if do == "kill":
                    os.kill(os.getpid(), signal.SIGKILL)
                if do == "exit":
                    sys.exit(3)
                if do == "hang":
                    await asyncio.sleep(3600)
                if do == "block":
                    time.sleep(2)
            except asyncio.CancelledError:
                self.logger.info("cancelled")
                raise
            message.ack()

        async def shutdown(self, message, cause):
            self.logger.info("shutdown", reason=cause.reason.value)
"""


@pytest.fixture
def store() -> MemoryStore:
    store = MemoryStore(time.monotonic)
    store.declare("jobs")
    return store


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "whole_coroutines.py").write_text(textwrap.dedent(TASK))
    return tmp_path


def worker(root: Path, store: MemoryStore, **settings: Any) -> WholeWorker:
    policy = {"retry": {"max_attempts": 1, "delays": [0.1]}}
    return WholeWorker(root, "whole_coroutines:Whole", store, **{**policy, **settings})


@pytest.mark.parametrize(("how", "reason"), [("kill", "signal"), ("exit", "exit")])
async def test_of_many_that_run_at_once_only_those_that_kill_are_to_blame(
    how: str, reason: str, root: Path, store: MemoryStore
) -> None:
    """Each exactly once, though nineteen others run beside it; no innocent one has an attempt counted."""
    messages = [[how if number % 40 == 7 else "fine", number] for number in range(160)]
    killers = {number for do, number in messages if do != "fine"}
    async with worker(root, store) as whole:
        whole.put("jobs", *messages)
        await whole.wait_for("message.settled", len(killers), outcome="dead-lettered")
        await whole.wait_for("message.settled", len(messages) - len(killers), outcome="acked")
        assert await whole.stop() == 0
    letters = store.ready("jobs.dead")
    assert sorted(record.data[1] for record in letters) == sorted(killers)
    assert {record.headers["workerkit-reason"] for record in letters} == {reason}
    assert {record.attempt for record in letters} == {1}
    assert {line["attempt"] for line in whole.events("message.settled", outcome="acked")} == {1}
    by_shutdown = {line["message_id"] for line in whole.events("shutdown")}
    assert {str([how, number]).replace("'", '"') for number in killers} <= by_shutdown
    assert (store.ready("jobs"), store.delayed("jobs")) == ([], [])


async def test_a_coroutine_that_runs_too_long_is_cancelled_and_the_others_go_on(root: Path, store: MemoryStore) -> None:
    """No executor ends for it."""
    async with worker(root, store, callback_timeout=1.0) as whole:
        whole.put("jobs", ["hang", 1], *(["fine", number] for number in range(2, 30)))
        await whole.wait_for("message.settled", 28, outcome="acked")
        await whole.wait_for("cancelled")
        line = await whole.wait_for("message.settled", outcome="dead-lettered")
        assert line["message_id"] == '["hang", 1]'
        assert await whole.stop() == 0
    (letter,) = store.ready("jobs.dead")
    assert letter.headers["workerkit-reason"] == "timeout"
    assert len(whole.events("executor.started")) == 1


async def test_a_callback_that_blocks_the_loop_is_named(root: Path, store: MemoryStore) -> None:
    """With its stack, while it does."""
    async with worker(root, store) as whole:
        whole.put("jobs", ["block", 1], ["fine", 2])
        line = await whole.wait_for("callback.blocks_loop")
        await whole.wait_for("message.settled", 2, outcome="acked")
        assert await whole.stop() == 0
    assert line["message_id"] == '["block", 1]'
    assert "in callback" in line["stack"]
