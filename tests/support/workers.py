"""A throw-away project with real worker processes whose log lines can be waited for."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

DEADLINE = 60.0


class Worker:
    """One ``workerkit run`` process."""

    def __init__(self, command: list[str], cwd: Path, environment: Mapping[str, str]) -> None:
        self.lines: list[dict[str, Any]] = []
        self.raw: list[str] = []
        self._arrived = threading.Condition()
        self.process = subprocess.Popen(
            command,
            cwd=cwd,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        return self.process.pid

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._arrived:
                self.raw.append(line.rstrip())
                with contextlib.suppress(ValueError):
                    self.lines.append(json.loads(line))
                self._arrived.notify_all()

    def events(self, event: str, **match: Any) -> list[dict[str, Any]]:
        """The lines so far with this event and these keys."""
        wanted = {"event": event, **match}
        return [line for line in list(self.lines) if all(line.get(key) == value for key, value in wanted.items())]

    def wait_for(self, event: str, count: int = 1, within: float = DEADLINE, **match: Any) -> dict[str, Any]:
        """Wait for the ``count``-th such line and return it."""
        deadline = time.monotonic() + within
        with self._arrived:
            while len(found := self.events(event, **match)) < count:
                left = deadline - time.monotonic()
                if left <= 0 or (self.process.poll() is not None and not self._reader.is_alive()):
                    tail = "\n".join(self.raw[-30:])
                    raise AssertionError(f"no {event} {match} (have {len(found)} of {count}); the log ends:\n{tail}")
                self._arrived.wait(min(left, 0.2))
            return found[count - 1]

    def executors(self) -> list[int]:
        """The pids of its children."""
        return list(map(int, Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()))

    def executor_pid(self) -> int:
        """The worker's only child."""
        deadline = time.monotonic() + DEADLINE
        while time.monotonic() < deadline:
            if found := self.executors():
                return found[0]
            time.sleep(0.005)
        raise AssertionError("the worker has no executor")

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def wait(self, within: float = DEADLINE) -> int:
        """Wait for the end; return the exit code."""
        code = self.process.wait(within)
        self._reader.join(5)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code

    def stop(self, within: float = DEADLINE) -> int:
        """SIGTERM, and wait."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.wait(within)

    def destroy(self) -> None:
        """For the end of a test: whatever state it is in, it is gone afterwards."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(10)
        self._reader.join(5)
        if self.process.stdout is not None:
            self.process.stdout.close()


class Project:
    """A project folder with ``workers/`` and ``config/workerkit.yaml``."""

    def __init__(self, root: Path, url: str) -> None:
        self.root = root
        self.environment: dict[str, str] = {"AMQP_URL": url}
        self._workers: list[Worker] = []
        (root / "workers").mkdir(parents=True, exist_ok=True)
        (root / "config").mkdir(exist_ok=True)

    def task(self, body: str, module: str = "task") -> None:
        """Write ``workers/MODULE.py``; a ledger and the usual imports are there already."""
        ledger = self.root / "ledger"
        header = f"""
            import ctypes, itertools, os, signal, sys, time
            from workerkit import *

            def note(*words):
                fd = os.open({str(ledger)!r}, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
                os.write(fd, (" ".join(map(str, words)) + "\\n").encode())
                os.close(fd)
        """
        text = textwrap.dedent(header) + textwrap.dedent(body)
        (self.root / "workers" / f"{module}.py").write_text(text)

    def config(self, text: str) -> None:
        """Write the YAML; ``broker`` is there already."""
        broker = "broker: {url: '${AMQP_URL}', heartbeat: 5s}\n"
        (self.root / "config" / "workerkit.yaml").write_text(broker + textwrap.dedent(text))

    @property
    def ledger(self) -> list[str]:
        """The lines that callbacks noted, in order."""
        path = self.root / "ledger"
        return path.read_text().splitlines() if path.exists() else []

    def run(self, name: str, *arguments: str, prefix: Sequence[str] = (), **environment: str) -> Worker:
        """Start ``workerkit run NAME``; ``prefix`` is a command that starts it."""
        command = [*prefix, sys.executable, "-P", "-m", "workerkit", "run", name, *arguments]
        worker = Worker(command, self.root, {**self.environment, **environment})
        self._workers.append(worker)
        return worker

    def start(self, name: str, *arguments: str, prefix: Sequence[str] = (), **environment: str) -> Worker:
        """As ``run``, and wait until it consumes."""
        worker = self.run(name, *arguments, prefix=prefix, **environment)
        worker.wait_for("worker.consuming")
        return worker

    def command(self, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run another ``workerkit`` command to its end."""
        return subprocess.run(
            [sys.executable, "-P", "-m", "workerkit", *arguments],
            cwd=self.root,
            env={**os.environ, **self.environment},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            **options,
        )

    def close(self) -> None:
        """End every worker that is still there."""
        for worker in self._workers:
            worker.destroy()


def eventually(condition: Callable[[], Any], what: str, within: float = DEADLINE) -> Any:
    """Ask until the answer is true; return it."""
    deadline = time.monotonic() + within
    while True:
        answer = condition()
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {within:g} s: {what}")
        time.sleep(0.02)
