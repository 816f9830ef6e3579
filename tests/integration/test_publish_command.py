"""``workerkit publish`` hands messages to RabbitMQ for good, or says exactly how far it came."""

import asyncio
import signal
import time
import uuid

import pytest
from command_project import Client, Project, unique

from workerkit.errors import PublishRefused
from workerkit.operations.publishing import publish_all
from workerkit.outgoing import compose
from workerkit.settings.model import BrokerSettings, Settings

pytestmark = pytest.mark.integration


@pytest.fixture
def project(tmp_path, rabbitmq):
    return Project(tmp_path, rabbitmq.url)


@pytest.fixture
def client(rabbitmq):
    client = Client(rabbitmq.url)
    yield client
    client.close()


@pytest.fixture
def queue(client):
    name = unique("publish")
    client.declare(name, queue_type="quorum")
    return name


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b'{"path": "a.png"}', "application/json"),
        ("größer".encode(), "text/plain"),
        (b"\xff\x00\xfe", "application/octet-stream"),
    ],
    ids=["json", "text", "binary"],
)
def test_a_published_message_survives_restarts_and_says_what_it_is(project, client, queue, body, content_type):
    """Persistent, with an id, a time and its origin; the content type is that of the body."""
    before = int(time.time())
    ended = project.run("publish", queue, "-", stdin=body)
    assert ended.code == 0, ended
    [(properties, arrived)] = client.take(queue, 1)
    assert arrived == body
    assert (properties.delivery_mode, properties.app_id, properties.content_type) == (2, "workerkit", content_type)
    assert str(uuid.UUID(properties.message_id)) == properties.message_id
    assert before <= properties.timestamp <= time.time()
    assert ended.out == f"published 1 message to {queue} (id {properties.message_id})\n"


def test_options_become_properties_and_headers(project, client, queue):
    """What is given on the command line is in the message, and nothing is added to the headers."""
    written = project.json(
        *("publish", queue, "{}", "--header", "tenant=acme", "--header", "note=a=b", "--content-type", "text/x"),
        *("--message-id", "m-1", "--correlation-id", "c-1"),
    )
    assert written == {"queue": queue, "published": 1, "message_id": "m-1"}
    [(properties, _)] = client.take(queue, 1)
    properties.headers.pop("x-delivery-count", None)  # RabbitMQ's
    assert properties.headers == {"tenant": "acme", "note": "a=b"}
    assert (properties.message_id, properties.correlation_id, properties.content_type) == ("m-1", "c-1", "text/x")


def test_a_body_comes_from_a_file_or_from_a_pipe(project, client, queue, tmp_path):
    """@FILE is the file's bytes; without BODY, standard input is read when it is no terminal."""
    (tmp_path / "body.json").write_bytes(b"[1]\n")
    assert project.run("publish", queue, f"@{tmp_path}/body.json").code == 0
    assert project.run("publish", queue, stdin=b"piped").code == 0
    assert client.bodies(queue, 2) == [b"[1]\n", b"piped"]


def test_each_line_is_a_message_in_order_and_blank_ones_are_skipped(project, client, queue):
    """--lines: 300 lines are 300 messages, in the order of the lines, without their line ends."""
    lines = [f'{{"n": {number}}}' for number in range(300)]
    text = "\r\n".join([*lines[:100], "", "   ", *lines[100:]])
    ended = project.run("publish", queue, "-", "--lines", stdin=text.encode())
    assert (ended.code, ended.out) == (0, f"published 300 messages to {queue}\n")
    messages = client.take(queue, 300)
    assert [body.decode() for _, body in messages] == lines
    assert len({properties.message_id for properties, _ in messages}) == 300


def test_lines_longer_than_one_read_stay_whole(project, client, queue):
    """A line is a message however long it is, and the next one starts where it starts."""
    long = b"x" * 300_000
    assert project.run("publish", queue, "-", "--lines", stdin=long + b"\nshort\n" + long).code == 0
    assert client.bodies(queue, 3) == [long, b"short", long]


def test_every_confirmed_message_is_told_of_while_it_goes_on(rabbitmq, client, queue):
    """For a progress bar: also when the input is silent, and no more often than one can see."""
    told = []

    async def batches():
        yield [compose(queue, number) for number in range(2500)]
        await asyncio.sleep(1)
        assert sum(told) == 2500
        yield [compose(queue, 2500)]

    settings = Settings(broker=BrokerSettings(url=rabbitmq.url))
    published = asyncio.run(publish_all(settings, queue, batches(), on_confirmed=told.append, on_blocked=pytest.fail))
    assert (published.confirmed, published.failure, published.interrupted) == (2501, None, False)
    assert sum(told) == 2501
    assert len(told) < 50
    assert client.ready(queue) == 2501


def test_nothing_more_is_published_after_the_first_failure(rabbitmq, client):
    """What was in flight with it may be there; of the rest nothing is even read."""
    name = unique("full")
    client.declare(name, queue_type="classic", max_length=3, overflow="reject-publish")
    taken = 0

    def batch():
        nonlocal taken
        for number in range(20_000):
            taken += 1
            yield compose(name, number)

    async def batches():
        yield batch()
        pytest.fail("the next batch was asked for")

    settings = Settings(broker=BrokerSettings(url=rabbitmq.url))
    ignore = {"on_confirmed": lambda _count: None, "on_blocked": pytest.fail}
    published = asyncio.run(publish_all(settings, name, batches(), **ignore))
    assert isinstance(published.failure.error, PublishRefused)
    assert published.failure.index == 3
    assert published.confirmed == client.ready(name)
    assert taken < 5000


