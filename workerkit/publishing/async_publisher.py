"""Publishing from code that runs on an event loop: ASGI applications, asyncio programs."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterable, AsyncIterator, Iterable
from typing import Any, Self, Unpack

from workerkit.outgoing import MessageOptions, Outgoing, compose
from workerkit.properties import decode_ids
from workerkit.publishing.adapters import MakeAdapter
from workerkit.publishing.base import BasePublisher, as_message
from workerkit.publishing.sender import Sender


class AsyncPublisher(BasePublisher):
    """Publishes and waits for the broker's confirm, on the caller's event loop::

        async with AsyncPublisher("amqp://guest:guest@localhost:5672/%2F") as publisher:
            await publisher.publish("thumbnails", {"path": "a.png"}, delay=10)

    What holds for ``Publisher`` holds here, with ``await``. It belongs to the loop that first publishes with it; once
    that has been closed, or in a forked child, to the next that does. A publish whose task is cancelled may have been
    published.

    Args and Raises: those of ``Publisher``.
    """

    def _prepare(self, make_adapter: MakeAdapter, timeout: float) -> None:
        super()._prepare(make_adapter, timeout)
        self._owner: tuple[asyncio.AbstractEventLoop, int] | None = None
        self._sender: Sender
        self._left: list[Sender] = []  # of a parent, whose sockets nothing here may close by throwing them away

    async def publish(self, queue: str | None, data: Any = None, **options: Unpack[MessageOptions]) -> str:
        """Publish one message; returns its id when the broker has it. Arguments and errors as ``Publisher.publish``."""
        message = compose(queue, data, **options)
        await self._here().publish(message)
        return decode_ids(message.raw_properties)[0] or ""

    async def publish_many(
        self, messages: Iterable[Outgoing | tuple[str, Any]] | AsyncIterable[Outgoing | tuple[str, Any]]
    ) -> int:
        """Publish many, with many in flight; returns how many there were. As ``Publisher.publish_many``.

        Args:
            messages: an asynchronous iterable, or a plain one that does not block.
        """
        return await self._here().publish_many(_one_by_one(messages))

    async def close(self) -> None:
        """Wait for what is being published, close the connection, and publish no more. May be called again."""
        self._closed = True
        if self._owner == (asyncio.get_running_loop(), os.getpid()):
            await self._sender.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self.close()

    def _here(self) -> Sender:
        self._check_open()
        here = asyncio.get_running_loop(), os.getpid()
        if self._owner != here:
            if self._owner is not None:
                loop, pid = self._owner
                if pid == here[1] and not loop.is_closed():
                    raise RuntimeError("this publisher belongs to another event loop, which is still open")
                self._left.append(self._sender)
            self._sender = Sender(self._make_adapter(), self._timeout)
            self._owner = here
        return self._sender


async def _one_by_one(
    messages: Iterable[Outgoing | tuple[str, Any]] | AsyncIterable[Outgoing | tuple[str, Any]],
) -> AsyncIterator[tuple[Outgoing]]:
    if isinstance(messages, AsyncIterable):
        async for message in messages:
            yield (as_message(message),)
    else:
        for message in messages:
            yield (as_message(message),)
