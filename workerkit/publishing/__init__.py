"""Publishing from anywhere: a web application, a script, a job. What a worker publishes goes another way."""

from workerkit.publishing.async_publisher import AsyncPublisher
from workerkit.publishing.publisher import Publisher

__all__ = ["AsyncPublisher", "Publisher"]
