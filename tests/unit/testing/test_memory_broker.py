"""The broker in memory: what the contract suite, which all brokers share, does not ask."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest
from contract.peer import Peer, bodies
from support.loops import on_a_loop

from workerkit.brokers.memory.broker import MemoryBroker, store_at
from workerkit.brokers.memory.store import MemoryStore
from workerkit.errors import PublishFailed
from workerkit.outgoing import Outgoing
from workerkit.ports import Delivery
from workerkit.settings.model import QueueSettings
from workerkit.settlement import ACKNOWLEDGE, HAND_BACK, Acknowledge

NO_PROPERTIES = b"\0\0"


def message(body: bytes, queue: str = "a", exchange: str = "") -> Outgoing:
    return Outgoing(exchange, queue, NO_PROPERTIES, body)


def real_store() -> MemoryStore:
    store = MemoryStore(time.monotonic)
    store.declare("a")
    store.declare("b")
    return store


async def consuming(store: MemoryStore, window: int, *queues: str) -> Peer:
    peer = Peer(MemoryBroker(store))
    await peer.start(*(queues or ("a",)), window=window)
    return peer


def test_a_store_is_shared_by_its_name() -> None:
    """Within one process: two brokers at the same URL consume the same queues."""
    assert store_at("memory://shop") is store_at("memory://shop")
    assert store_at("memory://shop") is not store_at("memory://other")
    assert store_at("memory://") is store_at("memory://")


def test_all_of_what_goes_with_an_acknowledgement_is_published_or_nothing() -> None:
    """Whichever of them has no queue, the original is still to be settled."""
    store = MemoryStore()
    store.declare("a")
    store.publish(message(b"m"))
    (delivery,) = store.receive("a", 1)
    for wrong in (message(b"x", "nowhere"), message(b"x", exchange="news")):
        with pytest.raises(PublishFailed):
            store.settle(delivery, Acknowledge((message(b"good"), wrong)), "w")
        assert store.ready("a") == []
    store.settle(delivery, ACKNOWLEDGE, "w")
    with pytest.raises(KeyError):
        store.settle(delivery, ACKNOWLEDGE, "w")


def test_a_message_for_a_queue_that_nobody_declares_is_refused() -> None:
    """It would be nowhere. Dead letters have a queue from the start."""
    store = MemoryStore()
    with pytest.raises(PublishFailed, match="there is no queue 'a'"):
        store.publish(message(b"m"))
    store.declare("a")
    store.publish(message(b"m"))
    store.publish(message(b"m", "a.dead"))
    with pytest.raises(PublishFailed, match="there is no exchange 'x' in memory"):
        store.publish(message(b"m", exchange="x"))


@on_a_loop
async def test_whether_a_queue_is_shared_is_known_exactly() -> None:
    """As long as another broker consumes it."""
    store = real_store()
    one = await consuming(store, 1)
    assert not one.broker.capabilities("a").shared
    other = await consuming(store, 1)
    assert one.broker.capabilities("a").shared
    await other.broker.take("a", 0)
    assert not one.broker.capabilities("a").shared
    await one.close()
    await other.close()


@on_a_loop
async def test_a_consumer_without_room_is_none_that_wants_messages() -> None:
    """What it holds fills its window."""
    store = real_store()
    one, other = await consuming(store, 1), await consuming(store, 1)
    assert await one.broker.wanted_elsewhere("a")
    store.publish(message(b"m1"))
    store.publish(message(b"m2"))
    await one.delivered(1)
    (second,) = await other.delivered(1)
    assert not await one.broker.wanted_elsewhere("a")
    other.ack(second)
    assert await one.broker.wanted_elsewhere("a")
    await one.close()
    await other.close()


@on_a_loop
async def test_a_backlog_is_shared_out_and_nothing_of_it_is_left() -> None:
    """Also when one consumer has room for less than its share."""
    store = real_store()
    big, small = await consuming(store, 100), await consuming(store, 3)
    for number in range(20):
        store.publish(message(b"%d" % number))
    await small.delivered(3)
    await big.delivered(17)
    assert sorted(map(int, bodies(small.arrived + big.arrived))) == list(range(20))
    assert store.ready("a") == []
    await small.close()
    await big.close()


@on_a_loop
async def test_an_ordered_queue_goes_to_the_next_consumer_when_the_first_takes_no_more() -> None:
    """Though the first one is still there and nothing is handed back."""
    store = real_store()
    single = {"a": QueueSettings(arguments={"x-single-active-consumer": True})}
    first, second = Peer(MemoryBroker(store, single)), Peer(MemoryBroker(store, single))
    await first.start("a", window=1)
    await second.start("a", window=1)
    store.publish(message(b"m1"))
    store.publish(message(b"m2"))
    await first.has(b"m1")
    await first.broker.take("a", 0)
    await second.has(b"m2")
    await first.close()
    await second.close()


@on_a_loop
async def test_what_goes_back_when_a_broker_closes_has_not_lost_its_worker() -> None:
    """However often that happens."""
    store = real_store()
    store.publish(message(b"m"))
    for _ in range(4):
        peer = Peer(MemoryBroker(store))
        await peer.start("a", window=1, max_losses=1)
        await peer.has(b"m")
        await peer.close()
    assert [record.losses for record in store.ready("a")] == [0]


@on_a_loop
async def test_answers_come_in_a_later_turn_of_the_loop() -> None:
    """As from any broker: whoever settles is not called back in the middle of it."""
    store = real_store()
    store.publish(message(b"m"))
    peer = await consuming(store, 1)
    (delivery,) = await peer.delivered(1)
    peer.ack(delivery)
    assert peer.settled == []
    await asyncio.sleep(0)
    assert len(peer.settled) == 1
    await peer.close()


@on_a_loop
async def test_what_is_settled_before_a_loss_is_answered_before_it() -> None:
    """It is not among what was lost."""
    store = real_store()
    store.publish(message(b"m"))
    peer = await consuming(store, 1)
    (delivery,) = await peer.delivered(1)
    assert isinstance(peer.broker, MemoryBroker)
    peer.ack(delivery)
    peer.broker.lose("a")
    assert len(peer.settled) == 1
    assert peer.lost == []
    await peer.close()
    assert store.ready("a") == []


@on_a_loop
async def test_messages_may_come_from_other_threads() -> None:
    """None is lost, none comes twice, and nobody has to look for them."""
    store = real_store()
    peer = await consuming(store, 2000)

    def publish(first: int) -> None:
        for number in range(first, first + 500):
            store.publish(message(b"%d" % number))

    threads = [threading.Thread(target=publish, args=(first,)) for first in (0, 500, 1000)]
    for thread in threads:
        thread.start()
    got = await peer.delivered(1500)
    for thread in threads:
        thread.join()
    assert sorted(map(int, bodies(got))) == list(range(1500))
    peer.settle(HAND_BACK, *got)
    await peer.close()
    assert len(store.ready("a")) == 1500


@on_a_loop
async def test_consumers_on_two_loops_share_a_store() -> None:
    """One of them on a thread of its own, as with `--inline`."""
    store = real_store()
    counts: list[int] = []

    async def work_until_20_are_done(peer: Peer) -> None:
        while sum(counts) < 20:
            fresh = peer.unsettled
            peer.ack(*fresh)
            counts.append(len(fresh))
            await asyncio.sleep(0.001)

    async def elsewhere() -> None:
        peer = await consuming(store, 1)
        ready.set()
        await work_until_20_are_done(peer)
        await peer.close()
        peer.check()

    ready = threading.Event()
    thread = threading.Thread(target=lambda: asyncio.run(elsewhere()))
    thread.start()
    await asyncio.to_thread(ready.wait)
    here = await consuming(store, 1)
    for number in range(20):
        store.publish(message(b"%d" % number))
    await work_until_20_are_done(here)
    await asyncio.to_thread(thread.join)
    await here.close()
    here.check()
    assert store.ready("a") == []
    assert sum(counts) == 20


class Broken(Peer):
    def on_deliveries(self, deliveries: list[Delivery]) -> None:
        raise ValueError("cannot take it")


@on_a_loop
async def test_an_error_while_messages_are_handed_over_is_reported() -> None:
    """A loop would only log it, and nobody would notice that nothing comes any more."""
    store = real_store()
    peer = Broken(MemoryBroker(store))
    await peer.start("a", window=1)
    store.publish(message(b"m"))
    with pytest.raises(AssertionError, match="cannot take it"):
        await peer.delivered(1)
    await peer.close()


@on_a_loop
async def test_a_closed_broker_wakes_nobody() -> None:
    """Its loop may be gone by then."""
    store = real_store()
    peer = await consuming(store, 1)
    await peer.close()
    await peer.broker.close(1.0)
    store.publish(message(b"m"))
    await asyncio.sleep(0)
    assert len(store.ready("a")) == 1
    assert peer.arrived == []
