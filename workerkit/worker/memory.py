"""Memory as the kernel sees it: what a process uses, and the limit and the kills of the cgroup (versions 1 and 2)."""

from __future__ import annotations

import contextlib
from pathlib import Path

_MEMBERSHIP = Path("/proc/self/cgroup")
_MOUNT = Path("/sys/fs/cgroup")
_UNLIMITED_V1 = 1 << 60
"""Version 1 says "no limit" with a number near 2**63."""
_PAGE_SIZE = 4096


def resident(pid: int) -> int:
    """Bytes of resident memory of a process; 0 when it is gone."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE_SIZE
    return 0


def cgroup_limit() -> int | None:
    """Bytes that this process' cgroup and its parents allow, None when nothing limits it."""
    limits = []
    for folder in _folders():
        for name in ("memory.max", "memory.limit_in_bytes"):
            value = _read(folder / name)
            if value.isdigit() and int(value) < _UNLIMITED_V1:
                limits.append(int(value))
    return min(limits, default=None)


def oom_kills() -> int:
    """How many processes of this cgroup the kernel's OOM killer has ended so far; 0 when that is not known."""
    for folder in _folders():
        for name in ("memory.events", "memory.oom_control"):
            for line in _read(folder / name).splitlines():
                key, _, value = line.partition(" ")
                if key == "oom_kill" and value.isdigit():
                    return int(value)
    return 0


def _folders() -> list[Path]:
    """The cgroup's own folder first, then its parents up to the mount."""
    for line in _read(_MEMBERSHIP).splitlines():
        _, controllers, path = line.split(":", 2)
        mount = _MOUNT / "memory" if "memory" in controllers.split(",") else _MOUNT
        if "memory" in controllers.split(",") or (not controllers and (mount / "cgroup.controllers").exists()):
            relative = Path(path.lstrip("/"))
            # Inside a container the path may be the host's: then only the mount itself is there.
            return [mount / part for part in (relative, *relative.parents) if (mount / part).is_dir()]
    return []


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
