from __future__ import annotations

from pathlib import Path

import pytest

from workerkit.errors import ConfigurationError, ExitCode
from workerkit.retry import RetryPolicy
from workerkit.settings import load

DESIGN = """\
broker:
  url: ${AMQP_URL:-amqp://guest:guest@localhost:5672/%2F}
  heartbeat: 10s
exchanges:
  images: {type: topic}
queues:
  thumbnails:
    type: quorum
    bindings: [{exchange: images, routing_key: "uploaded.#"}]
workers:
  thumbnail:
    task: workers.thumbnail:ThumbnailWorker
    queue: thumbnails
    instances: 4
    ttl: 1h
    prefetch_count: 1
    callback_timeout: 5m
    memory_limit: 512MiB
    retry: {max_attempts: 5, delays: [5s, 30s, 5m]}
    environment: {OMP_NUM_THREADS: "1"}
supervisor:
  stopwaitsecs: 30
"""


def test_the_example_of_the_design_loads(load_text, project):
    """What the documentation shows works as written."""
    loaded = load_text(DESIGN)
    worker = loaded.settings.workers["thumbnail"]
    assert loaded.settings.broker.url == "amqp://guest:guest@localhost:5672/%2F"
    assert (worker.ttl, worker.callback_timeout, worker.memory_limit) == (3600, 300, 512 * 2**20)
    assert worker.retry == RetryPolicy(max_attempts=5, delays=(5.0, 30.0, 300.0))
    assert loaded.settings.queues["thumbnails"].bindings[0].routing_key == "uploaded.#"
    assert loaded.path == project / "config" / "workerkit.yaml"
    assert loaded.project_root == project
    assert loaded.warnings == ()


def test_every_value_says_where_it_was_written(load_text):
    """Keys of the file have their line, the others are defaults; lists are one key."""
    origins = load_text(DESIGN).origins
    assert origins["broker.url"] == "config/workerkit.yaml:2"
    assert origins["broker.connection_timeout"] == "default"
    assert origins["queues.thumbnails.bindings"] == "config/workerkit.yaml:9"
    assert origins["workers.thumbnail.retry.delays"] == "config/workerkit.yaml:19"
    assert origins["workers.thumbnail.environment.OMP_NUM_THREADS"] == "config/workerkit.yaml:20"
    assert origins["logging.level"] == "default"


def test_the_folder_of_a_file_outside_config_is_the_project_root(project):
    """Only a folder named ``config`` is a level of its own."""
    (project / "other.yaml").write_text("")
    assert load(Path("other.yaml"), {}).project_root == project


def test_a_missing_file_is_named_in_full_with_what_to_do(project):
    """The operator must see where we looked."""
    with pytest.raises(ConfigurationError) as caught:
        load(Path("config/workerkit.yaml"), {})
    assert str(caught.value) == (
        f"{project}/config/workerkit.yaml: no such file: `workerkit init DIR` makes a project with one, "
        "`workerkit --config PATH` names another"
    )
    assert caught.value.exit_code is ExitCode.CONFIGURATION


def test_a_folder_is_not_a_file(project):
    """Whatever the system says about the file is passed on."""
    with pytest.raises(ConfigurationError, match="config: cannot be read: Is a directory"):
        load(Path("config"), {})


def test_all_problems_are_reported_in_one_run_in_the_order_of_the_file(problems):
    """Reading, types, unknown keys, meaning and environment: one line each, none hides another."""
    text = """\
broker:
  heartbeat: 5x
  heatbeat: 10s
exchanges:
  broken: {type: 5}
queues:
  q:
    type: quorm
    bindings: [{exchange: brokn}]
workers:
  a:
    task: nothing
    instances: ${UNSET}
    prefech_count: 1
    retry: {max_attempts: 0, delays: []}
  b: {}
"""
    assert problems(text, {"WORKERKIT_FOO__BAR": "1"}) == [
        "2: broker.heartbeat: '5x' is not a duration: write a number and a unit (ms, s, m, h, d), like 30s",
        "3: broker: unknown key `heatbeat` (did you mean `heartbeat`?)",
        "5: exchanges.broken.type: expected text, got a number: put it in quotes",
        "8: queues.q.type: expected one of `quorum`, `classic`, got `quorm` (did you mean `quorum`?)",
        "9: queues.q.bindings[0].exchange: `brokn` is not listed under `exchanges` (did you mean `broken`?)",
        "12: workers.a.task: `nothing` must be `module:Class`, like workers.thumbnail:ThumbnailWorker",
        "13: workers.a.instances: the environment variable UNSET is not set: set it, or write `${UNSET:-default}`",
        "14: workers.a: unknown key `prefech_count` (did you mean `prefetch_count`?)",
        "15: workers.a.retry.max_attempts: expected a whole number of at least 1, got 0",
        "15: workers.a.retry.delays: expected a list with at least one item, got an empty list",
        "16: workers.b: the key `task` is missing: add it (text)",
        "environment WORKERKIT_FOO__BAR: sets nothing that the configuration has: unset it, or correct its name",
    ]


def test_a_flood_of_problems_is_cut(problems):
    """Nobody reads a thousand lines."""
    lines = problems("".join(f"wrong{number}: 1\n" for number in range(60)))
    assert len(lines) == 51
    assert lines[-1] == "… and 10 more"


