"""``workerkit queues`` says what the broker has, makes what is missing and destroys only what it was told to."""

import pytest
from command_project import Client, Project, unique

pytestmark = pytest.mark.integration

RETRY = {
    "queue_type": "quorum",
    "dead_letter_exchange": "",
    "dead_letter_strategy": "at-least-once",
    "overflow": "reject-publish",
}


@pytest.fixture
def project(tmp_path, rabbitmq):
    return Project(tmp_path, rabbitmq.url)


@pytest.fixture
def client(rabbitmq):
    client = Client(rabbitmq.url)
    yield client
    client.close()


@pytest.fixture
def queue():
    return unique("queues")


@pytest.fixture(params=["rabbitmq", "rabbitmq_next"])
def any_version(request, tmp_path):
    """A project and a client on each version of RabbitMQ that is here."""
    node = request.getfixturevalue(request.param)
    client = Client(node.url)
    yield Project(tmp_path, node.url), client
    client.close()


def configure(project, queue, settings="{}", delays="[1s]"):
    project.write(
        f"queues: {{{queue}: {settings}}}\n"
        f"workers: {{a: {{task: 'm:A', queue: {queue}, retry: {{delays: {delays}}}}}}}\n"
    )


def test_list_shows_what_is_missing_and_then_what_it_holds(project, client, queue):
    """Each configured queue with its retry and dead-letter queues; unacknowledged is not known over AMQP."""
    configure(project, queue)
    missing = project.run("queues", "list")
    assert missing.code == 0
    assert [line.split()[:4] for line in missing.out.splitlines()] == [
        ["QUEUE", "ROLE", "TYPE", "READY"],
        [queue, "queue", "quorum", "missing"],
        [f"{queue}.retry.1s", "retry", "quorum", "missing"],
        [f"{queue}.dead", "dead", "quorum", "missing"],
    ]
    assert project.run("queues", "declare").code == 0
    client.publish(queue, "x")
    client.wait_ready(queue, 1)
    assert project.json("queues", "list")["queues"][0] == {
        "name": queue,
        "role": "queue",
        "of": queue,
        "type": "quorum",
        "exists": True,
        "ready": 1,
        "unacked": None,
        "consumers": 0,
    }


def test_list_has_the_queues_of_all_workers_with_all_their_delays(project, queue):
    """Workers that share a queue share its retry queues; a worker whose task cannot be asked is left out, audibly."""
    project.write(
        f"workers:\n"
        f"  a: {{task: 'm:A', queue: {queue}, retry: {{delays: [2s, 1s]}}}}\n"
        f"  b: {{task: 'm:B', queue: {queue}, retry: {{delays: [1s, 3s]}}}}\n"
        f"  c: {{task: 'm:C'}}\n"
        f"queues: {{{queue}-alone: {{}}}}\n"
    )
    ended = project.run("queues", "list")
    retries = [line.split()[0] for line in ended.out.splitlines() if " retry " in line]
    own = [f"{queue}.retry.{delay}" for delay in ("1s", "2s", "3s")]
    assert retries == [f"{queue}-alone.retry.{delay}" for delay in ("5s", "30s", "5m")] + own
    assert ended.err.startswith(f"warning: {project.config}:4: worker 'c': task 'm:C': ")
    assert ended.err.endswith("has no 'C'; it has A, B; its queue is not known\n")


def test_declare_makes_all_that_a_queue_needs_as_often_as_one_likes(project, client, queue):
    """Exchange, queue, binding, retry queue and dead-letter queue; a second time changes nothing."""
    project.write(
        f"exchanges: {{{queue}-x: {{type: topic}}}}\n"
        f"queues: {{{queue}: {{bindings: [{{exchange: {queue}-x, routing_key: 'a.#'}}]}}, {queue}-other: {{}}}}\n"
        f"workers: {{a: {{task: 'm:A', queue: {queue}, retry: {{delays: [1s]}}}}}}\n"
    )
    for _ in range(2):
        ended = project.run("queues", "declare", queue)
        assert (ended.code, ended.err) == (0, "")
        assert ended.out.splitlines() == [
            f"declared exchange {queue}-x (topic)",
            f"declared queue {queue} (quorum)",
            f"bound queue {queue} to {queue}-x by 'a.#'",
            f"declared queue {queue}.retry.1s (quorum)",
            f"declared queue {queue}.dead (quorum)",
        ]
    client.publish("a.b", "routed", exchange=f"{queue}-x")
    assert client.bodies(queue, 1) == [b"routed"]
    assert not client.exists(f"{queue}-other")


def test_a_queue_that_is_not_configured_is_declared_with_defaults_and_a_warning(project, client, queue):
    """A task may name its queue itself, so it is made; the note is for those who have misspelt one."""
    configure(project, queue)
    misspelt = f"{queue}s"
    ended = project.run("queues", "declare", misspelt)
    assert ended.code == 0
    assert f"(did you mean `{queue}`?)" in ended.err
    assert client.exists(f"{misspelt}.retry.5m")


DIFFERENT = [
    # (which of the queues, how it exists, what is said of it)
    ("", {"queue_type": "classic"}, ["x-queue-type should be quorum but is classic"]),
    (
        "",
        {"queue_type": "quorum", "max_length": 10, "message_ttl": 5000},
        ["x-max-length should be none but is 10", "x-message-ttl should be none but is 5000"],
    ),
    (
        "",
        {"queue_type": "classic", "durable": False, "auto_delete": True, "dead_letter_exchange": "123"},
        [
            "auto_delete should be false but is true",
            "durable should be true but is false",
            "x-dead-letter-exchange should be none but is 123",
            "x-queue-type should be quorum but is classic",
        ],
    ),
    (
        "",
        {"queue_type": "classic", "single_active_consumer": True},
        ["x-queue-type should be quorum but is classic", "x-single-active-consumer should be none but is true"],
    ),
    (
        ".retry.5s",
        {**RETRY, "message_ttl": 2000, "dead_letter_routing_key": "42"},
        ["x-dead-letter-routing-key should be {queue} but is 42", "x-message-ttl should be 5000 but is 2000"],
    ),
    (".dead", {"queue_type": "quorum"}, ["x-delivery-limit should be 1000000 but is none"]),
]


