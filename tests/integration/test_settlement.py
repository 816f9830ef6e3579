"""What each verb does on the wire, seen on a real broker."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.rabbit import Rabbit
from support.workers import Project, Worker, eventually

from workerkit.testing.rabbitmq import PrivateRabbitmq

pytestmark = pytest.mark.integration

TASK = """
    class Verbs(WorkerTask):
        def callback(self, message):
            note(message.data["do"], message.attempt, time.time())
            note("seen", message.exchange or "-", message.routing_key, message.headers.get("price"))
            what, *words = message.data["do"].split()
            if message.attempt > message.data.get("fail", 99):
                message.ack()
            elif what == "raise":
                raise {"ValueError": ValueError("boo"), "Retry": RetryMessage(0.7),
                       "Reject": RejectMessage("hopeless")}[words[0]]
            elif what == "retry":
                message.retry(float(words[0]))
            elif what == "reject":
                message.reject("because")
            elif what == "release":
                message.release() if not message.redelivered else message.ack()
            elif what == "twice":
                message.ack()
                message.nack()
            else:
                getattr(message, what)()
"""


def start(
    project: Project, queue: str, retry: str = "{max_attempts: 3, delays: [300ms, 600ms]}", extra: str = ""
) -> Worker:
    project.task(TASK)
    project.config(f"""
workers:
  verbs:
    task: workers.task:Verbs
    queue: {queue}
    retry: {retry}
{extra}
""")
    return project.start("verbs")


def starts(project: Project) -> list[tuple[int, float]]:
    """(attempt, time) of each run."""
    return [(int(words[-2]), float(words[-1])) for words in map(str.split, project.ledger) if words[0] != "seen"]


def test_a_failed_attempt_comes_back_after_its_delay_and_the_last_one_is_kept_with_the_story(
    project: Project, rabbit: Rabbit, queue: str
) -> None:
    """The delays of the policy in turn, then the dead-letter queue with every reason header."""
    worker = start(project, queue)
    rabbit.publish(queue, {"do": "raise ValueError"}, headers={"price": 1.5, "x-mine": "kept"}, app_id="shop")
    worker.wait_for("message.settled", outcome="dead-lettered")
    runs = starts(project)
    assert [attempt for attempt, _ in runs] == [1, 2, 3]
    assert 0.29 <= runs[1][1] - runs[0][1] < 1.5
    assert 0.59 <= runs[2][1] - runs[1][1] < 2.0
    ((_, properties),) = rabbit.take_all(f"{queue}.dead")
    headers = properties.headers
    assert headers["workerkit-reason"] == "exception"
    assert headers["workerkit-exception"] == "ValueError"
    assert headers["workerkit-message"] == "boo"
    assert "raise {" in headers["workerkit-traceback"]
    assert headers["workerkit-attempt"] == 3
    assert headers["workerkit-queue"] == queue
    assert headers["workerkit-worker"] == "verbs"
    assert headers["workerkit-pid"] == worker.pid
    assert headers["workerkit-host"]
    assert headers["workerkit-first-failed-at"] < headers["workerkit-failed-at"]
    assert headers["x-mine"] == "kept"
    assert "x-death" not in headers
    assert properties.app_id == "shop"
    assert properties.delivery_mode == 2
    assert worker.stop() == 0


def test_a_retried_message_looks_as_it_was_published(project: Project, rabbit: Rabbit, queue: str) -> None:
    """Exchange, routing key and headers, a float among them, survive the way through a retry queue."""
    worker = start(
        project,
        queue,
        extra=f"""
