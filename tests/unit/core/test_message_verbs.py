"""The verbs of a message: one of them, once."""

import math
from collections.abc import Callable

import pytest

from workerkit import AlreadySettled, Cause, MessageAdapter, Reason, RejectMessage, RetryMessage, UndecodableBody
from workerkit.settlement import ACK, RELEASE, Outcome, Verb

VERBS = [
    pytest.param(MessageAdapter.ack, Verb.ACK, id="ack"),
    pytest.param(MessageAdapter.nack, Verb.NACK, id="nack"),
    pytest.param(MessageAdapter.retry, Verb.RETRY, id="retry"),
    pytest.param(lambda message: message.reject("bad"), Verb.REJECT, id="reject"),
    pytest.param(MessageAdapter.release, Verb.RELEASE, id="release"),
]


@pytest.mark.parametrize(("call", "verb"), VERBS)
def test_each_verb_sends_its_outcome(
    call: Callable[[MessageAdapter], None], verb: Verb, message: MessageAdapter, sent: list[Outcome]
) -> None:
    """One verb, one settlement on the wire."""
    assert not message.settled
    call(message)
    assert [outcome.verb for outcome in sent] == [verb]
    assert message.settled


@pytest.mark.parametrize(("first", "first_verb"), VERBS)
@pytest.mark.parametrize(("second", "second_verb"), VERBS)
def test_a_second_verb_raises_and_sends_nothing(
    first: Callable[[MessageAdapter], None],
    first_verb: Verb,
    second: Callable[[MessageAdapter], None],
    second_verb: Verb,
    message: MessageAdapter,
    sent: list[Outcome],
) -> None:
    """Whatever the two are, the first one stands, and the error names both."""
    first(message)
    with pytest.raises(AlreadySettled) as raised:
        second(message)
    assert f"{second_verb.name.lower()}()" in str(raised.value)
    assert f"{first_verb.name.lower()}()" in str(raised.value)
    assert [outcome.verb for outcome in sent] == [first_verb]


def test_ack_and_release_say_no_more_than_that(message: MessageAdapter, sent: list[Outcome]) -> None:
    """Neither has a cause: nothing failed."""
    message.ack()
    assert sent == [ACK]
    assert RELEASE.cause is None


def test_nack_and_retry_blame_the_worker_that_called_them(make_message, sent: list[Outcome]) -> None:
    """Without a death the reason is that the verb was called."""
    make_message().nack()
    make_message().retry(2.5)
    assert [outcome.cause for outcome in sent] == [
        Cause(Reason.NACKED, "nack() was called"),
        Cause(Reason.NACKED, "retry() was called"),
    ]
    assert [outcome.delay for outcome in sent] == [None, 2.5]


def test_after_blame_nack_and_retry_name_the_death_and_reject_keeps_its_own_reason(
    make_message, sent: list[Outcome]
) -> None:
    """What shutdown() settles carries the cause of the death, unless it gives a reason itself."""
    death = Cause(Reason.SIGNAL, "killed by signal 9 (SIGKILL)", signal=9)
    for verb in ("nack", "retry", "reject"):
        message = make_message()
        message.blame(death)
        getattr(message, verb)(*(["too big"] if verb == "reject" else []))
    assert [outcome.cause for outcome in sent] == [death, death, Cause(Reason.REJECTED, "too big")]


@pytest.mark.parametrize("delay", [-1, math.inf, math.nan, 50 * 86_400])
def test_a_delay_that_no_broker_can_wait_is_refused_before_anything_is_sent(
    delay: float, message: MessageAdapter, sent: list[Outcome]
) -> None:
    """RabbitMQ refuses a TTL over 49 days: the message would wait in the worker for a publish that never succeeds."""
    with pytest.raises(ValueError, match="from 0 to 4233600"):
        message.retry(delay)
    with pytest.raises(ValueError, match="from 0 to 4233600"):
        RetryMessage(delay)
    assert not message.settled
    assert sent == []


def test_a_message_knows_where_it_comes_from(message: MessageAdapter) -> None:
    """The facts of the delivery, as the broker said them."""
    facts = (message.queue, message.exchange, message.routing_key, message.redelivered, message.attempt)
    assert facts == ("jobs", "images", "uploaded.png", True, 2)
    assert repr(message) == "<MessageAdapter queue='jobs' attempt=2 2 bytes, unsettled>"


def test_a_retried_message_says_where_it_was_first_published(make_message) -> None:
    """A copy goes through the default exchange; callbacks that look at the routing key must not notice."""
    message = make_message(headers={"workerkit-exchange": "first", "workerkit-routing-key": "key.one"})
    assert (message.exchange, message.routing_key) == ("first", "key.one")


def test_properties_are_read_only_when_somebody_asks(make_message, sent: list[Outcome]) -> None:
    """Broken headers do not stop a callback that never looks at them."""
    message = make_message(b"1", raw=b"\x20\x00\xff")
    assert message.body == b"1"
    with pytest.raises(ValueError, match="cut off"):
        _ = message.headers
    message.ack()
    assert sent == [ACK]


def test_data_is_decoded_once_and_a_body_that_lies_is_undecodable(make_message) -> None:
    """The same object each time; what is not JSON raises UndecodableBody each time."""
    message = make_message(b'{"a": [1]}')
    assert message.data == {"a": [1]}
    assert message.data is message.data
    broken = make_message(b"{", message_id="m", correlation_id="c")
    for _ in range(2):
        with pytest.raises(UndecodableBody):
            _ = broken.data
    assert (broken.message_id, broken.correlation_id) == ("m", "c")


def test_a_cause_holds_only_text_that_can_travel() -> None:
    """Surrogates and subclasses of str out of a user's exception must not keep the cause from the dead letter."""

    class Text(str):
        __slots__ = ()

    cause = Cause(Reason.EXCEPTION, Text("bad name \udcff"), Text("x"), "\ud800")
    assert (cause.message, cause.exception, cause.traceback) == ("bad name \\udcff", "x", "\\ud800")
    assert all(type(text) is str for text in (cause.message, cause.exception, cause.traceback))


def test_reject_message_keeps_its_reason() -> None:
    """Raised instead of called, it says the same."""
    assert str(RejectMessage("no such user")) == RejectMessage("no such user").reason == "no such user"
