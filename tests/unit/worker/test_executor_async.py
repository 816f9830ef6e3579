"""A real executor process that runs coroutines, several at once, its consumer played by the test."""

import time
from pathlib import Path

import pytest
from support.link_peer import Peer

from workerkit import Cause, Reason
from workerkit.settlement import RELEASE, Verb
from workerkit.worker.link import Aftermath, deliver_frames

TASK = '''
import asyncio, os, sys, time
import structlog
from workerkit import WorkerTask

class Jobs(WorkerTask):
    queue = "jobs"
    concurrency = 3

    async def initialize(self):
        super().initialize()
        self.gate = asyncio.Event()
        self.loop_of_initialize = asyncio.get_running_loop()
        self.background = asyncio.create_task(self.run_in_background())

    async def run_in_background(self):
        try:
            await asyncio.Event().wait()
        finally:
            self.logger.info("background over")

    async def callback(self, message):
        what = message.data
        if isinstance(what, list):
            what, argument = what
        self.logger.info("began", what=what)
        await getattr(self, what)(message)

    async def ack(self, message):
        assert asyncio.get_running_loop() is self.loop_of_initialize
        message.ack()

    async def wait(self, message):
        """Until somebody opens the gate."""
        try:
            await self.gate.wait()
            message.ack()
        finally:
            os.mkdir(os.environ["GO_ON"] + "-finally")  # also seen when it runs while the interpreter is taken apart

    async def open(self, message):
        self.gate.set()
        message.ack()

    async def verbs(self, message):
        await asyncio.sleep(0)
        message.publish("next", {"n": 1}, delay=5)
        message.publish("next", {"n": 2})
        message.ack()

    async def nack(self, message):
        await asyncio.sleep(0)
        message.publish("next", {})
        message.nack()

    async def forget(self, message):
        await asyncio.sleep(0)

    async def fail(self, message):
        await asyncio.sleep(0)
        raise ValueError("no")

    async def block(self, message):
        await asyncio.sleep(0)
        while not os.path.exists(os.environ["GO_ON"]):
            time.sleep(0.01)
        message.ack()

    async def block_in_a_task(self, message):
        await asyncio.create_task(self.block(message))

    async def exit(self, message):
        await asyncio.sleep(0)
        sys.exit(3)

    async def exit_in_a_task(self, message):
        async def leave():
            await asyncio.sleep(0)
            sys.exit(4)
        asyncio.create_task(leave(), name="leave")
        await self.gate.wait()

    async def interrupt(self, message):
        await asyncio.sleep(0)
        os.kill(os.getpid(), 2)
        for _ in range(1000):
            time.sleep(0.001)

    async def memory(self, message):
        await asyncio.sleep(0)
        raise MemoryError

    async def kill(self, message):
        await asyncio.sleep(0)
        os.kill(os.getpid(), 9)

    async def stubborn(self, message):
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            message.ack()

    async def cancels_itself(self, message):
        inner = asyncio.ensure_future(asyncio.sleep(60))
        inner.cancel()
        await inner

    async def look(self, message):
        while not message.lost:
            await asyncio.sleep(0.001)
        self.logger.info("lost", armed=len(self.shutdown_helper.messages))
        message.release()

    async def fork(self, message):
        await asyncio.sleep(0)
        child = os.fork()
        if child == 0:
            message.nack()
            return
        message.publish("next", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        self.logger.info("the child is gone")
        await self.gate.wait()
        message.ack()

    async def fork_and_wait(self, message):
        await asyncio.sleep(0)
        child = os.fork()
        if child == 0:
            for _ in range(1000):
                await asyncio.sleep(0)
        message.publish("next", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        message.ack()

    async def break_(self, message):
        message._handle = None
        message.ack()

    async def name_the_loop(self, message):
        self.logger.info("loop", module=type(asyncio.get_running_loop()).__module__)
        message.ack()

    async def bind(self, message):
        structlog.contextvars.bind_contextvars(mine=1)
        message.ack()

    async def stop_the_loop(self, message):
        asyncio.get_running_loop().stop()
        message.ack()

    async def spin(self, message):
        pid = os.getpid()
        while True:
            await asyncio.sleep(0)
            if os.getpid() != pid:
                os.mkdir(os.environ["GO_ON"] + "-spun")

    async def log(self, message):
        structlog.contextvars.bind_contextvars(mine=message.message_id)
        await self.gate.wait()
        self.logger.info("mine")
        await asyncio.to_thread(self.logger.info, "in a thread")
        message.ack()

    async def shutdown(self, message, cause):
        self.logger.critical("shutdown", reason=cause.reason.value)
        await asyncio.sleep(60 if message.data == "slow" else 0.2)
        self.logger.critical("shutdown over", frozen_ran=self.gate.is_set())


class DiesTwice(Jobs):
    async def shutdown(self, message, cause):
        self.logger.critical("shutdown", reason=cause.reason.value)
        await asyncio.create_task(self.exit(message))


class OpensTheGateAtDeath(Jobs):
    """What waits could go on now, if it was let."""

    async def shutdown(self, message, cause):
        self.gate.set()
        await super().shutdown(message, cause)
'''


