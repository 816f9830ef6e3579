"""The keeper's one promise, under every order of events: each delivery leaves it exactly once."""

import asyncio
from unittest.mock import patch

from hypothesis import given, settings
from hypothesis import strategies as st
from keeper_fakes import FakeExecutor, Stage

from workerkit import Cause, Reason
from workerkit.worker import keeper
from workerkit.worker.link import Phase


class Play:
    """A keeper and an executor that go through a list of steps; a step that cannot happen now does nothing."""

    def __init__(self) -> None:
        self.stage = Stage()
        self.stage.executor.ready()
        self.forwarded = 0
        self.forgotten = 0
        self.taken_back: list[int] = []

    async def play(self, steps: list[str]) -> None:
        for step in steps:
            if self.stage.executor.closed:
                await self.stage.replacement()
            await getattr(self, step)(self.stage.executor)

    async def forward(self, _executor: FakeExecutor) -> None:
        self.forwarded += 1
        self.stage.forward(self.forwarded)

    async def begin(self, executor: FakeExecutor) -> None:
        if executor.page.running() is None and (unbegun := self._unbegun(executor)):
            executor.begin(*unbegun[0])

    async def settle(self, executor: FakeExecutor) -> None:
        """The verb is called, and not yet read by the consumer."""
        running = executor.page.running()
        if running is not None and running[0] not in executor.finished:
            executor.settle(running[0])

    async def finish(self, executor: FakeExecutor) -> None:
        await self.settle(executor)
        executor.page.end()
        executor.drain()

    async def enter_shutdown(self, executor: FakeExecutor) -> None:
        running = executor.page.running()
        if running is not None and running[1] is Phase.CALLBACK:
            executor.announce(Cause(Reason.MEMORY, "out of memory"), running[0])

    async def die(self, executor: FakeExecutor) -> None:
        executor.die()

    async def recall(self, _executor: FakeExecutor) -> None:
        self.taken_back += [delivery.tag for delivery in await self.stage.keeper.recall()]

    async def forget(self, _executor: FakeExecutor) -> None:
        self.forgotten += self.stage.keeper.forget()

    @staticmethod
    def _unbegun(executor: FakeExecutor) -> list[tuple[int, Phase]]:
        """What the executor finds in its socket, in order, less what it has begun and what is void."""
        told = [(tag, Phase.SHUTDOWN) for tag, aftermath in executor.aftermaths if aftermath.settled is None]
        told += [(tag, Phase.CALLBACK) for tag in executor.delivered if tag > executor.page.void]
        return [(tag, phase) for tag, phase in told if tag not in executor.begun]


STEPS = st.sampled_from(["forward", "begin", "settle", "finish", "enter_shutdown", "die", "recall", "forget"])


@settings(max_examples=100)
@given(st.lists(STEPS, max_size=25))
def test_every_delivery_leaves_exactly_once(steps: list[str]) -> None:
    """Settled, taken back or forgotten: never two of these, never none, and nothing is left to wait for."""

    async def main() -> None:
        play = Play()
        stage = play.stage
        await play.play(steps)
        stage.keeper.hand_back()
        if not stage.executor.closed:
            stage.executor.die()
        settled = [tag for tag, _ in stage.settler.settled]
        left = play.taken_back + stage.owner.unstarted + settled
        assert sorted(left) == sorted(set(left)), "one of them left twice"
        assert len(left) + play.forgotten == play.forwarded
        assert not stage.keeper.busy

    # The pauses between executors that come to nothing add up to minutes, and the order of events is all that counts.
    with patch.object(keeper, "RESTART_DELAYS", (0.0,)), patch.object(keeper, "RECALL_GRACE", 0.001):
        asyncio.run(main())
