"""Executors killed at random under load: nothing lost, nothing counted wrongly, Supervisor none the wiser."""

import os
import random
import signal
import threading
import time
from collections import Counter

import pytest
from support.rabbit import Rabbit, ids
from support.workers import Project, eventually

pytestmark = pytest.mark.faults

MESSAGES = 10_000
KILLS = 30


@pytest.mark.timeout(180)
def test_ten_thousand_messages_survive_thirty_random_kills_of_their_executors(
    project: Project, rabbit: Rabbit, queue: str
) -> None:
    """Every message is done or dead after all its attempts, at most one repeat per kill, and no worker process ends."""
    seed = int(os.environ.get("WORKERKIT_SEED", random.randrange(2**32)))
    print(f"WORKERKIT_SEED={seed}")
    dice = random.Random(seed)
    project.task("""
        class Counting(WorkerTask):
            def callback(self, message):
                note("start", message.data, message.attempt)
                time.sleep(0.001)
                message.ack()
    """)
    project.config(f"""
        workers:
          counting:
            task: workers.task:Counting
            queue: {queue}
            prefetch_count: 20
            retry: {{max_attempts: 5, delays: [200ms, 1s]}}
        logging: {{level: warning}}
    """)
    rabbit.declare(queue, queue_type="quorum")
    workers = [project.run("counting", WORKERKIT_INSTANCE=f"{number:02d}") for number in range(3)]
    eventually(lambda: rabbit.consumers(queue) == 3, "three consumers")
    feeder = threading.Thread(target=rabbit.publish, args=(queue, *ids(MESSAGES)))
    feeder.start()
    killed = 0
    while killed < KILLS:
        # Not of a worker whose executors were killed while they loaded: it pauses longer each time before the next one.
        pids = eventually(lambda: [pid for worker in workers for pid in worker.executors()], "an executor")
        pid = dice.choice(pids)
        time.sleep(dice.uniform(0.0, 0.4))  # the randomness of the moment is what is tested
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
        killed += 1
    feeder.join()
    rabbit_ready = eventually(lambda: rabbit.ready(queue) == 0, "an empty queue", within=90)
    assert rabbit_ready
    eventually(lambda: len({line.split()[1] for line in project.ledger}) == MESSAGES, "every message started", 30)
    assert [worker.process.poll() for worker in workers] == [None, None, None]
    eventually(
        lambda: (
            all(rabbit.ready(f"{queue}.retry.{delay}") == 0 for delay in ("200ms", "1s")) and rabbit.ready(queue) == 0
        ),
        "no retry waits",
    )
    assert [worker.stop() for worker in workers] == [0, 0, 0]
    assert rabbit.ready(queue) == 0
    dead = rabbit.dead(queue)
    starts = Counter(line.split()[1] for line in project.ledger)
    assert all(headers["workerkit-attempt"] == 5 for _, headers in dead)
    assert set(starts) == set(ids(MESSAGES))
    repeats = sum(starts.values()) - MESSAGES
    assert repeats <= KILLS, f"{repeats} repeats for {KILLS} kills"
