"""Supervisor's files on disk: written whole, private, with the folders they need, and compared for ``--check``."""

import shutil
import stat
from pathlib import Path

import pytest

from workerkit.errors import ConfigurationError
from workerkit.supervision import differences, socket_path, write

FILES = {"supervisord.conf": "[supervisord]\n", "conf.d/workers.conf": "; größe\n[group:workers]\n"}


@pytest.fixture
def folder(project):
    return project / "supervisor"


@pytest.fixture
def deep_project(tmp_path):
    """A project whose socket stands in ``/tmp``."""
    root = tmp_path / ("deep" * 20)
    root.mkdir()
    socket_folder = socket_path(root).parent
    yield root
    if socket_folder.is_symlink():
        socket_folder.unlink()
    elif socket_folder.exists():
        shutil.rmtree(socket_folder)


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_writing_creates_the_files_and_the_folders_they_speak_of(folder):
    """Supervisor refuses to start when the folder of a log or of its socket is absent."""
    assert write(FILES, folder) == [folder / "supervisord.conf", folder / "conf.d" / "workers.conf"]
    assert {name: (folder / name).read_text("utf-8") for name in FILES} == FILES
    assert sorted(path.name for path in folder.iterdir()) == ["conf.d", "log", "run", "supervisord.conf"]
    assert [path.name for path in (folder / "conf.d").iterdir()] == ["workers.conf"]


def test_only_the_owner_can_read_what_is_written(folder):
    """The environment of a worker often holds a password, and the socket is in ``run``."""
    write(FILES, folder)
    assert [mode(folder / name) for name in FILES] == [0o600, 0o600]
    assert mode(folder / "run") == 0o700


def test_only_changed_files_are_written_and_reported(folder):
    """Supervisor compares contents, people compare times."""
    write(FILES, folder)
    untouched = (folder / "supervisord.conf").stat().st_mtime_ns
    assert write(FILES | {"conf.d/workers.conf": "; new\n"}, folder) == [folder / "conf.d" / "workers.conf"]
    assert (folder / "supervisord.conf").stat().st_mtime_ns == untouched
    assert write(FILES | {"conf.d/workers.conf": "; new\n"}, folder) == []


def test_a_projects_own_file_in_conf_d_is_left_alone(folder):
    """Supervisor includes it next to ours: a web server, a scheduler."""
    (folder / "conf.d").mkdir(parents=True)
    own = folder / "conf.d" / "web.conf"
    own.write_text("[program:web]\n")
    write(FILES, folder)
    assert own.read_text() == "[program:web]\n"
    assert differences(FILES, folder) == ""


def test_a_failed_write_leaves_the_old_file_and_no_other(folder):
    """A full disk must not leave Supervisor with half a file, or with a second one that it includes."""
    write(FILES, folder)
    with pytest.raises(UnicodeEncodeError):
        write({"conf.d/workers.conf": "\ud800"}, folder)
    assert (folder / "conf.d" / "workers.conf").read_text("utf-8") == FILES["conf.d/workers.conf"]
    assert [path.name for path in (folder / "conf.d").iterdir()] == ["workers.conf"]


def test_files_that_agree_have_no_differences(folder):
    """``--check`` passes."""
    write(FILES, folder)
    assert differences(FILES, folder) == ""


def test_differences_lead_from_the_disk_to_the_yaml(folder):
    """``-`` is what the disk has, ``+`` is what the YAML asks for."""
    write(FILES, folder)
    path = folder / "conf.d" / "workers.conf"
    path.write_text("; größe\nedited by hand")
    assert differences(FILES, folder) == (
        f"--- {path}\n+++ {path} (generated)\n@@ -1,2 +1,2 @@\n ; größe\n"
        "-edited by hand\n\\ No newline at end of file\n+[group:workers]\n"
    )


def test_a_file_that_is_absent_differs_in_every_line(folder):
    """Before the first ``generate``, ``--check`` shows all there is to write."""
    assert "+; größe\n+[group:workers]\n" in differences(FILES, folder)


def test_a_file_in_another_encoding_differs_and_is_replaced(folder):
    """It is no reason for a traceback."""
    write(FILES, folder)
    (folder / "supervisord.conf").write_bytes(b"\xff\xfe")
    assert "-\\xff\\xfe\n" in differences(FILES, folder)
    assert write(FILES, folder) == [folder / "supervisord.conf"]


def test_a_deep_project_gets_a_private_folder_for_its_socket(deep_project):
    """A Unix socket's path holds about a hundred bytes; the folder exists before Supervisor needs it."""
    write(FILES, deep_project / "supervisor")
    write(FILES, deep_project / "supervisor")
    assert socket_path(deep_project).parent.parent == Path("/tmp")
    assert mode(socket_path(deep_project).parent) == 0o700


@pytest.mark.parametrize("trap", ["open to others", "a link"])
def test_a_socket_folder_that_others_can_change_is_refused(deep_project, tmp_path, trap):
    """``/tmp`` is everybody's: who owns the folder could put a socket of his own there."""
    socket_folder = socket_path(deep_project).parent
    if trap == "a link":
        socket_folder.symlink_to(tmp_path)
    else:
        socket_folder.mkdir()
        socket_folder.chmod(0o777)
    with pytest.raises(ConfigurationError, match="must be a folder of user"):
        write(FILES, deep_project / "supervisor")
