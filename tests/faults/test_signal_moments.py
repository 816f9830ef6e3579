"""A signal may come at any moment of a worker's life: while its task loads, while it ends, twice."""

import random
import signal
import time
from pathlib import Path

import pytest
from support.rabbit import Rabbit
from support.workers import Project, Worker, eventually

pytestmark = pytest.mark.faults

OTHERS = (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT, signal.SIGQUIT, signal.SIGCONT)
# SIGUSR1 starts something in the worker's loop each time, also in the loop's last moment.
STORM = tuple(number for other in OTHERS for number in (other, signal.SIGUSR1))


def configure(project: Project, queue: str, initialize: str = "pass") -> None:
    project.task(f"""
        class Plain(WorkerTask):
            def initialize(self):
                super().initialize()
                {initialize}

            def callback(self, message):
                message.ack()
    """)
    project.config(f"""
workers:
  plain: {{task: "workers.task:Plain", queue: {queue}}}
""")


def storm(worker: Worker) -> int:
    """Send signals in turn, as fast as they go, until the worker is gone; its exit code."""
    turn = 0
    while worker.process.poll() is None:
        worker.signal(STORM[turn % len(STORM)])
        turn += 1
        time.sleep(0.0005)
    code = worker.wait()
    assert all(line.startswith("{") for line in worker.raw), worker.raw  # the interpreter complains of nothing
    return code


@pytest.mark.timeout(300)
def test_signals_until_the_process_is_gone_do_not_change_its_exit_code(project: Project, queue: str) -> None:
    """A worker that was asked to stop exits with 0, whatever else it is sent before it is gone."""
    configure(project, queue)
    codes = []
    for _ in range(30):
        worker = project.start("plain")
        worker.signal(signal.SIGTERM)
        worker.wait_for("worker.exit")
        codes.append(storm(worker))
    assert codes == [0] * 30


@pytest.mark.timeout(180)
def test_a_stop_while_the_task_loads_is_a_stop(project: Project, queue: str) -> None:
    """There is nothing to hand back: exit 0, no error, whatever the executor was about to say."""
    configure(project, queue, "time.sleep(0.1)")
    moments = random.Random(20)
    codes = []
    for _ in range(20):
        worker = project.run("plain")
        worker.executor_pid()
        time.sleep(moments.uniform(0, 0.3))
        codes.append(worker.stop())
        assert not worker.events("worker.failed"), worker.raw
    assert codes == [0] * 20


@pytest.mark.timeout(180)
def test_a_stop_while_a_task_that_cannot_be_used_loads_is_a_stop(project: Project, queue: str) -> None:
    """Whoever asked first is answered: 0 for the stop, or 78 for the task, and never an error inside workerkit."""
    configure(project, queue, "self.set_queue(3)")
    moments = random.Random(21)
    for _ in range(10):
        worker = project.run("plain")
        worker.executor_pid()
        time.sleep(moments.uniform(0, 0.3))
        assert worker.stop() in (0, 78), worker.raw
        assert not worker.events("worker.failed", code=70), worker.raw


def test_a_stop_before_there_is_an_executor_is_a_stop(project: Project, queue: str) -> None:
    """What comes after the handlers are there and before anybody can act is kept, and acted on."""
    configure(project, queue)
    moments = random.Random(22)
    for _ in range(10):
        worker = project.run("plain")
        eventually(lambda pid=worker.pid: catches(pid, signal.SIGTERM), "the handlers are there")
        time.sleep(moments.uniform(0, 0.1))
        assert worker.stop() == 0, worker.raw


def test_an_executor_inherits_no_ignored_signal(project: Project, queue: str) -> None:
    """What a callback starts can be ended by the usual signals: none is ignored or blocked across its start."""
    configure(project, queue)
    worker = project.start("plain")
    status = status_of(worker.executor_pid())
    # Python itself ignores SIGPIPE and SIGXFSZ; 32 and 33 are the C library's own, and make has them ignored.
    ignored = int(status["SigIgn"], 16) & (1 << 31) - 1
    assert ignored & ~(mask(signal.SIGPIPE) | mask(signal.SIGXFSZ)) == 0
    assert int(status["SigBlk"], 16) == 0
    assert worker.stop() == 0


def test_a_child_that_an_inline_callback_forks_can_be_ended_alone(project: Project, rabbit: Rabbit, queue: str) -> None:
    """Its signals are its own: they neither reach the worker nor are they swallowed."""
    project.task("""
        class Forking(WorkerTask):
            def callback(self, message):
                child = os.fork()
                if child == 0:
                    time.sleep(60)
                    os._exit(1)
                os.kill(child, signal.SIGTERM)
                note(os.WTERMSIG(os.waitpid(child, 0)[1]))
                message.ack()
    """)
    project.config(f"""
workers:
  forking: {{task: "workers.task:Forking", queue: {queue}}}
""")
    worker = project.start("forking", "--inline")
    rabbit.publish(queue, 1, 2, 3)
    worker.wait_for("message.settled", count=3, outcome="acked")
    assert project.ledger == ["15"] * 3
    assert not worker.events("worker.stopping")
    assert worker.stop() == 0


def test_inline_too_signals_until_the_end_do_not_change_the_exit_code(project: Project, queue: str) -> None:
    """The debugger's way to run a worker answers signals as the other does."""
    configure(project, queue)
    for _ in range(5):
        worker = project.start("plain", "--inline")
        worker.signal(signal.SIGTERM)
        worker.wait_for("worker.exit")
        assert storm(worker) == 0


def status_of(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def mask(number: int) -> int:
    """The bit of a signal in the masks of ``/proc/PID/status``."""
    return 1 << (number - 1)


def catches(pid: int, number: int) -> bool:
    return bool(int(status_of(pid)["SigCgt"], 16) & mask(number))
