"""Plain values into the types of the model, with every problem of the file found in one walk.

msgspec checks each value; walking by hand around it gives what ``msgspec.convert`` of the whole cannot: the names of
mapping entries (its paths say ``$.workers[...].ttl``), and the second error as well as the first.
"""

from __future__ import annotations

from collections.abc import Iterable
from types import NoneType
from typing import Any, Final, Literal, TypeVar, get_args, get_origin

import msgspec

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
from workerkit.settings.model import Settings
from workerkit.settings.tree import BROKEN, Broken, ConfigTree, KeyPath, did_you_mean
from workerkit.settings.units import format_duration, parse_duration, parse_size

Section = TypeVar("Section", bound=msgspec.Struct)

_PARSERS: Final = {DURATION: parse_duration, SIZE: parse_size}
_NOT_ZERO: Final = "must be more than 0: remove the key to keep the default"


def convert_settings(tree: ConfigTree) -> Settings:
    """The settings that ``tree`` holds. Values that do not fit are reported in the tree and left at their default."""
    settings = _struct(tree, Settings, tree.data, ())
    assert isinstance(settings, Settings)  # no key of the whole file is required
    return settings


def _struct(tree: ConfigTree, tp: type[Section], values: dict[str, object], path: KeyPath) -> Section | Broken:
    known = {field.name: field for field in fields(tp)}
    converted: dict[str, object] = {}
    for key, value in values.items():
        if key not in known:
            tree.report(path, unknown_key(key, known), tree.origin((*path, key)))
            continue
        result = _value(tree, known[key].type, value, (*path, key))
        if result is not BROKEN:
            converted[key] = result
    for name, field in known.items():
        if field.required and name not in values:
            tree.report(path, f"the key `{name}` is missing: add it ({describe(field.type)})")
    if any(field.required and name not in converted for name, field in known.items()):
        return BROKEN
    return tp(**converted)


def _value(tree: ConfigTree, tp: Any, value: object, path: KeyPath) -> object:
    for member in alternatives(tp):
        if is_struct(member) and isinstance(value, dict):
            return _struct(tree, member, value, path)
        if container(member) is dict and isinstance(value, dict):
            items = {key: _value(tree, item_type(member), item, (*path, key)) for key, item in value.items()}
            return {key: item for key, item in items.items() if item is not BROKEN}
        if container(member) in (list, tuple) and isinstance(value, list):
            return _list(tree, member, value, path)
    return _checked(tree, tp, value, path)


def _list(tree: ConfigTree, tp: Any, values: list[object], path: KeyPath) -> object:
    items = [_value(tree, item_type(tp), item, (*path, index)) for index, item in enumerate(values)]
    return _checked(tree, tp, items, path)


def _checked(tree: ConfigTree, tp: Any, value: object, path: KeyPath) -> object:
    if _holds_broken(value):
        # Reported already. One broken item breaks its list: the others would move up to places not theirs.
        return BROKEN
    try:
        if isinstance(value, str):
            value.encode()  # the environment may hand over bytes that are not UTF-8
        value = _from_units(tp, value)
        return msgspec.convert(value, tp)
    except UnicodeEncodeError:
        tree.report(path, "is not valid UTF-8")
    except msgspec.ValidationError:
        tree.report(path, _mismatch(tp, value))
    except ValueError as error:  # a unit's own words say more than ours
        tree.report(path, str(error))
    return BROKEN


def _from_units(tp: Any, value: object) -> object:
    if (measure := unit(tp)) and isinstance(value, str | int | float) and not isinstance(value, bool):
        return _PARSERS[measure](value)
    return value


def _mismatch(tp: Any, value: object) -> str:
    members = [bare(member) for member in alternatives(tp)]
    if unit(tp) and isinstance(value, int | float) and not isinstance(value, bool):
        most = constraints(tp).le
        return _NOT_ZERO if not value or most is None else f"must be at most {format_duration(most)}"
    choices = [choice for member in members if get_origin(member) is Literal for choice in get_args(member)]
    if choices and isinstance(value, str):
        return f"expected {describe(tp)}, got `{value}`{did_you_mean(value, choices)}"
    if str in members and isinstance(value, bool | int | float):
        return f"expected text, got {'a number' if not isinstance(value, bool) else 'a yes or no'}: put it in quotes"
    if int in members and isinstance(value, int | float) and not isinstance(value, bool):
        return f"expected {describe(tp)}, got {value}"
    if value is None:
        value_hint = "`{}`" if describe(tp) == "a mapping" else "a value"
        return f"expected {describe(tp)}, got nothing: write {value_hint}, or remove the key"
    return f"expected {describe(tp)}, got {_describe_value(value)}"


def _describe_value(value: object) -> str:
    """What stands there, by its kind. Texts and numbers are not repeated: they may be secrets."""
    if isinstance(value, bool):
        return str(value).lower()
    kinds = {NoneType: "nothing", str: "text", int: "a number", float: "a number", dict: "a mapping"}
    return kinds.get(type(value)) or ("a list" if value else "an empty list")


def unknown_key(key: str, known: Iterable[str]) -> str:
    """The problem with a key that does not exist, with the nearest of ``known`` or all of them."""
    near = did_you_mean(key, known)
    return f"unknown key `{key}`{near}" if near else f"unknown key `{key}`: known here are {', '.join(known)}"


def _holds_broken(value: object) -> bool:
    if isinstance(value, dict):
        return any(map(_holds_broken, value.values()))
    if isinstance(value, list):
        return any(map(_holds_broken, value))
    return value is BROKEN
