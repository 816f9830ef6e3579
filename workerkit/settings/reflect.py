"""The little that is needed of the settings' types at run time: what may stand somewhere, and how to say so."""

from __future__ import annotations

from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Final, Literal, TypeGuard, Union, get_args, get_origin

import msgspec
from msgspec.structs import FieldInfo

from workerkit.settings.model import Duration, Size

_WORDS: Final[dict[Any, str]] = {
    str: "text",
    bool: "true or false",
    Duration: "a duration like 30s",
    Size: "a size like 512MiB",
}


def alternatives(tp: Any) -> tuple[Any, ...]:
    """The members of a union, or ``tp`` alone."""
    return get_args(tp) if get_origin(tp) in (Union, UnionType) else (tp,)


def bare(tp: Any) -> Any:
    """``tp`` without its constraints."""
    return get_args(tp)[0] if get_origin(tp) is Annotated else tp


def constraints(tp: Any) -> msgspec.Meta:
    """The ``Meta`` of ``tp``; an empty one when it has none."""
    metas = get_args(tp)[1:] if get_origin(tp) is Annotated else ()
    return next((meta for meta in metas if isinstance(meta, msgspec.Meta)), msgspec.Meta())


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


def describe(tp: Any) -> str:
    """What may stand where ``tp`` is declared, in the operator's words."""
    return " or ".join(_describe_one(member) for member in alternatives(tp) if member is not NoneType)


def describe_value(value: object) -> str:
    """What stands there instead, by its kind. Texts and numbers are not repeated: they may be secrets."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return "text"
    if isinstance(value, int | float):
        return "a number"
    if isinstance(value, dict):
        return "a mapping"
    return "a list" if value else "an empty list"


def _describe_one(tp: Any) -> str:
    plain, meta = bare(tp), constraints(tp)
    if plain in _WORDS:
        return _WORDS[plain]
    if plain is int:
        return f"a whole number{_bounds(meta)}"
    if get_origin(plain) is Literal:
        return "one of " + ", ".join(f"`{choice}`" for choice in get_args(plain))
    if container(plain) in (list, tuple):
        return "a list with at least one item" if meta.min_length else "a list"
    return "a mapping"


def _bounds(meta: msgspec.Meta) -> str:
    if meta.ge is not None and meta.le is not None:
        return f" from {meta.ge} to {meta.le}"
    return f" of at least {meta.ge}" if meta.ge is not None else ""
