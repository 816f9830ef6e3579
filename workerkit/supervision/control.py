"""Ask a running Supervisor about its processes, over its control socket."""

import http.client
import xmlrpc.client
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.parsers.expat import ExpatError

from workerkit.errors import ControlError

_ENDED = frozenset({"EXITED", "STOPPED"})


@dataclass(frozen=True, slots=True)
class Instance:
    """One process that Supervisor looks after, at one moment."""

    name: str
    """``thumbnail_00``; Supervisor's full name for it is ``group:name``."""
    group: str
    state: str
    """Supervisor's word: STOPPED, STARTING, RUNNING, BACKOFF, STOPPING, EXITED, FATAL or UNKNOWN."""
    pid: int | None
    """None while there is no process."""
    uptime: int | None
    """Seconds since the process was started; None while there is no process."""
    exit_status: int | None
    """Of the last process, in the states EXITED and STOPPED; -1 if a signal ended it. None if there was none."""
    description: str
    """What ``supervisorctl status`` shows, such as ``pid 4711, uptime 0:01:02`` or ``Exited too quickly``."""
    spawn_error: str
    """Why the last start failed or the last end was unexpected; '' if neither."""

    @property
    def worker(self) -> str:
        """The worker's name in the YAML, for an instance that workerkit configured: ``thumbnail``."""
        return self.name.rpartition("_")[0]


class SupervisorControl:
    """The Supervisor that listens on ``socket_path``. Each call opens a connection and closes it.

    Args:
        socket_path: its control socket, as ``workerkit.supervision.socket_path`` says for a project.
    """

    def __init__(self, socket_path: Path) -> None:
        self._socket_path = socket_path

    def instances(self) -> list[Instance]:
        """Return every process that Supervisor is configured to run, in its order: by group, then by name.

        Raises:
            ControlError: it does not answer, refuses, or answers something else than Supervisor does.
        """
        with self._connected() as supervisor:
            return [_instance(info) for info in supervisor.getAllProcessInfo()]

    @contextmanager
    def _connected(self) -> Iterator[Any]:
        """Yield Supervisor's functions, and translate what can go wrong with them."""
        from workerkit.supervision._transport import PatientTransport  # noqa: PLC0415 - imports all of supervisor

        transport = PatientTransport(str(self._socket_path))
        try:
            # The URL is not used, but ServerProxy accepts only http.
            yield xmlrpc.client.ServerProxy("http://127.0.0.1", transport=transport).supervisor
        except PermissionError as error:
            raise ControlError(
                f"not allowed to connect to {self._socket_path}: run this as the user who started supervisord"
            ) from error
        except (OSError, http.client.HTTPException) as error:
            raise ControlError(
                f"Supervisor does not answer on {self._socket_path}: "
                f"start it with supervisord -c supervisor/supervisord.conf ({error})"
            ) from error
        except (xmlrpc.client.Error, ExpatError) as error:
            raise ControlError(f"Supervisor on {self._socket_path} refused: {error}") from error
        finally:
            transport.close()


def _instance(info: dict[str, Any]) -> Instance:
    state = info["statename"]
    return Instance(
        name=info["name"],
        group=info["group"],
        state=state,
        pid=info["pid"] or None,
        uptime=max(0, info["now"] - info["start"]) if info["pid"] else None,
        # Supervisor says 0 where it has no status, and no stop time where nothing has ended yet.
        exit_status=info["exitstatus"] if state in _ENDED and info["stop"] else None,
        description=info["description"],
        spawn_error=info["spawnerr"],
    )
