"""Several callbacks in one process, and some of them kill it: exactly those are blamed, and nobody else pays."""

import json
import os
import random
from collections import Counter

import pytest
from support.rabbit import Rabbit
from support.workers import Project, eventually

pytestmark = pytest.mark.faults

MESSAGES = 2_000
KILLERS = 20
ATTEMPTS = 2


@pytest.mark.timeout(240)
def test_of_many_callbacks_at_once_exactly_those_that_kill_their_process_become_dead_letters(
    project: Project, rabbit: Rabbit, queue: str
) -> None:
    """Each killer has all its attempts, every one of them alone; innocent ones lose none; shutdown() ran for each."""
    seed = int(os.environ.get("WORKERKIT_SEED", random.randrange(2**32)))
    print(f"WORKERKIT_SEED={seed}")
    dice = random.Random(seed)
    project.task("""
        import asyncio, json

        class Mixed(WorkerTask):
            running = set()

            async def callback(self, message):
                job = message.data
                self.running.add(job["n"])
                note("start", job["n"], message.attempt, len(self.running))
                await asyncio.sleep(job["before"])
                if job["kills"]:
                    note("kill", job["n"], json.dumps(sorted(self.running)).replace(" ", ""))
                    os.kill(os.getpid(), signal.SIGKILL)
                await asyncio.sleep(job["after"])
                self.running.discard(job["n"])
                message.ack()
                note("end", job["n"])

            async def shutdown(self, message, cause):
                note("shutdown", message.data["n"], cause.reason)
                message.nack()
    """)
    project.config(f"""
        workers:
          mixed:
            task: workers.task:Mixed
            queue: {queue}
            concurrency: 20
            retry: {{max_attempts: {ATTEMPTS}, delays: [200ms]}}
        logging: {{level: warning}}
    """)
    rabbit.declare(queue, queue_type="quorum")
    killers = set(dice.sample(range(MESSAGES), KILLERS))
    rabbit.publish_many(
        queue,
        *(
            {"n": n, "kills": n in killers, "before": dice.uniform(0, 0.02), "after": dice.uniform(0, 0.02)}
            for n in range(MESSAGES)
        ),
    )
    worker = project.run("mixed")

    def ended() -> set[int]:
        return {int(line.split()[1]) for line in project.ledger if line.startswith("end")}

    eventually(lambda: ended() == set(range(MESSAGES)) - killers, "every innocent message done", within=180)
    eventually(lambda: rabbit.consumers(f"{queue}.dead") == 0 and rabbit.ready(f"{queue}.dead") == KILLERS, "the dead")
    assert worker.stop() == 0
    assert rabbit.ready(queue) == rabbit.ready(f"{queue}.retry.200ms") == 0
    dead = rabbit.dead(queue)
    assert {letter["n"] for letter, _ in dead} == killers
    assert {headers["workerkit-reason"] for _, headers in dead} == {"signal"}
    assert {headers["workerkit-attempt"] for _, headers in dead} == {ATTEMPTS}
    assert {headers["workerkit-alone"] for _, headers in dead} == {1}

    starts = [line.split()[1:] for line in project.ledger if line.startswith("start")]
    assert {attempt for n, attempt, _ in starts if int(n) not in killers} == {"1"}, "an innocent one lost an attempt"
    kills = [line.split()[1:] for line in project.ledger if line.startswith("kill")]
    alone = Counter(int(n) for n, running in kills if json.loads(running) == [int(n)])
    assert set(alone) == killers
    assert set(alone.values()) == {ATTEMPTS}, "attempts are counted by the deaths that happened alone"
    shutdowns = Counter(int(line.split()[1]) for line in project.ledger if line.startswith("shutdown"))
    ran = Counter(n for _, running in kills for n in json.loads(running))
    # More for one that had been taken up and not begun its first step, or had settled and not returned.
    missing = {n: (shutdowns[n], deaths) for n, deaths in ran.items() if shutdowns[n] < deaths}
    assert not missing, f"shutdown() did not run for each death that a message was in: {missing}"
    assert sum(shutdowns.values()) <= 20 * len(kills)
