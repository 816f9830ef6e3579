"""The JSON Schema of ``config/workerkit.yaml``, made from the model, for editors and for checks in CI.

msgspec's own generator cannot be used: it encodes defaults without a hook, and fails on ``Duration``.
"""

from __future__ import annotations

import ast
import inspect
from types import NoneType
from typing import Any, Final, Literal, get_args, get_origin

import msgspec

from workerkit.settings import model
from workerkit.settings.model import Duration, Settings, Size
from workerkit.settings.reflect import alternatives, bare, constraints, container, fields, is_struct, item_type
from workerkit.settings.units import DURATION_PATTERN, SIZE_PATTERN, format_duration, format_size

Schema = dict[str, Any]

_VARIABLE: Final = {"type": "string", "pattern": r"\$\{"}
"""Anything but text may be written as ``${VAR}`` too."""


def json_schema() -> Schema:
    """The schema (draft 2020-12) of the whole file, as plain dicts and lists.

    Describes the file as it is written: durations and sizes with their units, ``${VAR}`` not yet expanded.
    """
    definitions: dict[str, Schema] = {}
    root = _reference(Settings, definitions, _descriptions())
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "workerkit configuration",
        **root,
        "$defs": definitions,
    }


def _reference(tp: type[msgspec.Struct], definitions: dict[str, Schema], descriptions: dict[str, str]) -> Schema:
    name = tp.__name__
    if name not in definitions:
        definitions[name] = {}  # claims the name
        definitions[name] = _object(tp, definitions, descriptions)
    return {"$ref": f"#/$defs/{name}"}


def _object(tp: type[msgspec.Struct], definitions: dict[str, Schema], descriptions: dict[str, str]) -> Schema:
    properties: dict[str, Schema] = {}
    required: list[str] = []
    for field in fields(tp):
        schema = _schema(field.type, definitions, descriptions)
        if description := descriptions.get(f"{tp.__name__}.{field.name}"):
            schema["description"] = description
        if field.required:
            required.append(field.name)
        elif field.default is not msgspec.NODEFAULT and not isinstance(field.default, msgspec.Struct | NoneType):
            schema["default"] = _written(field.default)
        properties[field.name] = schema
    result: Schema = {"type": "object", "properties": properties, "additionalProperties": False}
    if required:
        result["required"] = required
    if description := descriptions.get(tp.__name__):
        result["description"] = description
    return result


def _schema(tp: Any, definitions: dict[str, Schema], descriptions: dict[str, str]) -> Schema:
    members = alternatives(tp)
    if len(members) > 1:
        return {"anyOf": [_schema(member, definitions, descriptions) for member in members]}
    plain, meta = bare(tp), constraints(tp)
    if is_struct(plain):
        return _reference(plain, definitions, descriptions)
    if container(plain) is dict:
        return {"type": "object", "additionalProperties": _schema(item_type(plain), definitions, descriptions)}
    if container(plain) in (list, tuple):
        items = {"type": "array", "items": _schema(item_type(plain), definitions, descriptions)}
        return items | ({"minItems": meta.min_length} if meta.min_length else {})
    if get_origin(plain) is Literal:
        return {"anyOf": [{"enum": list(get_args(plain))}, _VARIABLE]}
    if plain is int:
        bounds = {"minimum": meta.ge, "maximum": meta.le}
        number = {"type": "integer"} | {key: bound for key, bound in bounds.items() if bound is not None}
        return {"anyOf": [number, _VARIABLE]}
    return _SIMPLE[plain].copy()


def _with_unit(pattern: str, number: str) -> Schema:
    return {"anyOf": [{"type": number, "minimum": 0}, {"type": "string", "pattern": pattern}, _VARIABLE]}


_SIMPLE: Final[dict[Any, Schema]] = {
    Any: {},
    NoneType: {"type": "null"},
    str: {"type": "string"},
    bool: {"anyOf": [{"type": "boolean"}, _VARIABLE]},
    Duration: _with_unit(DURATION_PATTERN, "number"),
    Size: _with_unit(SIZE_PATTERN, "integer"),
}


def _written(value: object) -> object:
    """A default as one would write it in the file."""
    if isinstance(value, Duration):
        return format_duration(value)
    if isinstance(value, Size):
        return format_size(value)
    return [_written(item) for item in value] if isinstance(value, list | tuple) else value


def _descriptions() -> dict[str, str]:
    """The docstrings of the model's classes and attributes, by ``Class`` and ``Class.attribute``.

    Python drops the docstrings of attributes, so they are read from the model's source, where each is written once.
    """
    found: dict[str, str] = {}
    for node in ast.parse(inspect.getsource(model)).body:
        if not isinstance(node, ast.ClassDef):
            continue
        if docstring := ast.get_docstring(node):
            found[node.name] = docstring
        attribute = None
        for statement in node.body:
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
                attribute = statement.target.id
            elif attribute and isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
                found[f"{node.name}.{attribute}"] = inspect.cleandoc(str(statement.value.value))
    return found
