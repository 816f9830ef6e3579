"""``Publisher`` and ``AsyncPublisher`` against a real broker: it has the message, or an error says why not."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from support.chroot import ordinary_node
from support.loops import on_a_loop
from support.rabbit import Rabbit

from workerkit import AsyncPublisher, ConfigurationError, Publisher, PublishRefused, PublishTimeout, Unroutable
from workerkit.errors import AccessRefused
from workerkit.testing.rabbitmq import PrivateRabbitmq

pytestmark = pytest.mark.integration


@pytest.fixture
def publisher(rabbitmq: PrivateRabbitmq) -> Iterator[Publisher]:
    with Publisher(rabbitmq.url) as publisher:
        yield publisher


@pytest.fixture(scope="module")
def own() -> Iterator[PrivateRabbitmq]:
    """A node that can be frozen and killed, with a queue named `q`."""
    with ordinary_node() as node:
        with Rabbit(node.url) as rabbit:
            rabbit.declare("q", queue_type="quorum")
        node.flush()
        yield node


@pytest.fixture
def frozen(own: PrivateRabbitmq) -> Iterator[PrivateRabbitmq]:
    """To be frozen by the test; thawed and empty afterwards."""
    yield own
    own.thaw()
    with Rabbit(own.url) as rabbit:
        rabbit.take_all("q")


def bodies(rabbit: Rabbit, queue: str) -> list[object]:
    return [json.loads(body) for body, _ in rabbit.take_all(queue)]


def in_threads(count: int, work: Callable[[int], object]) -> list[object]:
    """What each of so many threads returns; raises what one raises."""
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(work, range(count)))


# ---- one message


def test_a_publish_returns_when_the_broker_has_the_message(publisher: Publisher, rabbit: Rabbit, queue: str) -> None:
    """With its id; everything that was said of it is in it."""
    rabbit.declare(queue, queue_type="quorum")
    given = publisher.publish(queue, {"path": "a.png"}, headers={"tenant": "acme"}, message_id="m1", priority=1)
    random = publisher.publish(queue, body=b"raw", content_type="image/png")
    assert rabbit.ready(queue) == 2
    (body, properties), (raw, others) = rabbit.take_all(queue)
    assert (given, json.loads(body), properties.message_id) == ("m1", {"path": "a.png"}, "m1")
    assert (properties.headers["tenant"], properties.delivery_mode, properties.priority) == ("acme", 2, 1)
    assert (raw, others.content_type, others.message_id) == (b"raw", "image/png", random)


def test_a_message_without_a_queue_is_unroutable_and_one_for_a_full_queue_refused(
    publisher: Publisher, rabbit: Rabbit, queue: str
) -> None:
    """Both at once, and the publisher goes on."""
    rabbit.declare(queue, max_length=1, overflow="reject-publish")
    publisher.publish(queue, 1)
    with pytest.raises(PublishRefused, match="is the queue full"):
        publisher.publish_many((queue, 2) for _ in range(5))  # one more than the limit may fit
    with pytest.raises(Unroutable, match="routing key 'nowhere'"):
        publisher.publish("nowhere", 3)
    with pytest.raises(Unroutable, match="'nowhere' does not exist"):
        publisher.publish("nowhere", 3, delay=5)
    assert rabbit.ready(queue) >= 1


def test_a_message_that_the_broker_ends_the_channel_for_harms_no_other(
    publisher: Publisher, rabbit: Rabbit, queue: str
) -> None:
    """A missing exchange, a body above RabbitMQ's limit: told to the one who did it. The others, which were on the same
    channel, are published again; some may be there twice, with the same id."""
    rabbit.declare(queue, queue_type="quorum")
    big = bytes(140 * 1024 * 1024)

    def work(number: int) -> None:
        if number == 0:
            for _ in range(3):
                with pytest.raises(Unroutable, match="no exchange 'missing'"):
                    publisher.publish(None, 1, exchange="missing")
            with pytest.raises(PublishRefused, match="larger than"):
                publisher.publish(queue, body=big)
            return
        for count in range(50):
            publisher.publish(queue, [number, count])

    in_threads(5, work)
    arrived = {tuple(body) for body in bodies(rabbit, queue)}  # type: ignore[arg-type]
    assert arrived == {(number, count) for number in range(1, 5) for count in range(50)}


def test_a_refused_user_is_told_so_at_once(rabbitmq: PrivateRabbitmq) -> None:
    """No password gets right by waiting; it is in no text."""
    with Publisher(rabbitmq.url.replace("guest:guest", "guest:secret")) as publisher:
        with pytest.raises(AccessRefused) as refused:
            publisher.publish("q", 1)
        assert "secret" not in str(refused.value)


@pytest.mark.parametrize("url", ["http://localhost", "localhost", [], "amqp://a:pass/word@localhost"])
def test_what_is_no_broker_is_refused_before_anything_is_published(url: str | list[str]) -> None:
    """By the URL alone, of which the text shows nothing."""
    with pytest.raises(ValueError, match="URL") as refused:
        Publisher(url)
    assert "pass/" not in str(refused.value)


# ---- a broker that does not answer


def test_a_frozen_broker_is_a_timeout_in_time_and_all_is_well_after_it(frozen: PrivateRabbitmq) -> None:
    """The text says that the message may have arrived; when no connection was there, that it has not."""
    with Publisher(frozen.url, timeout=1) as publisher, Publisher(frozen.url, timeout=1) as fresh:
        publisher.publish("q", "before")
        frozen.freeze()
        started = time.monotonic()
        with pytest.raises(PublishTimeout, match="no confirm within 1 s; the message may have arrived"):
            publisher.publish("q", "perhaps")
        with pytest.raises(PublishTimeout, match="could not be sent within 1 s"):
            fresh.publish("q", "never")
        assert time.monotonic() - started < 3
        frozen.thaw()
        fresh.publish("q", "after")
        while True:
            try:
                publisher.publish("q", "after")
                break
            except PublishTimeout:  # the old connection is just being given up
                continue
    with Rabbit(frozen.url) as rabbit:
        arrived = bodies(rabbit, "q")
    assert "never" not in arrived
    assert arrived.count("perhaps") <= 1


def test_nothing_is_lost_when_the_broker_is_killed_and_comes_back(own: PrivateRabbitmq) -> None:
    """What was in flight is published again under its id, within its time; nobody sees an error."""
    running = threading.Event()

    def work(number: int) -> None:
        for count in range(400):
            publisher.publish("q", [number, count], message_id=f"{number}/{count}")
            if count == 50:
                running.set()

    with Publisher(own.url, timeout=60) as publisher, ThreadPoolExecutor(8) as pool:
        working = [pool.submit(work, number) for number in range(8)]
        assert running.wait(30)
        own.kill()
        own.start()
        for each in working:
            each.result(60)
    with Rabbit(own.url) as rabbit:
        arrived = Counter(properties.message_id for _, properties in rabbit.take_all("q"))
    assert arrived.keys() == {f"{number}/{count}" for number in range(8) for count in range(400)}
    assert arrived.total() <= 3200 + 8, "no more than what was in flight can be there twice"


# ---- many


def test_many_threads_publish_at_once_each_waiting_for_its_own(
    publisher: Publisher, rabbit: Rabbit, queue: str
) -> None:
    """8 threads, 500 messages each: every one is there once, each thread's in their order."""
    rabbit.declare(queue, queue_type="quorum")
    in_threads(8, lambda number: [publisher.publish(queue, [number, count]) for count in range(500)])
    arrived: list = bodies(rabbit, queue)
    for number in range(8):
        assert [count for thread, count in arrived if thread == number] == list(range(500))


