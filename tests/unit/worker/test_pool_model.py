"""The pool's promises, under every order of events: each delivery leaves it exactly once, and no innocent one fails."""

import asyncio
from collections import Counter
from unittest.mock import patch

from hypothesis import given, settings
from hypothesis import strategies as st
from pool_fakes import STOPPED, FakeChild, Sent, Stage, make_delivery, turn

from workerkit import Cause, Reason
from workerkit.settlement import ACK, Outcome, Verb
from workerkit.worker import custody as custody_module
from workerkit.worker import pool as pool_module
from workerkit.worker import seat as seat_module
from workerkit.worker.child import Exit
from workerkit.worker.link import Kind
from workerkit.worker.page import Phase
from workerkit.worker.selection import Weighted

NACK = Outcome(Verb.NACK, cause=Cause(Reason.SIGNAL, "what shutdown() says by default"))


class Play:
    """A pool whose executors go through a list of steps; a step that cannot happen now does nothing."""

    def __init__(self, executors: int, concurrency: int, queues: list[str]) -> None:
        self.stage = Stage()
        self.resolved = {"executors": executors, "concurrency": concurrency, "asynchronous": concurrency > 1}
        self.resolved["queues"] = dict.fromkeys(queues, 1)
        self.queues = queues
        self.concurrency = concurrency
        if len(queues) > 1:
            self.stage.pool.choose_by(Weighted(dict.fromkeys(queues, 1)), lambda _: 1)
        self.loaded: set[int] = set()
        self.ready(self.stage.child)
        self.read: dict[int, int] = {}  # how much of its inbox each executor has read, by pid
        self.came = 0
        self.forgotten = 0
        self.lost: set[int] = set()
        self.guilty: set[int] = set()
        self.suspects: set[int] = set()
        self.idle_deaths: Counter[int] = Counter()
        self.settled: set[int] = set()
        self.said: set[tuple[int, int]] = set()  # executors, by pid, and numbers of what has called its verb there
        self.named: set[int] = set()  # executors that know what they die of
        self.recalls: list[asyncio.Task[list[object]]] = []

    async def play(self, steps: list[tuple[str, int]]) -> None:
        for step, number in steps:
            await turn()
            if step in ("run", "forget"):
                getattr(self, step)(self.queues[number % len(self.queues)])
            elif step in ("recall", "reload"):
                await getattr(self, step)()
            elif here := [child for child in self.stage.children if not child.closed]:
                getattr(self, step)(here[number % len(here)])

    async def end(self) -> list[int]:
        """The deadline comes. Returns the tags of all that left the pool, but for the forgotten ones."""
        self.stage.pool.hand_back()
        for child in self.stage.children:
            if not child.closed:
                self.die(child)
        taken_back = [delivery.tag for recall in self.recalls for delivery in await recall]  # type: ignore[attr-defined]
        return taken_back + self.stage.owner.unstarted + [tag for tag, _ in self.stage.settler.settled]

    # ---- from the broker and from the consumer

    def run(self, queue: str) -> None:
        self.came += 1
        self.stage.pool.run([make_delivery(self.came, queue=queue, receipt=queue)])

    def forget(self, queue: str) -> None:
        for child in self.stage.children:
            self.lost |= set(child.places)  # more than are; these are only excused
        self.forgotten += self.stage.pool.forget([queue])

    async def recall(self) -> None:
        self.recalls.append(asyncio.create_task(self.stage.pool.recall()))  # type: ignore[arg-type]

    async def reload(self) -> None:
        self.stage.pool.reload()

    # ---- what an executor does

    def ready(self, child: FakeChild) -> None:
        if child.pid not in self.loaded:
            self.loaded.add(child.pid)
            child.ready(**self.resolved)

    def begin(self, child: FakeChild) -> None:
        """The next in its inbox, if it may run beside what runs."""
        running = self.running(child)
        read = self.read.get(child.pid, 0)
        if len(running) >= self.concurrency or read == len(child.inbox):
            return
        self.read[child.pid] = read + 1
        sent = child.inbox[read]
        if sent.aftermath is not None:
            child.page.begin(sent.slot, sent.seq, Phase.SHUTDOWN, 1)
        elif child.page.is_void(sent.slot, sent.seq):
            child.page.end(sent.slot, sent.seq)
        else:
            child.page.begin(sent.slot, sent.seq, Phase.CALLBACK, 1)
            unsettled = {other.tag for other, _ in running} - self.settled
            assert not (sent.tag in self.suspects and unsettled), "a suspect runs alone"
            assert not unsettled & self.suspects, "nothing runs beside a suspect"

    def settle(self, child: FakeChild) -> None:
        """A verb is called, and not yet read by the consumer."""
        for sent, phase in self.running(child):
            told = None if sent.aftermath is None else sent.aftermath.settled
            if (child.pid, sent.seq) not in self.said and told is None:
                self.said.add((child.pid, sent.seq))
                if phase is Phase.CALLBACK:
                    self.settled.add(sent.tag)
                child.settle(sent.tag, ACK if phase is Phase.CALLBACK else NACK)
                return

    def finish(self, child: FakeChild) -> None:
        self.settle(child)
        for sent, _ in self.running(child):
            if (child.pid, sent.seq) in self.said or (sent.aftermath is not None and sent.aftermath.settled):
                child.page.end(sent.slot, sent.seq)
        child.drain()

    def drain(self, child: FakeChild) -> None:
        """The consumer reads what was said, while the callbacks may go on."""
        child.drain()

    def name(self, child: FakeChild) -> None:
        """It is dying of one of its callbacks, and knows it."""
        callbacks = [sent for sent, phase in self.running(child) if phase is Phase.CALLBACK]
        if callbacks:
            self.guilty.add(callbacks[-1].tag)
            self.named.add(child.pid)
            child.announce(Cause(Reason.MEMORY, "out of memory"), callbacks[-1].tag)

    def die(self, child: FakeChild) -> None:
        running = self.running(child)
        callbacks = [sent.tag for sent, phase in running if phase is Phase.CALLBACK]
        if len(callbacks) == 1:
            self.guilty.update(callbacks)
        elif child.pid not in self.named:
            self.suspects.update(callbacks)
        unread = child.inbox[self.read.get(child.pid, 0) :]
        if not running and unread:
            not_void = [sent for sent in unread if not child.page.is_void(sent.slot, sent.seq)]
            self.idle_deaths.update({sent.tag for sent in unread[:1] + not_void[:1]})
            self.guilty.update(tag for tag, deaths in self.idle_deaths.items() if deaths > 1)
        child.die()

    def fail_to_load(self, child: FakeChild) -> None:
        if child.pid not in self.loaded:
            child.die(Exit(code=75, signal=None))

    def leave(self, child: FakeChild) -> None:
        """It has been told to stop and has nothing left to do."""
        if Kind.STOP in child.kinds and self.read.get(child.pid, 0) == len(child.inbox) and not self.running(child):
            child.die(STOPPED)

    @staticmethod
    def running(child: FakeChild) -> list[tuple[Sent, Phase]]:
        by_seq = {sent.seq: sent for sent in child.inbox}
        return [(by_seq[one.seq], one.phase) for one in child.page.running(child.inbox)]  # type: ignore[arg-type]


