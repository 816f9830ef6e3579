"""The executor process: imports the user's module, runs its callback on the main thread, one message after another.

It has no connection to the broker. What it decides goes over the link; what it is doing stands in the shared page.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Mapping
from functools import partial
from typing import Any

import msgspec

from workerkit.errors import ExitCode, TaskLoadError
from workerkit.message import Incoming, MessageAdapter
from workerkit.payload import body_decoder
from workerkit.settlement import ACK, RELEASE, Cause, Outcome, Reason
from workerkit.task import WorkerTask
from workerkit.worker import logs
from workerkit.worker.execution import end_by, execute
from workerkit.worker.link import (
    READ_SIZE,
    Frame,
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
from workerkit.worker.loading import Spec, load_class, prepare

_PR_SET_PDEATHSIG = 1
_OUT_OF_MEMORY = pack_cause(Cause(Reason.MEMORY, "out of memory outside the callback", "MemoryError"))
_WAKE = frame(Kind.WAKE)
_open_to_the_end: list[socket.socket] = []
"""The link stays open after ``main``: what the user registered with ``atexit`` may log."""
INTERRUPTED = 130
"""Exit code after a KeyboardInterrupt: 128 + SIGINT, as shells have it."""


class Executor:
    """Runs callbacks until it is told to stop.

    1. Loads the task and says what it resolved (READY), or why it cannot (FAILED).
    2. Runs each delivery and sends its settlement at once.
    3. When a callback ends the interpreter, says so (DYING), runs ``shutdown`` and ends.
    """

    def __init__(self, link: socket.socket, page: Page) -> None:
        self._link = link
        self._page = page
        self._reader = FrameReader()
        self._lock = threading.RLock()
        self._outgoing: deque[bytes] = deque()
        self._sending = False
        self._forked = False
        os.register_at_fork(after_in_child=self._on_fork)
        self._seq = 0
        self._message: MessageAdapter | None = None
        self._keys: dict[str, Any] = {}

    def run(self) -> int:
        """Work until STOP or the end of the link. Returns the exit code."""
        frames = self._receive()
        while not frames:
            frames = self._receive()
        (_, data, start, end), *frames = frames
        spec = msgspec.json.decode(data[start:end], type=Spec)
        self._keys = {"worker": spec.worker, "instance": spec.instance, "pid": os.getpid()}
        logs.configure(spec.log_level, self._log_context, lambda line: self._send(Kind.LOG, line))
        task = self._load(spec)
        if isinstance(task, ExitCode):
            return task
        self._decode = body_decoder(task.payload_type)
        self._queue = str(self._keys["queue"])
        while True:
            for kind, data, start, end in frames:
                if kind == Kind.DELIVER:
                    death = self._deliver(task, data, start, end)
                    if death is not None:
                        return _exit_code(death)
                elif kind == Kind.AFTERMATH:
                    self._aftermath(task, data[start:end])
                elif kind == Kind.STOP:
                    return ExitCode.OK
            frames = self._receive()

    def _receive(self) -> list[Frame]:
        data = self._link.recv(READ_SIZE)
        if not data:
            raise SystemExit(ExitCode.OK)  # the consumer is gone, and every settlement with it
        return self._reader.feed(data)

    def _load(self, spec: Spec) -> WorkerTask | ExitCode:
        try:
            cls = load_class(spec)
            task, resolved = prepare(spec, cls, os.getpid())
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
            self._keys["queue"] = next(iter(resolved.queues))
            self._send(Kind.READY, pack_json(resolved))
            return task
        return ExitCode.CONFIGURATION

    def _failed(self, text: str, trace: str, *, configuration: bool) -> None:
        self._send(Kind.FAILED, pack_json({"text": text, "traceback": trace, "configuration": configuration}))

    def _deliver(self, task: WorkerTask, data: bytes, start: int, end: int) -> Cause | None:
        seq, incoming = unpack_delivery(data, start, end, self._queue)
        page = self._page
        if seq <= page.void:
            return None
        now = time.monotonic_ns()
        # First say "I run it", then ask whether it is still mine: the consumer writes the void word first and reads
        # the running word afterwards, so at least one of the two sees the other.
        page.begin(seq, Phase.CALLBACK, now)
        if seq <= page.void:
            page.end()
            self._settle(seq, now, RELEASE)  # voided in just this moment: the consumer may take it for started
            return None
        message = self._adapter(seq, now, incoming)
        death = execute(task, message, self._enter_shutdown)
        if self._forked:
            os._exit(ExitCode.OK)  # a child of the callback came back from it: the next message is not its business
        self._message = None
        page.end()
        logs.clear_context()
        return death

    def _aftermath(self, task: WorkerTask, payload: bytes) -> None:
        """Run ``shutdown`` for the message that ended the executor before this one."""
        seq, incoming, aftermath = unpack_aftermath(payload, self._queue)
        now = time.monotonic_ns()
        self._page.begin(seq, Phase.SHUTDOWN, now)
        message = self._adapter(seq, now, incoming, None if aftermath.settled is None else Outcome(aftermath.settled))
        end_by(task, message, aftermath.cause)
        self._message = None
        self._page.end()

    def _adapter(self, seq: int, now: int, incoming: Incoming, outcome: Outcome | None = None) -> MessageAdapter:
        self._seq = seq
        # Bound here: a thread that settles late settles its own message, not the one that runs by then.
        self._message = MessageAdapter(incoming, partial(self._settle, seq, now), self._decode, outcome)
        return self._message

    def _settle(self, seq: int, started_ns: int, outcome: Outcome) -> None:
        if self._forked:
            return
        duration_ns = time.monotonic_ns() - started_ns
        if outcome is not ACK or not self._page.acknowledge(seq, duration_ns):
            self._send_frame(Kind.SETTLED, settled_frame(seq, duration_ns, outcome))
        elif self._page.must_wake():
            self._send_frame(Kind.WAKE, _WAKE)

    def _on_fork(self) -> None:
        """In a child that the callback forked: it shares the link and the page, and must not speak for the executor."""
        self._forked = True

    def _enter_shutdown(self, cause: Cause) -> None:
        """Announced before ``shutdown`` runs, so the cause is known even if that dies too."""
        if self._forked:
            os._exit(_exit_code(cause))  # the end of the child, not of the executor
        self._send(Kind.DYING, pack_cause(cause))
        self._page.begin(self._seq, Phase.SHUTDOWN, time.monotonic_ns())

    def _send(self, kind: Kind, payload: bytes) -> None:
        if self._forked and kind is Kind.LOG:
            os.write(2, payload)  # read by the consumer, line by line
            return
        self._send_frame(kind, frame(kind, payload))

    def _send_frame(self, kind: Kind, data: bytes) -> None:
        """Send one frame whole. Threads take turns; a signal handler that logs in the midst of a send is not in a turn
        of its own, so its frame is left to the send that it interrupted.
        """
        if self._forked:
            return
        with self._lock:
            self._outgoing.append(data)
            if self._sending:
                return
            self._sending = True
            try:
                while self._outgoing:
                    self._link.sendall(self._outgoing.popleft())
            except OSError:
                if kind is not Kind.LOG:
                    os._exit(ExitCode.TEMPORARY)  # the consumer is gone: nothing that happens here can count any more
            finally:
                self._sending = False

    def _log_context(self) -> Mapping[str, Any]:
        message = self._message
        if message is None:
            return self._keys
        keys = {**self._keys, "attempt": message.attempt}
        with contextlib.suppress(ValueError):
            keys["message_id"] = message.message_id
        return keys


def _exit_code(death: Cause) -> int:
    if death.exit_code is not None:
        return death.exit_code
    return INTERRUPTED if death.reason is Reason.SIGNAL else ExitCode.INTERNAL


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
        return Executor(link, Page(page_fd)).run()
    except MemoryError:  # outside a callback: a body, or what the task keeps, is too big for the limit
        link.sendall(frame(Kind.DYING, _OUT_OF_MEMORY))
        return ExitCode.INTERNAL
    finally:
        _open_to_the_end.append(link)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
