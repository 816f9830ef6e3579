"""The copies of a message that we publish: what they keep, what they must not carry, what they say."""

import os
import socket
import struct
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workerkit import Cause, Properties, Reason
from workerkit.properties import decode, decode_headers, encode
from workerkit.worker.copies import RENEW_AFTER, attempt_of, dead_letter, is_worn, renewed, replayed, retry_copy
from workerkit.worker.ports import Delivery

FRAME_MAX = 131_072
FRAME_OVERHEAD = 7 + 1 + 12  # frame header and end, class, weight and body size
CAUSE = Cause(Reason.EXCEPTION, "no such file", "FileNotFoundError", "Traceback …")
FROM_BROKERS: dict[str, Any] = {
    "x-death": [{"count": 1}],
    "x-first-death-queue": "q",
    "x-last-death-reason": "expired",
    "x-delivery-count": 3,
    "x-acquired-count": 3,
    "x-delay": 5,
    "CC": ["other"],
    "BCC": ["other"],
}


def delivery(raw: bytes | None = None, **properties: Any) -> Delivery:
    return Delivery(
        queue="jobs",
        exchange="images",
        routing_key="uploaded.png",
        redelivered=False,
        attempt=2,
        raw_properties=encode(Properties(**properties)) if raw is None else raw,
        body=b"{}",
    )


def moment(text: object) -> datetime:
    assert isinstance(text, str)
    return datetime.fromisoformat(text)


COPIES = [
    pytest.param(lambda delivery: retry_copy(delivery, 3), id="retry"),
    pytest.param(lambda delivery: dead_letter(delivery, CAUSE, "worker"), id="dead letter"),
    pytest.param(lambda delivery: replayed(delivery.raw_properties), id="replay"),
    pytest.param(renewed, id="renewal"),
]


@pytest.mark.parametrize("copy", COPIES)
def test_what_brokers_wrote_about_the_original_is_not_about_the_copy(copy) -> None:
    """Counters would count twice, CC and BCC would deliver twice, an expiration would delete it where it waits."""
    original = delivery(
        headers={**FROM_BROKERS, "mine": 1.5, "x-mine": b"\x00"},
        expiration="1000",
        user_id="guest",
        delivery_mode=1,
        message_id="m1",
        reply_to="answers",
        priority=5,
    )
    properties = decode(copy(original))
    assert {name: value for name, value in properties.headers.items() if not name.startswith("workerkit-")} == {
        "mine": 1.5,
        "x-mine": b"\x00",
    }
    assert (properties.expiration, properties.user_id, properties.delivery_mode) == (None, None, 2)
    assert (properties.message_id, properties.reply_to, properties.priority) == ("m1", "answers", 5)


def test_a_retry_says_its_attempt_and_where_it_came_from() -> None:
    """The copy itself goes through the default exchange."""
    before = datetime.now(UTC).replace(microsecond=0)
    headers = decode_headers(retry_copy(delivery(), 3))
    assert moment(headers.pop("workerkit-first-failed-at")) >= before
    assert headers == {
        "workerkit-attempt": 3,
        "workerkit-exchange": "images",
        "workerkit-routing-key": "uploaded.png",
    }


def test_a_dead_letter_tells_the_whole_story() -> None:
    """Every header of the design, and none that is empty."""
    headers = decode_headers(dead_letter(delivery(), CAUSE, "thumbnail"))
    first, last = moment(headers.pop("workerkit-first-failed-at")), moment(headers.pop("workerkit-failed-at"))
    assert first <= last
    assert headers == {
        "workerkit-reason": "exception",
        "workerkit-message": "no such file",
        "workerkit-exception": "FileNotFoundError",
        "workerkit-traceback": "Traceback …",
        "workerkit-attempt": 2,
        "workerkit-queue": "jobs",
        "workerkit-worker": "thumbnail",
        "workerkit-host": socket.gethostname(),
        "workerkit-pid": os.getpid(),
        "workerkit-exchange": "images",
        "workerkit-routing-key": "uploaded.png",
    }
    killed = decode_headers(dead_letter(delivery(), Cause(Reason.SIGNAL, "killed", signal=9), "thumbnail"))
    assert killed["workerkit-signal"] == 9
    exited = decode_headers(dead_letter(delivery(), Cause(Reason.EXIT, "exited", exit_code=0), "thumbnail"))
    assert exited["workerkit-exit-code"] == 0
    assert not {"workerkit-exception", "workerkit-traceback", "workerkit-signal"} & exited.keys()


def test_the_first_failure_and_the_first_address_survive_every_further_copy() -> None:
    """From copy to copy to dead letter."""
    first = decode_headers(retry_copy(delivery(), 2))
    second = delivery(headers=first)
    second.exchange, second.routing_key = "", "jobs"
    headers = decode_headers(dead_letter(second, CAUSE, "w"))
    for name in ("workerkit-first-failed-at", "workerkit-exchange", "workerkit-routing-key"):
        assert headers[name] == first[name]


