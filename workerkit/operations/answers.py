"""What the workers' tasks say about themselves: the truth about queues and delays is in their code too.

Each task is loaded and initialized in a process like the worker's own, without a broker. That takes a part of a second
per worker, and ten seconds for one that hangs.
"""

from __future__ import annotations

from collections.abc import Mapping

from workerkit.settings import LoadedSettings
from workerkit.wiring import worker_spec
from workerkit.worker import probe
from workerkit.worker.loading import Resolved
from workerkit.worker.probe import NotLoaded

Answers = Mapping[str, Resolved | NotLoaded]
"""By the worker's name, in the order of the configuration."""


def ask_tasks(loaded: LoadedSettings) -> Answers:
    """Load and initialize the task of every worker. Not to be called in an event loop: it runs one of its own.

    Raises:
        OSError: no process could be started.
    """
    workers = loaded.settings.workers
    questions = [(worker_spec(loaded, name), worker.environment) for name, worker in workers.items()]
    return dict(zip(workers, probe.resolve(questions), strict=True))


def one_line(text: str) -> str:
    """A task may say why it did not load in several lines; a problem is one."""
    return " ".join(text.split("\n"))
