"""Publishing from code without an event loop: scripts, jobs, WSGI applications."""

from __future__ import annotations

import atexit
import os
import weakref
from collections.abc import Iterable
from typing import Any, Self, TypeVar, Unpack

from workerkit.errors import PublishTimeout
from workerkit.outgoing import MessageOptions, Outgoing, compose
from workerkit.properties import decode_ids
from workerkit.publishing.adapters import MakeAdapter
from workerkit.publishing.base import BasePublisher, as_message
from workerkit.publishing.sender import Sender
from workerkit.publishing.thread import Feed, LoopThread, Sending

_STALL = 5.0
"""Seconds beyond its time that a message is waited for, before its thread counts as one that does not run."""
_EXIT_PATIENCE = 2.0
"""Seconds for which the end of the interpreter waits for what threads that it does not wait for are publishing."""

_DOES_NOT_RUN, _REMEDY = "the publisher's thread does not run", "uWSGI needs `enable-threads`"

T = TypeVar("T")
_ProcessKey = tuple[int, int]
_forks = 0  # a process id alone may come back in a descendant
_inherited: list[LoopThread] = []
"""What belongs to processes that this one was forked from. Kept, so that nothing of it is ever closed from here: its
sockets and its epoll descriptor are shared with the parent."""
_publishers: weakref.WeakSet[Publisher] = weakref.WeakSet()


class Publisher(BasePublisher):
    """Publishes and waits for the broker's confirm::

        with Publisher("amqp://guest:guest@localhost:5672/%2F") as publisher:
            publisher.publish("thumbnails", {"path": "a.png"}, delay=10)

    One per process is enough: any number of threads may publish at once, each waits only for its own message. The
    connection is opened by the first publish and again after a loss. A message that was on its way when the connection
    was lost is published again, with the same message id: it may arrive twice, and is not lost.

    * **Event loops**: a publish blocks the thread that calls it; code on a loop uses ``AsyncPublisher``.
    * **Forks**: a child opens a connection of its own when it first publishes, and never touches its parent's. What the
      parent's threads are publishing at that moment is the parent's.
    * **Signal handlers** may publish and close, also when they interrupt a publish.
    * **close()** waits for what other threads are publishing; a publish after it is a RuntimeError, and so ends a
      ``publish_many`` whose iterable goes on. In a child, it closes the child's connection only.
    * **The end of the interpreter** closes what is open. It waits two seconds for what daemon threads are publishing.

    Args:
        url: ``amqp://`` or ``amqps://`` (which verifies the certificate), or several, that are tried in turn.
        timeout: seconds for one message, from the call to the confirm; connecting is part of it.

    Raises:
        ValueError: that is no URL of a broker.
    """

    def _prepare(self, make_adapter: MakeAdapter, timeout: float) -> None:
        super()._prepare(make_adapter, timeout)
        self._threads: dict[_ProcessKey, LoopThread] = {}
        _publishers.add(self)
        weakref.finalize(self, _stop, self._threads).atexit = False

    def publish(self, queue: str | None, data: Any = None, **options: Unpack[MessageOptions]) -> str:
        """Publish one message; returns when the broker has it.

        Args:
            queue: the queue it is for; it must exist. None when an ``exchange`` routes it.
            data: the body as JSON: anything msgspec encodes, such as dicts, dataclasses, Structs, dates.
            options: ``body`` (bytes instead of ``data``), ``exchange`` and ``routing_key`` instead of a queue,
                ``delay`` in seconds until it comes to the queue, ``headers``, ``message_id``, ``correlation_id``,
                ``content_type``, ``priority``, ``type``, ``app_id``, ``reply_to``, ``expiration`` in seconds,
                ``timestamp``.

        Returns:
            The message id: the given one, or a random one.

        Raises:
            Unroutable: no queue took it: it is nowhere.
            PublishRefused: the broker refused it, as the queue is full for example: it is nowhere.
            PublishTimeout: it was not confirmed in time; the text says whether it may have arrived.
            AccessRefused: the broker refused the credentials.
            ConfigurationError: a delay needs a queue that is not there and may not be declared.
            TypeError, ValueError: it cannot be sent.
            RuntimeError: the publisher is closed.
        """
        message = compose(queue, data, **options)
        sending = self._thread().submit(lambda sender: sender.publish(message))
        _result(sending, self._timeout + _STALL)
        return decode_ids(message.raw_properties)[0] or ""

    def publish_many(self, messages: Iterable[Outgoing | tuple[str, Any]]) -> int:
        """Publish many, with many in flight; returns when the broker has all of them.

        In order, as long as no connection is lost. The iterable is read no more than some hundred messages ahead of the
        broker: it may be slow, and as long as it likes.

        Args:
            messages: pairs of queue and data, or what ``message`` returns.

        Returns:
            How many there were.

        Raises:
            PublishFailed: Unroutable, PublishRefused or PublishTimeout: the first message that failed, by its
                ``index``. All before it are confirmed, some after it may be; the rest was not read.
            Exception: as ``publish``, and whatever the iterable raises; then what it gave before has been confirmed.
        """
        thread = self._thread()
        feed = Feed(thread)

        async def publish(sender: Sender) -> int:
            try:
                return await sender.publish_many(feed.batches())
            finally:
                feed.refuse()

        sending = thread.submit(publish)
        try:
            for message in messages:
                if not feed.put(as_message(message)):
                    break
        finally:
            feed.end()
            confirmed = _result(sending)
        return confirmed

    def close(self) -> None:
        """Wait for what is being published, close the connection, and publish no more. May be called again."""
        self._closed = True
        if thread := _stop(self._threads):
            thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def _thread(self) -> LoopThread:
        """This process's own. No lock: a fork could take it along, held by a thread that is not there any more."""
        self._check_open()
        key = _this_process()
        thread = self._threads.get(key)
        if thread is None:
            make_adapter, timeout = self._make_adapter, self._timeout  # the thread must not keep `self` alive
            try:
                fresh = LoopThread(lambda: Sender(make_adapter(), timeout), _STALL)
            except TimeoutError:
                raise PublishTimeout(f"{_DOES_NOT_RUN}; nothing was sent ({_REMEDY})") from None
            thread = self._threads.setdefault(key, fresh)
            if thread is not fresh:  # somebody else was faster: another thread, or a signal handler in this one
                fresh.stop()
        return thread


def _result(sending: Sending[T], patience: float | None = None) -> T:
    try:
        return sending.result(patience)
    except TimeoutError:
        sending.cancel()
        raise PublishTimeout(f"{_DOES_NOT_RUN}; the message may have arrived ({_REMEDY})") from None
    except BaseException:
        sending.cancel()  # interrupted, by Ctrl-C say: what is not sent yet never is
        raise


def _this_process() -> _ProcessKey:
    return os.getpid(), _forks


def _stop(threads: dict[_ProcessKey, LoopThread]) -> LoopThread | None:
    """Stop this process's own thread, if there is one. Also called when a publisher was thrown away unclosed."""
    if (thread := threads.get(_this_process())) is not None:
        thread.stop()
    return thread


def _after_fork() -> None:
    global _forks  # noqa: PLW0603 - one process, one count
    _forks += 1
    for publisher in _publishers:
        _inherited.extend(publisher._threads.values())  # noqa: SLF001 - this module


def _at_exit() -> None:
    for publisher in tuple(_publishers):
        publisher._closed = True  # noqa: SLF001
        if thread := _stop(publisher._threads):  # noqa: SLF001
            thread.join(_EXIT_PATIENCE)


os.register_at_fork(after_in_child=_after_fork)
atexit.register(_at_exit)
