"""``scripts/demo.py`` as `make demo` runs it: real processes, a real broker, real deaths; and nothing left of it."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import psutil
import pytest
from support.rabbit import Rabbit
from support.workers import eventually

from workerkit.testing.rabbitmq import PrivateRabbitmq

pytestmark = pytest.mark.e2e

DEMO = Path(__file__).parents[2] / "scripts" / "demo.py"
MARK = "TEST_OF_THE_DEMO"
"""A variable that every process of one run inherits, so that each can be found, whoever its parent is by then."""


class Run:
    """One run of the demonstration."""

    def __init__(self, url: str) -> None:
        self.mark = secrets.token_hex(8)
        self.process = subprocess.Popen(
            [sys.executable, DEMO],
            env={**os.environ, "AMQP_URL": url, MARK: self.mark},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert self.process.stdout is not None
        self.stdout: IO[str] = self.process.stdout
        self.output = ""

    def read_until(self, text: str) -> None:
        """Read line by line, until one contains ``text``."""
        for line in self.stdout:
            self.output += line
            if text in line:
                return
        raise AssertionError(f"it ended without {text!r}:\n{self.output}")

    def end(self) -> int:
        """Read the rest; return the exit code."""
        self.output += self.stdout.read()
        return self.process.wait(30)

    def row(self, name: str) -> int:
        """The number in one row of the table."""
        found = re.search(rf"^ *{re.escape(name)} +(\d+)\b", self.output, re.MULTILINE)
        assert found, f"no row {name!r} in:\n{self.output}"
        return int(found[1])

    @property
    def folder(self) -> Path:
        found = re.search(r"the project is in (\S+)", self.output)
        assert found, self.output
        return Path(found[1])

    def processes(self) -> list[psutil.Process]:
        """What is there of it now."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(MARK) == self.mark and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        return found


@pytest.fixture
def run(rabbitmq: PrivateRabbitmq) -> Iterator[Run]:
    run = Run(rabbitmq.url)
    yield run
    left = run.processes()
    for process in left:
        process.kill()
    run.stdout.close()
    run.process.wait(10)
    assert not left, f"still there: {left}"


def queues(rabbitmq: PrivateRabbitmq) -> list[str]:
    listed = rabbitmq.ctl("--quiet", "list_queues", "--no-table-headers", "name").split()
    return [name for name in listed if name.startswith("workerkit-demo-")]


@pytest.mark.timeout(240)
def test_every_message_is_accounted_for_and_nothing_is_left_behind(run: Run, rabbitmq: PrivateRabbitmq) -> None:
    """Exit code 0 is its own verdict; the table must say the same, and add up."""
    code = run.end()
    assert code == 0, run.output
    assert run.row("lost") == 0
    assert run.row("workers restarted") == 0
    assert run.row("published") == run.row("done") + run.row("dead-lettered") > 300
    reasons = ("exception", "undecodable", "rejected", "exit", "signal 9", "signal 11", "memory", "timeout")
    assert sum(run.row(reason) for reason in reasons) == run.row("dead-lettered")
    # Those that misbehave once, and two further attempts of each that died for good of what can be tried again.
    assert run.row("retried") >= 2 * (run.row("dead-lettered") - run.row("undecodable") - run.row("rejected"))
    assert run.row("executors replaced") >= 3 * sum(run.row(r) for r in ("exit", "signal 9", "signal 11", "memory"))

    assert "wrong" not in run.output
    assert "\x1b" not in run.output  # no terminal, no colours
    assert not run.folder.exists()
    assert queues(rabbitmq) == []
    assert run.processes() == []


@pytest.mark.timeout(120)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_an_interrupted_one_cleans_up(run: Run, rabbitmq: PrivateRabbitmq, number: signal.Signals) -> None:
    """In the middle of its work, with messages in the queues and callbacks that hang."""
    run.read_until("published")
    assert queues(rabbitmq)
    run.process.send_signal(number)
    assert run.end() == 128 + number, run.output
    assert f"interrupted by {number.name}: cleaning up" in run.output
    assert not run.folder.exists()
    assert queues(rabbitmq) == []
    assert run.processes() == []


@pytest.mark.timeout(120)
def test_a_killed_one_takes_its_processes_with_it(run: Run, rabbitmq: PrivateRabbitmq) -> None:
    """It cannot clean up any more; what would go on working for nobody ends all the same."""
    run.read_until("published")
    run.process.kill()
    run.process.wait(10)
    eventually(lambda: not run.processes(), "Supervisor and the workers are gone")
    shutil.rmtree(run.folder)
    with Rabbit(rabbitmq.url) as rabbit:
        rabbit.delete(*queues(rabbitmq))


def test_without_a_broker_it_says_so_in_one_line() -> None:
    """No traceback, and no attempt to do the impossible when it cleans up."""
    run = Run("amqp://guest:guest@127.0.0.1:1/%2F")
    assert run.end() == 1
    assert run.output.splitlines()[-1] == "demo: no RabbitMQ answered at 127.0.0.1:1: connection refused"
    assert not run.folder.exists()
    run.stdout.close()
