"""One queue of a store that a worker consumes, on the worker's event loop."""

from __future__ import annotations

import asyncio

from workerkit.brokers.memory.store import MemoryStore
from workerkit.ports import BrokerEvents, Delivery, Plan
from workerkit.settlement import Cause, DeadLetter, Reason, Settlement


class Source:
    """Takes what its window leaves room for, when the store says that there is something or a delay is over.

    Args:
        queue: its name.
        store: where the queue is.
        plan: of the worker, for its name and its ``max_losses``.
        events: told of deliveries.
    """

    def __init__(self, queue: str, store: MemoryStore, plan: Plan, events: BrokerEvents) -> None:
        self._queue = queue
        self._store = store
        self._plan = plan
        self._events = events
        self._loop = asyncio.get_running_loop()
        self._window = 0
        self._held = False
        self._waking = False
        self._timer: asyncio.TimerHandle | None = None
        self._receipt = object()
        self._unsettled: dict[int, Delivery] = {}

    @property
    def room(self) -> int:
        """How many more messages it would take now."""
        return 0 if self._held else max(0, self._window - len(self._unsettled))

    def wake(self) -> None:
        """Look for messages in the next turn of the loop. Called from any thread."""
        if not self._waking:
            self._waking = True
            self._loop.call_soon_threadsafe(self._receive)

    def take(self, window: int) -> None:
        """Have at most ``window`` unsettled deliveries; with 0, be no consumer."""
        self._window = window
        if window:
            self._store.subscribe(self._queue, self)
        else:
            self._store.unsubscribe(self._queue, self)

    def hold(self, hold: bool) -> None:
        """Take nothing for a moment, or go on."""
        self._held = hold
        if not hold:
            self.wake()

    def settle(self, delivery: Delivery, settlement: Settlement) -> None:
        """Settle a delivery, which makes room for another one. Raises what the store raises, and is still ours then."""
        self._store.settle(delivery, settlement, self._plan.worker)
        del self._unsettled[delivery.tag]
        self.wake()

    def lose(self) -> object:
        """Lose all that is unsettled to the store, as a broken connection does. Returns the receipt of that."""
        receipt, self._receipt = self._receipt, object()
        self._requeue(lost=True)
        return receipt

    def close(self) -> None:
        """Give back all that is unsettled and take no more."""
        self.take(0)
        self._requeue(lost=False)
        if self._timer is not None:
            self._timer.cancel()

    def _requeue(self, *, lost: bool) -> None:
        unsettled, self._unsettled = self._unsettled, {}
        self._store.requeue(unsettled.values(), lost=lost)

    def _receive(self) -> None:
        self._waking = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self.room == 0:
            return
        try:
            self._store.redeliver(self._queue)
            deliveries = [
                delivery
                for delivery in self._store.receive(self._queue, self.room, self)
                if not self._is_lost_for_good(delivery)
            ]
            for delivery in deliveries:
                delivery.receipt = self._receipt
                self._unsettled[delivery.tag] = delivery
            if deliveries:
                self._events.on_deliveries(deliveries)
            self._wait_for_the_next()
        except Exception as error:  # noqa: BLE001 - a loop only logs it, and nobody would notice that nothing comes
            self._events.on_failed(error)

    def _is_lost_for_good(self, delivery: Delivery) -> bool:
        """Keep a message that takes its workers down, over and over, away from the next one."""
        losses = self._store.losses(delivery)
        if losses <= self._plan.max_losses:
            return False
        cause = Cause(Reason.LOST, f"its worker was lost {losses} times while it had this message")
        self._store.settle(delivery, DeadLetter(cause), self._plan.worker)
        return True

    def _wait_for_the_next(self) -> None:
        due = self._store.next_due(self._queue)
        if due is not None:
            self._timer = self._loop.call_later(max(0.0, due - self._store.now), self._receive)
