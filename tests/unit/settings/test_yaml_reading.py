from __future__ import annotations

import pytest
import yaml

from workerkit.settings import yamltree
from workerkit.settings.yamltree import MAX_BYTES, expand

BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
LONG_LIST_BOMB = f"a: &a [{'x, ' * 2000}]\nb: [{'*a, ' * 100}]\n"
MERGE_BOMB = "a: &a {x: 1}\n" + "".join(
    f"{name}: &{name} {{<<: [{', '.join([f'*{before}'] * 9)}]}}\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("broker:\n  heartbeat: 5s\n  heartbeat: 6s\n", "3: broker.heartbeat: is written twice, first at "),
        ('broker:\n  heartbeat: 5s\n  "heartbeat": 6s\n', "3: broker.heartbeat: is written twice"),
        ("broker:\n\theartbeat: 5s\n", "2: not valid YAML: found character"),
        ("broker:\n  url: 'amqp\n", "3: not valid YAML: found unexpected end of stream"),
        ("a: b: c\n", "1: not valid YAML: mapping values are not allowed"),
        ("workers:\n  1: {}\n", "2: workers: a key must be text: put it in quotes"),
        ("workers:\n  on: {}\n", "2: workers: a key must be text: put it in quotes"),
        ("workers:\n  ? [a]\n  : b\n", "2: workers: a key must be text: put it in quotes"),
        ("logging:\n  level: !!python/object/apply:os.system [id]\n", "2: logging.level: the tag !!python/object/"),
        ("logging:\n  level: !!python/name:os.system\n", "2: logging.level: the tag !!python/name:os.system is not"),
        ("logging:\n  level: !canary x\n", "2: logging.level: the tag with one `!` is not allowed"),
        ("logging:\n  level: !!binary aGk=\n", "2: logging.level: the tag !!binary is not allowed"),
        ("logging: !!set {level}\n", "1: logging: the tag !!set is not allowed"),
        ("--- !!python/object:os.system\nlogging: {}\n", "1: the tag !!python/object:os.system is not allowed"),
        ("workers:\n  ? !!str [a]\n  : b\n", "2: workers: a key must be text: put it in quotes"),
        ("logging: {}\n---\nbroker: {}\n", "2: a second document begins here: keep one, without `---`"),
        ("- a\n", "1: the file must hold a mapping"),
        ("hello\n", "1: the file must hold a mapping"),
        ("logging:\n  level: a\x01b\n", "2: not valid YAML: control characters are not allowed"),
        (b"logging:\n  level: \xff\n", "2: the file is not UTF-8"),
        ("a: *missing\n", "1: not valid YAML: found undefined alias: put a value that begins with `*` in quotes"),
        ("a: &a [*a]\n", "1: nested more than 50 levels deep"),
        ("a: &a {<<: *a}\n", "1: nested more than 50 levels deep"),
        ("a: 1\nb:\n  <<: 5\n", "3: b: `<<` must name a mapping"),
        (BOMB, ": stands for more than 50000 values"),
        (LONG_LIST_BOMB, ": stands for more than 50000 values"),
        (MERGE_BOMB, ": stands for more than 50000 values"),
        ("workers:\n  a: {task: ${TASK}}\n", "2: not valid YAML: "),
        ("workers:\n  a: {task: a:B, instances: 010}\n", "2: workers.a.instances: YAML reads this as 8"),
        ("workers:\n  a: {task: a:B, ttl: 1:30}\n", "2: workers.a.ttl: YAML reads this as 90"),
        (f"workers:\n  a: {{task: a:B, instances: {'9' * 5000}}}\n", "cannot be read as YAML's !!int"),
        ("workers:\n  a: {task: a:B, instances: !!int canary}\n", "cannot be read as YAML's !!int: put"),
        ("workers:\n  a: {task: a:B, instances: !!int ''}\n", "2: workers.a.instances: cannot be read as YAML's !!int"),
        ("workers:\n  a: {task: a:B, auto_ack: !!bool x}\n", "2: workers.a.auto_ack: cannot be read as YAML's !!bool"),
    ],
)
def test_yaml_that_a_configuration_must_not_hold_is_refused_with_its_line(problems, text, problem):
    """Whatever YAML allows beyond plain values is an error that names the line, before any value is believed."""
    found = problems(text)
    assert any(problem in line for line in found), found
    assert not any("canary" in line for line in found)


def test_the_loader_without_libyaml_finds_the_same(problems, load_text, monkeypatch):
    """PyYAML may have been built without its C part: same values, same refusals, and still no names from the file."""
    monkeypatch.setattr(yamltree, "_Loader", yaml.SafeLoader)
    assert load_text("logging: {level: '${L:-debug}'}").settings.logging.level == "debug"
    assert problems("a: *canary\n") == [
        "1: not valid YAML: found undefined alias: put a value that begins with `*` in quotes"
    ]
    assert problems("a: " + "[" * 1000) == [
        "1: nested more than 50 levels deep: this cannot be a workerkit configuration"
    ]
    assert problems("logging:\n  level: a\x01b\n") == ["2: not valid YAML: control characters are not allowed"]
    assert problems("broker:\n\theartbeat: 5s\n")[0].endswith("indent with spaces, a tab is not allowed here")


def test_brackets_nested_a_hundred_thousand_deep_are_an_error_and_not_a_crash(problems):
    """libyaml's composer would overflow the C stack: depth is looked at before composing."""
    assert problems("a: " + "[" * 100_000) == [
        "1: nested more than 50 levels deep: this cannot be a workerkit configuration"
    ]


