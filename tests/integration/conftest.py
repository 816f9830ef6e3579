"""Fixtures for tests that run real workers against the shared node."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.rabbit import Rabbit
from support.workers import Project

from workerkit.testing.rabbitmq import PrivateRabbitmq


@pytest.fixture
def project(tmp_path: Path, rabbitmq: PrivateRabbitmq) -> Iterator[Project]:
    """A throw-away project on the shared node."""
    project = Project(tmp_path, rabbitmq.url)
    yield project
    project.close()


@pytest.fixture
def rabbit(rabbitmq: PrivateRabbitmq) -> Iterator[Rabbit]:
    """A direct connection to the shared node."""
    with Rabbit(rabbitmq.url) as rabbit:
        yield rabbit


@pytest.fixture
def queue(queue_name: str, rabbit: Rabbit) -> Iterator[str]:
    """A short queue name of its own."""
    name = f"q-{queue_name[-8:]}"
    yield name
    rabbit.delete(name, f"{name}.dead")
