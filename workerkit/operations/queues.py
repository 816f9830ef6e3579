"""The queues: which there should be, what they hold, making and emptying them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from workerkit.brokers.administration import Bound, Declared, DeclaredExchange, DeclaredQueue, QueueReport
from workerkit.errors import Difference, QueueNotFound, TaskLoadError, TopologyMismatch
from workerkit.operations.answers import ask_tasks, one_line
from workerkit.operations.brokers import administer
from workerkit.retry import RetryPolicy
from workerkit.settings import LoadedSettings, Settings, redact_text
from workerkit.settings.model import queues_of
from workerkit.settings.tree import did_you_mean
from workerkit.worker.probe import NotLoaded

__all__ = [
    "Binding",
    "Bound",
    "Declared",
    "DeclaredExchange",
    "DeclaredQueue",
    "QueueDetails",
    "QueueReport",
    "Unanswered",
    "WantedQueues",
    "count_ready",
    "declare_queues",
    "list_queues",
    "purge_queue",
    "show_queue",
    "wanted_queues",
]


@dataclass(frozen=True, slots=True)
class Unanswered:
    """A worker whose task could not be asked.

    Attributes:
        worker: its name.
        where: file and line, or variable, that names the task.
        why: in one line, secrets hidden.
        queues: those that the configuration gives it; none where it leaves that to the task.
    """

    worker: str
    where: str
    why: str
    queues: tuple[str, ...]

    def __str__(self) -> str:
        if not self.queues:
            consequence = "its queue is not known"
        elif len(self.queues) == 1:
            consequence = f"queue {self.queues[0]!r} is taken from the YAML and the defaults alone"
        else:
            names = ", ".join(map(repr, self.queues))
            consequence = f"queues {names} are taken from the YAML and the defaults alone"
        return f"{self.where}: {self.why}; {consequence}"


@dataclass(frozen=True, slots=True)
class WantedQueues:
    """Which queues the configuration and the tasks together want.

    Attributes:
        delays: for each queue its retry delays in seconds, shortest first: those of all workers that consume it. The
            queues of the YAML's section come first, then the workers' own.
        unanswered: the workers about which this may be wrong.
    """

    delays: Mapping[str, Sequence[float]]
    unanswered: tuple[Unanswered, ...]

    def delays_of(self, queue: str) -> Sequence[float]:
        """Also of a queue that nobody wants: whoever asks for it gets the default policy's."""
        return self.delays.get(queue, sorted(RetryPolicy().delays))

    def unanswered_for(self, queues: Iterable[str]) -> list[Unanswered]:
        """The workers that may consume one of these queues, and could not be asked how."""
        named = set(queues)
        return [worker for worker in self.unanswered if not worker.queues or named.intersection(worker.queues)]

    def hint(self, wrong: str) -> str:
        """`` (did you mean `…`?)`` where ``wrong`` looks like one of the queues, else empty."""
        return did_you_mean(wrong, self.delays)


def wanted_queues(loaded: LoadedSettings) -> WantedQueues:
    """Ask every task which queues it consumes and how it retries: its class and its ``initialize`` have a say in both.

    A queue without a worker has the delays of the default policy. See ``ask_tasks`` for the time it takes, and for
    what it raises.
    """
    settings = loaded.settings
    delays: dict[str, set[float]] = {name: set() for name in settings.queues}
    unanswered = []
    for name, answer in ask_tasks(loaded).items():
        if isinstance(answer, NotLoaded):
            worker = settings.workers[name]
            why = redact_text(one_line(answer.text))
            unanswered.append(Unanswered(name, loaded.origins[f"workers.{name}.task"], why, queues_of(worker)))
            for queue in queues_of(worker):
                delays.setdefault(queue, set()).update(worker.retry.delays)
        else:
            for queue in answer.queues:
                delays.setdefault(queue, set()).update(answer.delays)
    default = RetryPolicy().delays
    return WantedQueues({queue: sorted(found or default) for queue, found in delays.items()}, tuple(unanswered))


