"""One set of callbacks in a user's test, in a whole worker in memory and on RabbitMQ: each has the same end."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import textwrap
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from support.rabbit import Rabbit
from support.whole import WholeWorker
from support.workers import Project, eventually

from workerkit import RetryPolicy
from workerkit.brokers.memory.store import MemoryStore
from workerkit.outgoing import Outgoing
from workerkit.properties import Properties, encode
from workerkit.testing import WorkerTest
from workerkit.testing.rabbitmq import PrivateRabbitmq

MAX_ATTEMPTS = 3
DELAYS = (0.2, 0.4)

TASK = """
    import sys
    from workerkit import RejectMessage, RetryMessage, WorkerTask

    class Contract(WorkerTask):
        def callback(self, message):
            type(self).note(f"{message.data['id']} {message.attempt} {message.exchange!r} {message.routing_key}")
            exec(message.data["do"], {"message": message, "sys": sys, "RetryMessage": RetryMessage,
                                      "RejectMessage": RejectMessage})

        @classmethod
        def note(cls, line):
            with open(LEDGER, "a") as ledger:
                ledger.write(line + "\\n")
"""


@dataclass
class Result:
    """What became of the messages of one run."""

    ledger: list[str]
    dead: dict[str, dict[str, Any]] = field(default_factory=dict)


Run = Callable[[list[dict[str, Any]]], Result]


@pytest.fixture(params=["WorkerTest", "memory", pytest.param("rabbitmq", marks=pytest.mark.integration)])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Run]:
    """Publish messages, work until nothing is left, report."""
    if request.param == "WorkerTest":
        yield lambda messages: _run_in_a_test(tmp_path, messages)
        return
    if request.param == "memory":
        yield lambda messages: asyncio.run(_run_in_memory(tmp_path, messages))
        return
    node: PrivateRabbitmq = request.getfixturevalue("rabbitmq")
    queue: str = f"contract-{request.getfixturevalue('queue_name')[-8:]}"
    project = Project(tmp_path, node.url)
    with Rabbit(node.url) as rabbit:
        yield lambda messages: _run_on_rabbitmq(project, rabbit, queue, messages)
        project.close()
        rabbit.delete(queue, f"{queue}.dead", f"{queue}.retry.200ms", f"{queue}.retry.400ms")


def _write_task(folder: Path) -> tuple[Path, Path]:
    ledger = folder / "ledger"
    module = folder / "workers" / "contract_task.py"
    module.parent.mkdir(exist_ok=True)
    module.write_text(textwrap.dedent(TASK).replace("LEDGER", repr(str(ledger))))
    return module, ledger


def _run_in_a_test(folder: Path, messages: list[dict[str, Any]]) -> Result:
    path, ledger = _write_task(folder)
    spec = importlib.util.spec_from_file_location("contract_task", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with WorkerTest(module.Contract, queue="contract", retry=RetryPolicy(MAX_ATTEMPTS, DELAYS)) as worker:
        for message in messages:
            worker.publish(**_as_published(message))
        worker.run_all()
        dead = {record.message_id: dict(record.headers) for record in worker.dead_letters}
        assert not worker.ready
        assert not worker.delayed
    return Result(ledger.read_text().splitlines() if ledger.exists() else [], dead)


async def _run_in_memory(folder: Path, messages: list[dict[str, Any]]) -> Result:
    _, ledger = _write_task(folder)
    store = MemoryStore(time.monotonic)
    store.declare("contract")
    policy = {"max_attempts": MAX_ATTEMPTS, "delays": DELAYS}
    async with WholeWorker(folder, "workers.contract_task:Contract", store, queue="contract", retry=policy) as worker:
        for message in messages:
            published = _as_published(message)
            body = published.pop("body", None)
            data = published.pop("data", None)
            properties = encode(Properties(**published))
            store.put(
                "contract", Outgoing("", "contract", properties, json.dumps(data).encode() if body is None else body)
            )
        await worker.until(lambda: _settled_for_good(worker) >= len(messages), "every message has its end")
        assert await worker.stop() == 0
    dead = {record.message_id: dict(record.headers) for record in store.ready("contract.dead")}
    assert store.ready("contract") == store.delayed("contract") == []
    return Result(ledger.read_text().splitlines() if ledger.exists() else [], dead)


def _run_on_rabbitmq(project: Project, rabbit: Rabbit, queue: str, messages: list[dict[str, Any]]) -> Result:
    _, ledger = _write_task(project.root)
    project.config(f"""
        workers:
          contract:
            task: workers.contract_task:Contract
            queue: {queue}
            retry: {{max_attempts: {MAX_ATTEMPTS}, delays: [200ms, 400ms]}}
    """)
    worker = project.start("contract")
    for message in messages:
        published = _as_published(message)
        body = published.pop("body", None)
        data = published.pop("data", None)
        rabbit.publish(queue, json.dumps(data).encode() if body is None else body, **published)
    eventually(lambda: _settled_for_good(worker) >= len(messages), "every message has its end")
    assert worker.stop() == 0
    dead = {properties.message_id: dict(properties.headers) for _, properties in rabbit.take_all(f"{queue}.dead")}
    lines = ledger.read_text().splitlines() if ledger.exists() else []
    return Result([line.replace(queue, "contract") for line in lines], dead)


def _settled_for_good(worker: Any) -> int:
    return len(worker.events("message.settled", outcome="acked")) + len(
        worker.events("message.settled", outcome="dead-lettered")
    )


def _as_published(message: dict[str, Any]) -> dict[str, Any]:
    if "body" in message:
        return {"message_id": message["id"], "body": message["body"]}
    return {"message_id": message["id"], "data": message}


CASES: dict[str, tuple[str, list[int], str | None]] = {
    "ack": ("message.ack()", [1], None),
    "nack": ("message.nack()", [1, 2, 3], "nacked"),
    "nack, then ack": ("message.nack() if message.attempt < 3 else message.ack()", [1, 2, 3], None),
    "retry with a delay of its own": ("message.retry(0.3) if message.attempt == 1 else message.ack()", [1, 2], None),
    "reject": ("message.reject('no')", [1], "rejected"),
    "exception": ("1 / 0", [1, 2, 3], "exception"),
    "raised retry": ("raise RetryMessage(0.1)", [1, 2, 3], "nacked"),
    "raised reject": ("raise RejectMessage('no')", [1], "rejected"),
    "unsettled": ("pass", [1, 2, 3], "unsettled"),
    "sys.exit": ("sys.exit(4)", [1, 2, 3], "exit"),
    "memory": ("raise MemoryError", [1, 2, 3], "memory"),
    "raise after ack": ("message.ack(); 1 / 0", [1], None),
    "exit after ack": ("message.ack(); sys.exit(0)", [1], None),
    "ack twice": ("message.ack(); message.ack()", [1], None),
}


@pytest.mark.parametrize("name", CASES)
def test_a_message_is_run_as_often_and_ends_the_same_way(name: str, run: Run) -> None:
    """Attempts, exchange and key as seen by the callback, and the reason of the dead letter."""
    do, attempts, reason = CASES[name]
    result = run([{"id": "m", "do": do}])
    assert result.ledger == [f"m {attempt} '' contract" for attempt in attempts]
    assert {key: headers["workerkit-reason"] for key, headers in result.dead.items()} == (
        {"m": reason} if reason else {}
    )
    if reason:
        assert result.dead["m"]["workerkit-attempt"] == attempts[-1]
        assert result.dead["m"]["workerkit-queue"]


def test_an_undecodable_body_is_dead_at_once(run: Run) -> None:
    """No retries of what will never be readable."""
    result = run([{"id": "broken", "body": b"{"}])
    assert result.ledger == []
    assert result.dead["broken"]["workerkit-reason"] == "undecodable"


def test_dead_letters_carry_the_same_headers(run: Run) -> None:
    """The same names on both, so that a test can rely on what production will show."""
    headers = run([{"id": "m", "do": "1 / 0"}]).dead["m"]
    assert {name for name in headers if name.startswith("workerkit-")} == {
        "workerkit-attempt",
        "workerkit-exception",
        "workerkit-exchange",
        "workerkit-failed-at",
        "workerkit-first-failed-at",
        "workerkit-host",
        "workerkit-message",
        "workerkit-pid",
        "workerkit-queue",
        "workerkit-reason",
        "workerkit-routing-key",
        "workerkit-traceback",
        "workerkit-worker",
    }


def test_messages_are_worked_on_in_order(run: Run) -> None:
    """First in, first out, while nothing fails."""
    result = run([{"id": f"m{number}", "do": "message.ack()"} for number in range(20)])
    assert [line.split()[0] for line in result.ledger] == [f"m{number}" for number in range(20)]
