"""The port: what becomes of a message when it is settled."""

from __future__ import annotations

import asyncio
import time

import pytest
from contract.peer import Peer, bodies
from contract.worlds import World

from workerkit import envelope
from workerkit.outgoing import Outgoing
from workerkit.ports import Delivery
from workerkit.properties import Properties, decode, decode_headers, encode
from workerkit.settlement import ACKNOWLEDGE, HAND_BACK, Acknowledge, Cause, DeadLetter, Reason, Release, RetryLater

CAUSE = Cause(Reason.EXCEPTION, "no route", "OSError", "Traceback: …", exit_code=3, signal=9)
TOO_LATE = 8.0
"""Seconds by which a delayed message may be late on a busy machine."""
GRAIN = 0.005
"""Seconds by which the clocks of two processes may differ in what they call the same moment."""


def later(delay: float, attempt: int, *, explicit: bool = False, alone: bool = False) -> RetryLater:
    return RetryLater(delay, attempt, explicit, CAUSE, alone)


async def after(peer: Peer, moment: float) -> tuple[Delivery, float]:
    """The next delivery, and how long after that moment it came."""
    (delivery,) = await peer.delivered(1)
    return delivery, peer.arrival[id(delivery)] - moment


async def test_acknowledged_messages_are_gone(world: World) -> None:
    """One answer for each, in their order."""
    peer = await world.peer(window=9)
    world.put(b"m0", b"m1", b"m2")
    taken = await peer.delivered(3)
    peer.ack(*taken)
    await peer.answers()
    assert [(delivery.body, settlement) for delivery, settlement in peer.settled] == [
        (body, ACKNOWLEDGE) for body in (b"m0", b"m1", b"m2")
    ]
    await peer.close()
    assert world.take_all(world.queue) == []


async def test_a_batch_may_hold_all_kinds_of_settlements(world: World) -> None:
    """Each message has its own end, and its own answer."""
    peer = await world.peer(window=4)
    world.put(b"done", b"bad", b"later", b"back")
    done, bad, again, back = await peer.delivered(4)
    await peer.broker.take(world.queue, 0)
    for delivery in (done, bad, again, back):
        peer._handed_in[id(delivery)] += 1
    peer.broker.settle([(done, ACKNOWLEDGE), (bad, DeadLetter(CAUSE)), (again, later(0.2, 2)), (back, HAND_BACK)])
    await peer.answers()
    assert len(peer.settled) == 4
    assert (await world.dead())[0][0] == b"bad"
    await peer.broker.take(world.queue, 4)
    assert sorted(bodies(await peer.delivered(2))) == [b"back", b"later"]


async def test_attempts_are_counted_by_a_header_through_all_retries(world: World) -> None:
    """Where it was first published to and when it first failed stay with it, as do the publisher's own words."""
    peer = await world.peer(window=1)
    world.put(b"m", headers={"half": 0.5}, correlation_id="c")
    (delivery,) = await peer.delivered(1)
    peer.settle(later(0.2, 2), delivery)
    (second,) = await peer.delivered(1)
    peer.settle(later(0.4, 3), second)
    (third,) = await peer.delivered(1)
    assert [each.attempt for each in (delivery, second, third)] == [1, 2, 3]
    for copy in (second, third):
        properties = decode(copy.raw_properties)
        assert (copy.body, properties.correlation_id, properties.headers["half"]) == (b"m", "c", 0.5)
        if not world.native:
            assert properties.headers["workerkit-attempt"] == copy.attempt
            assert properties.headers["workerkit-exchange"] == ""
            assert properties.headers["workerkit-routing-key"] == world.queue
    if not world.native:
        failed = [decode_headers(copy.raw_properties)["workerkit-first-failed-at"] for copy in (second, third)]
        assert failed[0] == failed[1]
    peer.ack(third)
    await peer.answers()


