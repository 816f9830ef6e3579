"""``workerkit config``: what is shown is what counts, and what is secret is not shown."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import yaml

from workerkit.settings import load
from workerkit.settings.command_line import parse_overrides
from workerkit.task_settings import SETTING_NAMES
from workerkit.wiring import worker_spec
from workerkit.worker import probe

WORKERS = """
from workerkit import RetryPolicy, WorkerTask

class Four(WorkerTask):
    prefetch_count = 7
    ttl = 60
    auto_ack = True
    retry = RetryPolicy(max_attempts=9)

    def initialize(self):
        super().initialize()
        self.set_queue("from-initialize")
        self.auto_ack = False

    def callback(self, message):
        message.ack()

class Failing(Four):
    def initialize(self):
        raise OSError("no\\nlicence")

class Stuck(Four):
    def initialize(self):
        import time
        print("waiting for the licence server", flush=True)
        time.sleep(600)

class Crashing(Four):
    def initialize(self):
        import os
        os._exit(3)
"""

OPEN = """
class Open(WorkerTask):
    queues = {"urgent": 20, "bulk": 5}

    async def callback(self, message):
        message.ack()
"""

YAML = """\
broker: {url: 'amqp://shop:hunter2@broker/live'}
workers:
  four:
    task: workers.four:Four
    queue: from-yaml
    ttl: 5m
    retry: {delays: [1s, 90s]}
    environment: {API_TOKEN: hunter2}
"""


@pytest.fixture
def four(project, write_yaml):
    (project / "workers" / "four.py").write_text(WORKERS)
    write_yaml(YAML)


@pytest.fixture
def add_task(write_yaml):
    """Configure one more worker: a class in ``workers/four.py``, or any other task."""

    def add(task):
        write_yaml(f"{YAML}  more: {{task: '{task}'}}\n")

    return add


def origins(result):
    return {row["key"]: (row["value"], row["origin"]) for row in json.loads(result.stdout)}


def test_show_prints_yaml_that_means_the_same(project, invoke):
    """What is shown can be written to the file: the same keys, units and all, with the defaults filled in."""
    shown = invoke("config", "show").stdout.replace("***", "guest")
    path = project / "config" / "workerkit.yaml"
    before = load(path, {}).settings
    path.write_text(shown)
    assert load(path, {}).settings == before
    assert yaml.safe_load(shown)["workers"]["hello"]["retry"]["delays"] == ["5s", "30s", "5m"]


@pytest.mark.parametrize("options", [(), ("--json",), ("--origin",), ("--origin", "--json")])
def test_show_hides_secrets(four, invoke, options):
    """Passwords in URLs, and values whose key says that they are secret."""
    result = invoke("config", "show", *options)
    assert result.exit_code == 0
    assert "hunter2" not in result.output
    assert "amqp://shop:***@broker/live" in result.stdout


def test_show_leaves_out_what_the_task_decides(four, invoke):
    """The half of ``retry`` that nobody wrote is the class's, not the default."""
    worker = json.loads(invoke("config", "show", "--json").stdout)["workers"]["four"]
    assert worker["retry"] == {"delays": ["1s", "90s"]}
    assert "prefetch_count" not in worker


def test_show_keeps_a_written_null(four, invoke, write_yaml):
    """It switches a limit of the class off: without it, the file would mean something else."""
    write_yaml(YAML.replace("ttl: 5m", "ttl: null"))
    assert json.loads(invoke("config", "show", "--json").stdout)["workers"]["four"]["ttl"] is None
    rows = origins(invoke("config", "show", "--origin", "--json"))
    assert rows["workers.four.ttl"] == (None, "config/workerkit.yaml:6")


