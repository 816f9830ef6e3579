"""Put Supervisor's files on disk, or say how the disk differs from them.

Other files in ``conf.d/`` are the project's own: Supervisor includes them, and nothing here touches them.
"""

import difflib
import os
import stat
import tempfile
from collections.abc import Mapping
from pathlib import Path

from workerkit.errors import ConfigurationError
from workerkit.supervision.generate import socket_path


def write(files: Mapping[str, str], folder: Path) -> list[Path]:
    """Write what ``render`` returned under ``folder``, and create the folders that the files speak of.

    Each file is replaced at once or not at all, and is readable by its owner only: environment values may be secrets.

    Args:
        files: text by path under ``folder``.
        folder: the ``supervisor/`` folder of the project, absolute.

    Returns:
        The files that were created or changed, in the order of ``files``.

    Raises:
        ConfigurationError: somebody else holds the folder that the control socket needs in ``/tmp``.
    """
    for name in ("conf.d", "log"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "run").mkdir(mode=0o700, exist_ok=True)
    socket_folder = socket_path(folder.parent).parent
    if not socket_folder.is_relative_to(folder):
        _make_private(socket_folder)

    changed = []
    for name, text in files.items():
        path = folder / name
        if _read(path) != text:
            _replace(path, text)
            changed.append(path)
    return changed


def differences(files: Mapping[str, str], folder: Path) -> str:
    """Return a unified diff from the files under ``folder`` to ``files``; '' when they are equal.

    A file that is missing counts as empty.
    """
    lines: list[str] = []
    for name, text in files.items():
        path = folder / name
        lines += difflib.unified_diff(
            (_read(path) or "").splitlines(keepends=True),
            text.splitlines(keepends=True),
            fromfile=str(path),
            tofile=f"{path} (generated)",
        )
    return "".join(line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in lines)


def _read(path: Path) -> str | None:
    try:
        # A file that someone saved in another encoding differs; it is no reason to fail.
        return path.read_text("utf-8", errors="backslashreplace")
    except FileNotFoundError:
        return None


def _replace(path: Path, text: str) -> None:
    # The temporary name must not match Supervisor's include pattern, conf.d/*.conf.
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".new")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            stream.write(text)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink()
        raise


def _make_private(folder: Path) -> None:
    """Create ``folder`` in ``/tmp`` for the control socket; one that exists must not be a trap laid by another user."""
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    ours = stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & 0o077
    if not ours:
        raise ConfigurationError(
            f"{folder} must be a folder of user {os.geteuid()} with mode 0700, for Supervisor's control socket: "
            "remove it and generate again"
        )
