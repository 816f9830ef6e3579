"""Overrides from the environment: ``WORKERKIT_WORKERS__THUMBNAIL__TTL=5m`` sets ``workers.thumbnail.ttl``."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, get_origin

from workerkit.declared import alternatives, bare, container, fields, is_struct, item_type, unit
from workerkit.settings.model import Settings
from workerkit.settings.tree import ConfigTree, KeyPath, Origin, dotted
from workerkit.settings.yamltree import MAX_BYTES, parse_value

PREFIX: Final = "WORKERKIT_"
FALLBACK_URLS: Final = ("RABBITMQ_URL", "AMQP_URL", "CLOUDAMQP_URL")
"""What platforms and add-ons set; used when no broker URL is configured."""

_SECTIONS: Final = tuple(field.name.upper() for field in fields(Settings))
_FILE: Final = "_FILE"


class Key(NamedTuple):
    """A key that can be set, and the type of its value."""

    path: KeyPath
    type: Any


class _Known(NamedTuple):
    """What can be set in this configuration, by the variable's name in upper case."""

    keys: dict[str, list[Key]]
    open_mappings: dict[str, KeyPath]
    """Mappings of text to text (``environment``), which take any further name; by prefix, ending in ``__``."""


def apply_environment(tree: ConfigTree, environ: Mapping[str, str]) -> None:
    """Put every ``WORKERKIT_…__…`` variable of ``environ`` into ``tree``, and a broker URL where there is none.

    ``WORKERKIT_X__Y_FILE`` names a file that holds the value. Names match without regard to case, and ``_`` matches
    ``-`` and ``.`` in the names of workers, queues and exchanges; these must exist in the YAML. Below ``environment``
    any name is taken as it is written, ``_FILE`` included. Variables that set nothing are reported in ``tree``.
    """
    names = sorted(name for name in environ if _is_override(name))
    if names:
        known = _known_variables(tree.data)
        setters: dict[KeyPath, str] = {}
        for name in names:
            _override(tree, known, setters, name, environ[name])
    broker = tree.data.get("broker", {})
    if isinstance(broker, dict) and "url" not in broker:
        fallback = next((name for name in FALLBACK_URLS if environ.get(name)), None)
        if fallback:
            tree.put(("broker", "url"), environ[fallback], Origin(f"environment {fallback}"))


def _is_override(name: str) -> bool:
    """Whether ``name`` means a setting. Others under the prefix (``WORKERKIT_INSTANCE``) have other uses."""
    if not name.startswith(PREFIX):
        return False
    rest = name.removeprefix(PREFIX).upper()
    # One underscore where two belong (WORKERKIT_BROKER_URL) must not be ignored in silence.
    return "__" in rest or any(rest == section or rest.startswith(f"{section}_") for section in _SECTIONS)


def _known_variables(data: dict[str, object]) -> _Known:
    known = _Known({}, {})
    for key in keys_of(Settings, data, ()):
        if container(key.type) is dict:
            known.open_mappings[f"{_variable(key.path)}__"] = key.path
        else:
            known.keys.setdefault(_variable(key.path), []).append(key)
    return known


def keys_of(tp: Any, value: object, path: KeyPath) -> Iterator[Key]:
    """The keys below ``path`` that can be set: those of the model, for the entries that ``value`` has."""
    present = value if isinstance(value, dict) else {}
    member = next((member for member in alternatives(tp) if is_struct(member) or container(member) is dict), None)
    if member is None:
        yield Key(path, tp)
    elif is_struct(member):
        for field in fields(member):
            yield from keys_of(field.type, present.get(field.name), (*path, field.name))
    else:
        for name, child in present.items():
            yield from keys_of(item_type(member), child, (*path, name))
        if item_type(member) is str:
            yield Key(path, member)


def _variable(path: KeyPath) -> str:
    return PREFIX + "__".join(re.sub(r"[-.]", "_", str(key)).upper() for key in path)


def _override(tree: ConfigTree, known: _Known, setters: dict[KeyPath, str], name: str, text: str) -> None:
    origin = Origin(f"environment {name}")
    keys, from_file = _lookup(known, name)
    if len(keys) != 1:
        tree.report((), _unknown(known, name) if not keys else _ambiguous(keys), origin)
        return
    path, tp = keys[0]
    if path in setters:
        tree.report(path, f"is set by {setters[path]} as well: unset one of them", origin)
        return
    setters[path] = name
    tree.forget(path)
    if from_file:
        content = _read_secret(tree, path, text, origin)
        if content is None:
            return
        text = content
    put_text(tree, path, tp, text, origin)


def put_text(tree: ConfigTree, path: KeyPath, tp: Any, text: str, origin: Origin) -> None:
    """Put a value of type ``tp`` into ``tree`` that was given as text, outside the file."""
    tree.put(path, text if _takes_text(tp, text) else parse_value(tree, path, text, origin), origin)


def _lookup(known: _Known, name: str) -> tuple[list[Key], bool]:
    """The keys that variable ``name`` may mean, and whether its value is the name of a file."""
    upper = name.upper()
    if upper in known.keys:
        return known.keys[upper], False
    for prefix, path in known.open_mappings.items():
        if upper.startswith(prefix) and len(upper) > len(prefix):
            return [Key((*path, name[len(prefix) :]), str)], False
    if upper.endswith(_FILE):
        return known.keys.get(upper.removesuffix(_FILE), []), True
    return [], False


def _takes_text(tp: Any, text: str) -> bool:
    """Text keys take the value as it is, so that a name or password needs no quotes; lists begin with a bracket."""
    members = alternatives(tp)
    if text.startswith("[") and any(container(member) for member in members):
        return False
    if unit(tp):
        return text != "null"
    kinds = [bare(member) for member in members]
    return int not in kinds and any(kind is str or get_origin(kind) is Literal for kind in kinds)


def _read_secret(tree: ConfigTree, path: KeyPath, file: str, origin: Origin) -> str | None:
    # No text shows `file`: somebody may have put the secret itself there.
    try:
        with Path(file).open("rb") as stream:
            raw = stream.read(MAX_BYTES + 1)
        if len(raw) > MAX_BYTES:
            tree.report(path, "the file that it names is larger than 1 MiB", origin)
            return None
        return raw.decode().rstrip("\r\n")
    except OSError as error:
        tree.report(path, f"the file that it names cannot be read: {error.strerror}", origin)
    except ValueError:
        tree.report(path, "the file that it names is not UTF-8 text", origin)
    return None


def _unknown(known: _Known, name: str) -> str:
    # Without the prefix, which all have in common and which makes everything look near.
    candidates = {variable.removeprefix(PREFIX): keys[0].path for variable, keys in known.keys.items()}
    near = get_close_matches(name.removeprefix(PREFIX).upper(), candidates, n=1)
    if not near:
        return "sets nothing that the configuration has: unset it, or correct its name"
    key = dotted(candidates[near[0]])
    return f"sets nothing that the configuration has (did you mean {PREFIX}{near[0]}, for `{key}`?)"


def _ambiguous(keys: list[Key]) -> str:
    return f"may mean {' or '.join(dotted(key.path) for key in keys)}: set it in the YAML"
