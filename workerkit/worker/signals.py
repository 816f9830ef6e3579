"""The signals of a worker process, from before there is a consumer until after there was one."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
from collections.abc import Callable, Mapping
from typing import Self

CAUGHT = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGCONT)


class Signals:
    """Catches signals from its beginning on, tells an event loop of them, and ignores them from its end on.

    The interpreter writes the number of each signal that it catches into a pipe, at once and in whatever thread; the
    loop reads the pipe. So a signal that comes before there is a loop is kept, and acted on when there is one.
    asyncio's own handlers would be gone with the loop, milliseconds before the process is: a signal then would end it.

    To be made in the main thread. Nothing else in the process may use ``signal.set_wakeup_fd``: no handlers of
    asyncio's, and no uvloop in the main thread.
    """

    def __init__(self) -> None:
        self._pipe, write_end = os.pipe()
        os.set_blocking(self._pipe, False)
        os.set_blocking(write_end, False)
        signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
        self._before = {number: signal.signal(number, _caught) for number in CAUGHT}
        self._mask = threading.local()
        os.register_at_fork(before=self._block, after_in_parent=self._unblock, after_in_child=self._let_go)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        """Ignore the signals for what is left of the process: a few milliseconds in which they can only do harm.

        Ignored is the one state that the interpreter leaves alone at its end; a handler of Python's it takes away, and
        the next signal would end the process and be its exit status. They are blocked meanwhile, as a signal between
        its arrival and its handler would find that gone, and be complained about.
        """
        signal.pthread_sigmask(signal.SIG_BLOCK, self._before)
        for number in self._before:
            signal.signal(number, signal.SIG_IGN)

    def tell(self, loop: asyncio.AbstractEventLoop, handlers: Mapping[signal.Signals, Callable[[], None]]) -> None:
        """Have the loop call these handlers, also for what was caught before. From the thread of the loop, which has to
        be the main thread when there are signals among them that are not caught yet.
        """

        def on_readable() -> None:
            with contextlib.suppress(BlockingIOError):
                for number in os.read(self._pipe, 4096):
                    if handler := handlers.get(signal.Signals(number)):
                        handler()

        for number in handlers.keys() - self._before.keys():
            signal.signal(number, _caught)
        loop.add_reader(self._pipe, on_readable)

    def tell_no_more(self, loop: asyncio.AbstractEventLoop) -> None:
        """Call no more handlers: what one of them starts while the loop is being closed would never run."""
        loop.remove_reader(self._pipe)

    def _block(self) -> None:
        self._mask.before_fork = signal.pthread_sigmask(signal.SIG_BLOCK, self._before)

    def _unblock(self) -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask.before_fork)

    def _let_go(self) -> None:
        """A forked child has signals of its own: from its first moment on, it must not write into the shared pipe."""
        signal.set_wakeup_fd(-1)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._unblock()


def _caught(_number: int, _frame: object) -> None:
    """Nothing to do: its number is in the pipe. A handler has to exist for the signal to be caught."""
