"""The conditions under which all clients are measured: one base, and one axis changed at a time."""

from __future__ import annotations

from dataclasses import dataclass, replace

SECONDS = 1.8
"""How long a run should consume."""


@dataclass(frozen=True)
class Scene:
    """One set of conditions.

    Attributes:
        key: for the command line.
        queue_type: ``quorum`` or ``classic``.
        prefetch: messages that the broker hands out before it waits for acknowledgements.
        size: bytes of the payload.
        share: of its pace in the first scene that a client is expected to keep here.
        pace_limit: messages/s that no client is expected to exceed here. The two decide how many messages it gets.
    """

    key: str
    queue_type: str = "quorum"
    prefetch: int = 500
    size: int = 100
    share: float = 1.0
    pace_limit: int = 1_000_000

    @property
    def name(self) -> str:
        """As it stands in the report."""
        return f"{self.queue_type}, prefetch {self.prefetch}, {_SIZES[self.size]}"

    def messages(self, pace: int) -> int:
        """How many a client gets that does ``pace`` messages/s in the first scene."""
        return round(SECONDS * min(pace * self.share, self.pace_limit))


_SIZES = {100: "100 B", 10_000: "10 KB", 1_000_000: "1 MB"}

_BASE = Scene("base")

SCENES = (
    _BASE,
    replace(_BASE, key="classic", queue_type="classic"),
    replace(_BASE, key="prefetch-100", prefetch=100),
    replace(_BASE, key="prefetch-1", prefetch=1, share=0.6, pace_limit=3_000),
    replace(_BASE, key="10KB", size=10_000, share=0.8, pace_limit=15_000),
    replace(_BASE, key="1MB", size=1_000_000, share=0.05, pace_limit=220),
)