@pytest.fixture
def start(tmp_path: Path):
    (tmp_path / "jobs.py").write_text(TASK)
    peers = []

    def start(name: str = "Jobs", **config) -> Peer:
        peer = Peer(f"jobs:{name}", tmp_path, config, {"GO_ON": str(tmp_path / "go-on")})
        peers.append(peer)
        assert peer.ready().asynchronous
        return peer

    yield start
    for peer in peers:
        peer.__exit__()


@pytest.fixture
def peer(start) -> Peer:
    return start()


def test_as_many_run_as_there_are_slots_in_the_order_they_came(peer: Peer) -> None:
    """The fourth begins when one of the first three is over."""
    waiting = peer.deliver("wait", "wait", "ack", "wait", "ack")
    peer.until(lambda: peer.running() == [waiting[0], waiting[1], waiting[3]])
    assert peer.acknowledged() == {waiting[2]}
    assert [line["message_id"] for line in peer.log if line["event"] == "began"] == ["m1", "m2", "m3", "m4"][
        : len(peer.log)
    ]


def test_with_one_slot_messages_run_one_after_the_other(start) -> None:
    """As a plain callback does."""
    peer = start(concurrency=1)
    first, second = peer.deliver("wait", "ack")
    peer.event("began")
    assert peer.running() == [first]
    peer.cancel(first)
    peer.until(lambda: peer.acknowledged() == {second})


def test_each_verb_comes_from_a_coroutine_as_from_a_function(peer: Peer) -> None:
    """Messages to publish go with the acknowledgement, and with nothing else."""
    acked, nacked, forgotten, failed = peer.deliver("verbs", "nack", "forget", "fail")
    outcome = peer.outcome(acked)
    assert (outcome.verb, [message.delay for message in outcome.publish]) == (Verb.ACK, [5.0, None])
    assert (peer.outcome(nacked).cause, peer.outcome(nacked).publish) == (Cause(Reason.NACKED, "nack() was called"), ())
    assert peer.outcome(forgotten).cause.reason is Reason.UNSETTLED
    assert (peer.outcome(failed).cause.reason, peer.outcome(failed).cause.message) == (Reason.EXCEPTION, "no")
    peer.until(lambda: peer.running() == [])


def test_a_cancelled_callback_has_timed_out_and_its_finally_blocks_ran(peer: Peer, tmp_path: Path) -> None:
    """The cause shows where it was waiting; the others go on."""
    first, second = peer.deliver("wait", "wait")
    peer.until(lambda: peer.running() == [first, second])
    peer.cancel(first)
    cause = peer.outcome(first).cause
    assert (cause.reason, cause.message) == (
        Reason.TIMEOUT,
        "the callback ran longer than its limit and was cancelled",
    )
    assert "await self.gate.wait()" in cause.traceback
    assert (tmp_path / "go-on-finally").exists()
    (tmp_path / "go-on-finally").rmdir()
    peer.deliver("open")
    peer.until(lambda: second in peer.acknowledged())


