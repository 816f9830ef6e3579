"""A memory cgroup: the kernel's OOM killer is named, and by default Python sees the end before the kernel does."""

import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.rabbit import Rabbit
from support.workers import Project, eventually

pytestmark = pytest.mark.faults

LIMIT = 150 * 2**20

HUNGRY = """
    class Hungry(WorkerTask):
        def callback(self, message):
            note("start", message.attempt)
            hoard = []
            while True:
                hoard.append(os.urandom(2**20))

        def shutdown(self, message, cause):
            note("shutdown", cause.reason.value, cause.signal)
            super().shutdown(message, cause)
"""


@pytest.fixture
def cgroup() -> Iterator[Path]:
    """A memory cgroup of 150 MiB, version 1 or 2, for a worker to be started in."""
    own = {line.split(":", 2)[1]: line.split(":", 2)[2] for line in Path("/proc/self/cgroup").read_text().splitlines()}
    first = Path("/sys/fs/cgroup/memory") if "memory" in own else Path("/sys/fs/cgroup")
    folder = first / own.get("memory", own.get("", "/")).lstrip("/")
    parent = folder if folder.is_dir() else first
    group = parent / f"workerkit-test-{secrets.token_hex(4)}"
    try:
        group.mkdir()
        limit = group / ("memory.limit_in_bytes" if "memory" in own else "memory.max")
        limit.write_text(str(LIMIT))
    except OSError as error:
        if group.is_dir():
            group.rmdir()
        pytest.skip(f"no memory cgroup can be made here: {error}")
    yield group
    eventually(lambda: (group / "cgroup.procs").read_text() == "", "the cgroup is empty")
    group.rmdir()


def start_in(cgroup: Path, project: Project, queue: str, *settings: str):
    project.task(HUNGRY)
    lines = "".join(f"\n    {line}" for line in settings)
    project.config(f"""
workers:
  hungry:
    task: workers.task:Hungry
    queue: {queue}
    retry: {{max_attempts: 2, delays: [200ms]}}{lines}
""")
    enter = f'echo $$ > {cgroup}/cgroup.procs && exec "$@"'
    return project.start("hungry", prefix=["sh", "-c", enter, "sh"])


def test_a_kill_by_the_oom_killer_is_a_death_with_that_reason(
    cgroup: Path, project: Project, rabbit: Rabbit, queue: str
) -> None:
    """No MemoryError is ever raised there; the kernel's own counter tells it from any other SIGKILL."""
    worker = start_in(cgroup, project, queue, "memory_limit: 4GiB")
    rabbit.publish(queue, "big")
    worker.wait_for("message.settled", outcome="dead-lettered")
    assert project.ledger == ["start 1", "shutdown oom 9", "start 2", "shutdown oom 9"]
    ((_, headers),) = rabbit.dead(queue)
    assert headers["workerkit-reason"] == "oom"
    assert "OOM killer" in headers["workerkit-message"]
    assert worker.stop() == 0


def test_without_a_memory_limit_the_cgroups_own_is_the_measure(
    cgroup: Path, project: Project, rabbit: Rabbit, queue: str
) -> None:
    """Ninety percent of it: the same callback ends in a MemoryError, with its reason and its lines."""
    worker = start_in(cgroup, project, queue)
    rabbit.publish(queue, "big")
    worker.wait_for("message.settled", outcome="dead-lettered")
    assert project.ledger == ["start 1", "shutdown memory None", "start 2", "shutdown memory None"]
    ((_, headers),) = rabbit.dead(queue)
    assert headers["workerkit-reason"] == "memory"
    assert worker.stop() == 0
