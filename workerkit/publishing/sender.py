"""What publishers do on their event loop: every message is confirmed within its time, or an error says why not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

from workerkit.brokers.backoff import Backoff
from workerkit.brokers.ended import resolve
from workerkit.errors import BrokerError, ConnectionFailed, ConnectionLost, PublishFailed, PublishTimeout, Unconfirmed
from workerkit.outgoing import Outgoing
from workerkit.publishing.adapters import PublishAdapter

_AT_ONCE = 1000
"""Messages that are dealt with at once; more wait in line, each woken when it is its turn."""
_TRANSIENT = (ConnectionFailed, ConnectionLost, Unconfirmed)

M = TypeVar("M", bound=Outgoing)


class Sender:
    """Publishes over one adapter, on one event loop, each message again until it is confirmed or its time is over.

    A message that was on its way when the connection was lost may be there already; then it is there twice, with the
    same message id.

    Args:
        adapter: the way to the broker; closed by ``close``.
        timeout: seconds for one message, from the call to the confirm.
        tries_again: after the loss of a connection; otherwise that is a failure like others.
    """

    def __init__(self, adapter: PublishAdapter, timeout: float, *, tries_again: bool = True) -> None:
        self.adapter = adapter
        self.timeout = timeout
        self._tries_again = tries_again
        self._loop = asyncio.get_running_loop()
        self._places = asyncio.Semaphore(_AT_ONCE)
        self._trouble = ""  # with the connection, lately
        self._busy = 0
        self._reading: set[asyncio.Task[None]] = set()  # a source may be silent for ever
        self._idle = asyncio.Event()
        self._idle.set()

    async def publish(self, message: Outgoing) -> None:
        """Publish one message and wait until the broker has it.

        Raises:
            PublishFailed: Unroutable, PublishRefused or PublishTimeout.
            BrokerError: the broker refuses us.
            ConfigurationError: what the message needs of the broker is not as configured.
        """
        self._enter()
        try:
            await self.send(message, self._loop.time() + self.timeout)
        finally:
            self._leave()

    async def publish_many(self, batches: AsyncIterable[Iterable[Outgoing]]) -> int:
        """Publish all, many in flight; ends at the first that fails.

        Returns:
            How many were confirmed: all.

        Raises:
            PublishFailed: as ``publish``, with the message's ``index``.
            BrokerError, ConfigurationError: as ``publish``.
            RuntimeError: ``close`` was called meanwhile.
            Exception: whatever the iterable raises; what it gave before has been confirmed.
        """
        self._enter()
        run: Run[Outgoing] = Run(self)
        reading = self._loop.create_task(run.send_all(batches))
        self._reading.add(reading)
        try:
            await asyncio.wait({reading})
            await run.drain()
            if run.failure is not None:
                if isinstance(run.failure.error, PublishFailed):
                    run.failure.error.index = run.failure.index
                raise run.failure.error
            if reading.cancelled():
                raise RuntimeError("the publisher was closed meanwhile")
            reading.result()
            return run.confirmed
        finally:
            self._reading.discard(reading)
            reading.cancel()
            run.stop()
            self._leave()

    async def close(self) -> None:
        """Read no more, wait for what is on its way, none of which takes longer than its time; close the connection."""
        for reading in self._reading:
            reading.cancel()
        await self._idle.wait()
        await self.adapter.close()

    async def send(self, message: Outgoing, deadline: float, *, sent: bool = False) -> None:
        """Publish until it is confirmed or ``deadline``, by the loop's clock. Raises as ``publish`` does.

        ``sent``: the broker may have it from an earlier try.
        """
        backoff = Backoff()
        try:
            async with asyncio.timeout_at(deadline), self._places:
                while True:
                    await self.until_ready(message)
                    done: asyncio.Future[None] = self._loop.create_future()
                    try:
                        self.adapter.submit(message, partial(resolve, done))
                        sent = True
                        await done
                        return
                    except BrokerError as error:
                        backoff = await self._pause(error, backoff)
        except TimeoutError:
            raise self._timed_out(sent=sent) from None

    async def until_ready(self, message: Outgoing) -> None:
        """Wait until the adapter takes this message, however often the connection is lost. Raises what no try mends."""
        backoff = Backoff()
        while not self.adapter.ready(message):
            try:
                await self.adapter.room(message)
                self._trouble = ""
            except BrokerError as error:
                backoff = await self._pause(error, backoff)

    async def until_ready_in_time(self, message: Outgoing) -> None:
        """As ``until_ready``. Raises PublishTimeout when the time for one message is over."""
        try:
            async with asyncio.timeout(self.timeout):
                await self.until_ready(message)
        except TimeoutError:
            raise self._timed_out(sent=False) from None

    def may_mend(self, error: BaseException | None) -> bool:
        """Whether another try may. A PublishTimeout is Unconfirmed, but its time is over."""
        return self._tries_again and isinstance(error, _TRANSIENT) and not isinstance(error, PublishTimeout)

    async def _pause(self, error: BrokerError, backoff: Backoff) -> Backoff:
        """Wait before another try; raises the error that none can mend."""
        if not self.may_mend(error):
            raise error
        self._trouble = str(error)
        await asyncio.sleep(backoff.delay())
        return backoff.next()

    def _timed_out(self, *, sent: bool) -> PublishTimeout:
        """The error of a message that was not confirmed in time; ``sent``: the broker may have it nevertheless."""
        limit = f"within {self.timeout:g} s"
        blocked = f", as the broker blocks publishers ({self.adapter.blocked_by})" if self.adapter.blocked_by else ""
        if sent:
            trouble = f" ({self._trouble})" if self._trouble else ""
            return PublishTimeout(f"no confirm {limit}{blocked}{trouble}; the message may have arrived")
        why = self._trouble or "the broker does not confirm the messages before it"
        return PublishTimeout(f"the message could not be sent {limit}{blocked}: {why}")

    def _enter(self) -> None:
        self._busy += 1
        self._idle.clear()

    def _leave(self) -> None:
        self._busy -= 1
        if not self._busy:
            self._idle.set()


@dataclass(frozen=True, slots=True)
class Failure(Generic[M]):
    """A message that the broker does not have, and why. ``index`` counts from 0."""

    index: int
    message: M
    error: BaseException


class Run(Generic[M]):
    """Many messages in flight, in order while no connection is lost, none sent after a failure.

    Args:
        sender: over what, for how long, and whether again.
        on_confirmed: called for each message that the broker has; a BrokerError that it raises is that message's.

    Attributes:
        confirmed: how many messages the broker has.
        failure: the earliest message that failed: all before it are confirmed, and some after it may be.
    """

    def __init__(self, sender: Sender, on_confirmed: Callable[[M], object] = lambda _message: None) -> None:
        self.confirmed = 0
        self.failure: Failure[M] | None = None
        self._taken = 0
        self._sender = sender
        self._adapter = sender.adapter
        self._on_confirmed = on_confirmed
        self._loop = asyncio.get_running_loop()
        self._open = 0
        self._again: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()

    async def send_all(self, batches: AsyncIterable[Iterable[M]]) -> None:
        """Publish all of them, as there is room, up to the first that fails. Raises what the iterable raises."""
        async for batch in batches:
            for message in batch:
                try:
                    if self._again or not self._adapter.ready(message):
                        await self._wait_for_turn(message)
                    if self.failure is None:
                        self._submit(message)
                except Exception as error:  # noqa: BLE001 - a failure of this message, whatever it is
                    self._fail(self._taken, message, error)
                if self.failure is not None:
                    return
                self._taken += 1

    async def drain(self) -> None:
        """Wait for what is in flight."""
        while self._open:
            await self._change()

    def stop(self) -> None:
        """Try nothing again any more."""
        for task in self._again:
            task.cancel()

    async def _wait_for_turn(self, message: M) -> None:
        """Those that are tried again come first."""
        while self._again:
            await self._change()
        await self._sender.until_ready_in_time(message)

    def _submit(self, message: M) -> None:
        deadline = self._loop.time() + self._sender.timeout
        self._open += 1
        try:
            self._adapter.submit(message, partial(self._ended, self._taken, message, deadline))
        except BaseException as error:
            if not self._sender.may_mend(error):
                self._open -= 1
                raise
            self._try_again(self._taken, message, deadline, sent=False)

    def _ended(self, index: int, message: M, deadline: float, error: BaseException | None) -> None:
        if error is None:
            try:
                self._on_confirmed(message)
                self.confirmed += 1
            except BrokerError as after_confirm:
                error = after_confirm
        elif self._sender.may_mend(error):
            self._try_again(index, message, deadline, sent=True)
            return
        if error is not None:
            self._fail(index, message, error)
        self._open -= 1
        if not self._open:
            self._changed.set()

    def _try_again(self, index: int, message: M, deadline: float, *, sent: bool) -> None:
        task = self._loop.create_task(self._sender.send(message, deadline, sent=sent))
        self._again.add(task)

        def done(task: asyncio.Task[None]) -> None:
            self._again.discard(task)
            self._changed.set()
            error = asyncio.CancelledError() if task.cancelled() else task.exception()
            self._ended(index, message, deadline, error)

        task.add_done_callback(done)

    def _fail(self, index: int, message: M, error: BaseException) -> None:
        if self.failure is None or index < self.failure.index:
            self.failure = Failure(index, message, error)

    async def _change(self) -> None:
        self._changed.clear()
        await self._changed.wait()
