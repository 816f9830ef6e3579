from __future__ import annotations

import pytest


def queue(body: str) -> str:
    return f"exchanges:\n  images: {{}}\nqueues:\n  q:\n    {body}\n"


def worker(body: str) -> str:
    return f"workers:\n  a:\n    task: a:B\n    {body}\n"


@pytest.mark.parametrize("task", ["a", "a:", ":B", "a:B:C", "a/b.py:C", "a..b:C", "a:B.c", "1a:B", "a b:C", ""])
def test_a_task_is_a_module_and_a_class(problems, task):
    """The error says the form; whether it imports is found out later."""
    assert problems(f"workers:\n  a:\n    task: '{task}'\n") == [
        f"3: workers.a.task: `{task}` must be `module:Class`, like workers.thumbnail:ThumbnailWorker"
    ]


@pytest.mark.parametrize("kind", ["exchange", "queue"])
@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("", "name is empty"),
        ("a\\nb", "name holds control characters or line breaks"),
        ("a\\u2028b", "name holds control characters or line breaks"),
        ("é" * 101, "name is longer than 200 bytes"),
    ],
)
def test_names_on_the_broker_are_short_single_lines(problems, kind, name, problem):
    """AMQP's 255 bytes must also hold the suffixes of derived queues."""
    (line,) = problems(f'{kind}s:\n  "{name}": {{}}\n')
    assert line.startswith(f"2: {kind}s.")
    assert line.endswith(f"the {kind}'s {problem}")


def test_a_name_of_two_hundred_bytes_is_fine(load_text):
    """The limit is inclusive, and counts bytes."""
    assert load_text(f"queues: {{{'é' * 100}: {{}}}}").settings.queues


def test_a_workers_queue_is_a_name_too(problems):
    """It may be a queue that the YAML does not list, but it must be one that can exist."""
    assert problems(worker('queue: ""')) == ["4: workers.a.queue: the queue's name is empty"]


@pytest.mark.parametrize(
    ("queues", "problem"),
    [
        ("{a: 1, b: 1001}", "queues.b: expected a whole number from 1 to 1000, got 1001"),
        ("{a: 0}", "queues.a: expected a whole number from 1 to 1000, got 0"),
        ('{"a\\nb": 1}', "queues.a\\nb: the queue's name holds control characters or line breaks"),
    ],
)
def test_several_queues_are_names_with_weights(problems, queues, problem):
    """Each problem is at its queue."""
    assert problems(worker(f"queues: {queues}")) == [f"4: workers.a.{problem}"]


def test_several_queues_stand_in_place_of_one(load_text, problems):
    """Whether the one is among them nobody could say."""
    assert load_text(worker("queues: {urgent: 20, bulk: 5}")).settings.workers["a"].queues == {"urgent": 20, "bulk": 5}
    assert problems(worker("queue: urgent\n    queues: {urgent: 20}")) == [
        "5: workers.a.queues: `queue` is given as well: keep one of them"
    ]


@pytest.mark.parametrize("select", ["weighted", "strict", "choosers:Fair", "shop.choosers:Fair"])
def test_select_is_a_word_or_a_class(load_text, select):
    """Whether it imports is found out later."""
    assert load_text(worker(f"select: {select}")).settings.workers["a"].select == select


@pytest.mark.parametrize("name", ["-a", ".a", "a b", "a/b", "a:b", "é", "a%"])
def test_a_workers_name_fits_supervisor_and_command_lines(problems, name):
    """It becomes a Supervisor program, a file name and an argument."""
    assert problems(f"workers:\n  '{name}': {{task: 'a:B'}}\n") == [
        f"2: workers.{name}: a worker's name is letters, digits, `_`, `-` and `.`, and begins with a letter or digit"
    ]


def test_a_binding_names_an_exchange_that_is_listed_or_the_brokers_own(load_text, problems):
    """A misspelt exchange would fail at declare time, on the broker, for all of the topology."""
    assert load_text(queue("bindings: [{exchange: images}, {exchange: amq.topic}]"))
    assert problems(queue("bindings: [{exchange: imges}]")) == [
        "5: queues.q.bindings[0].exchange: `imges` is not listed under `exchanges` (did you mean `images`?)"
    ]
    assert problems("queues: {q: {bindings: [{exchange: orders}]}}") == [
        "1: queues.q.bindings[0].exchange: `orders` is not listed under `exchanges`: add it there"
    ]
    assert "the default exchange" in problems(queue("bindings: [{exchange: ''}]"))[0]


def test_a_listed_exchange_with_an_error_of_its_own_is_not_missing(problems):
    """One mistake is one line."""
    text = "exchanges:\n  images: 5\nqueues: {q: {bindings: [{exchange: images}]}}\n"
    assert problems(text) == ["2: exchanges.images: expected a mapping, got a number"]


@pytest.mark.parametrize(
    ("argument", "instead"),
    [
        ("x-queue-type", "write `type: quorum` or `type: classic` in its place"),
        ("x-dead-letter-exchange", "dead letters go to the derived `.dead` queue: remove it"),
        ("x-dead-letter-routing-key", "dead letters go to the derived `.dead` queue: remove it"),
        ("x-dead-letter-strategy", "dead letters go to the derived `.dead` queue: remove it"),
        ("x-delayed-retry-type", "write `delayed_retry: {min: …, max: …}` in its place"),
        ("x-delayed-retry-min", "write `delayed_retry: {min: …, max: …}` in its place"),
    ],
)
def test_arguments_that_are_derived_cannot_be_written(problems, argument, instead):
    """There is one way to say each thing, and the error says which."""
    assert problems(queue(f"arguments: {{x-max-length: 5, {argument}: x}}")) == [
        f"5: queues.q.arguments.{argument}: is derived by workerkit: {instead}"
    ]


