"""Running a worker in a test: the real task code and the real rules, without a process, a socket or a wait."""

from __future__ import annotations

import asyncio
import contextvars
import math
import sys
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

import structlog.testing
from msgspec import to_builtins

from workerkit import headers as names
from workerkit.brokers.memory.record import Record
from workerkit.brokers.memory.store import MemoryStore
from workerkit.envelope import dead_queue_name
from workerkit.message import MessageAdapter
from workerkit.outgoing import Outgoing, encode_body
from workerkit.payload import body_decoder
from workerkit.ports import Delivery
from workerkit.properties import Properties, encode, header_number
from workerkit.retry import RetryPolicy, decide
from workerkit.settlement import Acknowledge, Cause, Outcome
from workerkit.task import WorkerTask
from workerkit.task_settings import SETTING_NAMES
from workerkit.worker.execution import execute, execute_async
from workerkit.worker.loading import Spec, check_class, prepare
from workerkit.worker.looping import new_event_loop
from workerkit.worker.selection import make_selector

_PERSISTENT = 2
_VERDICTS_OF_TESTS = ("_pytest", "hypothesis")
"""Packages whose exceptions end a test; a worker must not take them for a death of its own."""

Task = TypeVar("Task", bound=WorkerTask)
T = TypeVar("T")


