"""The port: how many messages are taken, in which order, by whom."""

from __future__ import annotations

import asyncio

import pytest
from contract.peer import bodies
from contract.worlds import World

from workerkit.properties import decode
from workerkit.settlement import HAND_BACK

QUIET = 0.4
"""Seconds after which whatever was on its way has come."""
M = [f"m{number}".encode() for number in range(20)]


async def test_a_message_arrives_as_it_was_published(world: World) -> None:
    """Body, properties and address; it was given to nobody before, and nothing is decoded on the way."""
    peer = await world.peer(window=9)
    headers = {"number": 2**40, "text": "ü", "half": 0.5, "list": [1, {"a": True}]}
    world.put(b"hello", b"", headers=headers, correlation_id="c1", content_type="text/plain", message_id="m1")
    first, second = await peer.delivered(2)
    assert (first.queue, first.exchange, first.routing_key) == (world.queue, "", world.queue)
    assert (first.redelivered, first.attempt, bodies([first, second])) == (False, 1, [b"hello", b""])
    properties = decode(first.raw_properties)
    assert (properties.correlation_id, properties.content_type, properties.message_id) == ("c1", "text/plain", "m1")
    assert properties.headers == headers
    peer.ack(first, second)
    await peer.answers()


async def test_nothing_is_taken_before_it_is_asked_for(world: World) -> None:
    """A started broker consumes nothing yet."""
    peer = await world.peer()
    world.put(*M[:3])
    await peer.gets_nothing_more()
    await peer.broker.take(world.queue, 3)
    assert bodies(await peer.delivered(3)) == M[:3]


async def test_no_more_is_handed_out_than_the_window(world: World) -> None:
    """Each settlement makes room for one."""
    peer = await world.peer(window=3)
    world.put(*M[:6])
    first, second, _ = await peer.delivered(3)
    await peer.gets_nothing_more()
    peer.ack(second)
    await peer.has(M[3])
    peer.ack(first)
    await peer.has(M[4])
    await peer.gets_nothing_more()


async def test_a_window_can_grow(world: World) -> None:
    """A broker may count what was taken before on top; once that is settled, the new window is kept."""
    peer = await world.peer(window=2)
    world.put(*M[:12])
    before = await peer.delivered(2)
    await peer.broker.take(world.queue, 5)
    assert bodies(await peer.delivered(3)) == M[2:5]
    await asyncio.sleep(QUIET)
    assert len(peer.unsettled) <= 7
    peer.ack(*before)
    await peer.until(lambda: len(peer.unsettled) == 5, "the window is full")
    await asyncio.sleep(QUIET)
    assert len(peer.unsettled) == 5


async def test_a_window_can_shrink(world: World) -> None:
    """Nothing comes until less than the new window is unsettled; likewise."""
    peer = await world.peer(window=5)
    world.put(*M[:12])
    before = await peer.delivered(5)
    await peer.broker.take(world.queue, 2)
    peer.ack(*before[:3])
    await peer.gets_nothing_more()
    peer.ack(before[3])
    assert bodies(await peer.delivered(1)) == M[5:6]
    await asyncio.sleep(QUIET)
    assert len(peer.unsettled) <= 3
    peer.ack(before[4])
    await peer.until(lambda: len(peer.unsettled) == 2, "the window is full")
    await asyncio.sleep(QUIET)
    assert len(peer.unsettled) == 2


async def test_a_window_of_nothing_takes_nothing(world: World) -> None:
    """Not even what is there already; what was taken stays ours, and can be settled."""
    peer = await world.peer(window=2)
    world.put(*M[:4])
    first, second = await peer.delivered(2)
    await peer.broker.take(world.queue, 0)
    peer.ack(first, second)
    await peer.answers()
    assert bodies(delivery for delivery, _ in peer.settled) == M[:2]
    await peer.gets_nothing_more()
    await peer.broker.take(world.queue, 2)
    assert bodies(await peer.delivered(2)) == M[2:4]


