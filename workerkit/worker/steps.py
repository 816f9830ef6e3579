"""The steps of coroutines: from the moment the event loop resumes one until it gives the loop back."""

from __future__ import annotations

import os
from asyncio import Task, get_running_loop
from collections.abc import Callable, Coroutine, Generator
from typing import Any

from workerkit.errors import ExitCode
from workerkit.message import MessageAdapter
from workerkit.worker.uplink import LinkHandle, Uplink


class Turn(LinkHandle):
    """One message whose callback is a coroutine, with what its end depends on."""

    __slots__ = ("cancelled", "exits", "frozen", "message", "task")

    def __init__(self, uplink: Uplink, slot: int, seq: int) -> None:
        super().__init__(uplink, slot, seq)
        self.message: MessageAdapter
        self.task: Task[None] | None = None
        self.cancelled = False
        """The consumer wants it to end."""
        self.frozen = False
        """None of its code may run any more: another one's is ending the interpreter."""
        self.exits = False
        """One of its tasks ends the interpreter, other than by an exception out of its callback."""


class Steps(Coroutine[Any, Any, Any]):
    """A coroutine of one message. The page says whose step runs, so one that never ends can be named from outside."""

    __slots__ = ("_coroutine", "_send", "_turn")

    def __init__(self, coroutine: Coroutine[Any, Any, Any], turn: Turn) -> None:
        self._coroutine = coroutine
        self._send = coroutine.send
        self._turn = turn

    def send(self, value: Any) -> Any:
        """One step."""
        return self._step(self._send, value)

    def throw(self, *error: Any) -> Any:
        """One step, which begins with an exception."""
        return self._step(self._coroutine.throw, *error)

    def _step(self, resume: Callable[..., Any], *how: Any) -> Any:
        turn = self._turn
        if turn.frozen:
            # What a coroutine gives to its task that waits for something that will never happen.
            return next(get_running_loop().create_future().__await__())
        uplink = turn.uplink
        uplink.page.step(turn.seq)
        try:
            return resume(*how)
        except (SystemExit, KeyboardInterrupt):
            turn.exits = True
            raise
        finally:
            if uplink.forked:
                os._exit(ExitCode.OK)  # a child that the step forked: the loop and the page are not its own
            uplink.page.step(0)

    def close(self) -> None:
        """Throw it away."""
        self._coroutine.close()

    def __await__(self) -> Generator[Any, Any, Any]:
        return self._coroutine.__await__()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._coroutine, name)  # what debuggers and stack dumps look at: cr_frame, __qualname__ …
