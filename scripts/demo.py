#!/usr/bin/env python3
"""Hundreds of messages, some of which kill the process that works on them, and what becomes of each.

Runs this repository's example workers under a real Supervisor, on the broker that ``AMQP_URL`` names or on a private
RabbitMQ node. Ends with 0 if no message was lost and each ended as planned, with 1 otherwise; leaves nothing behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pika
import pika.exceptions
from demonstration.accounts import (
    Report,
    Waiting,
    WorkerLogs,
    close_accounts,
    look,
    print_report,
    result_files,
    topologies_of,
)
from demonstration.plan import Message, plan
from demonstration.project import DemoFailed, DemoProject
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from workerkit.brokers.rabbitmq import admin
from workerkit.errors import WorkerkitError
from workerkit.operations.publishing import publish_all
from workerkit.outgoing import Outgoing, compose
from workerkit.testing.rabbitmq import PrivateRabbitmq

_REPOSITORY = Path(__file__).resolve().parent.parent
_LOOK_INTERVAL = 0.25
"""Seconds between looks at the queues."""
_LINE_INTERVAL = 3.0
"""Seconds between lines of progress where there is no terminal."""
_STANDSTILL = 45.0
"""Seconds without any progress after which we stop waiting."""

_LOOK_FURTHER = """\
In a project of your own (`workerkit init DIR` makes one):

  supervisorctl -c supervisor/supervisord.conf status    what runs
  workerkit queues list                                  what waits
  workerkit dead list QUEUE                              what failed for good, and why
  workerkit dead show QUEUE 1                            one of them with headers, body and traceback
  workerkit dead replay QUEUE                            once more, when the cause is mended
  tail supervisor/log/NAME_00.log                        what one worker did
"""


def main() -> int:
    """Run the demonstration; whatever ends it, it cleans up. Returns the exit code."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _stop)
    console = Console(highlight=False, soft_wrap=True)
    with _cleaned_up(console) as cleanup:
        try:
            report = _run(console, cleanup)
        except (DemoFailed, WorkerkitError) as error:
            console.print(f"demo: {error}", style="red", markup=False)
            return 1
    problems = report.problems()
    for problem in problems:
        console.print(f"wrong: {problem}", style="red", markup=False)
    if not problems:
        console.print(_LOOK_FURTHER, markup=False)
    return 1 if problems else 0


def _stop(number: int, _frame: object) -> None:
    raise SystemExit(128 + number)


@contextlib.contextmanager
def _cleaned_up(console: Console) -> Iterator[ExitStack]:
    """A stack of what must be undone. No signal interrupts the undoing."""
    stack = ExitStack()
    try:
        yield stack
    except SystemExit as interrupted:
        console.print(f"interrupted by {signal.Signals(int(str(interrupted.code)) - 128).name}: cleaning up")
        raise
    finally:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda *_: None)
        stack.close()


def _run(console: Console, cleanup: ExitStack) -> Report:
    started = time.monotonic()

    def say(text: str) -> None:
        console.print(f"{time.monotonic() - started:5.1f} s  {text}", markup=False)

    users_broker = os.environ.get("AMQP_URL")
    url = users_broker or _private_broker(console, cleanup, say)
    messages = plan(_REPOSITORY)
    project = DemoProject(_REPOSITORY, url)
    cleanup.callback(project.remove)
    project.create()
    say(f"the project is in {project.folder} while this runs")
    say("$ workerkit supervisor generate")
    project.workerkit("supervisor", "generate")
    say("$ workerkit queues declare")
    if users_broker:
        cleanup.callback(_delete_queues, console, url, asyncio.run(_queue_names(project)))
    project.workerkit("queues", "declare")
    say("$ supervisord")
    cleanup.callback(project.stop_supervisor)
    project.start_supervisor()
    say("$ supervisorctl start workers:*")
    project.supervisorctl("start", "workers:*")
    instances = project.wait_until_running()
    say(f"Supervisor runs {len(instances)} workers: {', '.join(instance.name for instance in instances)}")

    _publish(console, project, messages)
    say(f"published {len(messages)} messages; some raise, exit, crash, hog memory, loop or are no JSON at all")
    logs = WorkerLogs(project.log_folder)
    finished = _watch(console, project, logs, len(messages))
    say("every message has come to its end" if finished else f"no progress for {_STANDSTILL:g} s: giving up")
    say("$ supervisorctl stop workers:*")
    project.supervisorctl("stop", "workers:*")

    report = asyncio.run(_account(project, messages, logs, len(instances)))
    console.print()
    print_report(console, report)
    console.print()
    if not finished:
        console.print(project.last_words(), markup=False)
    return report


