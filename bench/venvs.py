"""Virtual environments of the peers, one for each file in ``bench/peers/*.txt``, made when first asked for."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parent / ".venvs"
"""Environments and what is compiled; not in git."""

_REQUIREMENTS = Path(__file__).parent / "peers"


def python_of(name: str) -> Path:
    """The interpreter that has the packages of a peer; ``workerkit`` is this interpreter.

    Makes the environment if there is none, or if its requirements or Python have changed.

    Args:
        name: ``pika``, ``amqp``, ``aio``, ``celery``, ``dramatiq``, ``taskiq`` or ``uvloop``, as the files; or
            ``workerkit``.

    Raises:
        subprocess.CalledProcessError: pip could not install; it has said why.
    """
    if name == "workerkit":
        return Path(sys.executable)
    requirements = _REQUIREMENTS / f"{name}.txt"
    folder = FOLDER / name
    python = folder / "bin" / "python"
    stamp = folder / "made-from"
    # A virtual environment holds absolute paths, so one that was copied or moved counts as changed.
    wanted = f"{folder} {sys.version}\n{requirements.read_text('utf-8')}"
    if stamp.exists() and stamp.read_text("utf-8") == wanted:
        return python
    print(f"bench: making the environment of {name}", flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    pip = [str(python), "-I", "-m", "pip", "install", "-qq", "--disable-pip-version-check"]
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    subprocess.run([*pip, "-r", str(requirements)], check=True)
    stamp.write_text(wanted, "utf-8")  # last: an interrupted installation starts again
    return python


def packages_of(name: str) -> Path:
    """The folder that holds the packages of an environment; makes it as ``python_of`` does."""
    (folder,) = python_of(name).parents[1].glob("lib/python3*/site-packages")
    return folder
