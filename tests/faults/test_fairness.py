"""``prefetch_count: auto``: fast where callbacks are short, fair where they are long."""

import itertools
import json
import time
from collections import Counter

import pytest
from support.rabbit import Rabbit
from support.workers import Project, eventually

pytestmark = [pytest.mark.faults, pytest.mark.alone]

TASK = """
    import json

    class Fair(WorkerTask):
        def callback(self, message):
            job = message.data
            note(json.dumps({"n": job["n"], "pid": os.getppid(), "start": time.time()}))
            time.sleep(job["sleep"])
            note(json.dumps({"n": job["n"], "pid": os.getppid(), "end": time.time()}))
            message.ack()
"""


def configure(project: Project, queue: str) -> None:
    project.task(TASK)
    project.config(f"""
        workers:
          fair:
            task: workers.task:Fair
            queue: {queue}
        logging: {{level: warning}}
    """)


def ledger(project: Project) -> list[dict[str, float]]:
    return [json.loads(line) for line in project.ledger]


def test_fifty_messages_of_a_second_each_are_shared_evenly(project: Project, rabbit: Rabbit, queue: str) -> None:
    """25 : 25, give or take two."""
    configure(project, queue)
    rabbit.declare(queue, queue_type="quorum")
    workers = [project.run("fair", WORKERKIT_INSTANCE=f"{number:02d}") for number in range(2)]
    eventually(lambda: rabbit.consumers(queue) == 2, "two consumers")
    rabbit.publish(queue, *({"n": n, "sleep": 1.0} for n in range(50)))
    eventually(lambda: len([line for line in ledger(project) if "end" in line]) == 50, "all of them", within=60)
    shares = Counter(line["pid"] for line in ledger(project) if "end" in line)
    assert all(abs(share - 25) <= 2 for share in shares.values()), shares
    assert [worker.stop() for worker in workers] == [0, 0]


@pytest.mark.timeout(180)
def test_when_callbacks_get_long_no_message_waits_in_a_worker_while_another_one_is_idle(
    project: Project, rabbit: Rabbit, queue: str
) -> None:
    """Callbacks of a millisecond, then of two seconds: what was taken ahead is given back within half a second."""
    configure(project, queue)
    rabbit.declare(queue, queue_type="quorum")
    workers = [project.run("fair", WORKERKIT_INSTANCE=f"{number:02d}") for number in range(2)]
    eventually(lambda: rabbit.consumers(queue) == 2, "two consumers")
    jobs = [{"n": n, "sleep": 0.001} for n in range(4000)] + [{"n": 4000 + n, "sleep": 2.0} for n in range(12)]
    rabbit.publish(queue, *jobs)
    eventually(lambda: len([line for line in ledger(project) if "end" in line]) == len(jobs), "all", within=90)
    lines = ledger(project)
    long_starts = sorted(line["start"] for line in lines if "start" in line and line["n"] >= 4000)
    spans = {
        pid: sorted(
            (start["start"], end["end"])
            for start in lines
            if "start" in start and start["pid"] == pid and start["n"] >= 3000
            for end in lines
            if "end" in end and end["n"] == start["n"]
        )
        for pid in {line["pid"] for line in lines}
    }
    assert len(spans) == 2, "both have worked"
    last_start = long_starts[-1]
    for pid, mine in spans.items():
        # While messages were left to be started, neither worker was without one for longer than half a second.
        for (_, ended), (began, _) in itertools.pairwise(mine):
            if ended < last_start:
                assert began - ended <= 0.5, f"worker {pid} was idle for {began - ended:.2f} s"
        assert last_start - mine[-1][1] <= 0.5, f"worker {pid} was idle while a message waited elsewhere"
    assert [worker.stop() for worker in workers] == [0, 0]


def test_a_long_callback_keeps_its_queue_to_itself_when_nobody_else_consumes_it(
    project: Project, rabbit: Rabbit, queue: str
) -> None:
    """Nothing is given back for nobody: it would only come back, and count as one more return."""
    configure(project, queue)
    rabbit.declare(queue, queue_type="quorum")
    rabbit.publish_many(queue, *({"n": n, "sleep": 0.001} for n in range(1000)), {"n": 1000, "sleep": 1.5})
    rabbit.publish_many(queue, *({"n": 1001 + n, "sleep": 0.001} for n in range(20)))
    worker = project.run("fair")
    eventually(lambda: len([line for line in ledger(project) if "end" in line]) == 1021, "all of them")
    time.sleep(0.1)
    assert [
        n for n, count in Counter(line["n"] for line in ledger(project) if "start" in line).items() if count > 1
    ] == []
    assert worker.stop() == 0
