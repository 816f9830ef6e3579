"""One source: the channel that consumes a queue, how much it takes, and what of it is unsettled."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from workerkit.brokers.backoff import Backoff
from workerkit.brokers.rabbitmq.amqp import Channel, Connection, QueueState
from workerkit.brokers.rabbitmq.background import Background
from workerkit.brokers.rabbitmq.declare import check, declare
from workerkit.brokers.rabbitmq.fastpath import Settling
from workerkit.brokers.rabbitmq.topology import derive
from workerkit.brokers.rabbitmq.unacked import Unacked
from workerkit.brokers.rabbitmq.versions import QueueTraits
from workerkit.errors import AccessRefused, BrokerError, ConfigurationError, ConnectionLost
from workerkit.ports import Delivery
from workerkit.properties import decode_ids
from workerkit.settings.model import ExchangeSettings, QueueSettings

if TYPE_CHECKING:
    from collections.abc import Mapping

    from structlog.typing import FilteringBoundLogger

REFUSED_DELAY = 30.0
"""Seconds between tries once a running worker is refused: a changed password must not look like an attack."""
_IDLE_STALL = 2
"""Checks in a row with messages ready, none of them ours, after which the subscription counts as dead."""
_STASH_LIMIT = 15
"""Settling frames after which a quorum queue may hold some of them in the channel's process, see ``_flush``."""


@dataclass(slots=True, eq=False)
class Incarnation:
    """One channel of a source, and the receipt of all that it delivers: tags are good on it and nowhere else.

    Attributes:
        taken: what its consumer takes; 0 when it has none.
        tag: of that consumer, or of the last one.
        cancelled: how many consumers were cancelled since something is unsettled.
        used: it has had deliveries.
        served: it has had some since the last check.
        stalls: checks in a row that found messages ready and none of them here.
        uncertain: while nothing is taken, the ids of what was acknowledged since the broker was told so.
        answered: it has answered that it sends no more: with that, it has what was settled before.
        frames: that settled something since it was told.
    """

    source: Subscription
    channel: Channel
    unacked: Unacked = field(default_factory=Unacked)
    taken: int = 0
    tag: str = ""
    cancelled: int = 0
    used: bool = False
    served: bool = False
    stalls: int = 0
    uncertain: list[str] | None = None
    answered: bool = False
    frames: int = 0

    @property
    def lost(self) -> bool:
        """What it delivered and is unsettled is the broker's again."""
        return self.source.incarnation is not self

    def settle(self, how: Settling, deliveries: Iterable[Delivery]) -> None:
        """Settle in one write, as few frames as are true. Raises BrokerError: they are the broker's again."""
        if self.lost:
            raise ConnectionLost("the channel that delivered is gone")
        if how is Settling.REJECT:  # which has no `multiple`
            frames = [frame for delivery in deliveries for frame in self.unacked.settle([delivery.tag])]
        else:
            frames = self.unacked.settle([delivery.tag for delivery in deliveries])
        self.channel.settle(how, frames)
        if self.uncertain is not None:
            self.frames += len(frames)
            if how is Settling.ACK:
                self.uncertain.extend(map(id_of, deliveries))
        self.source.catch_up_if_due()


