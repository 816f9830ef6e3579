"""A keeper on a stage: executors that do what the test says, a settler and an owner that write down what they hear."""

import asyncio
from typing import Any

import msgspec
import structlog
from structlog.testing import LogCapture

from workerkit import Properties
from workerkit.properties import encode
from workerkit.settlement import ACK, RELEASE, Cause, Outcome
from workerkit.worker.child import Events, Exit
from workerkit.worker.keeper import Keeper
from workerkit.worker.link import (
    Aftermath,
    FrameReader,
    Kind,
    Page,
    Phase,
    frame,
    pack_cause,
    pack_json,
    settled_frame,
    unpack_aftermath,
    unpack_delivery,
)
from workerkit.worker.loading import Resolved, Spec
from workerkit.worker.ports import Delivery

RESOLVED = Resolved(
    pid=1,
    queues={"jobs": 1},
    prefetch_count=10,
    max_attempts=5,
    delays=(5.0,),
    origins={},
)
KILLED = Exit(code=None, signal=9)


def make_log() -> tuple[Any, list[Any]]:
    """A logger, and the list that its entries come to."""
    capture = LogCapture()
    return structlog.wrap_logger(
        None, processors=[capture], wrapper_class=structlog.make_filtering_bound_logger(10)
    ), capture.entries


def make_delivery(tag: int = 1, **changes: Any) -> Delivery:
    properties = encode(Properties(message_id=f"m{tag}"))
    facts = {"queue": "jobs", "exchange": "", "routing_key": "jobs", "redelivered": False, "attempt": 1, "channel": 1}
    return Delivery(**{**facts, "raw_properties": properties, "body": b"%d" % tag, "tag": tag, **changes})


class FakeExecutor:
    """The executor's side of the link and the page, moved by hand."""

    pid = 4711

    def __init__(self, events: Events) -> None:
        self._events = events
        self._reader = FrameReader()
        self._socket = FrameReader()
        self._unread = b""  # frames of ours that the consumer has not read yet
        self.page, self._page_fd = Page.create()
        self.sent: list[tuple[int, bytes]] = []
        self.begun: set[int] = set()
        self.finished: set[int] = set()
        self.killed = False
        self.closed = False
        self.stacks_asked = asyncio.Event()
        self.answer_stacks = asyncio.Event()
        self.answer_stacks.set()

    # ---- what the keeper calls

    def send(self, *pieces: bytes) -> None:
        self.sent += [(kind, data[start:end]) for kind, data, start, end in self._reader.feed(b"".join(pieces))]

    def drain(self) -> bool:
        unread, self._unread = self._unread, b""
        if frames := self._socket.feed(unread):
            self._events.on_frames(frames)
        self._events.on_drained()
        return True

    def close(self) -> None:
        self.closed = True
        self.page.close()

    def kill(self) -> None:
        self.killed = True

    async def stacks(self) -> str:
        self.stacks_asked.set()
        await self.answer_stacks.wait()
        return "the stacks"

    # ---- what the test makes it do

    @property
    def delivered(self) -> list[int]:
        """Tags of the messages it was given to run, in order."""
        payloads = [payload for kind, payload in self.sent if kind == Kind.DELIVER]
        return [int(unpack_delivery(payload, 0, len(payload), "jobs")[1].body) for payload in payloads]

    @property
    def aftermaths(self) -> list[tuple[int, Aftermath]]:
        """Tags of the messages whose shutdown() it was asked to run, and what it was told."""
        told = [unpack_aftermath(payload, "jobs") for kind, payload in self.sent if kind == Kind.AFTERMATH]
        return [(int(message.body), aftermath) for _, message, aftermath in told]

    def say(self, kind: Kind, payload: bytes) -> None:
        """Send a frame, and have it read at once."""
        self.write(kind, payload)
        self.drain()

    def write(self, kind: Kind, payload: bytes) -> None:
        """Send a frame that waits in the socket."""
        self._unread += frame(kind, payload)

    def ready(self, **changes: Any) -> None:
        self.say(Kind.READY, pack_json(msgspec.structs.replace(RESOLVED, **changes)))

    def fail(self, *, configuration: bool) -> None:
        self.say(Kind.FAILED, pack_json({"text": "why", "traceback": "", "configuration": configuration}))

    def begin(self, seq: int, phase: Phase = Phase.CALLBACK, now_ns: int = 1) -> bool:
        """As the real one does: say that it runs, then look whether it is void. Returns whether it goes on."""
        self.page.begin(seq, phase, now_ns)
        if phase is Phase.CALLBACK and seq <= self.page.void:
            self.page.end()
            self._unread += settled_frame(seq, 0, RELEASE)
            return False
        self.begun.add(seq)
        return True

    def settle(self, seq: int, outcome: Outcome = ACK) -> None:
        """As the real one does: an acknowledgement goes into the page, everything else into the socket."""
        self.finished.add(seq)
        if outcome != ACK or not self.page.acknowledge(seq, 1_000_000):
            self._unread += settled_frame(seq, 1_000_000, outcome)
        elif self.page.must_wake():
            self.write(Kind.WAKE, b"")

    def finish(self, seq: int, outcome: Outcome = ACK) -> None:
        """Run a callback from its beginning to its end."""
        self.begin(seq)
        self.settle(seq, outcome)
        self.page.end()
        self.drain()

    def announce(self, cause: Cause, seq: int) -> None:
        """Say that shutdown() is about to run here."""
        self.say(Kind.DYING, pack_cause(cause))
        self.page.begin(seq, Phase.SHUTDOWN, 1)

    def die(self, status: Exit = KILLED) -> None:
        self.drain()
        self._events.on_exit(status)


