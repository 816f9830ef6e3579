"""How an executor makes its consumer look: at once, or once for a turn of its event loop."""

import asyncio
import os
import socket
import threading
from collections.abc import Iterator

import pytest

from workerkit.settlement import ACK
from workerkit.worker.link import FrameReader, Kind
from workerkit.worker.page import Page
from workerkit.worker.uplink import LinkHandle, Uplink


class Consumer:
    """The other end: looks into the page after each wake-up, as the consumer does, so that each one counts."""

    def __init__(self, sock: socket.socket, page: Page) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._page = page
        self._reader = FrameReader()

    def woken(self) -> int:
        """How often it was woken since the last time."""
        try:
            frames = self._reader.feed(self._sock.recv(1000))
        except BlockingIOError:
            return 0
        self._page.acknowledged({})
        assert all(kind == Kind.WAKE for kind, *_ in frames)
        return len(frames)


@pytest.fixture
def ends() -> Iterator[tuple[Uplink, Consumer]]:
    ours, theirs = socket.socketpair()
    page, descriptor = Page.create()
    os.close(descriptor)
    with ours, theirs:
        yield Uplink(theirs, page), Consumer(ours, page)


def acknowledge(uplink: Uplink, seq: int) -> None:
    LinkHandle(uplink, seq, seq).settle(ACK)


def test_without_a_loop_each_acknowledgement_wakes_a_consumer_that_sleeps(ends: tuple[Uplink, Consumer]) -> None:
    """It must not wait for the next callback, which may take hours."""
    uplink, consumer = ends
    for seq in range(3):
        acknowledge(uplink, seq)
        assert consumer.woken() == 1


async def test_with_a_loop_all_that_is_acknowledged_in_one_turn_wakes_it_once(ends: tuple[Uplink, Consumer]) -> None:
    """Behind the last of it: a wake-up costs both processes more than a message."""
    uplink, consumer = ends
    uplink.wake_from(asyncio.get_running_loop())
    for seq in range(3):
        acknowledge(uplink, seq)
        assert consumer.woken() == 0
    await asyncio.sleep(0)
    assert consumer.woken() == 1
    acknowledge(uplink, 3)
    await asyncio.sleep(0)
    assert consumer.woken() == 1


async def test_what_another_thread_acknowledges_wakes_it_at_once(ends: tuple[Uplink, Consumer]) -> None:
    """The loop may be waiting for something else for a long time, and is not to be touched from there."""
    uplink, consumer = ends
    uplink.wake_from(asyncio.get_running_loop())
    thread = threading.Thread(target=acknowledge, args=(uplink, 1))
    thread.start()
    thread.join()
    assert consumer.woken() == 1
