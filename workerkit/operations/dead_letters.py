"""The dead letters of a queue: looking at them, bringing them back, dropping them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

from workerkit.brokers.administration import Administration, Browsing
from workerkit.envelope import DEAD_SUFFIX, dead_queue_name, is_dead_queue_name
from workerkit.errors import BadData, BrokerError, WorkerkitError
from workerkit.operations.brokers import administer
from workerkit.operations.letters import DeadLetter, Details, Matching, Select, details
from workerkit.operations.publishing import sender_of_a_command
from workerkit.outgoing import Outgoing
from workerkit.publishing.sender import Run
from workerkit.settings import Settings

T = TypeVar("T")


@dataclass(frozen=True)
class Found(Generic[T]):
    """Dead letters that were looked at.

    Attributes:
        queue: the dead-letter queue.
        ready: how many were in it.
        letters: what was made of each that was selected.
        error: what was asked for and is not there.
    """

    queue: str
    ready: int
    letters: list[T]
    error: WorkerkitError | None


@dataclass(frozen=True)
class Moved:
    """What became of the selected dead letters.

    Attributes:
        queue: the dead-letter queue.
        ready: how many were in it at the start.
        done: how many of them are no longer.
        skipped: those that could not be copied, each with its reason. They are still in the queue.
        interrupted: the task was cancelled, and what was on its way has been waited for.
        error: why not all that was asked for was done.
    """

    queue: str
    ready: int
    done: int
    skipped: tuple[str, ...]
    interrupted: bool
    error: BaseException | None


Progress = Callable[[int, int], None]
"""Called with how many are done, and how many there may be to do: not all of them need be selected."""


def died_in(queue: str) -> str:
    """The queue in which messages died, by its own name or by that of its dead-letter queue."""
    return queue.removesuffix(DEAD_SUFFIX)


def dead_queue_of(queue: str) -> str:
    """The dead-letter queue that is meant by its own name or by that of the queue in which its messages died."""
    return queue if is_dead_queue_name(queue) else dead_queue_name(queue)


async def read(settings: Settings, queue: str, select: Select, keep: Callable[[DeadLetter], T]) -> Found[T]:
    """Look at dead letters; all stay where they are.

    Args:
        settings: where the broker is.
        queue: where they died, or their dead-letter queue.
        select: which of them.
        keep: what to keep of each, such as ``summary``: their bodies together may not fit into memory.

    Raises:
        QueueNotFound: there is no such queue.
        BrokerError: the broker is away, or refuses us.
    """
    name = dead_queue_of(queue)
    async with administer(settings, "dead") as broker:
        ready = await broker.ready(name)
        letters, ids = [], set()
        async with broker.browse(name, ready) as browsing:
            async for letter in _selected(browsing, select):
                letters.append(keep(letter))
                ids.add(letter.message_id)
    return Found(name, ready, letters, _missing(name, select, ids))


async def show(settings: Settings, queue: str, *, number: int | None = None, message_id: str | None = None) -> Details:
    """One dead letter in full, by its place in the queue or by its id. Further errors are those of ``read``.

    Raises:
        BadData: there is no such dead letter.
    """
    if message_id is not None:
        select, wanted = Matching(ids=[message_id], limit=1), f"the id {message_id!r}"
    else:
        select, wanted = Matching(numbers=[number or 0], limit=1), f"number {number}"
    found = await read(settings, queue, select, details)
    if not found.letters:
        raise BadData(f"none of the {found.ready} dead letters in {found.queue} has {wanted}")
    return found.letters[0]


async def replay(settings: Settings, queue: str, select: Select, target: str, progress: Progress) -> Moved:
    """Publish dead letters to a queue, each as a first attempt, and take it out once the broker has that.

    Ends at the first that fails. A message may be in both queues when it is cut off in between, and is never in none.

    Args:
        settings: where the broker is.
        queue: where they died, or their dead-letter queue.
        select: which of those that are there at the start.
        target: the queue they go to.
        progress: called at the start and after each.

    Raises:
        QueueNotFound: one of the queues does not exist; nothing was moved.
        BrokerError: the broker is away or refuses us, or the dead letters cannot be read any more.
    """
    async with _moving(settings, queue, select, progress) as moving, sender_of_a_command(settings) as sender:
        await moving.broker.ready(target)
        run: Run[_Copy] = Run(sender, lambda copy: moving.remove(copy.letter))
        try:
            await run.send_all(moving.copies(target))
        finally:
            await run.drain()  # what is on its way is confirmed, or will be there twice
            if run.failure is not None:
                moving.failure = run.failure.message.letter, run.failure.error
    return moving.result()


async def drop(settings: Settings, queue: str, select: Select, progress: Progress) -> Moved:
    """Delete dead letters. Arguments and errors are those of ``replay``."""
    async with _moving(settings, queue, select, progress) as moving:
        async for letter in moving.selected():
            try:
                moving.remove(letter)
            except BrokerError as error:
                moving.failure = letter, error
                break
    return moving.result()


@dataclass(slots=True, kw_only=True)
class _Copy(Outgoing):
    letter: DeadLetter


@asynccontextmanager
async def _moving(settings: Settings, queue: str, select: Select, progress: Progress) -> AsyncIterator[_Moving]:
    name = dead_queue_of(queue)
    async with administer(settings, "dead") as broker:
        ready = await broker.ready(name)
        async with broker.browse(name, ready) as browsing:
            moving = _Moving(broker, browsing, select, progress, queue=name, ready=ready)
            try:
                yield moving
            except asyncio.CancelledError:
                moving.interrupted = True


class _Moving:
    """Dead letters on their way out of their queue."""

    def __init__(
        self, broker: Administration, browsing: Browsing, select: Select, progress: Progress, *, queue: str, ready: int
    ) -> None:
        self.broker = broker
        self.failure: tuple[DeadLetter, BaseException] | None = None
        self.interrupted = False
        self._browsing = browsing
        self._queue = queue
        self._ready = ready
        self._select = select
        self._progress = progress
        self._total = ready if select.limit is None else min(ready, select.limit)
        self._done = 0
        self._ids: set[str | None] = set()
        self._skipped: list[str] = []
        progress(0, self._total)

    async def selected(self) -> AsyncIterator[DeadLetter]:
        async for letter in _selected(self._browsing, self._select):
            self._ids.add(letter.message_id)
            yield letter

    async def copies(self, target: str) -> AsyncIterator[list[_Copy]]:
        """A copy of each for the queue ``target``, but of those that cannot be copied."""
        async for letter in self.selected():
            try:
                properties = self.broker.replayed(letter.delivery)
            except ValueError as error:
                self._skipped.append(f"number {letter.number} (id {letter.message_id or '-'}): {error}")
            else:
                yield [_Copy("", target, properties, letter.delivery.body, letter=letter)]

    def remove(self, letter: DeadLetter) -> None:
        """Take it out of its queue. Raises BrokerError when it is the broker's again."""
        self._browsing.ack(letter.delivery)
        self._done += 1
        self._progress(self._done, self._total)

    def result(self) -> Moved:
        error: BaseException | None = None
        if self.failure is not None:
            letter, error = self.failure
            error.args = (f"number {letter.number}: {error}",)
        elif not self.interrupted:
            error = _missing(self._queue, self._select, self._ids)
        return Moved(self._queue, self._ready, self._done, tuple(self._skipped), self.interrupted, error)


def _missing(queue: str, select: Select, found: Collection[str | None]) -> BadData | None:
    """An id that somebody asked for and that is not there is an error; the others were dealt with."""
    if not isinstance(select, Matching) or select.limit is not None:
        return None
    missing = [wanted for wanted in select.ids if wanted not in found]
    return BadData(f"no dead letter in {queue} has the id {', '.join(map(repr, missing))}") if missing else None


async def _selected(browsing: Browsing, select: Select) -> AsyncIterator[DeadLetter]:
    number = selected = 0
    while (select.limit is None or selected < select.limit) and (delivery := await browsing.next()):
        number += 1
        letter = DeadLetter(number, delivery)
        if select(letter):
            selected += 1
            yield letter