exchanges: {{ex-{queue}: {{type: topic}}}}
queues: {{{queue}: {{bindings: [{{exchange: ex-{queue}, routing_key: "a.#"}}]}}}}
""",
    )
    rabbit.publish("a.b.c", {"do": "nack", "fail": 1}, exchange=f"ex-{queue}", headers={"price": 1.5})
    worker.wait_for("message.settled", outcome="acked")
    expected = f"seen ex-{queue} a.b.c {'1.5'}"
    assert [line for line in project.ledger if line.startswith("seen")] == [expected, expected]
    assert worker.stop() == 0


@pytest.mark.parametrize("do", ["retry 0.7", "raise Retry"])
def test_an_explicit_delay_is_kept_though_no_policy_names_it(
    do: str, project: Project, rabbit: Rabbit, queue: str
) -> None:
    """A queue of its own is made for it, and disappears later."""
    worker = start(project, queue)
    rabbit.publish(queue, {"do": do, "fail": 1})
    worker.wait_for("message.settled", outcome="acked")
    first, second = starts(project)
    assert 0.69 <= second[1] - first[1] < 2
    assert rabbit.ready(f"{queue}.retry.700ms.once") == 0
    rabbit.delete(f"{queue}.retry.700ms.once")
    assert worker.stop() == 0


@pytest.mark.parametrize(("do", "reason"), [("reject", "because"), ("raise Reject", "hopeless")])
def test_a_rejected_message_is_a_dead_letter_at_once(
    do: str, reason: str, project: Project, rabbit: Rabbit, queue: str
) -> None:
    """No retries of what can never succeed."""
    worker = start(project, queue)
    rabbit.publish(queue, {"do": do})
    worker.wait_for("message.settled", outcome="dead-lettered")
    ((_, headers),) = rabbit.dead(queue)
    assert (headers["workerkit-reason"], headers["workerkit-message"]) == ("rejected", reason)
    assert len(starts(project)) == 1
    assert worker.stop() == 0


def test_a_body_that_is_not_what_it_says_is_kept_as_it_came(project: Project, rabbit: Rabbit, queue: str) -> None:
    """Raw bytes in the dead letter, reason undecodable, no retries."""
    worker = start(project, queue)
    rabbit.publish(queue, b'\xff{"not json', message_id="broken")
    worker.wait_for("message.settled", outcome="dead-lettered")
    ((body, properties),) = rabbit.take_all(f"{queue}.dead")
    assert body == b'\xff{"not json'
    assert properties.headers["workerkit-reason"] == "undecodable"
    assert worker.stop() == 0


def test_a_second_verb_changes_nothing(project: Project, rabbit: Rabbit, queue: str) -> None:
    """The first one stands, the channel stays open, the mistake is logged."""
    worker = start(project, queue)
    rabbit.publish(queue, {"do": "twice"}, {"do": "ack"})
    worker.wait_for("message.settled", count=2, outcome="acked")
    assert worker.events("callback.raised_after_settling")[0]["error"].endswith("AlreadySettled")
    assert worker.events("conn.lost") == worker.events("source.lost") == []
    assert worker.stop() == 0
    assert rabbit.ready(queue) == 0


def test_a_released_message_comes_back_uncounted(project: Project, rabbit: Rabbit, queue: str) -> None:
    """Putting it back is not an attempt."""
    worker = start(project, queue)
    rabbit.publish(queue, {"do": "release"})
    worker.wait_for("message.settled", outcome="acked")
    assert [attempt for attempt, _ in starts(project)] == [1, 1]
    assert worker.stop() == 0


def test_copies_drop_what_would_misdirect_or_delete_them(project: Project, rabbit: Rabbit, queue: str) -> None:
    """CC would multiply the copy, expiration delete it, a foreign user_id close the channel."""
    worker = start(project, queue)
    rabbit.publish(queue, {"do": "reject"}, headers={"CC": [f"{queue}.dead"]}, expiration="60000", user_id="guest")
    worker.wait_for("message.settled", outcome="dead-lettered")
    letters = rabbit.take_all(f"{queue}.dead")
    assert len(letters) == 2  # the publisher's own CC, and ours
    ours = [properties for _, properties in letters if "workerkit-reason" in properties.headers]
    assert len(ours) == 1
    assert "CC" not in ours[0].headers
    assert ours[0].expiration is None
    assert ours[0].user_id is None
    assert worker.stop() == 0


def test_a_huge_traceback_and_huge_headers_still_make_a_dead_letter(
    project: Project, rabbit: Rabbit, queue: str
) -> None:
    """Headers must fit one frame; one that does not would close the connection for good."""
    project.task("""
        class Deep(WorkerTask):
            def callback(self, message):
                raise ValueError("x" * 300_000)
    """)
    project.config(f"""
        workers: {{deep: {{task: 'workers.task:Deep', queue: {queue}, retry: {{max_attempts: 1}}}}}}
    """)
    worker = project.start("deep")
    rabbit.publish(queue, {"do": "x"}, headers={"mine": "y" * 90_000})
    worker.wait_for("message.settled", outcome="dead-lettered")
    ((_, headers),) = rabbit.dead(queue)
    assert headers["mine"] == "y" * 90_000
    assert headers["workerkit-reason"] == "exception"
    assert worker.events("conn.lost") == worker.events("source.lost") == []
    assert worker.stop() == 0


def test_inline_does_the_same_in_one_process(project: Project, rabbit: Rabbit, queue: str) -> None:
    """For debuggers: no child process, the same settlements over the same link, the same answer to SIGTERM."""
    project.task(TASK)
    project.config(f"""
        workers:
          verbs: {{task: "workers.task:Verbs", queue: {queue}, retry: {{max_attempts: 2, delays: [200ms]}}}}
    """)
    worker = project.start("verbs", "--inline")
    rabbit.publish(queue, {"do": "ack"}, {"do": "raise ValueError"})
    worker.wait_for("message.settled", outcome="dead-lettered")
    assert Path(f"/proc/{worker.pid}/task/{worker.pid}/children").read_text() == ""
    assert len(worker.events("message.settled", outcome="acked")) == 1
    assert worker.stop() == 0


def test_inline_there_is_no_time_limit(project: Project, rabbit: Rabbit, queue: str) -> None:
    """Whoever debugs takes hours: ``callback_timeout`` ends nothing, and the callback settles its message."""
    project.task("""
        class Slow(WorkerTask):
            def callback(self, message):
                time.sleep(1.5)
                message.ack()
    """)
    project.config(f"""
        workers:
          slow: {{task: "workers.task:Slow", queue: {queue}, callback_timeout: 300ms, retry: {{max_attempts: 1}}}}
    """)
    worker = project.start("slow", "--inline")
    rabbit.publish(queue, 1, 2)
    worker.wait_for("message.settled", count=2, outcome="acked")
    assert worker.events("callback.timeout") == []
    assert worker.stop() == 0
    assert rabbit.ready(queue) == rabbit.ready(f"{queue}.dead") == 0


@pytest.fixture
def modern(tmp_path: Path, rabbitmq_next: PrivateRabbitmq) -> Iterator[tuple[Project, Rabbit]]:
    """A project on RabbitMQ 4.3."""
    project = Project(tmp_path, rabbitmq_next.url)
    with Rabbit(rabbitmq_next.url) as rabbit:
        yield project, rabbit
    project.close()


def test_native_delayed_retry_rejects_instead_of_copying(modern: tuple[Project, Rabbit], queue_name: str) -> None:
    """On 4.3 with ``delayed_retry``: no retry queues, attempts from the broker's count, growing delays, dead letter."""
    project, rabbit = modern
    queue = queue_name[-8:]
    worker = start(
        project, queue, "{max_attempts: 3}", extra=f"queues: {{{queue}: {{delayed_retry: {{min: 500ms, max: 5s}}}}}}"
    )
    rabbit.publish(queue, {"do": "raise ValueError"})
    worker.wait_for("message.settled", outcome="dead-lettered")
    runs = starts(project)
    assert [attempt for attempt, _ in runs] == [1, 2, 3]
    assert 0.45 <= runs[1][1] - runs[0][1] < 2
    assert 0.95 <= runs[2][1] - runs[1][1] < 3
    with pytest.raises(Exception, match="no queue"):
        rabbit.ready(f"{queue}.retry.5s")
    with Rabbit(project.environment["AMQP_URL"]) as again:
        ((_, headers),) = again.dead(queue)
    assert headers["workerkit-attempt"] == 3
    assert "x-delivery-count" not in headers
    assert worker.stop() == 0