class WorkerTest(Generic[Task]):
    """One worker under test, with queues of its own in memory::

        with WorkerTest(ThumbnailWorker, retry=RetryPolicy(max_attempts=2)) as worker:
            worker.publish({"path": "a.png"}, message_id="m1")
            worker.run_all()
            assert worker.dead_letters[0].reason is Reason.EXCEPTION

    Callbacks, retries, attempts, dead letters and headers follow the rules of a real worker, by the same code. Time
    stands still: nothing waits for a retry, ``advance`` moves the clock. Callbacks run one after the other, coroutines
    too, on an event loop that all of them share; so a test that uses this is no coroutine itself.

    What ends a callback and leaves Python running (``SystemExit``, ``KeyboardInterrupt``, ``MemoryError``) ends this
    worker too: ``shutdown`` runs, and a new task takes over as in a replacement process. What ends Python itself
    (``os._exit``, a signal, a segmentation fault) ends the test. Settings of a process, such as ``callback_timeout``,
    ``ttl``, ``memory_limit``, ``executors`` and ``concurrency``, do nothing. Failures of the test itself, such as
    ``pytest.fail`` in a callback, reach the test.

    Args:
        cls: the task to run.
        settings: settings by name, as in the YAML: ``initialize`` wins over them. ``retry`` is a ``RetryPolicy``.
            A task that names no queue consumes one called ``test``.

    Raises:
        TypeError: there is no such setting.
        TaskLoadError: a worker would refuse the task, for example because it has no callback.
        Exception: from entering the ``with`` block, whatever ``initialize`` raises.
    """

    def __init__(self, cls: type[Task], **settings: Any) -> None:
        unknown = settings.keys() - set(SETTING_NAMES)
        if unknown:
            raise TypeError(
                f"no setting of a worker: {', '.join(sorted(unknown))}; there are {', '.join(SETTING_NAMES)}"
            )
        check_class(cls, f"WorkerTest({cls.__name__})")
        self._cls = cls
        self._spec = _spec(cls, settings)
        self._store = MemoryStore()
        self._here: dict[str, deque[Delivery]] = {}
        self._unsettled: dict[int, Delivery] = {}
        self.task: Task
        """The task instance, initialized; another one after each death."""
        self.logs: Sequence[Mapping[str, Any]] = []
        """What was logged through structlog, as mappings with ``event`` and ``log_level``."""
        self.deaths: list[Cause] = []
        """What ended a task instance, in order."""
        self.acked: list[Record] = []
        """Acknowledged messages, in the order of their acknowledgements."""
        self.published: list[Record] = []
        """What callbacks published with their acknowledgements, with ``queue``, ``exchange``, ``data``, ``headers`` and
        ``delay``. What went to a queue that this worker consumes is worked on as well."""

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self.logs = stack.enter_context(structlog.testing.capture_logs())
            stack.callback(self._end_task)
            self._start()
            resolved = self._resolved
            self._policy = RetryPolicy(resolved.max_attempts, resolved.delays)
            self._here = {queue: deque() for queue in resolved.queues}
            self._selector = make_selector(resolved.select, resolved.queues, None, _fail_the_test)
            for queue in self._here:
                self._store.declare(queue)
                self._selector.on_open(queue, -math.inf)  # so long ago that all it had has arrived
            self._exit_stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._exit_stack.close()

    def publish(
        self,
        data: Any = None,
        *,
        queue: str | None = None,
        body: bytes | None = None,
        content_type: str | None = None,
        headers: Mapping[str, Any] | None = None,
        exchange: str = "",
        routing_key: str | None = None,
        delay: float | None = None,
        **properties: Any,
    ) -> None:
        """Put a message into a queue of the worker.

        Args:
            data: anything msgspec encodes as JSON.
            queue: which one; the first unless given.
            body: raw bytes instead of ``data``; no content type goes with them unless one is given.
            content_type: ``application/json`` unless given.
            headers: with ``{"workerkit-attempt": 5}`` it arrives for its fifth attempt.
            exchange: what ``message.exchange`` says; nothing is routed here.
            routing_key: what ``message.routing_key`` says; the name of the queue unless given.
            delay: seconds that it waits before it is ready.
            properties: other AMQP properties by name, such as ``message_id``.

        Raises:
            TypeError: there is no such property, or both ``data`` and ``body`` are given.
            ValueError: a property or a header cannot be sent, or the worker does not consume that queue.
        """
        queue = next(iter(self._here)) if queue is None else queue
        if queue not in self._here:
            raise ValueError(f"the worker does not consume {queue!r}; it consumes {', '.join(self._here)}")
        body, content_type = encode_body(data, body, content_type)
        properties = {"delivery_mode": _PERSISTENT, **properties}
        raw_properties = encode(Properties(content_type, headers=dict(headers or {}), **properties))
        key = queue if routing_key is None else routing_key
        self._store.put(queue, Outgoing(exchange, key, raw_properties, body, delay))

    def run(self) -> int:
        """Work until nothing is ready. The clock stands still.

        What the callback releases stays in the queue, for the next ``run``: a worker that always releases would never
        stop. What it publishes to a queue of its own is worked on. Returns how many callbacks ran.
        """
        for queue in self._here:
            self._store.redeliver(queue)
        ran = 0
        try:
            while delivery := self._next_delivery():
                ran += 1
                self._run_callback(delivery)
        finally:
            self._store.requeue(self._unsettled.values(), lost=False)
            self._unsettled.clear()
            for here in self._here.values():
                here.clear()
        return ran

    def run_all(self) -> int:
        """As ``run``, moving the clock on until nothing is delayed either, but for what the callback has released."""
        ran = self.run()
        while dues := [record.due for record in self.delayed if record.due and not _is_released(record)]:
            self._store.advance_to(dues[0])
            ran += self.run()
        return ran

    def advance(self, seconds: float) -> None:
        """Move the clock on: what is due becomes ready. Nothing runs. Raises ValueError for a negative number."""
        self._store.advance(seconds)

    @property
    def now(self) -> float:
        """Seconds that the clock has been moved on."""
        return self._store.now

    @property
    def ready(self) -> list[Record]:
        """Messages that can be worked on now, the next one of each queue first."""
        return self._store.ready(*self._here)

    @property
    def delayed(self) -> list[Record]:
        """Messages that wait for their time, the next one first; ``due`` says until when."""
        return self._store.delayed(*self._here)

    @property
    def dead_letters(self) -> list[Record]:
        """Dead letters, oldest first, with ``reason``, ``cause`` and the headers they have on the wire."""
        return self._store.ready(*map(dead_queue_name, self._here))

    def _start(self) -> None:
        self._runner = asyncio.Runner(loop_factory=new_event_loop)
        task, self._resolved = prepare(self._spec, self._cls, self._complete)
        assert isinstance(task, self._cls)
        self.task = task
        self._decode_body = body_decoder(task.payload_type)

    def _end_task(self) -> None:
        self._runner.close()
        if hasattr(self, "task"):  # it is not when `initialize` failed
            self.task.shutdown_helper.release()

    def _complete(self, awaitable: Awaitable[T]) -> T:
        """Run a coroutine to its end. What it sets in context variables ends with it."""

        async def run() -> T:
            return await awaitable

        return self._runner.run(run(), context=contextvars.copy_context())

    def _next_delivery(self) -> Delivery | None:
        prefetch_count = 1 if self._resolved.prefetch_count == "auto" else self._resolved.prefetch_count
        for queue, here in self._here.items():
            if not here:
                here.extend(self._store.receive(queue, prefetch_count))
                self._unsettled |= {delivery.tag: delivery for delivery in here}
        waiting = {queue: len(here) for queue, here in self._here.items() if here}
        if not waiting:
            return None
        chosen = self._selector.choose(waiting, time.monotonic())
        assert chosen is not None, "a selector waits only for what a broker may be sending"
        return self._here[chosen].popleft()

    def _run_callback(self, delivery: Delivery) -> None:
        message = MessageAdapter(delivery, _Handle(partial(self._settle, delivery)), self._decode_body)
        if self._resolved.asynchronous:
            death = self._complete(execute_async(self.task, message, _let_the_test_fail, lambda: False))
        else:
            death = execute(self.task, message, _let_the_test_fail, self._complete)
        structlog.contextvars.clear_contextvars()
        if death is not None:
            self.deaths.append(death)
            self._end_task()
            self._start()

    def _settle(self, delivery: Delivery, outcome: Outcome) -> None:
        settlement = decide(outcome, delivery, self._policy)
        if isinstance(settlement, Acknowledge):
            # What goes elsewhere is for the test to look at: in production somebody else consumes it.
            own = tuple(item for item in settlement.publish if not item.exchange and item.routing_key in self._here)
            self.acked.append(self._store.settle(delivery, Acknowledge(own), self._spec.worker))
            self.published += map(_record, settlement.publish)
        else:
            self._store.settle(delivery, settlement, self._spec.worker)
        del self._unsettled[delivery.tag]


