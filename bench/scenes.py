"""The conditions under which all clients are measured: one base, and one axis changed at a time."""

from __future__ import annotations

from dataclasses import dataclass, replace

SECONDS = 1.3
"""How long a run should consume."""
MOST_PREFETCHED = 500
"""Messages that a client of the scenes takes ahead, where it does not take all that there are."""


@dataclass(frozen=True)
class Scene:
    """One set of conditions.

    Attributes:
        key: for the command line.
        title: in the report, before the size; None: the queue's type and the prefetch count.
        queue_type: ``quorum`` or ``classic``.
        prefetch: messages that the broker hands out before it waits for acknowledgements; None: what each client has
            by default, and then its measurement begins with its first message.
        pause: seconds for which a callback sleeps, as a coroutine; 0 for one that only acknowledges.
        size: bytes of the payload.
        share: of its pace in the first scene that a client is expected to keep here.
        most: messages that the queue may hold; bounds what the broker must keep.
    """

    key: str
    title: str | None = None
    queue_type: str = "quorum"
    prefetch: int | None = 500
    pause: float = 0.0
    size: int = 100
    share: float = 1.0
    most: int = 120_000

    @property
    def name(self) -> str:
        """As it stands in the report."""
        return f"{self.title or f'{self.queue_type}, prefetch {self.prefetch}'}, {_SIZES[self.size]}"

    @property
    def window(self) -> int:
        """How many messages a client may have at the end of its measurement."""
        return MOST_PREFETCHED if self.prefetch is None else self.prefetch

    def messages(self, rate: float) -> int:
        """How many a client gets that does so many a second; one prefetch window at each end is not measured."""
        return min(self.most, round(SECONDS * rate) + 2 * self.window)


_SIZES = {100: "100 B", 10_000: "10 KB", 1_000_000: "1 MB"}

_BASE = Scene("base")
DEFAULTS = Scene("defaults", title="quorum, default settings", prefetch=None)
ASYNC = Scene("async", title="quorum, 200 callbacks of 10 ms at once", prefetch=200, pause=0.01, most=40_000)
ASYNC_1000 = replace(
    ASYNC, key="async-1000", title="quorum, 1,000 callbacks of 10 ms at once", prefetch=1000, most=60_000
)

SCENES = (
    _BASE,
    replace(_BASE, key="classic", queue_type="classic"),
    replace(_BASE, key="prefetch-100", prefetch=100),
    replace(_BASE, key="prefetch-1", prefetch=1, share=0.2, most=7_000),
    replace(_BASE, key="10KB", size=10_000, share=0.5, most=30_000),
    replace(_BASE, key="1MB", size=1_000_000, share=0.05, most=400),
    DEFAULTS,
    ASYNC,
    ASYNC_1000,
)
