"""What all tests share: real RabbitMQ nodes, queue names, and the rule that nothing is left running."""

import os
import secrets
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psutil
import pytest
from support.chroot import ChrootRabbitmq, ordinary_node, suite_folder

from workerkit.testing.rabbitmq import PrivateRabbitmq, RabbitmqMissing

NEXT_SUITE = "forky"


# A shell that starts something in the background has it ignore SIGINT, and so would everything that the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def nothing_left_running() -> Iterator[None]:
    """Set up before, and so taken down after, every other session fixture. Ends what it finds, and complains."""
    yield
    _, left = psutil.wait_procs(psutil.Process().children(recursive=True), timeout=5)
    found = []
    for process in left:
        with suppress(psutil.NoSuchProcess):
            command = " ".join(process.cmdline())
            if "multiprocessing.resource_tracker" not in command:  # Python's own; it ends with this process
                found.append(f"{process.pid}: {command}")
                process.kill()
    assert not found, f"processes that the tests started are still there: {found}"


@pytest.fixture(scope="session")
def rabbitmq() -> Iterator[PrivateRabbitmq]:
    """The node that all tests share. A test that kills or configures a node starts its own."""
    with _node_or_skip() as node:
        yield node


@pytest.fixture(scope="session")
def rabbitmq_next() -> Iterator[ChrootRabbitmq]:
    """A node of a newer RabbitMQ (4.3), shared likewise. Optional everywhere, as it takes root and a download."""
    chroot = suite_folder(NEXT_SUITE)
    if not chroot.is_dir():
        pytest.skip(f"there is no newer RabbitMQ in {chroot}; scripts/rabbitmq-next.sh makes it, or says why it cannot")
    if os.geteuid() != 0:
        pytest.skip(f"only root can start the newer RabbitMQ in {chroot}")
    with ChrootRabbitmq(chroot) as node:
        yield node


@pytest.fixture
def queue_name(request: pytest.FixtureRequest) -> str:
    """A name that no other test uses, and that says in RabbitMQ's log which test used it.

    Its last eight characters are unique too and begin with a letter: as plain YAML they are text, never a number.
    """
    return f"{request.node.name[:100]}-q{secrets.token_hex(4)[1:]}"


@contextmanager
def _node_or_skip() -> Iterator[PrivateRabbitmq]:
    """A started node. Without RabbitMQ on the machine: skip for a developer, fail in CI, where it would go unseen."""
    node = ordinary_node()
    try:
        node.start()
        yield node
    except RabbitmqMissing as missing:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(missing))
    finally:
        node.stop()
