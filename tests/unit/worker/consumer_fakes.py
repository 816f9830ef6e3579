"""A consumer between a broker that does what the test says and executors that work by themselves."""

import asyncio
from collections.abc import Callable, Collection, Sequence
from types import SimpleNamespace, TracebackType
from typing import Any, Self

from pool_fakes import KILLED, STOPPED, FakeChild, make_delivery, make_log, make_spec

from workerkit.ports import Broker, BrokerEvents, Capabilities, Plan, Settled
from workerkit.settlement import ACK, HAND_BACK, Acknowledge, Cause, Outcome, Settlement
from workerkit.worker.child import ChildEvents, Exit
from workerkit.worker.consumer import Consumer
from workerkit.worker.link import Kind


async def until(condition: Callable[[], object]) -> None:
    """Wait until it holds, looking each time that the loop has come round."""
    while not condition():  # noqa: ASYNC110 - it is about what others have done, which sets no event
        await asyncio.sleep(0.0005)


class WorkingChild(FakeChild):
    """An executor that gets ready, works off what it is sent, and ends when it is told to, each by itself."""

    def __init__(self, events: ChildEvents, pid: int, scene: "Scene") -> None:
        super().__init__(events, pid)
        self._loop = asyncio.get_running_loop()
        self._scene = scene
        self._read = 0
        self._reacting = False
        self.begun: list[int] = []
        self.stuck_on: int | None = None

    def send(self, *pieces: bytes) -> None:
        super().send(*pieces)
        self._react_soon()

    def kill(self) -> None:
        super().kill()
        self._loop.call_soon(self._die, KILLED)

    def go_on(self) -> None:
        """Acknowledge what it was stuck on, and work on."""
        assert self.stuck_on is not None
        tag, self.stuck_on = self.stuck_on, None
        self._end(tag, ACK)
        self._react_soon()

    def _react_soon(self) -> None:
        if not self._reacting:
            self._reacting = True
            self._loop.call_soon(self._react)

    def _react(self) -> None:
        """Run one message."""
        self._reacting = False
        if self.closed:
            return
        if not self._scene.loads:
            self._scene.on_load(self)
        elif self.queues == ():
            self.ready(**self._scene.resolved)
        if self._read < len(self.inbox) and self.stuck_on is None:
            sent = self.inbox[self._read]
            self._read += 1
            self.places[sent.tag] = sent.slot, sent.seq  # of this one, should the message have come again meanwhile
            if sent.aftermath is not None:
                self.finish(sent.tag, Outcome(2, cause=sent.aftermath.cause))  # type: ignore[arg-type]
            elif self.begin(sent.tag):
                self.begun.append(sent.tag)
                outcome = self._scene.outcomes.get(sent.tag, ACK)
                if outcome is None:
                    self.stuck_on = sent.tag
                else:
                    self._end(sent.tag, outcome)
            self._react_soon()
        elif Kind.STOP in self.kinds and self.stuck_on is None:
            self._die(STOPPED)

    def _end(self, tag: int, outcome: Outcome) -> None:
        self.settle(tag, outcome)
        self.end(tag)
        self.drain()

    def _die(self, status: Exit) -> None:
        if not self.closed:
            self.die(status)


