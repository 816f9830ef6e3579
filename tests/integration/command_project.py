"""A project folder in which the real ``workerkit`` command runs, and a client that sees what it did to the broker."""

from __future__ import annotations

import json
import os
import pty
import secrets
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pika

WORKERKIT = [sys.executable, "-m", "workerkit"]
DEADLINE = 40.0
TASKS = """
from workerkit import WorkerTask

class A(WorkerTask):
    def callback(self, message):
        message.ack()

class B(A):
    pass
"""


@dataclass(frozen=True)
class Ended:
    code: int
    out: str
    err: str


class Project:
    """``config/workerkit.yaml`` for one broker, with what a test adds to it.

    Its tasks ``m:A`` and ``m:B`` leave everything to the YAML.
    """

    def __init__(self, folder: Path, url: str) -> None:
        self.folder = folder
        self.config = folder / "config" / "workerkit.yaml"
        self.config.parent.mkdir(parents=True)
        (folder / "m.py").write_text(TASKS)
        self.environment = {**os.environ, "WORKERKIT_BROKER__URL": url, "COLUMNS": "200"}
        self.write("")

    def write(self, text: str) -> None:
        self.config.write_text(text)

    def run(self, *args: str, stdin: bytes | None = b"", **environment: str) -> Ended:
        """``workerkit ARGS`` to its end, standard input being no terminal."""
        done = subprocess.run(
            [*WORKERKIT, "--config", str(self.config), *args],
            input=stdin,
            capture_output=True,
            timeout=60,
            env={**self.environment, **environment},
        )
        return Ended(done.returncode, done.stdout.decode(), done.stderr.decode())

    def json(self, *args: str):
        ended = self.run(*args, "--json")
        assert ended.code == 0, ended
        return json.loads(ended.out)

    @contextmanager
    def started(self, *args: str) -> Iterator[subprocess.Popen[bytes]]:
        """``workerkit ARGS`` while it runs, with pipes."""
        process = subprocess.Popen(
            [*WORKERKIT, "--config", str(self.config), *args],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=self.environment,
        )
        try:
            with process:
                yield process
        finally:
            process.kill()

    def answer(self, *args: str, question: str, reply: str, meanwhile=lambda: None) -> tuple[int, str]:
        """``workerkit ARGS`` on a terminal: wait for the question, reply; the exit code and all that was shown."""
        pid, terminal = pty.fork()
        if pid == 0:
            os.execvpe(sys.executable, [*WORKERKIT, "--config", str(self.config), *args], self.environment)
        shown, status, asked = b"", 0, False
        try:
            while True:
                assert select.select([terminal], [], [], DEADLINE)[0], f"the question did not come: {shown!r}"
                try:
                    chunk = os.read(terminal, 65536)
                except OSError:  # Linux says end-of-file of a terminal so
                    chunk = b""
                if not chunk:
                    break
                shown += chunk
                if question.encode() in shown and not asked:
                    asked = True
                    meanwhile()
                    os.write(terminal, f"{reply}\n".encode())
            _, status = os.waitpid(pid, 0)
        except BaseException:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise
        finally:
            os.close(terminal)
        assert asked, f"it did not ask: {shown!r}"
        return os.waitstatus_to_exitcode(status), shown.decode()


class Client:
    """What a test does to the broker by itself, over pika, and what it finds there."""

    def __init__(self, url: str) -> None:
        self._connection = pika.BlockingConnection(pika.URLParameters(url))
        self._channel = self._connection.channel()
        self._channel.confirm_delivery()

    def close(self) -> None:
        self._connection.close()

    def declare(self, queue: str, *, durable: bool = True, auto_delete: bool = False, **arguments) -> None:
        written = {f"x-{key.replace('_', '-')}": value for key, value in arguments.items()}
        self._channel.queue_declare(queue, durable=durable, auto_delete=auto_delete, arguments=written)

    def exists(self, queue: str) -> bool:
        channel = self._connection.channel()
        try:
            channel.queue_declare(queue, passive=True)
        except pika.exceptions.ChannelClosedByBroker:
            return False
        channel.close()
        return True

    def delete(self, queue: str) -> None:
        self._channel.queue_delete(queue)

    def publish(self, queue: str, body: bytes | str, exchange: str = "", **properties) -> None:
        self._channel.basic_publish(
            exchange, queue, body, pika.BasicProperties(**{"delivery_mode": 2, **properties}), mandatory=True
        )

    def dead_letter(self, queue: str, body: bytes | str, message_id: str, reason: str = "exception", **story) -> None:
        """As a worker writes one."""
        headers = {
            "workerkit-reason": reason,
            "workerkit-message": "no such image",
            "workerkit-exception": "builtins.ValueError",
            "workerkit-attempt": 5,
            "workerkit-queue": queue,
            "workerkit-failed-at": "2026-01-02T03:04:05.678Z",
            "workerkit-traceback": "Traceback (most recent call last):\n  boom",
            "workerkit-routing-key": "uploaded.jpg",
            "tenant": "acme",
            **story,
        }
        self.publish(f"{queue}.dead", body, message_id=message_id, content_type="application/json", headers=headers)

    def ready(self, queue: str) -> int:
        return self._channel.queue_declare(queue, passive=True).method.message_count

    def wait_ready(self, queue: str, count: int) -> None:
        deadline = time.monotonic() + DEADLINE
        while (ready := self.ready(queue)) != count:
            assert time.monotonic() < deadline, f"{queue} has {ready} ready messages, not {count}"
            time.sleep(0.02)

    def take(self, queue: str, count: int) -> list[tuple[pika.BasicProperties, bytes]]:
        """Take ``count`` messages out; fails when there are not exactly so many."""
        self.wait_ready(queue, count)
        taken = [self._channel.basic_get(queue, auto_ack=True) for _ in range(count)]
        assert self._channel.basic_get(queue)[0] is None
        return [(properties, body) for _, properties, body in taken]

    def drain(self, *queues: str, until: int) -> set[bytes]:
        """Take bodies out until so many different ones are found; what a dead connection held may come back late."""
        found: set[bytes] = set()
        deadline = time.monotonic() + DEADLINE
        self._channel.basic_qos(prefetch_count=1000)
        while len(found) < until and time.monotonic() < deadline:
            for queue in queues:
                for method, _, body in self._channel.consume(queue, inactivity_timeout=0.2):
                    if method is None:
                        break
                    found.add(body)
                    self._channel.basic_ack(method.delivery_tag)
                self._channel.cancel()
        return found

    def bodies(self, queue: str, count: int) -> list[bytes]:
        return [body for _, body in self.take(queue, count)]


def unique(stem: str = "q") -> str:
    return f"{stem}-{secrets.token_hex(4)}"
