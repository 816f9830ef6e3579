"""The brokers that the suite runs on: how to make an adapter, and what happens outside of it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit, urlunsplit

import msgspec
import structlog
from contract.peer import PATIENCE, Peer
from support.rabbit import Rabbit

from workerkit.brokers.memory.broker import MemoryBroker
from workerkit.brokers.memory.store import MemoryStore
from workerkit.brokers.rabbitmq.broker import RabbitmqBroker
from workerkit.envelope import dead_queue_name
from workerkit.outgoing import Outgoing
from workerkit.ports import Broker
from workerkit.properties import Properties, decode_headers, encode
from workerkit.settings.model import BrokerSettings, Duration, QueueSettings
from workerkit.settlement import ACKNOWLEDGE, RetryLater
from workerkit.testing.rabbitmq import PrivateRabbitmq

Letter = tuple[bytes, dict[str, Any]]
"""A message outside of the adapter: body and headers."""


class World(ABC):
    """One broker with queues of this test's own.

    Args:
        prefix: of the names of its queues.
    """

    native = False
    """The broker delays retries by itself, by a rule of its own."""

    def __init__(self, prefix: str) -> None:
        self.queue = f"{prefix}.a"
        self.other = f"{prefix}.b"
        self.peers: list[Peer] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for peer in self.peers:
            await peer.close()
        await self.clean_up()
        if error is None:
            for peer in self.peers:
                peer.check()

    async def peer(self, *queues: str, window: int = 0, single_active: bool = False, **plan: int) -> Peer:
        """A started worker; of the usual queue unless others are given."""
        peer = Peer(await self.make_broker(single_active=single_active))
        self.peers.append(peer)
        await peer.start(*(queues or (self.queue,)), window=window, **plan)
        return peer

    def least_delay(self, later: RetryLater) -> float:
        """Seconds before which a retry must not come."""
        return later.delay

    def attempt_after_losses(self, losses: int) -> int:
        """The number of the attempt as which a message comes whose worker was lost so often."""
        return 1

    def after_hand_back(self, returned: list[bytes], waiting: list[bytes]) -> list[bytes]:
        """The order in which a queue gives what was handed back and what nobody has had yet."""
        return returned + waiting

    def in_order(self, bodies: list[bytes]) -> list[bytes]:
        """What came back from a consumer that is gone, in the order that counts: the queue's."""
        return bodies

    @abstractmethod
    async def make_broker(self, *, single_active: bool) -> Broker:
        """Another worker's adapter."""

    @abstractmethod
    def put(self, *bodies: bytes, queue: str = "", **properties: Any) -> None:
        """Publish to a queue from elsewhere, through the default exchange, each body with its text as message id."""

    @abstractmethod
    def take_all(self, queue: str) -> list[Letter]:
        """Take all that is ready in a queue, past the adapter."""

    @abstractmethod
    async def lose(self, peer: Peer, queue: str) -> None:
        """Have a worker lose its connection to a source with all that is unsettled; it comes back by itself."""

    @abstractmethod
    async def take_away(self, peer: Peer, queue: str) -> None:
        """Have a worker lose one source and no other; it comes back by itself. Its messages may be gone."""

    async def back(self, peer: Peer, queue: str) -> None:
        """See that a source that was taken away delivers again."""
        await peer.broker.take(queue, 9)
        self.put(b"afterwards", queue=queue)
        await peer.until(lambda: peer.arrived[-1].body == b"afterwards", "it delivers again")

    @abstractmethod
    async def vanish(self, peer: Peer) -> None:
        """Cut a worker off for good, as when its machine dies."""

    @abstractmethod
    async def clean_up(self) -> None:
        """Remove the queues."""

    async def letters(self, queue: str, count: int | None) -> list[Letter]:
        """Wait for so many messages in a queue and take them; None: those that are there now."""
        found = self.take_all(queue)
        if count is None:
            return found

        def enough() -> bool:
            found.extend(self.take_all(queue))
            return len(found) >= count

        await eventually(enough, f"{count} messages in {queue}")
        assert len(found) == count
        return found

    async def dead(self, count: int | None = 1) -> list[Letter]:
        """The dead letters of the usual queue."""
        return await self.letters(dead_queue_name(self.queue), count)


async def eventually(condition: Callable[[], bool], what: str) -> None:
    """Wait for something that a broker does without telling anybody."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"not within {PATIENCE:g} s: {what}"
        await asyncio.sleep(0.02)


class MemoryWorld(World):
    """A store of this test's own."""

    def __init__(self, prefix: str) -> None:
        super().__init__(prefix)
        self.store = MemoryStore(time.monotonic)
        self.store.declare(self.queue)

    async def make_broker(self, *, single_active: bool) -> MemoryBroker:
        arguments = {"x-single-active-consumer": True} if single_active else {}
        return MemoryBroker(self.store, {self.queue: QueueSettings(arguments=arguments)})

    def put(self, *bodies: bytes, queue: str = "", **properties: Any) -> None:
        queue = queue or self.queue
        for body in bodies:
            given = Properties(
                **{"message_id": body.decode("utf-8", "replace")[:200], "delivery_mode": 2, **properties}
            )
            self.store.publish(Outgoing("", queue, encode(given), body))

    def take_all(self, queue: str) -> list[Letter]:
        self.store.redeliver(queue)
        found = []
        while deliveries := self.store.receive(queue, 100):
            for delivery in deliveries:
                self.store.settle(delivery, ACKNOWLEDGE, "")
                found.append((delivery.body, decode_headers(delivery.raw_properties)))
        return found

    async def lose(self, peer: Peer, queue: str) -> None:
        assert isinstance(peer.broker, MemoryBroker)
        peer.broker.lose(queue)

    async def vanish(self, peer: Peer) -> None:
        assert isinstance(peer.broker, MemoryBroker)
        for queue in peer.queues:
            await peer.broker.take(queue, 0)
            peer.broker.lose(queue)

    async def take_away(self, peer: Peer, queue: str) -> None:
        await self.lose(peer, queue)

    async def clean_up(self) -> None:
        """It goes with the test."""


