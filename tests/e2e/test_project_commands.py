"""A project from ``workerkit init`` to Supervisor's files, through the real commands in real processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.e2e

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def folder() -> Iterator[Path]:
    # pytest's tmp_path can be too long for a Unix socket, which is another test's business.
    with tempfile.TemporaryDirectory(prefix="wk-", dir="/tmp") as folder:
        yield Path(folder)


@pytest.fixture
def run(folder: Path) -> Run:
    """Run a command to its end, in the project once there is one."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("WORKERKIT_")}

    def run(*command: str, **options: str) -> subprocess.CompletedProcess[str]:
        project = folder / "shop"
        return subprocess.run(
            command,
            cwd=options.get("cwd") or (project if project.is_dir() else folder),
            env={**own, "PYTHONDONTWRITEBYTECODE": "1"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return run


@pytest.fixture
def workerkit(run: Run) -> Run:
    """The installed command."""
    executable = str(Path(sys.executable).with_name("workerkit"))
    return lambda *arguments, **options: run(executable, *arguments, **options)


@pytest.fixture
def project(folder: Path, workerkit: Run) -> Path:
    assert workerkit("init", "shop").returncode == 0
    return folder / "shop"


def run_own_tests(run: Run) -> subprocess.CompletedProcess[str]:
    # Warnings are errors: what we hand out must not begin with one.
    return run(sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", "--rootdir=.")


def test_from_nothing_to_supervisor_files(project: Path, run: Run, workerkit: Run) -> None:
    """The way of every new user: each step ends with 0 and leaves the next one possible."""
    assert workerkit("config", "check").stdout == "ok: 1 worker, 1 queue\n"
    first = run_own_tests(run)
    assert first.returncode == 0, first.stdout
    assert "2 passed" in first.stdout

    added = workerkit("new", "worker", "resize")
    assert added.returncode == 0, added.stderr
    assert workerkit("config", "check").stdout == "ok: 2 workers, 2 queues\n"
    second = run_own_tests(run)
    assert second.returncode == 0, second.stdout
    assert "3 passed" in second.stdout

    assert workerkit("supervisor", "generate").returncode == 0
    assert workerkit("supervisor", "generate", "--check").returncode == 0
    programs = (project / "supervisor" / "conf.d" / "workers.conf").read_text()
    assert "programs=hello,resize\n" in programs

    yaml = project / "config" / "workerkit.yaml"
    yaml.write_text(yaml.read_text().replace("instances: 2", "instances: 5"))
    stale = workerkit("supervisor", "generate", "--check")
    assert stale.returncode == 1
    assert "-numprocs=2\n+numprocs=5\n" in stale.stdout


def test_commands_work_from_elsewhere_and_show_paths_as_one_would_type_them(project: Path, workerkit: Run) -> None:
    """``--config`` is all that is needed: the folder that holds ``config/`` is the project."""
    config = "shop/config/workerkit.yaml"
    options = {"cwd": str(project.parent)}
    assert workerkit("--config", config, "config", "check", **options).returncode == 0
    generated = workerkit("--config", config, "supervisor", "generate", **options)
    assert generated.stdout.splitlines()[0] == "wrote shop/supervisor/supervisord.conf"
    added = workerkit("--config", config, "new", "worker", "mail", **options)
    assert added.stdout.splitlines()[0] == "created shop/workers/mail.py"
    assert (project / "workers" / "mail.py").is_file()


def test_the_project_may_hold_a_folder_named_like_an_installed_package(project: Path, workerkit: Run) -> None:
    """``supervisor/`` always is one: `workerkit workers` imports the real one all the same."""
    assert workerkit("supervisor", "generate").returncode == 0
    listed = workerkit("workers", "--json")
    assert listed.returncode == 0, listed.stderr
    assert "Supervisor does not answer" in listed.stderr
    assert json.loads(listed.stdout)["supervisor_running"] is False


def test_tasks_print_what_they_like_and_commands_stay_readable(project: Path, workerkit: Run) -> None:
    """What a task writes while it loads does not end up in JSON that a script reads."""
    hello = project / "workers" / "hello.py"
    hello.write_text("import os, sys\nprint('noise')\nos.write(2, b'noise')\n" + hello.read_text())
    rows = json.loads(workerkit("config", "show", "--origin", "--json").stdout)
    assert {"key": "workers.hello.prefetch_count", "value": "auto", "origin": "default"} in rows


@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        (("new", "worker", "Hello"), 64, "Error: 'Hello' cannot name a worker and its module: "),
        (("new", "worker", "hello"), 65, "workerkit: config/workerkit.yaml:11: there is a worker 'hello' already"),
        (("init", "."), 65, "workerkit: already there: README.md, "),
        (("--config", "nowhere.yaml", "config", "show"), 78, "workerkit: "),
        (("--config", "nowhere.yaml", "workers"), 78, "workerkit: "),
    ],
    ids=["bad name", "taken name", "files exist", "no file to show", "no file to list"],
)
def test_a_mistake_is_one_line_and_an_exit_code(
    project: Path, workerkit: Run, arguments: tuple[str, ...], code: int, line: str
) -> None:
    """On stderr, and nothing on stdout: a script that reads it gets nothing wrong."""
    ended = workerkit(*arguments)
    assert ended.returncode == code
    assert ended.stderr.startswith(line)
    assert ended.stderr.count("\n") == 1
    assert ended.stdout == ""
