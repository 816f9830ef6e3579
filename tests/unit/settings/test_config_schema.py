from __future__ import annotations

import json
import re

import msgspec
import pytest

from workerkit import retry
from workerkit.settings import Settings, json_schema, model


@pytest.fixture(scope="module")
def definitions():
    return json_schema()["$defs"]


def test_the_schema_is_json_and_begins_with_the_whole_file():
    """Editors read it from a file."""
    schema = json.loads(json.dumps(json_schema()))
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema["$ref"] == "#/$defs/Settings"
    assert schema["title"] == "workerkit configuration"


def test_every_key_of_the_model_is_in_the_schema_and_no_other_is_allowed(definitions):
    """The model is declared once; the schema cannot drift from it."""
    seen = set()

    def visit(tp):
        seen.add(tp.__name__)
        definition = definitions[tp.__name__]
        assert definition["additionalProperties"] is False
        assert list(definition["properties"]) == [field.name for field in msgspec.structs.fields(tp)]
        for name in re.findall(r"#/\$defs/(\w+)", json.dumps(definition)):
            if name not in seen:
                visit(getattr(model, name, None) or getattr(retry, name))

    visit(Settings)
    assert seen == set(definitions)


def test_descriptions_are_the_docstrings_of_the_model(definitions):
    """What the source says beside an attribute is what the editor shows."""
    worker = definitions["WorkerSettings"]
    assert worker["description"].startswith("One worker.")
    assert worker["properties"]["task"]["description"] == "``module:Class``, imported from the project root."
    assert worker["properties"]["queue"]["description"].startswith("The queue to consume")
    assert all(key["description"] for definition in definitions.values() for key in definition["properties"].values())


def test_required_keys_defaults_and_bounds_are_those_of_the_model(definitions):
    """Defaults are shown as one would write them."""
    assert definitions["WorkerSettings"]["required"] == ["task"]
    assert definitions["BrokerSettings"]["required"] == []
    assert definitions["BrokerSettings"]["properties"]["heartbeat"]["default"] == "10s"
    delays = definitions["RetryPolicy"]["properties"]["delays"]
    assert delays["default"] == ["5s", "30s", "5m"]
    assert delays["minItems"] == 1
    prefetch = definitions["WorkerSettings"]["properties"]["prefetch_count"]
    assert prefetch["anyOf"][0]["anyOf"][0] == {"type": "integer", "minimum": 1, "maximum": 65_535}
    assert prefetch["default"] == "auto"
    starve_after = definitions["WorkerSettings"]["properties"]["starve_after"]
    assert (starve_after["title"], starve_after["default"]) == ("a duration like 30s", "1m")
    assert starve_after["anyOf"][0]["anyOf"][0] == {"type": "number", "exclusiveMinimum": 0}


@pytest.mark.parametrize(
    ("section", "key", "fits", "does_not"),
    [
        ("BrokerSettings", "heartbeat", ["500ms", "1.5s", "2d", "5", "${X:-5s}"], ["5x", "-5s", "", "5M"]),
        ("WorkerSettings", "select", ["strict", "shop.choosers:Fair", "${X}"], ["fair", "a:b:c", ":B", ""]),
        ("WorkerSettings", "memory_limit", ["512MiB", "10KB", "1B", "5", "${X}"], ["512M", "5mib", "-5B", ""]),
    ],
)
def test_patterns_take_what_the_loader_takes(definitions, section, key, fits, does_not):
    """Durations and sizes are text with a unit, a number, or a variable."""
    schema = json.dumps(definitions[section]["properties"][key])
    patterns = [json.loads(f'"{pattern}"') for pattern in re.findall(r'"pattern": "((?:[^"\\]|\\.)*)"', schema)]
    assert all(any(re.search(pattern, text) for pattern in patterns) for text in fits)
    assert not any(re.search(pattern, text) for pattern in patterns for text in does_not)
