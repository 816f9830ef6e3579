from __future__ import annotations

import pytest

YAML = """\
broker:
  url: amqp://yaml
queues:
  images: {arguments: {x-max-length: 5}}
workers:
  thumb-nail.v2:
    task: a:B
    ttl: 1h
    retry: {max_attempts: 3}
    environment: {EXISTING: a}
"""
WORKER = "WORKERKIT_WORKERS__THUMB_NAIL_V2"


def worker(loaded):
    return loaded.settings.workers["thumb-nail.v2"]


def test_a_variable_overrides_the_file_and_is_its_origin(load_text):
    """The environment outranks the YAML, and ``--origin`` can say so."""
    loaded = load_text(YAML, {f"{WORKER}__TTL": "5m", "WORKERKIT_BROKER__URL": "amqp://environment"})
    assert worker(loaded).ttl == 300
    assert loaded.settings.broker.url == "amqp://environment"
    assert loaded.origins["workers.thumb-nail.v2.ttl"] == f"environment {WORKER}__TTL"
    assert loaded.origins["broker.url"] == "environment WORKERKIT_BROKER__URL"


@pytest.mark.parametrize(
    ("name", "value", "key", "expected"),
    [
        ("INSTANCES", "4", "instances", 4),
        ("AUTO_ACK", "true", "auto_ack", True),
        ("MEMORY_LIMIT", "64MiB", "memory_limit", 64 * 2**20),
        ("CALLBACK_TIMEOUT", "90", "callback_timeout", 90),
        ("QUEUE", "404", "queue", "404"),
        ("QUEUE", "[x]: #y", "queue", "[x]: #y"),
        ("instances", "4", "instances", 4),
    ],
)
def test_values_take_the_type_of_their_key(load_text, name, value, key, expected):
    """Text keys take the value as it is; others read it as a YAML scalar. Case does not matter."""
    assert getattr(worker(load_text(YAML, {f"{WORKER}__{name}": value})), key) == expected


def test_lists_are_written_between_brackets(load_text):
    """A list replaces the whole list."""
    environ = {f"{WORKER}__RETRY__DELAYS": "[1s, 2s]", "WORKERKIT_BROKER__URL": "[amqp://u:p@a/%2F, amqp://b]"}
    loaded = load_text(YAML, environ)
    assert worker(loaded).retry.delays == (1, 2)
    assert worker(loaded).retry.max_attempts == 3
    assert loaded.settings.broker.url == ["amqp://u:p@a/%2F", "amqp://b"]
    assert loaded.origins["workers.thumb-nail.v2.retry.delays"] == f"environment {WORKER}__RETRY__DELAYS"


def test_sections_that_the_file_does_not_have_are_created(load_text):
    """Every key of the model can be set, written in the YAML or not."""
    loaded = load_text("", {"WORKERKIT_LOGGING__LEVEL": "debug", "WORKERKIT_SUPERVISOR__STOPWAITSECS": "60"})
    assert loaded.settings.logging.level == "debug"
    assert loaded.settings.supervisor.stopwaitsecs == 60


def test_variables_of_a_worker_are_set_by_name(load_text):
    """Below ``environment`` any name is taken as written, ``_FILE`` included; its value is text."""
    environ = {
        f"{WORKER}__ENVIRONMENT__OMP_NUM_THREADS": "1",
        f"{WORKER}__ENVIRONMENT__existing": "b",
        f"{WORKER}__ENVIRONMENT__SSL_CERT_FILE": "/etc/ssl/cert.pem",
        "WORKERKIT_SUPERVISOR__ENVIRONMENT__LANG": "C.UTF-8",
    }
    loaded = load_text(YAML, environ)
    assert worker(loaded).environment == {
        "EXISTING": "b",
        "OMP_NUM_THREADS": "1",
        "SSL_CERT_FILE": "/etc/ssl/cert.pem",
    }
    assert loaded.settings.supervisor.environment == {"LANG": "C.UTF-8"}


