"""Messages that a callback publishes with its acknowledgement."""

import time

import pytest

from workerkit import AlreadySettled, Cause, MessageAdapter, Properties, Reason
from workerkit.properties import decode
from workerkit.settlement import ACK, Outcome, Verb

TRACE = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "baggage": "user=7"}


def published(sent: list[Outcome]) -> list[Properties]:
    (outcome,) = sent
    assert outcome.verb is Verb.ACK
    return [decode(message.raw_properties) for message in outcome.publish]


def test_what_is_published_goes_with_the_acknowledgement(make_message, sent: list[Outcome]) -> None:
    """Nothing before it; all of it in its order, with where it goes and when."""
    message = make_message(message_id="m1")
    message.publish("next", {"path": "a.png"}, delay=10)
    message.publish(None, body=b"raw", exchange="images", routing_key="resized.png")
    assert sent == []
    message.ack()
    (outcome,) = sent
    assert outcome.verb is Verb.ACK
    assert [(one.exchange, one.routing_key, one.body, one.delay) for one in outcome.publish] == [
        ("", "next", b'{"path":"a.png"}', 10.0),
        ("images", "resized.png", b"raw", None),
    ]


def test_auto_ack_publishes_too(make_message, sent: list[Outcome]) -> None:
    """It settles by the outcome instead of the verb."""
    message = make_message()
    message.publish("next", 1)
    message.settle(ACK)
    assert len(published(sent)) == 1


@pytest.mark.parametrize(
    "settle",
    [
        MessageAdapter.nack,
        MessageAdapter.retry,
        MessageAdapter.release,
        lambda message: message.reject("no"),
        lambda message: message.settle(Outcome(Verb.NACK, cause=Cause(Reason.EXCEPTION, "x"))),
    ],
    ids=["nack", "retry", "release", "reject", "exception"],
)
def test_with_any_other_outcome_nothing_is_published(settle, make_message, sent: list[Outcome]) -> None:
    """The attempt did not succeed, so what comes after it must not begin."""
    message = make_message()
    message.publish("next", 1)
    settle(message)
    assert sent[0].publish == ()


def test_publishing_after_a_verb_is_an_error(message: MessageAdapter, sent: list[Outcome]) -> None:
    """It could not go with anything any more."""
    message.ack()
    with pytest.raises(AlreadySettled, match=r"publish\(\) was called on a message that was settled with ack\(\)"):
        message.publish("next", 1)
    assert sent == [ACK]


def test_a_repeat_can_be_recognised_by_its_id(make_message, sent: list[Outcome]) -> None:
    """The ids are counted from the id of the cause, so another attempt at it gives the same ones."""
    for _ in range(2):
        sent.clear()
        message = make_message(message_id="m1")
        message.publish("next", 1)
        message.publish("next", 2, message_id="mine")
        message.publish("next", 3)
        message.ack()
        assert [properties.message_id for properties in published(sent)] == ["m1/1", "mine", "m1/3"]


def test_an_id_that_has_become_too_long_is_shortened_to_the_same_one_each_time(
    make_message, sent: list[Outcome]
) -> None:
    """A message that publishes its own successor, for ever: each id is longer than the one before."""
    ids = set()
    for _ in range(2):
        sent.clear()
        message = make_message(message_id="ä" * 127)
        message.publish("next", 1)
        message.ack()
        ids.update(properties.message_id for properties in published(sent))
    (message_id,) = ids
    assert len(message_id) == 32


def test_without_an_id_of_its_cause_a_message_has_a_random_one(make_message, sent: list[Outcome]) -> None:
    """There is nothing to count from."""
    message = make_message()
    message.publish("next", 1)
    message.publish("next", 2)
    message.ack()
    assert len({properties.message_id for properties in published(sent)} - {None}) == 2


@pytest.mark.parametrize(
    ("cause", "given", "expected"),
    [
        ({"correlation_id": "c", "message_id": "m"}, None, "c"),
        ({"message_id": "m"}, None, "m"),
        ({}, None, None),
        ({"correlation_id": "c"}, "mine", "mine"),
    ],
)
def test_what_belongs_together_keeps_one_correlation_id(
    cause: dict[str, str], given: str | None, expected: str | None, make_message, sent: list[Outcome]
) -> None:
    """The cause's, or the cause's own id when it is the first of a chain."""
    message = make_message(**cause)
    message.publish("next", 1, correlation_id=given)
    message.ack()
    assert published(sent)[0].correlation_id == expected


def test_the_trace_goes_on(make_message, sent: list[Outcome]) -> None:
    """W3C's headers and no others; a header that is given wins."""
    message = make_message(headers={**TRACE, "tenant": "a"})
    message.publish("next", 1, headers={"mine": 2})
    message.publish("next", 1, headers={"baggage": "user=8"})
    message.ack()
    assert [properties.headers for properties in published(sent)] == [
        {**TRACE, "mine": 2},
        {**TRACE, "baggage": "user=8"},
    ]


def test_what_cannot_be_published_raises_at_once_and_leaves_the_rest(make_message, sent: list[Outcome]) -> None:
    """The error shows the line in the callback, not a failure after its end."""
    message = make_message(message_id="m")
    message.publish("next", 1)
    with pytest.raises(TypeError, match="cannot be written as JSON"):
        message.publish("next", object())
    with pytest.raises(ValueError, match="delay needs a queue"):
        message.publish(None, 1, exchange="images", delay=1)
    with pytest.raises(TypeError, match="colour"):
        message.publish("next", 1, colour="red")
    message.publish("next", 2, priority=3)
    message.ack()
    assert [(one.message_id, one.priority) for one in published(sent)] == [("m/1", None), ("m/2", 3)]


def test_a_message_knows_its_age_when_its_publisher_said_when(make_message) -> None:
    """In seconds; a publisher whose clock is ahead does not make it negative."""
    assert make_message().age is None
    assert 59 <= make_message(timestamp=int(time.time()) - 60).age <= 62
    assert make_message(timestamp=int(time.time()) + 60).age == 0.0


def test_a_message_says_when_it_is_lost(message: MessageAdapter, handle) -> None:
    """Asked each time: it happens while the callback runs."""
    assert not message.lost
    handle.lost = True
    assert message.lost
