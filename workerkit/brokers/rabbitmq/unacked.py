"""Which tags of a channel are unsettled, and which acknowledgements may share a frame."""

from __future__ import annotations

from collections.abc import Iterable


class Unacked:
    """The unsettled delivery tags of one channel, in order."""

    def __init__(self) -> None:
        self._tags: dict[int, None] = {}

    def __len__(self) -> int:
        return len(self._tags)

    def add(self, tag: int) -> None:
        """A delivery arrived; tags only grow."""
        self._tags[tag] = None

    def settle(self, tags: Iterable[int]) -> list[tuple[int, bool]]:
        """Take tags out; return the frames that settle them, as (tag, multiple).

        ``multiple`` settles every tag up to the given one, so it may reach as far as no unfinished message lies below:
        an acknowledgement must never cover a message whose callback runs or whose copy is not confirmed.
        """
        settled = sorted(tag for tag in tags if self._tags.pop(tag, _MISSING) is None)
        if not settled:
            return []
        first_open = next(iter(self._tags), settled[-1] + 1)
        run = [tag for tag in settled if tag < first_open]
        single = [(tag, False) for tag in settled[len(run) :]]
        return [(run[-1], len(run) > 1), *single] if run else single


_MISSING = object()