def test_many_messages_in_flight_arrive_in_order(publisher: Publisher, rabbit: Rabbit, queue: str) -> None:
    """Four times as many as may be in flight, from a generator; pairs, and messages with more to say."""
    rabbit.declare(queue, queue_type="quorum")
    assert publisher.publish_many((queue, number) for number in range(4000)) == 4000
    assert publisher.publish_many([publisher.message(queue, "last", type="end"), (queue, None)]) == 2
    assert publisher.publish_many([]) == 0
    arrived = rabbit.take_all(queue)
    assert [json.loads(body) for body, _ in arrived] == [*range(4000), "last", None]
    assert arrived[-2][1].type == "end"


def test_the_first_that_fails_is_named_and_the_rest_not_read(publisher: Publisher, rabbit: Rabbit, queue: str) -> None:
    """An endless iterable ends there; all before it are confirmed."""
    rabbit.declare(queue, queue_type="quorum")
    read = 0

    def endless() -> Iterator[tuple[str, int]]:
        nonlocal read
        while True:
            yield (queue if read != 3000 else "nowhere"), read
            read += 1

    with pytest.raises(Unroutable) as failed:
        publisher.publish_many(endless())
    assert failed.value.index == 3000
    assert read < 6000
    assert bodies(rabbit, queue)[:3000] == list(range(3000))


