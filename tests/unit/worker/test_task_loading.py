"""From `module:Class` and settings to a task; and every way in which that fails, with the line to blame."""

import asyncio
import itertools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from workerkit import MessageAdapter, RetryPolicy, WorkerTask
from workerkit.errors import TaskLoadError
from workerkit.task_settings import SETTING_NAMES
from workerkit.worker import loading
from workerkit.worker.loading import Spec, load_class, prepare

_numbers = itertools.count()


def make_spec(task: str = "m:C", **changes: Any) -> Spec:
    facts = {"worker": "w", "instance": "00", "project_root": "", "log_level": "info", "inline": True}
    return Spec(**{**facts, "task": task, **changes})


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Write a module into a project and load a class of it."""
    monkeypatch.setattr(sys, "path", list(sys.path))

    def load(source: str, class_name: str = "Worker") -> Any:
        name = f"task_under_test_{next(_numbers)}"
        (tmp_path / f"{name}.py").write_text("from workerkit import WorkerTask\n" + source)
        return load_class(make_spec(f"{name}:{class_name}", project_root=str(tmp_path)))

    return load


GOOD = "class Worker(WorkerTask):\n    def callback(self, message): pass\n"


def test_a_task_is_imported_from_the_project_root(load: Callable[..., Any], tmp_path: Path) -> None:
    """And a class that inherits its callback will do."""
    assert issubclass(load(GOOD), WorkerTask)
    assert load(GOOD + "class Other(Worker): pass\n", "Other").__name__ == "Other"
    assert sys.path[0] == str(tmp_path)


@pytest.mark.parametrize(
    ("source", "class_name", "text"),
    [
        (GOOD, "Wroker", r"task_under_test_\d+\.py has no 'Wroker'; it has Worker$"),
        ("", "Worker", r"has no 'Worker'$"),
        ("Worker = 5", "Worker", "Worker is not a subclass of workerkit.WorkerTask"),
        ("class Worker: pass", "Worker", "Worker is not a subclass of workerkit.WorkerTask"),
        ("", "WorkerTask", "WorkerTask is not a subclass"),
        ("class Worker(WorkerTask): pass", "Worker", r"Worker does not implement callback\(self, message\)"),
        (
            "\nimport no_such_library",
            "Worker",
            r"task_under_test_\d+\.py:3: ModuleNotFoundError: No module named 'no_such",
        ),
        ("\n\n1 / 0", "Worker", r"task_under_test_\d+\.py:4: ZeroDivisionError: division by zero"),
        ("def f(:\n", "Worker", r"task_under_test_\d+\.py:2: SyntaxError: invalid syntax"),
        ("raise SystemExit('bye')", "Worker", r"task_under_test_\d+\.py:2: SystemExit: bye"),
        ("from json import no_such_name", "Worker", r"task_under_test_\d+\.py:2: ImportError: cannot import name"),
        (
            "import json\njson.loads('{')",
            "Worker",
            r"json.decoder\.py:\d+: JSONDecodeError",
        ),
    ],
)
def test_a_task_that_cannot_be_used_says_which_line_is_to_blame(
    source: str, class_name: str, text: str, load: Callable[..., Any]
) -> None:
    """One line, complete: worker, task, file, line, error."""
    with pytest.raises(TaskLoadError, match=text) as raised:
        load(source, class_name)
    assert str(raised.value).startswith("worker 'w': task 'task_under_test_")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("module", "missing"), [("no_such_module", "no_such_module"), ("no_such_package.worker", "no_such_package")]
)
def test_a_module_that_is_not_there_names_the_folder_it_was_looked_for_in(
    module: str, missing: str, tmp_path: Path
) -> None:
    """The usual mistake is the wrong project root."""
    with pytest.raises(TaskLoadError, match=f"there is no module '{missing}' under {tmp_path}"):
        load_class(make_spec(f"{module}:Worker", project_root=str(tmp_path)))


class Thumbnails(WorkerTask):
    queue = "from-class"
    prefetch_count = 7
    retry = RetryPolicy(max_attempts=9, delays=(1.0,))

    def callback(self, message: MessageAdapter) -> None: ...


def test_the_later_setting_wins() -> None:
    """Class, configuration, initialize(), command line; and each says where it came from."""

    class Task(Thumbnails):
        def initialize(self) -> None:
            super().initialize()
            assert self.prefetch_count == 20
            self.set_queue("from-initialize")
            self.ttl = 60

    spec = make_spec(config={"prefetch_count": 20, "ttl": 30.0, "auto_ack": True}, overrides={"ttl": 90.0})
    task, resolved = prepare(spec, Task, asyncio.run)
    assert (task.queue, task.ttl) == ("from-initialize", 90.0)
    assert (resolved.ttl, resolved.prefetch_count, resolved.auto_ack) == (90.0, 20, True)
    assert resolved.queues == {"from-initialize": 1}
    assert (resolved.max_attempts, resolved.delays) == (9, (1.0,))
    expected = {
        "queue": "initialize()",
        "prefetch_count": "configuration",
        "ttl": "command line",
        "auto_ack": "configuration",
        "retry": "class",
    }
    assert resolved.origins == dict.fromkeys(SETTING_NAMES, "default") | expected


SEVERAL = {"urgent": 20, "bulk": 5}


def test_several_queues_replace_the_one_of_what_has_less_to_say() -> None:
    """And the other way round: each place names queues in one way, and the last place wins."""

    class One(Thumbnails):
        def initialize(self) -> None:
            super().initialize()
            self.set_queue("one")

    class Several(Thumbnails):
        def initialize(self) -> None:
            super().initialize()
            self.set_queues(SEVERAL)

    class Assigned(Thumbnails):
        def initialize(self) -> None:
            super().initialize()
            self.queues["late"] = 3

    configured = {"queues": {"from-yaml": 7}}
    assert prepare(make_spec(config=configured), Thumbnails, asyncio.run)[1].queues == {"from-yaml": 7}
    assert prepare(make_spec(config=configured), One, asyncio.run)[1].queues == {"one": 1}
    assert prepare(make_spec(config={"queue": "from-yaml"}), Several, asyncio.run)[1].queues == SEVERAL
    assert prepare(make_spec(overrides={"queue": "given"}), Several, asyncio.run)[1].queues == {"given": 1}
    resolved = prepare(make_spec(), Assigned, asyncio.run)[1]
    assert (resolved.queues, resolved.origins["queues"]) == ({"late": 3}, "initialize()")
    assert prepare(make_spec(), Thumbnails, asyncio.run)[1].queues == {"from-class": 1}  # no task changes another's


def test_more_than_one_callback_at_once_needs_a_coroutine() -> None:
    """Threads would share what was written for one."""

    class Asynchronous(Thumbnails):
        concurrency = 20

        async def callback(self, message: MessageAdapter) -> None: ...

    resolved = prepare(make_spec(), Asynchronous, asyncio.run)[1]
    assert (resolved.concurrency, resolved.asynchronous) == (20, True)
    assert not prepare(make_spec(), Thumbnails, asyncio.run)[1].asynchronous
    with pytest.raises(TaskLoadError, match="concurrency above 1 needs `async def callback"):
        prepare(make_spec(config={"concurrency": 2}), Thumbnails, asyncio.run)


def test_a_null_switches_a_limit_of_the_class_off() -> None:
    """The operator has the say."""
    limited = type("Limited", (Thumbnails,), {"ttl": 60.0})
    _, resolved = prepare(make_spec(config={"ttl": None, "starve_after": None}), limited, asyncio.run)
    assert (resolved.ttl, resolved.starve_after) == (None, None)
    assert resolved.origins["ttl"] == "configuration"


def test_a_retry_policy_in_the_configuration_changes_what_it_names() -> None:
    """The rest of the class's policy stays."""
    _, resolved = prepare(make_spec(config={"retry": {"delays": [2, 4]}}), Thumbnails, asyncio.run)
    assert (resolved.max_attempts, resolved.delays) == (9, (2.0, 4.0))


