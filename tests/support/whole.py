"""A whole worker on a broker in memory: its consumer on this event loop, its executors real processes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace, TracebackType
from typing import Any, Self

import structlog

from workerkit.brokers.memory.broker import MemoryBroker
from workerkit.brokers.memory.store import MemoryStore
from workerkit.errors import ExitCode
from workerkit.outgoing import Outgoing
from workerkit.properties import Properties, encode
from workerkit.worker.child import ProcessChild
from workerkit.worker.consumer import Consumer
from workerkit.worker.loading import Spec

PATIENCE = 30.0


class WholeWorker:
    """One instance of a worker.

    Args:
        root: the project's folder, under which the task's module is found.
        task: ``module:Class``.
        store: where its queues are.
        broker: its own, for a test that needs to hold it.
        limit: messages until a planned end.
        grace: seconds that running callbacks have after ``stop``.
        settings: of the worker, by name.
    """

    def __init__(
        self,
        root: Path,
        task: str,
        store: MemoryStore,
        broker: MemoryBroker | None = None,
        *,
        limit: int | None = None,
        grace: float = 10.0,
        **settings: Any,
    ) -> None:
        self.store = store
        self.lines: list[dict[str, Any]] = []
        """What it logged, in order, as one would read it on its standard output."""
        self._broker = broker or MemoryBroker(store)
        self._spec = Spec("whole", "00", task, str(root), "debug", config=settings)
        self._options: dict[str, Any] = {"grace": grace, "limit": limit}
        self._changed = asyncio.Event()
        self.consumer: Consumer
        self._run: asyncio.Task[None]

    async def __aenter__(self) -> Self:
        logger = structlog.wrap_logger(
            None,
            processors=[self._take_line],
            wrapper_class=structlog.make_filtering_bound_logger(10),
            cache_logger_on_first_use=True,
        )
        self.consumer = Consumer(
            self._spec,
            **self._options,
            broker=self._broker,
            start_child=lambda events: ProcessChild(events, {}),
            log=SimpleNamespace(
                logger=logger,
                write_line=lambda line: self._note(json.loads(line)),
                write_events=self._take_events,
            ),
        )
        self._run = asyncio.create_task(self.consumer.run())
        self._run.add_done_callback(lambda _: self._changed.set())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._run.done():
            self.consumer.stop_by_signal("the end of the test")
        await asyncio.wait({self._run}, timeout=PATIENCE)
        if error is None:
            self._run.result()

    def put(self, queue: str, *bodies: Any, **properties: Any) -> None:
        """Publish JSON bodies, each with its text as message id."""
        for body in bodies:
            raw = json.dumps(body).encode()
            given = Properties(**{"message_id": raw.decode()[:200], **properties})
            self.store.put(queue, Outgoing("", queue, encode(given), raw))

    async def until(self, condition: Callable[[], Any], what: str) -> None:
        """Wait until something is so; it is looked at after each line that the worker logs."""
        try:
            async with asyncio.timeout(PATIENCE):
                while not condition():
                    assert not self._run.done(), f"the worker ended: {self._run}; {self.lines[-5:]}"
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            raise AssertionError(f"not within {PATIENCE:g} s: {what}; the log ends: {self.lines[-10:]}") from None

    async def wait_for(self, event: str, count: int = 1, **match: Any) -> dict[str, Any]:
        """Wait for the ``count``-th line with this event and these keys."""
        await self.until(lambda: len(self.events(event, **match)) >= count, f"{count} × {event} {match}")
        return self.events(event, **match)[count - 1]

    def events(self, event: str, **match: Any) -> list[dict[str, Any]]:
        """The lines so far with this event and these keys."""
        wanted = {"event": event, **match}
        return [line for line in self.lines if all(line.get(key) == value for key, value in wanted.items())]

    async def stop(self) -> ExitCode:
        """As SIGTERM; wait for the end, and return the exit code."""
        self.consumer.stop_by_signal("SIGTERM")
        return await self.ended()

    async def ended(self) -> ExitCode:
        """Wait for the end, and return the exit code."""
        await asyncio.wait_for(self._run, PATIENCE)
        return self.consumer.exit_code

    def _take_line(self, _logger: Any, method: str, event: Mapping[str, Any]) -> Any:
        self._note({"level": method, **event})
        raise structlog.DropEvent

    def _take_events(self, level: str, event: str, about: list[dict[str, Any]]) -> None:
        for each in about:
            self._note({"level": level, "event": event, **each})

    def _note(self, line: dict[str, Any]) -> None:
        self.lines.append(line)
        self._changed.set()
