"""From ``module:Class`` and settings to a task that is ready for its first message. Runs in the executor only."""

from __future__ import annotations

import importlib
import inspect
import resource
import sys
import traceback
from collections.abc import Container
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from workerkit.declared import describe, settings_of
from workerkit.errors import TaskLoadError
from workerkit.payload import body_decoder
from workerkit.retry import RetryPolicy
from workerkit.task import WorkerTask
from workerkit.task_settings import SETTING_NAMES, ResolvedSettings, TaskSettings
from workerkit.worker import memory
from workerkit.worker.execution import Complete

CGROUP_SHARE = 0.9
"""Default memory limit of the executor as a share of the cgroup's: Python must see the end before the kernel does."""


class Spec(msgspec.Struct, frozen=True):
    """What the executor is told in HELLO."""

    worker: str
    instance: str
    task: str
    """``module:Class``."""
    project_root: str
    log_level: str
    config: dict[str, Any] = {}
    """Settings written in the YAML or the environment, by name; ``retry`` is a mapping with what is written of it."""
    overrides: dict[str, Any] = {}
    """Settings given on the command line, likewise."""
    inline: bool = False


if TYPE_CHECKING:

    class _Resolved(ResolvedSettings, msgspec.Struct, frozen=True):
        """As below, for type checkers, which do not see the fields of a ``defstruct``."""

else:
    _Resolved = msgspec.defstruct("_Resolved", settings_of(ResolvedSettings), frozen=True, kw_only=True)


class Resolved(_Resolved, frozen=True, kw_only=True):
    """What the executor answers in READY: every setting with the value that counts, and where each came from.

    A single queue is in ``queues`` with a weight of 1.
    """

    max_attempts: int
    delays: tuple[float, ...]
    asynchronous: bool = False
    """``callback`` is a coroutine function."""
    origins: dict[str, str]
    """From setting name to ``default``, ``class``, ``configuration``, ``initialize()`` or ``command line``."""

    def same_as(self, other: Resolved) -> bool:
        """Whether an executor that resolved these settings can take the place of one that resolved ``other``."""
        return msgspec.structs.replace(self, origins={}) == msgspec.structs.replace(other, origins={})


def load_class(spec: Spec) -> type[WorkerTask]:
    """Import the task's class from the project root.

    Raises:
        TaskLoadError: it does not import or is not a ``WorkerTask``; the text names the line to blame.
    """
    module_name, _, class_name = spec.task.partition(":")
    where = f"worker {spec.worker!r}: task {spec.task!r}"
    if spec.project_root not in sys.path:
        sys.path.insert(0, spec.project_root)
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # importing runs the user's code: anything can come out
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing and f"{module_name}.".startswith(f"{missing}."):
            why = f"there is no module {missing!r} under {spec.project_root} (the project root)"
        else:
            why = _blame(error, module_name)
        raise TaskLoadError(f"{where}: {why}") from error
    found = getattr(module, class_name, None)
    if found is None:
        known = [name for name, value in vars(module).items() if _is_task(value)]
        hint = f"; it has {', '.join(known)}" if known else ""
        raise TaskLoadError(f"{where}: {module.__file__} has no {class_name!r}{hint}")
    if not _is_task(found):
        raise TaskLoadError(f"{where}: {class_name} is not a subclass of workerkit.WorkerTask")
    check_class(found, where)
    return found  # type: ignore[no-any-return]


def check_class(cls: type[WorkerTask], where: str) -> None:
    """See that a task can be called. Raises TaskLoadError, whose text starts with ``where``."""
    if cls.callback is WorkerTask.callback:
        raise TaskLoadError(f"{where}: {cls.__name__} does not implement callback(self, message)")


def prepare(spec: Spec, cls: type[WorkerTask], complete: Complete) -> tuple[WorkerTask, Resolved]:
    """Make the task, apply its settings in their order of precedence and call ``initialize``.

    ``complete`` runs it when it is a coroutine function.

    Raises:
        TaskLoadError: a setting has a value that cannot be used.
        Exception: whatever ``initialize`` raises.
    """
    task = cls()
    origins = {
        name: "class" if getattr(cls, name) != getattr(WorkerTask, name) else "default" for name in SETTING_NAMES
    }
    _apply(task, spec.config, "configuration", origins)
    if not spec.inline:
        _limit_memory(task, spec.worker)
    before = {name: getattr(task, name) for name in SETTING_NAMES} | {"queues": dict(task.queues)}
    result = task.initialize()
    if inspect.isawaitable(result):
        complete(result)
    changed = {name for name in SETTING_NAMES if getattr(task, name) != before[name]}
    origins |= dict.fromkeys(changed, "initialize()")
    _keep_one_way_to_name_queues(task, changed, origins)
    _apply(task, spec.overrides, "command line", origins)
    if not spec.inline and task.memory_limit != before["memory_limit"]:
        _limit_memory(task, spec.worker)
    return task, _resolve(spec, task, origins)


