"""The connection that a worker consumes over: made, watched, and made again after every loss."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from workerkit.brokers.backoff import Backoff
from workerkit.brokers.rabbitmq.amqp import Connection
from workerkit.brokers.rabbitmq.background import Background
from workerkit.brokers.rabbitmq.subscription import REFUSED_DELAY, Subscription
from workerkit.errors import AccessRefused, BrokerError, ConfigurationError, ConnectionFailed, ConnectionLost
from workerkit.settings.model import BrokerSettings

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

WATCH_INTERVAL = 5.0
"""Seconds between two checks that the broker still has our consumers and serves them."""
_CHECKS = 10
"""Sources that are checked in one go; of more, each has its turn later."""
_RESTORE_TIMEOUT = 5.0
"""Seconds for which a connection waits for its sources before it counts as up; one that is in trouble goes on alone."""


async def connect(settings: BrokerSettings, name: str) -> Connection:
    """Connect to the first of the configured URLs that answers.

    Raises:
        ConnectionFailed: none did; each is named with its reason.
        AccessRefused: one refused.
    """
    urls = [settings.url] if isinstance(settings.url, str) else settings.url
    failures = []
    for url in urls:
        try:
            return await Connection.open(
                url, name=name, heartbeat=settings.heartbeat, attempt_timeout=settings.connection_timeout
            )
        except (ConnectionFailed, ConnectionLost) as error:
            failures.append(str(error))
    raise ConnectionFailed("; ".join(failures))


class ConsumerConnection:
    """Keeps one connection open for all sources of a worker, and each of them open on it.

    Args:
        settings: where the broker is.
        name: of the connection, for the management page.
        sources: what is consumed over it.
        background: where it is watched.
        log: losses and tries.
    """

    def __init__(
        self,
        settings: BrokerSettings,
        name: str,
        sources: Sequence[Subscription],
        background: Background,
        log: FilteringBoundLogger,
    ) -> None:
        self._settings = settings
        self._name = name
        self._sources = sources
        self._log = log
        self._background = background
        self._connection: Connection | None = None
        self._backlog = False  # more was sent to us lately than was read at once
        self._asking = 0  # how many wait for an answer, which comes behind all that was sent before

    async def start(self) -> None:
        """Connect and see that the queues of all sources are there. Waits for a broker for as long as it takes.

        Raises:
            AccessRefused: the broker refused us.
            ConfigurationError: a queue is missing or different.
        """
        await self._open(first=True)
        self._background.start(self._keep())
        self._background.start(self._watch())

    async def _keep(self) -> None:
        while True:
            assert self._connection is not None
            reason = await asyncio.shield(self._connection.closed)
            started = time.monotonic()
            self._log.warning("conn.lost", why=str(reason))
            await self._open(first=False)
            self._log.info("conn.up", after_ms=round((time.monotonic() - started) * 1000))

    async def _open(self, *, first: bool) -> None:
        backoff = Backoff()
        while True:
            try:
                await self._try(first=first)
                return
            except (AccessRefused, ConfigurationError) as error:
                if first:
                    raise
                self._log.error("conn.refused", error=str(error), again_in=REFUSED_DELAY)
                await asyncio.sleep(REFUSED_DELAY)
            except BrokerError as error:
                delay = backoff.delay()
                self._log.warning("conn.failed", error=str(error), again_in=round(delay, 2))
                await asyncio.sleep(delay)
                backoff = backoff.next()

    async def _try(self, *, first: bool) -> None:
        """One try: the connection and, at the start, all sources. Later each source finds its own way back."""
        connection = await connect(self._settings, self._name)
        if not first:
            self._connection = connection
            await asyncio.wait([source.restore(connection) for source in self._sources], timeout=_RESTORE_TIMEOUT)
            if not connection.is_open:
                raise connection.closed.result()
            return
        try:
            for source in self._sources:
                await source.open(connection)
        except BaseException:
            await connection.close()
            raise
        self._connection = connection

    async def _watch(self) -> None:
        turns = itertools.cycle(self._sources)
        while True:
            await asyncio.sleep(WATCH_INTERVAL)
            if self._backlog:
                self._backlog = False
                continue  # we are served, more than we can take; an answer would come behind all of that, too late
            for source in itertools.islice(turns, min(_CHECKS, len(self._sources))):
                await source.check()

    # ---- leaving what was sent in the network

    def hold(self, hold: bool) -> None:
        """Read nothing for a moment, or go on. While an answer of the broker is awaited there is no holding."""
        if self._connection is not None and not (hold and self._asking):
            self._backlog = self._backlog or hold
            self._connection.hold(hold)

    async def take(self, source: Subscription, window: int) -> None:
        """Have a source take as much, with nothing held back that the broker's answers come behind."""
        self._asking += 1
        self.hold(False)
        try:
            await source.take(window)
        finally:
            self._asking -= 1

    # ---- the end

    async def close(self, deadline: float) -> None:
        """Close every source, then the connection, each in order if that can be done until ``deadline`` (monotonic)."""
        self._asking += 1
        self.hold(False)
        await self._background.finish(0)
        await asyncio.gather(*(source.close(deadline) for source in self._sources))
        if self._connection is not None:
            await self._connection.close(max(0.0, deadline - time.monotonic()))