def test_a_callback_that_swallows_its_cancellation_keeps_its_own_outcome(peer: Peer) -> None:
    """It acknowledged: that counts."""
    (seq,) = peer.deliver("stubborn")
    peer.event("began")
    peer.cancel(seq)
    peer.until(lambda: seq in peer.acknowledged())
    assert peer.settled == {}


def test_what_is_cancelled_in_the_moment_it_arrives_is_settled_all_the_same(peer: Peer) -> None:
    """A coroutine that is cancelled before its first step would have nothing to settle with."""
    (seq,) = peer.deliver("wait")
    peer.cancel(seq)
    assert peer.outcome(seq).cause.reason is Reason.TIMEOUT


def test_a_cancellation_that_is_not_the_workers_is_a_failed_attempt(peer: Peer) -> None:
    """Awaiting what somebody else has cancelled raises the same exception."""
    (seq,) = peer.deliver("cancels_itself")
    assert (peer.outcome(seq).cause.reason, peer.outcome(seq).cause.exception) == (
        Reason.EXCEPTION,
        "asyncio.exceptions.CancelledError",
    )


@pytest.mark.parametrize("what", ["block", "block_in_a_task"])
def test_a_callback_that_blocks_the_loop_is_named_in_the_page(what: str, peer: Peer, tmp_path: Path) -> None:
    """The beat stands still and the step says whose it is; afterwards both go on."""
    peer.until(lambda: peer.page.last_beat[0] and peer.page.last_beat[1] == 0)
    waiting, blocking = peer.deliver("wait", what)
    peer.until(lambda: peer.page.last_beat[1] == blocking)
    beat, _ = peer.page.last_beat
    time.sleep(0.6)  # more than two beats
    assert peer.page.last_beat == (beat, blocking)
    (tmp_path / "go-on").touch()
    peer.until(lambda: peer.page.last_beat[0] > beat)
    peer.until(lambda: peer.page.last_beat[1] == 0)
    assert peer.running() == [waiting]


def test_what_was_voided_before_it_began_is_not_started(peer: Peer) -> None:
    """Though it was sent and waits behind others."""
    running = peer.deliver("wait", "wait", "wait")
    peer.until(lambda: peer.running() == running)
    voided, last = peer.deliver("ack", "ack")
    peer.page.void(peer.sent[voided].slot, voided)
    peer.cancel(running[0])
    peer.until(lambda: last in peer.acknowledged())
    peer.outcome(*peer.deliver("nack"))
    assert voided not in peer.acknowledged()
    assert voided not in peer.settled
    assert peer.page.is_over(peer.sent[voided])


def test_a_message_that_is_lost_says_so(peer: Peer) -> None:
    """The callback can stop what it does; it stays armed until it is over."""
    (seq,) = peer.deliver("look")
    peer.event("began")
    peer.page.void(peer.sent[seq].slot, seq, lost=True)
    assert peer.event("lost")["armed"] == 1
    assert peer.outcome(seq) == RELEASE


@pytest.mark.parametrize(
    ("what", "reason", "code"),
    [
        ("exit", Reason.EXIT, 3),
        ("exit_in_a_task", Reason.EXIT, 4),
        ("interrupt", Reason.SIGNAL, 130),
        ("memory", Reason.MEMORY, 70),
    ],
)
def test_what_ends_the_interpreter_names_its_message_and_the_others_stand_still(
    what: str, reason: Reason, code: int, start, tmp_path: Path
) -> None:
    """Shutdown runs for the one to blame. Of the others, whose wait is over meanwhile, not a line runs any more."""
    peer = start("OpensTheGateAtDeath")
    first, second = peer.deliver("wait", "wait")
    peer.until(lambda: peer.running() == [first, second])
    (culprit,) = peer.deliver(what)
    dying = peer.death()
    assert (dying.seq, dying.cause.reason) == (culprit, reason)
    assert peer.outcome(culprit).cause == dying.cause
    assert peer.exit_code() == code
    assert peer.event("shutdown over")["frozen_ran"]
    assert {line["message_id"] for line in peer.log if line["event"].startswith("shutdown")} == {"m3"}
    assert not (tmp_path / "go-on-finally").exists()
    assert peer.acknowledged() == set()
    assert {first, second} <= set(peer.running())