def _apply(task: WorkerTask, values: dict[str, Any], origin: str, origins: dict[str, str]) -> None:
    for name, value in values.items():
        # Half of a retry policy may be given, and the other half be the class's.
        whole = msgspec.convert(msgspec.to_builtins(task.retry) | value, RetryPolicy) if name == "retry" else value
        setattr(task, name, whole)
        origins[name] = origin
    _keep_one_way_to_name_queues(task, values, origins)


def _keep_one_way_to_name_queues(task: WorkerTask, given: Container[str], origins: dict[str, str]) -> None:
    """``queue`` outranks the ``queues`` of what has less to say, and the other way round."""
    one = "queue" in given and task.queue is not None
    several = "queues" in given and bool(task.queues)
    if one and not several:
        task.queues, origins["queues"] = {}, "default"
    elif several and not one:
        task.queue, origins["queue"] = None, "default"


def _resolve(spec: Spec, task: WorkerTask, origins: dict[str, str]) -> Resolved:
    where = f"worker {spec.worker!r}"
    for name, tp, _ in settings_of(TaskSettings):
        try:
            msgspec.convert(getattr(task, name), tp)
        except msgspec.ValidationError:
            said = f"{describe(tp, in_python=True)}, not {getattr(task, name)!r}"
            raise TaskLoadError(f"{where}: {name} must be {said}") from None
    if task.queue and task.queues:
        raise TaskLoadError(f"{where}: both queue and queues are set: keep one, and set the other to None or {{}}")
    queues = task.queues or ({task.queue: 1} if task.queue else {})
    if not queues:
        raise TaskLoadError(f"{where}: no queue; call self.set_queue(name) in initialize() or set `queue` in the YAML")
    asynchronous = inspect.iscoroutinefunction(task.callback)
    if task.concurrency > 1 and not asynchronous:
        raise TaskLoadError(f"{where}: concurrency above 1 needs `async def callback(self, message)`")
    try:
        body_decoder(task.payload_type)
    except TypeError as error:
        raise TaskLoadError(f"{where}: payload_type is nothing that msgspec decodes into: {error}") from None
    values = {setting.name: getattr(task, setting.name) for setting in settings_of(ResolvedSettings)}
    values |= {"queues": queues, "max_attempts": task.retry.max_attempts, "delays": task.retry.delays}
    values |= {"asynchronous": asynchronous, "origins": origins}
    try:
        return msgspec.convert(values, Resolved)
    except msgspec.ValidationError as error:  # inside of the retry policy
        raise TaskLoadError(f"{where}: {error}") from None


def _limit_memory(task: WorkerTask, worker: str) -> None:
    """Make Python see the end of memory as a MemoryError, instead of the kernel's SIGKILL."""
    limit = task.memory_limit
    if limit is None:
        whole = memory.cgroup_limit()
        if whole is None:
            return
        limit = task.memory_limit = int(whole * CGROUP_SHARE)
    if not isinstance(limit, int):
        raise TaskLoadError(f"worker {worker!r}: memory_limit must be a whole number of bytes, not {limit!r}")
    needed = _data_memory() + task.spare_memory_multiplier * 1024 * 1024
    if limit <= needed:
        raise TaskLoadError(
            f"worker {worker!r}: memory_limit of {limit >> 20} MiB is too small: the task's modules and its spare "
            f"memory take {-(-needed >> 20)} MiB already"
        )
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    resource.setrlimit(resource.RLIMIT_DATA, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


def _data_memory() -> int:
    """Bytes that count against RLIMIT_DATA now."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmData:"):
            return int(line.split()[1]) * 1024
    return 0


def _is_task(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, WorkerTask) and value is not WorkerTask


def _blame(error: BaseException, module_name: str) -> str:
    """Where in the user's files the import failed, and how."""
    kind = type(error).__name__
    if isinstance(error, SyntaxError):
        return f"{error.filename}:{error.lineno}: {kind}: {error.msg}"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "importlib" not in frame.filename]
    last = next((frame for frame in reversed(frames) if frame.filename != __file__), None)
    place = f"{last.filename}:{last.lineno}" if last else f"module {module_name}"
    return f"{place}: {kind}: {error}"
