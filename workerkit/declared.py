"""The types that settings are declared with, and what can be read from a declaration at run time.

A declaration is an annotated attribute with a default and a docstring. Its ``Meta`` holds the bounds, and the unit for
numbers that people write with one.
"""

from __future__ import annotations

from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Final, Literal, NamedTuple, TypeGuard, Union, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta
from msgspec.structs import FieldInfo

DURATION: Final = "duration"
SIZE: Final = "size"

Duration = Annotated[float, Meta(ge=0, extra_json_schema={"unit": DURATION})]
"""Seconds. Written with a unit (``500ms``, ``30s``, ``5m``, ``1h``, ``2d``); a bare number is seconds."""
Period = Annotated[float, Meta(gt=0, extra_json_schema={"unit": DURATION})]
"""A duration that is not zero."""
Size = Annotated[int, Meta(gt=0, extra_json_schema={"unit": SIZE})]
"""Bytes. Written with a unit (``512MiB``, ``1GiB``, ``64KiB``, ``100MB``); a bare number is bytes."""
Count = Annotated[int, Meta(ge=1)]

FIRST_VERSION: Final = "0.1"


class Since(NamedTuple):
    """Beside the type of a setting that is younger than the first version: ``Annotated[Count, Since("0.2")]``."""

    version: str


_WORDS: Final[dict[Any, str]] = {str: "text", bool: "true or false"}
_UNITS: Final = {
    DURATION: ("a duration like 30s", "a number of seconds"),
    SIZE: ("a size like 512MiB", "a whole number of bytes"),
}


class Setting(NamedTuple):
    """One declared setting."""

    name: str
    type: Any
    default: Any


@cache
def settings_of(declaration: type) -> tuple[Setting, ...]:
    """The settings that a class declares, in order, its bases' first: a field each, for ``msgspec.defstruct``."""
    hints = get_type_hints(declaration, include_extras=True)
    return tuple(Setting(name, tp, getattr(declaration, name)) for name, tp in hints.items())


def alternatives(tp: Any) -> tuple[Any, ...]:
    """The members of a union, or ``tp`` alone."""
    return get_args(tp) if get_origin(tp) in (Union, UnionType) else (tp,)


def bare(tp: Any) -> Any:
    """``tp`` without its constraints."""
    return get_args(tp)[0] if get_origin(tp) is Annotated else tp


def constraints(tp: Any) -> Meta:
    """The ``Meta`` of ``tp``, or of the one alternative that has one; else an empty one."""
    return next((item for item in _metadata(tp) if isinstance(item, Meta)), Meta())


def unit(tp: Any) -> str | None:
    """``DURATION`` or ``SIZE`` when ``tp``, or an alternative, is a number that is written with a unit."""
    return (constraints(tp).extra_json_schema or {}).get("unit")


def since(tp: Any) -> str:
    """The version in which a setting of this type came."""
    return next((item for item in _metadata(tp) if isinstance(item, Since)), Since(FIRST_VERSION)).version


@cache  # msgspec evaluates the annotations anew on each call, which costs more than the rest of loading
def fields(tp: type[msgspec.Struct]) -> tuple[FieldInfo, ...]:
    """The fields of a section, in the order of the model."""
    return msgspec.structs.fields(tp)


def is_struct(tp: Any) -> TypeGuard[type[msgspec.Struct]]:
    return isinstance(tp, type) and issubclass(tp, msgspec.Struct)


def container(tp: Any) -> type | None:
    """``dict``, ``list`` or ``tuple`` for a type that is one; None otherwise."""
    origin = get_origin(bare(tp))
    return origin if origin in (dict, list, tuple) else None


def item_type(tp: Any) -> Any:
    """The type of the values of a ``dict[str, X]``, ``list[X]`` or ``tuple[X, ...]``."""
    arguments = get_args(bare(tp))
    return arguments[1] if container(tp) is dict else arguments[0]


def describe(tp: Any, *, in_python: bool = False) -> str:
    """What may stand where ``tp`` is declared: in the operator's words, or in those of who writes the task."""
    words = [_describe_one(member, in_python) for member in alternatives(tp) if member is not NoneType]
    return " or ".join([*words, "None"] if in_python and NoneType in alternatives(tp) else words)


def _metadata(tp: Any) -> list[Any]:
    annotated = [member for member in alternatives(tp) if get_origin(member) is Annotated]
    return [item for member in annotated for item in get_args(member)[1:]]


def _describe_one(tp: Any, in_python: bool) -> str:
    plain, meta = bare(tp), constraints(tp)
    if meta.title:
        return meta.title
    if measure := unit(tp):
        return _UNITS[measure][in_python] + (" above 0" if in_python and meta.gt == 0 else "")
    if plain in _WORDS:
        return _WORDS[plain]
    if plain is int:
        return f"a whole number{_bounds(meta)}"
    if get_origin(plain) is Literal:
        choices = [f"`{choice}`" for choice in get_args(plain)]
        return f"one of {', '.join(choices)}" if len(choices) > 1 else choices[0]
    if container(plain) in (list, tuple):
        return "a list with at least one item" if meta.min_length else "a list"
    return f"a {plain.__name__}" if in_python and is_struct(plain) else "a mapping"


def _bounds(meta: Meta) -> str:
    if meta.ge is not None and meta.le is not None:
        return f" from {meta.ge} to {meta.le}"
    return f" of at least {meta.ge}" if meta.ge is not None else ""
