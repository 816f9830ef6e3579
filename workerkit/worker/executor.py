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
from workerkit.worker import logs
from workerkit.worker.link import Dying, Frame, Kind, json_frame
from workerkit.worker.loading import Spec, load_class, prepare
from workerkit.worker.looping import LoopRunner, new_event_loop
from workerkit.worker.page import Page
from workerkit.worker.running import BlockingRunner
from workerkit.worker.uplink import Uplink, exit_code

_PR_SET_PDEATHSIG = 1
_OUT_OF_MEMORY = json_frame(
    Kind.DYING, Dying(Cause(Reason.MEMORY, "out of memory outside the callback", "MemoryError"))
)
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
        self._keys: dict[str, Any] = {}

    def run(self) -> int:
        """Work until STOP or the end of the link. Returns the exit code."""
        frames: list[Frame] = []
        while not frames:
            frames = self._uplink.receive()
        (_, data, start, end), *frames = frames
        spec = msgspec.json.decode(data[start:end], type=Spec)
        self._keys = {"worker": spec.worker, "instance": spec.instance, "pid": os.getpid()}
        logs.configure(spec.log_level, self._log_context, self._uplink.log)
        # One loop for all of the task's coroutines, made for the first: what ``initialize`` opens on it, callbacks use.
        # Inline the signals of the process are the consumer's, and uvloop would take them.
        loops = asyncio.Runner(loop_factory=asyncio.new_event_loop if spec.inline else new_event_loop)

        def complete(awaitable: Awaitable[None]) -> None:
            loops.get_loop().run_until_complete(awaitable)

        who = f"worker {spec.worker!r}"
        try:
            task, resolved = prepare(spec, load_class(spec), complete)
        except TaskLoadError as error:
            return self._fail(str(error))
        except MemoryError:
            return self._fail(f"{who}: out of memory while the task was loaded; raise memory_limit")
        except (Exception, SystemExit) as error:  # noqa: BLE001 - initialize() is the user's
            text = f"{who}: initialize() failed: {type(error).__name__}: {error}"
            return self._fail(text, traceback.format_exc(), ExitCode.TEMPORARY)
        if not spec.inline:
            logs.adopt_stdlib_logging(spec.log_level)
        queues = list(resolved.queues)
        if len(queues) == 1:
            self._keys["queue"] = queues[0]
        if resolved.asynchronous:
            self._runner = LoopRunner(task, queues, resolved.concurrency, self._uplink, loops.get_loop())
        else:
            self._runner = BlockingRunner(task, queues, self._uplink, complete)
        self._uplink.send(json_frame(Kind.READY, resolved))
        death = self._runner.run(frames)
        if death is not None:
            return exit_code(death)
        loops.close()
        return ExitCode.OK

    def _fail(self, text: str, trace: str = "", code: ExitCode = ExitCode.CONFIGURATION) -> int:
        story = {"text": text, "traceback": trace, "configuration": code == ExitCode.CONFIGURATION}
        self._uplink.send(json_frame(Kind.FAILED, story))
        return code

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
