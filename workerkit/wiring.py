"""The composition root: the one place that knows which parts make a running worker."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import threading
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from workerkit.errors import ConfigurationError, ExitCode, WorkerkitError
from workerkit.ports import Broker
from workerkit.settings import LoadedSettings, Settings, redact_text
from workerkit.task_settings import SETTING_NAMES
from workerkit.worker import logs
from workerkit.worker.child import Child, ChildEvents, InlineChild, ProcessChild
from workerkit.worker.consumer import Consumer
from workerkit.worker.executor import ExecutorProcess
from workerkit.worker.loading import Spec
from workerkit.worker.orphans import Orphans
from workerkit.worker.page import Page
from workerkit.worker.signals import Signals
from workerkit.worker.sink import ensure_standard_descriptors

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

MakeConsumer = Callable[[Callable[[ChildEvents], Child]], Consumer]
"""Makes a consumer, given what starts its executors."""
STOP_MARGIN = 3.0
"""Seconds by which a worker's own deadline is shorter than Supervisor's ``stopwaitsecs``, to hand back and close."""

_ORPHANS_PATIENCE = 1.0
"""Seconds for what callbacks left behind to be gone; it takes milliseconds where the kernel can end it at all."""


def worker_spec(
    loaded: LoadedSettings, name: str, *, overrides: Mapping[str, object] | None = None, inline: bool = False
) -> Spec:
    """What the executor of worker ``name`` is told. ``overrides`` is as ``parse_overrides`` returns them.

    Raises:
        ConfigurationError: there is no such worker.
    """
    known = loaded.settings.workers
    if name not in known:
        raise ConfigurationError(f"there is no worker {name!r} in {loaded.path}; it has {', '.join(known) or 'none'}")
    written = loaded.written_worker_keys[name]
    return Spec(
        worker=name,
        instance=os.environ.get("WORKERKIT_INSTANCE", "00"),
        task=known[name].task,
        project_root=str(loaded.project_root),
        log_level=loaded.settings.logging.level,
        config={key: value for key, value in written.items() if key in SETTING_NAMES},
        overrides=dict(overrides or {}),
        inline=inline,
    )


def make_broker(settings: Settings, name: str, log: FilteringBoundLogger) -> Broker:
    """The adapter that the URL's scheme means, which is the only one imported.

    ``name`` is that of this worker instance, under which a broker lists it.
    """
    url = settings.broker.url if isinstance(settings.broker.url, str) else settings.broker.url[0]  # of one scheme, all
    if url.startswith("memory:"):
        from workerkit.brokers.memory.broker import MemoryBroker, store_at

        return MemoryBroker(store_at(url), settings.queues)
    from workerkit.brokers.rabbitmq.broker import RabbitmqBroker

    return RabbitmqBroker(settings.broker, settings.queues, settings.exchanges, name=name, log=log)


def run_worker(
    loaded: LoadedSettings,
    name: str,
    *,
    limit: int | None,
    inline: bool,
    overrides: Mapping[str, object],
    signals: Signals,
) -> int:
    """Run one instance of worker ``name`` until it is asked to stop. Returns the exit code.

    Raises:
        ConfigurationError: there is no such worker.
    """
    spec = worker_spec(loaded, name, overrides=overrides, inline=inline)
    ensure_standard_descriptors()
    settings = loaded.settings
    about = {"worker": name, "instance": spec.instance, "pid": os.getpid()}
    log = logs.ConsumerLog(settings.logging.level, settings.logging.format, about)
    environment = settings.workers[name].environment

    def make_consumer(start_child: Callable[[ChildEvents], Child]) -> Consumer:
        instance_name = f"{name}_{spec.instance}@{socket.gethostname()}.{os.getpid()}"
        return Consumer(
            spec,
            grace=max(1.0, settings.supervisor.stopwaitsecs - STOP_MARGIN),
            limit=limit,
            broker=make_broker(settings, instance_name, log.logger),
            start_child=start_child,
            log=log,
        )

    for warning in loaded.warnings:
        log.logger.warning("config.warning", text=warning)
    try:
        if inline:
            os.environ.update(environment)
            return _run_inline(make_consumer, signals, log.logger)
        return asyncio.run(_run(make_consumer, environment, signals, log.logger))
    finally:
        log.close()


async def _run(
    make_consumer: MakeConsumer, environment: Mapping[str, str], signals: Signals, log: FilteringBoundLogger
) -> int:
    orphans = Orphans(log)
    consumer = make_consumer(lambda events: ProcessChild(events, environment, orphans))
    try:
        return await _consume(consumer, signals, {signal.SIGCHLD: orphans.on_child}, log)
    finally:
        await orphans.finish(_ORPHANS_PATIENCE)
        signals.tell_no_more(asyncio.get_running_loop())


def _run_inline(make_consumer: MakeConsumer, signals: Signals, log: FilteringBoundLogger) -> int:
    """The same two halves in one process: the consumer on a thread, the executor here, the same link between them."""
    ours, theirs = socket.socketpair()
    page, page_fd = Page.create()
    executors_page = Page(page_fd)
    os.close(page_fd)
    result: list[int] = []

    async def consume() -> None:
        consumer = make_consumer(lambda events: InlineChild(ours, page, events))
        result.append(await _consume(consumer, signals, {}, log))
        signals.tell_no_more(asyncio.get_running_loop())

    thread = threading.Thread(target=lambda: asyncio.run(consume()), name="consumer", daemon=True)
    thread.start()
    try:
        with theirs:
            ExecutorProcess(theirs, executors_page).run()
    finally:
        thread.join()
    return result[0] if result else ExitCode.INTERNAL


async def _consume(
    consumer: Consumer,
    signals: Signals,
    more_handlers: Mapping[signal.Signals, Callable[[], None]],
    log: FilteringBoundLogger,
) -> int:
    """Run a consumer; every way it can fail is one line and an exit code."""

    def on_loop_error(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if isinstance(error, BaseException) and "handle" in context:
            # In a callback of the loop it has lost something, a frame say: only a restart makes it whole again.
            consumer.on_failed(error)
        else:
            log.warning("loop.error", text=str(context.get("message")), exc_info=error)

    loop = asyncio.get_running_loop()
    loop.set_exception_handler(on_loop_error)
    handlers: dict[signal.Signals, Callable[[], None]] = {
        signal.SIGTERM: partial(consumer.stop_by_signal, "SIGTERM"),
        signal.SIGINT: partial(consumer.stop_by_signal, "SIGINT"),
        signal.SIGQUIT: partial(consumer.stop_by_signal, "SIGQUIT"),
        signal.SIGUSR1: consumer.log_stacks,
        signal.SIGUSR2: consumer.pause,
        signal.SIGCONT: consumer.resume,
        signal.SIGHUP: consumer.reload,
        **more_handlers,
    }
    signals.tell(loop, handlers)
    try:
        await consumer.run()
    except WorkerkitError as error:
        log.critical("worker.failed", cause=redact_text(str(error)), code=int(error.exit_code))
        return error.exit_code
    except Exception:  # the last line of defence: it says what, and Supervisor restarts
        log.critical("worker.failed", cause="an error inside workerkit", code=int(ExitCode.INTERNAL), exc_info=True)
        return ExitCode.INTERNAL
    return consumer.exit_code