def test_origin_says_who_decided_each_setting(four, invoke, monkeypatch):
    """Class attributes, then YAML and environment, then initialize(): the later wins."""
    monkeypatch.setenv("WORKERKIT_WORKERS__FOUR__CALLBACK_TIMEOUT", "3s")
    rows = origins(invoke("config", "show", "--origin", "--json"))
    shown = {key.removeprefix("workers.four."): row for key, row in rows.items() if key.startswith("workers.")}
    decided = {
        "task": ("workers.four:Four", "config/workerkit.yaml:4"),
        "queue": ("from-initialize", "initialize()"),
        "instances": (1, "default"),
        "ttl": ("5m", "config/workerkit.yaml:6"),
        "prefetch_count": (7, "class attribute"),
        "callback_timeout": ("3s", "environment WORKERKIT_WORKERS__FOUR__CALLBACK_TIMEOUT"),
        "memory_limit": rows["workers.four.memory_limit"],  # of the machine's cgroup
        "auto_ack": (False, "initialize()"),
        "spare_memory_multiplier": (16, "default"),
        "retry.max_attempts": (9, "class attribute"),
        "retry.delays": (["1s", "90s"], "config/workerkit.yaml:7"),
        "environment.API_TOKEN": ("***", "config/workerkit.yaml:8"),
    }
    assert {key: shown.pop(key) for key in decided} == decided
    assert shown["starve_after"] == ("1m", "default")
    assert {origin for _, origin in shown.values()} == {"default"}
    assert rows["broker.heartbeat"] == ("10s", "default")


def test_a_table_has_one_line_per_key_however_long(four, invoke):
    """For grep: nothing is folded where the output is not a terminal."""
    lines = invoke("config", "show", "--origin").stdout.splitlines()
    assert lines[0].split() == ["KEY", "VALUE", "ORIGIN"]
    [line] = [line for line in lines if line.startswith("workers.four.retry.delays ")]
    assert line.split(maxsplit=1)[1].split("  ")[0] == "[1s, 90s]"


def test_a_worker_that_cannot_be_loaded_has_a_note_and_the_others_their_values(four, invoke, add_task):
    """Showing the configuration is what one does when a worker does not start."""
    add_task("workers.nowhere:Task")
    result = invoke("config", "show", "--origin", "--json")
    assert result.exit_code == 0
    rows = origins(result)
    assert rows["workers.four.prefetch_count"] == (7, "class attribute")
    assert "workers.more.prefetch_count" not in rows
    value, note = rows["workers.more"]
    assert value is None
    assert "there is no module 'workers.nowhere'" in note


def test_check_counts_what_is_in_order(project, four, invoke):
    """A queue is counted once, whoever names it."""
    result = invoke("config", "check")
    assert (result.exit_code, result.output) == (0, "ok: 1 worker, 1 queue\n")
    assert json.loads(invoke("config", "check", "--json").stdout) == {
        "problems": [],
        "warnings": [],
        "workers": 1,
        "queues": 1,
    }


@pytest.mark.parametrize(
    ("task", "problem"),
    [
        ("workers.nowhere:Task", "there is no module 'workers.nowhere'"),
        ("workers.four:Fourr", "has no 'Fourr'; it has Four, Failing, Stuck, Crashing"),
        ("workers.four:Failing", "initialize() failed: OSError: no licence"),
        ("workers.four:Crashing", "its task did not load: the executor exited with code 3"),
    ],
)
def test_check_says_in_one_line_what_is_wrong_with_a_task(four, invoke, add_task, task, problem):
    """With the line of the YAML that names the task, and exit code 78."""
    add_task(task)
    result = invoke("config", "check")
    assert result.exit_code == 78
    [line] = result.stdout.splitlines()
    assert line.startswith("config/workerkit.yaml:9: worker 'more': ")
    assert problem in line


def test_a_task_that_does_not_get_ready_is_given_up(four, invoke, add_task, monkeypatch):
    """``initialize`` may wait for something for ever; the command does not, and says what the task said last."""
    monkeypatch.setattr(probe, "resolve", partial(probe.resolve, deadline=3.0))
    add_task("workers.four:Stuck")
    result = invoke("config", "check")
    assert result.exit_code == 78
    assert "did not get ready within 3 s; its last line was 'waiting for the licence server'" in result.stdout