def test_nothing_is_started_in_an_executor_that_dies(peer: Peer) -> None:
    """What comes while shutdown runs is the replacement's."""
    (culprit,) = peer.deliver("exit")
    peer.event("shutdown")
    (late,) = peer.deliver("ack")
    peer.outcome(culprit)
    assert peer.exit_code() == 3
    assert peer.running() == []
    assert late not in peer.acknowledged()


@pytest.mark.parametrize(("what", "code"), [("exit", 3), ("exit_in_a_task", 4)])
def test_a_shutdown_that_ends_the_interpreter_itself_leaves_its_message_nacked(what: str, code: int, start) -> None:
    """For the cause of the first death, which is told once."""
    peer = start("DiesTwice")
    (culprit,) = peer.deliver(what)
    dying = peer.death()
    assert peer.outcome(culprit).cause == dying.cause
    assert peer.exit_code() == code
    assert len([line for line in peer.log if line["event"] == "shutdown"]) == 1
    assert peer._frames == []


def test_a_kill_leaves_the_page_telling_which_ran(peer: Peer) -> None:
    """Those that ran, those that were done, and nobody to blame yet."""
    done, first, second, killer, _waiting = peer.deliver("ack", "wait", "wait", "kill", "ack")
    assert peer.exit_code() == -9
    assert peer.running() == [first, second, killer]
    assert peer.acknowledged() == {done}


def test_a_child_that_comes_back_from_a_coroutine_does_not_go_on_as_the_executor(peer: Peer) -> None:
    """The next message is not its business; the page and the link are its parent's."""
    first, second, forking, after = peer.deliver("wait", "wait", "fork", "ack")
    peer.event("the child is gone")
    assert peer.running() == [first, second, forking]
    peer.cancel(first)
    peer.until(lambda: after in peer.acknowledged())
    peer.deliver("open")
    assert [message.body for message in peer.outcome(forking).publish] == [b"0"]


def test_a_child_that_awaits_something_ends_there(peer: Peer, tmp_path: Path) -> None:
    """The loop is its parent's, and so are all other callbacks on it."""
    _, forking = peer.deliver("spin", "fork_and_wait")
    assert [message.body for message in peer.outcome(forking).publish] == [b"0"]
    assert not (tmp_path / "go-on-spun").exists()


def test_log_lines_carry_the_message_they_belong_to(peer: Peer) -> None:
    """Also in threads and with what the callback has bound, though several run at once."""
    peer.deliver("log", "log", attempt=2)
    peer.until(lambda: len(peer.running()) == 2)
    peer.deliver("open")
    for number in ("m1", "m2"):
        for name in ("mine", "in a thread"):
            line = peer.event(name, message_id=number)
            assert (line["mine"], line["attempt"], line["queue"]) == (number, 2, "jobs")


def test_what_one_message_has_bound_to_its_log_is_not_in_the_next_ones(start) -> None:
    """Though the next one is started by the end of the one before."""
    peer = start(concurrency=1)
    peer.deliver("bind", "ack")
    assert "mine" not in peer.event("began", message_id="m2")
    peer.until(lambda: len(peer.acknowledged()) == 2)


def test_an_interrupt_while_no_callback_has_the_loop_is_nobodys_doing(peer: Peer, tmp_path: Path) -> None:
    """The consumer decides what it means for those that were waiting for something."""
    (seq,) = peer.deliver("wait")
    peer.event("began")
    peer.until(lambda: peer.page.last_beat[1] == 0)
    time.sleep(0.1)  # in the loop's own wait
    peer.process.send_signal(2)
    dying = peer.death()
    assert (dying.seq, dying.cause.reason) == (None, Reason.SIGNAL)
    assert peer.exit_code() == 130
    assert peer.running() == [seq]
    assert not (tmp_path / "go-on-finally").exists()


