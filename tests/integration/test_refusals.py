"""What cannot work ends at once: the right exit code, one clear message, no traceback of ours, no loop."""

import json
from urllib.parse import urlsplit

import pytest
from support.rabbit import Rabbit
from support.workers import Project, Worker

from workerkit.testing.rabbitmq import PrivateRabbitmq

pytestmark = pytest.mark.integration

GOOD = """
    class Good(WorkerTask):
        def callback(self, message):
            message.ack()
"""


def only_failure(worker: Worker, code: int) -> str:
    """The worker ended with ``code``, and said why in one line without a traceback."""
    assert worker.wait() == code
    assert "Traceback" not in "".join(worker.raw)
    failures = worker.events("worker.failed")
    assert len(failures) == 1
    assert failures[0]["level"] == "critical"
    return str(failures[0]["cause"])


def test_the_wrong_password_is_exit_77(project: Project, queue: str) -> None:
    """The user is named, the password is not."""
    project.task(GOOD)
    project.config(f"workers: {{good: {{task: 'workers.task:Good', queue: {queue}}}}}")
    parts = urlsplit(project.environment["AMQP_URL"])
    project.environment["AMQP_URL"] = f"amqp://guest:hunter2@127.0.0.1:{parts.port}/%2F"
    worker = project.run("good")
    cause = only_failure(worker, 77)
    assert "refused the user name or the password of user 'guest'" in cause
    assert "hunter2" not in "".join(worker.raw)


def test_a_virtual_host_that_does_not_exist_is_exit_77(project: Project, queue: str) -> None:
    """The virtual host is named."""
    project.task(GOOD)
    project.config(f"workers: {{good: {{task: 'workers.task:Good', queue: {queue}}}}}")
    project.environment["AMQP_URL"] = project.environment["AMQP_URL"].replace("/%2F", "/nowhere")
    assert "'nowhere'" in only_failure(project.run("good"), 77)


def test_a_user_without_configure_permission_is_exit_77_and_told_of_declare_false(
    project: Project, rabbitmq: PrivateRabbitmq, rabbit: Rabbit, queue: str
) -> None:
    """Least privilege works: with the queues declared by somebody else and ``declare: false`` it consumes."""
    project.task(GOOD)
    config = f"""
        workers: {{good: {{task: 'workers.task:Good', queue: {queue}, retry: {{delays: [1s]}}}}}}
        queues: {{{queue}: {{declare: DECLARE}}}}
    """
    project.config(config.replace("DECLARE", "true"))
    assert project.start("good").stop() == 0  # as guest: the queues exist now
    user = f"modest-{queue}"
    rabbitmq.ctl("add_user", user, "secret")
    rabbitmq.ctl("set_permissions", user, "^$", ".*", ".*")
    project.environment["AMQP_URL"] = f"amqp://{user}:secret@127.0.0.1:{rabbitmq.port}/%2F"
    assert "declare: false" in only_failure(project.run("good"), 77)
    project.config(config.replace("DECLARE", "false"))
    modest = project.start("good")
    rabbit.publish(queue, "work")
    assert modest.wait_for("message.settled")["outcome"] == "acked"
    assert modest.stop() == 0


def test_declare_false_without_the_queue_is_exit_78(project: Project, queue: str) -> None:
    """Nothing is made in secret; what is missing is named."""
    project.task(GOOD)
    project.config(f"""
        workers: {{good: {{task: 'workers.task:Good', queue: {queue}x}}}}
        queues: {{{queue}x: {{declare: false}}}}
    """)
    assert f"queue '{queue}x.dead' does not exist" in only_failure(project.run("good"), 78)


def test_an_unknown_key_is_exit_78_with_file_line_and_the_nearest_key(project: Project) -> None:
    """Before anything connects or is imported."""
    project.config("""
        workers:
          good:
            task: workers.task:Good
            prefech_count: 3
    """)
    worker = project.run("good")
    assert worker.wait() == 78
    (line,) = worker.raw
    assert "config/workerkit.yaml:6" in line
    assert "prefech_count" in line
    assert "prefetch_count" in line


