"""The workers: those that are configured, and the instances that Supervisor runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from workerkit.errors import ControlError
from workerkit.settings import LoadedSettings, WorkerSettings
from workerkit.supervision import Instance, SupervisorControl, socket_path

_GROUP = "workers"
"""Of the generated files. A project's own programs are in Supervisor too, and are no workers."""


@dataclass(frozen=True, slots=True)
class Workers:
    """The workers of a project at one moment.

    Attributes:
        configured: what the YAML and the environment say about each, by name; they leave the rest to its task.
        instances: the workers' processes that Supervisor looks after.
        unreachable: why Supervisor cannot be asked about them; None when it answered.
    """

    configured: Mapping[str, WorkerSettings]
    instances: tuple[Instance, ...]
    unreachable: str | None

    def running(self, worker: str) -> int:
        """How many instances of one worker run."""
        return sum(instance.worker == worker and instance.state == "RUNNING" for instance in self.instances)


def list_workers(loaded: LoadedSettings) -> Workers:
    """The configured workers and, when the project's Supervisor runs, their live instances."""
    configured = loaded.settings.workers
    try:
        every = SupervisorControl(socket_path(loaded.project_root)).instances()
    except ControlError as error:
        return Workers(configured, (), str(error))
    return Workers(configured, tuple(instance for instance in every if instance.group == _GROUP), None)