def test_free_form_arguments_that_the_file_has_can_be_changed(load_text):
    """``-`` in a key is ``_`` in the variable."""
    loaded = load_text(YAML, {"WORKERKIT_QUEUES__IMAGES__ARGUMENTS__X_MAX_LENGTH": "9"})
    assert loaded.settings.queues["images"].arguments == {"x-max-length": 9}


def test_a_secret_is_read_from_the_file_that_a_variable_names(load_text, project):
    """``_FILE`` reads the value from a file and strips the line break that editors add."""
    (project / "secret").write_text("amqp://user:canary@host\n")
    loaded = load_text(YAML, {"WORKERKIT_BROKER__URL_FILE": str(project / "secret")})
    assert loaded.settings.broker.url == "amqp://user:canary@host"
    assert loaded.origins["broker.url"] == "environment WORKERKIT_BROKER__URL_FILE"


def test_a_secret_file_that_cannot_be_used_is_an_error_that_shows_no_secret(problems, project):
    """Somebody may have put the secret itself in the variable."""
    assert problems(YAML, {"WORKERKIT_BROKER__URL_FILE": "canary"}) == [
        (
            "environment WORKERKIT_BROKER__URL_FILE: broker.url: "
            "the file that it names cannot be read: No such file or directory"
        )
    ]
    (project / "binary").write_bytes(b"\xff")
    assert "not UTF-8" in problems(YAML, {"WORKERKIT_BROKER__URL_FILE": "binary"})[0]
    (project / "large").write_bytes(b"x" * (2**20 + 1))
    assert "larger than 1 MiB" in problems(YAML, {"WORKERKIT_BROKER__URL_FILE": "large"})[0]


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("WORKERKIT_BROKER__ULR", "(did you mean WORKERKIT_BROKER__URL, for `broker.url`?)"),
        ("WORKERKIT_BROKER_URL", "(did you mean WORKERKIT_BROKER__URL, for `broker.url`?)"),
        (f"{WORKER}__TTTL", f"(did you mean {WORKER}__TTL, for `workers.thumb-nail.v2.ttl`?)"),
        ("WORKERKIT_BROKER", "sets nothing that the configuration has"),
        ("WORKERKIT_FOO__BAR", "sets nothing that the configuration has: unset it"),
        ("WORKERKIT_WORKERS__OTHER__TASK", "sets nothing that the configuration has"),
        (f"{WORKER}__RETRY", "sets nothing that the configuration has"),
        ("WORKERKIT_SUPERVISOR__ENVIRONMENT__", "sets nothing that the configuration has"),
    ],
)
def test_a_variable_that_sets_nothing_is_an_error_with_the_nearest_key(problems, name, hint):
    """A misspelt override must not be ignored in silence."""
    (line,) = problems(YAML, {name: "x"})
    assert line.startswith(f"environment {name}: sets nothing that the configuration has")
    assert hint in line


def test_other_variables_are_left_alone(load_text):
    """Reserved names, and names that look like nothing of the configuration, are not ours to refuse."""
    environ = {"WORKERKIT_INSTANCE": "00", "WORKERKIT_CONFIG": "x", "WORKERKIT_WORKER": "y"}
    environ |= {"WORKERKIT_FOO": "z", "BROKER__URL": "amqp://other", "OTHER__THING": "x"}
    assert load_text(YAML, environ).settings == load_text(YAML, {}).settings


