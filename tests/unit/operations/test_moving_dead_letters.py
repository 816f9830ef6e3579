"""Dead letters that are moved or dropped: what counts as done, and which failure is told."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from support.loops import on_a_loop

from workerkit.errors import ConnectionLost
from workerkit.operations import dead_letters
from workerkit.operations.letters import Matching
from workerkit.ports import Delivery
from workerkit.publishing.sender import Sender
from workerkit.settings import Settings


class Broker:
    """A queue of two dead letters whose channel is gone when one is to be taken out."""

    def __init__(self) -> None:
        self._letters = [Delivery("q.dead", "", "q.dead", False, 1, b"\0\0", b"%d" % number) for number in range(2)]

    async def ready(self, _queue: str) -> int:
        return 2

    @asynccontextmanager
    async def browse(self, _queue: str, _count: int) -> AsyncIterator[Any]:
        yield self

    async def next(self) -> Delivery | None:
        return self._letters.pop(0) if self._letters else None

    def ack(self, _delivery: Delivery) -> None:
        raise ConnectionLost("the channel is closed")

    def replayed(self, delivery: Delivery) -> bytes:
        return delivery.raw_properties


class Adapter:
    """Confirms at once."""

    def __init__(self) -> None:
        self.copies: list[bytes] = []

    def ready(self, _message: Any) -> bool:
        return True

    def submit(self, message: Any, ended: Any) -> None:
        self.copies.append(message.body)
        ended(None)

    async def close(self) -> None:
        pass


@pytest.mark.parametrize("replays", [True, False], ids=["replay", "drop"])
@on_a_loop
async def test_a_dead_letter_that_cannot_be_taken_out_is_a_failure(
    monkeypatch: pytest.MonkeyPatch, replays: bool
) -> None:
    """Its copy may be confirmed: then it is in both queues. That is told, and no more are moved."""
    adapter = Adapter()

    @asynccontextmanager
    async def opened(*_: Any) -> AsyncIterator[Any]:
        yield Broker()

    @asynccontextmanager
    async def sender(_settings: Settings) -> AsyncIterator[Sender]:
        yield Sender(adapter, 1)  # type: ignore[arg-type]

    monkeypatch.setattr(dead_letters, "administer", opened)
    monkeypatch.setattr(dead_letters, "sender_of_a_command", sender)
    progress: list[tuple[int, int]] = []

    def tell(done: int, total: int) -> None:
        progress.append((done, total))

    if replays:
        moved = await dead_letters.replay(Settings(), "q", Matching(), "q", tell)
    else:
        moved = await dead_letters.drop(Settings(), "q", Matching(), tell)
    assert isinstance(moved.error, ConnectionLost)
    assert str(moved.error) == "number 1: the channel is closed"
    assert (moved.done, moved.skipped, progress) == (0, (), [(0, 2)])
    assert adapter.copies == ([b"0"] if replays else [])
