"""Running a worker in a test: the real task code and the real rules, without a process, a socket or a wait."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

import structlog.testing

from workerkit.brokers.memory import MemoryBroker, Record
from workerkit.message import MessageAdapter
from workerkit.outgoing import encode_body
from workerkit.payload import body_decoder
from workerkit.properties import Properties, encode
from workerkit.retry import RetryPolicy
from workerkit.settlement import Cause
from workerkit.task import WorkerTask
from workerkit.worker.execution import execute
from workerkit.worker.loading import SETTING_NAMES, Resolved, Spec, check_class, prepare
from workerkit.worker.ports import Delivery

_PERSISTENT = 2
_VERDICTS_OF_TESTS = ("_pytest", "hypothesis")
"""Packages whose exceptions end a test; a worker must not take them for a death of its own."""

Task = TypeVar("Task", bound=WorkerTask)


class WorkerTest(Generic[Task]):
    """One worker under test, with a queue of its own in memory::

        with WorkerTest(ThumbnailWorker, retry=RetryPolicy(max_attempts=2)) as worker:
            worker.publish({"path": "a.png"}, message_id="m1")
            worker.run_all()
            assert worker.dead_letters[0].reason is Reason.EXCEPTION

    Callbacks, retries, attempts, dead letters and headers follow the rules of a real worker, by the same code. Time
    stands still: nothing waits for a retry, ``advance`` moves the clock.

    What ends a callback and leaves Python running (``SystemExit``, ``KeyboardInterrupt``, ``MemoryError``) ends this
    worker too: ``shutdown`` runs, and a new task takes over as in a replacement process. What ends Python itself
    (``os._exit``, a signal, a segmentation fault) ends the test; ``callback_timeout``, ``ttl`` and ``memory_limit`` do
    nothing. Failures of the test itself, such as ``pytest.fail`` in a callback, reach the test.

    Args:
        cls: the task to run.
        settings: settings by name, as in the YAML: ``initialize`` wins over them. ``retry`` is a ``RetryPolicy``.
            A task that names no queue consumes one called ``test``.

    Raises:
        TypeError: there is no such setting.
        TaskLoadError: a worker would refuse the task, for example because its callback is a coroutine.
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
        self._exit_stack = ExitStack()
        self._broker: MemoryBroker
        self.task: Task
        """The task instance, initialized; another one after each death."""
        self.logs: Sequence[Mapping[str, Any]] = []
        """What was logged through structlog, as mappings with ``event`` and ``log_level``."""
        self.deaths: list[Cause] = []
        """What ended a task instance, in order."""

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self.logs = stack.enter_context(structlog.testing.capture_logs())
            resolved = self._start()
            self._broker = MemoryBroker(
                resolved.queue,
                worker=self._spec.worker,
                prefetch_count=resolved.prefetch_count,
                policy=RetryPolicy(resolved.max_attempts, resolved.delays),
            )
            stack.callback(self._release_task)
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
        body: bytes | None = None,
        content_type: str | None = None,
        headers: Mapping[str, Any] | None = None,
        message_id: str | None = None,
        correlation_id: str | None = None,
        exchange: str = "",
        routing_key: str | None = None,
        **properties: Any,
    ) -> None:
        """Put a message into the queue.

        Args:
            data: anything msgspec encodes as JSON.
            body: raw bytes instead of ``data``; no content type goes with them unless one is given.
            content_type: ``application/json`` unless given.
            headers: with ``{"workerkit-attempt": 5}`` it arrives for its fifth attempt.
            message_id: the publisher's id of it.
            correlation_id: the publisher's id of what it belongs to.
            exchange: what ``message.exchange`` says; nothing is routed here.
            routing_key: what ``message.routing_key`` says; the name of the queue unless given.
            properties: other AMQP properties by name, such as ``reply_to``.

        Raises:
            TypeError: there is no such property, or both ``data`` and ``body`` are given.
            ValueError: a property or a header cannot be sent.
        """
        body, content_type = encode_body(data, body, content_type)
        raw_properties = encode(
            Properties(
                content_type=content_type,
                headers=dict(headers or {}),
                message_id=message_id,
                correlation_id=correlation_id,
                **{"delivery_mode": _PERSISTENT, **properties},
            )
        )
        self._broker.publish(raw_properties, body, exchange=exchange, routing_key=routing_key)

    def run(self) -> int:
        """Work until nothing is ready. The clock stands still.

        What the callback releases stays ready, for the next ``run``: a worker that always releases would never stop.

        Returns:
            How many callbacks ran.
        """
        self._broker.redeliver()
        ran = 0
        try:
            while deliveries := self._broker.receive():
                for delivery in deliveries:
                    ran += 1
                    self._run_callback(delivery)
        finally:
            self._broker.requeue()
        return ran

    def run_all(self) -> int:
        """Work and move the clock on until nothing is ready or delayed; what the callback releases stays ready.

        Returns:
            How many callbacks ran.
        """
        ran = self.run()
        while self._broker.advance_to_next_retry():
            ran += self.run()
        return ran

    def advance(self, seconds: float) -> None:
        """Move the clock on by ``seconds``: retries that are due become ready. Nothing runs."""
        self._broker.advance(seconds)

    @property
    def now(self) -> float:
        """Seconds that the clock has been moved on."""
        return self._broker.now

    @property
    def ready(self) -> list[Record]:
        """Messages that can be worked on now, the next one first."""
        return self._broker.ready

    @property
    def delayed(self) -> list[Record]:
        """Messages that wait for their retry, the next one first; ``due`` says until when."""
        return self._broker.delayed

    @property
    def acked(self) -> list[Record]:
        """Acknowledged messages, in the order of their acknowledgements."""
        return self._broker.acked

    @property
    def dead_letters(self) -> list[Record]:
        """Dead letters, oldest first, with ``reason``, ``cause`` and the headers they have on the wire."""
        return self._broker.dead_letters

    def _start(self) -> Resolved:
        task, resolved = prepare(self._spec, self._cls, os.getpid())
        assert isinstance(task, self._cls)
        self.task = task
        self._decode_body = body_decoder(task.payload_type)
        return resolved

    def _release_task(self) -> None:
        self.task.shutdown_helper.release()

    def _run_callback(self, delivery: Delivery) -> None:
        message = MessageAdapter(delivery, partial(self._broker.settle, delivery), self._decode_body)
        death = execute(self.task, message, _let_the_test_fail)
        structlog.contextvars.clear_contextvars()
        if death is not None:
            self.deaths.append(death)
            self._start()


def _let_the_test_fail(_cause: Cause) -> None:
    """Called in the handler of what ended a callback, before ``shutdown`` runs."""
    error = sys.exception()
    # The bases too: pytest.fail.Exception says that it is from `builtins`.
    if any(kind.__module__.partition(".")[0] in _VERDICTS_OF_TESTS for kind in type(error).__mro__):
        assert error is not None
        raise error


def _spec(cls: type[WorkerTask], settings: Mapping[str, Any]) -> Spec:
    config = {"queue": cls.queue or "test", **settings}
    if isinstance(policy := config.get("retry"), RetryPolicy):
        config["retry"] = {"max_attempts": policy.max_attempts, "delays": policy.delays}
    return Spec(
        worker=cls.__name__,
        instance="00",
        task=f"{cls.__module__}:{cls.__qualname__}",
        project_root="",  # nothing is imported
        log_level="debug",
        config=config,
        inline=True,  # a memory limit would be the test's own
    )
