"""A pool on a stage: executors that do what the test says, a settler and an owner that write down what they hear."""

import asyncio
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec
import structlog
from structlog.testing import LogCapture

from workerkit import Properties
from workerkit.ports import Delivery
from workerkit.properties import encode
from workerkit.settlement import ACK, RELEASE, Cause, Outcome
from workerkit.worker.child import ChildEvents, Exit
from workerkit.worker.link import (
    Aftermath,
    Dying,
    FrameReader,
    Kind,
    frame,
    json_frame,
    settled_frame,
    unpack_aftermath,
    unpack_delivery,
)
from workerkit.worker.loading import Resolved, Spec
from workerkit.worker.page import Page, Phase
from workerkit.worker.pool import Pool

RESOLVED = Resolved(queues={"jobs": 1}, prefetch_count=10, max_attempts=5, delays=(5.0,), origins={})
ASYNC = {"asynchronous": True, "concurrency": 5}
KILLED = Exit(code=None, signal=9)
STOPPED = Exit(code=0, signal=None)


def make_log() -> tuple[Any, list[Any]]:
    """A logger, and the list that its entries come to."""
    capture = LogCapture()
    return structlog.wrap_logger(
        None, processors=[capture], wrapper_class=structlog.make_filtering_bound_logger(10)
    ), capture.entries


def make_spec(**changes: Any) -> Spec:
    return Spec(**{"worker": "w", "instance": "00", "task": "m:C", "project_root": "", "log_level": "info", **changes})


def make_delivery(tag: int = 1, headers: dict[str, Any] | None = None, **changes: Any) -> Delivery:
    properties = encode(Properties(message_id=f"m{tag}", headers=headers))
    facts = {"queue": "jobs", "exchange": "", "routing_key": "jobs", "redelivered": False, "attempt": 1}
    return Delivery(**{**facts, "raw_properties": properties, "body": b"%d" % tag, "tag": tag, **changes})


class Sent(NamedTuple):
    """A message that an executor was sent."""

    tag: int
    slot: int
    seq: int
    aftermath: Aftermath | None


class FakeChild:
    """The executor's side of the link and the page, moved by hand. Tests name messages by their tags."""

    def __init__(self, events: ChildEvents, pid: int) -> None:
        self._events = events
        self._reader = FrameReader()
        self._socket = FrameReader()
        self._unread = b""  # frames of ours that the consumer has not read yet
        self.page, page_fd = Page.create()
        os.close(page_fd)
        self.pid = pid
        self.queues: Sequence[str] = ("jobs",)
        self.kinds: list[Kind] = []
        self.inbox: list[Sent] = []
        self.cancelled: list[int] = []
        self.places: dict[int, tuple[int, int]] = {}
        """Slot and number of each message, by tag."""
        self.killed = asyncio.Event()
        self.closed = False
        self.stacks_asked = asyncio.Event()
        self.answer_stacks = asyncio.Event()
        self.answer_stacks.set()

    # ---- what the consumer's side calls

    def send(self, *pieces: bytes) -> None:
        for kind, data, start, end in self._reader.feed(b"".join(pieces)):
            self.kinds.append(Kind(kind))
            if kind == Kind.DELIVER:
                seq, slot, message = unpack_delivery(data, start, end, self.queues)
                self._receive(Sent(int(message.body), slot, seq, None))
            elif kind == Kind.AFTERMATH:
                seq, slot, message, aftermath = unpack_aftermath(data[start:end], self.queues)
                self._receive(Sent(int(message.body), slot, seq, aftermath))
            elif kind == Kind.CANCEL:
                seqs = {seq: tag for tag, (_, seq) in self.places.items()}
                self.cancelled.append(seqs[msgspec.json.decode(data[start:end])])

    def drain(self) -> bool:
        unread, self._unread = self._unread, b""
        if not self.closed:
            self._events.on_frames(self._socket.feed(unread))
        return True

    def close(self) -> None:
        self.closed = True
        self.page.close()

    def kill(self) -> None:
        self.killed.set()

    async def stacks(self) -> str:
        self.stacks_asked.set()
        await self.answer_stacks.wait()
        return "the stacks"

    def _receive(self, sent: Sent) -> None:
        self.inbox.append(sent)
        self.places[sent.tag] = sent.slot, sent.seq

    # ---- what the test makes it do

    @property
    def delivered(self) -> list[int]:
        """Tags of the messages whose callback it was to run, in order."""
        return [sent.tag for sent in self.inbox if sent.aftermath is None]

    @property
    def aftermaths(self) -> list[tuple[int, Aftermath]]:
        """Tags of the messages whose shutdown() it was to run, and what it was told."""
        return [(sent.tag, sent.aftermath) for sent in self.inbox if sent.aftermath is not None]

    def say(self, *frames: bytes) -> None:
        """Send frames, and have them read at once."""
        self.write(*frames)
        self.drain()

    def write(self, *frames: bytes) -> None:
        """Send frames that wait in the socket."""
        self._unread += b"".join(frames)

    def ready(self, **changes: Any) -> None:
        resolved = msgspec.structs.replace(RESOLVED, **changes)
        self.queues = tuple(resolved.queues)
        self.say(json_frame(Kind.READY, resolved))

    def fail(self, *, configuration: bool) -> None:
        self.say(json_frame(Kind.FAILED, {"text": "why", "traceback": "", "configuration": configuration}))

    def begin(self, *tags: int, phase: Phase = Phase.CALLBACK, now_ns: int = 1, just_now: bool = False) -> bool:
        """As the real one does: pass over what is void, say that it runs, look again. Returns whether it goes on.

        Args:
            just_now: it was made void after the first look.
        """
        for tag in tags:
            slot, seq = self.places[tag]
            if phase is Phase.CALLBACK and not just_now and self.page.is_void(slot, seq):
                self.page.end(slot, seq)
                return False
            self.page.begin(slot, seq, phase, now_ns)
            if phase is Phase.CALLBACK and self.page.is_void(slot, seq):
                self.page.end(slot, seq)
                self.write(settled_frame(seq, 0, RELEASE))
                return False
        return True

    def settle(self, tag: int, outcome: Outcome = ACK) -> None:
        """As the real one does: an acknowledgement goes into the page, everything else into the socket."""
        slot, seq = self.places[tag]
        if outcome is not ACK:
            self.write(settled_frame(seq, 1_000_000, outcome))
            return
        self.page.acknowledge(slot, seq, 1_000_000)
        if self.page.must_wake():
            self.write(frame(Kind.WAKE))

    def end(self, tag: int) -> None:
        """The callback, or shutdown(), returns."""
        self.page.end(*self.places[tag])

    def finish(self, tag: int, outcome: Outcome = ACK) -> None:
        """Run what is to be run for this message from its beginning to its end."""
        phase = Phase.SHUTDOWN if tag in dict(self.aftermaths) and tag not in self.delivered else Phase.CALLBACK
        assert self.begin(tag, phase=phase)
        self.settle(tag, outcome)
        self.end(tag)
        self.drain()

    def announce(self, cause: Cause, tag: int | None) -> None:
        """Say what it dies of, and that shutdown() is about to run here."""
        seq = None if tag is None else self.places[tag][1]
        self.say(json_frame(Kind.DYING, Dying(cause, seq)))
        if tag is not None:
            self.page.begin(*self.places[tag], Phase.SHUTDOWN, 1)

    def die(self, status: Exit = KILLED) -> None:
        self.drain()
        self._events.on_exit(status)

    def is_lost(self, tag: int) -> bool:
        return self.page.is_lost(*self.places[tag])


