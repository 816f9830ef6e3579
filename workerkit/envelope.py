"""A message that comes back, or is kept: its copies, what they say, and what is read from them.

The same on every broker: AMQP's encoded properties are the envelope of a message everywhere. What only one broker
writes into it, or forbids, its adapter says with ``drop`` and ``limit``.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable

from workerkit import headers
from workerkit.message import Incoming
from workerkit.properties import decode_headers, header_number, rewrite
from workerkit.settlement import Cause, Release, RetryLater
from workerkit.timestamps import timestamp

DEAD_SUFFIX = ".dead"

Drop = Callable[[str], bool]
"""Whether a copy must not carry the header of this name."""

LIMIT = 1_000_000
"""Bytes for all properties of a copy, where a broker has no limit of its own."""
_TEXT_LIMIT = 2_000
"""Characters of a cause's message, and of its exception's name."""
_NAME_LIMIT = 255
_TRACEBACK_LIMIT = 32_000
"""Bytes. Of a longer one the end is kept, where the error is."""
_STORY_LIMIT = 20_000
"""Bytes of all that a dead letter tells beside the traceback, at most: two texts and some names, at 4 per character."""
_NO_PROPERTIES = b"\0\0"
_FIRST = (headers.EXCHANGE, headers.ROUTING_KEY, headers.FIRST_FAILED_AT)
"""What the first copy says for all that come after it. The copies themselves go straight to a queue."""
_Headers = dict[str, str | int | None]
"""None: this one is not written."""

# Properties that a copy must not carry: an expiration would delete it from where it waits; a user_id that is not the
# publishing connection's own is refused (https://www.rabbitmq.com/docs/validated-user-id).
_WITHOUT = ("expiration", "user_id")


def dead_queue_name(queue: str) -> str:
    """Where the dead letters of ``queue`` are kept."""
    return queue + DEAD_SUFFIX


def is_dead_queue_name(name: str) -> bool:
    """Whether a queue of this name keeps dead letters."""
    return name.endswith(DEAD_SUFFIX)


def attempt_of(raw_properties: bytes) -> int:
    """The 1-based number of the run that this message comes for, as its header says; without one, the first."""
    return header_number(raw_properties, headers.ATTEMPT) or 1


def is_alone(raw_properties: bytes) -> bool:
    """Whether its attempts must not share a process with others, as it has killed one in which it ran alone."""
    return header_number(raw_properties, headers.ALONE) > 0


def _keep_all(_name: str) -> bool:
    return False


def retry_copy(
    message: Incoming, later: RetryLater, *, losses: int = 0, drop: Drop = _keep_all, limit: int = LIMIT
) -> bytes:
    """Properties of the copy that comes back as the next attempt.

    Args:
        message: the original.
        later: which attempt, and whether it runs alone. Once alone, always alone.
        losses: how often the message has lost its whole worker, where the broker counts that.
        drop: headers that the copy must not carry.
        limit: bytes for all properties; headers that do not fit are left out, ours excepted.
    """
    ours: _Headers = {
        headers.ATTEMPT: later.attempt,
        headers.FIRST_FAILED_AT: timestamp(),
        headers.ALONE: int(later.alone) or None,
        headers.LOSSES: losses or None,
    }
    return _copy(message, ours, drop, limit)


def released_copy(
    message: Incoming, release: Release, *, losses: int = 0, drop: Drop = _keep_all, limit: int = LIMIT
) -> bytes:
    """Properties of the copy of a message that is put back: the same attempt. Arguments as for ``retry_copy``."""
    ours: _Headers = {headers.RELEASES: release.releases or None, headers.LOSSES: losses or None}
    return _copy(message, ours, drop, limit)


def dead_letter(message: Incoming, cause: Cause, worker: str, *, drop: Drop = _keep_all, limit: int = LIMIT) -> bytes:
    """Properties of the dead letter: the original's, and the whole story of its end."""
    room = min(limit - len(message.raw_properties) - _STORY_LIMIT, _TRACEBACK_LIMIT)
    traceback = cause.traceback.encode()[-room:].decode("utf-8", "ignore") if room > 0 else ""
    story: _Headers = {
        headers.REASON: cause.reason.value,
        headers.MESSAGE: cause.message[:_TEXT_LIMIT],
        headers.EXCEPTION: cause.exception[:_TEXT_LIMIT] or None,
        headers.TRACEBACK: traceback or None,
        headers.SIGNAL: cause.signal,
        headers.EXIT_CODE: cause.exit_code,
        headers.QUEUE: message.queue,
        headers.WORKER: worker,
        headers.HOST: socket.gethostname(),
        headers.PID: os.getpid(),
        headers.FIRST_FAILED_AT: timestamp(),
        headers.FAILED_AT: timestamp(),
    }
    return _copy(message, story, drop, limit)


def replayed(raw_properties: bytes, *, drop: Drop = _keep_all) -> bytes:
    """Properties of a dead letter that goes back to its queue: a first attempt again, without the story.

    Raises:
        ValueError: its properties cannot be read.
    """
    stays = (headers.EXCHANGE, headers.ROUTING_KEY)
    return rewrite(
        raw_properties,
        drop=lambda name: drop(name) or (name.startswith(headers.PREFIX) and name not in stays),
        add={headers.REPLAYED_AT: timestamp()},
        without=_WITHOUT,
    )


def _copy(message: Incoming, ours: _Headers, drop: Drop, limit: int) -> bytes:
    """The original's properties with our headers. A message whose headers cannot be copied is still not lost."""
    raw = message.raw_properties
    add: dict[str, str | int] = {
        headers.ATTEMPT: message.attempt,
        headers.EXCHANGE: message.exchange,
        headers.ROUTING_KEY: message.routing_key,
    }
    add |= {name: value for name, value in ours.items() if value is not None}
    try:
        known = decode_headers(raw)
        add |= {name: str(known[name])[:_NAME_LIMIT] for name in _FIRST if name in add and name in known}
        copy = rewrite(raw, drop=drop, add=add, without=_WITHOUT)
        if len(copy) <= limit:
            return copy
        note = {headers.HEADERS_DROPPED: "too big for a copy"}
        return rewrite(raw, drop=lambda _name: True, add=add | note, without=_WITHOUT)
    except ValueError as error:
        note = {headers.HEADERS_DROPPED: str(error)[:_TEXT_LIMIT]}
        return rewrite(_NO_PROPERTIES, drop=drop, add=add | note)
