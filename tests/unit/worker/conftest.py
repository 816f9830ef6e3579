"""Running a test of the keeper on a loop of its own."""

import asyncio
import functools
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from keeper_fakes import Stage


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """A test that is a coroutine gets a ``stage`` and a loop; ten seconds without an end are a failure."""
    test: Callable[..., Coroutine[Any, Any, None]] = pyfuncitem.obj
    if not asyncio.iscoroutinefunction(test):
        return None
    arguments = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}

    async def main() -> None:
        if arguments.get("stage") is STAGE:
            arguments["stage"] = Stage()
        await asyncio.wait_for(functools.partial(test, **arguments)(), 10)

    asyncio.run(main())
    return True


STAGE = object()


@pytest.fixture
def stage() -> object:
    """Replaced by a Stage inside the loop."""
    return STAGE
