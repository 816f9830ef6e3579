"""A real executor process that runs plain callbacks, its consumer played by the test."""

from pathlib import Path

import pytest
from support.link_peer import Peer

from workerkit import Cause, Reason
from workerkit.settlement import ACK, RELEASE, Verb
from workerkit.worker.link import Aftermath, deliver_frames

TASK = """
import os, sys
from workerkit import WorkerTask

class Jobs(WorkerTask):
    queues = {"urgent": 2, "bulk": 1}
    def callback(self, message):
        what = message.data
        if what == "exit":
            sys.exit(3)
        if what == "kill":
            os.kill(os.getpid(), 9)
        if what == "fork":
            if os.fork() == 0:
                message.nack()
                return
            os.wait()
        if what == "publish":
            message.publish("next", {"n": 1})
        if what in ("nack", "release", "retry"):
            getattr(message, what)()
            return
        if what == "where":
            self.logger.info("where", queue_seen=message.queue)
        message.ack()
"""


@pytest.fixture
def peer(tmp_path: Path):
    (tmp_path / "jobs.py").write_text(TASK)
    with Peer("jobs:Jobs", tmp_path, {}) as peer:
        resolved = peer.ready()
        assert (resolved.queues, resolved.asynchronous) == ({"urgent": 2, "bulk": 1}, False)
        yield peer


def test_acknowledgements_stand_in_the_page_and_other_verbs_come_as_frames(peer: Peer) -> None:
    """Each outcome where the consumer looks for it."""
    acked, nacked, released, retried, last = peer.deliver("ack", "nack", "release", "retry", "ack")
    peer.until(lambda: last in peer.acknowledged())
    assert peer.acknowledged() == {acked, last}
    assert peer.outcome(nacked).cause == Cause(Reason.NACKED, "nack() was called")
    assert peer.outcome(released) == RELEASE
    assert peer.outcome(retried).verb is Verb.RETRY
    peer.until(lambda: peer.running() == [])


def test_a_message_knows_its_queue_and_so_does_its_log(peer: Peer) -> None:
    """With several queues the name comes with each delivery."""
    peer.deliver("where", queue="bulk")
    line = peer.event("where", queue_seen="bulk")
    assert (line["queue"], line["message_id"], line["attempt"], line["worker"]) == ("bulk", "m1", 1, "jobs")


def test_what_is_published_comes_with_the_acknowledgement(peer: Peer) -> None:
    """In the same frame."""
    (seq,) = peer.deliver("publish")
    outcome = peer.outcome(seq)
    assert outcome.verb is Verb.ACK
    assert [(message.routing_key, message.body) for message in outcome.publish] == [("next", b'{"n":1}')]


def test_a_void_delivery_is_not_started(peer: Peer) -> None:
    """The next one is."""
    voided = peer.make(b'"ack"')
    peer.page.void(voided.slot, voided.seq)
    wanted = peer.make(b'"ack"')
    peer.send(*deliver_frames([voided, wanted], peer._queues))
    peer.until(lambda: wanted.seq in peer.acknowledged())
    assert peer.acknowledged() == {wanted.seq}


def test_sys_exit_names_its_message(peer: Peer) -> None:
    """DYING says which and why, shutdown settles, the exit code is the callback's."""
    (seq,) = peer.deliver("exit")
    dying = peer.death()
    assert (dying.seq, dying.cause.reason, dying.cause.exit_code) == (seq, Reason.EXIT, 3)
    assert peer.outcome(seq).cause == dying.cause
    assert peer.exit_code() == 3


def test_a_kill_leaves_the_page_telling_what_ran(peer: Peer) -> None:
    """And what was done before, and that nothing else was begun."""
    done, ran, _unstarted = peer.deliver("ack", "kill", "ack")
    assert peer.exit_code() == -9
    assert peer.running() == [ran]
    assert peer.acknowledged() == {done}


def test_a_child_that_the_callback_forked_does_not_speak_for_the_executor(peer: Peer) -> None:
    """It nacks and returns; the message is the parent's to acknowledge."""
    first, second = peer.deliver("fork", "ack")
    peer.until(lambda: {first, second} <= peer.acknowledged())
    assert peer.settled == {}


def test_the_aftermath_of_a_death_runs_shutdown_and_settles(peer: Peer) -> None:
    """One that was settled before its death is not settled again."""
    cause = Cause(Reason.SIGNAL, "killed by signal 9 (SIGKILL)", signal=9)
    peer.tell_aftermath(open_one := peer.make(), Aftermath(cause))
    peer.tell_aftermath(settled := peer.make(), Aftermath(cause, Verb.ACK))
    (after,) = peer.deliver("ack")
    peer.until(lambda: after in peer.acknowledged())
    assert peer.outcome(open_one.seq).cause == cause
    assert settled.seq not in peer.settled
    peer.until(lambda: [line["message_id"] for line in peer.log if line["event"] == "callback.died"] == ["m1", "m2"])


def test_stop_ends_it_after_what_was_sent_before(peer: Peer) -> None:
    """In order, with exit code 0."""
    (seq,) = peer.deliver("ack")
    peer.stop()
    assert peer.exit_code() == 0
    assert peer.acknowledged() == {seq}
    assert ACK.cause is None


COROUTINES_AROUND = """
import asyncio, sys
from workerkit import WorkerTask

class Jobs(WorkerTask):
    queue = "jobs"

    async def initialize(self):
        super().initialize()
        self.loop = asyncio.get_running_loop()
        await asyncio.sleep(0)

    def callback(self, message):
        if message.data == "exit":
            sys.exit(3)
        message.ack()

    async def shutdown(self, message, cause):
        await asyncio.sleep(0.01)
        assert asyncio.get_running_loop() is self.loop
        message.reject("shutdown was here")
"""


def test_initialize_and_shutdown_may_be_coroutines_around_a_plain_callback(tmp_path: Path) -> None:
    """They share one loop, which stands still in between; the same in the dying executor and in its replacement."""
    (tmp_path / "jobs.py").write_text(COROUTINES_AROUND)
    with Peer("jobs:Jobs", tmp_path, {}) as peer:
        assert not peer.ready().asynchronous
        peer.tell_aftermath(before := peer.make(), Aftermath(Cause(Reason.SIGNAL, "killed", signal=9)))
        done, died = peer.deliver("ack", "exit")
        assert peer.death().seq == died
        for seq in (before.seq, died):
            assert peer.outcome(seq).cause == Cause(Reason.REJECTED, "shutdown was here")
        assert peer.exit_code() == 3
        assert peer.acknowledged() == {done}
