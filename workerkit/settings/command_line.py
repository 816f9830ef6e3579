"""Settings from the command line: ``workerkit run NAME --set ttl=10s --set retry.max_attempts=3``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from workerkit.declared import fields, settings_of
from workerkit.settings.checks import check_settings
from workerkit.settings.convert import convert_settings, unknown_key
from workerkit.settings.environment import keys_of, put_text
from workerkit.settings.load import written_keys
from workerkit.settings.model import WorkerSettings
from workerkit.settings.tree import ConfigTree, Origin, dotted
from workerkit.task_settings import TaskSettings


def parse_overrides(assignments: Sequence[str], worker: str) -> Mapping[str, object]:
    """Settings of one worker from texts like ``ttl=10s``, read and checked as in the YAML. The last of a key counts.

    Args:
        assignments: each a key, ``=`` and a value; ``queues={urgent: 20, bulk: 5}`` and ``retry={...}`` are YAML.
        worker: the worker's name, for the errors.

    Returns:
        The values by name; ``retry`` is a mapping with what is given of it.

    Raises:
        ConfigurationError: a line for each problem.
    """
    tree = ConfigTree(Origin("--set"))
    worker_path = ("workers", worker)
    tree.put((*worker_path, "task"), "task:Task", tree.root)  # a worker has one; it says nothing here
    known = {setting.name: setting.type for setting in settings_of(TaskSettings)}
    known |= {dotted(key.path): key.type for key in keys_of(TaskSettings.retry.__class__, {}, ("retry",))}
    yaml_only = {field.name for field in fields(WorkerSettings)} - known.keys()
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        origin = Origin(f"--set {key}")
        if not equals:
            tree.report(worker_path, "write a key, `=` and a value, like ttl=10s", origin)
        elif key in yaml_only:
            tree.report((*worker_path, key), "can be set in the YAML only", origin)
        elif key not in known:
            tree.report(worker_path, unknown_key(key, known), origin)
        else:
            put_text(tree, (*worker_path, *key.split(".")), known[key], text, origin)
    settings = convert_settings(tree)
    check_settings(tree, settings)
    tree.raise_problems()
    return {key: value for key, value in written_keys(tree, settings)[worker].items() if key in known}