def test_a_missing_queue_is_bad_data_with_the_command_that_makes_it(project):
    """Nothing is published into the void: exit 65, and what to run."""
    ended = project.run("publish", "no-such-queue", "{}")
    assert ended.code == 65
    assert "`workerkit queues declare no-such-queue`" in ended.err
    assert ended.err.count("\n") == 1


def test_a_delayed_message_arrives_after_its_delay(project, client, queue):
    """--delay: it waits in a queue of that delay, made for it, and arrives when the time is up."""
    started = time.monotonic()
    ended = project.run("publish", queue, "{}", "--delay", "1s")
    assert (ended.code, ended.out.endswith(", to arrive in 1s\n")) == (0, True), ended
    [(properties, _)] = client.take(queue, 1)
    assert time.monotonic() - started >= 1
    assert properties.headers["x-death"][0]["queue"] == f"{queue}.retry.1s.once"


def test_a_delay_that_workers_have_shares_their_retry_queue(project, client, queue):
    """A delay of the retry policy uses the queue that the policy has, declared as the workers declare it."""
    project.write(f"workers: {{a: {{task: 'm:A', queue: {queue}, retry: {{delays: [100ms]}}}}}}")
    assert project.run("publish", queue, "{}", "--delay", "100ms").code == 0
    [(properties, _)] = client.take(queue, 1)
    assert properties.headers["x-death"][0]["queue"] == f"{queue}.retry.100ms"
    assert project.run("queues", "declare", queue).code == 0
    assert not client.exists(f"{queue}.retry.100ms.once")


def test_a_delayed_message_is_refused_when_nothing_waits_at_its_end(project, client):
    """A retry queue without its main queue would swallow the message: it is not even made."""
    name = unique("nowhere")
    assert project.run("publish", name, "{}", "--delay", "1s").code == 65
    assert not client.exists(f"{name}.retry.1s.once")


def test_the_first_refused_line_ends_it_with_its_number_and_the_count(project, client):
    """A full queue refuses: exit 75, the line, and how many RabbitMQ has."""
    name = unique("full")
    client.declare(name, queue_type="classic", max_length=3, overflow="reject-publish")
    ended = project.run("publish", name, "-", "--lines", stdin=b"\n".join(b"%d" % n for n in range(1, 11)))
    assert ended.code == 75
    assert ended.err.startswith("workerkit: line 4: the broker refused the message")
    assert ended.err.endswith("(3 messages confirmed, all before it)\n")
    assert client.bodies(name, 3) == [b"1", b"2", b"3"]


def test_a_queue_that_disappears_in_the_middle_is_named(project, client, queue):
    """An unroutable message is bad data, however late the queue went: exit 65 with the line and the count."""
    with project.started("publish", queue, "-", "--lines") as process:
        process.stdin.write(b"one\n")
        process.stdin.flush()
        client.wait_ready(queue, 1)
        client.delete(queue)
        _, err = process.communicate(b"two\nthree\n", timeout=20)
    assert process.returncode == 65, err
    assert err.decode().startswith(f"workerkit: line 2: queue '{queue}' does not exist")
    assert err.decode().endswith("(1 message confirmed, all before it)\n")


def test_an_interrupt_says_how_many_are_confirmed(project, client, queue):
    """Ctrl-C while the pipe is silent: it ends at once and says how far it came."""
    with project.started("publish", queue, "-", "--lines") as process:
        process.stdin.write(b"1\n2\n3\n")
        process.stdin.flush()
        client.wait_ready(queue, 3)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) == 130
        assert process.stderr.read() == b"interrupted: 3 messages confirmed\n"


def test_the_broker_away_and_a_refused_user_have_their_own_exit_codes(project, rabbitmq):
    """One line each, for every command: 69 when nobody answers, 77 when the password is wrong."""
    wrong = rabbitmq.url.replace("guest:guest", "guest:wrong")
    for command in (["publish", "q", "{}"], ["queues", "list"], ["dead", "list", "q"]):
        away = project.run(*command, WORKERKIT_BROKER__URL="amqp://guest:guest@127.0.0.1:1/%2F")
        assert (away.code, away.err.count("\n")) == (69, 1), away
        refused = project.run(*command, WORKERKIT_BROKER__URL=wrong)
        assert (refused.code, refused.err.count("\n")) == (77, 1), refused
        assert "wrong" not in refused.err


def test_a_message_that_the_broker_never_takes_is_bad_data(project, queue, tmp_path):
    """Too big for RabbitMQ's own limit: exit 65 with its words, not an invitation to try again."""
    big = tmp_path / "big"
    with big.open("wb") as file:
        file.truncate(140 * 1024 * 1024)
    ended = project.run("publish", queue, f"@{big}")
    assert ended.code == 65, ended
    assert "larger than" in ended.err