def test_every_difference_from_the_broker_is_named(any_version, queue):
    """One run names all that differs, in each version's words, and leaves it as it is: exit 78."""
    project, client = any_version
    names = [f"{queue}-{number}" for number in range(len(DIFFERENT))]
    project.write(f"queues: {{{', '.join(f'{name}: {{}}' for name in names)}}}")
    expected = []
    for name, (part, existing, differences) in zip(names, DIFFERENT, strict=True):
        client.declare(f"{name}{part}", **existing)
        expected += [f"queue '{name}{part}': {text.format(queue=name)}" for text in differences]
    ended = project.run("queues", "declare")
    assert ended.code == 78, ended
    assert sorted(line.strip() for line in ended.err.splitlines()[1:-1]) == expected
    for name, (part, existing, _) in zip(names, DIFFERENT, strict=True):
        client.declare(f"{name}{part}", **existing)


def test_what_differs_does_not_keep_the_rest_from_being_declared(project, client, queue):
    """Differences of several queues come in one error, and every queue that fits is there afterwards."""
    project.write(f"queues: {{{queue}-a: {{}}, {queue}-b: {{}}, {queue}-c: {{}}}}")
    client.declare(f"{queue}-a", queue_type="classic")
    client.declare(f"{queue}-b.dead", queue_type="classic")
    ended = project.run("queues", "declare")
    assert ended.code == 78
    assert f"queue '{queue}-a': x-queue-type" in ended.err
    assert f"queue '{queue}-b.dead': x-queue-type" in ended.err
    for made in ("-a.dead", "-a.retry.5s", "-b", "-c", "-c.dead"):
        assert client.exists(f"{queue}{made}")


def test_arguments_that_rabbitmq_does_not_take_are_no_difference(any_version, queue):
    """A queue that cannot exist is a configuration error with RabbitMQ's words, not a difference from nothing."""
    project, client = any_version
    configure(project, queue, "{arguments: {x-message-ttl: -1}}")
    ended = project.run("queues", "declare", queue)
    assert ended.code == 78
    assert f"RabbitMQ does not take the arguments of queue '{queue}'" in ended.err
    assert not client.exists(queue)


def test_show_tells_what_a_queue_is_derived_to_be(project, queue):
    """Arguments, bindings, retry queues and state, for people and for programs."""
    configure(project, queue, "{type: classic, arguments: {x-max-length: 7}}")
    shown = project.json("queues", "show", queue)
    assert shown["queues"][0]["arguments"] == {"x-queue-type": "classic", "x-max-length": 7}
    assert [part["name"] for part in shown["queues"]] == [queue, f"{queue}.retry.1s", f"{queue}.dead"]
    assert (shown["configured"], shown["bindings"], shown["queues"][0]["exists"]) == (True, [], False)
    text = project.run("queues", "show", queue)
    assert (text.code, text.err) == (0, "")
    assert "x-max-length  7" in text.out


def test_show_of_a_queue_that_nobody_knows_is_bad_data(project, queue):
    """Neither configured nor on the broker: exit 65, with the nearest name."""
    configure(project, queue)
    ended = project.run("queues", "show", f"{queue}s")
    assert ended.code == 65
    assert f"(did you mean `{queue}`?)" in ended.err


def test_purge_deletes_the_ready_messages_of_exactly_that_queue(project, client, queue):
    """Neighbours keep theirs, and a dry run deletes nothing."""
    for name in (queue, f"{queue}.dead"):
        client.declare(name, queue_type="quorum")
        client.publish(name, "1")
        client.publish(name, "2")
        client.wait_ready(name, 2)
    dry = project.run("queues", "purge", queue, "--dry-run")
    assert (dry.code, dry.out) == (0, f"would delete 2 ready messages from {queue}\n")
    assert client.ready(queue) == 2
    done = project.run("queues", "purge", queue, "--yes")
    assert (done.code, done.out) == (0, f"deleted 2 ready messages from {queue}\n")
    client.wait_ready(queue, 0)
    assert client.ready(f"{queue}.dead") == 2


def test_purge_asks_first_and_needs_somebody_to_answer(project, client, queue):
    """No deletes nothing; yes deletes; without a terminal only --yes is a yes, and a piped y is not."""
    client.declare(queue, queue_type="quorum")
    client.publish(queue, "1")
    client.wait_ready(queue, 1)
    assert project.run("queues", "purge", queue, stdin=b"y\n").code == 64
    question = f"Delete 1 ready message from {queue}? [y/N]"
    code, _ = project.answer("queues", "purge", queue, question=question, reply="n")
    assert (code, client.ready(queue)) == (1, 1)
    code, shown = project.answer("queues", "purge", queue, question=question, reply="y")
    assert (code, f"deleted 1 ready message from {queue}" in shown) == (0, True)
    client.wait_ready(queue, 0)


def test_purge_of_a_missing_queue_is_bad_data(project, queue):
    """Exit 65 and one line."""
    ended = project.run("queues", "purge", queue, "--yes")
    assert (ended.code, ended.err.count("\n")) == (65, 1)
    assert f"queue '{queue}' does not exist" in ended.err