@pytest.mark.parametrize(
    ("attributes", "text"),
    [
        ({"queue": None}, r"no queue; call self.set_queue\(name\) in initialize\(\) or set `queue` in the YAML"),
        ({"queue": 5}, "queue must be text or None, not 5"),
        ({"queues": {"a": 0}}, "queues must be a mapping from queues to weights, not {'a': 0}"),
        ({"queues": {"a": 1}}, "both queue and queues are set: keep one"),
        ({"select": "fair"}, "select must be `weighted`, `strict` or `package.module:Strategy`, not 'fair'"),
        ({"prefetch_count": "10"}, "prefetch_count must be a whole number from 1 to 65535 or `auto`, not '10'"),
        ({"prefetch_count": 0}, "prefetch_count must be a whole number from 1 to 65535 or `auto`, not 0"),
        ({"prefetch_count": 65536}, "prefetch_count must be a whole number from 1 to 65535 or `auto`, not 65536"),
        ({"executors": 65}, "executors must be a whole number from 1 to 64, not 65"),
        ({"ttl": "1h"}, "ttl must be a number of seconds above 0 or None, not '1h'"),
        ({"ttl": 0}, "ttl must be a number of seconds above 0 or None, not 0"),
        ({"callback_timeout": -1}, "callback_timeout must be a number of seconds above 0 or None, not -1"),
        ({"recycle_memory": 0}, "recycle_memory must be a whole number of bytes above 0 or None, not 0"),
        ({"auto_ack": "yes"}, "auto_ack must be true or false, not 'yes'"),
        ({"on_lost": "stop"}, "on_lost must be one of `continue`, `end`, not 'stop'"),
        ({"retry": 5}, "retry must be a RetryPolicy, not 5"),
        ({"retry": RetryPolicy(max_attempts=2.5)}, r"Expected `int`, got `float` - at `\$.max_attempts`"),
        ({"payload_type": {1, 2}}, "payload_type is nothing that msgspec decodes into"),
    ],
)
def test_a_setting_of_the_wrong_type_or_size_is_refused_before_the_first_message(
    attributes: dict[str, Any], text: str
) -> None:
    """With its name: it may come from the class, the YAML or initialize()."""
    with pytest.raises(TaskLoadError, match=f"worker 'w': {text}"):
        prepare(make_spec(), type("Task", (Thumbnails,), attributes), asyncio.run)