async def list_queues(settings: Settings, wanted: WantedQueues) -> list[QueueReport]:
    """Each wanted queue with its retry and dead-letter queues.

    Raises:
        BrokerError: the broker is away, or refuses us.
    """
    async with administer(settings, "queues") as broker:
        return [report for queue, delays in wanted.delays.items() for report in await broker.look(queue, delays)]


@dataclass(frozen=True, slots=True)
class Binding:
    """A binding of a queue as it is configured.

    Attributes:
        exchange: its name.
        type: of the exchange; None where the exchange is not configured.
        routing_key: that messages are published with.
        arguments: further ones.
    """

    exchange: str
    type: str | None
    routing_key: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class QueueDetails:
    """All about one queue.

    Attributes:
        name: of the queue that workers consume.
        configured: whether the YAML or a task wants it; otherwise what is derived has defaults.
        bindings: beside the one to the default exchange, by its name.
        queues: itself, its retry queues and its dead-letter queue.
    """

    name: str
    configured: bool
    bindings: tuple[Binding, ...]
    queues: tuple[QueueReport, ...]


async def show_queue(settings: Settings, wanted: WantedQueues, name: str) -> QueueDetails:
    """One queue: what it is derived to be, and what it holds.

    Raises:
        QueueNotFound: it is neither wanted nor on the broker.
        BrokerError: the broker is away, or refuses us.
    """
    async with administer(settings, "queues") as broker:
        reports = await broker.look(name, wanted.delays_of(name))
    configured = name in wanted.delays
    if not configured and not reports[0].exists:
        raise QueueNotFound(f"queue {name!r} is neither in the configuration nor on the broker{wanted.hint(name)}")
    exchanges = settings.exchanges
    bindings = [
        Binding(
            exchange=binding.exchange,
            type=exchanges[binding.exchange].type if binding.exchange in exchanges else None,
            routing_key=binding.routing_key,
            arguments=binding.arguments,
        )
        for binding in (settings.queues[name].bindings if name in settings.queues else ())
    ]
    return QueueDetails(name, configured, tuple(bindings), tuple(reports))


async def declare_queues(
    settings: Settings, wanted: WantedQueues, names: Sequence[str], on_declared: Callable[[Declared], None]
) -> None:
    """Declare queues with all they need, one after the other; one that does not fit does not keep the others back.

    Args:
        settings: where the broker is, and with which arguments.
        wanted: with which retry delays.
        names: of the queues that workers consume; empty for all that are wanted.
        on_declared: called for each thing that is there now.

    Raises:
        TopologyMismatch: something exists with other arguments and was left as it is; the rest was declared.
        TaskLoadError: all was declared, but a task that may consume one of the queues could not be asked for more.
        ConfigurationError: the broker takes no queue with such arguments.
        BrokerError: the broker is away, or refuses us.
    """
    names = list(dict.fromkeys(names or wanted.delays))
    differences: list[Difference] = []
    async with administer(settings, "declare") as broker:
        for name in names:
            try:
                declared = await broker.declare(name, wanted.delays_of(name))
            except TopologyMismatch as mismatch:
                differences += mismatch.differences
                continue
            for thing in declared:
                on_declared(thing)
    if differences:
        raise TopologyMismatch(differences)
    if unanswered := wanted.unanswered_for(names):
        whose = ", ".join(f"{worker.where} (worker {worker.worker!r})" for worker in unanswered)
        raise TaskLoadError(f"not every task could be asked what it needs, so some of it may be missing: {whose}")


async def count_ready(settings: Settings, name: str) -> int:
    """How many messages of exactly this queue are ready.

    Raises:
        QueueNotFound: there is no such queue.
        BrokerError: the broker is away, or refuses us.
    """
    async with administer(settings, "purge") as broker:
        return await broker.ready(name)


async def purge_queue(settings: Settings, name: str) -> int:
    """Delete the ready messages of exactly this queue, and say how many. Raises as ``count_ready`` does."""
    async with administer(settings, "purge") as broker:
        return await broker.purge(name)
