"""``--set``: read and checked as the YAML is."""

from __future__ import annotations

import pytest

from workerkit.errors import ConfigurationError
from workerkit.settings.command_line import parse_overrides


@pytest.mark.parametrize(
    ("assignments", "values"),
    [
        ([], {}),
        (["ttl=10s", "memory_limit=64MiB"], {"ttl": 10.0, "memory_limit": 64 * 2**20}),
        (["retry.max_attempts=3"], {"retry": {"max_attempts": 3}}),
        (["retry.delays=[1s, 2m]", "retry.max_attempts=3"], {"retry": {"max_attempts": 3, "delays": (1.0, 120.0)}}),
        (["retry={max_attempts: 3}"], {"retry": {"max_attempts": 3}}),
        (["queues={urgent: 20, bulk: 5}"], {"queues": {"urgent": 20, "bulk": 5}}),
        (["queue=10"], {"queue": "10"}),
        (["queue=a=b"], {"queue": "a=b"}),
        (["prefetch_count=auto"], {"prefetch_count": "auto"}),
        (["prefetch_count=5"], {"prefetch_count": 5}),
        (["auto_ack=true", "select=shop.choosers:Fair"], {"auto_ack": True, "select": "shop.choosers:Fair"}),
        (["ttl=null", "max_messages=null"], {"ttl": None, "max_messages": None}),
        (["executors=2", "executors=3"], {"executors": 3}),
    ],
)
def test_a_setting_is_read_as_in_the_yaml(assignments, values):
    """With units, lists and nulls; the last one of a key counts, and only what is given is there."""
    assert parse_overrides(assignments, "mail") == values


@pytest.mark.parametrize(
    ("assignment", "problem"),
    [
        ("tll=10s", "--set tll: workers.mail: unknown key `tll` (did you mean `ttl`?)"),
        (
            "retry.delay=10s",
            "--set retry.delay: workers.mail: unknown key `retry.delay` (did you mean `retry.delays`?)",
        ),
        ("ttl=5x", "--set ttl: workers.mail.ttl: '5x' is not a duration: write a number and a unit (ms, s, m, h, d), "),
        ("ttl=0", "--set ttl: workers.mail.ttl: must be more than 0"),
        ("executors=65", "--set executors: workers.mail.executors: expected a whole number from 1 to 64, got 65"),
        ("queues={urgent: 0}", "--set queues: workers.mail.queues.urgent: expected a whole number from 1 to 1000"),
        ("queue=", "--set queue: workers.mail.queue: the queue's name is empty"),
        ("ttl", "--set ttl: workers.mail: write a key, `=` and a value, like ttl=10s"),
        ("instances=3", "--set instances: workers.mail.instances: can be set in the YAML only"),
        ("task=a:B", "--set task: workers.mail.task: can be set in the YAML only"),
        ("environment={A: b}", "--set environment: workers.mail.environment: can be set in the YAML only"),
    ],
)
def test_a_setting_that_cannot_be_given_says_why(assignment, problem):
    """One line, with the option, the key, and what to write."""
    with pytest.raises(ConfigurationError) as caught:
        parse_overrides([assignment], "mail")
    [line] = str(caught.value).splitlines()
    assert line.startswith(problem)


def test_every_problem_is_found_in_one_run():
    """As in the file."""
    with pytest.raises(ConfigurationError) as caught:
        parse_overrides(["tll=1s", "executors=0", "queue=a", "queues={b: 1}"], "mail")
    assert [line.split(":")[0] for line in str(caught.value).splitlines()] == [
        "--set tll",
        "--set executors",
        "--set queues",
    ]
