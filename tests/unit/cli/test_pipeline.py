"""The pipeline behind ``dead replay``: bounded, ordered, and over at the first failure."""

import asyncio

import pytest
from support.loops import on_a_loop

from workerkit.brokers.rabbitmq.pipeline import Pipeline


async def fail(text):
    raise OSError(text)


async def succeed():
    pass


@on_a_loop
async def test_no_more_is_started_than_fits():
    """The next piece waits until one in flight has ended."""
    gate = asyncio.Event()
    pipeline = Pipeline(2)
    assert await pipeline.submit(1, gate.wait)
    assert await pipeline.submit(2, gate.wait)
    third = asyncio.ensure_future(pipeline.submit(3, succeed))
    await asyncio.sleep(0)
    assert not third.done()
    gate.set()
    assert await third
    await pipeline.drain()
    assert (pipeline.done, pipeline.failure) == (3, None)


@on_a_loop
async def test_nothing_is_started_after_a_failure():
    """What the broker refused once is not hammered on: the pieces after it are not even tried."""
    pipeline = Pipeline(1)
    assert await pipeline.submit(7, lambda: fail("full"))
    assert not await pipeline.submit(8, lambda: pytest.fail("it was started"))
    await pipeline.drain()
    assert (pipeline.done, pipeline.failure.number, pipeline.failure.before) == (0, 7, 0)


@on_a_loop
async def test_the_failure_that_counts_is_the_earliest_submitted():
    """Several fail at once, in any order: the rest is published again from the first of them on."""
    gate = asyncio.Event()

    async def fail_late(text):
        await gate.wait()
        raise OSError(text)

    pipeline = Pipeline(4)
    await pipeline.submit(10, succeed)
    await pipeline.submit(20, lambda: fail_late("first"))
    await pipeline.submit(25, lambda: fail_late("last"))
    await pipeline.submit(30, lambda: fail("second"))
    await asyncio.sleep(0)
    assert pipeline.failure.number == 30
    gate.set()
    await pipeline.drain()
    assert (pipeline.failure.number, pipeline.failure.before, str(pipeline.failure.error)) == (20, 1, "first")
