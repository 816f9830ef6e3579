"""Which tags of a channel are unsettled, and which acknowledgements may share a frame."""

from __future__ import annotations

from collections.abc import Iterable

_MOST_AHEAD = 10_000
"""Settled numbers that are remembered one by one: a message that runs for hours must not cost memory for each that is
settled meanwhile."""


class Unacked:
    """The unsettled delivery tags of one channel.

    A channel numbers its deliveries 1, 2, 3 … (AMQP 0-9-1, section 1.1 "delivery-tag" and RabbitMQ's guide on
    confirms), and they are settled in about that order: so what is unsettled is everything from the lowest such number
    to the last arrival, less the few that finished ahead. When these are no longer few, what is unsettled is remembered
    instead, as that which is late.
    """

    def __init__(self) -> None:
        self._lowest = 1
        self._last = 0
        self._ahead: set[int] = set()
        self._late: set[int] = set()  # unsettled ones below the lowest

    def __len__(self) -> int:
        return self._last + 1 - self._lowest - len(self._ahead) + len(self._late)

    def add(self, first: int, last: int) -> None:
        """These have arrived. Tags between the last arrival and the first of these never will: pika has rejected them,
        as it does by itself (without its short cuts) while a subscription is cancelled.
        """
        if first > self._last + 1:
            self._ahead.update(range(self._last + 1, first))
        self._last = last

    def settle(self, tags: Iterable[int]) -> list[tuple[int, bool]]:
        """Take tags out; return the frames that settle them, as (tag, multiple).

        ``multiple`` settles every tag up to the given one, so it may reach as far as no unfinished message lies below:
        an acknowledgement must never cover a message whose callback runs or whose copy is not confirmed. Tags that are
        settled already, or have not arrived, are left out.
        """
        asked = list(tags)
        following = self._lowest + len(asked)
        if (
            not (self._ahead or self._late)
            and following <= self._last + 1
            and asked == list(range(self._lowest, following))
        ):
            self._lowest = following
            return [(following - 1, len(asked) > 1)] if asked else []
        late = sorted(self._late.intersection(asked)) if self._late else []
        self._late.difference_update(late)
        first = [(tag, False) for tag in late]
        lowest, ahead = self._lowest, self._ahead
        settled = sorted({tag for tag in asked if lowest <= tag <= self._last} - ahead)
        ahead.update(settled)
        while self._lowest in ahead:
            ahead.remove(self._lowest)
            self._lowest += 1
        run = [] if self._late else [tag for tag in settled if tag < self._lowest]
        single = [(tag, False) for tag in settled[len(run) :]]
        if len(ahead) > _MOST_AHEAD:
            self._late.update(tag for tag in range(self._lowest, self._last + 1) if tag not in ahead)
            self._lowest = self._last + 1
            self._ahead = set()  # a set that is cleared keeps its size
        return [*first, (run[-1], len(run) > 1), *single] if run else first + single

    def settle_all(self) -> list[tuple[int, bool]]:
        """Take all out; return the frame that settles them, if there are any."""
        last = self._last
        while last in self._ahead:  # a frame may not name what is settled already
            last -= 1
        if last < self._lowest:
            last = max(self._late, default=0)
        frames = [(last, True)] if last else []
        self._lowest = self._last + 1
        self._ahead.clear()
        self._late.clear()
        return frames
