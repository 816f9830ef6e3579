"""Generated files, a real supervisord, real workers: started, killed, stopped."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from support.rabbit import Rabbit
from support.workers import Project, eventually

pytestmark = pytest.mark.e2e


class Supervisor:
    """A supervisord in the foreground, with the project's generated files."""

    def __init__(self, project: Project) -> None:
        generated = project.command("supervisor", "generate")
        assert generated.returncode == 0, generated.stderr
        self.conf = project.root / "supervisor" / "supervisord.conf"
        self._project = project
        self._environment = {**os.environ, **project.environment}
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "supervisor.supervisord", "-n", "-c", self.conf],
            cwd=project.root,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.STDOUT,
        )

    def ctl(self, *arguments: str) -> str:
        """Run supervisorctl; return what it prints."""
        return subprocess.run(
            [sys.executable, "-P", "-m", "supervisor.supervisorctl", "-c", self.conf, *arguments],
            cwd=self._project.root,
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        ).stdout

    def pids(self) -> dict[str, int]:
        """Names and pids of the workers that run."""
        return {name: int(pid) for name, pid in re.findall(r"(\S+)\s+RUNNING\s+pid (\d+)", self.ctl("status"))}

    def close(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(40)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(10)


@pytest.fixture
def supervisor(project: Project, queue: str) -> Iterator[Supervisor]:
    """Two workers of one kind and one of another, under Supervisor."""
    project.task(f"""
        class Slow(WorkerTask):
            def callback(self, message):
                note("start", message.data, message.attempt)
                time.sleep(0.01)
                message.ack()

        class Other(Slow):
            queue = "{queue}.other"
    """)
    project.config(f"""
        workers:
          slow: {{task: "workers.task:Slow", queue: {queue}, instances: 2}}
          other: {{task: "workers.task:Other"}}
        supervisor: {{stopwaitsecs: 10}}
    """)
    supervisor = Supervisor(project)
    yield supervisor
    supervisor.close()


@pytest.mark.timeout(180)
def test_a_supervised_project_survives_what_is_killed(
    supervisor: Supervisor, project: Project, rabbit: Rabbit, queue: str
) -> None:
    """start, status and stop as typed; a killed worker comes back; a killed executor is not even noticed."""
    assert eventually(lambda: len(supervisor.pids()) == 3, "three workers run")
    eventually(lambda: rabbit.consumers(queue) == 2, "both consume")
    assert set(supervisor.pids()) == {"workers:slow_00", "workers:slow_01", "workers:other_00"}

    rabbit.publish(queue, *(f"m{number}" for number in range(50)))
    eventually(lambda: len(project.ledger) == 50, "the messages are worked on")

    before = supervisor.pids()
    executor = psutil.Process(before["workers:slow_00"]).children()[0]
    executor.kill()
    eventually(
        lambda: [c.pid for c in psutil.Process(before["workers:slow_00"]).children() if c.pid != executor.pid],
        "a new executor",
    )
    rabbit.publish(queue, "after the executor")
    eventually(lambda: len(project.ledger) == 51, "work goes on")
    assert supervisor.pids() == before

    os.kill(before["workers:slow_01"], signal.SIGKILL)
    orphan = before["workers:slow_01"]
    after = eventually(
        lambda: (pids := supervisor.pids()).get("workers:slow_01", orphan) != orphan and pids,
        "Supervisor brings it back",
    )
    assert after["workers:slow_00"] == before["workers:slow_00"]
    eventually(lambda: rabbit.consumers(queue) == 2, "both consume again")

    listed = project.command("workers", "--json")
    assert listed.returncode == 0
    assert "slow_01" in listed.stdout

    supervisor.ctl("stop", "workers:*")
    assert supervisor.pids() == {}
    assert rabbit.consumers(queue) == 0
    supervisor.ctl("start", "workers:*")
    eventually(lambda: len(supervisor.pids()) == 3, "started again")
    assert "RUNNING" in supervisor.ctl("status", "workers:slow_00")
    log = Path(project.root / "supervisor" / "log" / "slow_00.log").read_text()
    assert '"event":"worker.exit","reason":"SIGTERM","code":0' in log


@pytest.mark.timeout(120)
def test_a_killed_worker_takes_its_executor_with_it(project: Project, rabbit: Rabbit, queue: str) -> None:
    """No orphan works on a message that the broker has handed to somebody else, not even inside a C call."""
    project.task("""
        class Stubborn(WorkerTask):
            def callback(self, message):
                note("start")
                sum(itertools.repeat(0, 10**10))
                message.ack()
    """)
    project.config(f"workers: {{stubborn: {{task: 'workers.task:Stubborn', queue: {queue}}}}}")
    worker = project.start("stubborn")
    executor = psutil.Process(worker.executor_pid())
    rabbit.publish(queue, "long")
    eventually(lambda: project.ledger, "a start")
    worker.process.kill()
    eventually(
        lambda: not executor.is_running() or executor.status() == psutil.STATUS_ZOMBIE, "the executor is gone", within=5
    )
    eventually(lambda: rabbit.ready(queue) == 1, "the message is back", within=5)


@pytest.mark.timeout(120)
def test_an_idle_worker_costs_little(project: Project, queue: str) -> None:
    """Less than 60 MiB of proportional memory for both processes, and no CPU worth measuring."""
    project.task("""
        class Idle(WorkerTask):
            def callback(self, message):
                message.ack()
    """)
    project.config(f"workers: {{idle: {{task: 'workers.task:Idle', queue: {queue}}}}}")
    worker = project.start("idle")
    pair = [psutil.Process(worker.pid), psutil.Process(worker.executor_pid())]
    used = [sum(process.cpu_times()[:2]) for process in pair]
    with pytest.raises(subprocess.TimeoutExpired):
        worker.process.wait(10)  # ten seconds of nothing to do
    spent = sum(sum(process.cpu_times()[:2]) for process in pair) - sum(used)
    pss = [process.memory_full_info().pss / 2**20 for process in pair]
    print(f"idle: PSS {pss[0]:.1f} + {pss[1]:.1f} MiB, {spent * 1000 / 10:.1f} ms of CPU per second")
    assert sum(pss) < 60
    assert spent < 0.05
    assert worker.stop() == 0
