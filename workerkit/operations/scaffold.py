"""The first files of a project and of a worker.

Nothing that exists is overwritten. Either every file of an operation is written, or none stays.
"""

from __future__ import annotations

import keyword
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from string import Template

import msgspec

from workerkit.errors import BadData, ConfigurationError
from workerkit.operations import yaml_edit
from workerkit.operations.paths import shown_path
from workerkit.settings import LoadedSettings, WorkerSettings, load

_PROJECT = {
    "README.md": "README.md.tmpl",
    "config/workerkit.yaml": "workerkit.yaml.tmpl",
    "workers/__init__.py": "workers_package.py.tmpl",
    "workers/hello.py": "hello.py.tmpl",
    "tests/conftest.py": "conftest.py.tmpl",
    "tests/test_hello.py": "test_hello.py.tmpl",
    # No __init__.py there, ever: the folder would hide the installed package `supervisor`.
    "supervisor/.gitignore": "gitignore.tmpl",
    "cookbook/README.md": "cookbook.md.tmpl",
}
"""The files of a new project, and the templates they are made from."""

_WORKER_NAME = re.compile(r"[a-z][a-z0-9_]*")


def new_project(root: Path) -> list[Path]:
    """Make a new project with one working example, the worker ``hello``.

    Args:
        root: its folder, absolute. It may exist and hold other files.

    Returns:
        The files that were created.

    Raises:
        BadData: one of the files exists, or cannot be written; nothing was.
    """
    files = {root / path: _fill(template, project=root.name) for path, template in _PROJECT.items()}
    hides = root / "supervisor" / "__init__.py"
    if hides.exists():
        raise BadData(f"{shown_path(hides)}: hides the installed package `supervisor`: remove it first")
    with _created(files):
        return list(files)


@dataclass(frozen=True, slots=True)
class NewWorker:
    """The files of a new worker: its module and its test are new, the YAML has its entry now."""

    module: Path
    test: Path
    yaml: Path


def is_worker_name(name: str) -> bool:
    """Whether a worker and its module can have this name: lower-case letters, digits and ``_``, a letter first."""
    return _WORKER_NAME.fullmatch(name) is not None and not keyword.iskeyword(name)


def new_worker(loaded: LoadedSettings, name: str) -> NewWorker:
    """Add a worker to a project.

    Args:
        loaded: the project's configuration.
        name: of which ``is_worker_name`` holds.

    Raises:
        BadData: there is such a worker or one of its files already, or they cannot be written.
        ConfigurationError: the YAML is written in a way that cannot be added to; the text says what to add.
    """
    if name in loaded.settings.workers:
        raise BadData(
            f"{loaded.origins[f'workers.{name}.task']}: there is a worker {name!r} already: take another name"
        )
    root, class_name = loaded.project_root, _class_name(name)
    names = {"name": name, "class_name": class_name}
    added = NewWorker(root / "workers" / f"{name}.py", root / "tests" / f"test_{name}.py", loaded.path)
    files = {
        added.module: _fill("worker.py.tmpl", **names),
        added.test: _fill("test_worker.py.tmpl", **names),
    }
    edited = _with_worker(loaded, name, class_name)
    with _created(files):
        _overwrite(added.yaml, edited)
    return added


def _class_name(name: str) -> str:
    """``resize_images`` becomes ``ResizeImagesWorker``."""
    camel = "".join(part.capitalize() for part in name.split("_"))
    return camel if camel.endswith("Worker") else f"{camel}Worker"


def _fill(template: str, **values: str) -> str:
    text = (resources.files("workerkit.operations") / "templates" / template).read_text("utf-8")
    return Template(text).substitute(values)


@contextmanager
def _created(files: Mapping[Path, str]) -> Iterator[None]:
    """Create all of the files, with their folders; remove them again if that, or the body of the ``with``, fails.

    Raises:
        BadData: one of them exists, or cannot be written.
    """
    existing = [shown_path(path) for path in files if path.exists() or path.is_symlink()]
    if existing:
        raise BadData(f"already there: {', '.join(existing)}; nothing was written")
    done: list[Path] = []
    try:
        for path, text in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("x", encoding="utf-8") as stream:
                done.append(path)
                stream.write(text)
        yield
    except BaseException as error:
        for path in done:
            path.unlink()
        if isinstance(error, OSError):
            raise BadData(f"the files cannot be written, and none was: {error}") from error
        raise


def _with_worker(loaded: LoadedSettings, name: str, class_name: str) -> str:
    """The project's YAML with one more worker. Loaded again before it is written: nothing else may have changed.

    Raises:
        ConfigurationError: the YAML is written in a way that cannot be added to; the text says what to add.
    """
    task = f"workers.{name}:{class_name}"
    keys = {"task": task, "queue": name}
    worker = msgspec.convert(keys, WorkerSettings)
    wanted = msgspec.structs.replace(loaded.settings, workers={**loaded.settings.workers, name: worker})
    edited = yaml_edit.add_worker(loaded.path.read_bytes().decode(), name, keys)
    with tempfile.TemporaryDirectory() as folder:
        candidate = Path(folder) / loaded.path.name
        candidate.write_bytes(edited.encode())
        try:
            found = load(candidate, os.environ).settings
        except ConfigurationError:
            found = None
    if found != wanted:
        raise ConfigurationError(
            f"{shown_path(loaded.path)}: a worker cannot be added without changing the rest; nothing was written. "
            f"Add it yourself under `workers`:  {name}: {{task: {task}, queue: {name}}}"
        )
    return edited


def _overwrite(path: Path, text: str) -> None:
    """Write in place, so that a symbolic link stays one and the mode is kept; put the old text back if that fails."""
    before = path.read_bytes()
    try:
        path.write_bytes(text.encode())
    except BaseException:
        path.write_bytes(before)
        raise
