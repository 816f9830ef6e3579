"""PrivateRabbitmq, which every test against a broker rests on, behaves as it says."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pika
import pika.exceptions
import psutil
import pytest
from support.chroot import ChrootRabbitmq

from workerkit.errors import BrokerError, ConnectionFailed
from workerkit.testing.rabbitmq import PrivateRabbitmq, RabbitmqMissing

pytestmark = pytest.mark.integration

PERSISTENT = pika.BasicProperties(delivery_mode=2)


@pytest.fixture(scope="module")
def own_node(rabbitmq, tmp_path_factory) -> Iterator[PrivateRabbitmq]:
    """A second node beside the shared one, free to be mistreated. Each test leaves it running."""
    with PrivateRabbitmq(root=tmp_path_factory.mktemp("own-node")) as node:
        yield node


def connect(node: PrivateRabbitmq) -> pika.BlockingConnection:
    return pika.BlockingConnection(pika.URLParameters(node.url))


def eventually(condition, *, within: float = 15.0):
    """The first true value of ``condition()``; for what the broker or the kernel does without telling us."""
    deadline = time.monotonic() + within
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not true within {within:g} s"
        time.sleep(0.05)
    return value


def still_running(processes) -> list[psutil.Process]:
    """Those that are more than an entry which their new parent, the init process, has yet to collect."""
    alive = []
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.status() != psutil.STATUS_ZOMBIE:
                alive.append(process)
    return alive


def test_a_started_node_answers_a_client_and_rabbitmqctl(rabbitmq, queue_name):
    """After start() the node is ready for use, by its URL and by ctl(), and knows its version."""
    with connect(rabbitmq) as connection:
        channel = connection.channel()
        channel.queue_declare(queue_name, durable=True)
        server = connection._impl.server_properties
    assert server["version"] == rabbitmq.version
    assert queue_name in rabbitmq.ctl("--quiet", "list_queues", "name").splitlines()


def test_a_rabbitmqctl_command_that_fails_says_why(rabbitmq):
    """ctl() raises with rabbitmqctl's own words."""
    with pytest.raises(BrokerError, match=r"status 64:\s+Command 'frobnicate' not found"):
        rabbitmq.ctl("frobnicate")


def test_two_nodes_share_nothing(rabbitmq, own_node, queue_name):
    """Nodes side by side have their own ports, data and control."""
    with connect(own_node) as connection:
        connection.channel().queue_declare(queue_name, durable=True)
    assert queue_name in own_node.ctl("--quiet", "list_queues", "name")
    assert queue_name not in rabbitmq.ctl("--quiet", "list_queues", "name")


@pytest.mark.parametrize("queue_type", ["classic", "quorum"])
def test_a_killed_node_comes_back_with_what_it_confirmed(own_node, queue_name, queue_type):
    """kill() is a crash, not a loss: the next start(), at the same URL, has the flushed queue and what it confirmed."""
    with connect(own_node) as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        channel.queue_declare(queue_name, durable=True, arguments={"x-queue-type": queue_type})
        channel.basic_publish("", queue_name, b"kept", PERSISTENT, mandatory=True)
        own_node.flush()
        own_node.kill()
        with pytest.raises(pika.exceptions.AMQPError):
            connection.process_data_events(time_limit=5)

    own_node.start()

    with connect(own_node) as connection:
        channel = connection.channel()
        # A quorum queue has no message to give until it has elected its leader.
        _, _, body = eventually(lambda: (got := channel.basic_get(queue_name, auto_ack=True))[0] and got)
    assert body == b"kept"


def test_a_frozen_node_is_silent_until_it_is_thawed(own_node):
    """freeze() stops the answers and keeps the connections; thaw() brings the answers."""
    with connect(own_node) as connection, socket.create_connection(("127.0.0.1", own_node.port)) as newcomer:
        own_node.freeze()
        newcomer.sendall(b"AMQP\x00\x00\x09\x01")
        newcomer.settimeout(0.5)
        with pytest.raises(TimeoutError):
            newcomer.recv(1)
        own_node.thaw()
        newcomer.settimeout(10)
        assert newcomer.recv(1) == b"\x01"
        assert connection.channel().is_open


def test_a_stopped_node_leaves_no_process_and_no_file(tmp_path):
    """stop() ends all that start() started, and removes all that it wrote."""
    before = set(psutil.Process().children(recursive=True))
    with PrivateRabbitmq(root=tmp_path) as node:
        node.ctl("--quiet", "list_queues")
        started = set(psutil.Process().children(recursive=True)) - before
        assert node.pid in {process.pid for process in started}
        assert len(list(tmp_path.iterdir())) == 1
    assert not still_running(started)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", node.port))


def test_a_node_does_not_outlive_a_python_that_was_killed(tmp_path):
    """When no cleanup of Python's can run, the node, its epmd and its folder go all the same."""
    program = """if True:
        import sys, time
        from pathlib import Path
        from workerkit.testing.rabbitmq import PrivateRabbitmq
        PrivateRabbitmq(root=Path(sys.argv[1])).start()
        print("started", flush=True)
        time.sleep(600)
    """
    with subprocess.Popen([sys.executable, "-c", program, tmp_path], stdout=subprocess.PIPE, text=True) as python:
        assert python.stdout.readline() == "started\n"
        started = psutil.Process(python.pid).children(recursive=True)
        assert len(started) >= 3
        os.kill(python.pid, signal.SIGKILL)
    eventually(lambda: not still_running(started))
    eventually(lambda: not list(tmp_path.iterdir()))


def test_a_node_that_cannot_start_shows_its_log(tmp_path):
    """A start that fails is an error that holds the reason, and leaves nothing behind."""
    node = PrivateRabbitmq(root=tmp_path)
    taken = socket.create_server(("127.0.0.1", node.port))
    with taken, pytest.raises(ConnectionFailed, match=r"(?s)end of its log:.*eaddrinuse"), node:
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may use a chroot")
def test_a_missing_rabbitmq_is_named_with_the_remedy(tmp_path):
    """Without RabbitMQ the error says what to run."""
    with pytest.raises(RabbitmqMissing, match=r"scripts/rabbitmq-next\.sh"):
        ChrootRabbitmq(tmp_path).start()


def test_a_newer_rabbitmq_runs_from_its_chroot(rabbitmq_next, queue_name):
    """The newer node is as usable as the machine's, and its mounts are seen by nobody else."""
    assert tuple(map(int, rabbitmq_next.version.split(".")[:2])) >= (4, 3)
    with connect(rabbitmq_next) as connection:
        connection.channel().queue_declare(queue_name, durable=True, arguments={"x-queue-type": "quorum"})
    assert queue_name in rabbitmq_next.ctl("--quiet", "list_queues", "name")
    assert str(rabbitmq_next.chroot) not in Path("/proc/self/mounts").read_text()
