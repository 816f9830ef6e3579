"""The port: how a broker is left in order."""

from __future__ import annotations

import time

from contract.peer import bodies
from contract.worlds import World

from workerkit.settlement import HAND_BACK, Cause, DeadLetter, Reason, RetryLater

CAUSE = Cause(Reason.EXCEPTION, "no")
M = [f"m{number}".encode() for number in range(300)]


async def test_close_returns_after_the_broker_has_the_settlements(world: World) -> None:
    """Each has its answer by then, and nothing comes back."""
    peer = await world.peer(window=300)
    world.put(*M)
    peer.ack(*await peer.delivered(300))
    await peer.close()
    assert len(peer.settled) == 300
    assert world.take_all(world.queue) == []


async def test_close_waits_for_copies_that_are_under_way(world: World) -> None:
    """A retry and a dead letter are with the broker before it returns, and their originals are gone."""
    peer = await world.peer(window=2)
    world.put(*M[:2])
    first, second = await peer.delivered(2)
    peer.settle(RetryLater(0.2, 2, False, CAUSE), first)
    peer.settle(DeadLetter(CAUSE), second)
    await peer.close()
    assert sorted(bodies(delivery for delivery, _ in peer.settled)) == M[:2]
    assert [body for body, _ in await world.dead()] == [M[1]]
    other = await world.peer(window=2)
    assert (await other.has(M[0])).attempt == 2
    await other.gets_nothing_more()


async def test_what_is_unsettled_goes_back_when_it_closes(world: World) -> None:
    """At once. A worker hands back what it can before it closes: this is for what it could not."""
    peer = await world.peer(window=2)
    world.put(*M[:2])
    await peer.delivered(2)
    other = await world.peer(window=2)
    await peer.close()
    again = await other.delivered(2)
    assert world.in_order(bodies(again)) == M[:2]
    assert [delivery.attempt for delivery in again] == [1, 1]


async def test_closing_many_times_costs_a_message_nothing(world: World) -> None:
    """Stops are no losses: a message that only ever meets stops is never a dead letter."""
    peer = await world.peer(window=1, max_losses=2)
    world.put(M[0])
    for _ in range(5):
        delivery = await peer.has(M[0])
        await peer.broker.take(world.queue, 0)
        peer.settle(HAND_BACK, delivery)
        await peer.close()
        peer = await world.peer(window=1, max_losses=2)
    assert (await peer.has(M[0])).attempt == 1
    assert await world.dead(None) == []


async def test_close_does_not_wait_for_a_broker_that_is_gone(world: World) -> None:
    """Not longer than it was told to."""
    peer = await world.peer(window=2)
    world.put(*M[:2])
    first, _ = await peer.delivered(2)
    await world.vanish(peer)
    peer.ack(first)
    started = time.monotonic()
    await peer.close(patience=0.5)
    assert time.monotonic() - started < 2.5
    other = await world.peer(window=2)
    await other.delivered(2)


async def test_close_is_harmless_when_nothing_was_started(world: World) -> None:
    """As at the end of a worker whose task did not load."""
    broker = await world.make_broker(single_active=False)
    await broker.close(1.0)
