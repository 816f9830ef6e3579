"""One worker, several queues: who is next, and what the loss of one does to the others."""

import time
from collections import Counter
from collections.abc import Iterator

import psutil
import pytest
from support.rabbit import Rabbit
from support.workers import Project, eventually

pytestmark = pytest.mark.integration

TASK = """
    class Many(WorkerTask):
        def callback(self, message):
            note("start", message.queue)
            time.sleep((message.data or {}).get("sleep", 0))
            message.ack()
            note("end", message.queue, message.lost)
"""


@pytest.fixture
def queues(queue: str, rabbit: Rabbit) -> Iterator[dict[str, str]]:
    """Three names, by what they are for."""
    names = {kind: f"{queue}-{kind}" for kind in ("high", "middle", "low")}
    for name in names.values():
        rabbit.declare(name, queue_type="quorum")
    yield names
    rabbit.delete(*names.values(), *(f"{name}.dead" for name in names.values()))


def configure(project: Project, weights: dict[str, int], *settings: str) -> None:
    project.task(TASK)
    listed = ", ".join(f"{name}: {weight}" for name, weight in weights.items())
    lines = "".join(f"\n    {line}" for line in (f"queues: {{{listed}}}", *settings))
    project.config(f"""
workers:
  many:
    task: workers.task:Many{lines}
logging: {{level: warning}}
""")


@pytest.mark.alone
@pytest.mark.timeout(180)
def test_starts_are_shared_in_proportion_to_the_weights(
    project: Project, rabbit: Rabbit, queues: dict[str, str]
) -> None:
    """Within 2 % over 10,000 messages, while all queues have messages."""
    weights = {queues["high"]: 20, queues["middle"]: 5, queues["low"]: 1}
    configure(project, weights)
    for kind, count in (("high", 8200), ("middle", 2400), ("low", 800)):
        rabbit.publish_many(queues[kind], *({"n": n} for n in range(count)))
    worker = project.run("many")
    eventually(lambda: len(project.ledger) >= 2 * 10_000, "10,000 messages", within=120)
    starts = [line.split()[1] for line in project.ledger if line.startswith("start")][:10_000]
    shares = Counter(starts)
    total = sum(weights.values())
    for name, weight in weights.items():
        assert abs(shares[name] / 10_000 - weight / total) <= 0.02, shares
    assert worker.stop() == 0


def test_strict_starts_nothing_lower_while_something_higher_is_ready(
    project: Project, rabbit: Rabbit, queues: dict[str, str]
) -> None:
    """Also at the start, and between two messages of the higher queue."""
    configure(project, {queues["low"]: 1, queues["high"]: 10}, "select: strict")
    rabbit.publish(queues["low"], *({"n": n} for n in range(300)))
    rabbit.publish(queues["high"], *({"n": n} for n in range(300)))
    worker = project.run("many")
    eventually(lambda: len([line for line in project.ledger if line.startswith("end")]) == 600, "all of them")
    starts = [line.split()[1] for line in project.ledger if line.startswith("start")]
    assert starts == [queues["high"]] * 300 + [queues["low"]] * 300
    assert worker.stop() == 0


def test_under_strict_a_message_that_waits_too_long_has_its_turn(
    project: Project, rabbit: Rabbit, queues: dict[str, str]
) -> None:
    """The guard against starvation: one turn each time that `starve_after` has passed."""
    configure(project, {queues["low"]: 1, queues["high"]: 10}, "select: strict", "starve_after: 1s")
    rabbit.publish(queues["low"], {"n": 1})
    rabbit.publish(queues["high"], *({"sleep": 0.1, "n": n} for n in range(30)))
    worker = project.run("many")
    eventually(lambda: len([line for line in project.ledger if line.startswith("end")]) == 31, "all of them")
    starts = [line.split()[1] for line in project.ledger if line.startswith("start")]
    assert 5 <= starts.index(queues["low"]) <= 20
    assert worker.stop() == 0


def test_the_loss_of_one_queue_touches_no_message_of_another(
    project: Project, rabbit: Rabbit, queues: dict[str, str]
) -> None:
    """Deleted while a callback runs on a message of another queue: that one is acknowledged, and both go on."""
    configure(project, {queues["high"]: 1, queues["low"]: 1})
    worker = project.run("many")
    eventually(lambda: rabbit.consumers(queues["low"]) == 1, "a consumer")
    rabbit.publish(queues["high"], {"sleep": 1.5})
    eventually(lambda: project.ledger, "a start")
    rabbit.delete(queues["low"])
    worker.wait_for("source.lost")
    eventually(lambda: f"end {queues['high']} False" in project.ledger, "it ends, and is still ours")
    eventually(lambda: rabbit.consumers(queues["low"]) == 1, "the deleted queue is there again, and consumed")
    rabbit.publish(queues["low"], {"n": 2})
    eventually(lambda: f"end {queues['low']} False" in project.ledger, "its next message")
    assert worker.events("settle.dropped") == []
    assert worker.stop() == 0
    assert rabbit.ready(queues["high"]) == rabbit.ready(queues["low"]) == 0


@pytest.mark.timeout(180)
def test_a_hundred_idle_queues_cost_no_processor_time_worth_measuring(
    project: Project, rabbit: Rabbit, queue: str
) -> None:
    """Less than 2 % of one core, the look that each of them is still consumed included."""
    names = [f"{queue}-{number}" for number in range(100)]
    configure(project, dict.fromkeys(names, 1))
    try:
        worker = project.run("many")
        eventually(lambda: rabbit.consumers(names[-1]) == 1, "the last one is consumed", within=120)
        process = psutil.Process(worker.pid)
        time.sleep(2)  # what a start costs is over
        before, began = sum(process.cpu_times()[:2]), time.monotonic()
        time.sleep(15)  # three rounds of looks
        used = (sum(process.cpu_times()[:2]) - before) / (time.monotonic() - began)
        assert used < 0.02, f"{used:.2%}"
        assert worker.stop() == 0
    finally:
        rabbit.delete(*names, *(f"{name}.dead" for name in names))