def test_delayed_retry_is_for_quorum_queues_and_grows(load_text, problems):
    """Classic queues ignore it in silence; a maximum below the minimum makes no sense."""
    assert load_text(queue("delayed_retry: {min: 1s, max: 1s}"))
    assert problems(queue("delayed_retry: {min: 5s, max: 1s}")) == [
        "5: queues.q.delayed_retry.max: must be at least `min`, which is 5s"
    ]
    assert problems(queue("delayed_retry: {min: 0, max: 1s}")) == [
        "5: queues.q.delayed_retry.min: must be more than 0: remove the key to keep the default"
    ]
    assert problems(queue("type: classic\n    delayed_retry: {min: 1s, max: 5s}")) == [
        "6: queues.q.delayed_retry: only quorum queues have it: write `type: quorum`, or remove it"
    ]


@pytest.mark.parametrize(
    "url",
    [
        "amqp://localhost",
        "amqps://user:p%40ss@host:5671/v",
        "amqp://[::1]:5672/%2F",
        "amqp://host//",
        "amqp://host?heartbeat=5",
        "memory://",
        "memory://shop",
    ],
)
def test_urls_that_name_a_broker_are_taken(load_text, url):
    """Scheme and host are enough."""
    assert load_text(f"broker: {{url: '{url}'}}").settings.broker.url == url


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("http://host", "must begin with amqp:// or amqps://"),
        ("host:5672", "must begin with amqp:// or amqps://"),
        ("", "must begin with amqp:// or amqps://"),
        ("amqp://", "names no host"),
        ("amqp://user:pass@:5672", "names no host"),
        ("amqp://host:0", "port must be a number from 1 to 65535"),
        ("amqp://host:65536", "port must be a number from 1 to 65535"),
        ("amqp://u:pa:ss/word@host", "ambiguous: percent-encode"),
        ("amqp://u:12#3@host", "ambiguous: percent-encode"),
        ("amqp://u:12?3@host", "ambiguous: percent-encode"),
        ("amqp://host/a b", "spaces or control characters"),
        ("amqp://ho\tst", "spaces or control characters"),
        ("amqp://[host", "not a URL"),
        ("memory://user@host:1", "must be memory:// alone, or with a name"),
    ],
)
def test_urls_that_cannot_be_connected_to_are_refused(problems, url, problem):
    """Found before anything connects, at the line of the URL; in a list, at its item."""
    (line,) = problems(f"broker:\n  url:\n  - amqp://fine\n  - '{url}'\n")
    assert line.startswith("4: broker.url[1]: ")
    assert problem in line


def test_a_list_of_urls_is_not_empty(problems):
    """There must be something to connect to."""
    assert problems("broker: {url: []}") == ["1: broker.url: the list is empty: write at least one URL"]


@pytest.mark.parametrize("heartbeat", ["500ms", "65536s"])
def test_a_heartbeat_fits_the_wire_or_is_off(load_text, problems, heartbeat):
    """AMQP carries whole seconds in 16 bits; 0 turns heartbeats off."""
    assert load_text("broker: {heartbeat: 0}").settings.broker.heartbeat == 0
    assert problems(f"broker: {{heartbeat: {heartbeat}}}") == [
        "1: broker.heartbeat: must be 0 (no heartbeats) or from 1s to 65535s"
    ]


@pytest.mark.parametrize("key", ["ttl", "callback_timeout", "starve_after", "memory_limit", "recycle_memory"])
def test_zero_is_no_limit_that_can_be_met(problems, key):
    """Zero is refused rather than taken for `no limit`."""
    assert problems(worker(f"{key}: 0")) == [
        f"4: workers.a.{key}: must be more than 0: remove the key to keep the default"
    ]


def test_connecting_takes_some_time(problems):
    """A timeout of zero would never connect."""
    assert "must be more than 0" in problems("broker: {connection_timeout: 0}")[0]


def test_a_retry_delay_fits_what_rabbitmq_can_count(load_text, problems):
    """TTLs are 32 bits of milliseconds; no delay at all is fine."""
    assert load_text(worker("retry: {delays: [0, 49d]}"))
    assert problems(worker("retry: {delays: [1s, 50d]}")) == ["4: workers.a.retry.delays[1]: must be at most 49d"]


@pytest.mark.parametrize("where", ["supervisor:\n  environment", "workers:\n  a:\n    task: a:B\n    environment"])
def test_variables_can_be_passed_through_supervisor(problems, where):
    """Names are those of a shell; values have no NUL and no line break."""
    lines = problems(f'{where}: {{"1A": x, "": x, A-B: x, NUL: "a\\0", LINE: "a\\nb", FINE: "a b"}}\n')
    assert [line.split("environment.")[1].split(":")[0] for line in lines] == ["1A", "", "A-B", "NUL", "LINE"]
    assert "a variable's name" in lines[0]
    assert "NUL character or a line break" in lines[3]


def test_short_heartbeats_and_lifetimes_are_warnings(load_text):
    """They work, and will be regretted; the warning names file, line and key."""
    loaded = load_text("broker:\n  heartbeat: 2s\nworkers:\n  a:\n    task: a:B\n    ttl: 1s\n")
    assert loaded.warnings == (
        (
            "config/workerkit.yaml:2: broker.heartbeat: a heartbeat of 2s drops connections when the host is busy: "
            "use 5s or more"
        ),
        "config/workerkit.yaml:6: workers.a.ttl: a worker that lives 1s spends its time starting: use 5s or more",
    )
    assert load_text("broker: {heartbeat: 0}\nworkers: {a: {task: 'a:B', ttl: 5s}}").warnings == ()
