"""structlog, set up for each of the two processes of a worker.

The executor renders a line and sends it over the link; the consumer owns stdout and writes the lines of both. So
nothing a task logs can block on a full pipe, and the two never mix inside a line.
"""

from __future__ import annotations

import contextlib
import contextvars
import logging
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import msgspec

# `import structlog` imports rich when it is there, for tracebacks that workers do not draw: 5 MiB and 150 ms in each
# of two processes. The CLI's tables import rich later, so the name is freed again.
sys.modules.setdefault("rich", None)  # type: ignore[arg-type]
import structlog  # noqa: E402

if sys.modules.get("rich") is None:
    del sys.modules["rich"]

from workerkit.timestamps import timestamp  # noqa: E402
from workerkit.worker.sink import LineSink  # noqa: E402

if TYPE_CHECKING:
    from structlog.typing import EventDict, FilteringBoundLogger, WrappedLogger

LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40, "critical": 50}

_context_size = len(contextvars.copy_context())
"""Context variables that are set before any code of the user's has run."""
_encoder = msgspec.json.Encoder(enc_hook=repr)


class _Lines:
    """The logger that structlog's chain ends in: takes a finished line."""

    def __init__(self, write: Callable[[bytes], None]) -> None:
        self._write = write

    def msg(self, line: bytes) -> None:
        self._write(line)

    debug = info = warning = warn = error = critical = exception = fatal = log = msg


def render_json(_logger: WrappedLogger, _method: str, event: EventDict) -> bytes:
    """One JSON object and a newline. JSON itself escapes control characters; what is not JSON becomes its repr."""
    try:
        return _encoder.encode(event) + b"\n"
    except Exception:  # noqa: BLE001 - a repr is the user's code, and a line must not fail the callback that logs it
        return _encoder.encode({_as_json(key): _as_json(value) for key, value in event.items()}) + b"\n"


def _as_json(value: Any) -> Any:
    """The value if it can be encoded, else a text that says what it is."""
    with contextlib.suppress(Exception):
        _encoder.encode(value)
        return value
    try:
        text = str(value) if isinstance(value, str) else repr(value)
    except Exception:  # noqa: BLE001 - as above
        text = f"<{type(value).__name__}, whose repr fails>"
    return text.encode("utf-8", "backslashreplace").decode()


def _exc_info_to_stack(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    error = event.pop("exc_info", None)
    if error:
        if not isinstance(error, BaseException):
            error = (error if isinstance(error, tuple) else sys.exc_info())[1]
        if error is not None:
            event["exc_type"] = type(error).__qualname__
            event["stack"] = "".join(traceback.format_exception(error)).rstrip("\n")
    return event


def _chain(context: Callable[[], Mapping[str, Any]]) -> list[Any]:
    def add_context(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        for key, value in context().items():
            event.setdefault(key, value)
        return event

    def order(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        head: dict[str, Any] = {"timestamp": timestamp(), "level": event.pop("level"), "event": event.pop("event")}
        return {**head, **event}

    return [
        structlog.contextvars.merge_contextvars,
        add_context,
        structlog.processors.add_log_level,
        structlog.processors.StackInfoRenderer(),
        _exc_info_to_stack,
        order,
        render_json,
    ]


class _StdlibHandler(logging.Handler):
    """Brings the standard library's logging into the same stream."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            logger = structlog.get_logger().bind(logger=record.name)
            level = record.levelname.lower() if record.levelname.lower() in LEVELS else "info"
            getattr(logger, level)(record.getMessage(), **({"exc_info": record.exc_info} if record.exc_info else {}))
        except Exception:  # noqa: BLE001 - logging must not raise into the code that logs
            self.handleError(record)


def configure(level: str, context: Callable[[], Mapping[str, Any]], write: Callable[[bytes], None]) -> None:
    """Send structlog's lines, as JSON, to ``write``; ``context`` gives keys that each line carries."""
    structlog.configure(
        processors=_chain(context),
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        logger_factory=lambda *_args: _Lines(write),
        cache_logger_on_first_use=False,
    )


def adopt_stdlib_logging(level: str) -> None:
    """Bring ``logging`` into the stream, unless the user's code has configured it already."""
    root = logging.getLogger()
    if not root.handlers:
        root.addHandler(_StdlibHandler())
        root.setLevel(LEVELS[level])


def clear_context() -> None:
    """Forget what the user's code bound to structlog's context variables for one message."""
    if len(contextvars.copy_context()) != _context_size:  # copying takes no time, looking at each variable does
        structlog.contextvars.clear_contextvars()


class ConsumerLog:
    """The log of a worker: both processes' lines, through one sink, as JSON or for people.

    Args:
        level: the least level that is written.
        style: ``json``, ``console``, or ``auto`` for console on a terminal and JSON otherwise.
        context: keys that each of the consumer's own lines carries.
    """

    def __init__(self, level: str, style: str, context: Mapping[str, Any], fd: int = 1) -> None:
        console = style == "console" or (style == "auto" and os.isatty(fd))
        self._render: Callable[[bytes], bytes] | None = _console_renderer(fd) if console else None
        self._sink = LineSink(fd, self._dropped_line)
        self._context = context
        # Not structlog's global configuration: with --inline that belongs to the executor in the same process.
        self.logger: FilteringBoundLogger = structlog.wrap_logger(
            _Lines(self.write_line),
            processors=_chain(lambda: context),
            wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
            context_class=dict,
        )
        pika = logging.getLogger("pika")  # its tracebacks repeat what our own conn.* lines say
        pika.propagate = False
        pika.addHandler(logging.NullHandler())

    def write_line(self, line: bytes) -> None:
        """Write one JSON line, of this process or of the executor."""
        self._sink.write(line if self._render is None else self._render(line))

    def write_events(self, level: str, event: str, events: list[dict[str, Any]]) -> None:
        """Write many events of one level and name: the same lines as ``logger`` makes, without its chain for each.

        The caller has asked ``logger`` whether the level is enabled. All get the time of the first.
        """
        head = {"timestamp": timestamp(), "level": level, "event": event}
        lines = [render_json(None, level, {**head, **about, **self._context}) for about in events]
        self._sink.write(*(lines if self._render is None else map(self._render, lines)))

    def close(self) -> None:
        """Write what is queued; give up after a second."""
        self._sink.close()

    def _dropped_line(self, count: int, why: str) -> bytes:
        event = {"timestamp": timestamp(), "level": "warning", "event": "log.dropped", "lines": count, "why": why}
        line = render_json(None, "", {**event, **self._context})
        return line if self._render is None else self._render(line)


def _console_renderer(fd: int) -> Callable[[bytes], bytes]:
    colors = os.isatty(fd) and "NO_COLOR" not in os.environ
    renderer = structlog.dev.ConsoleRenderer(colors=colors, exception_formatter=structlog.dev.plain_traceback)

    def render(line: bytes) -> bytes:
        event = msgspec.json.decode(line)
        event["timestamp"] = event["timestamp"][11:23]
        stack = event.pop("stack", "")
        text = str(renderer(None, "", event))
        return (text + "\n" + (stack + "\n" if stack else "")).encode("utf-8", "backslashreplace")

    return render
