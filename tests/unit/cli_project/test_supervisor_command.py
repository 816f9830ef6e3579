"""``workerkit supervisor generate`` and ``workerkit workers``, as far as they need no Supervisor."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys

import pytest

from workerkit.supervision import Instance, SupervisorControl


@pytest.fixture
def generated(project, invoke):
    assert invoke("supervisor", "generate").exit_code == 0
    return project / "supervisor" / "conf.d" / "workers.conf"


def test_generate_lists_what_it_wrote_and_the_commands_to_type_next(project, invoke):
    """As they work from the folder in which one is."""
    lines = invoke("supervisor", "generate").stdout.splitlines()
    assert lines[:2] == ["wrote supervisor/supervisord.conf", "wrote supervisor/conf.d/workers.conf"]
    assert lines[3].endswith(" supervisord -c supervisor/supervisord.conf")
    assert lines[4].endswith(" supervisorctl -c supervisor/supervisord.conf start workers:*")
    assert invoke("supervisor", "generate").stdout.splitlines()[0] == "supervisor: nothing to change"


def test_the_generated_command_works_wherever_it_is_started_and_whatever_lies_there(generated, project):
    """In the project's folder, its own files must not take the place of the packages that workerkit needs."""
    (project / "yaml.py").write_text("raise SystemExit('the wrong yaml')")
    (project / "workerkit.py").write_text("raise SystemExit('the wrong workerkit')")
    [line] = [line for line in generated.read_text().splitlines() if line.startswith("command=")]
    *command, run, name = shlex.split(line.removeprefix("command="))
    assert (command[0], run, name) == (sys.executable, "run", "hello")
    for folder in (project, "/"):
        ended = subprocess.run([*command, "config", "show"], cwd=folder, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stderr
        assert "workers.hello:HelloWorker" in ended.stdout


def test_check_is_silent_and_0_while_the_files_agree(generated, invoke):
    """For CI."""
    result = invoke("supervisor", "generate", "--check")
    assert (result.exit_code, result.output) == (0, "")


def test_check_prints_the_difference_ends_with_1_and_writes_nothing(generated, project, invoke):
    """The diff goes from what is on disk to what the YAML says."""
    yaml = project / "config" / "workerkit.yaml"
    yaml.write_text(yaml.read_text().replace("instances: 2", "instances: 3"))
    before = generated.read_text()
    result = invoke("supervisor", "generate", "--check")
    assert result.exit_code == 1
    assert "-numprocs=2\n+numprocs=3\n" in result.stdout
    assert generated.read_text() == before


def test_check_hides_secrets_in_the_difference(project, invoke, write_yaml):
    """The files are the owner's only; the log of a CI run is not."""
    write_yaml(
        "workers:\n  hello:\n    task: workers.hello:HelloWorker\n    environment:\n"
        "      API_TOKEN: 'hunter2, \"and\" hunter2'\n"
        "      DATABASE_URL: postgres://shop:hunter2@db/shop\n"
        "      STAGE: live\n"
    )
    result = invoke("supervisor", "generate", "--check")
    assert result.exit_code == 1
    assert "hunter2" not in result.output
    assert '+    DATABASE_URL="postgres://shop:***@db/shop",' in result.stdout
    assert '+    STAGE="live",' in result.stdout


def test_generate_refuses_a_package_that_hides_supervisor(generated, project, invoke):
    """``supervisor/`` is data; as a package it would be imported in place of the real one."""
    (project / "supervisor" / "__init__.py").touch()
    result = invoke("supervisor", "generate")
    assert result.exit_code == 78
    assert str(result.exception).startswith("supervisor/__init__.py: makes this folder a Python package")


def test_generate_without_workers_is_an_error_of_the_configuration(project, invoke, write_yaml):
    """There is nothing for Supervisor to run."""
    write_yaml("logging: {level: info}\n")
    result = invoke("supervisor", "generate")
    assert result.exit_code == 78
    assert "workers: there is none" in str(result.exception)


def test_workers_lists_what_is_configured_when_supervisor_does_not_run(project, invoke):
    """That it does not run is said on stderr, and is no error: the list is right."""
    result = invoke("workers")
    assert result.exit_code == 0
    header, row = result.stdout.splitlines()
    assert header.split() == [
        "NAME",
        "TASK",
        "QUEUE",
        "INSTANCES",
        "TTL",
        "PREFETCH_COUNT",
        "CALLBACK_TIMEOUT",
        "MEMORY_LIMIT",
    ]
    assert row.split() == ["hello", "workers.hello:HelloWorker", "hello", "2", "1h", "-", "20s", "-"]
    assert result.stderr.startswith("note: Supervisor does not answer on ")


def test_workers_as_json_says_whether_supervisor_runs(project, invoke):
    """A script must tell "no instance" from "nobody to ask"."""
    result = json.loads(invoke("workers", "--json").stdout)
    assert result["supervisor_running"] is False
    assert result["instances"] == []
    assert [worker["name"] for worker in result["workers"]] == ["hello"]


def test_workers_shows_the_live_instances_of_the_workers_group(project, invoke, monkeypatch):
    """With the reason where one does not run; programs of the project's own are no workers."""

    def instance(name, group, state, pid, description):
        uptime = 3725 if pid else None
        return Instance(name, group, state, pid, uptime, exit_status=None, description=description, spawn_error="")

    live = [
        instance("web", "web", "RUNNING", 10, "pid 10, uptime 1:02:05"),
        instance("hello_00", "workers", "RUNNING", 11, "pid 11, uptime 1:02:05"),
        instance("hello_01", "workers", "FATAL", None, "Exited too quickly"),
    ]
    monkeypatch.setattr(SupervisorControl, "instances", lambda _: live)
    configured, rows = invoke("workers").stdout.split("\n\n")
    assert configured.splitlines()[0].split()[-1] == "RUNNING"
    assert configured.splitlines()[1].split()[-1] == "1"
    assert [row.split(maxsplit=4) for row in rows.splitlines()] == [
        ["INSTANCE", "STATE", "PID", "UPTIME", "DETAIL"],
        ["workers:hello_00", "RUNNING", "11", "1:02:05"],
        ["workers:hello_01", "FATAL", "-", "-", "Exited too quickly"],
    ]
    as_json = json.loads(invoke("workers", "--json").stdout)
    assert [(item["name"], item["uptime"]) for item in as_json["instances"]] == [("hello_00", 3725), ("hello_01", None)]