def test_an_unknown_worker_is_exit_78_and_names_the_known_ones(project: Project) -> None:
    """A typing error on the command line is told apart from a missing file."""
    project.config("workers: {good: {task: 'workers.task:Good'}}")
    worker = project.run("god")
    assert worker.wait() == 78
    assert worker.raw == [f"workerkit: there is no worker 'god' in {project.root}/config/workerkit.yaml; it has good"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("import nonsense_module", "workers/task.py"),
        ("def broken(:\n    pass", "workers/task.py"),
        ("import sys; sys.exit(3)", "SystemExit"),
        ("class Other(WorkerTask):\n    def callback(self, message): ...", "it has Other"),
        ("class Good:\n    pass", "not a subclass"),
        ("class Good(WorkerTask):\n    pass", "does not implement callback"),
    ],
)
def test_a_task_that_does_not_load_is_exit_78_and_the_line_is_named(
    text: str, expected: str, project: Project, queue: str
) -> None:
    """The user's own file and line, not ours."""
    project.task(text)
    project.config(f"workers: {{good: {{task: 'workers.task:Good', queue: {queue}}}}}")
    assert expected in only_failure(project.run("good"), 78)


def test_a_queue_with_other_arguments_is_exit_78_and_every_difference_is_named(
    project: Project, rabbit: Rabbit, queue: str
) -> None:
    """What was wanted, what is there, for each argument; the queue is left as it is."""
    rabbit.declare(queue, queue_type="classic", message_ttl=60000, max_length=10)
    rabbit.publish(queue, "untouched")
    project.task(GOOD)
    project.config(f"""
        workers: {{good: {{task: 'workers.task:Good', queue: {queue}}}}}
        queues: {{{queue}: {{type: classic, arguments: {{x-message-ttl: 5000}}}}}}
    """)
    cause = only_failure(project.run("good"), 78)
    assert f"queue '{queue}': x-message-ttl should be 5000 but is 60000" in cause
    assert f"queue '{queue}': x-max-length should be none but is 10" in cause
    assert rabbit.ready(queue) == 1


def test_an_initialize_that_fails_is_tried_again_and_takes_no_messages_meanwhile(
    project: Project, rabbit: Rabbit, queue: str
) -> None:
    """A database that is down at start is no reason to die, nor to hold messages."""
    flag = project.root / "database-is-up"
    project.task(f"""
        class Picky(WorkerTask):
            def initialize(self):
                super().initialize()
                if not os.path.exists({str(flag)!r}):
                    raise ConnectionError("the database is down")

            def callback(self, message):
                message.ack()
    """)
    project.config(f"workers: {{picky: {{task: 'workers.task:Picky', queue: {queue}}}}}")
    worker = project.run("picky")
    line = worker.wait_for("executor.not_ready", count=2)
    assert "initialize() failed: ConnectionError: the database is down" in line["cause"]
    flag.touch()
    worker.wait_for("worker.consuming")
    rabbit.publish(queue, "now")
    assert worker.wait_for("message.settled")["outcome"] == "acked"
    assert worker.stop() == 0


def test_the_log_is_one_json_object_per_line(project: Project, rabbit: Rabbit, queue: str) -> None:
    """Also for what a callback prints, logs in the standard way, or writes to stderr."""
    project.task("""
        import logging
        class Chatty(WorkerTask):
            def initialize(self):
                super().initialize()
                self.logger.set_main_logger("chatty")

            def callback(self, message):
                print("printed", flush=True)
                print("to stderr", file=sys.stderr)
                logging.getLogger("some.library").warning("by the book %d", 7)
                self.logger.info("structured", size=3, weird=object())
                message.ack()
    """)
    project.config(f"workers: {{chatty: {{task: 'workers.task:Chatty', queue: {queue}}}}}")
    worker = project.start("chatty")
    rabbit.publish(queue, "secret body", correlation_id="c1")
    settled = worker.wait_for("message.settled")
    worker.wait_for("printed", logger="stdout")
    worker.wait_for("to stderr", logger="stderr")
    assert worker.wait_for("by the book 7")["logger"] == "some.library"
    line = worker.wait_for("structured")
    assert (line["logger"], line["size"], line["attempt"], line["worker"]) == ("chatty", 3, 1, "chatty")
    assert settled["correlation_id"] == "c1"
    assert settled["queue"] == queue
    assert worker.stop() == 0
    assert all(isinstance(json.loads(raw), dict) for raw in worker.raw)
    assert not any("secret body" in raw for raw in worker.raw if "message_id" not in raw)
