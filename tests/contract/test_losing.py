"""The port: what is lost on the way between a broker and a worker, and how both find together again."""

from __future__ import annotations

import asyncio

import pytest
from contract.peer import bodies
from contract.worlds import World

from workerkit.settlement import Cause, DeadLetter, Reason, RetryLater

CAUSE = Cause(Reason.EXCEPTION, "no")
M = [f"m{number}".encode() for number in range(9)]


async def test_a_lost_consumers_messages_come_back_to_another_one(world: World) -> None:
    """In their order, as the same attempt, with a hint that somebody may have seen them."""
    gone = await world.peer(window=3)
    world.put(*M[:3])
    taken = await gone.delivered(3)
    other = await world.peer(window=3)
    await world.vanish(gone)
    again = await other.delivered(3)
    assert world.in_order(bodies(again)) == M[:3]
    attempt = world.attempt_after_losses(1)
    assert [(delivery.attempt, delivery.redelivered) for delivery in again] == [(attempt, True)] * 3
    await gone.until(lambda: len(gone.lost) == 3, "the lost ones are named")
    gone.ack(*taken)
    await gone.answers()
    assert gone.dropped == taken
    other.ack(*again)
    await other.answers()


async def test_a_stale_settlement_is_dropped_and_reported_once(world: World) -> None:
    """The message is the broker's again: it comes again, and that hand-over can be settled."""
    peer = await world.peer(window=2)
    world.put(*M[:2])
    first, second = await peer.delivered(2)
    peer.ack(second)
    await peer.answers()
    await peer.broker.take(world.queue, 0)  # when that is answered the acknowledgement has arrived as well
    await peer.broker.take(world.queue, 2)
    await world.lose(peer, world.queue)
    again = await peer.has(M[0])
    assert peer.lost == [first]
    peer.ack(first)
    await peer.answers()
    assert peer.dropped == [first]
    peer.ack(again)
    await peer.answers()
    assert bodies(delivery for delivery, _ in peer.settled) == [M[1], M[0]]
    await peer.close()
    assert world.take_all(world.queue) == []


@pytest.mark.parametrize(
    "settlement", [RetryLater(0.2, 2, False, CAUSE), DeadLetter(CAUSE)], ids=["retry", "dead letter"]
)
async def test_a_stale_failure_is_dropped_likewise(world: World, settlement: RetryLater | DeadLetter) -> None:
    """No copy is made of what somebody else has by now."""
    peer = await world.peer(window=1)
    world.put(M[0])
    (first,) = await peer.delivered(1)
    await world.lose(peer, world.queue)
    again = await peer.has(M[0])
    peer.settle(settlement, first)
    await peer.answers()
    assert peer.dropped == [first]
    peer.ack(again)
    await peer.gets_nothing_more()
    assert await world.dead(None) == []


async def test_after_a_loss_it_takes_again_what_it_was_told_to(world: World) -> None:
    """The same window, without being told again."""
    peer = await world.peer(window=2)
    world.put(*M[:4])
    await peer.delivered(2)
    await world.lose(peer, world.queue)
    await peer.delivered(2)
    await peer.gets_nothing_more()


async def test_after_a_loss_a_pause_stays_a_pause(world: World) -> None:
    """What was taken before it is handed to nobody here until the window opens again."""
    peer = await world.peer(window=2)
    world.put(*M[:2])
    taken = await peer.delivered(2)
    await peer.broker.take(world.queue, 0)
    await world.lose(peer, world.queue)
    await peer.until(lambda: peer.lost == taken, "the lost ones are named")
    await peer.gets_nothing_more(1.0)
    await peer.broker.take(world.queue, 2)
    assert world.in_order(bodies(await peer.delivered(2))) == M[:2]


async def test_the_loss_of_one_source_touches_no_message_of_another(world: World) -> None:
    """And it comes back by itself."""
    peer = await world.peer(world.queue, world.other, window=1)
    world.put(M[0])
    (lost,) = await peer.delivered(1)
    world.put(M[1], M[2], queue=world.other)
    kept = await peer.has(M[1])
    await world.take_away(peer, world.queue)
    await peer.until(lambda: peer.lost, "the lost one is named")
    assert peer.lost == [lost]
    peer.ack(kept)
    await peer.until(lambda: M[2] in bodies(peer.arrived), "the next one of the other source")
    await peer.answers()
    assert bodies(delivery for delivery, _ in peer.settled) == [M[1]]
    await world.back(peer, world.queue)


async def test_a_message_that_loses_its_worker_too_often_is_a_dead_letter(world: World) -> None:
    """Nobody is left who could say why; before that it was taken as the same attempt each time."""
    peer = await world.peer(window=1, max_losses=2, max_attempts=1)
    if not peer.broker.capabilities(world.queue).counts_losses:
        pytest.skip("capabilities: losses are not counted here")
    world.put(M[0])
    taken, dead = 0, []
    while not dead:
        taken += 1
        assert taken <= 5
        assert (await peer.has(M[0])).attempt == world.attempt_after_losses(taken - 1)
        await world.lose(peer, world.queue)
        while len(peer.arrived) == taken and not dead:
            await asyncio.sleep(0.02)
            dead = await world.dead(None)
    assert taken > 2  # one more where the broker cannot tell the first loss from a message that was handed back
    ((body, headers),) = dead
    told = (headers["workerkit-reason"], headers["workerkit-attempt"])
    assert (body, told) == (M[0], ("lost", world.attempt_after_losses(taken)))
    world.put(M[1])
    peer.ack(await peer.has(M[1]))
    await peer.answers()