@pytest.mark.parametrize("delay", ["0.7", "300"])
def test_an_explicit_delay_is_kept_beside_native_retry(
    delay: str, modern: tuple[Project, Rabbit], queue_name: str
) -> None:
    """AMQP 0-9-1 cannot ask the broker for a delay per message, so this one takes a copy; also for a policy's delay."""
    project, rabbit = modern
    queue = queue_name[-8:]
    native = f"queues: {{{queue}: {{delayed_retry: {{min: 500ms, max: 5s}}}}}}"
    worker = start(project, queue, "{max_attempts: 3, delays: [300s]}", extra=native)
    rabbit.publish(queue, {"do": f"retry {delay}", "fail": 1})
    assert worker.wait_for("message.settled", outcome="retried")["delay"] == float(delay)
    if delay == "0.7":
        assert worker.wait_for("message.settled", outcome="acked")["attempt"] == 2
    assert worker.stop() == 0


def test_the_newest_broker_gets_retry_queues_when_the_queue_has_no_native_retry(
    modern: tuple[Project, Rabbit], queue_name: str
) -> None:
    """A plain quorum queue on 4.3 would hand a rejected message straight back: there the copy is right."""
    project, rabbit = modern
    queue = queue_name[-8:]
    worker = start(project, queue)
    rabbit.publish(queue, {"do": "raise ValueError"}, {"do": "release"})
    worker.wait_for("message.settled", outcome="dead-lettered")
    failing = [line.split() for line in project.ledger if line.startswith("raise")]
    assert [words[-2] for words in failing] == ["1", "2", "3"]
    assert float(failing[1][-1]) - float(failing[0][-1]) >= 0.29
    assert worker.events("message.settled", outcome="acked")
    assert worker.stop() == 0


