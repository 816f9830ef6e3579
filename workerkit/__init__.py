"""RabbitMQ workers in Python that do not lose messages and say why anything died."""

from typing import TYPE_CHECKING, Any

from workerkit.errors import (
    AlreadySettled,
    ConfigurationError,
    MessageError,
    PublishFailed,
    PublishRefused,
    PublishTimeout,
    RejectMessage,
    RetryMessage,
    UndecodableBody,
    Unroutable,
    WorkerkitError,
)
from workerkit.message import MessageAdapter
from workerkit.properties import Properties
from workerkit.retry import RetryPolicy
from workerkit.settlement import Cause, Reason
from workerkit.shutdown import ShutdownHelper
from workerkit.task import WorkerTask

if TYPE_CHECKING:
    from workerkit.publishing import AsyncPublisher, Publisher

__all__ = [
    "AlreadySettled",
    "AsyncPublisher",
    "Cause",
    "ConfigurationError",
    "MessageAdapter",
    "MessageError",
    "Properties",
    "PublishFailed",
    "PublishRefused",
    "PublishTimeout",
    "Publisher",
    "Reason",
    "RejectMessage",
    "RetryMessage",
    "RetryPolicy",
    "ShutdownHelper",
    "UndecodableBody",
    "Unroutable",
    "WorkerTask",
    "WorkerkitError",
]


def __getattr__(name: str) -> Any:
    """Import what publishes when it is asked for: an executor, which imports this package, has no use for it."""
    if name in ("AsyncPublisher", "Publisher"):
        import workerkit.publishing as publishing  # noqa: PLC0415, PLR0402

        return getattr(publishing, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