def test_a_replayed_message_is_a_first_attempt_again() -> None:
    """Its story is gone, its first address stays."""
    letter = delivery(raw=dead_letter(delivery(headers={"mine": 1}), CAUSE, "w"))
    headers = decode_headers(replayed(letter.raw_properties))
    assert headers.keys() == {"mine", "workerkit-exchange", "workerkit-routing-key", "workerkit-replayed-at"}
    assert attempt_of(replayed(letter.raw_properties), native=False) == 1


@given(
    own=st.integers(0, FRAME_MAX - FRAME_OVERHEAD - 100),
    traceback=st.sampled_from(["", "x" * 100_000, "é" * 100_000, "\U0001f600" * 50_000]),
    message=st.sampled_from(["", "x" * 100_000, "\U0001f600" * 5_000]),
)
def test_a_copy_always_fits_its_frame(own: int, traceback: str, message: str) -> None:
    """A bigger one closes the whole connection with 501: of a long traceback the end is kept, where the error is."""
    original = delivery(headers={"mine": b"x" * own}, message_id="m1")
    cause = Cause(Reason.EXCEPTION, message, "E" * 5000, traceback and traceback + "THE END")
    for copy in (dead_letter(original, cause, "w"), retry_copy(original, 3)):
        assert len(copy) + FRAME_OVERHEAD <= FRAME_MAX
        assert decode(copy).message_id == "m1"
        headers = decode_headers(copy)
        assert ("mine" in headers) != ("workerkit-headers-dropped" in headers)
    if traceback and own < 50_000:
        assert decode_headers(dead_letter(original, cause, "w"))["workerkit-traceback"].endswith("THE END")


@pytest.mark.parametrize("raw", [b"", b"\x20\x00\xff", b"\x20\x00\x00\x00\x00\x03\x01k?"])
def test_a_message_whose_properties_cannot_be_read_is_still_kept(raw: bytes) -> None:
    """An error here would leave it unsettled, restart the worker, and meet it again."""
    headers = decode_headers(dead_letter(delivery(raw=raw), CAUSE, "w"))
    assert headers["workerkit-reason"] == "exception"
    assert headers["workerkit-headers-dropped"]
    assert attempt_of(retry_copy(delivery(raw=raw), 3), native=False) == 3
    assert attempt_of(renewed(delivery(raw=raw)), native=False) == 2


def test_headers_of_ours_with_strange_values_do_no_harm() -> None:
    """Anybody can publish them."""
    strange = delivery(headers=dict.fromkeys(("workerkit-exchange", "workerkit-first-failed-at"), "x" * 40000))
    assert len(decode_headers(retry_copy(strange, 3))["workerkit-exchange"]) == 255


@pytest.mark.parametrize(
    ("headers", "attempt", "native_attempt"),
    [
        ({}, 1, 1),
        ({"workerkit-attempt": 4}, 4, 4),
        ({"x-delivery-count": 2}, 1, 3),
        ({"workerkit-attempt": 2, "x-delivery-count": 2}, 2, 4),
        ({"workerkit-attempt": 0}, 1, 1),
        ({"workerkit-attempt": -5}, 1, 1),
        ({"workerkit-attempt": 2**40}, 1, 1),
        ({"workerkit-attempt": "3"}, 1, 1),
        ({"workerkit-attempt": 2.0}, 1, 1),
        ({"workerkit-attempt": None, "x-delivery-count": -1}, 1, 1),
        ({"workerkit-attempt": [1], "x-delivery-count": "many"}, 1, 1),
    ],
)
def test_the_attempt_is_counted_by_our_header_and_where_there_is_no_copy_by_the_broker(
    headers: dict[str, Any], attempt: int, native_attempt: int
) -> None:
    """Values that make no sense count as nothing."""
    raw = encode(Properties(headers=headers))
    assert attempt_of(raw, native=False) == attempt
    assert attempt_of(raw, native=True) == native_attempt


@pytest.mark.parametrize(
    ("count", "worn"), [(RENEW_AFTER, True), (RENEW_AFTER - 1, False), ("many", False), (None, False)]
)
def test_a_message_that_came_back_too_often_is_worn_and_its_copy_is_new(count: object, worn: bool) -> None:
    """The broker's limit would drop it without a trace; the copy counts no attempt and no return."""
    original = delivery(headers={"x-delivery-count": count})
    assert is_worn(original.raw_properties) is worn
    copy = renewed(original)
    assert not is_worn(copy)
    assert attempt_of(copy, native=False) == original.attempt
    assert not is_worn(b"x-delivery-count")


@given(st.binary(max_size=60))
def test_the_attempt_of_garbage_is_the_first(garbage: bytes) -> None:
    """It is found out per delivery, before anybody could handle an error."""
    table = b"\x11workerkit-attempt" + garbage
    for raw in (garbage, b"\x20\x00" + struct.pack(">I", len(table)) + table):
        assert attempt_of(raw, native=False) >= 1
        assert attempt_of(raw, native=True) >= 1
