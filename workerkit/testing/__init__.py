"""What tests of workers need.

``WorkerTest`` runs one worker against a broker in memory, in milliseconds. ``workerkit.testing.rabbitmq`` starts a
private RabbitMQ node, for tests that need the real one.
"""

from workerkit.brokers.memory.record import Record
from workerkit.testing.harness import WorkerTest

__all__ = ["Record", "WorkerTest"]
