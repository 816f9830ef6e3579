"""RabbitMQ workers in Python that do not lose messages and say why anything died."""

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

__all__ = [
    "AlreadySettled",
    "Cause",
    "ConfigurationError",
    "MessageAdapter",
    "MessageError",
    "Properties",
    "PublishFailed",
    "PublishRefused",
    "PublishTimeout",
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
