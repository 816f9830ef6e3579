"""Supervisor's files: made from the YAML, or compared with it."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path

from workerkit.errors import ConfigurationError
from workerkit.operations.paths import shown_path
from workerkit.settings import LoadedSettings, redact_text
from workerkit.settings.secrets import MASK, is_secret
from workerkit.supervision import differences, render, write

_ENVIRONMENT_PAIR = re.compile(r"""^([-+ ]\s*)([A-Za-z_][A-Za-z0-9_]*)=(["']).*?(,?)$""")
"""A line of a diff that sets one variable of a worker."""


@dataclass(frozen=True, slots=True)
class Generated:
    """Supervisor's files are on disk as the YAML says.

    Attributes:
        folder: the project's ``supervisor/``, absolute.
        changed: the files that were created or changed.
    """

    folder: Path
    changed: tuple[Path, ...]

    @property
    def conf(self) -> Path:
        """What ``supervisord`` and ``supervisorctl`` are started with."""
        return self.folder / "supervisord.conf"


def generate(loaded: LoadedSettings) -> Generated:
    """Write Supervisor's files. Templates of the same names in ``supervisor/templates/`` replace the packaged ones.

    Raises:
        ConfigurationError: they cannot be made, or not be written.
    """
    folder = _folder(loaded)
    files = _render(loaded, folder)
    try:
        return Generated(folder, tuple(write(files, folder)))
    except OSError as error:
        raise ConfigurationError(f"{error.filename}: cannot be written: {error.strerror}") from error


def compare(loaded: LoadedSettings) -> str:
    """A unified diff from the files on disk to those that ``generate`` would write; empty when they are equal.

    Secrets are hidden in it: a diff goes to terminals and logs, the files themselves are for their owner only.

    Raises:
        ConfigurationError: the files cannot be made.
    """
    folder = _folder(loaded)
    diff = differences(_render(loaded, folder), folder)
    return "".join(f"{_without_secret(line)}\n" for line in diff.splitlines())


def _folder(loaded: LoadedSettings) -> Path:
    return loaded.project_root / "supervisor"


def _render(loaded: LoadedSettings, folder: Path) -> dict[str, str]:
    if (folder / "__init__.py").exists():
        raise ConfigurationError(
            f"{shown_path(folder / '__init__.py')}: makes this folder a Python package that hides the installed "
            "`supervisor`: remove it"
        )
    return render(
        loaded.settings,
        project_root=loaded.project_root,
        config_path=loaded.path,
        # -P: nothing that lies in the project's folder, where the workers run, takes the place of an installed module.
        command=[sys.executable, "-P", "-m", "workerkit"],
        overrides=folder / "templates",
    )


def _without_secret(line: str) -> str:
    pair = _ENVIRONMENT_PAIR.match(line)
    if pair and is_secret(pair[2]):
        return f"{pair[1]}{pair[2]}={pair[3]}{MASK}{pair[3]}{pair[4]}"
    return redact_text(line)
