"""The JSON Schema of ``config/workerkit.yaml``, made from the model, for editors and for checks in CI.

msgspec's own generator describes the values, not the file: it knows neither units nor ``${VAR}``.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from types import NoneType
from typing import Any, Final, Literal, get_args, get_origin

import msgspec
from msgspec.structs import FieldInfo

from workerkit import retry, task_settings
from workerkit.declared import (
    DURATION,
    SIZE,
    alternatives,
    bare,
    constraints,
    container,
    describe,
    fields,
    is_struct,
    item_type,
    unit,
)
from workerkit.settings import model
from workerkit.settings.model import Settings, WorkerSettings
from workerkit.settings.units import DURATION_PATTERN, SIZE_PATTERN, as_written
from workerkit.task_settings import TaskSettings

Schema = dict[str, Any]

_VARIABLE: Final = {"type": "string", "pattern": r"\$\{"}
"""Anything but text may be written as ``${VAR}`` too."""


def json_schema() -> Schema:
    """The schema (draft 2020-12) of the whole file, as plain dicts and lists.

    Describes the file as it is written: durations and sizes with their units, ``${VAR}`` not yet expanded.
    """
    definitions: dict[str, Schema] = {}
    root = _reference(Settings, definitions)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "workerkit configuration",
        **root,
        "$defs": definitions,
    }


def _reference(tp: type[msgspec.Struct], definitions: dict[str, Schema]) -> Schema:
    name = tp.__name__
    if name not in definitions:
        definitions[name] = {}  # claims the name
        definitions[name] = _object(tp, definitions)
    return {"$ref": f"#/$defs/{name}"}


def _object(tp: type[msgspec.Struct], definitions: dict[str, Schema]) -> Schema:
    properties: dict[str, Schema] = {}
    required: list[str] = []
    for field in fields(tp):
        schema = _schema(field.type, definitions)
        schema["description"] = description(tp, field.name)
        if any(unit(member) or constraints(member).title for member in alternatives(field.type)):
            schema["title"] = describe(field.type)
        if field.required:
            required.append(field.name)
        elif (default := default_of(field)) is not None and not is_struct(field.type):
            schema["default"] = default
        properties[field.name] = schema
    result: Schema = {"type": "object", "properties": properties, "additionalProperties": False}
    if required:
        result["required"] = required
    result["description"] = inspect.cleandoc(tp.__doc__ or "")
    return result


def default_of(field: FieldInfo) -> object:
    """The default of a key that is not required, as one would write it in the file."""
    default = field.default if field.default is not msgspec.NODEFAULT else field.default_factory()
    return as_written(field.type, default)


def _schema(tp: Any, definitions: dict[str, Schema]) -> Schema:
    members = alternatives(tp)
    if len(members) > 1:
        return {"anyOf": [_schema(member, definitions) for member in members]}
    plain, meta = bare(tp), constraints(tp)
    if is_struct(plain):
        return _reference(plain, definitions)
    if container(plain) is dict:
        return {"type": "object", "additionalProperties": _schema(item_type(plain), definitions)}
    if container(plain) in (list, tuple):
        items = {"type": "array", "items": _schema(item_type(plain), definitions)}
        return items | ({"minItems": meta.min_length} if meta.min_length else {})
    if measure := unit(tp):
        least = "minimum" if meta.gt is None else "exclusiveMinimum"
        plainly = {"type": "number" if plain is float else "integer", least: 0}
        return {"anyOf": [plainly, {"type": "string", "pattern": _PATTERNS[measure]}, _VARIABLE]}
    if get_origin(plain) is Literal:
        return {"anyOf": [{"enum": list(get_args(plain))}, _VARIABLE]}
    if plain is int:
        bounds = {"minimum": meta.ge, "maximum": meta.le}
        number = {"type": "integer"} | {key: bound for key, bound in bounds.items() if bound is not None}
        return {"anyOf": [number, _VARIABLE]}
    if meta.pattern:
        return {"anyOf": [{"type": "string", "pattern": meta.pattern}, _VARIABLE]}
    return _SIMPLE[plain].copy()


_PATTERNS: Final = {DURATION: DURATION_PATTERN, SIZE: SIZE_PATTERN}
_SIMPLE: Final[dict[Any, Schema]] = {
    Any: {},
    NoneType: {"type": "null"},
    str: {"type": "string"},
    bool: {"anyOf": [{"type": "boolean"}, _VARIABLE]},
}


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
