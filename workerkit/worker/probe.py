"""Ask tasks what they resolve to, without a broker: start their executors, wait for READY, end them.

The answer is the truth, not a guess from reading the class: ``initialize`` has run, in a process like the worker's own.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from workerkit.worker.child import Exit, ProcessChild
from workerkit.worker.deaths import classify
from workerkit.worker.link import Frame, Kind, frame, json_frame
from workerkit.worker.loading import Resolved, Spec

DEADLINE: Final = 10.0
"""Seconds that one task may take to import and initialize."""
_EXIT_GRACE: Final = 1.0
"""Seconds an executor that has answered gets to end by itself."""


@dataclass(frozen=True, slots=True)
class NotLoaded:
    """The task of a worker did not get ready."""

    text: str
    """Why, complete: it names the worker."""


Question = tuple[Spec, Mapping[str, str]]
"""One worker to ask about: what its executor is told, and further environment variables of that."""


def resolve(questions: Sequence[Question], deadline: float = DEADLINE) -> list[Resolved | NotLoaded]:
    """Load every task, as many at a time as there are processors, and return what each says, in order.

    Args:
        questions: the workers.
        deadline: seconds for each.

    Raises:
        OSError: no process could be started.
    """

    async def resolve_all() -> list[Resolved | NotLoaded]:
        slots = asyncio.Semaphore(os.cpu_count() or 1)

        async def ask(question: Question) -> Resolved | NotLoaded:
            async with slots:
                return await _Probe(question).answer_within(deadline)

        return await asyncio.gather(*map(ask, questions))

    return asyncio.run(resolve_all())


class _Probe:
    """One executor, for as long as it takes to answer."""

    def __init__(self, question: Question) -> None:
        spec, environment = question
        self._worker = spec.worker
        self._answer: asyncio.Future[Resolved | NotLoaded] = asyncio.get_running_loop().create_future()
        self._gone = asyncio.Event()
        self._last_line = ""  # may be all there is to say why it died
        self._child = ProcessChild(self, environment)
        self._child.send(json_frame(Kind.HELLO, spec))

    async def answer_within(self, deadline: float) -> Resolved | NotLoaded:
        """The answer; whatever happens, the process is gone when this returns."""
        try:
            done, _ = await asyncio.wait([self._answer], timeout=deadline)
            if not done:
                return self._not_loaded(f"did not get ready within {deadline:g} s")
            self._child.send(frame(Kind.STOP))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._gone.wait(), _EXIT_GRACE)
            return self._answer.result()
        finally:
            self._child.kill()
            await self._gone.wait()

    def on_frames(self, frames: list[Frame]) -> None:
        """Take the answer; log lines of the task are something that nobody has asked for."""
        for kind, data, start, end in frames:
            if kind == Kind.READY:
                self._set_answer(msgspec.json.decode(data[start:end], type=Resolved))
            elif kind == Kind.FAILED:
                self._set_answer(NotLoaded(msgspec.json.decode(data[start:end])["text"]))

    def on_congested(self, congested: bool) -> None:
        """Next to nothing is ever sent."""

    def on_output(self, stream: str, line: str) -> None:  # noqa: ARG002 - ChildEvents' signature
        self._last_line = line

    def on_exit(self, status: Exit) -> None:
        how = classify(status, oom_killed=False).message
        self._set_answer(self._not_loaded(f"did not load: {how}"))
        self._child.close()
        self._gone.set()

    def _set_answer(self, answer: Resolved | NotLoaded) -> None:
        if not self._answer.done():
            self._answer.set_result(answer)

    def _not_loaded(self, why: str) -> NotLoaded:
        said = f"; its last line was {self._last_line!r}" if self._last_line else ""
        return NotLoaded(f"worker {self._worker!r}: its task {why}{said}")
