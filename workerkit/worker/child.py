"""The consumer's end of the link, and the life of the executor process behind it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import traceback
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import IO, Protocol

from workerkit.errors import ExitCode
from workerkit.worker.link import READ_SIZE, Frame, FrameReader
from workerkit.worker.orphans import MARK, Orphans
from workerkit.worker.page import Page

_STACKS_DEADLINE = 0.5
"""Seconds that faulthandler gets to write every thread's stack; it takes milliseconds."""
_CONGESTED, _CLEAR = 4 * 1024 * 1024, 1024 * 1024
"""Unsent bytes from which on it is better to read nothing more, and from which on it is not.

A prefetch window of big bodies is not read faster than short callbacks work it off: memory that is touched for the
first time costs a page fault per 4 KiB, which was measured to double the cost of a 1 MB message.
"""
_MAX_LINE = 16 * 1024
_CRASH_TEXT_LIMIT = 64 * 1024


@dataclass(frozen=True, slots=True)
class Exit:
    """How an executor ended: with an exit code, or by a signal; and what faulthandler wrote while it died."""

    code: int | None
    signal: int | None
    crash_text: str = ""


class ChildEvents(Protocol):
    """What the owner of an executor is told. Every call comes from the event loop."""

    def on_frames(self, frames: list[Frame]) -> None:
        """The frames that have arrived, if any; the page may say more."""

    def on_congested(self, congested: bool) -> None:
        """More waits to be sent than should be held in memory; or no longer."""

    def on_output(self, stream: str, line: str) -> None:
        """The user's code wrote a line to stdout or stderr."""

    def on_exit(self, status: Exit) -> None:
        """It is gone, and all its frames have been handed over before this."""


class Child:
    """An executor as the consumer sees it: frames in both directions, without ever blocking the loop, and the page."""

    pid: int

    def __init__(self, sock: socket.socket, page: Page, events: ChildEvents) -> None:
        self._loop = asyncio.get_running_loop()
        self._sock = sock
        self._reader = FrameReader()
        self._events = events
        self._unsent: deque[memoryview] = deque()
        self._unsent_bytes = 0
        self._congested = False
        self._ended = False  # then drain() reads to the last byte
        self.page = page
        self.closed = False
        sock.setblocking(False)
        self._loop.add_reader(sock.fileno(), self._on_readable)

    def send(self, *pieces: bytes) -> None:
        """Send frames, in order; what the socket does not take now follows when it can."""
        if self.closed:
            return
        waiting = bool(self._unsent)
        self._unsent.extend(map(memoryview, pieces))
        self._unsent_bytes += sum(map(len, pieces))
        if not waiting and not self._send_some():
            self._loop.add_writer(self._sock.fileno(), self._on_writable)
        if self._unsent_bytes > _CONGESTED:
            self._set_congested(True)

    def drain(self) -> bool:
        """Hand over everything that has arrived, through the socket and in the page. False: the stream has ended."""
        frames: list[Frame] = []
        alive = True
        try:
            while data := self._sock.recv(READ_SIZE):
                frames += self._reader.feed(data)
                if len(data) < READ_SIZE and not self._ended:
                    break
            else:
                alive = False
        except BlockingIOError:
            pass
        except OSError:
            alive = False
        self._events.on_frames(frames)
        return alive

    def close(self) -> None:
        """Stop listening and let go of the socket and the page."""
        self.closed = True
        self._loop.remove_reader(self._sock.fileno())
        self._loop.remove_writer(self._sock.fileno())
        self._sock.close()
        self.page.close()
        self._set_congested(False)

    def _on_readable(self) -> None:
        if not self.drain():
            self._loop.remove_reader(self._sock.fileno())
            self.on_end_of_stream()

    def on_end_of_stream(self) -> None:
        """The other side closed its end."""

    def kill(self) -> None:
        """End it now. ``on_exit`` follows."""
        raise NotImplementedError

    async def stacks(self) -> str:
        """The stack of every thread of its process."""
        raise NotImplementedError

    def _send_some(self) -> bool:
        """Send what the socket takes. True: nothing is left to be sent."""
        while self._unsent:
            try:
                sent = self._sock.send(self._unsent[0])
            except BlockingIOError:
                return False
            except OSError:
                self._unsent.clear()  # it is gone, which is reported elsewhere
                self._unsent_bytes = 0
                return True
            self._unsent_bytes -= sent
            rest = self._unsent[0][sent:]
            if rest:
                self._unsent[0] = rest
            else:
                self._unsent.popleft()
        return True

    def _on_writable(self) -> None:
        if self._send_some():
            self._loop.remove_writer(self._sock.fileno())
        if self._unsent_bytes < _CLEAR:
            self._set_congested(False)

    def _set_congested(self, congested: bool) -> None:
        if self._congested != congested:
            self._congested = congested
            self._events.on_congested(congested)


class InlineChild(Child):
    """An executor on the main thread of this process, the consumer being on another: for debuggers."""

    pid = os.getpid()

    def on_end_of_stream(self) -> None:
        self._events.on_exit(Exit(code=None, signal=None))

    def kill(self) -> None:
        # A thread cannot be ended. The broker has the message back as soon as the connection breaks.
        os._exit(ExitCode.TEMPORARY)

    async def stacks(self) -> str:
        frames = sys._current_frames()  # noqa: SLF001 - the documented way to see other threads' stacks
        return "\n".join(f"Thread {ident}:\n" + "".join(traceback.format_stack(top)) for ident, top in frames.items())


