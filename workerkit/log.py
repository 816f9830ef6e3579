"""The logger a task uses: structlog's, with the name of its log settable.

Where the lines go is structlog's configuration, made by the process that runs the task (``worker/logs.py``): over the
link in an executor, to the console in a plain test.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger


class TaskLogger:
    """Structured logging for tasks: ``self.logger.info("image.resized", width=300)``.

    Everything but ``set_main_logger`` is structlog's bound logger: ``debug`` to ``critical``, ``exception``, ``bind``.
    Lines written in a callback carry the worker, the message and the attempt they belong to.
    """

    __slots__ = ("_bound",)

    def __init__(self) -> None:
        self._bound: FilteringBoundLogger | None = None

    def set_main_logger(self, name: str) -> None:
        """Name the log of this task: the value of the key ``logger`` in each of its lines."""
        self._bound = self._logger().bind(logger=name)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._logger(), name)

    def _logger(self) -> FilteringBoundLogger:
        if self._bound is None:
            # Imported late: `import structlog` pulls in rich when that is installed, 5 MiB and 150 ms that a worker
            # process avoids (worker/logs.py), and this module is imported before it can.
            import structlog  # noqa: PLC0415

            self._bound = structlog.get_logger()
        return self._bound