class Peer:
    """A broker that writes down what it is told, and answers as the test says: at once, later, or with an error."""

    def __init__(self, *, ordered: bool = False) -> None:
        self.plan: Plan
        self.events: BrokerEvents
        self.ordered = ordered
        self.takes: list[tuple[str, int]] = []
        self.settled: list[tuple[int, Settlement]] = []
        self.holds: list[bool] = []
        self.wanted: set[str] = set()
        self.closed_with: float | None = None
        self.unanswered: list[Settled] = []
        self.answers = True
        self.started = asyncio.Event()
        self.may_start = asyncio.Event()
        self.may_start.set()
        self.may_answer_take = asyncio.Event()
        self.may_answer_take.set()
        self.start_error: Exception | None = None
        self.take_error: Exception | None = None
        self.taking = 0
        self.starting = False

    async def start(self, plan: Plan, events: BrokerEvents) -> None:
        self.plan, self.events = plan, events
        self.started.set()
        self.starting = True
        try:
            await self.may_start.wait()
        except asyncio.CancelledError:
            await asyncio.sleep(0.1)  # it has to let go of something, maybe
            raise
        finally:
            self.starting = False
        if self.start_error is not None:
            raise self.start_error

    def capabilities(self, queue: str) -> Capabilities:
        return Capabilities(longest_delay=60.0, ordered=self.ordered)

    async def take(self, queue: str, window: int) -> None:
        self.takes.append((queue, window))
        self.taking += 1
        await self.may_answer_take.wait()
        self.taking -= 1
        if self.take_error is not None:
            raise self.take_error

    async def wanted_elsewhere(self, queue: str) -> bool:
        return queue in self.wanted

    def hold(self, hold: bool) -> None:
        self.holds.append(hold)

    def settle(self, batch: Sequence[Settled]) -> None:
        self.settled += [(delivery.tag, settlement) for delivery, settlement in batch]
        self.unanswered += batch
        if self.answers:
            asyncio.get_running_loop().call_soon(self.answer)

    async def close(self, patience: float) -> None:
        assert not self.starting, "one thing after the other"
        self.closed_with = patience

    # ---- what the test makes it do

    def answer(self) -> None:
        """Say of all that it was told that it has it."""
        batch, self.unanswered = self.unanswered, []
        if batch:
            self.events.on_settled(batch)

    def deliver(self, *tags: int, **changes: Any) -> None:
        self.events.on_deliveries([make_delivery(tag, **changes) for tag in tags])

    def drop(self) -> None:
        """Say that what it was told came too late."""
        batch, self.unanswered = self.unanswered, []
        self.events.on_dropped([delivery for delivery, _ in batch], "the source is gone")

    def refuse_to_publish(self, cause: Cause) -> None:
        """Say that what was to be published with an acknowledgement was not taken."""
        batch, self.unanswered = self.unanswered, []
        for delivery, _ in batch:
            self.events.on_unpublished(delivery, cause)

    def lose(self, receipts: Collection[Any]) -> None:
        self.events.on_lost(receipts)

    @property
    def window(self) -> dict[str, int]:
        """What it was told last, by queue."""
        return dict(self.takes)

    @property
    def acked(self) -> list[int]:
        return [tag for tag, settlement in self.settled if isinstance(settlement, Acknowledge)]

    @property
    def handed_back(self) -> list[int]:
        return [tag for tag, settlement in self.settled if settlement == HAND_BACK]


class Scene:
    """A consumer that runs.

    Args:
        broker: a ``Peer`` unless it is said.
        limit: messages to work on.
        grace: seconds between the first signal and the deadline.
        spec: changes of the spec.
        resolved: settings that the task resolves.
    """

    def __init__(
        self,
        broker: Broker | None = None,
        *,
        limit: int | None = None,
        grace: float = 60.0,
        spec: dict[str, Any] | None = None,
        **resolved: Any,
    ) -> None:
        self.peer = Peer()
        self.resolved = resolved
        self.loads = True
        self.on_load: Callable[[WorkingChild], None] = lambda _: None
        """Called with each executor that does not load."""
        self.outcomes: dict[int, Outcome | None] = {}
        """What the callback says of a message, by tag, if not ``ack()``; None: nothing, it runs for ever."""
        self.children: list[WorkingChild] = []
        log, self.logs = make_log()
        self.consumer = Consumer(
            make_spec(**(spec or {})),
            grace=grace,
            limit=limit,
            broker=broker or self.peer,
            start_child=self._start,
            log=SimpleNamespace(logger=log, write_line=lambda _: None, write_events=self._write_events),
        )
        self._run: asyncio.Task[None]

    def _write_events(self, _level: str, event: str, events: list[dict[str, Any]]) -> None:
        self.logs += [{"event": event, **about} for about in events]

    def _start(self, events: ChildEvents) -> Any:
        self.children.append(WorkingChild(events, 4711 + len(self.children), self))
        self.children[-1].queues = ()
        return self.children[-1]

    async def __aenter__(self) -> Self:
        self._run = asyncio.create_task(self.consumer.run())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.consumer.stop_by_signal("SIGTERM")
        self.consumer.stop_by_signal("SIGTERM")
        await asyncio.wait([self._run])

    async def end(self) -> int:
        """Wait for the end of the run. Returns the exit code."""
        await asyncio.shield(self._run)
        return int(self.consumer.exit_code)

    async def consuming(self) -> None:
        await until(lambda: self.events("worker.consuming"))

    @property
    def child(self) -> WorkingChild:
        return self.children[-1]

    @property
    def begun(self) -> list[int]:
        """Tags of the messages whose callback began."""
        return [tag for child in self.children for tag in child.begun]

    def events(self, name: str) -> list[Any]:
        return [entry for entry in self.logs if entry["event"] == name]
