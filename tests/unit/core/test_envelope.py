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
from workerkit.brokers.rabbitmq.wire import PROPERTIES_LIMIT, is_not_for_copies, returns_of
from workerkit.envelope import attempt_of, dead_letter, is_alone, released_copy, replayed, retry_copy
from workerkit.message import Incoming
from workerkit.properties import decode, decode_headers, encode
from workerkit.settlement import HAND_BACK, Release, RetryLater

FRAME_MAX = 131_072
FRAME_OVERHEAD = 7 + 1 + 12  # frame header and end, class, weight and body size
CAUSE = Cause(Reason.EXCEPTION, "no such file", "FileNotFoundError", "Traceback …")
THIRD = RetryLater(5.0, 3, explicit=False, cause=CAUSE)
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


def delivery(raw: bytes | None = None, **properties: Any) -> Incoming:
    return Incoming(
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
    pytest.param(lambda delivery: retry_copy(delivery, THIRD, drop=is_not_for_copies), id="retry"),
    pytest.param(lambda delivery: released_copy(delivery, Release(2.0, 2), drop=is_not_for_copies), id="release"),
    pytest.param(lambda delivery: dead_letter(delivery, CAUSE, "worker", drop=is_not_for_copies), id="dead letter"),
    pytest.param(lambda delivery: replayed(delivery.raw_properties, drop=is_not_for_copies), id="replay"),
    pytest.param(lambda delivery: released_copy(delivery, HAND_BACK, losses=0, drop=is_not_for_copies), id="renewal"),
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
    headers = decode_headers(retry_copy(delivery(), THIRD))
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
    first = decode_headers(retry_copy(delivery(), THIRD))
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
    assert attempt_of(replayed(letter.raw_properties)) == 1


@given(
    own=st.integers(0, FRAME_MAX - FRAME_OVERHEAD - 100),
    traceback=st.sampled_from(["", "x" * 100_000, "é" * 100_000, "\U0001f600" * 50_000]),
    message=st.sampled_from(["", "x" * 100_000, "\U0001f600" * 5_000]),
)
def test_a_copy_always_fits_its_frame(own: int, traceback: str, message: str) -> None:
    """A bigger one closes the whole connection with 501: of a long traceback the end is kept, where the error is."""
    original = delivery(headers={"mine": b"x" * own}, message_id="m1")
    cause = Cause(Reason.EXCEPTION, message, "E" * 5000, traceback and traceback + "THE END")
    copies = (
        dead_letter(original, cause, "w", limit=PROPERTIES_LIMIT),
        retry_copy(original, THIRD, limit=PROPERTIES_LIMIT),
    )
    for copy in copies:
        assert len(copy) + FRAME_OVERHEAD <= FRAME_MAX
        assert decode(copy).message_id == "m1"
        headers = decode_headers(copy)
        assert ("mine" in headers) != ("workerkit-headers-dropped" in headers)
    if traceback and own < 50_000:
        assert decode_headers(dead_letter(original, cause, "w", limit=PROPERTIES_LIMIT))[
            "workerkit-traceback"
        ].endswith("THE END")


@pytest.mark.parametrize("raw", [b"", b"\x20\x00\xff", b"\x20\x00\x00\x00\x00\x03\x01k?"])
def test_a_message_whose_properties_cannot_be_read_is_still_kept(raw: bytes) -> None:
    """An error here would leave it unsettled, restart the worker, and meet it again."""
    headers = decode_headers(dead_letter(delivery(raw=raw), CAUSE, "w"))
    assert headers["workerkit-reason"] == "exception"
    assert headers["workerkit-headers-dropped"]
    assert attempt_of(retry_copy(delivery(raw=raw), THIRD)) == 3
    assert attempt_of(released_copy(delivery(raw=raw), HAND_BACK, losses=0)) == 2


def test_headers_of_ours_with_strange_values_do_no_harm() -> None:
    """Anybody can publish them."""
    strange = delivery(headers=dict.fromkeys(("workerkit-exchange", "workerkit-first-failed-at"), "x" * 40000))
    assert len(decode_headers(retry_copy(strange, THIRD))["workerkit-exchange"]) == 255


def test_a_released_message_stays_the_same_attempt_and_counts_its_releases() -> None:
    """The brake of the next release reads the count."""
    headers = decode_headers(released_copy(delivery(), Release(4.0, 3), losses=2))
    assert headers == {
        "workerkit-attempt": 2,
        "workerkit-releases": 3,
        "workerkit-losses": 2,
        "workerkit-exchange": "images",
        "workerkit-routing-key": "uploaded.png",
    }


def test_a_message_that_must_run_alone_does_so_in_every_further_copy() -> None:
    """Also when a later attempt fails without killing anybody."""
    original = delivery()
    assert not is_alone(original.raw_properties)
    killed = retry_copy(original, RetryLater(5.0, 3, explicit=False, cause=CAUSE, alone=True))
    assert is_alone(killed)
    assert is_alone(retry_copy(delivery(raw=killed), THIRD))
    assert is_alone(released_copy(delivery(raw=killed), Release(1.0, 1)))
    assert not is_alone(replayed(killed))


def test_losses_are_carried_on_by_copies_that_count_none() -> None:
    """And a copy that counts replaces the number."""
    lost = released_copy(delivery(), HAND_BACK, losses=7)
    assert decode_headers(lost)["workerkit-losses"] == 7
    assert decode_headers(retry_copy(delivery(raw=lost), THIRD))["workerkit-losses"] == 7
    assert decode_headers(retry_copy(delivery(raw=lost), THIRD, losses=8))["workerkit-losses"] == 8
    assert "workerkit-losses" not in decode_headers(released_copy(delivery(), HAND_BACK, losses=0))


@pytest.mark.parametrize(
    ("headers", "attempt", "returns"),
    [
        ({}, 1, 0),
        ({"workerkit-attempt": 4}, 4, 0),
        ({"x-delivery-count": 2}, 1, 2),
        ({"workerkit-attempt": 2, "x-delivery-count": 3}, 2, 3),
        ({"workerkit-attempt": 0}, 1, 0),
        ({"workerkit-attempt": -5}, 1, 0),
        ({"workerkit-attempt": 2**40}, 1, 0),
        ({"workerkit-attempt": "3"}, 1, 0),
        ({"workerkit-attempt": 2.0}, 1, 0),
        ({"workerkit-attempt": None, "x-delivery-count": -1}, 1, 0),
        ({"workerkit-attempt": [1], "x-delivery-count": "many"}, 1, 0),
    ],
)
def test_numbers_in_headers_that_make_no_sense_count_as_nothing(
    headers: dict[str, Any], attempt: int, returns: int
) -> None:
    """Anybody can publish them."""
    raw = encode(Properties(headers=headers))
    assert attempt_of(raw) == attempt
    assert returns_of(raw) == returns


@given(st.binary(max_size=60))
def test_the_attempt_of_garbage_is_the_first(garbage: bytes) -> None:
    """It is found out per delivery, before anybody could handle an error."""
    table = b"\x11workerkit-attempt" + garbage
    for raw in (garbage, b"\x20\x00" + struct.pack(">I", len(table)) + table):
        assert attempt_of(raw) >= 1
