"""``memory://``: the broker port over a store in this process."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Mapping, Sequence
from urllib.parse import urlsplit

from workerkit.brokers.memory.source import Source
from workerkit.brokers.memory.store import MemoryStore
from workerkit.errors import PublishFailed
from workerkit.ports import BrokerEvents, Capabilities, Delivery, Plan, Settled
from workerkit.settings.model import QueueSettings
from workerkit.settlement import MAX_DELAY, Cause, Reason

_named: dict[str, MemoryStore] = {}
_naming = threading.Lock()


def store_at(url: str) -> MemoryStore:
    """The store that ``memory://NAME`` means: one for each name, for as long as this process lives."""
    name = urlsplit(url).netloc
    with _naming:
        return _named.setdefault(name, MemoryStore(time.monotonic))


class MemoryBroker:
    """Consumes queues of a store, on the running event loop.

    A worker on ``memory://`` works on what is put into the store within its own process: by its callbacks, with
    ``message.publish``, and by the test that holds the store. Nothing outlives the process.

    Args:
        store: where the queues are, with a clock that runs; several brokers may share it.
        queues: configured queues. Of their settings only ``x-single-active-consumer`` among the arguments counts here.
    """

    def __init__(self, store: MemoryStore, queues: Mapping[str, QueueSettings] | None = None) -> None:
        self._store = store
        self._queues = queues or {}
        self._sources: dict[str, Source] = {}
        self._events: BrokerEvents
        self._loop: asyncio.AbstractEventLoop
        self._answering = False
        self._settled: list[Settled] = []
        self._dropped: list[Delivery] = []
        self._unpublished: list[tuple[Delivery, Cause]] = []

    async def start(self, plan: Plan, events: BrokerEvents) -> None:
        """Declare the queues. See the port; nothing is refused here."""
        self._loop = asyncio.get_running_loop()
        self._events = events
        for queue in plan.queues:
            self._store.declare(queue, single_active=self._single_active(queue))
            self._sources[queue] = Source(queue, self._store, plan, events)

    def _single_active(self, queue: str) -> bool:
        return bool(self._queues.get(queue, QueueSettings()).arguments.get("x-single-active-consumer"))

    def capabilities(self, queue: str) -> Capabilities:
        """See the port. ``shared`` says whether another broker consumes this queue of the store now."""
        return Capabilities(
            longest_delay=MAX_DELAY,
            ordered=self._single_active(queue),
            counts_losses=True,
            shared=self._store.has_other_consumers(queue, self._sources[queue]),
        )

    # ---- taking messages

    async def take(self, queue: str, window: int) -> None:
        """See the port."""
        self._sources[queue].take(window)

    async def wanted_elsewhere(self, queue: str) -> bool:
        """See the port; here it is always known."""
        return self._store.others_with_room(queue, self._sources[queue])

    def hold(self, hold: bool) -> None:
        """See the port. The network is the store: nothing is received meanwhile."""
        for source in self._sources.values():
            source.hold(hold)

    def lose(self, queue: str) -> None:
        """Lose a source as a broken connection would, for tests. It is consumed again at once."""
        self._answer()
        self._events.on_lost([self._sources[queue].lose()])

    # ---- settling

    def settle(self, batch: Sequence[Settled]) -> None:
        """See the port. The store settles at once; the answers come in the next turn of the loop."""
        if batch and not self._answering:
            self._answering = True
            self._loop.call_soon(self._answer)
        for delivery, settlement in batch:
            try:
                self._sources[delivery.queue].settle(delivery, settlement)
                self._settled.append((delivery, settlement))
            except KeyError:  # it was lost meanwhile
                self._dropped.append(delivery)
            except PublishFailed as error:
                cause = Cause(Reason.EXCEPTION, str(error), exception="workerkit.Unroutable")
                self._unpublished.append((delivery, cause))

    def _answer(self) -> None:
        self._answering = False
        settled, self._settled = self._settled, []
        dropped, self._dropped = self._dropped, []
        unpublished, self._unpublished = self._unpublished, []
        for delivery, cause in unpublished:
            self._events.on_unpublished(delivery, cause)
        if dropped:
            self._events.on_dropped(dropped, "the source that delivered is gone")
        if settled:
            self._events.on_settled(settled)

    async def close(self, patience: float) -> None:  # noqa: ARG002 - the store has answered already
        """Give back what is not settled, which counts as nothing, and consume no more."""
        for source in self._sources.values():
            source.close()
        self._answer()