def test_what_an_iterable_gave_before_it_failed_is_published(publisher: Publisher, rabbit: Rabbit, queue: str) -> None:
    """Its own error comes out; so does that of something which is no message."""
    rabbit.declare(queue, queue_type="quorum")

    def breaks() -> Iterator[tuple[str, int]]:
        yield queue, 1
        raise LookupError("the table is gone")

    with pytest.raises(LookupError, match="the table is gone"):
        publisher.publish_many(breaks())
    with pytest.raises(TypeError, match="a pair of queue and data"):
        publisher.publish_many([(queue, 2), "no message"])  # type: ignore[list-item]
    assert bodies(rabbit, queue) == [1, 2]


def test_a_slow_iterable_keeps_no_message_waiting(publisher: Publisher, rabbit: Rabbit, queue: str) -> None:
    """Each is published when it is there, not when the next ones are."""
    rabbit.declare(queue, queue_type="quorum")

    def slow() -> Iterator[tuple[str, int]]:
        for number in range(3):
            yield queue, number
            deadline = time.monotonic() + 10
            while rabbit.ready(queue) <= number:
                assert time.monotonic() < deadline, "the message before was not published"

    assert publisher.publish_many(slow()) == 3


def test_a_broker_that_takes_nothing_bounds_what_is_read(frozen: PrivateRabbitmq) -> None:
    """By bytes, not only by number: bodies of a megabyte do not fill the memory."""
    taken = 0

    def big() -> Iterator[object]:
        nonlocal taken
        for _ in range(500):
            taken += 1
            yield Publisher.message("q", body=bytes(1_000_000))

    with Publisher(frozen.url, timeout=2) as publisher:
        publisher.publish("q", 1)
        frozen.freeze()
        with pytest.raises(PublishTimeout):
            publisher.publish_many(big())  # type: ignore[arg-type]
        assert taken <= 12, "4 MiB in flight, 1 MiB waiting, and one message each beyond that"


# ---- delays


def test_a_delayed_message_comes_after_its_delay(publisher: Publisher, rabbit: Rabbit, queue: str) -> None:
    """It waits in the broker: the publisher has returned long before, and may be gone."""
    rabbit.declare(queue, queue_type="quorum")
    started = time.monotonic()
    publisher.publish(queue, "later", delay=1.5)
    publisher.close()
    assert time.monotonic() - started < 1.4
    while not (arrived := rabbit.take_all(queue)):
        assert time.monotonic() - started < 20
    assert time.monotonic() - started >= 1.5
    assert arrived[0][1].headers["x-death"][0]["queue"] == f"{queue}.retry.1500ms.once"