def test_a_callback_that_stops_the_loop_does_not_stop_the_worker(peer: Peer) -> None:
    """It is started again."""
    (first,) = peer.deliver("stop_the_loop")
    peer.until(lambda: peer.acknowledged() == {first} and peer.running() == [])
    (second,) = peer.deliver("ack")
    peer.until(lambda: peer.acknowledged() == {first, second})


def test_an_error_of_the_workers_own_ends_the_executor(peer: Peer) -> None:
    """Asyncio would keep it in the task, and the message in its slot for ever."""
    (seq,) = peer.deliver("break_")
    assert peer.exit_code() == 1
    assert peer.running() == [seq]


def test_a_background_task_of_initialize_is_ended_with_the_executor(peer: Peer) -> None:
    """As asyncio.run does it: cancelled, and waited for."""
    peer.deliver("ack")
    peer.stop()
    assert peer.exit_code() == 0
    assert [line["event"] for line in peer.log][-1] == "background over"


def test_the_aftermath_can_be_cancelled(peer: Peer) -> None:
    """A shutdown that takes too long has failed, and its message is nacked."""
    cause = Cause(Reason.SIGNAL, "killed by signal 9 (SIGKILL)", signal=9)
    delivery = peer.make(b'"slow"')
    peer.tell_aftermath(delivery, Aftermath(cause))
    peer.event("shutdown")
    peer.cancel(delivery.seq)
    assert peer.outcome(delivery.seq).cause == cause
    assert peer.event("shutdown.failed")["error"] == "asyncio.exceptions.CancelledError"


def test_the_aftermath_comes_before_new_work(peer: Peer) -> None:
    """One after the other; what shutdown leaves unsettled is nacked with the cause."""
    cause = Cause(Reason.SIGNAL, "killed by signal 9 (SIGKILL)", signal=9)
    first, second, settled = peer.make(), peer.make(), peer.make()
    peer.tell_aftermath(first, Aftermath(cause))
    peer.tell_aftermath(second, Aftermath(cause))
    peer.tell_aftermath(settled, Aftermath(cause, Verb.ACK))
    (work,) = peer.deliver("ack")
    peer.until(lambda: work in peer.acknowledged())
    assert peer.outcome(first.seq).cause == peer.outcome(second.seq).cause == cause
    assert settled.seq not in peer.settled
    peer.event("began")
    events = [(line["event"], line["message_id"]) for line in peer.log]
    assert events == [
        *((event, f"m{number}") for number in (1, 2, 3) for event in ("shutdown", "shutdown over")),
        ("began", "m4"),
    ]


def test_stop_comes_after_what_was_sent_before(peer: Peer) -> None:
    """Those that run end, those that wait run, then it ends with exit code 0 and its loop is done."""
    seqs = peer.deliver("wait", "wait", "wait", "open")
    peer.stop()
    peer.cancel(seqs[0])
    assert peer.exit_code() == 0
    assert peer.acknowledged() == set(seqs[1:])
    assert peer.page.last_beat == (peer.page.last_beat[0], 0)


def test_the_end_of_the_link_ends_it(peer: Peer) -> None:
    """The consumer is gone: what runs counts for nobody any more."""
    peer.deliver("wait")
    peer.event("began")
    peer._sock.shutdown(2)
    assert peer.process.wait(20) == 0


def test_the_loop_is_uvloops_where_that_can_be_imported(start, tmp_path: Path) -> None:
    """A module of that name stands in for it: what matters is that it is asked, and never needed."""
    (tmp_path / "uvloop.py").write_text(
        "import asyncio\nclass Loop(asyncio.SelectorEventLoop): pass\ndef new_event_loop(): return Loop()\n"
    )
    peer = start()
    peer.deliver("name_the_loop")
    assert peer.event("loop")["module"] == "uvloop"


def test_many_short_messages_in_pieces(start) -> None:
    """Each exactly once, in order, though they come in one write."""
    peer = start(concurrency=20)
    deliveries = [peer.make(b'"ack"') for _ in range(1000)]
    peer.send(*deliver_frames(deliveries, peer._queues))
    peer.until(lambda: len(peer.acknowledged()) == 1000)
