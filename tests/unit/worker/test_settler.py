"""From outcomes to what the broker is told, and one log line about each when it has it."""

import asyncio
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import structlog
from pool_fakes import make_delivery, make_log

from workerkit import Cause, Properties, Reason, RetryPolicy
from workerkit.headers import RELEASES
from workerkit.outgoing import Outgoing
from workerkit.ports import Settled
from workerkit.properties import encode
from workerkit.settlement import (
    ACK,
    ACKNOWLEDGE,
    HAND_BACK,
    RELEASE,
    Acknowledge,
    DeadLetter,
    Outcome,
    Release,
    RetryLater,
    Settlement,
    Verb,
)
from workerkit.worker.settler import Settler, describe

FAILED = Cause(Reason.EXCEPTION, "no such file", "FileNotFoundError", "Traceback …")
NACK = Outcome(Verb.NACK, cause=FAILED)


class FakeBroker:
    """Writes down what it is told."""

    def __init__(self) -> None:
        self.batches: list[list[Settled]] = []

    def settle(self, batch: Sequence[Settled]) -> None:
        self.batches.append(list(batch))

    @property
    def told(self) -> list[list[tuple[int, Settlement]]]:
        return [[(delivery.tag, settlement) for delivery, settlement in batch] for batch in self.batches]


class Scene:
    def __init__(self) -> None:
        self.broker = FakeBroker()
        self.log, self.logs = make_log()
        self.changed = asyncio.Event()
        self.settler = self.make_settler(self.log)
        self.settler.policy = RetryPolicy(3, (7.0,))

    def make_settler(self, log: Any) -> Settler:
        lines = SimpleNamespace(logger=log, write_events=self.write_events)
        return Settler(self.broker, lines, self.changed.set)  # type: ignore[arg-type]

    def write_events(self, level: str, event: str, events: list[dict[str, Any]]) -> None:
        self.logs += [{"event": event, "log_level": level, **about} for about in events]

    def answer(self) -> None:
        """The broker has the oldest batch."""
        self.settler.on_settled(self.broker.batches.pop(0))


def test_acknowledgements_go_together() -> None:
    """One call for all that was finished meanwhile, and one line about each when the broker has them."""
    scene = Scene()
    scene.settler.acknowledge([make_delivery(tag, duration_ns=1_500_000) for tag in (1, 2, 3)])
    assert scene.broker.told == [[(tag, ACKNOWLEDGE) for tag in (1, 2, 3)]]
    assert scene.logs == []
    scene.answer()
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


def test_an_acknowledgement_takes_along_what_is_published_with_it() -> None:
    """It is one settlement for the broker, and one line as any other."""
    scene = Scene()
    outgoing = Outgoing("", "next", b"", b"{}", None)
    scene.settler.settle(make_delivery(1), Outcome(Verb.ACK, publish=(outgoing,)))
    assert scene.broker.told == [[(1, Acknowledge((outgoing,)))]]
    scene.answer()
    assert [line["outcome"] for line in scene.logs] == ["acked"]


def test_a_release_counts_and_waits_longer_each_time() -> None:
    """The first at once; the line says what the delay is."""
    scene = Scene()
    scene.settler.settle(make_delivery(4), RELEASE)
    scene.settler.settle(make_delivery(5, headers={RELEASES: 3}), RELEASE)
    assert scene.broker.told == [[(4, Release(0.0, 1))], [(5, Release(8.0, 4))]]
    scene.answer()
    scene.answer()
    assert [(line["outcome"], line.get("delay")) for line in scene.logs] == [("released", None), ("released", 8.0)]


def test_what_nobody_has_started_is_handed_back_without_a_line() -> None:
    """It is no news of that message."""
    scene = Scene()
    scene.settler.hand_back([make_delivery(1), make_delivery(2)])
    scene.settler.hand_back([])
    assert scene.broker.told == [[(1, HAND_BACK), (2, HAND_BACK)]]
    assert scene.settler.busy
    scene.answer()
    assert not scene.settler.busy
    assert scene.logs == []


def test_a_failed_attempt_is_retried_and_busy_until_the_broker_has_the_copy() -> None:
    """The line is written then: a line that says `retried` is true."""
    scene = Scene()
    scene.settler.settle(make_delivery(1), NACK)
    assert scene.settler.busy
    assert scene.broker.told == [[(1, RetryLater(7.0, 2, explicit=False, cause=FAILED))]]
    assert scene.logs == []
    scene.answer()
    assert scene.changed.is_set()
    assert not scene.settler.busy
    line = scene.logs[0]
    assert (line["outcome"], line["log_level"], line["delay"]) == ("retried", "warning", 7.0)
    assert (line["reason"], line["cause"], line["exc_type"]) == ("exception", "no such file", "FileNotFoundError")
    assert line["stack"] == "Traceback …"


def test_one_that_must_run_alone_says_so_on_its_copy() -> None:
    """Whoever gets it next must know."""
    scene = Scene()
    scene.settler.settle(make_delivery(1, alone=True), NACK)
    assert scene.broker.told == [[(1, RetryLater(7.0, 2, explicit=False, cause=FAILED, alone=True))]]


def test_the_last_attempt_becomes_a_dead_letter_at_error() -> None:
    """With the cause of that last attempt."""
    scene = Scene()
    scene.settler.settle(make_delivery(1, attempt=3), NACK)
    assert scene.broker.told == [[(1, DeadLetter(FAILED))]]
    scene.answer()
    assert (scene.logs[0]["outcome"], scene.logs[0]["log_level"]) == ("dead-lettered", "error")


def test_what_was_settled_too_late_is_dropped_with_one_line_and_not_reported_as_settled() -> None:
    """It is the broker's again: a line that says `acked` would not be true."""
    scene = Scene()
    scene.settler.acknowledge([make_delivery(1), make_delivery(2)])
    scene.settler.settle(make_delivery(3), NACK)
    scene.settler.on_dropped([delivery for delivery, _ in scene.broker.batches[0]], "the channel is gone")
    scene.settler.on_dropped([scene.broker.batches[1][0][0]], "the channel is gone")
    assert not scene.settler.busy
    assert scene.changed.is_set()
    assert [line["event"] for line in scene.logs] == ["settle.dropped", "settle.dropped"]
    assert (scene.logs[0]["messages"], scene.logs[0]["why"]) == (2, "the channel is gone")
    assert scene.logs[1]["message_id"] == "m3"


def test_what_could_not_be_published_makes_the_attempt_fail() -> None:
    """The message is still ours: it is settled again, and busy until the broker has that."""
    scene = Scene()
    scene.settler.settle(make_delivery(1), Outcome(Verb.ACK, publish=(Outgoing("", "gone", b"", b"", None),)))
    delivery = scene.broker.batches.pop(0)[0][0]
    scene.settler.on_unpublished(delivery, FAILED)
    assert scene.broker.told == [[(1, RetryLater(7.0, 2, explicit=False, cause=FAILED))]]
    assert scene.settler.busy
    scene.answer()
    assert not scene.settler.busy
    assert [line["outcome"] for line in scene.logs] == ["retried"]


def test_at_warning_level_no_line_is_made_for_an_acknowledgement() -> None:
    """It is the most frequent line of all."""
    scene = Scene()
    log = structlog.wrap_logger(None, wrapper_class=structlog.make_filtering_bound_logger(30))
    settler = scene.make_settler(log)
    settler.settle(make_delivery(1), ACK)
    settler.on_settled(scene.broker.batches[0])
    assert not settler.busy
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