class RabbitmqWorld(World):
    """Queues on a real node; each worker reaches it through a proxy of its own, which can be cut.

    Args:
        prefix: of the names of its queues.
        node: has them.
        settings: of the queues.
    """

    def __init__(self, prefix: str, node: PrivateRabbitmq, settings: QueueSettings) -> None:
        super().__init__(prefix)
        self._url = node.url
        self._version = node.version
        self._settings = settings
        self._rabbit = Rabbit(node.url)
        self._proxies: dict[Broker, Proxy] = {}
        self.native = settings.delayed_retry is not None

    def least_delay(self, later: RetryLater) -> float:
        delayed = self._settings.delayed_retry
        return later.delay if delayed is None or later.explicit else delayed.min * (later.attempt - 1)

    def attempt_after_losses(self, losses: int) -> int:
        """With native retry the queue counts losses as the failures that they mostly are."""
        return 1 + losses if self.native else 1

    def after_hand_back(self, returned: list[bytes], waiting: list[bytes]) -> list[bytes]:
        """Measured with pika alone: quorum queues of 3.10 give first what nobody has had, those of 4.0 and 4.3 not."""
        behind = self._settings.type == "quorum" and self._version.startswith("3.")
        return waiting + returned if behind else returned + waiting

    def in_order(self, bodies: list[bytes]) -> list[bytes]:
        """RabbitMQ puts what a closed channel had back one by one, while others take: the order is not kept."""
        return sorted(bodies)

    async def back(self, peer: Peer, queue: str) -> None:
        """Its queue has to be declared again before anything can be published to it."""
        await eventually(lambda: self._rabbit.consumers(queue) > 0, "it is consumed again")
        await super().back(peer, queue)

    async def make_broker(self, *, single_active: bool) -> Broker:
        proxy = await Proxy.open(self._url)
        settings = self._settings
        if single_active:
            settings = msgspec.structs.replace(settings, arguments={"x-single-active-consumer": True})
        broker = RabbitmqBroker(
            BrokerSettings(url=proxy.url, heartbeat=Duration(5)),
            {self.queue: settings, self.other: settings},
            {},
            name=f"peer{len(self.peers)}",
            log=structlog.get_logger(),
        )
        self._proxies[broker] = proxy
        return broker

    def put(self, *bodies: bytes, queue: str = "", **properties: Any) -> None:
        self._rabbit.publish(queue or self.queue, *bodies, **properties)

    def take_all(self, queue: str) -> list[Letter]:
        return [(body, properties.headers or {}) for body, properties in self._rabbit.take_all(queue)]

    async def lose(self, peer: Peer, queue: str) -> None:
        await peer.broker.wanted_elsewhere(queue)  # its answer comes behind what was written before
        self._proxies[peer.broker].cut()

    async def take_away(self, peer: Peer, queue: str) -> None:
        self._rabbit.delete(queue)

    async def vanish(self, peer: Peer) -> None:
        self._proxies[peer.broker].close()

    async def clean_up(self) -> None:
        for proxy in self._proxies.values():
            await proxy.end()
        for queue in (self.queue, self.other):
            waiting = (f"{queue}.retry.{delay}" for delay in ("200ms", "400ms"))
            self._rabbit.delete(queue, dead_queue_name(queue), *waiting)
        self._rabbit.__exit__()


class Proxy:
    """A way to a node over TCP that can be cut at any moment."""

    def __init__(self, url: str, host: str, port: int) -> None:
        self._target = (host, port)
        self._original = url
        self._server: asyncio.Server
        self._writers: set[asyncio.StreamWriter] = set()
        self._connections: set[asyncio.Task[None]] = set()

    @classmethod
    async def open(cls, url: str) -> Self:
        parts = urlsplit(url)
        assert parts.hostname
        assert parts.port
        proxy = cls(url, parts.hostname, parts.port)
        proxy._server = await asyncio.start_server(proxy._accept, "127.0.0.1", 0)
        return proxy

    @property
    def url(self) -> str:
        """The node's address by way of this proxy."""
        parts = urlsplit(self._original)
        port = self._server.sockets[0].getsockname()[1]
        return urlunsplit(parts._replace(netloc=f"{parts.username}:{parts.password}@127.0.0.1:{port}"))

    def cut(self) -> None:
        """End all connections at once."""
        for writer in self._writers:
            writer.transport.abort()

    def close(self) -> None:
        """Cut, and let nobody through any more."""
        self._server.close()
        self.cut()

    async def end(self) -> None:
        """Close, and see that nothing of it is left."""
        self.close()
        while self._connections:
            await asyncio.wait(self._connections)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)
        there_reader, there_writer = await asyncio.open_connection(*self._target)
        self._writers |= {writer, there_writer}
        await asyncio.gather(self._pump(reader, there_writer), self._pump(there_reader, writer))
        self._writers -= {writer, there_writer}

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()
