"""How a publish ends, on every broker."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from workerkit.errors import PublishFailed

Ended = Callable[[PublishFailed | None], None]
"""Called once for a message, with None when the broker has it. Must not raise."""


def resolve(waiting: asyncio.Future[None], error: PublishFailed | None) -> None:
    """As ``Ended``, for whoever waits for one message, unless that wait has been given up."""
    if waiting.done():
        return
    if error is None:
        waiting.set_result(None)
    else:
        waiting.set_exception(error)