def test_a_file_larger_than_a_mebibyte_is_not_read(problems):
    """A configuration is small; the wrong file is not parsed for minutes."""
    assert "the file is larger than 1 MiB" in problems("#" * (MAX_BYTES + 1))[0]


def test_between_braces_a_variable_needs_quotes_and_the_error_says_so(problems):
    """YAML takes the brace of `${` for its own there."""
    assert "between braces, put `${…}` in quotes" in problems("workers:\n  a: {task: ${TASK}}\n")[0]


def test_a_tab_is_named_for_what_it_is(problems):
    """The parser's `cannot start any token` helps nobody."""
    assert problems("broker:\n\theartbeat: 5s\n")[0].endswith("indent with spaces, a tab is not allowed here")


def test_a_second_key_says_where_the_first_is(problems):
    """Both lines are needed to decide."""
    assert problems("broker:\n  heartbeat: 5s\n  heartbeat: 6s\n") == [
        "3: broker.heartbeat: is written twice, first at config/workerkit.yaml:2: keep one of them"
    ]


def test_an_empty_file_is_all_defaults(load_text):
    """A file with only comments is a valid configuration."""
    assert load_text("# nothing yet\n").settings.workers == {}


def test_a_byte_order_mark_is_not_part_of_the_first_key(load_text):
    """Windows editors write one."""
    assert load_text(b"\xef\xbb\xbflogging: {level: debug}\n").settings.logging.level == "debug"


def test_anchors_and_merges_work_and_written_keys_win(load_text):
    """``<<`` adds what is not written beside it, and origins point at the line to edit."""
    loaded = load_text(
        "workers:\n"
        "  a: &base\n"
        "    task: a:B\n"
        "    ttl: 1h\n"
        "    environment: &env {X: '1'}\n"
        "  b:\n"
        "    <<: *base\n"
        "    ttl: 2h\n"
    )
    b = loaded.settings.workers["b"]
    assert (b.task, b.ttl, b.environment) == ("a:B", 7200, {"X": "1"})
    assert loaded.origins["workers.b.ttl"] == "config/workerkit.yaml:8"
    assert loaded.origins["workers.b.task"] == "config/workerkit.yaml:3"


@pytest.mark.parametrize(
    ("text", "expanded"),
    [
        ("${A}", "one"),
        ("x${A}y${B}z", "xoneytwoz"),
        ("${UNSET:-default}", "default"),
        ("${EMPTY:-default}", "default"),
        ("${A:-default}", "one"),
        ("${UNSET:-}", ""),
        ("${UNSET:-a:-b/%2F}", "a:-b/%2F"),
        ("${EMPTY}", ""),
        ("$${A}", "${A}"),
        ("$$$$", "$$"),
        ("pa$word$", "pa$word$"),
        ("$A", "$A"),
    ],
)
def test_variables_expand_as_a_shell_would_and_doubled_dollars_do_not(text, expanded):
    """``${VAR}``, ``${VAR:-default}`` and ``$$``; any other dollar is itself. Values are not expanded again."""
    assert expand(text, {"A": "one", "B": "two", "EMPTY": ""}) == expanded


def test_an_expanded_value_is_not_expanded_again():
    """A password may hold ``${``."""
    assert expand("${A}", {"A": "${B}$$", "B": "no"}) == "${B}$$"


@pytest.mark.parametrize("text", ["${", "${}", "${A", "${1A}", "${A-x}", "${A:?x}", "${A:-${B}}", "${A B}"])
def test_a_brace_after_a_dollar_must_be_a_variable(text):
    """Half-written variables and forms of other shells are errors, and not passed on as text."""
    with pytest.raises(ValueError, match=r"must be `\$\{NAME\}` or `\$\{NAME:-default\}`"):
        expand(text, {"A": "one", "B": "two"})


def test_an_unset_variable_is_an_error_with_line_and_key(problems):
    """The error names the file, the line, the key and the variable."""
    text = "workers:\n  thumbnail:\n    task: a:B\n    queue: ${QUEUE_NAME}\n"
    assert problems(text) == [
        (
            "4: workers.thumbnail.queue: the environment variable QUEUE_NAME is not set: "
            "set it, or write `${QUEUE_NAME:-default}`"
        )
    ]


def test_an_expanded_plain_value_is_a_number_and_a_quoted_one_stays_text(load_text):
    """After expansion YAML's rules hold: plain scalars are resolved, quoted ones are text."""
    text = (
        "workers:\n  a:\n    task: a:B\n    instances: ${N:-4}\n    auto_ack: ${YES}\n"
        "    environment:\n      THREADS: '${N:-4}'\n      FOLDED: >-\n        ${N:-4}\n"
    )
    worker = load_text(text, {"YES": "true"}).settings.workers["a"]
    assert (worker.instances, worker.auto_ack) == (4, True)
    assert worker.environment == {"THREADS": "4", "FOLDED": "4"}


def test_what_a_variable_holds_cannot_become_structure(problems):
    """Expansion happens inside one scalar, after parsing."""
    text = "workers:\n  a:\n    task: a:B\n    instances: ${N}\n"
    assert problems(text, {"N": "1\n    queue: stolen"}) == [
        "4: workers.a.instances: expected a whole number of at least 1, got text"
    ]


def test_dates_are_text(load_text):
    """A queue may be named after a day."""
    assert load_text("workers: {a: {task: 'a:B', queue: 2024-01-31}}").settings.workers["a"].queue == "2024-01-31"
