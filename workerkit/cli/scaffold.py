"""``workerkit init`` and ``workerkit new worker``: the first files of a project and of a worker.

Nothing that exists is overwritten. Either every file of a command is written, or none stays.
"""

from __future__ import annotations

import keyword
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING

import click

from workerkit.cli.context import Context, pass_context
from workerkit.cli.output import shown_path
from workerkit.errors import BadData, ConfigurationError, ExitCode

if TYPE_CHECKING:
    from workerkit.settings import LoadedSettings

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


class _BadName(click.ClickException):
    """An argument that cannot be used, said in one line."""

    exit_code = ExitCode.USAGE


@click.command()
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
def init(directory: Path) -> None:
    """Make a new project in DIR, with one working example: the worker `hello`.

    DIR may exist and hold other files; what is there is never overwritten.
    """
    root = directory.absolute()
    files = {root / path: _fill(template, project=root.name) for path, template in _PROJECT.items()}
    hides = root / "supervisor" / "__init__.py"
    if hides.exists():
        raise BadData(f"{shown_path(hides)}: hides the installed package `supervisor`: remove it first")
    with _created(files):
        pass
    for path in files:
        click.echo(f"created {shown_path(path)}")
    enter = "" if root == Path.cwd() else f"  cd {shown_path(root)}\n"
    click.echo(
        f"\nNext:\n{enter}"
        "  pytest                                          test the worker, without RabbitMQ\n"
        "  workerkit queues declare                        create its queues on the broker\n"
        """  workerkit publish hello '{"name": "Ada"}'       send it a message\n"""
        "  workerkit run hello --limit 1                   run it for one message\n"
        "  workerkit new worker NAME                       add a worker"
    )


@click.group()
def new() -> None:
    """Add to a project."""


@new.command("worker")
@click.argument("name")
@pass_context
def worker(context: Context, name: str) -> None:
    """Add the worker NAME: workers/NAME.py, its entry in the YAML, and tests/test_NAME.py.

    NAME is lower-case letters, digits and underscores, such as `resize_images`.
    """
    if not _WORKER_NAME.fullmatch(name) or keyword.iskeyword(name):
        raise _BadName(
            f"{name!r} cannot name a worker and its module: "
            "use lower-case letters, digits and _, a letter first, and no word of Python's own, like resize_images"
        )
    loaded = context.loaded
    if name in loaded.settings.workers:
        raise BadData(
            f"{loaded.origins[f'workers.{name}.task']}: there is a worker {name!r} already: take another name"
        )
    root, class_name = loaded.project_root, _class_name(name)
    names = {"name": name, "class_name": class_name}
    files = {
        root / "workers" / f"{name}.py": _fill("worker.py.tmpl", **names),
        root / "tests" / f"test_{name}.py": _fill("test_worker.py.tmpl", **names),
    }
    edited = _with_worker(loaded, name, class_name)
    with _created(files):
        _overwrite(loaded.path, edited)
    for path in files:
        click.echo(f"created {shown_path(path)}")
    click.echo(f"changed {shown_path(loaded.path)}")
    click.echo(
        "\nNext:\n"
        f"  edit {shown_path(root / 'workers' / f'{name}.py')}, where the work is done\n"
        f"  pytest {shown_path(root / 'tests' / f'test_{name}.py')}\n"
        "  workerkit config check\n"
        "  workerkit queues declare\n"
        "  workerkit supervisor generate"
    )


def _class_name(name: str) -> str:
    """``resize_images`` becomes ``ResizeImagesWorker``."""
    camel = "".join(part.capitalize() for part in name.split("_"))
    return camel if camel.endswith("Worker") else f"{camel}Worker"


def _fill(template: str, **values: str) -> str:
    text = (resources.files("workerkit.cli") / "templates" / template).read_text("utf-8")
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
    import msgspec

    from workerkit.cli.yaml_edit import add_worker
    from workerkit.settings import WorkerSettings, load

    task = f"workers.{name}:{class_name}"
    keys = {"task": task, "queue": name}
    worker = msgspec.convert(keys, WorkerSettings)
    wanted = msgspec.structs.replace(loaded.settings, workers={**loaded.settings.workers, name: worker})
    edited = add_worker(loaded.path.read_bytes().decode(), name, keys)
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
