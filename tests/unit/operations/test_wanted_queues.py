"""Which queues there should be is what the YAML and the tasks say together."""

from __future__ import annotations

from pathlib import Path

import pytest

from workerkit.operations.queues import WantedQueues, wanted_queues
from workerkit.settings import load

TASKS = """
from workerkit import RetryPolicy, WorkerTask

class Plain(WorkerTask):
    def callback(self, message):
        message.ack()

class Own(Plain):
    retry = RetryPolicy(3, (2.0, 1.0))

class Naming(Own):
    def initialize(self):
        super().initialize()
        self.set_queue("named")

class Failing(Plain):
    def initialize(self):
        raise OSError("no licence from amqp://shop:hunter2@broker\\nat all")
"""

DEFAULT = [5.0, 30.0, 300.0]


@pytest.fixture
def wanted(tmp_path: Path):
    """What a configuration with these tasks and this YAML wants."""
    (tmp_path / "tasks.py").write_text(TASKS)
    path = tmp_path / "config" / "workerkit.yaml"
    path.parent.mkdir()

    def ask(yaml: str) -> WantedQueues:
        path.write_text(yaml)
        return wanted_queues(load(path, {}))

    return ask


def test_delays_are_those_of_all_workers_of_a_queue_as_their_tasks_resolve_them(wanted) -> None:
    """Class and YAML each give what the other leaves open; a queue without a worker has the default."""
    found = wanted("""
        queues: {alone: {}, shared: {}}
        workers:
          a: {task: 'tasks:Own', queue: shared, retry: {max_attempts: 2}}
          b: {task: 'tasks:Plain', queue: shared, retry: {delays: [9s]}}
          c: {task: 'tasks:Plain', queue: plain, retry: {max_attempts: 2}}
          d: {task: 'tasks:Naming', queue: outranked}
    """)
    assert found.delays == {"alone": DEFAULT, "shared": [1.0, 2.0, 9.0], "plain": DEFAULT, "named": [1.0, 2.0]}
    assert list(found.delays) == ["alone", "shared", "plain", "named"]
    assert found.unanswered == ()
    assert found.delays_of("unheard-of") == DEFAULT


def test_a_task_that_cannot_be_asked_counts_as_the_yaml_has_it_and_is_named(wanted) -> None:
    """In one line without secrets, with where it is written, and for which queues it matters."""
    found = wanted(
        "workers:\n  a: {task: 'tasks:Failing', queue: q, retry: {delays: [9s]}}\n  b: {task: 'nowhere:T'}\n"
    )
    assert found.delays == {"q": [9.0]}
    a, b = found.unanswered
    assert str(a).endswith("; queue 'q' is taken from the YAML and the defaults alone")
    assert ":2: worker 'a': " in str(a)
    assert "no licence from amqp://shop:***@broker at all" in str(a)
    assert str(b).endswith("; its queue is not known")
    assert found.unanswered_for(["q"]) == [a, b]
    assert found.unanswered_for(["other"]) == [b]


def test_each_of_several_queues_of_a_worker_has_its_delays(wanted) -> None:
    """Whether its task can be asked or not."""
    found = wanted("""
        workers:
          a: {task: 'tasks:Own', queues: {urgent: 20, bulk: 5}}
          b: {task: 'tasks:Failing', queues: {left: 2, right: 1}, retry: {delays: [9s]}}
    """)
    assert found.delays == {"urgent": [1.0, 2.0], "bulk": [1.0, 2.0], "left": [9.0], "right": [9.0]}
    (b,) = found.unanswered
    assert str(b).endswith("; queues 'left', 'right' are taken from the YAML and the defaults alone")
    assert found.unanswered_for(["right"]) == [b]
    assert found.unanswered_for(["bulk"]) == []