async def test_a_retry_comes_after_its_delay_and_not_before(world: World) -> None:
    """The delay of the policy, or the broker's own where it delays by itself."""
    peer = await world.peer(window=1)
    world.put(b"m")
    (delivery,) = await peer.delivered(1)
    for attempt, delay in ((2, 0.2), (3, 0.4)):
        settlement, moment = later(delay, attempt), time.monotonic()
        peer.settle(settlement, delivery)
        delivery, waited = await after(peer, moment)
        least = world.least_delay(settlement)
        assert least - GRAIN <= waited <= least + TOO_LATE
        assert delivery.attempt == attempt


@pytest.mark.parametrize("delay", [0.0, 0.35])
async def test_a_retry_may_have_a_delay_of_its_own(world: World, delay: float) -> None:
    """One that no policy names."""
    peer = await world.peer(window=1)
    world.put(b"m")
    (delivery,) = await peer.delivered(1)
    moment = time.monotonic()
    peer.settle(later(delay, 2, explicit=True), delivery)
    copy, waited = await after(peer, moment)
    assert delay - GRAIN <= waited <= delay + TOO_LATE
    assert (copy.attempt, copy.body) == (2, b"m")


async def test_a_retry_joins_the_end_of_the_queue(world: World) -> None:
    """It is in nobody's way; meanwhile the others are worked on."""
    peer = await world.peer(window=1)
    world.put(b"m0")
    (delivery,) = await peer.delivered(1)
    peer.settle(later(0.2, 2), delivery)
    world.put(b"m1")
    peer.ack(await peer.has(b"m1"))
    await peer.has(b"m0")


async def test_a_message_that_must_run_alone_says_so_from_then_on(world: World) -> None:
    """Also through the retries after that."""
    peer = await world.peer(window=1)
    world.put(b"m")
    (delivery,) = await peer.delivered(1)
    assert not envelope.is_alone(delivery.raw_properties)
    for attempt, alone in ((2, True), (3, False)):
        peer.settle(later(0.2, attempt, alone=alone), delivery)
        (delivery,) = await peer.delivered(1)
        assert (delivery.attempt, envelope.is_alone(delivery.raw_properties)) == (attempt, True)


async def test_a_dead_letter_carries_the_whole_story(world: World) -> None:
    """What it was, what happened, to whom, where and when; the publisher's headers stay."""
    peer = await world.peer(window=1)
    world.put(b"m", headers={"mine": 1}, message_id="id")
    (delivery,) = await peer.delivered(1)
    peer.settle(later(0.2, 2), delivery)
    (delivery,) = await peer.delivered(1)
    peer.settle(DeadLetter(CAUSE), delivery)
    await peer.answers()
    ((body, headers),) = await world.dead()
    assert body == b"m"
    assert headers["mine"] == 1
    story = {name.removeprefix("workerkit-"): value for name, value in headers.items() if name.startswith("workerkit")}
    assert story.pop("failed-at") >= story.pop("first-failed-at")
    assert story.pop("host")
    assert story.pop("pid") > 0
    assert story == {
        "reason": "exception",
        "message": "no route",
        "exception": "OSError",
        "traceback": "Traceback: …",
        "exit-code": 3,
        "signal": 9,
        "attempt": 2,
        "queue": world.queue,
        "worker": "peer",
        "exchange": "",
        "routing-key": world.queue,
    }


async def test_a_released_message_may_come_back_later_as_the_same_attempt(world: World) -> None:
    """It counts how often that happened, so that the next release can wait longer."""
    peer = await world.peer(window=1)
    world.put(b"m", headers={"workerkit-attempt": 3})
    (delivery,) = await peer.delivered(1)
    for releases in (2, 3):
        moment = time.monotonic()
        peer.settle(Release(0.3, releases), delivery)
        delivery, waited = await after(peer, moment)
        assert 0.3 - GRAIN <= waited <= 0.3 + TOO_LATE
        assert delivery.attempt == 3
        assert decode_headers(delivery.raw_properties)["workerkit-releases"] == releases