async def test_a_pause_right_after_a_burst_leaves_no_message_behind(world: World) -> None:
    """What was on its way when the window closed was delivered when `take` returns, or is still in the queue."""
    peer = await world.peer(window=20)
    world.put(*M)
    await peer.delivered(1)
    await peer.broker.take(world.queue, 0)
    taken = list(peer.arrived)
    await asyncio.sleep(0.3)
    assert len(peer.arrived) == len(taken)
    peer.settle(HAND_BACK, *taken)
    await peer.answers()
    assert [body for body, _ in await world.letters(world.queue, 20)] == M


async def test_what_is_held_in_the_network_comes_when_it_is_wanted(world: World) -> None:
    """Holding is for a moment, and loses nothing."""
    peer = await world.peer(window=20)
    peer.broker.hold(True)
    world.put(*M)
    peer.broker.hold(False)
    assert bodies(await peer.delivered(20)) == M


async def test_what_is_handed_back_comes_again_in_its_order(world: World) -> None:
    """It is no attempt, and it says that somebody may have seen it."""
    peer = await world.peer(window=3)
    world.put(*M[:5])
    taken = await peer.delivered(3)
    peer.settle(HAND_BACK, *taken)
    again = await peer.delivered(3)
    peer.ack(*again)
    again += await peer.delivered(2)
    assert bodies(again) == world.after_hand_back(M[:3], M[3:5])
    assert [(delivery.attempt, delivery.redelivered) for delivery in again if delivery.body in M[:3]] == [(1, True)] * 3


async def test_several_sources_have_a_window_each(world: World) -> None:
    """A queue that is full of unsettled messages is in nobody's way."""
    peer = await world.peer(world.queue, world.other)
    await peer.broker.take(world.queue, 1)
    await peer.broker.take(world.other, 2)
    world.put(*M[:3])
    world.put(*M[5:9], queue=world.other)
    taken = await peer.delivered(3)
    assert bodies(d for d in taken if d.queue == world.queue) == M[:1]
    assert bodies(d for d in taken if d.queue == world.other) == M[5:7]
    await peer.gets_nothing_more()
    await peer.broker.take(world.queue, 0)
    peer.ack(*taken)
    assert bodies(await peer.delivered(2)) == M[7:9]
    await peer.gets_nothing_more()


async def test_several_consumers_share_a_queue(world: World) -> None:
    """Each gets about as much, and each message goes to one."""
    peers = [await world.peer(window=5), await world.peer(window=5)]
    world.put(*M[:10])
    taken = [await peer.delivered(5) for peer in peers]
    assert sorted(bodies(taken[0] + taken[1])) == sorted(M[:10])


async def test_a_broker_knows_whether_somebody_else_could_take_a_message(world: World) -> None:
    """Handing back to nobody is of no use; `False` may also mean that it is not known."""
    one = await world.peer(window=5)
    assert not await one.broker.wanted_elsewhere(world.queue)
    other = await world.peer(window=5)
    assert await one.broker.wanted_elsewhere(world.queue)
    await other.close()
    assert not await one.broker.wanted_elsewhere(world.queue)


async def test_of_a_queue_with_a_single_active_consumer_only_one_gets_messages(world: World) -> None:
    """Its order means something, which the capabilities say; the next consumer takes over."""
    first = await world.peer(window=2, single_active=True)
    second = await world.peer(window=2, single_active=True)
    if not first.broker.capabilities(world.queue).ordered:
        pytest.skip("capabilities: no ordered queues here")
    assert not await first.broker.wanted_elsewhere(world.queue)
    world.put(*M[:4])
    taken = await first.delivered(2)
    first.ack(*taken)
    assert bodies(await first.delivered(2)) == M[2:4]
    await second.gets_nothing_more()
    await first.close()
    assert bodies(await second.delivered(2)) == M[2:4]
    assert not await world.peers[1].broker.wanted_elsewhere(world.queue)


async def test_capabilities_are_numbers_that_a_worker_can_use(world: World) -> None:
    """Known for each source, once it is started."""
    peer = await world.peer()
    capabilities = peer.broker.capabilities(world.queue)
    assert capabilities.longest_delay > 60
    assert capabilities.lease is None or capabilities.lease > 1
    assert capabilities.largest_body is None or capabilities.largest_body > 100_000
    assert not capabilities.ordered