STEPS = st.sampled_from(
    ["run"] * 4
    + ["begin"] * 4
    + ["ready"] * 3
    + ["settle", "drain", "finish", "finish", "name", "die", "die"]
    + ["recall", "forget", "reload", "leave", "fail_to_load"]
)


@settings(max_examples=300)
@given(
    st.integers(1, 3),
    st.integers(1, 3),
    st.sampled_from([["a"], ["a", "b"]]),
    st.lists(st.tuples(STEPS, st.integers(0, 5)), max_size=60),
)
def test_every_delivery_leaves_once_and_no_innocent_one_fails(
    executors: int, concurrency: int, queues: list[str], steps: list[tuple[str, int]]
) -> None:
    """Settled, taken back, handed back or forgotten: never two of these, never none, and nothing is left busy.

    A failed attempt is only counted against a message that ran alone when its executor died, or that the executor
    named, or before which executors died twice.
    """

    async def main() -> None:
        play = Play(executors, concurrency, queues)
        await play.play(steps)
        left = await play.end()
        assert sorted(left) == sorted(set(left)), "one of them left twice"
        assert len(left) + play.forgotten == play.came
        assert not play.stage.pool.busy
        failed = {tag for tag, outcome in play.stage.settler.settled if outcome.verb is Verb.NACK}
        assert failed <= play.guilty | play.lost

    # The pauses between executors that come to nothing add up to minutes, and the order of events is all that counts.
    with (
        patch.object(seat_module, "RESTART_DELAYS", (0.0,)),
        patch.object(pool_module, "RECALL_GRACE", 0.0),
        patch.object(custody_module, "_SWEEP_AT", 1),  # slots come free as often as they can
    ):
        asyncio.run(main())
