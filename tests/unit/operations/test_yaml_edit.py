"""Adding a worker to a YAML that somebody has written by hand."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from workerkit.operations.yaml_edit import add_worker
from workerkit.settings import load

KEYS = {"task": "workers.new:NewWorker", "queue": "new"}

FILES = {
    "comments on every line": (
        """\
        # top
        workers:            # ours
          # the first
          first:            # one
            task: a:B       # two
            # ttl: 1h
          # about nothing

        # the end
        """,
        """\
        # top
        workers:            # ours
          # the first
          first:            # one
            task: a:B       # two
            # ttl: 1h
          new:
            task: workers.new:NewWorker
            queue: new
          # about nothing

        # the end
        """,
    ),
    "another section behind": (
        """\
        workers:
            first:
                  task: a:B

        logging: {level: info}
        """,
        """\
        workers:
            first:
                  task: a:B
            new:
                  task: workers.new:NewWorker
                  queue: new

        logging: {level: info}
        """,
    ),
    "workers in one line each": (
        """\
        workers:
          first: {task: a:B, retry: {max_attempts: 2,
                  delays: [1s]}}
        """,
        """\
        workers:
          first: {task: a:B, retry: {max_attempts: 2,
                  delays: [1s]}}
          new:
            task: workers.new:NewWorker
            queue: new
        """,
    ),
    "a block of text at the end": (
        """\
        workers:
          first:
            task: a:B
            environment:
              NOTE: >-
                two
                lines

        supervisor: {stopwaitsecs: 5}
        """,
        """\
        workers:
          first:
            task: a:B
            environment:
              NOTE: >-
                two
                lines
          new:
            task: workers.new:NewWorker
            queue: new

        supervisor: {stopwaitsecs: 5}
        """,
    ),
    "a list at the end": (
        """\
        workers:
          first:
            task: a:B
            retry:
              delays:
              - 1s
              - 2s   # the last
        """,
        """\
        workers:
          first:
            task: a:B
            retry:
              delays:
              - 1s
              - 2s   # the last
          new:
            task: workers.new:NewWorker
            queue: new
        """,
    ),
    "an empty value at the end": (
        """\
        workers:
          first:
            task: a:B
            ttl:       # none
        logging: {level: info}
        """,
        """\
        workers:
          first:
            task: a:B
            ttl:       # none
          new:
            task: workers.new:NewWorker
            queue: new
        logging: {level: info}
        """,
    ),
    "no workers yet": (
        "workers: {}   # none yet\nlogging: {level: info}\n",
        "workers:   # none yet\n  new:\n    task: workers.new:NewWorker\n    queue: new\nlogging: {level: info}\n",
    ),
    "no section": (
        "logging: {level: info}",
        "logging: {level: info}\nworkers:\n  new:\n    task: workers.new:NewWorker\n    queue: new\n",
    ),
    "an empty file": ("", "workers:\n  new:\n    task: workers.new:NewWorker\n    queue: new\n"),
    "one line for all": (
        "{workers: {first: {task: a:B}}}\n",
        "{workers: {first: {task: a:B}, new: {task: workers.new:NewWorker, queue: new}}}\n",
    ),
    "braces over lines": (
        "workers: {\n  first: {task: a:B},   # one\n}\n",
        "workers: {\n  first: {task: a:B}, new: {task: workers.new:NewWorker, queue: new},   # one\n}\n",
    ),
    "no line end at the end": (
        "workers:\n  first: {task: a:B}",
        "workers:\n  first: {task: a:B}\n  new:\n    task: workers.new:NewWorker\n    queue: new\n",
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_a_worker_is_added_at_the_end_and_every_other_character_stays(name: str, tmp_path: Path) -> None:
    """Comments, indentation and the order of things are the operator's; what comes out loads, with one worker more."""
    before, after = map(textwrap.dedent, FILES[name])
    assert add_worker(before, "new", KEYS) == after

    def settings_of(text: str):
        path = tmp_path / "workerkit.yaml"
        path.write_text(text)
        return load(path, {}).settings

    old, new = settings_of(before), settings_of(after)
    assert {**new.workers, "new": None} == {**old.workers, "new": None}
    assert (new.workers["new"].task, new.workers["new"].queue) == ("workers.new:NewWorker", "new")
    assert new.logging == old.logging
    assert new.supervisor == old.supervisor


def test_line_ends_of_windows_stay_what_they_are() -> None:
    """A file has one kind of line ends, before and after."""
    before = "workers:\r\n  first: {task: a:B}\r\nlogging: {level: info}\r\n"
    after = add_worker(before, "new", KEYS)
    assert after.replace("\r\n", "").count("\n") == 0
    assert after.replace("  new:\r\n    task: workers.new:NewWorker\r\n    queue: new\r\n", "") == before