class ProcessChild(Child):
    """An executor in a process of its own: a fresh interpreter, the consumer's only child.

    It is its own process group, so signals for the worker's group (Ctrl-C, Supervisor's ``stopasgroup``) reach only the
    consumer, and what the user's code started can be ended with it.

    Args:
        events: what its owner is told.
        environment: variables on top of this process' own.
        orphans: ends what left its process group, too. None: that is nobody's business.

    Raises:
        OSError: no process could be started.
    """

    def __init__(self, events: ChildEvents, environment: Mapping[str, str], orphans: Orphans | None = None) -> None:
        self._orphans = orphans
        self._mark = orphans.new_mark() if orphans is not None else ""
        ours, theirs = socket.socketpair()
        page, page_fd = Page.create()
        self._crash_fd = os.memfd_create("workerkit-crash", os.MFD_CLOEXEC)
        self._crash_read = 0
        fds = (theirs.fileno(), page_fd, self._crash_fd)
        command = [sys.executable, "-P", "-u", "-m", "workerkit.worker.executor", *map(str, fds), str(os.getpid())]
        with contextlib.ExitStack() as after, contextlib.ExitStack() as on_error:
            after.callback(theirs.close)
            after.callback(os.close, page_fd)
            on_error.callback(ours.close)
            on_error.callback(page.close)
            on_error.callback(os.close, self._crash_fd)
            # The request for stacks must not end an executor that cannot answer yet: it unblocks that when it can.
            mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
            after.callback(signal.pthread_sigmask, signal.SIG_SETMASK, mask)
            self._process = subprocess.Popen(
                command,
                bufsize=0,
                pass_fds=fds,
                process_group=0,
                env={**os.environ, **environment, MARK: self._mark},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
            on_error.push(self._process)
            on_error.callback(self._process.kill)
            self._pidfd = os.pidfd_open(self._process.pid)  # without it, nobody would hear of its end
            on_error.pop_all()
        super().__init__(ours, page, events)
        self.pid = self._process.pid
        self._loop.add_reader(self._pidfd, self._on_death)
        if orphans is not None:
            orphans.on_started(self._mark, self.pid)
        pipes = {"stdout": self._process.stdout, "stderr": self._process.stderr}
        self._outputs = [_Output(self._loop, pipe, name, events) for name, pipe in pipes.items() if pipe is not None]

    def kill(self) -> None:
        """End it and everything it started. ``on_exit`` follows."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)

    async def stacks(self) -> str:
        """The stack of every thread, from faulthandler's own signal handler: it needs no GIL."""
        self._process.send_signal(signal.SIGUSR1)
        deadline = self._loop.time() + _STACKS_DEADLINE
        size = 0
        while self._loop.time() < deadline:
            await asyncio.sleep(0.01)
            if self.closed:
                return ""  # it died meanwhile, and the file is closed
            now = os.fstat(self._crash_fd).st_size
            if now > self._crash_read and now == size:
                break
            size = now
        return self._read_crash_text()

    def _read_crash_text(self) -> str:
        raw = os.pread(self._crash_fd, _CRASH_TEXT_LIMIT, self._crash_read)
        self._crash_read += len(raw)
        return raw.decode("utf-8", "replace").strip()

    def _on_death(self) -> None:
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        returncode = self._process.wait()
        if self._orphans is not None:
            self._orphans.on_gone(self._mark)
        with contextlib.suppress(ProcessLookupError, PermissionError):  # some of it may be another user's
            os.killpg(self.pid, signal.SIGKILL)  # what it started must not outlive it
        self._ended = True
        self.drain()
        for output in self._outputs:
            output.close()
        crash_text = self._read_crash_text()
        os.close(self._crash_fd)
        code, number = (returncode, None) if returncode >= 0 else (None, -returncode)
        self._events.on_exit(Exit(code, number, crash_text))


class _Output:
    """Lines from the executor's stdout or stderr. A line without an end is handed over in pieces."""

    def __init__(self, loop: asyncio.AbstractEventLoop, pipe: IO[bytes], stream: str, events: ChildEvents) -> None:
        self._loop = loop
        self._pipe = pipe
        self._stream = stream
        self._events = events
        self._partial = b""
        os.set_blocking(pipe.fileno(), False)  # our end, which nobody else reads
        loop.add_reader(pipe, self._on_readable)

    def _on_readable(self) -> None:
        if self._read_some() == b"":
            self._loop.remove_reader(self._pipe)

    def _read_some(self) -> bytes | None:
        """Hand over the lines of one read, and return it: empty at the end, None when nothing is there now."""
        data: bytes | None = self._pipe.read(64 * 1024)
        if data is None:
            return None
        *lines, self._partial = (self._partial + data).split(b"\n")
        if len(self._partial) > _MAX_LINE or not data:
            lines.append(self._partial)
            self._partial = b""
        for line in lines:
            if line.strip():
                self._events.on_output(self._stream, line.decode("utf-8", "backslashreplace").rstrip("\r"))
        return data

    def close(self) -> None:
        """Read what is there, then stop. A grandchild that still holds the pipe is not waited for."""
        self._loop.remove_reader(self._pipe)
        for _ in range(64):  # a pipe holds 64 KiB; a surviving writer must not keep us here
            if not self._read_some():
                break
        self._pipe.close()
        if self._partial.strip():
            self._events.on_output(self._stream, self._partial.decode("utf-8", "backslashreplace"))
