"""One event, one line of JSON, whatever is in it."""

import io
import json
import logging
import os
from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from workerkit.log import TaskLogger
from workerkit.worker import logs
from workerkit.worker.logs import ConsumerLog, render_json


class Broken:
    def __repr__(self) -> str:
        raise ZeroDivisionError


def render(**event: Any) -> dict[str, Any]:
    """Through the renderer and back; the line must be one line."""
    line = render_json(None, "info", {"event": "e", **event})
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    return json.loads(line)


leaves = st.text() | st.integers() | st.floats() | st.binary() | st.none()


@given(st.recursive(leaves, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=6))
def test_every_value_makes_one_line_of_json(value: Any) -> None:
    """Surrogates, control characters, huge numbers, NaN, bytes: none of them breaks the line or raises."""
    assert render(value=value)["event"] == "e"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("a\nb\r\x1b[31m\x00", "a\nb\r\x1b[31m\x00"),
        ("bad \udcff name", "bad \\udcff name"),
        (object, repr(object)),
        (1 + 2j, "(1+2j)"),
        (Broken(), "<Broken, whose repr fails>"),
        ([Broken()], "<list, whose repr fails>"),
    ],
)
def test_a_value_that_is_not_json_is_shown_as_what_it_is(value: object, shown: str) -> None:
    """And costs no other value its form."""
    line = render(value=value, number=1, text="plain")
    assert line == {"event": "e", "value": shown, "number": 1, "text": "plain"}


def test_a_key_that_is_no_text_does_not_lose_the_line() -> None:
    """Keys come from a user's `**mapping`."""
    assert render(**{"k\udcff": 1}) == {"event": "e", "k\\udcff": 1}


def test_a_value_that_contains_itself_ends() -> None:
    """Nested without end."""
    loop: list[Any] = []
    loop.append(loop)
    assert render(value=loop)["value"] == "[[...]]"


@pytest.fixture
def lines() -> Iterator[list[dict[str, Any]]]:
    """structlog as an executor has it; the configuration before comes back."""
    before = structlog.get_config()
    found: list[dict[str, Any]] = []
    logs.configure("info", lambda: {"worker": "w", "attempt": 2}, lambda line: found.append(json.loads(line)))
    yield found
    structlog.configure(**before)
    structlog.contextvars.clear_contextvars()


def test_a_line_of_a_task_carries_its_context_and_begins_with_time_level_event(lines: list[dict[str, Any]]) -> None:
    """The keys that people read come first; the task's own win over the worker's."""
    logger = TaskLogger()
    logger.set_main_logger("thumbnails")
    logger.debug("not.written")
    logger.info("resized", width=300, attempt="mine")
    (line,) = lines
    assert list(line)[:3] == ["timestamp", "level", "event"]
    assert {key: line[key] for key in line if key != "timestamp"} == {
        "level": "info",
        "event": "resized",
        "logger": "thumbnails",
        "width": 300,
        "worker": "w",
        "attempt": "mine",
    }
    assert line["timestamp"].endswith("Z")


def test_an_exception_becomes_type_and_stack(lines: list[dict[str, Any]]) -> None:
    """With `exception()` and with `exc_info=` an exception."""
    try:
        raise KeyError("k")
    except KeyError as error:
        TaskLogger().exception("failed")
        TaskLogger().error("failed", exc_info=error)
    for line in lines:
        assert line["exc_type"] == "KeyError"
        assert line["stack"].endswith("KeyError: 'k'")
        assert "exc_info" not in line


def test_what_a_callback_binds_is_forgotten_after_it(lines: list[dict[str, Any]]) -> None:
    """The next message must not carry the ids of the one before."""
    structlog.contextvars.bind_contextvars(order=1)
    TaskLogger().info("first")
    logs.clear_context()
    TaskLogger().info("second")
    assert [line.get("order") for line in lines] == [1, None]


def test_standard_logging_joins_the_stream(lines: list[dict[str, Any]]) -> None:
    """Libraries log with `logging`; their own odd levels become info, and broken calls raise nothing."""
    logger = logging.Logger("library")  # noqa: LOG001 - apart from the root logger, which is pytest's
    logger.addHandler(logs._StdlibHandler())
    logger.warning("slow: %s", "a.png")
    logger.log(25, "notice")
    assert [(line["level"], line["event"], line["logger"]) for line in lines] == [
        ("warning", "slow: a.png", "library"),
        ("info", "notice", "library"),
    ]


def test_the_users_own_logging_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the root logger has handlers, ours is not added."""
    handler = logging.StreamHandler(io.StringIO())
    root = logging.RootLogger(logging.WARNING)
    root.addHandler(handler)
    monkeypatch.setattr(logging, "getLogger", lambda *_args: root)
    logs.adopt_stdlib_logging("info")
    assert root.handlers == [handler]
    root.removeHandler(handler)
    logs.adopt_stdlib_logging("info")
    assert [type(found) for found in root.handlers] == [logs._StdlibHandler]
    assert root.level == logging.INFO


def consumer_log(style: str) -> tuple[ConsumerLog, int]:
    read, write = os.pipe()
    return ConsumerLog("info", style, {"worker": "w", "pid": 1}, fd=write), read


@pytest.mark.parametrize("style", ["json", "auto"])
def test_into_a_pipe_the_workers_log_is_json(style: str) -> None:
    """Both processes' lines, each whole."""
    log, read = consumer_log(style)
    log.logger.info("worker.consuming", queue="jobs")
    log.logger.debug("not.written")
    log.write_line(b'{"event":"from.the.executor"}\n')
    log.close()
    first, second = (json.loads(line) for line in os.read(read, 65536).splitlines())
    assert (first["event"], first["queue"], first["worker"]) == ("worker.consuming", "jobs", "w")
    assert second == {"event": "from.the.executor"}


@pytest.mark.parametrize("style", ["json", "console"])
def test_many_events_at_once_are_the_lines_that_the_logger_writes(style: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody who reads the log can tell which way a line came."""
    monkeypatch.setattr(logs, "timestamp", lambda: "2026-01-02T03:04:05.678Z")
    log, read = consumer_log(style)
    events = [{"outcome": "acked", "delivery_tag": tag, "message_id": 'm"\n', "duration_ms": 0.5} for tag in (1, 2)]
    log.write_events("info", "message.settled", events)
    for about in events:
        log.logger.info("message.settled", **about)
    log.close()
    lines = os.read(read, 65536).splitlines()
    assert lines[:2] == lines[2:]
    assert len(lines) == 4


def test_on_a_console_a_line_is_for_people(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time of day, event, keys, and the stack below; no colours without a terminal."""
    log, read = consumer_log("console")
    log.logger.error("callback.died", reason="memory", stack="Traceback\n  line")
    log.close()
    text = os.read(read, 65536).decode()
    assert "callback.died" in text
    assert "reason=memory" in text
    assert text.endswith("Traceback\n  line\n")
    assert "\x1b" not in text
