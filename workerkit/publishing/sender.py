"""What both publishers do on their event loop: every message is confirmed within its time, or an error says why not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Iterable
from functools import partial

from workerkit.brokers.backoff import Backoff
from workerkit.errors import BrokerError, ConnectionFailed, ConnectionLost, PublishFailed, PublishTimeout, Unconfirmed
from workerkit.outgoing import Outgoing
from workerkit.publishing.adapters import PublishAdapter

_AT_ONCE = 1000
"""Messages that are dealt with at once; more wait in line, each woken when it is its turn."""
_TRANSIENT = (ConnectionFailed, ConnectionLost, Unconfirmed)
"""What another try may mend. PublishTimeout is Unconfirmed, but its time is over."""


class Sender:
    """Publishes over one adapter, on one event loop, each message again until it is confirmed or its time is over.

    A message that was on its way when the connection was lost may be there already; then it is there twice, with the
    same message id.

    Args:
        adapter: the way to the broker; closed by ``close``.
        timeout: seconds for one message, from the call to the confirm.
    """

    def __init__(self, adapter: PublishAdapter, timeout: float) -> None:
        self._adapter = adapter
        self._timeout = timeout
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
            await self.send(message, self._loop.time() + self._timeout)
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
        run = _Run(self, self._adapter, self._timeout)
        reading = self._loop.create_task(run.send_all(batches))
        self._reading.add(reading)
        try:
            await asyncio.wait({reading})
            confirmed = await run.end()
            if reading.cancelled():
                raise RuntimeError("the publisher was closed meanwhile")
            reading.result()
            return confirmed
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
        await self._adapter.close()

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
                        self._adapter.submit(message, partial(_end, done))
                        sent = True
                        await done
                        return
                    except PublishTimeout:
                        raise
                    except _TRANSIENT as error:
                        self._trouble = str(error)
                    await asyncio.sleep(backoff.delay())
                    backoff = backoff.next()
        except TimeoutError:
            raise self.timed_out(sent=sent) from None

    async def until_ready(self, message: Outgoing) -> None:
        """Wait until the adapter takes this message, however often the connection is lost. Raises what no try mends."""
        backoff = Backoff()
        while not self._adapter.ready(message):
            try:
                await self._adapter.room(message)
                self._trouble = ""
            except PublishTimeout:
                raise
            except _TRANSIENT as error:
                self._trouble = str(error)
                await asyncio.sleep(backoff.delay())
                backoff = backoff.next()

    def timed_out(self, *, sent: bool) -> PublishTimeout:
        """The error of a message that was not confirmed in time; ``sent``: the broker may have it nevertheless."""
        limit = f"within {self._timeout:g} s"
        blocked = f", as the broker blocks publishers ({self._adapter.blocked_by})" if self._adapter.blocked_by else ""
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


class _Run:
    """One ``publish_many``: many messages in flight, in order while no connection is lost, none after a failure."""

    def __init__(self, sender: Sender, adapter: PublishAdapter, timeout: float) -> None:
        self._sender = sender
        self._adapter = adapter
        self._timeout = timeout
        self._loop = asyncio.get_running_loop()
        self._taken = 0
        self._open = 0
        self._again: set[asyncio.Task[None]] = set()
        self._failure: tuple[int, BaseException] | None = None
        self._changed = asyncio.Event()

    async def send_all(self, batches: AsyncIterable[Iterable[Outgoing]]) -> None:
        """Publish all of them, as there is room, up to the first that fails."""
        async for batch in batches:
            for message in batch:
                try:
                    await self._send(message)
                except Exception as error:  # noqa: BLE001 - raised by `end`, when those before it are through
                    self._fail(self._taken, error)
                if self._failure is not None:
                    return
                self._taken += 1

    async def _send(self, message: Outgoing) -> None:
        if self._again or not self._adapter.ready(message):
            await self._wait_for_turn(message)
        if self._failure is not None:
            return
        deadline = self._loop.time() + self._timeout
        self._open += 1
        try:
            self._adapter.submit(message, partial(self._ended, self._taken, message, deadline))
        except _TRANSIENT:
            self._try_again(self._taken, message, deadline, sent=False)
        except BaseException:
            self._open -= 1
            raise

    async def end(self) -> int:
        """Wait for what is in flight. Returns how many were confirmed, or raises the first failure."""
        while self._open:
            await self._change()
        if self._failure is None:
            return self._taken
        index, error = self._failure
        if isinstance(error, PublishFailed):
            error.index = index
        raise error

    def stop(self) -> None:
        """Try nothing again any more."""
        for task in self._again:
            task.cancel()

    async def _wait_for_turn(self, message: Outgoing) -> None:
        """Those that are tried again come first."""
        while self._again:
            await self._change()
        try:
            async with asyncio.timeout(self._timeout):
                await self._sender.until_ready(message)
        except TimeoutError:
            raise self._sender.timed_out(sent=False) from None

    def _ended(self, index: int, message: Outgoing, deadline: float, error: BaseException | None) -> None:
        if isinstance(error, Unconfirmed) and not isinstance(error, PublishTimeout):
            self._try_again(index, message, deadline, sent=True)
            return
        if error is not None:
            self._fail(index, error)
        self._open -= 1
        if not self._open:
            self._changed.set()

    def _try_again(self, index: int, message: Outgoing, deadline: float, *, sent: bool) -> None:
        task = self._loop.create_task(self._sender.send(message, deadline, sent=sent))
        self._again.add(task)

        def done(task: asyncio.Task[None]) -> None:
            self._again.discard(task)
            self._changed.set()
            error = asyncio.CancelledError() if task.cancelled() else task.exception()
            self._ended(index, message, deadline, error)

        task.add_done_callback(done)

    def _fail(self, index: int, error: BaseException) -> None:
        if self._failure is None or index < self._failure[0]:
            self._failure = index, error

    async def _change(self) -> None:
        self._changed.clear()
        await self._changed.wait()


def _end(done: asyncio.Future[None], error: BrokerError | None) -> None:
    if done.done():  # whoever waited has been cancelled
        return
    if error is None:
        done.set_result(None)
    else:
        done.set_exception(error)