def test_a_bad_value_is_reported_with_its_variable(problems):
    """The origin is what to change; what the file says there does not matter any more."""
    environ = {
        f"{WORKER}__TTL": "5x",
        f"{WORKER}__INSTANCES": "010",
        f"{WORKER}__RETRY__DELAYS": "[1s",
        f"{WORKER}__ENVIRONMENT__BYTES": "\udcff",
    }
    lines = [line.removeprefix(f"environment {WORKER}__") for line in problems(YAML, environ)]
    assert sorted(lines) == [
        "ENVIRONMENT__BYTES: workers.thumb-nail.v2.environment.BYTES: is not valid UTF-8",
        "INSTANCES: workers.thumb-nail.v2.instances: YAML reads this as 8: write 8, or put it in quotes if it is text",
        "RETRY__DELAYS: workers.thumb-nail.v2.retry.delays: not valid YAML: did not find expected ',' or ']'",
        "TTL: workers.thumb-nail.v2.ttl: '5x' is not a duration: write a number and a unit (ms, s, m, h, d), like 30s",
    ]


def test_the_items_of_an_overriding_list_have_its_origin(problems):
    """Not the lines of the items that they replace."""
    yaml = "workers:\n  a:\n    task: a:B\n    retry: {delays: [1s, 2s]}\n"
    name = "WORKERKIT_WORKERS__A__RETRY__DELAYS"
    assert problems(yaml, {name: "[1s, 2x]"}) == [
        (
            f"environment {name}: workers.a.retry.delays[1]: "
            "'2x' is not a duration: write a number and a unit (ms, s, m, h, d), like 30s"
        )
    ]
    assert problems(yaml, {name: "[010, 2s]"}) == [
        (
            f"environment {name}: workers.a.retry.delays[0]: "
            "YAML reads this as 8: write 8, or put it in quotes if it is text"
        )
    ]


def test_an_override_withdraws_the_error_of_what_it_replaces(load_text):
    """``url: ${UNSET}`` does not matter when the URL comes from elsewhere."""
    loaded = load_text("broker:\n  url: ${UNSET}\n", {"WORKERKIT_BROKER__URL": "amqp://environment"})
    assert loaded.settings.broker.url == "amqp://environment"


def test_one_key_set_by_two_variables_is_an_error(problems):
    """Which one wins would be chance."""
    environ = {"WORKERKIT_BROKER__URL": "amqp://a", "WORKERKIT_BROKER__URL_FILE": "x"}
    assert problems(YAML, environ) == [
        "environment WORKERKIT_BROKER__URL_FILE: broker.url: is set by WORKERKIT_BROKER__URL as well: unset one of them"
    ]


def test_a_variable_that_may_mean_two_workers_is_an_error(problems):
    """``a-b`` and ``a_b`` have the same variables."""
    yaml = "workers: {a-b: {task: 'a:B'}, a_b: {task: 'a:B'}}"
    assert problems(yaml, {"WORKERKIT_WORKERS__A_B__TTL": "5m"}) == [
        "environment WORKERKIT_WORKERS__A_B__TTL: may mean workers.a-b.ttl or workers.a_b.ttl: set it in the YAML"
    ]


def test_well_known_broker_variables_are_used_in_order_when_no_url_is_given(load_text):
    """Platforms set one of them; ours and the file's come first, empty ones do not count."""
    environ = {"CLOUDAMQP_URL": "amqp://cloud", "AMQP_URL": "amqp://plain", "RABBITMQ_URL": ""}
    loaded = load_text("", environ)
    assert loaded.settings.broker.url == "amqp://plain"
    assert loaded.origins["broker.url"] == "environment AMQP_URL"
    assert load_text("", environ | {"RABBITMQ_URL": "amqp://rabbit"}).settings.broker.url == "amqp://rabbit"
    assert load_text("broker: {url: 'amqp://yaml'}", environ).settings.broker.url == "amqp://yaml"
    override = environ | {"WORKERKIT_BROKER__URL": "amqp://ours"}
    assert load_text("", override).settings.broker.url == "amqp://ours"


def test_an_override_below_something_that_is_no_section_leaves_the_files_error(problems):
    """The file is wrong, with its line; the override has nowhere to go."""
    assert problems("broker: 5\n", {"WORKERKIT_BROKER__URL": "amqp://a"}) == [
        "1: broker: expected a mapping, got a number"
    ]
