"""How an executor makes itself heard."""

import os
import socket
import threading
from collections.abc import Iterator

import pytest

from workerkit import Cause, Reason
from workerkit.settlement import ACK, RELEASE
from workerkit.worker.link import FrameReader, Kind, frame
from workerkit.worker.page import Page
from workerkit.worker.uplink import LinkHandle, Uplink, exit_code


@pytest.fixture
def ends() -> Iterator[tuple[Uplink, socket.socket]]:
    """An uplink, and the socket at its other end."""
    theirs, ours = socket.socketpair()
    page, fd = Page.create()
    os.close(fd)
    with theirs, ours:
        yield Uplink(theirs, page), ours
    page.close()


def receive_all(sock: socket.socket, size: int) -> bytes:
    received = b""
    while len(received) < size:
        received += sock.recv(65536)
    return received


@pytest.mark.parametrize("blocking", [True, False])
def test_frames_of_several_threads_arrive_whole(blocking: bool, ends: tuple[Uplink, socket.socket]) -> None:
    """Also through a socket that some event loops make non-blocking, and when the other side reads slowly."""
    uplink, ours = ends
    uplink._link.setblocking(blocking)
    payloads = [bytes([number]) * 1_000_000 for number in range(4)]
    threads = [threading.Thread(target=uplink.send, args=(frame(Kind.LOG, payload),)) for payload in payloads]
    for thread in threads:
        thread.start()
    received = receive_all(ours, sum(len(frame(Kind.LOG, payload)) for payload in payloads))
    for thread in threads:
        thread.join()
    frames = FrameReader().feed(received)
    assert sorted(data[start:end] for _, data, start, end in frames) == payloads


def test_an_acknowledgement_costs_no_frame_while_the_consumer_is_awake(ends: tuple[Uplink, socket.socket]) -> None:
    """The first one wakes it; what is more than an acknowledgement always comes by itself."""
    uplink, ours = ends
    LinkHandle(uplink, 0, 1).settle(ACK)
    LinkHandle(uplink, 1, 2).settle(ACK)
    LinkHandle(uplink, 2, 3).settle(RELEASE)
    kinds = [kind for kind, *_ in FrameReader().feed(ours.recv(65536))]
    assert kinds == [Kind.WAKE, Kind.SETTLED]


def test_a_forked_child_says_nothing_but_its_log(ends: tuple[Uplink, socket.socket], capfd) -> None:
    """The socket and the page are its parent's; stderr is read line by line."""
    uplink, ours = ends
    child = os.fork()
    if child == 0:
        uplink.send(frame(Kind.STOP))
        LinkHandle(uplink, 0, 1).settle(ACK)
        LinkHandle(uplink, 1, 2).settle(RELEASE)
        uplink.log(b"a line\n")
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    uplink.send(frame(Kind.WAKE))
    assert [kind for kind, *_ in FrameReader().feed(ours.recv(65536))] == [Kind.WAKE]
    assert uplink.page.must_wake(), "nothing was marked in the page"
    assert "a line" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("cause", "code"),
    [
        (Cause(Reason.EXIT, "", exit_code=3), 3),
        (Cause(Reason.EXIT, "", exit_code=0), 0),
        (Cause(Reason.SIGNAL, "", signal=2), 130),
        (Cause(Reason.MEMORY, ""), 70),
    ],
)
def test_the_exit_code_says_what_it_died_of(cause: Cause, code: int) -> None:
    """The callback's own, 128 and the signal, or an internal error."""
    assert exit_code(cause) == code