class FakeSettler:
    def __init__(self) -> None:
        self.settled: list[tuple[int, Outcome]] = []
        self.batches: list[list[int]] = []

    def settle(self, delivery: Delivery, outcome: Outcome, duration_ns: int) -> None:
        self.settled.append((delivery.tag, outcome))

    def acknowledge(self, finished: list[tuple[Delivery, int]]) -> None:
        self.batches.append([delivery.tag for delivery, _ in finished])
        self.settled += [(delivery.tag, ACK) for delivery, _ in finished]


class FakeOwner:
    def __init__(self) -> None:
        self.resolved: list[Resolved] = []
        self.failures: list[tuple[str, bool]] = []
        self.unstarted: list[int] = []
        self.lines: list[bytes] = []
        self.stalled = 0
        self.lost = 0
        self.changed = asyncio.Event()

    def on_ready(self, resolved: Resolved) -> None:
        self.resolved.append(resolved)

    def on_load_failed(self, text: str, trace: str, *, fatal: bool) -> None:
        self.failures.append((text, fatal))

    def on_unstarted(self, deliveries: list[Delivery]) -> None:
        self.unstarted += [delivery.tag for delivery in deliveries]

    def on_stalled(self) -> None:
        self.stalled += 1

    def on_congested(self, congested: bool) -> None:
        pass

    def on_executor_lost(self) -> None:
        self.lost += 1

    def on_line(self, line: bytes) -> None:
        self.lines.append(line)

    def on_change(self) -> None:
        self.changed.set()


class Stage:
    """A keeper and everything around it. Sequence numbers equal tags, as each delivery is forwarded once."""

    def __init__(self, *, inline: bool = False) -> None:
        self.executors: list[FakeExecutor] = []
        self.settler = FakeSettler()
        self.owner = FakeOwner()
        log, self.logs = make_log()
        self.start_errors: list[OSError] = []
        spec = Spec(worker="w", instance="00", task="m:C", project_root="", log_level="info", inline=inline)
        self.keeper = Keeper(spec, self._start, self.settler, self.owner, log)  # type: ignore[arg-type]
        self._started = asyncio.Event()
        self.keeper.start()

    def _start(self, events: Events) -> Any:
        if self.start_errors:
            raise self.start_errors.pop(0)
        self.executors.append(FakeExecutor(events))
        self._started.set()
        return self.executors[-1]

    @property
    def executor(self) -> FakeExecutor:
        return self.executors[-1]

    def ready(self, *tags: int, **resolved: Any) -> FakeExecutor:
        """The executor, which is ready and has been given these messages."""
        self.executor.ready(**resolved)
        self.forward(*tags)
        return self.executor

    def forward(self, *tags: int) -> None:
        self.keeper.forward([make_delivery(tag) for tag in tags])

    async def next_executor(self) -> FakeExecutor:
        """Wait for the executor after one that died."""
        while self.executor.closed:
            self._started.clear()
            await self._started.wait()
        return self.executor

    async def replacement(self, **resolved: Any) -> FakeExecutor:
        """Wait for the next executor, and let it get ready."""
        (await self.next_executor()).ready(**resolved)
        return self.executor

    def events(self, name: str) -> list[Any]:
        return [entry for entry in self.logs if entry["event"] == name]
