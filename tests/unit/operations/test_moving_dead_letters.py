"""Dead letters that are moved or dropped: what counts as done, and which failure is told."""

from workerkit.errors import ConnectionLost
from workerkit.operations.dead_letters import _Moving
from workerkit.operations.letters import DeadLetter, Matching
from workerkit.ports import Delivery


class Browsing:
    """A dead-letter queue whose channel is gone."""

    def ack(self, _delivery: Delivery) -> None:
        raise ConnectionLost("the channel is closed")


def test_what_fails_after_the_confirm_is_a_failure_too() -> None:
    """A dead letter that cannot be taken out is in both queues: that is told, and no more are moved."""
    progress: list[tuple[int, int]] = []
    moving = _Moving("q.dead", 1, Matching(), lambda done, total: progress.append((done, total)))
    letter = DeadLetter(1, Delivery("q.dead", "", "q.dead", False, 1, b"\0\0", b""))
    moving.end(letter, Browsing(), None)  # type: ignore[arg-type] # the copy is confirmed
    moved = moving.result()
    assert moving.failed
    assert isinstance(moved.error, ConnectionLost)
    assert moved.done == 0
    assert progress == [(0, 1)]