def _private_broker(console: Console, cleanup: ExitStack, say: Callable[[str], None]) -> str:
    node = PrivateRabbitmq()
    cleanup.callback(node.stop)
    say("starting a private RabbitMQ node (AMQP_URL=... takes yours)")
    with console.status("RabbitMQ is starting"):
        node.start()
    say(f"RabbitMQ {node.version} answers")
    return node.url


# ---- publishing


def _publish(console: Console, project: DemoProject, messages: list[Message]) -> None:
    """Publish all messages, confirmed, as `workerkit publish` does. Raises DemoFailed."""
    with _progress(console) as progress:
        task = progress.add_task("published", total=len(messages))
        asyncio.run(_publish_all(project, messages, partial(progress.advance, task)))


async def _publish_all(project: DemoProject, messages: list[Message], on_confirmed: Callable[[int], None]) -> None:
    async def of(worker: str, queue: str) -> AsyncIterator[list[Outgoing]]:
        yield [
            compose(queue, body=message.body, content_type="application/json", message_id=message.id)
            for message in messages
            if message.worker == worker
        ]

    async def publish(worker: str, queue: str) -> None:
        published = await publish_all(
            project.settings, queue, of(worker, queue), on_confirmed=on_confirmed, on_blocked=lambda _reason: None
        )
        if published.failure is not None:
            raise DemoFailed(f"{queue}: a message was not confirmed: {published.failure.error}")

    await asyncio.gather(*(publish(worker, queue) for worker, queue in project.queues.items()))


# ---- watching


def _watch(console: Console, project: DemoProject, logs: WorkerLogs, total: int) -> bool:
    """Show the progress until every message is accounted for. False: nothing has moved for too long."""
    with _progress(console, "{task.fields[state]}") as progress:
        task = progress.add_task("finished", total=total, state="")
        last_line = time.monotonic()

        def show(done: int, waiting: Waiting) -> None:
            nonlocal last_line
            state = f"{done} done, {logs.retried} retried, {waiting.dead} dead-lettered"
            progress.update(task, completed=done + waiting.dead, state=state)
            if not console.is_terminal and time.monotonic() - last_line > _LINE_INTERVAL:
                last_line = time.monotonic()
                console.print(f"         {state}, of {total}")

        return asyncio.run(_until_finished(project, logs, total, show))


async def _until_finished(
    project: DemoProject, logs: WorkerLogs, total: int, show: Callable[[int, Waiting], None]
) -> bool:
    folders = [project.result_folder(worker) for worker in project.queues]
    moved, before = time.monotonic(), (-1, -1, -1)
    async with admin.session(project.settings.broker, "demo") as connection:
        topologies = topologies_of(project.settings, connection)
        while time.monotonic() - moved < _STANDSTILL:
            logs.read()
            waiting = await look(connection, topologies)
            done = len(result_files(folders))
            show(done, waiting)
            if done + waiting.dead >= total and not waiting.unfinished:
                return True
            if (now := (done, waiting.dead, logs.retried)) != before:
                moved, before = time.monotonic(), now
            await asyncio.sleep(_LOOK_INTERVAL)
    return False


async def _account(project: DemoProject, messages: list[Message], logs: WorkerLogs, instances: int) -> Report:
    async with admin.session(project.settings.broker, "demo") as connection:
        return await close_accounts(
            connection,
            topologies_of(project.settings, connection),
            messages,
            [project.result_folder(worker) for worker in project.queues],
            logs=logs,
            instances=instances,
            worker_starts=project.worker_starts(),
        )


def _progress(console: Console, *further: str) -> Progress:
    """A bar on a terminal, nothing elsewhere."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    texts = [TextColumn(text) for text in further]
    return Progress(*columns, *texts, console=console, disable=not console.is_terminal, transient=True)


# ---- leaving a broker as it was


async def _queue_names(project: DemoProject) -> list[str]:
    """All that `workerkit queues declare` and the workers declare. Raises BrokerError when the broker is away."""
    async with admin.session(project.settings.broker, "demo") as connection:
        return [queue.name for topology in topologies_of(project.settings, connection) for queue in topology.queues]


def _delete_queues(console: Console, url: str, names: list[str]) -> None:
    """The workers must be gone: they would declare them again."""
    try:
        with pika.BlockingConnection(pika.URLParameters(url)) as connection:
            channel = connection.channel()
            for name in names:
                channel.queue_delete(name)
    except (pika.exceptions.AMQPError, OSError) as error:
        text = f"demo: not all of these queues could be deleted ({error}): {', '.join(names)}"
        console.print(text, style="red", markup=False)


if __name__ == "__main__":
    sys.exit(main())
