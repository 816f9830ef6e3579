"""Which of several queues gives the next message, chosen each time that a callback can be started."""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Callable, Mapping
from typing import Protocol

from workerkit.errors import ConfigurationError

_MEMORY = 64
"""Turns that a queue gets back which had nothing here for a moment, because its messages were still on their way."""
DRY = 0.05
"""Seconds without a delivery after which a queue counts as empty under ``strict`` that had more than it could send; a
broker takes some milliseconds to send what is there."""
MOMENT = 0.005
"""Likewise for a queue that had room all the time: it has sent what it had, but for what came with that. A selector
that waits is asked again after so long."""


class Strategy(Protocol):
    """What ``select: module:Class`` names. It is made with the weights by queue and runs in the consumer process, where
    it must not wait for anything; a worker whose strategy raises goes on with ``weighted``.
    """

    def choose(self, waiting: Mapping[str, int]) -> str:
        """The queue whose next message is to run. ``waiting`` has how many each queue has here, of those with any."""


class Selector:
    """How the worker asks."""

    def choose(self, waiting: Mapping[str, int], now: float) -> str | None:
        """The queue whose next message is to run; None to wait for a ``MOMENT``. ``now`` is monotonic."""
        raise NotImplementedError

    def on_open(self, queue: str, now: float) -> None:
        """The queue may send something: it is consumed from now on, or has room for more again."""

    def on_arrival(self, queue: str, now: float, *, full: bool) -> None:
        """Messages of the queue have arrived. ``full``: they fill its window, so there may be more of them."""


class Weighted(Selector):
    """Each queue gets its share of the starts, in proportion to its weight (stride scheduling).

    A queue that had nothing does not save up its turns, but for a few, as messages on their way are not missing.
    """

    def __init__(self, weights: Mapping[str, int]) -> None:
        self._strides = {queue: 1.0 / weight for queue, weight in weights.items()}
        self._passes = dict.fromkeys(weights, 0.0)
        self._pass = 0.0

    def choose(self, waiting: Mapping[str, int], now: float) -> str | None:  # noqa: ARG002 - Selector's signature
        passes, strides = self._passes, self._strides
        for queue in waiting:
            passes[queue] = max(passes[queue], self._pass - _MEMORY * strides[queue])
        chosen = min(waiting, key=passes.__getitem__)
        self._pass = max(self._pass, passes[chosen])
        passes[chosen] += strides[chosen]
        return chosen


class Strict(Selector):
    """The highest weight first; a lower queue only when every higher one is empty.

    Args:
        weights: by queue.
        starve_after: seconds after which a queue that has waited gets one turn all the same; None for never.
    """

    def __init__(self, weights: Mapping[str, int], starve_after: float | None) -> None:
        self._order = sorted(weights, key=weights.__getitem__, reverse=True)
        self._starve_after = starve_after
        self._since: dict[str, float] = {}  # which its message has been waiting that is next
        self._sent = dict.fromkeys(weights, math.inf)  # until it is consumed nobody knows what it has
        self._dry_after = dict.fromkeys(weights, DRY)

    def choose(self, waiting: Mapping[str, int], now: float) -> str | None:
        chosen = starving = None
        held = False
        for queue in self._order:
            if queue not in waiting:
                self._since.pop(queue, None)
                # Its next message may be on its way: what is lower must not start before that.
                if now - self._sent[queue] < self._dry_after[queue]:
                    held = True
                else:
                    self._dry_after[queue] = MOMENT
                continue
            waits = now - self._since.setdefault(queue, now)
            if starving is None and self._starve_after is not None and waits > self._starve_after:
                starving = queue
            if chosen is None and not held:
                chosen = queue
        chosen = starving or chosen
        if chosen is not None:
            self._since[chosen] = now
            if waiting[chosen] == 1:
                del self._since[chosen]  # nothing of it waits any more
        return chosen

    def on_open(self, queue: str, now: float) -> None:
        self._sent[queue] = now
        self._dry_after[queue] = DRY

    def on_arrival(self, queue: str, now: float, *, full: bool) -> None:
        self._sent[queue] = now
        if full:
            self._dry_after[queue] = DRY
        self._since.setdefault(queue, now)


class Custom(Weighted):
    """A user's strategy. What it gets wrong is reported once, and from then on ``weighted`` decides."""

    def __init__(self, strategy: Strategy, weights: Mapping[str, int], report: Callable[[str], None]) -> None:
        super().__init__(weights)
        self._strategy: Strategy | None = strategy
        self._report = report

    def choose(self, waiting: Mapping[str, int], now: float) -> str | None:
        if self._strategy is not None:
            try:
                chosen = self._strategy.choose(waiting)
                if chosen in waiting:
                    return chosen
                raise ValueError(f"it chose {chosen!r}, which has nothing waiting")
            except Exception as error:  # noqa: BLE001 - it is the user's code
                self._strategy = None
                self._report(f"{type(error).__name__}: {error}")
        return super().choose(waiting, now)


def make_selector(
    select: str,
    weights: Mapping[str, int],
    starve_after: float | None,
    report: Callable[[str], None],
    project_root: str = "",
) -> Selector:
    """The selector that ``select`` names.

    Args:
        select: ``weighted``, ``strict`` or ``module:Class``, a user's strategy.
        weights: by queue.
        starve_after: see ``Strict``.
        report: called with a text when a user's strategy fails.
        project_root: where that is imported from, besides what is installed.

    Raises:
        ConfigurationError: there is no such class, or it cannot be made.
    """
    if select == "weighted":
        return Weighted(weights)
    if select == "strict":
        return Strict(weights, starve_after)
    module, _, name = select.partition(":")
    if project_root and project_root not in sys.path:
        sys.path.insert(0, project_root)
    try:
        strategy = getattr(importlib.import_module(module), name)(dict(weights))
    except Exception as error:
        raise ConfigurationError(f"select: {select!r} cannot be used: {type(error).__name__}: {error}") from error
    return Custom(strategy, weights, report)
