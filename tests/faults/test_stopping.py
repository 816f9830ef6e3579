"""Signals, deadlines, TTL and limit: what runs is finished, what was not started goes back uncounted."""

import signal
import time

import pytest
from support.rabbit import Rabbit
from support.workers import Project, eventually

pytestmark = [pytest.mark.faults, pytest.mark.alone]

SLEEPER = """
    class Sleeper(WorkerTask):
        def callback(self, message):
            note("start", message.data, message.attempt)
            time.sleep(message.data["sleep"])
            note("end", message.data)
            message.ack()
"""


def configure(project: Project, queue: str, *settings: str, stopwaitsecs: int = 30) -> None:
    project.task(SLEEPER)
    lines = "".join(f"\n    {line}" for line in (f"queue: {queue}", *settings))
    project.config(f"""
workers:
  sleeper:
    task: workers.task:Sleeper{lines}
supervisor: {{stopwaitsecs: {stopwaitsecs}}}
""")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_a_stop_signal_finishes_the_callback_and_hands_back_what_was_not_started(
    number: signal.Signals, project: Project, rabbit: Rabbit, queue: str
) -> None:
    """The running message is acknowledged, the prefetched ones are ready before it is, with no attempt counted."""
    configure(project, queue, "prefetch_count: 10")
    worker = project.start("sleeper")
    rabbit.publish(queue, *({"sleep": 0 if n else 2, "n": n} for n in range(5)))
    eventually(lambda: project.ledger, "a start")
    worker.signal(number)
    eventually(lambda: rabbit.ready(queue) == 4, "the unstarted messages are ready again", within=1.5)
    assert not any(line.startswith("end") for line in project.ledger)
    assert worker.wait() == 0
    assert [line.split()[0] for line in project.ledger] == ["start", "end"]
    assert worker.events("message.settled", outcome="acked")
    assert rabbit.ready(queue) == 4
    second = project.start("sleeper")
    second.wait_for("message.settled", count=4)
    assert all(line.endswith(" 1") for line in project.ledger if line.startswith("start"))
    assert second.stop() == 0


def test_a_callback_longer_than_the_deadline_is_ended_and_its_message_handed_back(
    project: Project, rabbit: Rabbit, queue: str
) -> None:
    """The worker is gone before Supervisor would kill it; the message is ready, its attempt not counted."""
    configure(project, queue, stopwaitsecs=4)
    worker = project.start("sleeper")
    rabbit.publish(queue, {"sleep": 60})
    eventually(lambda: project.ledger, "a start")
    began = time.monotonic()
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 0
    assert time.monotonic() - began < 4
    assert rabbit.ready(queue) == 1
    assert "time.sleep" in worker.events("worker.deadline")[0]["stack"] or "callback" in str(worker.raw)
    ((_, properties),) = rabbit.take_all(queue)
    assert "workerkit-attempt" not in (properties.headers or {})


def test_a_second_signal_does_not_wait(project: Project, rabbit: Rabbit, queue: str) -> None:
    """Whoever asks twice means now: the message is handed back at once."""
    configure(project, queue)
    worker = project.start("sleeper")
    rabbit.publish(queue, {"sleep": 60})
    eventually(lambda: project.ledger, "a start")
    worker.signal(signal.SIGTERM)
    worker.wait_for("worker.stopping")
    began = time.monotonic()
    worker.signal(signal.SIGTERM)
    assert worker.wait() == 0
    assert time.monotonic() - began < 3
    assert rabbit.ready(queue) == 1


def test_usr2_pauses_and_cont_resumes(project: Project, rabbit: Rabbit, queue: str) -> None:
    """A paused worker ends the current message, starts no other, keeps its connection; then goes on."""
    configure(project, queue, "prefetch_count: 5")
    worker = project.start("sleeper")
    rabbit.publish(queue, *({"sleep": 1, "n": n} for n in range(3)))
    eventually(lambda: project.ledger, "a start")
    worker.signal(signal.SIGUSR2)
    worker.wait_for("message.settled", outcome="acked")
    eventually(lambda: rabbit.ready(queue) == 2, "the others are ready again")
    eventually(lambda: rabbit.consumers(queue) == 0, "the broker has taken the cancel in")
    assert len([line for line in project.ledger if line.startswith("start")]) == 1
    worker.signal(signal.SIGCONT)
    worker.wait_for("message.settled", count=3, outcome="acked")
    assert worker.stop() == 0


def test_usr1_logs_every_thread_and_the_message(project: Project, rabbit: Rabbit, queue: str) -> None:
    """Somebody wants to know what it is doing; it goes on doing it."""
    configure(project, queue)
    worker = project.start("sleeper")
    rabbit.publish(queue, {"sleep": 2})
    eventually(lambda: project.ledger, "a start")
    worker.signal(signal.SIGUSR1)
    line = worker.wait_for("worker.stacks")
    assert "in callback" in line["stack"]
    assert line["message_id"] == '{"sleep": 2}'
    assert worker.wait_for("message.settled")["outcome"] == "acked"
    assert worker.stop() == 0


def test_the_ttl_ends_the_worker_between_messages(project: Project, rabbit: Rabbit, queue: str) -> None:
    """A planned end: the message that runs is finished, exit 0, nothing lost."""
    configure(project, queue, "ttl: 2s")
    worker = project.start("sleeper")
    rabbit.publish(queue, {"sleep": 3, "n": 1}, {"sleep": 0, "n": 2})
    assert worker.wait() == 0
    assert [line.split()[0] for line in project.ledger] == ["start", "end"]
    assert worker.events("worker.exit", reason="ttl")
    assert rabbit.ready(queue) == 1


def test_a_limit_counts_messages_and_loses_none_beyond_it(project: Project, rabbit: Rabbit, queue: str) -> None:
    """After N messages the worker ends with 0; what was fetched beyond them is ready again."""
    configure(project, queue, "prefetch_count: 50")
    rabbit.declare(queue, queue_type="quorum")
    rabbit.publish(queue, *({"sleep": 0, "n": n} for n in range(20)))
    worker = project.run("sleeper", "--limit", "7")
    assert worker.wait() == 0
    assert len([line for line in project.ledger if line.startswith("end")]) == 7
    assert rabbit.ready(queue) == 13


def test_an_idle_worker_stops_at_once(project: Project, queue: str) -> None:
    """Nothing to finish, nothing to wait for."""
    configure(project, queue)
    worker = project.start("sleeper")
    began = time.monotonic()
    assert worker.stop() == 0
    assert time.monotonic() - began < 1.5