async def test_a_big_body_survives_a_retry_and_a_dead_letter(world: World) -> None:
    """Bigger than what fits one frame of any protocol."""
    body = bytes(range(256)) * 1500
    peer = await world.peer(window=1)
    world.put(body, message_id="big")
    peer.settle(later(0.2, 2), await peer.has(body))
    peer.settle(DeadLetter(CAUSE), await peer.has(body))
    await peer.answers()
    assert (await world.dead())[0][0] == body


def outgoing(queue: str, body: bytes, delay: float | None = None) -> Outgoing:
    return Outgoing("", queue, encode(Properties(message_id="cause/1", headers={"h": 1}, delivery_mode=2)), body, delay)


async def test_what_goes_with_an_acknowledgement_is_in_its_queue_when_that_is_answered(world: World) -> None:
    """All of it; then the original is gone."""
    peer = await world.peer(world.queue, world.other)
    await peer.broker.take(world.queue, 1)
    world.put(b"m")
    (delivery,) = await peer.delivered(1)
    peer.settle(Acknowledge((outgoing(world.other, b"one"), outgoing(world.other, b"two"))), delivery)
    await peer.answers()
    assert [delivery.body for delivery, _ in peer.settled] == [b"m"]
    await peer.broker.take(world.other, 2)
    one, two = await peer.delivered(2)
    assert (bodies([one, two]), one.queue, one.attempt) == ([b"one", b"two"], world.other, 1)
    assert decode(one.raw_properties).message_id == "cause/1"
    assert decode_headers(one.raw_properties) == {"h": 1}
    await peer.close()
    assert world.take_all(world.queue) == []


async def test_what_goes_with_an_acknowledgement_may_have_a_delay(world: World) -> None:
    """The answer does not wait for it."""
    peer = await world.peer(world.queue, world.other, window=1)
    world.put(b"m")
    (delivery,) = await peer.delivered(1)
    moment = time.monotonic()
    peer.settle(Acknowledge((outgoing(world.other, b"later", 0.4),)), delivery)
    await peer.answers()
    copy, waited = await after(peer, moment)
    assert 0.4 - GRAIN <= waited <= 0.4 + TOO_LATE
    assert (copy.body, copy.queue, copy.attempt) == (b"later", world.other, 1)


async def test_what_cannot_be_published_leaves_the_original_unsettled(world: World) -> None:
    """The answer says why, and the message can be settled in another way."""
    peer = await world.peer(window=1)
    world.put(b"m")
    (delivery,) = await peer.delivered(1)
    peer.settle(Acknowledge((outgoing(f"{world.queue}.nowhere", b"x"),)), delivery)
    await peer.answers()
    ((unpublished, cause),) = peer.unpublished
    assert unpublished is delivery
    assert f"{world.queue}.nowhere" in cause.message
    assert cause.reason is Reason.EXCEPTION
    assert cause.exception == "workerkit.Unroutable"
    peer.settle(later(0.2, 2), delivery)
    assert (await peer.has(b"m")).attempt == 2


async def test_many_messages_with_all_their_ends_are_each_answered_once(world: World) -> None:
    """Settled one by one and in batches, while others arrive."""
    peer = await world.peer(window=50)
    count = 300
    world.put(*(f"{number:04}".encode() for number in range(count)))
    ends = (ACKNOWLEDGE, DeadLetter(CAUSE), ACKNOWLEDGE, later(0.2, 2), ACKNOWLEDGE)
    settled = 0
    while settled < count:
        await peer.until(lambda: len(peer.arrived) > settled, "more deliveries")  # noqa: B023 - awaited at once
        for delivery in peer.arrived[settled:]:
            again = delivery.attempt > 1
            peer.settle(ACKNOWLEDGE if again else ends[int(delivery.body) % len(ends)], delivery)
            count += not again and int(delivery.body) % len(ends) == 3
            settled += 1
        await asyncio.sleep(0)
    await peer.answers()
    assert len(peer.settled) == count == 360
    assert len(await world.dead(60)) == 60
    await peer.close()
    assert world.take_all(world.queue) == []
