"""The errors workerkit raises, what each means, and the exit codes its commands end with.

    WorkerkitError
    ├── ConfigurationError          YAML, environment or command line is wrong          exit 78
    │   ├── TaskLoadError           the task's module or class cannot be used           exit 78
    │   └── TopologyMismatch        a queue or exchange exists with other arguments     exit 78
    ├── BrokerError                 anything RabbitMQ or the way to it did              exit 75
    │   ├── ConnectionFailed        no broker answered                                  exit 69
    │   ├── ConnectionLost          it answered and then went away                      exit 75
    │   ├── AccessRefused           credentials, virtual host or permission             exit 77
    │   ├── QueueNotFound           the named queue does not exist                      exit 65
    │   └── PublishFailed           the broker did not take a message                   exit 75
    │       ├── Unroutable          no queue is there for it: it is nowhere             exit 75
    │       ├── PublishRefused      the broker refused it: it is nowhere                exit 75
    │       └── Unconfirmed         the connection was lost: it may have arrived        exit 75
    │           └── PublishTimeout  no confirm in time: it may have arrived             exit 75
    ├── BadData                     input to a command cannot be used                   exit 65
    ├── ControlError                Supervisor did not answer or refused                exit 69
    └── MessageError                misuse of one message, raised inside a callback
        ├── AlreadySettled          a second verb on the same message
        └── UndecodableBody         the body is not what its content type says

Two exceptions are raised by users, to decide: RetryMessage and RejectMessage.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from workerkit.settlement import check_delay


class ExitCode(IntEnum):
    """What a workerkit process ends with; Supervisor's ``exitcodes`` is generated from these."""

    OK = 0  # asked to stop, or a planned end (TTL, limit); never with a message in flight
    USAGE = 64
    BAD_DATA = 65
    UNAVAILABLE = 69  # a service is away; commands only: a worker waits
    INTERNAL = 70
    TEMPORARY = 75  # please restart
    REFUSED = 77
    CONFIGURATION = 78


class WorkerkitError(Exception):
    """Base of every error that workerkit raises on purpose."""

    exit_code: ExitCode = ExitCode.INTERNAL


class ConfigurationError(WorkerkitError):
    """Its text is complete: it names the file, the line and the key where they are known, and what to do."""

    exit_code = ExitCode.CONFIGURATION


class TaskLoadError(ConfigurationError):
    """The module of a task does not import, or holds no such ``WorkerTask``."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One argument in which a declared object differs from the one on the broker."""

    object: str  # for example: queue 'thumbnails'
    argument: str
    wanted: str
    actual: str

    def __str__(self) -> str:
        return f"{self.object}: {self.argument} should be {self.wanted} but is {self.actual}"


class TopologyMismatch(ConfigurationError):
    """A queue or an exchange exists on the broker with other arguments; nothing was changed."""

    def __init__(self, differences: list[Difference]) -> None:
        self.differences = differences
        lines = "".join(f"\n  {difference}" for difference in differences)
        super().__init__(
            f"the broker has other arguments than the configuration:{lines}\n"
            "Change the configuration to match, or delete or rename the object on the broker."
        )


class BrokerError(WorkerkitError):
    """RabbitMQ, or the way to it, failed. Driver exceptions are translated into these at the adapter's edge."""

    exit_code = ExitCode.TEMPORARY


class ConnectionFailed(BrokerError):
    exit_code = ExitCode.UNAVAILABLE


class ConnectionLost(BrokerError):
    """A connection or channel that was open is gone."""


class AccessRefused(BrokerError):
    exit_code = ExitCode.REFUSED


class QueueNotFound(BrokerError):
    exit_code = ExitCode.BAD_DATA


class PublishFailed(BrokerError):
    """A message was published and the broker did not take responsibility for it."""

    index: int | None = None
    """Which of the messages of ``publish_many`` it is, from 0; all before it were confirmed. None for a single one."""


class Unroutable(PublishFailed):
    """No queue took the message, or there is no such exchange: it is nowhere."""


class PublishRefused(PublishFailed):
    """The broker refused the message, because its queue is full for example: it is nowhere."""


class Unconfirmed(PublishFailed):
    """The connection was lost before the confirm: the message may have arrived."""


class PublishTimeout(Unconfirmed):
    """No confirm came in time: the message may have arrived, or arrive yet, or was not sent, which the text says."""


class BadData(WorkerkitError):
    exit_code = ExitCode.BAD_DATA


class ControlError(WorkerkitError):
    exit_code = ExitCode.UNAVAILABLE


class MessageError(WorkerkitError):
    """A message was used in a way that its state does not allow."""


class AlreadySettled(MessageError):
    """A second verb was called on a message. Nothing was sent."""


class UndecodableBody(MessageError):
    """The body is not what its content type says, or not of the task's ``payload_type``.

    Raised by ``message.data``. When it leaves the callback, the message goes to the dead letters without retries.
    """


class RetryMessage(Exception):
    """Raised by a callback: this attempt failed, try again.

    Args:
        delay: seconds until the next attempt; None takes it from the retry policy.

    Raises:
        ValueError: the delay is negative or more than 49 days.
    """

    def __init__(self, delay: float | None = None) -> None:
        delay = None if delay is None else check_delay(delay)
        super().__init__("retry" if delay is None else f"retry in {delay:g} s")
        self.delay = delay


class RejectMessage(Exception):
    """Raised by a callback: this message can never succeed; it goes to the dead letters with ``reason``."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
