"""What a private node needs of the machine: free ports, and the end of a process with all that it started."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

LOOPBACK: Final = "127.0.0.1"
_EXIT_DEADLINE: Final = 10.0  # seconds until a process that got SIGKILL must be gone


def free_ports(count: int) -> list[int]:
    """Ports on 127.0.0.1 that nothing listens on.

    They lie below the range from which the kernel gives ports to clients. A client that reconnects to a port in that
    range, while the node is down, can be given the very same port: it then talks to itself, and the node cannot come
    back.
    """
    first_for_clients = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    candidates = (
        random.SystemRandom().sample(range(10_000, first_for_clients), 1000) if first_for_clients > 11_000 else []
    )
    ports: list[int] = []
    with contextlib.ExitStack() as held:
        for port in [*candidates, *[0] * count]:  # 0: any port, where there are none below the range
            listener = held.enter_context(socket.socket())
            with contextlib.suppress(OSError):
                listener.bind((LOOPBACK, port))
                ports.append(listener.getsockname()[1])
            if len(ports) == count:
                break
    return ports


def listens(port: int) -> bool:
    try:
        socket.create_connection((LOOPBACK, port), timeout=1).close()
    except OSError:
        return False
    return True


def shake_hands(port: int) -> str:
    """Open an AMQP 0-9-1 connection as far as the server's ``connection.start``; the version that it states there.

    Raises:
        OSError: nobody listens, or the answer is not whole.
    """
    with socket.create_connection((LOOPBACK, port), timeout=2) as connection:
        connection.sendall(b"AMQP\x00\x00\x09\x01")
        with connection.makefile("rb") as answer:
            frame_header = answer.read(7)  # type, channel, size
            payload = answer.read(int.from_bytes(frame_header[3:7]))
    _, found, after = payload.partition(b"\x07versionS")  # a table entry: name, type "long string", length, text
    if not payload.startswith(b"\x00\x0a\x00\x0a") or not found:
        raise ConnectionError(f"port {port} does not answer like RabbitMQ")
    return after[4 : 4 + int.from_bytes(after[:4])].decode()


def kill_tree(process: subprocess.Popen[bytes] | subprocess.Popen[str]) -> None:
    """SIGKILL ``process`` and all its descendants, and wait until they are gone.

    Descendants too, as Erlang puts its helpers into sessions of their own, where killing the group does not reach them.
    """
    family = [process.pid, *_descendants(process.pid)] if process.poll() is None else []
    for pid in family:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait(_EXIT_DEADLINE)
    deadline = time.monotonic() + _EXIT_DEADLINE
    while any(_alive(pid) for pid in family) and time.monotonic() < deadline:
        time.sleep(0.01)


def _descendants(ancestor: int) -> Iterator[int]:
    parents = {int(entry.name): _stat(int(entry.name))[1] for entry in Path("/proc").iterdir() if entry.name.isdigit()}
    generation = {ancestor}
    while generation := {pid for pid, parent in parents.items() if parent in generation}:
        yield from generation


def _alive(pid: int) -> bool:
    return _stat(pid)[0] not in "ZX"


def _stat(pid: int) -> tuple[str, int]:
    """The state letter (``X`` if there is no such process) and the parent of a process, from ``/proc/PID/stat``."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return "X", 0
    state, parent = text.rpartition(")")[2].split()[:2]
    return state, int(parent)
