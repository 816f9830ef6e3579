"""Writing log lines where nobody reads, where there is no room, and where nothing is any more."""

import contextlib
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator

import pytest

from workerkit.worker import sink as sink_module
from workerkit.worker.sink import LineSink


def dropped(count: int, why: str) -> bytes:
    return f"dropped {count}: {why}\n".encode()


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """The two ends of a pipe: read, write."""
    ends = os.pipe()
    yield ends
    for fd in ends:
        with contextlib.suppress(OSError):  # the test has closed it
            os.close(fd)


def until(condition: Callable[[], bool]) -> None:
    """Wait for the writing thread; pytest's own limit ends a wait in vain."""
    while not condition():
        threading.Event().wait(0.001)


def read_all(fd: int) -> bytes:
    with os.fdopen(os.dup(fd), "rb") as file:
        return file.read()


def test_lines_arrive_in_order_and_close_writes_what_is_queued(pipe: tuple[int, int]) -> None:
    """Nothing is lost at the end of a worker."""
    sink = LineSink(pipe[1], dropped)
    for number in range(1000):
        sink.write(b"%d\n" % number)
    sink.close()
    os.close(pipe[1])
    assert read_all(pipe[0]).split() == [b"%d" % number for number in range(1000)]


def test_a_full_pipe_blocks_nobody_and_its_reader_is_told_later_what_it_missed(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Writing returns at once, memory is bounded, and every line is either read or counted."""
    monkeypatch.setattr(sink_module, "MAX_QUEUED_BYTES", 100)
    sink = LineSink(pipe[1], dropped)
    line = b"x" * 49 + b"\n"
    for _ in range(10_000):  # 500 kB into a pipe that holds 64: a write that waited would wait for ever
        sink.write(line)
    with sink._wake:
        assert sink._queued <= 100
        assert sink._dropped > 0
    read = b""
    while read.count(line) + sum(map(int, re.findall(rb"dropped (\d+): the reader", read))) < 10_000:
        read += os.read(pipe[0], 1 << 20)
    sink.close()
    os.close(pipe[1])
    assert read_all(pipe[0]) == b""


def test_a_closed_pipe_kills_nobody_and_its_lines_are_counted(pipe: tuple[int, int]) -> None:
    """The reader is gone for good: lines are dropped, the worker works on."""
    os.close(pipe[0])
    sink = LineSink(pipe[1], dropped)
    sink.write(b"one\n")
    sink.close()
    assert sink._dropped == 1
    assert not sink._thread.is_alive()


def test_a_full_disk_is_announced_when_there_is_room_again(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it could not write is counted, and the count is the first thing that it writes."""
    monkeypatch.setattr(sink_module.time, "sleep", lambda _seconds: None)
    with open("/dev/full", "wb", buffering=0) as full, open(tmp_path / "log", "wb", buffering=0) as log:
        sink = LineSink(full.fileno(), dropped)
        sink.write(b"one\n")
        sink.write(b"two\n")
        until(lambda: sink._dropped == 2)
        sink._fd = log.fileno()
        sink.write(b"three\n")
        sink.close()
    assert (tmp_path / "log").read_text() == "dropped 2: writing failed: No space left on device\nthree\n"


def test_an_announcement_that_fails_is_not_counted_as_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """The count stays that of the lines of the worker."""
    monkeypatch.setattr(sink_module.time, "sleep", lambda _seconds: None)
    with open("/dev/full", "wb", buffering=0) as full:
        sink = LineSink(full.fileno(), dropped)
        for _ in range(3):
            before = sink._dropped
            sink.write(b"line\n")
            until(lambda before=before: sink._dropped > before and not sink._lines)
        sink.close()
    assert sink._dropped == 3


def test_a_pipe_that_somebody_made_non_blocking_still_gets_everything(pipe: tuple[int, int]) -> None:
    """The flag belongs to the open file, which other processes share."""
    os.set_blocking(pipe[1], False)
    sink = LineSink(pipe[1], dropped)
    data = b"y" * 200_000 + b"\n"
    sink.write(data)
    read = b""
    while len(read) < len(data):
        read += os.read(pipe[0], 1 << 20)
    sink.close()
    assert read == data


def test_closing_gives_up_on_a_reader_that_hangs(pipe: tuple[int, int]) -> None:
    """A worker must end although its log does not."""
    sink = LineSink(pipe[1], dropped)
    sink.write(b"z" * 1_000_000)
    sink.close(timeout=0.01)
    assert sink._thread.is_alive()
    read_size = 0
    while read_size < 1_000_000:
        read_size += len(os.read(pipe[0], 1 << 20))
    sink._thread.join(5)
    assert not sink._thread.is_alive()


def test_closed_standard_descriptors_are_opened_before_a_socket_can_take_their_numbers() -> None:
    """Otherwise log lines go into the connection to the broker."""
    code = """
import os, socket, sys
for fd in (0, 1, 2):
    os.close(fd)
from workerkit.worker.sink import ensure_standard_descriptors
ensure_standard_descriptors()
with socket.socket() as first:
    os._exit(0 if first.fileno() > 2 else 1)
"""
    assert subprocess.run([sys.executable, "-c", code], timeout=30).returncode == 0
