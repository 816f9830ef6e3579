"""``workerkit init`` and ``workerkit new worker``: first files, and nothing that exists is touched."""

from __future__ import annotations

import ast
import errno
import os
from pathlib import Path

import pytest

from workerkit.operations import scaffold
from workerkit.settings import load

NEW_PROJECT = [
    "README.md",
    "config/workerkit.yaml",
    "cookbook/README.md",
    "supervisor/.gitignore",
    "tests/conftest.py",
    "tests/test_hello.py",
    "workers/__init__.py",
    "workers/hello.py",
]


def files_in(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_new_project_has_the_folders_that_users_expect_and_no_package_named_supervisor(project):
    """``supervisor/__init__.py`` would hide the installed package of that name."""
    assert sorted(files_in(project)) == NEW_PROJECT


def test_a_new_project_has_a_valid_configuration_and_python_files(project):
    """The YAML loads without a warning, and nothing is left of the templates' placeholders."""
    loaded = load(project / "config" / "workerkit.yaml", {})
    assert list(loaded.settings.workers) == ["hello"]
    assert loaded.warnings == ()
    for name, text in files_in(project).items():
        if name.endswith(".py"):
            ast.parse(text)
    assert files_in(project)["README.md"].startswith("# shop\n")


def test_init_fits_itself_into_a_folder_with_other_files(invoke, tmp_path, monkeypatch):
    """A repository that exists already is the usual place for a new project."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "LICENSE").write_text("mine")
    assert invoke("init", ".").exit_code == 0
    assert files_in(tmp_path)["LICENSE"] == "mine"
    assert sorted(files_in(tmp_path)) == sorted([*NEW_PROJECT, "LICENSE"])


def test_init_writes_nothing_where_one_of_its_files_exists(invoke, tmp_path, monkeypatch):
    """The clash is named, and the folder is as it was."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "README.md").write_text("mine")
    result = invoke("init", ".")
    assert result.exit_code == 65
    assert str(result.exception) == "already there: README.md; nothing was written"
    assert files_in(tmp_path) == {"README.md": "mine"}


def test_init_refuses_a_package_that_hides_supervisor(invoke, tmp_path, monkeypatch):
    """It would break every command that talks to Supervisor."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "supervisor").mkdir()
    (tmp_path / "supervisor" / "__init__.py").touch()
    result = invoke("init", ".")
    assert result.exit_code == 65
    assert "supervisor/__init__.py: hides the installed package" in str(result.exception)


def test_init_says_in_one_line_that_a_file_is_in_the_way(invoke, tmp_path, monkeypatch):
    """DIR is a file, or a folder in which one cannot write."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shop").write_text("a file")
    result = invoke("init", "shop")
    assert result.exit_code == 65
    assert "the files cannot be written, and none was" in str(result.exception)
    assert files_in(tmp_path) == {"shop": "a file"}


def test_a_new_worker_is_a_module_an_entry_and_a_test(project, invoke):
    """The entry names the class in the module; the rest of the YAML is as it was."""
    before = (project / "config" / "workerkit.yaml").read_text()
    result = invoke("new", "worker", "resize_images")
    assert result.exit_code == 0
    assert "created workers/resize_images.py" in result.output
    worker = load(project / "config" / "workerkit.yaml", {}).settings.workers["resize_images"]
    assert worker.task == "workers.resize_images:ResizeImagesWorker"
    assert worker.queue == "resize_images"
    assert "class ResizeImagesWorker(WorkerTask):" in (project / "workers" / "resize_images.py").read_text()
    assert "ResizeImagesWorker" in (project / "tests" / "test_resize_images.py").read_text()
    entry = "  resize_images:\n    task: workers.resize_images:ResizeImagesWorker\n    queue: resize_images\n"
    assert (project / "config" / "workerkit.yaml").read_text().replace(entry, "") == before


@pytest.mark.parametrize("name", ["Resize", "9lives", "two words", "re-size", "a.b", "../up", "class", "größe", ""])
def test_a_name_that_cannot_be_a_module_is_refused_in_one_line(project, invoke, name):
    """The name becomes a file, a module, a class and a key."""
    before = files_in(project)
    result = invoke("new", "worker", name)
    assert result.exit_code == 64
    assert result.output.startswith(f"Error: {name!r} cannot name a worker")
    assert result.output.count("\n") == 1
    assert files_in(project) == before


def test_a_name_that_is_taken_is_refused_with_the_line_that_took_it(project, invoke):
    """Nothing is written."""
    before = files_in(project)
    result = invoke("new", "worker", "hello")
    assert result.exit_code == 65
    assert "config/workerkit.yaml:11: there is a worker 'hello' already" in str(result.exception)
    assert files_in(project) == before


@pytest.mark.parametrize("path", ["workers/resize.py", "tests/test_resize.py"])
def test_a_file_of_the_name_is_never_overwritten(project, invoke, path):
    """It may be somebody's work."""
    (project / path).write_text("mine")
    before = files_in(project)
    result = invoke("new", "worker", "resize")
    assert result.exit_code == 65
    assert str(result.exception) == f"already there: {path}; nothing was written"
    assert files_in(project) == before


def test_a_yaml_that_cannot_be_added_to_stays_and_the_user_is_told_what_to_add(project, invoke, write_yaml):
    """Here a section behind the closing brace would not be YAML."""
    write_yaml("{logging: {level: info}}\n")
    before = files_in(project)
    result = invoke("new", "worker", "resize")
    assert result.exit_code == 78
    assert "Add it yourself under `workers`:  resize: {task: workers.resize:ResizeWorker" in str(result.exception)
    assert files_in(project) == before


def test_without_a_project_the_user_is_told_how_to_make_one(invoke, tmp_path, monkeypatch):
    """The most likely mistake is the wrong working directory."""
    monkeypatch.chdir(tmp_path)
    result = invoke("new", "worker", "resize")
    assert result.exit_code == 78
    assert "no such file: `workerkit init DIR` makes a project with one" in str(result.exception)


def test_a_yaml_that_cannot_be_written_leaves_no_new_files(project, invoke, monkeypatch):
    """Half a worker would be found by pytest and not by Supervisor."""

    def full(path, data):
        real_write(path, data[:10])
        monkeypatch.setattr(Path, "write_bytes", real_write)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    real_write = Path.write_bytes
    before = files_in(project)
    monkeypatch.setattr(scaffold, "_with_worker", lambda *_: "workers: {}\n")
    monkeypatch.setattr(Path, "write_bytes", full)
    result = invoke("new", "worker", "resize")
    assert result.exit_code == 65
    assert "none was: [Errno 28] No space left on device" in str(result.exception)
    assert files_in(project) == before
