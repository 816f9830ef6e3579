"""What a message reports to, in tests without a worker."""

from workerkit.settlement import Outcome


class RecordingHandle:
    """Keeps what was decided, and is lost when the test says so."""

    def __init__(self, sent: list[Outcome] | None = None) -> None:
        self.sent = [] if sent is None else sent
        self.lost = False

    def settle(self, outcome: Outcome) -> None:
        self.sent.append(outcome)
