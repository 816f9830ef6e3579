"""The objects that a queue needs on the broker."""

import pytest

from workerkit.brokers.rabbitmq.topology import (
    derive,
    explicit_retry_queue,
    main_queue_name,
    nearest_declared,
    retry_queue,
    retry_queue_name,
)
from workerkit.settings.model import BindingSettings, DelayedRetrySettings, ExchangeSettings, QueueSettings
from workerkit.settlement import MAX_DELAY

TTL_LIMIT = 2**32 - 1


def test_a_queue_has_its_dead_letters_and_one_retry_queue_per_delay() -> None:
    """Targets come first: a message must never find them missing. Delays that repeat make one queue."""
    topology = derive("jobs", QueueSettings(), {}, (30.0, 5.0, 5.0), native=False)
    names = [queue.name for queue in topology.queues]
    assert names == ["jobs.dead", "jobs", "jobs.retry.5s", "jobs.retry.30s"]
    assert topology.queue.arguments == {"x-queue-type": "quorum"}


def test_a_retry_queue_sends_its_messages_back_without_losing_one() -> None:
    """Quorum, at-least-once, reject-publish: the default strategy drops what cannot be routed at once."""
    assert retry_queue("jobs", 0.5).name == "jobs.retry.500ms"
    assert retry_queue("jobs", 0.5).arguments == {
        "x-queue-type": "quorum",
        "x-message-ttl": 500,
        "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": "jobs",
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",
    }


def test_with_native_retries_the_broker_delays_and_there_are_no_retry_queues() -> None:
    """The arguments of RabbitMQ 4.3, with a delivery limit that never drops a message silently."""
    settings = QueueSettings(delayed_retry=DelayedRetrySettings(min=5.0, max=60.0))
    topology = derive("jobs", settings, {}, (5.0,), native=True)
    assert topology.retries == ()
    assert topology.queue.arguments == {
        "x-queue-type": "quorum",
        "x-delayed-retry-type": "failed",
        "x-delayed-retry-min": 5000,
        "x-delayed-retry-max": 60000,
        "x-delivery-limit": 1_000_000,
    }


def test_an_older_broker_gets_retry_queues_whatever_the_settings_say() -> None:
    """It accepts the native arguments and ignores them: the worker would spin."""
    settings = QueueSettings(delayed_retry=DelayedRetrySettings(min=5.0, max=60.0))
    topology = derive("jobs", settings, {}, (5.0,), native=False)
    assert [queue.name for queue in topology.retries] == ["jobs.retry.5s"]
    assert "x-delayed-retry-type" not in topology.queue.arguments


def test_arguments_type_and_bindings_are_the_operators() -> None:
    """Further arguments are kept, and the exchanges that bindings name are declared too."""
    binding = BindingSettings(exchange="images", routing_key="uploaded.#")
    settings = QueueSettings(type="classic", arguments={"x-max-length": 10}, bindings=[binding])
    exchanges = {"images": ExchangeSettings(type="topic"), "other": ExchangeSettings()}
    topology = derive("jobs", settings, exchanges, (), native=False)
    assert topology.queue.arguments == {"x-queue-type": "classic", "x-max-length": 10}
    assert topology.queue.bindings == (binding,)
    assert topology.exchanges == {"images": ExchangeSettings(type="topic")}


@pytest.mark.parametrize("delay", [0.001, 0.1, 7.0, 3600.0, MAX_DELAY])
def test_a_queue_for_one_explicit_delay_outlives_that_delay(delay: float) -> None:
    """It expires when it is unused, never under a message that still waits; RabbitMQ takes both numbers."""
    queue = explicit_retry_queue("jobs", delay)
    assert queue.name == f"{retry_queue_name('jobs', delay)}.once"
    assert queue.arguments["x-message-ttl"] + 60_000 <= queue.arguments["x-expires"] <= TTL_LIMIT


def test_delays_with_jitter_share_a_few_queues() -> None:
    """A quorum queue for each message would bring the cluster down; two digits are precise enough, and never early."""
    assert explicit_retry_queue("jobs", 123.4).name == "jobs.retry.130s.once"
    assert len({explicit_retry_queue("jobs", 30 + number / 100).name for number in range(27_000)}) < 100


def test_no_delay_is_a_ttl_of_zero() -> None:
    """RabbitMQ drops what has expired before it is queued; one millisecond is soon enough."""
    assert retry_queue("jobs", 0.0).arguments["x-message-ttl"] == 1


@pytest.mark.parametrize(
    ("name", "main"),
    [
        ("jobs", "jobs"),
        ("jobs.dead", "jobs"),
        ("jobs.retry.5s", "jobs"),
        ("jobs.retry.130s.once", "jobs"),
        ("jobs.retry.now.dead", "jobs.retry.now"),
        ("jobs.retry.now.retry.5s", "jobs.retry.now"),
        ("dead", "dead"),
    ],
)
def test_a_derived_name_leads_back_to_the_queue_that_workers_consume(name: str, main: str) -> None:
    """Where dead letters are replayed to, and what a hint says to declare."""
    assert main_queue_name(name) == main


@pytest.mark.parametrize(("delay", "nearest"), [(1, 5), (5, 5), (17, 5), (17.5, 30), (31, 30), (9999, 300)])
def test_the_nearest_of_the_declared_delays_is_used_where_none_may_be_made(delay: float, nearest: float) -> None:
    """Of two as near the longer: a message does not come before its time."""
    assert nearest_declared((5.0, 30.0, 300.0), delay) == nearest