def test_a_message_that_is_released_again_and_again_waits_longer_each_time(
    modern: tuple[Project, Rabbit], queue_name: str
) -> None:
    """The first time it is ready at once. A release is no attempt, and no return that RabbitMQ 4 drops it for."""
    project, rabbit = modern
    queue = queue_name[-8:]
    project.task("""
        class Shy(WorkerTask):
            times = 0

            def callback(self, message):
                note("start", time.time())
                self.times += 1
                message.release() if self.times <= 4 else message.ack()
    """)
    project.config(f"workers: {{shy: {{task: 'workers.task:Shy', queue: {queue}}}}}")
    worker = project.start("shy")
    rabbit.publish(queue, "again and again")
    worker.wait_for("message.settled", outcome="acked", attempt=1)
    starts = [float(line.split()[1]) for line in project.ledger]
    waits = [later - earlier for earlier, later in itertools.pairwise(starts)]
    assert waits[0] < 0.5
    assert all(least <= wait < least + 0.9 for wait, least in zip(waits[1:], (1, 2, 4), strict=True)), waits
    assert [line.get("delay", 0) for line in worker.events("message.settled", outcome="released")] == [0, 1, 2, 4]
    assert worker.stop() == 0
    assert rabbit.ready(queue) == 0


def test_a_message_that_lost_its_connection_often_is_renewed_before_the_limit_drops_it(
    modern: tuple[Project, Rabbit], queue_name: str
) -> None:
    """Twenty lost connections make RabbitMQ 4 drop a message in silence; a copy in time begins a new count."""
    project, rabbit = modern
    queue = queue_name[-8:]
    worker = start(project, queue, extra="    max_losses: 100")
    worker.stop()
    rabbit.publish(queue, {"do": "ack"})
    for _ in range(12):
        with Rabbit(project.environment["AMQP_URL"]) as careless:
            careless.hold(queue)
    second = project.start("verbs")
    second.wait_for("message.renewed")
    second.wait_for("message.settled", outcome="acked", attempt=1)
    assert second.stop() == 0
    assert rabbit.ready(queue) == 0


def test_prefetched_messages_do_not_pay_for_their_neighbours_death(
    project: Project, rabbit: Rabbit, queue: str
) -> None:
    """Of twenty prefetched messages one kills the process each time: the others run once, as first attempts."""
    project.task("""
        class Mixed(WorkerTask):
            def callback(self, message):
                note(message.data, message.attempt)
                if message.data == "poison":
                    os.kill(os.getpid(), signal.SIGKILL)
                message.ack()
    """)
    project.config(f"""
        workers:
          mixed:
            task: workers.task:Mixed
            queue: {queue}
            prefetch_count: 20
            retry: {{max_attempts: 3, delays: [200ms]}}
    """)
    rabbit.declare(queue, queue_type="quorum")
    rabbit.publish(queue, "a", "b", "poison", "c", "d", "e")
    worker = project.start("mixed")
    worker.wait_for("message.settled", outcome="dead-lettered")
    assert sorted(project.ledger) == ["a 1", "b 1", "c 1", "d 1", "e 1", "poison 1", "poison 2", "poison 3"]
    assert [body for body, _ in rabbit.dead(queue)] == ["poison"]
    assert worker.stop() == 0


def test_messages_wait_at_the_broker_not_in_memory(project: Project, rabbit: Rabbit, queue: str) -> None:
    """A delayed message is in its retry queue, not unacknowledged with the worker."""
    worker = start(project, queue, "{max_attempts: 2, delays: [1h]}")
    rabbit.publish(queue, {"do": "nack"})
    worker.wait_for("message.settled", outcome="retried")
    eventually(lambda: rabbit.ready(f"{queue}.retry.1h") == 1, "it waits in the retry queue")
    assert worker.stop() == 0
    assert rabbit.ready(queue) == 0
    rabbit.delete(f"{queue}.retry.1h")
