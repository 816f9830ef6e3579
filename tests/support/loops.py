"""Tests that are coroutines."""

import asyncio
import functools
from collections.abc import Awaitable, Callable
from typing import Any


def on_a_loop(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Run the test on an event loop of its own, for a minute at most."""

    @functools.wraps(test)
    def run(*args: Any, **fixtures: Any) -> None:
        asyncio.run(asyncio.wait_for(test(*args, **fixtures), 60))

    return run
