"""Callbacks that do what callbacks do in the wild: fork, start threads, log a lot, ask for odd things."""

import pytest
from support.rabbit import Rabbit
from support.workers import Project, Worker, eventually

pytestmark = pytest.mark.integration


def start(project: Project, queue: str, body: str, *settings: str) -> Worker:
    project.task(body)
    lines = "".join(f"\n    {line}" for line in settings)
    project.config(f"""
workers:
  wild:
    task: workers.task:Wild
    queue: {queue}
    retry: {{max_attempts: 2, delays: [200ms]}}{lines}
""")
    return project.start("wild")


@pytest.mark.parametrize("end", ["sys.exit(0)", "return", "1 / 0", "message.nack(); os._exit(0)"])
def test_a_child_that_a_callback_forks_does_not_speak_for_it(
    end: str, project: Project, rabbit: Rabbit, queue: str
) -> None:
    """However the child ends, the parent's verdict is the only one, and nobody is blamed for a death."""
    worker = start(
        project,
        queue,
        f"""
        class Wild(WorkerTask):
            def callback(self, message):
                note("start", message.data, message.attempt)
                child = os.fork()
                if child == 0:
                    {end}
                    os._exit(1)
                os.waitpid(child, 0)
                message.ack()
        """,
    )
    rabbit.publish(queue, "one", "two")
    worker.wait_for("message.settled", count=2, outcome="acked")
    assert project.ledger == ["start one 1", "start two 1"]
    assert worker.events("executor.exit") == []
    assert worker.stop() == 0
    assert rabbit.ready(queue) == 0


def test_threads_that_log_big_lines_do_not_tear_the_link(project: Project, rabbit: Rabbit, queue: str) -> None:
    """Every line and every settlement arrives whole."""
    worker = start(
        project,
        queue,
        """
        import threading

        class Wild(WorkerTask):
            def callback(self, message):
                threads = [threading.Thread(target=self.logger.info, args=("big",), kwargs={"text": "x" * 300_000})
                           for _ in range(6)]
                for thread in threads: thread.start()
                message.ack()
                for thread in threads: thread.join()
        """,
    )
    rabbit.publish(queue, *range(5))
    worker.wait_for("message.settled", count=5, outcome="acked")
    worker.wait_for("big", count=30)
    assert worker.stop() == 0
    assert all(raw.startswith("{") and raw.endswith("}") for raw in worker.raw)


def test_what_is_registered_with_atexit_may_log(project: Project, rabbit: Rabbit, queue: str) -> None:
    """A stop is a normal end of the interpreter: every handler runs, and the exit code says nothing else."""
    worker = start(
        project,
        queue,
        """
        import atexit

        class Wild(WorkerTask):
            def initialize(self):
                super().initialize()
                atexit.register(note, "second")
                atexit.register(self.logger.info, "first")

            def callback(self, message):
                message.ack()
        """,
    )
    rabbit.publish(queue, "x")
    worker.wait_for("message.settled", outcome="acked")
    assert worker.stop() == 0
    assert project.ledger == ["second"]
    assert worker.events("executor.exit") == []


@pytest.mark.parametrize("delay", ["__import__('decimal').Decimal('0.3')", "type('F', (float,), {})(0.3)"])
def test_any_kind_of_number_is_a_delay(delay: str, project: Project, rabbit: Rabbit, queue: str) -> None:
    """What is a number to the user must not get stuck on its way to the broker."""
    worker = start(
        project,
        queue,
        f"""
        class Wild(WorkerTask):
            def callback(self, message):
                message.retry({delay}) if message.attempt == 1 else message.ack()
        """,
    )
    rabbit.publish(queue, "x")
    assert worker.wait_for("message.settled", outcome="retried")["delay"] == 0.3
    worker.wait_for("message.settled", outcome="acked")
    assert worker.stop() == 0
    rabbit.delete(f"{queue}.retry.300ms.once")


def test_a_big_body_is_one_message_like_any_other(project: Project, rabbit: Rabbit, queue: str) -> None:
    """Sixteen MiB through the broker, the link and back into a callback, in a moment."""
    worker = start(
        project,
        queue,
        """
        class Wild(WorkerTask):
            def callback(self, message):
                note(len(message.body))
                message.ack()
        """,
    )
    rabbit.publish(queue, b"x" * 2**24, message_id="big")
    worker.wait_for("message.settled", outcome="acked", within=15)
    assert project.ledger == [str(2**24)]
    assert worker.stop() == 0


def test_a_worker_whose_task_stops_loading_takes_no_messages_whatever_it_is_told(
    project: Project, rabbit: Rabbit, queue: str
) -> None:
    """Paused and resumed while no executor gets ready, it must not take messages only to hand them back."""
    broken = project.root / "broken"
    worker = start(
        project,
        queue,
        f"""
        class Wild(WorkerTask):
            def initialize(self):
                super().initialize()
                if os.path.exists({str(broken)!r}):
                    raise OSError("not now")

            def callback(self, message):
                if message.data == "die":
                    os._exit(1)
                message.ack()
        """,
    )
    broken.touch()
    rabbit.publish(queue, "die")
    worker.wait_for("executor.not_ready")
    eventually(lambda: rabbit.consumers(queue) == 0, "it takes no messages")
    worker.signal(12)
    worker.wait_for("worker.paused")
    worker.signal(18)
    worker.wait_for("worker.resumed")
    rabbit.publish(queue, "good")
    worker.wait_for("executor.not_ready", count=3)
    assert rabbit.consumers(queue) == 0
    broken.unlink()
    assert worker.wait_for("message.settled", outcome="acked", message_id='"good"')["redelivered"] is False
    assert worker.stop() == 0