def test_what_initialize_raises_is_the_users() -> None:
    """It is not a configuration error: a database that is away comes back."""

    class Task(Thumbnails):
        def initialize(self) -> None:
            raise ConnectionError("database")

    with pytest.raises(ConnectionError, match="database"):
        prepare(make_spec(), Task, asyncio.run)


class Limits:
    """The limits of this process, not really set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, cgroup: int | None = None, hard: int = -1) -> None:
        self.set: list[tuple[int, int]] = []
        monkeypatch.setattr(loading.resource, "setrlimit", lambda _kind, limits: self.set.append(limits))
        monkeypatch.setattr(loading.resource, "getrlimit", lambda _kind: (hard, hard))
        monkeypatch.setattr(loading.memory, "cgroup_limit", lambda: cgroup)


@pytest.mark.parametrize(
    ("limit", "cgroup", "hard", "expected"),
    [
        (None, None, -1, []),
        (1 << 40, None, -1, [(1 << 40, -1)]),
        (None, 1 << 40, -1, [(int((1 << 40) * 0.9), -1)]),
        (1 << 39, 1 << 40, -1, [(1 << 39, -1)]),
        (1 << 40, None, 1 << 38, [(1 << 38, 1 << 38)]),
    ],
)
def test_the_memory_limit_is_the_tasks_or_nine_tenths_of_the_cgroups(
    limit: int | None, cgroup: int | None, hard: int, expected: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """So Python sees the end as a MemoryError before the kernel kills; a hard limit cannot be raised."""
    limits = Limits(monkeypatch, cgroup=cgroup, hard=hard)
    config = {} if limit is None else {"memory_limit": limit}
    _, resolved = prepare(make_spec(inline=False, config=config), Thumbnails, asyncio.run)
    assert limits.set == expected
    assert resolved.memory_limit == (limit or (int(cgroup * 0.9) if cgroup else None))


def test_a_memory_limit_from_initialize_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is set after initialize() has run."""
    limits = Limits(monkeypatch)

    class Task(Thumbnails):
        def initialize(self) -> None:
            self.memory_limit = 1 << 41

    prepare(make_spec(inline=False), Task, asyncio.run)
    assert limits.set == [(1 << 41, -1)]


@pytest.mark.parametrize(
    ("limit", "text"),
    [
        (1 << 20, "memory_limit of 1 MiB is too small"),
        ("512MiB", "memory_limit must be a whole number of bytes, not '512MiB'"),
    ],
)
def test_a_memory_limit_that_cannot_work_is_refused(limit: object, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An executor that has no room for one message would die for ever."""
    limits = Limits(monkeypatch)
    with pytest.raises(TaskLoadError, match=text):
        prepare(make_spec(inline=False, config={"memory_limit": limit}), Thumbnails, asyncio.run)
    assert limits.set == []


def test_inline_there_is_no_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would be the debugger's own."""
    limits = Limits(monkeypatch)
    prepare(make_spec(config={"memory_limit": 1 << 40}), Thumbnails, asyncio.run)
    assert limits.set == []
