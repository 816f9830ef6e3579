"""The brokers that the contract suite runs on, and tests that are coroutines."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from contract.worlds import MemoryWorld, RabbitmqWorld, World

from workerkit.settings.model import DelayedRetrySettings, Duration, QueueSettings

TEST_DEADLINE = 60.0

_RABBITMQ = {
    "classic": ("rabbitmq", QueueSettings(type="classic")),
    "quorum": ("rabbitmq", QueueSettings()),
    "native": (
        "rabbitmq_next",
        QueueSettings(delayed_retry=DelayedRetrySettings(min=Duration(0.3), max=Duration(2.0))),
    ),
}


@pytest.fixture(params=["memory", *(pytest.param(kind, marks=pytest.mark.integration) for kind in _RABBITMQ)])
def world(request: pytest.FixtureRequest, queue_name: str) -> World:
    """One of the brokers, with queues of this test's own."""
    prefix = f"contract-{queue_name[-8:]}"
    if request.param == "memory":
        return MemoryWorld(prefix)
    node, settings = _RABBITMQ[request.param]
    return RabbitmqWorld(prefix, request.getfixturevalue(node), settings)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a coroutine on a loop of its own, inside of its world."""
    if not asyncio.iscoroutinefunction(pyfuncitem.obj):
        return None
    arguments = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
    world = arguments.get("world", contextlib.nullcontext())

    async def run() -> None:
        async with asyncio.timeout(TEST_DEADLINE), world:
            await pyfuncitem.obj(**arguments)

    asyncio.run(run())
    return True
