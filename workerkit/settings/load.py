"""From the file and the environment to settings that can be relied on, or to one error that says all that is wrong."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import msgspec

from workerkit.settings.checks import check_settings, find_warnings
from workerkit.settings.convert import convert_settings
from workerkit.settings.environment import apply_environment
from workerkit.settings.model import Settings
from workerkit.settings.tree import ConfigTree, KeyPath, dotted
from workerkit.settings.yamltree import read_yaml


@dataclass(frozen=True, slots=True)
class LoadedSettings:
    """Valid settings, and where they came from."""

    settings: Settings
    path: Path
    """The file that was read; absolute, symbolic links kept."""
    project_root: Path
    """The folder that holds ``config/``, or the file's own folder when that has another name. Tasks import from it."""
    origins: Mapping[str, str]
    """For each dotted key (``workers.thumbnail.ttl``; a list is one key), where its value was written:
    ``config/workerkit.yaml:14`` with the path as it was given, ``environment WORKERKIT_BROKER__URL``, or ``default``.
    """
    warnings: tuple[str, ...]
    """What works and will be regretted, one line each, with file, line and key."""
    written_worker_keys: Mapping[str, Mapping[str, object]]
    """For each worker, the keys that the YAML or the environment gives, with their values; these outrank class
    attributes. A key written as ``null`` is present with None. ``retry`` holds the parts of it that are written.
    """


def load(path: Path, environ: Mapping[str, str]) -> LoadedSettings:
    """Read, expand, override, convert and check the configuration at ``path``. Connects to nothing.

    Args:
        path: the YAML file; errors and origins show it as given.
        environ: for ``${VAR}`` and overrides; usually ``os.environ``.

    Raises:
        ConfigurationError: a line for each problem that can be found in one run, with file, line and key.
    """
    tree = read_yaml(path, environ)
    apply_environment(tree, environ)
    settings = convert_settings(tree)
    check_settings(tree, settings)
    tree.raise_problems()
    absolute = path.absolute()
    folder = absolute.parent
    return LoadedSettings(
        settings=settings,
        path=absolute,
        project_root=folder.parent if folder.name == "config" else folder,
        origins=MappingProxyType({dotted(key): str(tree.origins.get(key, "default")) for key in _leaves(settings, ())}),
        warnings=find_warnings(tree, settings),
        written_worker_keys=MappingProxyType(written_keys(tree, settings)),
    )


def written_keys(tree: ConfigTree, settings: Settings) -> dict[str, dict[str, object]]:
    """What the tree gives for each worker, as plain values."""
    workers = tree.data.get("workers")
    assert isinstance(workers, dict | None)  # conversion has seen to it
    return {name: _written(settings.workers[name], worker) for name, worker in (workers or {}).items()}


def _written(section: msgspec.Struct, data: dict[str, object]) -> dict[str, object]:
    values: dict[str, object] = {}
    for key in section.__struct_fields__:
        if key in data:
            value, written = getattr(section, key), data[key]
            values[key] = (
                _written(value, written) if isinstance(written, dict) and isinstance(value, msgspec.Struct) else value
            )
    return values


def _leaves(value: object, path: KeyPath) -> Iterator[KeyPath]:
    """The paths of all values that are not mappings themselves."""
    if isinstance(value, msgspec.Struct):
        value = {name: getattr(value, name) for name in value.__struct_fields__}
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _leaves(item, (*path, key))
    else:
        yield path
