"""Several executors behind one pair of connections: each dies, is ended and is replaced by itself."""

import os
import signal
import time

import pytest
from support.rabbit import Rabbit
from support.workers import Project, Worker, eventually

pytestmark = pytest.mark.faults

TASK = """
    class Pooled(WorkerTask):
        def callback(self, message):
            job = message.data
            note("start", job["n"], os.getpid(), message.attempt)
            if job.get("grow"):
                self.kept = bytearray(job["grow"] << 20)
            time.sleep(job.get("sleep", 0))
            note("end", job["n"], os.getpid())
            message.ack()
"""


def start(project: Project, queue: str, *settings: str) -> Worker:
    project.task(TASK)
    lines = "".join(f"\n    {line}" for line in (f"queue: {queue}", *settings))
    project.config(f"""
workers:
  pooled:
    task: workers.task:Pooled{lines}
""")
    return project.start("pooled")


def ended(project: Project) -> list[str]:
    return [line.split()[1] for line in project.ledger if line.startswith("end")]


def test_the_death_of_one_executor_disturbs_no_other(project: Project, rabbit: Rabbit, queue: str) -> None:
    """Its message is retried, those of the others end, and a fourth executor is there again."""
    worker = start(project, queue, "executors: 4", "retry: {delays: [300ms]}")
    eventually(lambda: len(worker.executors()) == 4, "four executors")
    rabbit.publish(queue, *({"n": n, "sleep": 2} for n in range(4)))
    eventually(lambda: len(project.ledger) == 4, "four starts")
    assert len({line.split()[2] for line in project.ledger}) == 4, "one message each"
    _, victim, pid, _ = project.ledger[0].split()
    os.kill(int(pid), signal.SIGKILL)
    eventually(lambda: sorted(ended(project)) == ["0", "1", "2", "3"], "every one ends")
    attempts = [line.split() for line in project.ledger if line.startswith("start")]
    assert [words[3] for words in attempts if words[1] == victim] == ["1", "2"]
    assert all(words[3] == "1" for words in attempts if words[1] != victim)
    assert len(worker.events("executor.exit")) == 1
    assert worker.stop() == 0


def test_a_message_does_not_wait_behind_a_long_callback_while_an_executor_is_idle(
    project: Project, rabbit: Rabbit, queue: str
) -> None:
    """Taken ahead for one executor, it goes to another one."""
    worker = start(project, queue, "executors: 2", "prefetch_count: 50")
    rabbit.publish(queue, *({"n": n, "sleep": 0.001} for n in range(200)))
    eventually(lambda: len(ended(project)) == 200, "short ones")
    rabbit.publish(queue, {"n": 1000, "sleep": 4}, *({"n": 2000 + n, "sleep": 0.001} for n in range(40)))
    eventually(lambda: len([n for n in ended(project) if int(n) >= 2000]) == 40, "the short ones", within=3)
    assert "1000" not in ended(project)
    assert worker.stop() == 0
    assert "1000" in ended(project)


@pytest.mark.parametrize("executors_wanted", [1, 3])
def test_an_executor_is_replaced_after_so_many_messages(
    project: Project, rabbit: Rabbit, queue: str, executors_wanted: int
) -> None:
    """Between two of them, with the connection untouched and nothing run twice; of several, one at a time."""
    worker = start(project, queue, f"executors: {executors_wanted}", "max_messages: 100")
    rabbit.publish(queue, *({"n": n, "sleep": 0.01} for n in range(500)))
    eventually(lambda: len(ended(project)) == 500, "all of them")
    by_pid: dict[str, int] = {}
    for line in project.ledger:
        if line.startswith("start"):
            by_pid[line.split()[2]] = by_pid.get(line.split()[2], 0) + 1
    assert len(by_pid) > executors_wanted, "somebody had a successor"
    if executors_wanted == 1:  # else one goes on for as long as another one is being replaced
        assert set(by_pid.values()) == {100}
    assert len(project.ledger) == 1000, "nothing ran twice"
    assert worker.events("conn.lost") == worker.events("source.lost") == worker.events("executor.exit") == []
    assert worker.stop() == 0


def test_an_executor_whose_memory_has_grown_is_replaced(project: Project, rabbit: Rabbit, queue: str) -> None:
    """After the message that made it grow; the next one runs in a small one."""
    worker = start(project, queue, "recycle_memory: 120MiB")
    rabbit.publish(queue, {"n": 1, "grow": 200})
    line = worker.wait_for("executor.replaced")
    assert "MiB" in line["why"]
    rabbit.publish(queue, {"n": 2})
    eventually(lambda: ended(project) == ["1", "2"], "both")
    assert len({line.split()[2] for line in project.ledger}) == 2
    assert worker.events("executor.exit") == []
    assert worker.stop() == 0


def test_a_hangup_replaces_all_executors_one_after_the_other(project: Project, rabbit: Rabbit, queue: str) -> None:
    """New code is loaded, and at no moment is there nobody who works."""
    worker = start(project, queue, "executors: 3")
    eventually(lambda: len(worker.executors()) == 3, "three executors")
    before = set(worker.executors())
    worker.signal(signal.SIGHUP)
    deadline = time.monotonic() + 30
    while before.intersection(worker.executors()):
        assert len(worker.executors()) >= 2, "two at once"
        assert time.monotonic() < deadline, "not all were replaced"
        time.sleep(0.005)
    worker.wait_for("executor.replaced", count=3)
    rabbit.publish(queue, {"n": 1})
    eventually(lambda: ended(project) == ["1"], "it still works")
    assert worker.stop() == 0


def test_a_running_callback_learns_that_its_message_is_the_brokers_again(
    project: Project, rabbit: Rabbit, queue: str
) -> None:
    """`message.lost` turns true while it runs; what it says in the end is dropped."""
    project.task("""
        class Watchful(WorkerTask):
            def callback(self, message):
                note("start", message.lost)
                for _ in range(200):
                    if message.lost:
                        break
                    time.sleep(0.05)
                note("lost", message.lost)
                message.ack()
    """)
    project.config(f"workers: {{watchful: {{task: 'workers.task:Watchful', queue: {queue}}}}}")
    worker = project.start("watchful")
    rabbit.publish(queue, {"n": 1})
    eventually(lambda: project.ledger == ["start False"], "a start")
    rabbit.delete(queue)
    eventually(lambda: "lost True" in project.ledger, "it sees it", within=8)
    worker.wait_for("settle.dropped")
    assert worker.stop() == 0


def test_with_on_lost_end_the_callback_is_ended(project: Project, rabbit: Rabbit, queue: str) -> None:
    """Another worker may run the message by now: this one stops, runs shutdown(), and works on."""
    project.task("""
        class Stubborn(WorkerTask):
            def callback(self, message):
                note("start", message.data["n"])
                time.sleep(message.data["sleep"])
                message.ack()

            def shutdown(self, message, cause):
                note("shutdown", message.data["n"], cause.reason)
    """)
    project.config(f"workers: {{stubborn: {{task: 'workers.task:Stubborn', queue: {queue}, on_lost: end}}}}")
    worker = project.start("stubborn")
    rabbit.publish(queue, {"n": 1, "sleep": 60})
    eventually(lambda: project.ledger == ["start 1"], "a start")
    rabbit.delete(queue)
    eventually(lambda: "shutdown 1 lost" in project.ledger, "its shutdown")
    eventually(lambda: rabbit.consumers(queue) == 1, "the queue is there again")
    rabbit.publish(queue, {"n": 2, "sleep": 0})
    worker.wait_for("message.settled", outcome="acked")
    assert worker.stop() == 0
