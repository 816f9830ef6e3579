"""The end-to-end tests use the same fixtures as the integration tests."""

from integration.conftest import project, queue, rabbit

__all__ = ["project", "queue", "rabbit"]
