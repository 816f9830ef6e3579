"""Commands look at the broker that the URL names, and say so where there is nothing to look at."""

import asyncio

import pytest

from workerkit.errors import ConfigurationError
from workerkit.operations.queues import count_ready
from workerkit.settings.model import BrokerSettings, Settings


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("memory://", "a broker that lives in one process and ends with it: there is nothing to show"),
        ("kafka://host", "`broker.url` begins with kafka://, which no command can look at"),
        (["memory://", "memory://"], "there is nothing to show"),
    ],
)
def test_a_broker_without_anything_to_look_at_is_a_configuration_error(url: str | list[str], said: str) -> None:
    """Whatever the operation is: they all go through one place."""
    with pytest.raises(ConfigurationError, match=said):
        asyncio.run(count_ready(Settings(broker=BrokerSettings(url=url)), "jobs"))
