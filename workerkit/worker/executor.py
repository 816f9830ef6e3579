"""The executor process: imports the user's module and runs its callback on the main thread.

It has no connection to the broker. What it decides goes over the link; what it is doing stands in the shared page.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import faulthandler
import os
import signal
import socket
import sys
import traceback
from collections.abc import Awaitable, Mapping
from typing import Any

import msgspec

from workerkit.errors import ExitCode, TaskLoadError
from workerkit.settlement import Cause, Reason
from workerkit.task import WorkerTask
from workerkit.worker import logs
from workerkit.worker.link import Dying, Kind, dying_frame, json_frame
from workerkit.worker.loading import Resolved, Spec, load_class, prepare
from workerkit.worker.looping import LoopRunner, new_event_loop
from workerkit.worker.page import Page
from workerkit.worker.running import BlockingRunner
from workerkit.worker.uplink import Uplink, exit_code

_PR_SET_PDEATHSIG = 1
_OUT_OF_MEMORY = dying_frame(Dying(Cause(Reason.MEMORY, "out of memory outside the callback", "MemoryError")))
_open_to_the_end: list[socket.socket] = []
"""The link stays open after ``main``: what the user registered with ``atexit`` may log."""


class ExecutorProcess:
    """The life of an executor, on the main thread.

    1. Loads the task and says what it resolved (READY), or why it cannot (FAILED).
    2. Runs each delivery and sends its settlement at once.
    3. When a callback ends the interpreter, says so (DYING), runs ``shutdown`` and ends.
    """

    def __init__(self, link: socket.socket, page: Page) -> None:
        self._uplink = Uplink(link, page)
        self._runner: BlockingRunner | LoopRunner | None = None
        self._loops: asyncio.Runner | None = None
        self._inline = False
        self._keys: dict[str, Any] = {}

    def run(self) -> int:
        """Work until STOP or the end of the link. Returns the exit code."""
        frames = self._uplink.receive()
        while not frames:
            frames = self._uplink.receive()
        (_, data, start, end), *frames = frames
        spec = msgspec.json.decode(data[start:end], type=Spec)
        self._inline = spec.inline
        self._keys = {"worker": spec.worker, "instance": spec.instance, "pid": os.getpid()}
        logs.configure(spec.log_level, self._log_context, self._uplink.log)
        loaded = self._load(spec)
        if isinstance(loaded, ExitCode):
            return loaded
        task, resolved = loaded
        queues = list(resolved.queues)
        if len(queues) == 1:
            self._keys["queue"] = queues[0]
        if resolved.asynchronous:
            self._runner = LoopRunner(task, queues, resolved.concurrency, self._uplink, self._loop)
        else:
            self._runner = BlockingRunner(task, queues, self._uplink, self._complete)
        self._uplink.send(json_frame(Kind.READY, resolved))
        death = self._runner.run(frames)
        if death is not None:
            return exit_code(death)
        if self._loops is not None:
            self._loops.close()
        return ExitCode.OK

    def _load(self, spec: Spec) -> tuple[WorkerTask, Resolved] | ExitCode:
        try:
            task, resolved = prepare(spec, load_class(spec), os.getpid(), self._complete)
        except TaskLoadError as error:
            self._failed(str(error), "", configuration=True)
        except MemoryError:
            text = f"worker {spec.worker!r}: out of memory while the task was loaded; raise memory_limit"
            self._failed(text, "", configuration=True)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - initialize() is the user's
            text = f"worker {spec.worker!r}: initialize() failed: {type(error).__name__}: {error}"
            self._failed(text, traceback.format_exc(), configuration=False)
            return ExitCode.TEMPORARY
        else:
            if not spec.inline:
                logs.adopt_stdlib_logging(spec.log_level)
            return task, resolved
        return ExitCode.CONFIGURATION

    def _complete(self, awaitable: Awaitable[None]) -> None:
        """Run what a coroutine function of the task has to do."""
        self._loop.run_until_complete(awaitable)

    @property
    def _loop(self) -> asyncio.AbstractEventLoop:
        """The loop for all of the task's coroutines: what ``initialize`` opens on it, callbacks use."""
        if self._loops is None:
            # Inline the signals of the process are the consumer's, and uvloop would take them.
            self._loops = asyncio.Runner(loop_factory=asyncio.new_event_loop if self._inline else new_event_loop)
        return self._loops.get_loop()

    def _failed(self, text: str, trace: str, *, configuration: bool) -> None:
        story = {"text": text, "traceback": trace, "configuration": configuration}
        self._uplink.send(json_frame(Kind.FAILED, story))

    def _log_context(self) -> Mapping[str, Any]:
        message = self._runner.message if self._runner is not None else None
        if message is None:
            return self._keys
        keys = {**self._keys, "queue": message.queue, "attempt": message.attempt}
        with contextlib.suppress(ValueError):
            keys["message_id"] = message.message_id
        return keys


def main(argv: list[str]) -> int:
    """Entry of the executor process: file descriptors of the link, the page and the crash file, and the parent."""
    link_fd, page_fd, crash_fd, parent = map(int, argv)
    # The kernel ends this process with its consumer, even in the middle of a C call that never returns to Python.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        return ExitCode.TEMPORARY  # it died before prctl
    # A file without a name: it survives a death of any kind, and a traceback in it never blocks on a full pipe.
    faulthandler.enable(crash_fd, all_threads=True)
    faulthandler.register(signal.SIGUSR1, crash_fd, all_threads=True)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})  # blocked by the consumer until it can be answered
    for fd in (link_fd, page_fd, crash_fd):
        os.set_inheritable(fd, False)
    link = socket.socket(fileno=link_fd)
    try:
        return ExecutorProcess(link, Page(page_fd)).run()
    except MemoryError:  # outside a callback: a body, or what the task keeps, is too big for the limit
        link.sendall(_OUT_OF_MEMORY)
        return ExitCode.INTERNAL
    finally:
        _open_to_the_end.append(link)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
