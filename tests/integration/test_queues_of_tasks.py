"""``workerkit queues`` knows what only the tasks say: their retry delays, and the queues that they name themselves."""

import json

import pytest
from support.rabbit import Rabbit
from support.workers import Project

from workerkit.testing.rabbitmq import PrivateRabbitmq

pytestmark = pytest.mark.integration

TASKS = """
    class Delays(WorkerTask):
        retry = RetryPolicy(3, (1.0, 2.0))

        def callback(self, message):
            message.ack()

    class Naming(Delays):
        def initialize(self):
            super().initialize()
            self.set_queue(self.named)
"""


@pytest.fixture(autouse=True)
def tasks(project: Project, queue: str) -> None:
    """A class with delays of its own, and one that names its queue too."""
    project.task(TASKS + f"\n    Naming.named = {queue!r}\n")


def declared(project: Project, *names: str) -> list[str]:
    """The queues that ``queues declare`` says it has declared."""
    done = project.command("queues", "declare", *names)
    assert (done.returncode, done.stderr) == (0, "")
    return [line.split()[2] for line in done.stdout.splitlines()]


def test_what_declare_makes_is_enough_for_a_worker_that_may_declare_nothing(
    project: Project, rabbitmq: PrivateRabbitmq, rabbit: Rabbit, queue: str
) -> None:
    """The delays of the class count where the YAML gives only the other half of ``retry``."""
    project.config(f"""
        workers: {{delays: {{task: 'workers.task:Delays', queue: {queue}, retry: {{max_attempts: 2}}}}}}
        queues: {{{queue}: {{declare: false}}}}
    """)
    assert declared(project) == [queue, f"{queue}.retry.1s", f"{queue}.retry.2s", f"{queue}.dead"]
    user = f"modest-{queue}"
    rabbitmq.ctl("add_user", user, "secret")
    rabbitmq.ctl("set_permissions", user, "^$", ".*", ".*")
    project.environment["AMQP_URL"] = f"amqp://{user}:secret@127.0.0.1:{rabbitmq.port}/%2F"
    worker = project.start("delays")
    rabbit.publish(queue, "work")
    assert worker.wait_for("message.settled")["outcome"] == "acked"
    assert worker.stop() == 0


def test_a_queue_that_only_its_task_names_is_declared_and_listed(project: Project, queue: str) -> None:
    """By itself, or with all others; and it counts as configured."""
    project.config("workers: {naming: {task: 'workers.task:Naming'}}")
    everything = [queue, f"{queue}.retry.1s", f"{queue}.retry.2s", f"{queue}.dead"]
    assert declared(project) == everything
    assert declared(project, queue) == everything
    listed = project.command("queues", "list", "--json")
    assert [row["name"] for row in json.loads(listed.stdout)["queues"]] == everything
    shown = json.loads(project.command("queues", "show", queue, "--json").stdout)
    assert shown["configured"]
    assert [row["name"] for row in shown["queues"]] == everything


def test_what_initialize_says_outranks_the_yaml(project: Project, queue: str) -> None:
    """A queue of the YAML that no task consumes is not made."""
    project.config(f"workers: {{naming: {{task: 'workers.task:Naming', queue: {queue}-other}}}}")
    assert f"{queue}-other" not in declared(project)


def test_declare_says_which_task_it_could_not_ask_and_is_exit_78(project: Project, rabbit: Rabbit, queue: str) -> None:
    """Its queue is made from what the YAML says; a worker that starts on it might miss some of its retry queues."""
    project.config(f"""
        workers:
          missing: {{task: 'workers.task:Missing', queue: {queue}, retry: {{delays: [3s]}}}}
          nameless: {{task: 'workers.task:Missing'}}
          delays: {{task: 'workers.task:Delays', queue: {queue}}}
    """)
    done = project.command("queues", "declare")
    assert done.returncode == 78
    queues = [line.split()[2] for line in done.stdout.splitlines()]
    assert queues == [queue, f"{queue}.retry.1s", f"{queue}.retry.2s", f"{queue}.retry.3s", f"{queue}.dead"]
    missing, nameless, error = done.stderr.splitlines()
    assert missing.startswith("warning: config/workerkit.yaml:4: worker 'missing': task 'workers.task:Missing': ")
    assert missing.endswith(f"; queue {queue!r} is taken from the YAML and the defaults alone")
    assert nameless.endswith("; its queue is not known")
    assert error.startswith("workerkit: not every task could be asked what it needs")
    assert "config/workerkit.yaml:4" in error
    assert "config/workerkit.yaml:5" in error


def test_a_task_of_another_queue_that_does_not_load_is_no_failure(project: Project, queue: str) -> None:
    """What was asked for was declared as it should be; looking is never a failure."""
    project.config(f"""
        workers:
          missing: {{task: 'workers.task:Missing', queue: {queue}-other}}
          delays: {{task: 'workers.task:Delays', queue: {queue}}}
    """)
    assert declared(project, queue) == [queue, f"{queue}.retry.1s", f"{queue}.retry.2s", f"{queue}.dead"]
    shown = project.command("queues", "show", queue)
    assert (shown.returncode, shown.stderr) == (0, "")
    listed = project.command("queues", "list")
    assert listed.returncode == 0
    (warning,) = listed.stderr.splitlines()
    assert "worker 'missing'" in warning