class FakeSettler:
    def __init__(self) -> None:
        self.settled: list[tuple[int, Outcome]] = []
        self.batches: list[list[int]] = []
        self.alone: list[int] = []
        """Tags of those whose copies would say that they must run alone."""

    def settle(self, delivery: Delivery, outcome: Outcome) -> None:
        self.settled.append((delivery.tag, outcome))
        if delivery.alone:
            self.alone.append(delivery.tag)

    def acknowledge(self, finished: Sequence[Delivery]) -> None:
        self.batches.append([delivery.tag for delivery in finished])
        self.settled += [(delivery.tag, ACK) for delivery in finished]


class FakeOwner:
    def __init__(self) -> None:
        self.resolved: list[Resolved] = []
        self.failures: list[tuple[str, bool]] = []
        self.unstarted: list[int] = []
        self.lines: list[bytes] = []
        self.waited: list[float] = []
        self.stalled = 0
        self.lost = 0
        self.changed = asyncio.Event()
        self.waiting = asyncio.Event()

    def on_ready(self, resolved: Resolved) -> None:
        self.resolved.append(resolved)

    def on_load_failed(self, text: str, trace: str, *, fatal: bool) -> None:
        self.failures.append((text, fatal))

    def on_unstarted(self, deliveries: list[Delivery]) -> None:
        self.unstarted += [delivery.tag for delivery in deliveries]

    def on_finished(self, finished: list[Delivery]) -> None:
        pass

    def on_waiting(self, seconds: float) -> None:
        self.waiting.set()

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
    """A pool and everything around it."""

    def __init__(self, *, inline: bool = False) -> None:
        self.children: list[FakeChild] = []
        self.settler = FakeSettler()
        self.owner = FakeOwner()
        log, self.logs = make_log()
        self.start_errors: list[OSError] = []
        self._started = asyncio.Event()
        self.pool = Pool(make_spec(inline=inline), self._start, self.settler, self.owner, log)  # type: ignore[arg-type]
        self.pool.open()

    def _start(self, events: ChildEvents) -> Any:
        if self.start_errors:
            raise self.start_errors.pop(0)
        self.children.append(FakeChild(events, 4711 + len(self.children)))
        self._started.set()
        return self.children[-1]

    @property
    def child(self) -> FakeChild:
        """The executor that was started last."""
        return self.children[-1]

    def ready(self, *tags: int, **resolved: Any) -> FakeChild:
        """The first executor, which is ready and has been given these messages."""
        self.child.ready(**resolved)
        self.run(*tags)
        return self.children[0]

    async def several(self, count: int, **resolved: Any) -> list[FakeChild]:
        """So many executors, all ready."""
        self.child.ready(executors=count, **resolved)
        for child in self.children[1:]:
            child.ready(executors=count, **resolved)
        await turn()
        return list(self.children)

    def run(self, *tags: int, **changes: Any) -> None:
        if tags:
            self.pool.run([make_delivery(tag, **changes) for tag in tags])

    async def next_child(self) -> FakeChild:
        """Wait for the executor after one that died."""
        while sum(not child.closed for child in self.children) < len(self.pool._seats):
            self._started.clear()
            await self._started.wait()
        return self.child

    async def replacement(self, **resolved: Any) -> FakeChild:
        """Wait for the next executor, and let it get ready."""
        (await self.next_child()).ready(**resolved)
        await turn()
        return self.child

    def events(self, name: str) -> list[Any]:
        return [entry for entry in self.logs if entry["event"] == name]


async def turn() -> None:
    """Let the loop come round: what was called soon is done."""
    await asyncio.sleep(0)
    await asyncio.sleep(0)
