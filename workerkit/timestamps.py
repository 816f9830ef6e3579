"""The one way in which workerkit writes a moment: in log lines and in the headers of copies."""

from __future__ import annotations

from datetime import UTC, datetime


def timestamp() -> str:
    """Now, as ISO 8601 in UTC with milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