@dataclass(slots=True)
class _Handle:
    """How a message reaches the test's store."""

    settle: Callable[[Outcome], None]
    lost: bool = False


def _fail_the_test(text: str) -> None:
    raise AssertionError(f"select: {text}")


def _record(outgoing: Outgoing) -> Record:
    return Record(
        "" if outgoing.exchange else outgoing.routing_key,
        outgoing.body,
        outgoing.raw_properties,
        outgoing.exchange,
        outgoing.routing_key,
        attempt=1,
        delay=outgoing.delay,
    )


def _is_released(record: Record) -> bool:
    """Whether it waits because the task has put it back: only the test can know for how long to go on with that."""
    return record.cause is None and header_number(record.raw_properties, names.RELEASES) > 0


def _let_the_test_fail(_cause: Cause) -> None:
    """Called in the handler of what ended a callback, before ``shutdown`` runs."""
    error = sys.exception()
    # The bases too: pytest.fail.Exception says that it is from `builtins`.
    if any(kind.__module__.partition(".")[0] in _VERDICTS_OF_TESTS for kind in type(error).__mro__):
        assert error is not None
        raise error


def _spec(cls: type[WorkerTask], settings: Mapping[str, Any]) -> Spec:
    config = settings if cls.queues or "queues" in settings else {"queue": cls.queue or "test", **settings}
    if isinstance(policy := config.get("retry"), RetryPolicy):
        config = {**config, "retry": to_builtins(policy)}
    return Spec(
        worker=cls.__name__,
        instance="00",
        task=f"{cls.__module__}:{cls.__qualname__}",
        project_root="",  # nothing is imported
        log_level="debug",
        config=dict(config),
        inline=True,  # a memory limit would be the test's own
    )