def test_an_unknown_key_without_a_near_one_lists_what_is_known(problems):
    """There is always something to go on."""
    assert problems("broker: {zzz: 1}\n") == [
        "1: broker: unknown key `zzz`: known here are url, heartbeat, connection_timeout"
    ]


@pytest.mark.parametrize(
    ("key", "written", "text"),
    [
        ("instances", "four", "expected a whole number of at least 1, got text"),
        ("instances", "1.5", "expected a whole number of at least 1, got 1.5"),
        ("instances", "true", "expected a whole number of at least 1, got true"),
        ("instances", "", "expected a whole number of at least 1, got nothing: write a value, or remove the key"),
        ("prefetch_count", "0", "expected a whole number from 1 to 65535 or `auto`, got 0"),
        ("prefetch_count", "65536", "expected a whole number from 1 to 65535 or `auto`, got 65536"),
        (
            "prefetch_count",
            "atuo",
            "expected a whole number from 1 to 65535 or `auto`, got `atuo` (did you mean `auto`?)",
        ),
        ("executors", "65", "expected a whole number from 1 to 64, got 65"),
        ("concurrency", "0", "expected a whole number from 1 to 1000, got 0"),
        ("select", "fair", "expected `weighted`, `strict` or `package.module:Strategy`, got text"),
        ("on_lost", "stop", "expected one of `continue`, `end`, got `stop`"),
        ("queues", "[a, b]", "expected a mapping from queues to weights, got a list"),
        ("spare_memory_multiplier", "-1", "expected a whole number of at least 0, got -1"),
        ("auto_ack", "maybe", "expected true or false, got text"),
        ("queue", "1", "expected text, got a number: put it in quotes"),
        ("queue", "yes", "expected text, got a yes or no: put it in quotes"),
        ("queue", "[a]", "expected text, got a list"),
        ("ttl", "true", "expected a duration like 30s, got true"),
        ("ttl", "-5", "-5 is not a duration: write a number and a unit (ms, s, m, h, d), like 30s"),
        ("ttl", "{}", "expected a duration like 30s, got a mapping"),
        ("memory_limit", "[1]", "expected a size like 512MiB, got a list"),
        ("retry", "5", "expected a mapping, got a number"),
        ("environment", "", "expected a mapping, got nothing: write `{}`, or remove the key"),
    ],
)
def test_a_wrong_type_says_what_was_expected_and_what_was_found(problems, key, written, text):
    """In words of the YAML, not of Python."""
    assert problems(f"workers:\n  a:\n    task: a:B\n    {key}: {written}\n") == [f"4: workers.a.{key}: {text}"]


def test_a_bad_list_item_is_named_by_its_place(problems):
    """And one bad item does not shift the others."""
    assert problems("workers:\n  a:\n    task: a:B\n    retry:\n      delays:\n      - 1s\n      - 2x\n") == [
        "7: workers.a.retry.delays[1]: '2x' is not a duration: write a number and a unit (ms, s, m, h, d), like 30s"
    ]


@pytest.mark.parametrize(
    "text",
    [
        "broker:\n  url: {amqp://u:canary@h: 1}\n",
        "broker:\n  url: htp://u:canary@h\n",
        "broker:\n  url: amqp://u:12#canary@h\n",
        "broker:\n  url: amqp://u:canary/x@h\n",
        "broker:\n  url: 'amqp://u:can ary canary@h'\n",
        "broker:\n  url: amqp://u:canary:x@h:port\n",
        "broker:\n  url: 'amqp://u:canary@[h'\n",
        "broker:\n  heartbeat: amqp://u:canary@h\n",
        "logging:\n  level: amqp://u:canary@h\n",
        "workers:\n  a: {task: 'amqp://u:canary@h'}\n",
        "workers:\n  a: {task: 'a:B', environment: {DB_PASSWORD: [canary]}}\n",
        "workers:\n  a: {task: 'a:B', environment: {DB_PASSWORD: *canary}}\n",
        'workers:\n  a: {task: "a:B", environment: {DB_PASSWORD: "canary\\0"}}\n',
    ],
)
def test_no_error_shows_a_password(problems, text):
    """Errors end up in logs and tickets."""
    assert "canary" not in "\n".join(problems(text))


def test_only_keys_that_were_written_outrank_the_class(load_text):
    """Written in YAML or environment, a null included; defaults of the model are not."""
    yaml = "workers:\n  a: {task: 'a:B', ttl: null, instances: 1}\n  b: {task: 'a:B'}\n"
    loaded = load_text(yaml, {"WORKERKIT_WORKERS__A__RETRY__MAX_ATTEMPTS": "2"})
    assert loaded.written_worker_keys["a"] == {
        "task": "a:B",
        "ttl": None,
        "instances": 1,
        "retry": {"max_attempts": 2},
    }
    assert loaded.written_worker_keys["b"] == {"task": "a:B"}


def test_loaded_settings_cannot_be_changed(load_text):
    """They are shared by everything in the process."""
    loaded = load_text(DESIGN)
    with pytest.raises(AttributeError):
        loaded.settings.broker.url = "x"
    with pytest.raises(TypeError):
        loaded.origins["x"] = "y"