def test_delays_of_the_configuration_share_the_queues_of_retries(
    rabbitmq: PrivateRabbitmq, rabbit: Rabbit, queue: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Where none may be declared the nearest is used, which is said once; where there is none, that is an error."""
    config = tmp_path / "workerkit.yaml"
    config.write_text(
        f"broker: {{url: '{rabbitmq.url}'}}\nqueues: {{{queue}: {{declare: false}}}}\n"
        f"workers: {{a: {{task: 'm:A', queue: {queue}, retry: {{delays: [1s, 9s]}}}}}}\n"
    )
    rabbit.declare(queue, queue_type="quorum")
    with Publisher.from_config(config) as publisher:
        with pytest.raises(Unroutable, match=rf"{queue}\.retry\.1s"):
            publisher.publish(queue, 0, delay=1)
        waiting = {"x-message-ttl": 1000, "x-dead-letter-exchange": "", "x-dead-letter-routing-key": queue}
        rabbit._channel.queue_declare(f"{queue}.retry.1s", durable=True, arguments=waiting)
        for number in (1, 2):
            publisher.publish(queue, number, delay=2)
    said = [record.message for record in caplog.records if record.name == "workerkit.publishing"]
    assert said == [f"queue '{queue}' has `declare: false`: a delay of 2s becomes the nearest of its retry policy, 1s"]
    deadline = time.monotonic() + 20
    while rabbit.ready(queue) < 2:
        assert time.monotonic() < deadline
    rabbit.delete(f"{queue}.retry.1s")


def test_a_configuration_that_cannot_be_used_is_an_error_with_its_line(tmp_path: Path) -> None:
    """As for every command."""
    config = tmp_path / "workerkit.yaml"
    config.write_text("broker: {hearbeat: 5s}")
    with pytest.raises(ConfigurationError, match="heartbeat"):
        Publisher.from_config(config)


# ---- threads, forks, signals, ends


def test_closing_waits_for_what_others_publish_and_nothing_is_published_after_it(frozen: PrivateRabbitmq) -> None:
    """Also from a second thread that closes at the same time."""
    publisher = Publisher(frozen.url, timeout=30)
    publisher.publish("q", 1)
    frozen.freeze()
    with ThreadPoolExecutor(3) as pool:
        publishing = pool.submit(publisher.publish, "q", 2)
        while not publisher._threads[os.getpid(), 0]._sender.adapter._publisher._pending:  # type: ignore[union-attr]
            time.sleep(0.01)
        closing = [pool.submit(publisher.close) for _ in range(2)]
        time.sleep(0.3)
        assert not any(each.done() for each in (publishing, *closing))
        with pytest.raises(RuntimeError, match="the publisher is closed"):
            publisher.publish("q", 3)
        frozen.thaw()
        for each in (publishing, *closing):
            each.result(10)
    with pytest.raises(RuntimeError, match="the publisher is closed"):
        publisher.publish_many([("q", 3)])
    with Rabbit(frozen.url) as rabbit:
        assert bodies(rabbit, "q") == [1, 2]


def test_a_publisher_that_is_thrown_away_ends_its_thread(rabbitmq: PrivateRabbitmq, rabbit: Rabbit, queue: str) -> None:
    """Nothing is left behind but the messages."""
    rabbit.declare(queue)
    publisher = Publisher(rabbitmq.url)
    publisher.publish(queue, 1)
    [thread] = publisher._threads.values()
    del publisher
    assert thread._ended.wait(10)


FORKS = """
import os, sys, threading
from workerkit import Publisher

url, queue = sys.argv[1:]
publisher = Publisher(url)
publisher.publish(queue, "first")

def publish(name, count):
    for number in range(count):
        publisher.publish(queue, [name, number])

lanes = [threading.Thread(target=publish, args=(f"parent {lane}", 300)) for lane in range(4)]
for lane in lanes:
    lane.start()
children = []
for child in range(5):
    pid = os.fork()
    if pid == 0:
        lane = threading.Thread(target=publish, args=(f"child {child}", 50))
        lane.start()
        publish(f"child {child} main", 50)
        lane.join()
        if child == 0:
            if os.fork() == 0:
                publish("grandchild", 10)
                sys.exit()
            os.wait()
        if child % 2:
            publisher.close()
        if child == 4:
            del publisher
        sys.exit()
    children.append(pid)
assert [os.waitpid(pid, 0)[1] for pid in children] == [0] * 5
for lane in lanes:
    lane.join()
publish("parent", 50)
"""


def test_a_fork_while_threads_publish_gives_the_child_a_connection_of_its_own(
    rabbitmq: PrivateRabbitmq, rabbit: Rabbit, queue: str
) -> None:
    """As in prefork servers: neither disturbs the other, whether a child closes, exits or throws its copy away."""
    rabbit.declare(queue, queue_type="quorum")
    run_script(FORKS, rabbitmq.url, queue)
    expected = {("first", None): 1}
    lanes = {**{f"parent {lane}": 300 for lane in range(4)}, "parent": 50, "grandchild": 10}
    lanes |= {f"child {child}{lane}": 50 for child in range(5) for lane in ("", " main")}
    expected |= {(name, number): 1 for name, count in lanes.items() for number in range(count)}
    arrived: list = bodies(rabbit, queue)
    assert Counter(("first", None) if body == "first" else tuple(body) for body in arrived) == expected


SIGNALS = """
import signal, sys
from workerkit import Publisher

url, queue = sys.argv[1:]
publisher = Publisher(url)
caught = 0

def on_signal(*_):
    global caught
    publisher.publish(queue, ["signal", caught])
    caught += 1
    signal.setitimer(signal.ITIMER_REAL, 0.003)

signal.signal(signal.SIGALRM, on_signal)
signal.setitimer(signal.ITIMER_REAL, 0.001)
number = 0
while caught < 50:
    publisher.publish(queue, ["main", number])
    number += 1
publisher.publish_many((queue, ["many", number]) for number in range(2000))
signal.setitimer(signal.ITIMER_REAL, 0)
signal.signal(signal.SIGALRM, lambda *_: publisher.close())
signal.setitimer(signal.ITIMER_REAL, 0.05)
try:
    while True:
        publisher.publish(queue, ["main", number])
        number += 1
except RuntimeError as error:
    print(caught, number, error)
"""


def test_a_signal_handler_publishes_and_closes_while_it_interrupts_a_publish(
    rabbitmq: PrivateRabbitmq, rabbit: Rabbit, queue: str
) -> None:
    """No lock is held that it would wait for; the first publish of all is interrupted too."""
    rabbit.declare(queue, queue_type="quorum")
    caught, number, error = run_script(SIGNALS, rabbitmq.url, queue).split(" ", 2)
    assert error == "the publisher is closed\n"
    arrived: list = bodies(rabbit, queue)
    for name, count in (("signal", int(caught)), ("main", int(number)), ("many", 2000)):
        assert [place for kind, place in arrived if kind == name] == list(range(count)), name


EXIT = """
import contextlib, sys, threading
from workerkit import Publisher

url, queue = sys.argv[1:]
publisher = Publisher(url)
publisher.publish(queue, "main")
started = threading.Event()

def publish():
    started.set()
    with contextlib.suppress(RuntimeError):  # it was closed before this thread came to it
        publisher.publish(queue, "daemon")

threading.Thread(target=publish, daemon=True).start()
started.wait()
"""


def test_the_end_of_the_interpreter_closes_in_order(rabbitmq: PrivateRabbitmq, rabbit: Rabbit, queue: str) -> None:
    """Without a call of close, without a word, and without a wait for anything but what is in flight."""
    rabbit.declare(queue, queue_type="quorum")
    cut = rabbitmq.log().count("client unexpectedly closed TCP connection")
    started = time.monotonic()
    assert run_script(EXIT, rabbitmq.url, queue) == ""
    assert time.monotonic() - started < 10
    assert set(bodies(rabbit, queue)) >= {"main"}  # type: ignore[arg-type]
    assert rabbitmq.log().count("client unexpectedly closed TCP connection") == cut


INTERRUPTED = """
import signal, sys
from workerkit import Publisher

signal.signal(signal.SIGINT, signal.default_int_handler)
publisher = Publisher(sys.argv[1])
publisher.publish("q", 1)
print("ready", flush=True)
sys.stdin.readline()
print("go", flush=True)
publisher.publish("q", 2)
"""


def test_an_interrupt_ends_the_wait(frozen: PrivateRabbitmq) -> None:
    """Ctrl-C: at once, though the broker does not answer."""
    with subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, frozen.url],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        frozen.freeze()
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "go\n"
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        started = time.monotonic()
        _, err = process.communicate(timeout=20)
    assert time.monotonic() - started < 6
    assert err.endswith("KeyboardInterrupt\n")


def run_script(code: str, *arguments: str) -> str:
    """What a program prints that ends well and says nothing else."""
    quiet = ("-W", "error::ResourceWarning", "-W", "ignore::DeprecationWarning")  # Python 3.12 warns of forks
    command = [sys.executable, *quiet, "-c", code, *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stderr) == (0, "")
    return ended.stdout


# ---- on a loop


@on_a_loop
async def test_an_asynchronous_publisher_keeps_as_many_in_flight_as_there_are_tasks(
    rabbitmq: PrivateRabbitmq, rabbit: Rabbit, queue: str
) -> None:
    """Each await is one confirm; errors are those of the other one."""
    rabbit.declare(queue, queue_type="quorum")
    async with AsyncPublisher(rabbitmq.url) as publisher:
        ids = await asyncio.gather(*(publisher.publish(queue, number) for number in range(3000)))
        assert len(set(ids)) == 3000
        with pytest.raises(Unroutable):
            await publisher.publish("nowhere", 1)
    assert sorted(bodies(rabbit, queue)) == list(range(3000))  # type: ignore[type-var]
    with pytest.raises(RuntimeError, match="the publisher is closed"):
        await publisher.publish(queue, 1)


@on_a_loop
async def test_an_asynchronous_publisher_takes_both_kinds_of_iterables(
    rabbitmq: PrivateRabbitmq, rabbit: Rabbit, queue: str
) -> None:
    """In order; the first failure has its place."""
    rabbit.declare(queue, queue_type="quorum")

    async def messages():
        for number in range(2000):
            if number % 500 == 0:
                await asyncio.sleep(0.01)
            yield queue, number

    async with AsyncPublisher(rabbitmq.url) as publisher:
        assert await publisher.publish_many(messages()) == 2000
        with pytest.raises(Unroutable) as failed:
            await publisher.publish_many([(queue, 2000), ("nowhere", 1), (queue, 2001)])
    assert failed.value.index == 1
    assert bodies(rabbit, queue)[:2001] == list(range(2001))


def test_an_asynchronous_publisher_belongs_to_one_loop(rabbitmq: PrivateRabbitmq, rabbit: Rabbit, queue: str) -> None:
    """Another thread's loop would use its sockets behind its back."""
    rabbit.declare(queue, queue_type="quorum")

    async def scene() -> None:
        async with AsyncPublisher(rabbitmq.url) as publisher:
            await publisher.publish(queue, 1)
            with pytest.raises(RuntimeError, match="another event loop"):
                await asyncio.to_thread(asyncio.run, publisher.publish(queue, 2))

    asyncio.run(scene())
    assert bodies(rabbit, queue) == [1]
