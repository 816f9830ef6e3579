"""Publishing to one queue: one message or a stream of them, confirmed, up to the first that fails."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Generic

from workerkit.errors import QueueNotFound, Unroutable
from workerkit.operations.brokers import administer
from workerkit.publishing.adapters import adapter_for
from workerkit.publishing.base import DEFAULT_TIMEOUT
from workerkit.publishing.sender import Failure, M, Run, Sender
from workerkit.settings import Settings

_TELL_INTERVAL = 0.1


@dataclass(frozen=True, slots=True)
class Published(Generic[M]):
    """How far it went.

    Attributes:
        confirmed: how many messages the broker has.
        failure: the first that it does not have. Later ones may be confirmed: many are in flight at once.
        interrupted: the task was cancelled, and what was on its way has been waited for.
    """

    confirmed: int
    failure: Failure[M] | None
    interrupted: bool


async def publish_all(
    settings: Settings,
    queue: str,
    messages: AsyncIterator[Iterable[M]],
    *,
    on_confirmed: Callable[[int], object],
    on_blocked: Callable[[str], object],
) -> Published[M]:
    """Publish, each message mandatory and confirmed, up to the first failure or until the task is cancelled.

    Args:
        settings: where the broker is, and what waits where.
        queue: that all of them are for; must exist, also when they come to it later.
        messages: in batches as they are there, taken as fast as the broker confirms.
        on_confirmed: called some times a second, with how many have been confirmed since the last time.
        on_blocked: called with the reason when the broker stops reading from publishers.

    Raises:
        QueueNotFound: there is no such queue; nothing was published.
        BrokerError: the broker is away, or refuses us.
    """
    async with administer(settings, "publish") as broker, sender_of_a_command(settings) as sender:
        await broker.ready(queue)
        run: Run[M] = Run(sender)
        told, blocked, interrupted = 0, "", False

        def tell() -> None:
            nonlocal told, blocked
            on_confirmed(run.confirmed - told)
            told = run.confirmed
            before, blocked = blocked, sender.adapter.blocked_by
            if blocked and not before:
                on_blocked(blocked)

        async def keep_telling() -> None:
            while True:
                await asyncio.sleep(_TELL_INTERVAL)
                tell()

        telling = asyncio.create_task(keep_telling())
        try:
            await run.send_all(messages)
        except asyncio.CancelledError:
            interrupted = True
        finally:
            await run.drain()
            telling.cancel()
            tell()
        failure = run.failure
        if failure is not None and isinstance(failure.error, Unroutable):
            try:
                await broker.ready(queue)
            except QueueNotFound as missing:  # which says what makes it
                failure = Failure(failure.index, failure.message, missing)
        return Published(run.confirmed, failure, interrupted)


@asynccontextmanager
async def sender_of_a_command(settings: Settings) -> AsyncIterator[Sender]:
    """Publishes, and leaves it to the operator what to do when a connection is lost."""
    sender = Sender(adapter_for(settings.broker, settings, DEFAULT_TIMEOUT)(), DEFAULT_TIMEOUT, tries_again=False)
    try:
        yield sender
    finally:
        await sender.close()
