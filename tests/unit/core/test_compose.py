"""``compose`` makes a message out of what a publisher says, or says in one line why it cannot."""

import time
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workerkit.outgoing import PROPERTIES_LIMIT, Outgoing, compose
from workerkit.properties import Properties, decode


@dataclass
class Order:
    number: int
    at: datetime


def test_data_is_json_that_survives_restarts_and_can_be_recognised() -> None:
    """Persistent, with a content type, an id of its own and the time."""
    before = int(time.time())
    message = compose("orders", Order(7, datetime(2026, 1, 2, tzinfo=UTC)))
    properties = decode(message.raw_properties)
    assert message.body == b'{"number":7,"at":"2026-01-02T00:00:00Z"}'
    assert (message.exchange, message.routing_key, message.delay) == ("", "orders", None)
    assert (properties.content_type, properties.delivery_mode) == ("application/json", 2)
    assert uuid.UUID(properties.message_id).hex == properties.message_id
    assert before <= properties.timestamp <= time.time()
    assert compose("orders").raw_properties != message.raw_properties


def test_everything_that_is_given_is_in_the_message() -> None:
    """And an expiration, in seconds like all of our times, is in milliseconds on the wire."""
    message = compose(
        None,
        body=bytearray(b"raw"),
        exchange="images",
        routing_key="uploaded.png",
        headers={"tenant": "acme", "rank": 0.5},
        message_id="m1",
        correlation_id="c1",
        content_type="image/png",
        priority=3,
        type="upload",
        app_id="shop",
        reply_to="answers",
        expiration=1.5,
        timestamp=12,
    )
    assert message == Outgoing("images", "uploaded.png", message.raw_properties, b"raw")
    assert decode(message.raw_properties) == Properties(
        content_type="image/png",
        headers={"tenant": "acme", "rank": 0.5},
        delivery_mode=2,
        priority=3,
        correlation_id="c1",
        reply_to="answers",
        expiration="1500",
        message_id="m1",
        timestamp=12,
        type="upload",
        app_id="shop",
    )


def test_no_body_is_a_null_and_an_empty_one_is_empty() -> None:
    """Bytes have no content type unless one is given: nobody guesses what they are."""
    assert compose("q").body == b"null"
    empty = compose("q", body=b"")
    assert (empty.body, decode(empty.raw_properties).content_type) == (b"", None)


@pytest.mark.parametrize(("delay", "kept"), [(None, None), (0, None), (10, 10.0), (0.5, 0.5)])
def test_a_delay_is_kept_as_seconds(delay: float | None, kept: float | None) -> None:
    """No delay and a delay of nothing are the same."""
    assert compose("q", 1, delay=delay).delay == kept


@pytest.mark.parametrize(
    ("arguments", "kind", "said"),
    [
        ({"queue": None}, ValueError, "needs a queue, or an exchange"),
        ({"queue": ""}, ValueError, "name of a queue has 1 to 255 bytes, not 0"),
        ({"queue": b"q"}, TypeError, "name of a queue must be text"),
        ({"queue": "q", "exchange": "x"}, ValueError, "not for both"),
        ({"queue": "q", "routing_key": "k"}, ValueError, "not for both"),
        ({"queue": "q" * 256}, ValueError, "name of a queue has 1 to 255 bytes, not 256"),
        ({"queue": "\ud800"}, ValueError, "cannot be written as UTF-8"),
        ({"queue": None, "exchange": "ö" * 128}, ValueError, "0 to 255 bytes, not 256"),
        ({"queue": None, "exchange": "x", "delay": 1}, ValueError, "a delay needs a queue"),
        ({"queue": "q", "delay": -1}, ValueError, "number of seconds from 0"),
        ({"queue": "q", "delay": 50 * 86_400}, ValueError, "49 days"),
        ({"queue": "q", "delay": 1, "expiration": 5}, ValueError, "cannot expire"),
        ({"queue": "q", "data": 1, "body": b"1"}, TypeError, "data or a body, not both"),
        ({"queue": "q", "body": "text"}, TypeError, "a body must be bytes, not str"),
        ({"queue": "q", "data": object()}, TypeError, "cannot be written as JSON"),
        ({"queue": "q", "data": {"n": "\ud800"}}, TypeError, "cannot be written as JSON"),
        ({"queue": "q", "headers": {"x-death": 1}}, ValueError, "'x-death'"),
        ({"queue": "q", "headers": {"X-Delay": 1}}, ValueError, "'X-Delay'"),
        ({"queue": "q", "headers": {"Workerkit-Attempt": 9}}, ValueError, "'Workerkit-Attempt'"),
        ({"queue": "q", "headers": {"CC": ["other"]}}, ValueError, "'CC'"),
        ({"queue": "q", "headers": {1: "x"}}, TypeError, "name of a header must be text"),
        ({"queue": "q", "headers": {"a": {1: "x"}}}, TypeError, "names in a header must be text"),
        ({"queue": "q", "headers": {"a": object()}}, ValueError, "a header cannot hold object"),
        ({"queue": "q", "headers": {"a": "v" * PROPERTIES_LIMIT}}, ValueError, "100000 fit"),
        ({"queue": "q", "message_id": 7}, TypeError, "message_id must be text, not 7"),
        ({"queue": "q", "correlation_id": "c" * 256}, ValueError, "correlation_id has 0 to 255 bytes"),
        ({"queue": "q", "priority": 256}, ValueError, "priority must be from 0 to 255"),
        ({"queue": "q", "priority": True}, TypeError, "priority must be a whole number"),
        ({"queue": "q", "timestamp": 1.5}, TypeError, "timestamp must be a whole number"),
        ({"queue": "q", "expiration": -1}, ValueError, "an expiration is a number of seconds from 0 to 4233600"),
        ({"queue": "q", "expiration": float("inf")}, ValueError, "from 0 to 4233600"),
        ({"queue": "q", "expiration": "5s"}, ValueError, "number of seconds"),
    ],
)
def test_what_cannot_be_sent_is_refused_in_one_line(arguments: dict, kind: type[Exception], said: str) -> None:
    """Before anything is connected: the broker would close the connection of everybody who shares it."""
    with pytest.raises(kind, match=said) as refused:
        compose(**arguments)
    assert type(refused.value) is kind
    assert "\n" not in str(refused.value)


@given(st.recursive(st.none() | st.booleans() | st.text() | st.floats(allow_nan=False), st.lists))
def test_whatever_a_header_holds_is_sent_or_refused(value: object) -> None:
    """No other error comes out."""
    try:
        message = compose("q", headers={"given": value})
    except (ValueError, TypeError):
        return
    assert decode(message.raw_properties).headers == {"given": value}
