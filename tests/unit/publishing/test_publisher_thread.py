"""The thread behind ``Publisher``: what it is handed, what it hands back, and what becomes of it."""

from __future__ import annotations

import asyncio
import asyncio.selector_events
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from workerkit import Publisher, PublishTimeout
from workerkit.outgoing import Outgoing
from workerkit.publishing import publisher as publisher_module
from workerkit.publishing import thread as thread_module


class Adapter:
    """Confirms at once, on the next turn of the loop."""

    blocked_by = ""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []

    def ready(self, _message: Outgoing) -> bool:
        return True

    async def room(self, _message: Outgoing) -> None:
        raise AssertionError("there is room")

    def submit(self, message: Outgoing, ended: Any) -> None:
        self.bodies.append(message.body)
        asyncio.get_running_loop().call_soon(ended, None)

    async def close(self) -> None:
        pass


@pytest.fixture
def adapter() -> Adapter:
    return Adapter()


@pytest.fixture
def publisher(adapter: Adapter) -> Iterator[Publisher]:
    with Publisher("amqp://127.0.0.1:1", timeout=5) as publisher:
        publisher._make_adapter = lambda: adapter
        yield publisher


def test_threads_that_publish_first_at_the_same_time_share_one_connection(publisher: Publisher) -> None:
    """Whoever comes second stops the thread that it has made."""
    adapters: list[Adapter] = []

    def make() -> Adapter:
        adapters.append(Adapter())
        return adapters[-1]

    publisher._make_adapter = make
    start = threading.Barrier(8)
    before = running()

    def work() -> None:
        start.wait()
        publisher.publish("q", 1)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(adapters) == 1
    assert len(adapters[0].bodies) == 8
    deadline = time.monotonic() + 5
    while running() != before + 1:
        assert time.monotonic() < deadline, "a thread that nobody needs goes on"


def running() -> int:
    """Threads of this process, those that Python does not know of included."""
    return len(list(Path("/proc/self/task").iterdir()))


def test_a_thread_that_does_not_run_is_a_timeout_and_not_a_wait_without_end(
    publisher: Publisher, adapter: Adapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some servers that embed Python do not let threads run."""
    stalled = threading.Event()
    monkeypatch.setattr(adapter, "submit", lambda *_: stalled.wait(10))
    monkeypatch.setattr(publisher_module, "_STALL", 0.2)
    publisher._timeout = 0.1
    with pytest.raises(PublishTimeout, match="thread does not run"):
        publisher.publish("q", 1)
    stalled.set()


def test_a_thread_that_never_runs_is_a_timeout_too(monkeypatch: pytest.MonkeyPatch, publisher: Publisher) -> None:
    """It does not even come to make its loop."""
    monkeypatch.setattr(thread_module._thread, "start_new_thread", lambda *_: 0)
    monkeypatch.setattr(publisher_module, "_STALL", 0.05)
    with pytest.raises(PublishTimeout, match="does not run; nothing was sent"):
        publisher.publish("q", 1)


def test_nothing_is_logged_on_the_thread_of_the_caller(publisher: Publisher, monkeypatch: pytest.MonkeyPatch) -> None:
    """Logging takes a lock, which a signal handler that publishes would find held by what it has interrupted."""
    speakers: list[int] = []
    monkeypatch.setattr(asyncio.selector_events.logger, "debug", lambda *_: speakers.append(threading.get_ident()))
    publisher.publish("q", 1)
    assert speakers
    assert threading.get_ident() not in speakers


@pytest.mark.parametrize("lost", [False, True], ids=["refused by the closed loop", "taken by the closed loop"])
def test_a_close_in_the_midst_of_a_publish_is_told_to_it(publisher: Publisher, lost: bool) -> None:
    """A signal handler does that: what was not handed over yet never will be, and nobody waits for it."""
    publisher.publish("q", 1)
    (thread,) = publisher._threads.values()
    hand_over = thread._loop.call_soon_threadsafe

    def interrupted(callback: Any) -> Any:
        thread._loop.call_soon_threadsafe = hand_over  # type: ignore[method-assign]
        publisher.close()
        return None if lost else hand_over(callback)

    thread._loop.call_soon_threadsafe = interrupted  # type: ignore[assignment,method-assign]
    with pytest.raises(RuntimeError, match="the publisher is closed"):
        publisher.publish("q", 2)


def test_many_from_an_iterable_that_publishes_itself(publisher: Publisher, adapter: Adapter) -> None:
    """It runs in the caller's thread, and nothing is locked meanwhile."""

    def messages() -> Iterator[tuple[str, int]]:
        for number in range(500):
            publisher.publish("other", -number)
            yield "q", number

    assert publisher.publish_many(messages()) == 500
    assert sorted(map(int, adapter.bodies)) == sorted([*range(500), *(-number for number in range(500))])


def test_a_publisher_can_be_closed_before_it_was_used_and_twice() -> None:
    """Nothing was started, nothing is waited for."""
    publisher = Publisher("amqp://127.0.0.1:1")
    publisher.close()
    publisher.close()
    with pytest.raises(RuntimeError, match="the publisher is closed"):
        publisher.publish("q", 1)


def test_closing_does_not_wait_for_a_source_that_is_silent(publisher: Publisher, adapter: Adapter) -> None:
    """What it gave is published; whoever reads it learns that the rest is not."""
    silent = threading.Event()

    def messages() -> Iterator[tuple[str, int]]:
        yield "q", 1
        silent.wait(10)
        while True:
            yield "q", 2

    with ThreadPoolExecutor(1) as pool:
        publishing = pool.submit(publisher.publish_many, messages())
        while not adapter.bodies:
            assert not publishing.done()
        publisher.close()
        assert not publishing.done()
        silent.set()
        with pytest.raises(RuntimeError, match="closed meanwhile"):
            publishing.result(10)
    assert adapter.bodies == [b"1"]
