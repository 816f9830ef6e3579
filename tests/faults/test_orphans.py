"""What callbacks start and leave: collected when it ends, ended with its executor, and only then."""

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator

import psutil
import pytest
from support.rabbit import Rabbit
from support.workers import Project, Worker, eventually

pytestmark = pytest.mark.faults

FIRST_PROCESS = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")
CALLBACKS = 40

LEAVING = """
    import subprocess

    def leave(program, *, new_session):
        # The middle process ends at once: what it started has no parent any more.
        middle = os.fork()
        if middle == 0:
            if os.fork() == 0:
                if new_session:
                    os.setsid()
                os.execvp(program[0], program)
            os._exit(0)
        os.waitpid(middle, 0)

    class Leaving(WorkerTask):
        def callback(self, message):
            if message.data == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            if message.data == "fork":
                leave(["true"], new_session=False)
                leave(["sleep", "600"], new_session=True)
            elif message.data == "bare":
                leave(["env", "-i", "sleep", "600"], new_session=True)
            note(subprocess.run(["sh", "-c", f"exit {message.attempt + 6}"]).returncode)
            message.ack()
"""


def configure(project: Project, queue: str) -> None:
    project.task(LEAVING)
    project.config(f"""
workers:
  leaving: {{task: "workers.task:Leaving", queue: {queue}, retry: {{max_attempts: 1}}}}
""")


@pytest.fixture
def first_process() -> None:
    """The test needs a process namespace of its own."""
    tried = subprocess.run([*FIRST_PROCESS, "true"], capture_output=True, text=True)
    if tried.returncode != 0:
        pytest.skip(f"no process can be the first of a namespace here: {tried.stderr.strip()}")


def consumer_below(worker: Worker) -> psutil.Process:
    """The consumer itself, which ``unshare`` waits for."""
    (consumer,) = psutil.Process(worker.pid).children()
    return consumer


def below(consumer: psutil.Process) -> int:
    """How many processes there are below the consumer, zombies included."""
    return len(consumer.children(recursive=True))


def running_sleeps(consumer: psutil.Process) -> list[psutil.Process]:
    """Those that are ``sleep`` by now, and not what is about to become it."""
    found = []
    for process in consumer.children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.name() == "sleep" and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def test_the_first_process_of_a_container_leaves_no_zombie(
    first_process: None, project: Project, rabbit: Rabbit, queue: str
) -> None:
    """Orphans that end are collected while their executor lives; the others end with it, and each is named."""
    configure(project, queue)
    worker = project.start("leaving", prefix=FIRST_PROCESS)
    consumer = consumer_below(worker)
    rabbit.publish(queue, *["fork"] * CALLBACKS)
    worker.wait_for("message.settled", count=CALLBACKS, outcome="acked")
    eventually(lambda: below(consumer) == CALLBACKS + 1, "what has ended is collected; the executor lives")
    living = eventually(
        lambda: len(found := running_sleeps(consumer)) == CALLBACKS and found, "the rest is what they wanted to become"
    )
    assert not worker.events("executor.orphans")

    rabbit.publish(queue, "die", "after")
    worker.wait_for("message.settled", count=CALLBACKS + 1, outcome="acked")
    ended = [name for line in worker.events("executor.orphans") for name in line["ended"]]
    assert sorted(name.split()[1] for name in ended) == ["sleep"] * CALLBACKS
    eventually(lambda: below(consumer) == 1, "what was ended is collected; another executor lives")
    assert not any(process.is_running() for process in living)
    assert set(project.ledger) == {"7"}
    consumer.send_signal(signal.SIGTERM)
    assert worker.wait() == 0


@pytest.mark.parametrize("way", ["fork", "bare"])
@pytest.mark.parametrize("end", ["death", "stop"])
def test_orphans_end_with_their_executor(way: str, end: str, project: Project, rabbit: Rabbit, queue: str) -> None:
    """Neither a session of their own nor an environment of their own lets them outlive it."""
    configure(project, queue)
    worker = project.start("leaving")
    consumer = psutil.Process(worker.pid)
    rabbit.publish(queue, way)
    worker.wait_for("message.settled", outcome="acked")
    (orphan,) = eventually(lambda: running_sleeps(consumer), "the orphan runs")
    if end == "death":
        rabbit.publish(queue, "die", "after")
        worker.wait_for("message.settled", count=2, outcome="acked")
        line = worker.wait_for("executor.orphans")
        assert line["ended"] == [f"{orphan.pid} sleep"]
        assert line["executor_pid"] == worker.wait_for("executor.exit")["executor_pid"]
    assert worker.stop() == 0
    assert not orphan.is_running()
    assert worker.events("executor.orphans", ended=[f"{orphan.pid} sleep"])


def test_what_an_orphan_left_ends_too(project: Project, rabbit: Rabbit, queue: str) -> None:
    """Each that ends hands its own children on, and they are nobody's any more."""
    project.task("""
        import subprocess

        class Nesting(WorkerTask):
            def callback(self, message):
                line = "sleep 600 & setsid sleep 600 & setsid sh -c 'sleep 600 & sleep 600' & wait"
                subprocess.Popen(["setsid", "sh", "-c", line])
                message.ack()
    """)
    project.config(f"""
workers:
  nesting: {{task: "workers.task:Nesting", queue: {queue}}}
""")
    worker = project.start("nesting")
    rabbit.publish(queue, 1)
    worker.wait_for("message.settled", outcome="acked")
    sleeps = eventually(
        lambda: len(found := running_sleeps(psutil.Process(worker.pid))) == 4 and found, "four of them run"
    )
    os.kill(worker.executor_pid(), signal.SIGKILL)
    worker.wait_for("executor.orphans")
    assert worker.stop() == 0
    assert not any(process.is_running() for process in sleeps)
    (line,) = worker.events("executor.orphans")
    assert {f"{process.pid} sleep" for process in sleeps} <= set(line["ended"])


@pytest.fixture
def stranger() -> Iterator[list[psutil.Process]]:
    """Filled by the test; ended here."""
    found: list[psutil.Process] = []
    yield found
    for process in found:
        process.kill()


def test_what_was_there_before_the_worker_is_left_alone(
    stranger: list[psutil.Process], project: Project, rabbit: Rabbit, queue: str
) -> None:
    """A shell that starts something and becomes the worker hands its child on: no executor has started that."""
    configure(project, queue)
    worker = project.start("leaving", prefix=["sh", "-c", 'sleep 600 >&- 2>&- & exec "$@"', "sh"])
    stranger += running_sleeps(psutil.Process(worker.pid))
    (before,) = stranger
    rabbit.publish(queue, "fork", "die", "after")
    worker.wait_for("message.settled", count=2, outcome="acked")
    worker.wait_for("executor.orphans")
    assert worker.stop() == 0
    assert before.is_running()
    assert not any(str(before.pid) in name for line in worker.events("executor.orphans") for name in line["ended"])


@pytest.mark.parametrize("arguments", [(), ("--inline",)], ids=["two-processes", "inline"])
def test_the_children_that_a_callback_waits_for_are_its_own(
    arguments: tuple[str, ...], project: Project, rabbit: Rabbit, queue: str
) -> None:
    """Nobody else collects them: each exit status arrives where it is waited for."""
    configure(project, queue)
    worker = project.start("leaving", *arguments)
    rabbit.publish(queue, *range(100))
    worker.wait_for("message.settled", count=100, outcome="acked")
    assert worker.stop() == 0
    assert project.ledger == ["7"] * 100
    assert not worker.events("executor.orphans")
