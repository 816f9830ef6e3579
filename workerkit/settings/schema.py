"""The JSON Schema of ``config/workerkit.yaml``, made from the model, for editors and for checks in CI.

msgspec describes the values. What it cannot know is added: the meanings, units and ``${VAR}``.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from typing import Any, Final

import msgspec
from msgspec.structs import FieldInfo

from workerkit import retry, task_settings
from workerkit.declared import (
    DURATION,
    SIZE,
    constraints,
    describe,
    fields,
    is_struct,
    unit,
)
from workerkit.settings import model
from workerkit.settings.model import Settings, WorkerSettings
from workerkit.settings.units import DURATION_PATTERN, SIZE_PATTERN, as_written
from workerkit.task_settings import TaskSettings

Schema = dict[str, Any]

_PATTERNS: Final = {DURATION: DURATION_PATTERN, SIZE: SIZE_PATTERN}


def json_schema() -> Schema:
    """The schema (draft 2020-12) of the whole file, as plain dicts and lists.

    Describes the file as it is written: durations and sizes with their units, ``${VAR}`` not yet expanded.
    """
    (root,), definitions = msgspec.json.schema_components([Settings], ref_template="#/$defs/{name}")
    for name, definition in definitions.items():
        section = getattr(model, name, None) or getattr(retry, name)
        keys = {field.name: _key(section, field, definition["properties"][field.name]) for field in fields(section)}
        definition["properties"] = keys
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "workerkit configuration",
        **root,
        "$defs": definitions,
    }


def _key(section: type[msgspec.Struct], field: FieldInfo, values: Schema) -> Schema:
    default = values.pop("default", None)
    schema = {**_as_written(values), "description": description(section, field.name)}
    if unit(field.type) or constraints(field.type).title:
        schema["title"] = describe(field.type)
    if default is not None and not is_struct(field.type):
        schema["default"] = default_of(field)
    return schema


def _as_written(schema: Schema) -> Schema:
    """What can stand in the file for these values: with a unit, or as a variable. Anything but text takes those."""
    for inner in ("items", "additionalProperties"):
        if isinstance(schema.get(inner), dict):
            return {**schema, inner: _as_written(schema[inner])}
    if "anyOf" in schema:
        return {"anyOf": [_as_written(member) for member in schema["anyOf"]]}
    if "enum" in schema or "pattern" in schema or schema.get("type") in ("integer", "number", "boolean"):
        with_unit = [_PATTERNS[schema.pop("unit")]] if "unit" in schema else []
        return {"anyOf": [schema, *({"type": "string", "pattern": pattern} for pattern in (*with_unit, r"\$\{"))]}
    return schema


def default_of(field: FieldInfo) -> object:
    """The default of a key that is not required, as one would write it in the file."""
    default = field.default if field.default is not msgspec.NODEFAULT else field.default_factory()
    return as_written(field.type, default)


def description(section: type[msgspec.Struct], key: str) -> str:
    """What a key means: the docstring beside it."""
    classes = (*section.__mro__, *(TaskSettings.__mro__ if section is WorkerSettings else ()))
    known = _docstrings()
    return next(known[name] for cls in classes if (name := f"{cls.__name__}.{key}") in known)


@cache
def _docstrings() -> dict[str, str]:
    """The docstrings of attributes, by ``Class.attribute``. Python drops them, so they are read from the source."""
    found: dict[str, str] = {}
    for module in (model, retry, task_settings):
        for node in ast.parse(inspect.getsource(module)).body:
            if isinstance(node, ast.ClassDef):
                found |= {f"{node.name}.{attribute}": text for attribute, text in _documented(node)}
    return found


def _documented(node: ast.ClassDef) -> Iterator[tuple[str, str]]:
    for before, statement in pairwise(node.body):
        match before, statement:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=text)):
                yield name, " ".join(str(text).split())
