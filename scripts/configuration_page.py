"""Write docs/configuration.md from the declarations of the settings: ``python scripts/configuration_page.py``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import msgspec
import yaml

from workerkit.declared import alternatives, container, describe, fields, is_struct, item_type, since
from workerkit.retry import RetryPolicy
from workerkit.settings.model import Settings, WorkerSettings
from workerkit.settings.schema import default_of, description
from workerkit.task_settings import SETTING_NAMES

PAGE: Final = Path(__file__).parents[1] / "docs" / "configuration.md"

_HEAD: Final = """\
# Configuration

Every key of `config/workerkit.yaml`. This page is written by `scripts/configuration_page.py` from the declarations in
`workerkit/task_settings.py`, `workerkit/retry.py` and `workerkit/settings/model.py`. `workerkit config schema` prints
the same as JSON Schema, for editors; `workerkit config check` finds mistakes.

* Durations have a unit, `ms`, `s`, `m`, `h` or `d`, and so have sizes: `B`, `KiB`, `MiB`, `GiB`, `TiB`, or `KB`, `MB`,
  `GB`, `TB`. Numbers without one are seconds and bytes.
* `${NAME}` and `${NAME:-default}` are expanded from the environment.
* Every single value can be given by the environment: `WORKERKIT_WORKERS__THUMBNAIL__TTL=5m` sets
  `workers.thumbnail.ttl`, `WORKERKIT_BROKER__URL_FILE` names a file that holds the value. Workers, queues and
  exchanges are named in the YAML.
* What is set in *YAML, task* can also be an attribute of the task's class, in seconds and bytes; be set in
  `initialize()`; and be given for one instance: `workerkit run NAME --set ttl=10s --set retry.max_attempts=3`. The
  later of these wins: class, YAML, environment, `initialize()`, `--set`. `workerkit config show --origin` says
  where each value comes from. `payload_type`, the type of `message.data`, is an attribute only.
"""
_COLUMNS: Final = ("key", "value", "default", "set in", "since", "meaning")


def page() -> str:
    """The whole page."""
    tables = [table for field in fields(Settings) for table in _tables(field.type, field.name)]
    return "\n\n".join([_HEAD.rstrip(), *tables]) + "\n"


def _tables(tp: Any, path: str) -> Iterator[str]:
    """The table of the section at ``path``, if it is one, and those of the sections below it."""
    section, path = _section(tp, path)
    if section is None:
        return
    keys = fields(section)
    by_task = [section is RetryPolicy or (section is WorkerSettings and field.name in SETTING_NAMES) for field in keys]
    rows = [
        (
            f"`{field.name}`",
            _value(field.type, f"{path}.{field.name}"),
            "required" if field.required else _shown(default_of(field)),
            "YAML, task" if task_too else "YAML",
            since(field.type),
            description(section, field.name).replace("``", "`"),
        )
        for field, task_too in zip(keys, by_task, strict=True)
    ]
    lines = [f"| {' | '.join(cells)} |" for cells in (_COLUMNS, ("---",) * len(_COLUMNS), *rows)]
    about = " ".join((section.__doc__ or "").replace("``", "`").split())
    yield "\n".join([f"## `{path}`", "", about, "", *lines])
    for field in keys:
        yield from _tables(field.type, f"{path}.{field.name}")


def _section(tp: Any, path: str) -> tuple[type[msgspec.Struct] | None, str]:
    """The section that a key holds, itself or as items, and how to write where it is."""
    for member in alternatives(tp):
        if is_struct(member):
            return member, path
        if container(member) and is_struct(item_type(member)):
            return item_type(member), path + (".NAME" if container(member) is dict else "[]")
    return None, path


def _value(tp: Any, path: str) -> str:
    section, below = _section(tp, path)
    return describe(tp) if section is None else f"see `{below}`"


def _shown(default: object) -> str:
    if default is None:
        return "none"
    if isinstance(default, dict) and default:
        return "see there"
    return f"`{yaml.safe_dump(default, default_flow_style=True, width=1000).removesuffix('...' + chr(10)).strip()}`"


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
