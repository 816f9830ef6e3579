"""Tests that are coroutines."""

import asyncio

import pytest
from hypothesis import settings

settings.register_profile("unit", deadline=None, max_examples=50)  # a loaded machine is slow, not wrong
settings.load_profile("unit")


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run one on a loop of its own; ten seconds without an end are a failure."""
    if not asyncio.iscoroutinefunction(pyfuncitem.obj):
        return None
    arguments = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
    asyncio.run(asyncio.wait_for(pyfuncitem.obj(**arguments), 10))
    return True
