"""What is settled at once and what takes a copy, by what the queue does on its server."""

from types import SimpleNamespace
from typing import Any

import pytest

from workerkit import Cause, Properties, Reason
from workerkit.brokers.rabbitmq.fastpath import Settling
from workerkit.brokers.rabbitmq.redelivery import _losses_of, at_once
from workerkit.brokers.rabbitmq.subscription import Incarnation
from workerkit.brokers.rabbitmq.versions import QueueTraits, ServerVersion
from workerkit.outgoing import Outgoing
from workerkit.ports import Delivery
from workerkit.properties import encode
from workerkit.settings.model import DelayedRetrySettings, Duration, QueueSettings
from workerkit.settlement import ACKNOWLEDGE, HAND_BACK, Acknowledge, DeadLetter, Release, RetryLater

CAUSE = Cause(Reason.NACKED, "no")
LATER = RetryLater(5.0, 2, explicit=False, cause=CAUSE)
NATIVE = QueueSettings(delayed_retry=DelayedRetrySettings(min=Duration(10), max=Duration(25)))
ORDERED = QueueSettings(arguments={"x-single-active-consumer": True})


def delivery(settings: QueueSettings, version: str, **headers: Any) -> Delivery:
    traits = QueueTraits.of(settings, ServerVersion.parse("RabbitMQ", version))
    names = {"count": "x-delivery-count", "losses": "workerkit-losses"}
    raw = encode(Properties(headers={names[name]: value for name, value in headers.items()}))
    receipt = SimpleNamespace(source=SimpleNamespace(traits=traits, settings=settings))
    return Delivery("jobs", "", "jobs", bool(headers), 1, raw, b"", receipt, 1)


@pytest.mark.parametrize(
    ("settings", "version", "headers", "nacked"),
    [
        (QueueSettings(), "3.10.8", {}, True),
        (QueueSettings(), "3.10.8", {"count": 1}, False),
        (QueueSettings(), "4.0.5", {"count": 3}, False),
        (QueueSettings(), "4.3.6", {"count": 3}, True),
        (ORDERED, "4.0.5", {"count": 3}, True),
        (QueueSettings(type="classic"), "3.10.8", {"count": 3}, True),
    ],
)
def test_handing_back_takes_a_copy_where_it_would_count_as_another_loss(
    settings: QueueSettings, version: str, headers: dict[str, int], nacked: bool
) -> None:
    """The first return is free, so nearly all go back where they were. An ordered queue cannot have copies."""
    assert at_once(delivery(settings, version, **headers), HAND_BACK) == (
        (Settling.NACK, HAND_BACK) if nacked else None
    )


@pytest.mark.parametrize(
    ("settings", "version", "headers", "losses"),
    [
        (QueueSettings(), "3.10.8", {}, 0),
        (QueueSettings(), "3.10.8", {"count": 1}, 0),
        (QueueSettings(), "3.10.8", {"count": 12}, 11),
        (QueueSettings(), "3.10.8", {"count": 2, "losses": 3}, 4),
        (QueueSettings(), "3.10.8", {"count": 40_394, "losses": 3}, 3),
        (QueueSettings(), "4.3.6", {"count": 2, "losses": 3}, 5),
        (QueueSettings(), "4.3.6", {"losses": 3}, 3),
        (ORDERED, "3.10.8", {"count": 12}, 0),
        (ORDERED, "4.3.6", {"count": 12}, 12),
        (QueueSettings(type="classic"), "3.10.8", {"count": 12}, 0),
        (NATIVE, "4.3.6", {"count": 12}, 0),
    ],
)
def test_losses_are_counted_where_the_queue_can_tell_them_from_hand_backs(
    settings: QueueSettings, version: str, headers: dict[str, int], losses: int
) -> None:
    """With native retry they are failed attempts, which count by themselves. What no worker can have lost is none."""
    one = delivery(settings, version, **headers)
    assert _losses_of(one, one.receipt.source.traits) == losses


@pytest.mark.parametrize(("count", "delay"), [(0, 10.0), (1, 20.0), (2, 25.0), (9, 25.0)])
def test_the_delay_of_a_native_retry_is_the_one_that_the_queue_makes(count: int, delay: float) -> None:
    """One step longer for each failure, up to the longest: what the log says is what happens."""
    how, told = at_once(delivery(NATIVE, "4.3.6", count=count), LATER) or (None, None)
    assert how is Settling.REJECT
    assert isinstance(told, RetryLater)
    assert told.delay == delay


@pytest.mark.parametrize(
    ("settings", "version", "settlement"),
    [
        (NATIVE, "4.0.5", LATER),  # older servers accept the arguments and ignore them: a reject would spin
        (QueueSettings(), "4.3.6", LATER),
        (NATIVE, "4.3.6", RetryLater(1.0, 2, explicit=True, cause=CAUSE)),
        (NATIVE, "4.3.6", RetryLater(1.0, 2, explicit=False, cause=CAUSE, alone=True)),
        (NATIVE, "4.3.6", DeadLetter(CAUSE)),
        (QueueSettings(), "4.3.6", Release(1.0, 2)),
        (QueueSettings(), "4.3.6", Acknowledge((Outgoing("", "next", b"", b""),))),
    ],
)
def test_what_must_be_published_first_is_not_settled_at_once(
    settings: QueueSettings, version: str, settlement: Any
) -> None:
    """The original is kept until the broker has the copy."""
    assert at_once(delivery(settings, version), settlement) is None


def test_an_acknowledgement_is_settled_at_once() -> None:
    """Also one that is not the common object."""
    for settlement in (ACKNOWLEDGE, Acknowledge()):
        assert at_once(delivery(QueueSettings(), "4.3.6"), settlement) == (Settling.ACK, settlement)


def test_rejected_messages_are_named_one_by_one() -> None:
    """basic.reject has no `multiple`: of a run each is sent, and none twice."""
    sent: list[Any] = []
    channel: Any = SimpleNamespace(settle=lambda how, frames: sent.append((how, frames)))
    source: Any = SimpleNamespace(catch_up_if_due=lambda: None)
    source.incarnation = incarnation = Incarnation(source, channel)
    incarnation.unacked.add(1, 3)
    failed = [Delivery("jobs", "", "jobs", False, 1, b"", b"", incarnation, tag) for tag in (1, 2, 2)]
    incarnation.settle(Settling.REJECT, failed)
    incarnation.settle(Settling.ACK, [Delivery("jobs", "", "jobs", False, 1, b"", b"", incarnation, 3)])
    assert sent == [(Settling.REJECT, [(1, False), (2, False)]), (Settling.ACK, [(3, False)])]
