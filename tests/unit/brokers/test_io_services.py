"""What pika leaves out of its dealings with the event loop."""

import asyncio
import socket
import struct
from typing import Any

from workerkit.brokers.rabbitmq.io_services import IoServices


def reset_after_connecting() -> socket.socket:
    """A socket that was connected, and then reset by its peer before anybody looked."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        ours = socket.create_connection(server.getsockname())
        theirs, _ = server.accept()
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        theirs.close()
    return ours


def test_a_connection_that_is_reset_before_it_is_used_is_a_failed_attempt() -> None:
    """It is told to who wanted the connection; an error in the loop would end the worker."""

    async def scene() -> tuple[socket.socket, Any]:
        ours = reset_after_connecting()
        told: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        IoServices(asyncio.get_running_loop()).create_streaming_connection(asyncio.Protocol, ours, told.set_result)
        return ours, await asyncio.wait_for(told, 5)

    ours, outcome = asyncio.run(scene())
    assert isinstance(outcome, ConnectionResetError)
    assert ours.fileno() == -1
