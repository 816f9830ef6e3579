"""From outcomes to calls of the broker, and one log line about each."""

import asyncio
from collections.abc import Sequence
from typing import Any

import structlog
from keeper_fakes import make_delivery, make_log

from workerkit import Cause, Properties, Reason, RetryPolicy
from workerkit.properties import encode
from workerkit.settlement import ACK, RELEASE, Outcome, RetryLater, Verb
from workerkit.worker.ports import Delivery
from workerkit.worker.settler import Settler, describe

FAILED = Cause(Reason.EXCEPTION, "no such file", "FileNotFoundError", "Traceback …")


class FakeBroker:
    """Writes down what it is told; a publish is confirmed when the test says so."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.confirmed = asyncio.Event()
        self.error: Exception | None = None
        self.channel_is_there = True

    def holds(self, delivery: Delivery) -> bool:
        return self.channel_is_there

    def ack(self, deliveries: Sequence[Delivery]) -> None:
        self.calls.append(("ack", [delivery.tag for delivery in deliveries]))

    def release(self, deliveries: Sequence[Delivery]) -> None:
        self.calls.append(("release", [delivery.tag for delivery in deliveries]))

    async def retry(self, delivery: Delivery, later: RetryLater) -> bool:
        await self._publish("retry", delivery.tag, later)
        return self.channel_is_there

    async def dead_letter(self, delivery: Delivery, cause: Cause) -> bool:
        await self._publish("dead", delivery.tag, cause)
        return self.channel_is_there

    async def _publish(self, *call: Any) -> None:
        self.calls.append(call)
        if self.error is not None:
            raise self.error
        await self.confirmed.wait()


class Scene:
    def __init__(self) -> None:
        self.broker = FakeBroker()
        self.log, self.logs = make_log()
        self.changed = asyncio.Event()
        self.failures: list[BaseException] = []
        self.settler = self.make_settler(self.log)
        self.settler.policy = RetryPolicy(3, (7.0,))

    def make_settler(self, log: Any) -> Settler:
        return Settler(self.broker, log, self.write_events, self.changed.set, self.failures.append)  # type: ignore[arg-type]

    def write_events(self, level: str, event: str, events: list[dict[str, Any]]) -> None:
        self.logs += [{"event": event, "log_level": level, **about} for about in events]


async def test_acknowledgements_go_together() -> None:
    """One call for all that was finished meanwhile, and one line about each."""
    scene = Scene()
    scene.settler.acknowledge([(make_delivery(tag), 1_500_000) for tag in (1, 2, 3)])
    assert scene.broker.calls == [("ack", [1, 2, 3])]
    assert [line["delivery_tag"] for line in scene.logs] == [1, 2, 3]
    assert scene.logs[0] == {
        "event": "message.settled",
        "log_level": "info",
        "outcome": "acked",
        "queue": "jobs",
        "delivery_tag": 1,
        "attempt": 1,
        "redelivered": False,
        "message_id": "m1",
        "duration_ms": 1.5,
    }


async def test_a_release_goes_out_at_once() -> None:
    """Another worker may have it now."""
    scene = Scene()
    scene.settler.settle(make_delivery(4), RELEASE, 0)
    scene.settler.release([])
    assert scene.broker.calls == [("release", [4])]
    assert scene.logs[0]["outcome"] == "released"


async def test_a_failed_attempt_is_retried_and_busy_until_the_broker_has_the_copy() -> None:
    """The line is written after the confirm: a line that says `retried` is true."""
    scene = Scene()
    scene.settler.settle(make_delivery(1), Outcome(Verb.NACK, cause=FAILED), 0)
    assert scene.settler.busy
    await asyncio.sleep(0)
    assert scene.broker.calls == [("retry", 1, RetryLater(7.0, 2, explicit=False))]
    assert scene.logs == []
    scene.broker.confirmed.set()
    await scene.changed.wait()
    assert not scene.settler.busy
    line = scene.logs[0]
    assert (line["outcome"], line["log_level"], line["delay"]) == ("retried", "warning", 7.0)
    assert (line["reason"], line["cause"], line["exc_type"]) == ("exception", "no such file", "FileNotFoundError")
    assert line["stack"] == "Traceback …"


async def test_the_last_attempt_becomes_a_dead_letter_at_error() -> None:
    """With the cause of that last attempt."""
    scene = Scene()
    scene.broker.confirmed.set()
    scene.settler.settle(make_delivery(1, attempt=3), Outcome(Verb.NACK, cause=FAILED), 0)
    await scene.changed.wait()
    assert scene.broker.calls == [("dead", 1, FAILED)]
    assert (scene.logs[0]["outcome"], scene.logs[0]["log_level"]) == ("dead-lettered", "error")


async def test_an_error_of_ours_in_a_settlement_is_reported() -> None:
    """The message is unsettled and only a restart hands it back: that must not pass in silence."""
    scene = Scene()
    scene.broker.error = RuntimeError("a bug")
    scene.settler.settle(make_delivery(1), Outcome(Verb.NACK, cause=FAILED), 0)
    await scene.changed.wait()
    assert scene.failures == [scene.broker.error]
    assert scene.logs == []


async def test_abandoning_stops_the_wait_and_is_no_error() -> None:
    """At the deadline of a stop the originals go back instead."""
    scene = Scene()
    scene.settler.settle(make_delivery(1), Outcome(Verb.NACK, cause=FAILED), 0)
    await asyncio.sleep(0)
    scene.settler.abandon()
    await scene.changed.wait()
    assert not scene.settler.busy
    assert scene.failures == []
    assert scene.logs == []


async def test_at_warning_level_no_line_is_made_for_an_acknowledgement() -> None:
    """It is the most frequent line of all."""
    scene = Scene()
    log = structlog.wrap_logger(None, wrapper_class=structlog.make_filtering_bound_logger(30))
    scene.make_settler(log).settle(make_delivery(1), ACK, 0)
    assert scene.broker.calls == [("ack", [1])]
    assert scene.logs == []


def test_a_message_is_named_by_its_ids_and_never_by_its_body() -> None:
    """Bodies hold people's data; broken properties cost the ids, not the line."""
    delivery = make_delivery(1, raw_properties=encode(Properties(message_id="m", correlation_id="c")), body=b"secret")
    assert describe(delivery) == {
        "queue": "jobs",
        "delivery_tag": 1,
        "attempt": 1,
        "redelivered": False,
        "message_id": "m",
        "correlation_id": "c",
    }
    assert "message_id" not in describe(make_delivery(1, raw_properties=b"\xff"))
    assert describe(None) == {}


async def test_what_the_broker_has_taken_back_is_not_reported_as_settled() -> None:
    """The adapter says that the settlement was dropped; a line that says "acked" would be a lie."""
    scene = Scene()
    scene.broker.channel_is_there = False
    scene.broker.confirmed.set()
    scene.settler.settle(make_delivery(1), ACK, 0)
    scene.settler.settle(make_delivery(2), RELEASE, 0)
    scene.settler.settle(make_delivery(3), Outcome(Verb.NACK, cause=FAILED), 0)
    await asyncio.wait_for(scene.changed.wait(), 5)
    assert [line for line in scene.logs if line["event"] == "message.settled"] == []
