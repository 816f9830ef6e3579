"""Publishing with the acknowledgement: a chain of queues without a gap, whatever is killed on the way."""

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.chroot import ordinary_node
from support.rabbit import Rabbit, ids
from support.workers import Project, eventually

from workerkit.testing.rabbitmq import PrivateRabbitmq

pytestmark = pytest.mark.faults

MESSAGES = 10_000
EXECUTOR_KILLS = 30
BROKER_KILLS = 2


@pytest.fixture
def node() -> Iterator[PrivateRabbitmq]:
    """A node of its own: it is killed."""
    with ordinary_node() as node:
        yield node


@pytest.mark.timeout(300)
def test_ten_thousand_messages_pass_three_queues_while_executors_and_the_broker_are_killed(
    node: PrivateRabbitmq, tmp_path: Path
) -> None:
    """Every one is at the end; a repeat has the id of the one that it repeats."""
    seed = int(os.environ.get("WORKERKIT_SEED", random.randrange(2**32)))
    print(f"WORKERKIT_SEED={seed}")
    dice = random.Random(seed)
    project = Project(tmp_path, node.url)
    project.task("""
        class Step(WorkerTask):
            target = None

            def callback(self, message):
                if self.target is not None:
                    message.publish(self.target, message.data)
                else:
                    note("end", message.data, message.message_id, message.correlation_id)
                message.ack()

        class First(Step):
            target = "second"

        class Second(Step):
            target = "third"
    """)
    project.config("""
        workers:
          first: {task: "workers.task:First", queue: first}
          second: {task: "workers.task:Second", queue: second}
          third: {task: "workers.task:Step", queue: third}
        logging: {level: warning}
    """)
    try:
        workers = [project.start(name, WORKERKIT_LOGGING__LEVEL="info") for name in ("third", "second", "first")]
        time.sleep(3)  # a queue that is younger than about two seconds may not survive the kill of its only node
        with Rabbit(node.url) as rabbit:
            rabbit.publish_many("first", *ids(MESSAGES // 2))
        _kill(workers, dice, EXECUTOR_KILLS // 2)
        for _ in range(BROKER_KILLS):
            node.kill()
            node.start()
            eventually(lambda: _publish_rest(node), "the broker is back")
            _kill(workers, dice, EXECUTOR_KILLS // (2 * BROKER_KILLS))
        wanted = set(ids(MESSAGES))
        eventually(lambda: {line.split()[1] for line in project.ledger} >= wanted, "every message", within=120)
        assert {line.split()[1] for line in project.ledger} == wanted
        assert [worker.stop() for worker in workers] == [0, 0, 0]
        by_id: dict[str, Counter[str]] = {}
        for line in project.ledger:
            _, data, message_id, correlation_id = line.split()
            assert correlation_id == f'"{data}"'
            by_id.setdefault(data, Counter())[message_id] += 1
        assert all(len(seen) == 1 for seen in by_id.values()), "a repeat has another id than the original"
        with Rabbit(node.url) as rabbit:
            assert [rabbit.ready(name) for name in ("first", "second", "third")] == [0, 0, 0]
            assert [rabbit.ready(f"{name}.dead") for name in ("first", "second", "third")] == [0, 0, 0]
    finally:
        project.close()


_published = MESSAGES // 2


def _publish_rest(node: PrivateRabbitmq) -> bool:
    """Half of what is left each time."""
    global _published  # noqa: PLW0603 - one test, one counter
    rest = list(ids(MESSAGES))[_published : _published + MESSAGES // (2 * BROKER_KILLS)]
    with Rabbit(node.url) as rabbit:
        rabbit.publish_many("first", *rest)
    _published += len(rest)
    return True


def _kill(workers: list, dice: random.Random, times: int) -> None:
    done = 0
    while done < times:
        pid = dice.choice(workers).executor_pid()
        time.sleep(dice.uniform(0.0, 0.3))  # the randomness of the moment is what is tested
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
        done += 1