def test_check_prints_every_mistake_in_the_yaml(invoke, write_yaml):
    """One line per problem, with file, line and key; nothing is loaded."""
    write_yaml("workers:\n  a: {task: a:B, tll: 5s}\n  b: {task: a:B, ttl: 5x}\n")
    result = invoke("config", "check")
    assert result.exit_code == 78
    first, second = result.stdout.splitlines()
    assert "config/workerkit.yaml:2: workers.a: unknown key `tll` (did you mean `ttl`?)" in first
    assert second.startswith("config/workerkit.yaml:3: workers.b.ttl: ")
    assert len(json.loads(invoke("config", "check", "--json").stdout)["problems"]) == 2


def test_warnings_do_not_fail_the_check_and_go_to_stderr(four, invoke, write_yaml):
    """They are for people; scripts read stdout."""
    write_yaml(YAML.replace("ttl: 5m", "ttl: 1s"))
    result = invoke("config", "check")
    assert (result.exit_code, result.stdout) == (0, "ok: 1 worker, 1 queue\n")
    assert result.stderr.startswith("warning: config/workerkit.yaml:6: workers.four.ttl: ")


def test_schema_is_a_json_schema(invoke, tmp_path, monkeypatch):
    """It needs no project."""
    monkeypatch.chdir(tmp_path)
    schema = json.loads(invoke("config", "schema").stdout)
    assert schema["$schema"].startswith("https://json-schema.org/")
    assert "workers" in schema["$defs"]["Settings"]["properties"]


def test_a_setting_of_the_command_line_wins_over_initialize(four):
    """And says so; the half of ``retry`` that is not given stays what it was."""
    loaded = load(Path("config/workerkit.yaml"), {})
    overrides = parse_overrides(["auto_ack=true", "queues={a: 2, b: 1}", "retry.max_attempts=3"], "four")
    [answer] = probe.resolve([(worker_spec(loaded, "four", overrides=overrides), {})])
    assert (answer.auto_ack, answer.queues, answer.ttl) == (True, {"a": 2, "b": 1}, 300)
    assert (answer.max_attempts, answer.delays) == (3, (1.0, 90.0))
    assert {key for key, origin in answer.origins.items() if origin == "command line"} == set(overrides)


def test_a_wrong_setting_on_the_command_line_is_exit_code_64(four):
    """Nothing is started: Supervisor must not start it again either."""
    command = [sys.executable, "-m", "workerkit", "run", "four", "--set", "tll=5s"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert result.returncode == 64
    assert "--set tll: workers.four: unknown key `tll` (did you mean `ttl`?)" in result.stderr


def test_the_help_of_run_names_every_setting(invoke):
    """One does not look them up elsewhere."""
    words = re.findall(r"\w+", invoke("run", "--help").stdout)
    assert set(SETTING_NAMES) <= set(words)


def test_several_queues_of_a_worker_are_shown_with_their_weights(four, invoke, write_yaml):
    """Whoever names them; `auto` is what the class leaves open."""
    write_yaml(YAML.replace("queue: from-yaml", "queues: {a: 2}") + "  open.two: {task: 'workers.four:Open'}\n")
    with Path("workers/four.py").open("a") as file:
        file.write(OPEN)
    rows = origins(invoke("config", "show", "--origin", "--json"))
    assert rows["workers.four.queue"] == ("from-initialize", "initialize()")
    assert rows["workers.open.two.queues.urgent"] == (20, "class attribute")
    assert rows["workers.open.two.queues.bulk"] == (5, "class attribute")
    assert rows["workers.open.two.prefetch_count"] == ("auto", "default")
    assert json.loads(invoke("config", "check", "--json").stdout)["queues"] == 3