class Subscription:
    """One queue that is consumed.

    1. Declares what the queue needs, on each new connection, and opens a channel for it.
    2. Takes what it is told to, and takes it again after each loss.
    3. A loss of its own touches no other source: it opens its channel again, with pauses that grow.

    Args:
        delays: of the retry policy, in seconds: they have queues to wait in.
        name: of the worker instance, for consumer tags.
        background: where it comes back after a loss.
        on_lost: told that a channel is gone, with the receipt of all that it had delivered.
    """

    def __init__(
        self,
        queue: str,
        settings: QueueSettings,
        exchanges: Mapping[str, ExchangeSettings],
        delays: tuple[float, ...],
        *,
        name: str,
        background: Background,
        log: FilteringBoundLogger,
        on_deliveries: Callable[[Incarnation, list[Delivery]], None],
        on_lost: Callable[[list[Incarnation]], None],
    ) -> None:
        self.queue = queue
        self.settings = settings
        self.traits = QueueTraits()
        self.incarnation: Incarnation | None = None
        self._exchanges = exchanges
        self._delays = delays
        self._new_tags = (f"{name}.{number}" for number in itertools.count(1))
        self._background = background
        self._log = log
        self._on_deliveries = on_deliveries
        self._on_lost = on_lost
        self._window = 0  # that we were told to take
        self._changing = asyncio.Lock()
        self._restoring: asyncio.Task[None] | None = None

    # ---- being there

    async def open(self, connection: Connection) -> None:
        """Declare or check the queue, open a channel, take what is wanted.

        Raises:
            BrokerError: it cannot be done, or the connection is gone.
            ConfigurationError: a queue is missing or different.
        """
        self.traits = QueueTraits.of(self.settings, connection.version)
        topology = derive(self.queue, self.settings, self._exchanges, self._delays, native=self.traits.native)
        await (declare if self.settings.declare else check)(connection, topology)
        self._adopt(await connection.channel())
        async with self._changing:
            await self._change()

    def restore(self, connection: Connection) -> asyncio.Task[None]:
        """Open it in the background, again and again for as long as the connection is there."""
        self._restoring = self._background.start(self._restore(connection))
        return self._restoring

    async def _restore(self, connection: Connection) -> None:
        backoff = Backoff()
        while connection.is_open:
            try:
                await self.open(connection)
                if self.incarnation is not None:
                    return
                continue  # it was lost again in that moment
            except (AccessRefused, ConfigurationError) as error:
                delay = REFUSED_DELAY
                self._log.error("source.refused", queue=self.queue, error=str(error), again_in=delay)
            except BrokerError as error:
                delay = backoff.delay()
                self._log.warning("source.failed", queue=self.queue, error=str(error), again_in=round(delay, 2))
                backoff = backoff.next()
            await asyncio.wait({connection.closed}, timeout=delay)

    def _adopt(self, channel: Channel) -> None:
        """Make it the channel that consumes. The one before is lost, if there is one."""
        self._lose(self.incarnation, "another channel takes its place")
        self.incarnation = incarnation = Incarnation(self, channel)
        why = "the broker cancelled the consumer; was the queue deleted?"
        channel.on_cancel(lambda: self._lose(incarnation, why))
        channel.closed.add_done_callback(lambda closed: self._lose(incarnation, str(closed.result())))

    def _lose(self, incarnation: Incarnation | None, why: str) -> None:
        """The channel is of no more use, whatever it looks like.

        Synchronous: from this moment on settlements of what it delivered are dropped.
        """
        if incarnation is None or incarnation is not self.incarnation:
            return
        self.incarnation = None
        self._on_lost([incarnation])
        if incarnation.channel.connection.is_open and (self._restoring is None or self._restoring.done()):
            self._log.warning("source.lost", queue=self.queue, why=why)
            self._restoring = self._background.start(self._replace(incarnation.channel))

    async def _replace(self, channel: Channel) -> None:
        started = time.monotonic()
        await channel.close()  # its messages go back
        await self._restore(channel.connection)
        if self.incarnation is not None:
            self._log.info("source.up", queue=self.queue, after_ms=round((time.monotonic() - started) * 1000))

    # ---- taking messages

    async def take(self, window: int) -> None:
        """See the port."""
        self._window = window
        incarnation = self.incarnation
        if incarnation is not None and window == 0 and incarnation.uncertain is None:
            incarnation.uncertain, incarnation.answered, incarnation.frames = [], False, 0
        await self._catch_up()

    async def _catch_up(self) -> None:
        async with self._changing:
            incarnation = self.incarnation
            try:
                await self._change()
            except BrokerError as error:  # the channel is gone or does not answer: another one takes this window
                if self._window:
                    self._lose(incarnation, str(error))

    def catch_up_if_due(self) -> None:
        """Something has arrived or was settled: what had to wait for that can be taken now."""
        incarnation = self.incarnation
        if incarnation is not None and self._is_due(incarnation) and not self._changing.locked():
            self._background.start(self._catch_up())

    def _is_due(self, incarnation: Incarnation) -> bool:
        """Whether another window than the present one is wanted, and the time for it has come.

        The broker does not count against a new consumer what an old one has been sent: so that no more than the window
        wait here, a new one begins when fewer do.

        A queue takes back what is on its way to a consumer that is cancelled just then, and RabbitMQ 3.10 hands it out
        again behind others. So a bigger window begins when the present one is full: then nothing is on its way, and
        acknowledgements come after the cancel.
        """
        taken, wanted = incarnation.taken, self._window
        if taken == 0:
            return len(incarnation.unacked) < wanted
        return wanted < taken or (taken < wanted and len(incarnation.unacked) >= taken)

    async def _change(self) -> None:
        """From what is taken to what is wanted. Not in two tasks at once."""
        incarnation, window = self.incarnation, self._window
        if incarnation is None or not self._is_due(incarnation):
            return
        await self._cancel(incarnation)
        if len(incarnation.unacked) < window:
            incarnation.uncertain = None
            await self._consume(incarnation, window)
        elif window == 0:
            incarnation.answered = True

    async def _consume(self, incarnation: Incarnation, window: int) -> None:
        await incarnation.channel.qos(window)
        # Before it is there: one that is only asked for must be cancelled as well.
        incarnation.taken, incarnation.tag = window, next(self._new_tags)
        await incarnation.channel.consume(
            self.queue, incarnation.tag, lambda batch: self._arrived(incarnation, batch), receipt=incarnation
        )

    async def _cancel(self, incarnation: Incarnation) -> None:
        if incarnation.taken:
            incarnation.cancelled = incarnation.cancelled + 1 if incarnation.unacked else 0
            incarnation.taken = 0  # before the answer: cancelling twice would wait for one that never comes
            await incarnation.channel.cancel(incarnation.tag)

    def _arrived(self, incarnation: Incarnation, deliveries: list[Delivery]) -> None:
        incarnation.unacked.add(deliveries[0].tag, deliveries[-1].tag)
        if incarnation.lost:
            return
        incarnation.served = incarnation.used = True
        self.catch_up_if_due()
        self._on_deliveries(incarnation, deliveries)

    # ---- who else is served, and whether we are

    async def wanted_elsewhere(self) -> bool:
        """See the port. The other consumers of an ordered queue only wait for this one to go."""
        incarnation = self.incarnation
        if incarnation is None or self.traits.ordered:
            return False
        try:
            state = await self._state(incarnation)
        except BrokerError:
            return False
        ours = 1 if incarnation.taken else 0
        if self.settings.type == "quorum" and incarnation.unacked:
            # It counts one that was cancelled until all that it has been sent is settled (measured on 3.10.8).
            ours += incarnation.cancelled
        return state.consumers > ours

    async def check(self) -> None:
        """See that the broker still serves us: a connection that looks healthy may have lost a subscription."""
        incarnation, tag = self.incarnation, self._steady_tag
        if incarnation is None or not tag:
            return
        try:
            state = await self._state(incarnation)
        except ConnectionLost as error:
            incarnation.channel.connection.abort(str(error))
        except BrokerError as error:
            self._lose(incarnation, str(error))
        else:
            if self._steady_tag == tag:  # else it may be the state in the middle of a change
                await self._compare(incarnation, state)

    @property
    def _steady_tag(self) -> str:
        """Of our consumer, when the broker should have it; empty while that changes."""
        incarnation = self.incarnation
        return "" if incarnation is None or not incarnation.taken or self._changing.locked() else incarnation.tag

    async def _state(self, incarnation: Incarnation) -> QueueState:
        return await incarnation.channel.connection.ask(lambda channel: channel.check_queue(self.queue))

    async def _compare(self, incarnation: Incarnation, state: QueueState) -> None:
        idle = not incarnation.served and not incarnation.unacked
        incarnation.served = False
        incarnation.stalls = incarnation.stalls + 1 if idle and state.messages_ready else 0
        if state.consumers == 0:
            self._lose(incarnation, "the broker does not list our consumer")
        elif incarnation.stalls >= _IDLE_STALL and not self.traits.ordered:
            self._lose(incarnation, f"{state.messages_ready} messages are ready and none is delivered")
        elif idle and incarnation.used and incarnation.channel.connection.version.moves_consumers_silently:
            try:
                await self._refresh(incarnation)
            except BrokerError as error:
                self._lose(self.incarnation, str(error))

    async def _refresh(self, old: Incarnation) -> None:
        """Move to a new channel while nothing is in flight; the old one gives back what never reached us.

        Once after each time that there was work: only a channel that has had deliveries takes new ones for duplicates.
        """
        unused = fresh = await old.channel.connection.channel()
        try:
            async with self._changing:
                if old is self.incarnation and not old.unacked and old.taken:
                    unused = old.channel
                    self.incarnation = None
                    self._adopt(fresh)
                    await self._change()
        finally:
            await unused.close()

    # ---- the end

    async def close(self, deadline: float) -> None:
        """Give back what is unsettled and see that the broker holds the rest, until ``deadline`` (monotonic)."""
        incarnation, self.incarnation = self.incarnation, None
        if incarnation is None:
            return
        confirmed = False
        with contextlib.suppress(BrokerError, TimeoutError):
            async with asyncio.timeout_at(deadline):  # its clock is the monotonic one
                await self._flush(incarnation)
                confirmed = await incarnation.channel.close(deadline - time.monotonic())
        if incarnation.used and not confirmed:
            ids = incarnation.uncertain or []
            self._log.warning(
                "settle.unconfirmed",
                queue=self.queue,
                why="the broker did not answer before the end",
                earlier=not incarnation.answered,  # what was settled just before is as uncertain
                messages=len(ids),
                message_ids=ids,
            )

    async def _flush(self, incarnation: Incarnation) -> None:
        """Have the queue take all that was settled. That a channel is closed in order does not prove it.

        The channel's process at the broker sends settlements on to a quorum queue while fewer than 32 of them are on
        their way, keeps the others for later, and drops what it still keeps when it ends (``unsent_commands`` in
        rabbit_fifo_client of RabbitMQ 3.10). A consumer goes the same way, behind them, and the queue answers for it.
        """
        if incarnation.taken:
            await self._cancel(incarnation)
            incarnation.answered, incarnation.frames = True, 0
        incarnation.channel.nack(incarnation.unacked.settle_all())
        if self.settings.type == "quorum" and not (incarnation.answered and incarnation.frames < _STASH_LIMIT):
            await self._consume(incarnation, 1)
            await self._cancel(incarnation)
            incarnation.channel.nack(incarnation.unacked.settle_all())


def id_of(delivery: Delivery) -> str:
    """By which an operator finds a message: its id, or where it has none the number of its hand-over."""
    try:
        message_id, _ = decode_ids(delivery.raw_properties)
    except ValueError:
        message_id = None
    return message_id or f"delivery {delivery.tag}"
