"""The shape of the code: which way imports point, who may know pika, what is public, how long a file may be."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import workerkit

PACKAGE = Path(workerkit.__file__).parent
MAX_LINES = 400

LAYERS = (
    ("the words", {"errors", "properties", "settlement", "message", "outgoing", "headers", "timestamps"}),
    (
        "what users subclass and declare",
        {"declared", "retry", "task_settings", "task", "shutdown", "settings", "log", "payload"},
    ),
    ("what a worker and a broker say to each other", {"ports", "envelope"}),
    ("one running worker", {"worker"}),
    ("brokers, and publishing to them", {"brokers", "publishing"}),
    ("what puts the parts together", {"wiring", "supervision", "testing"}),
    ("what operators can do", {"operations"}),
    ("the command line", {"cli", "__main__"}),
)
"""Lowest first. A module may import its own layer and those below it."""
LEVEL = {name: level for level, (_, names) in enumerate(LAYERS) for name in names}

PUBLIC = {
    "AlreadySettled",
    "AsyncPublisher",
    "Cause",
    "ConfigurationError",
    "MessageAdapter",
    "MessageError",
    "Properties",
    "PublishFailed",
    "PublishRefused",
    "PublishTimeout",
    "Publisher",
    "Reason",
    "RejectMessage",
    "RetryMessage",
    "RetryPolicy",
    "ShutdownHelper",
    "UndecodableBody",
    "Unroutable",
    "WorkerTask",
    "WorkerkitError",
}
"""All that a user's module needs. A change here is a change of the documented interface."""

FILES = sorted(path for path in PACKAGE.rglob("*.py") if "templates" not in path.parts)
MODULES = [path for path in FILES if path != PACKAGE / "__init__.py"]


def name_of(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


def part_of(path: Path) -> str:
    """The first part of a module's name under the package: ``worker`` for ``worker/link.py``."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> list[tuple[int, str]]:
    """Line and dotted name of everything a file imports, at the top or inside a function."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(), name_of(path))):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)}:{node.lineno} is a relative import: write the whole name"
            # `from workerkit import settlement` names a module too.
            names = [alias.name for alias in node.names] if node.module == "workerkit" else [""]
            found += [(node.lineno, f"{node.module}.{name}".rstrip(".")) for name in names]
    return found


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_point_downwards(path: Path) -> None:
    """cli → operations → wiring → brokers → worker → ports → task, settings → words."""
    assert part_of(path) in LEVEL, f"{part_of(path)} has no layer: give it one in LAYERS"
    for line, name in imports(path):
        package, _, rest = name.partition(".")
        if package != "workerkit":
            continue
        target = rest.partition(".")[0]
        assert target in LEVEL, f"{name_of(path)}:{line} imports the public package, or a part without a layer: {name}"
        assert LEVEL[target] <= LEVEL[part_of(path)], (
            f"{name_of(path)}:{line} imports {name}: {LAYERS[LEVEL[part_of(path)]][0]} must not know about "
            f"{LAYERS[LEVEL[target]][0]}"
        )


@pytest.mark.parametrize("path", sorted((PACKAGE / "brokers").rglob("*.py")), ids=name_of)
def test_a_broker_knows_the_worker_by_the_port_alone(path: Path) -> None:
    """As the worker knows a broker: each can be tested, and replaced, without the other."""
    known = [f"line {line}: {name}" for line, name in imports(path) if name.startswith("workerkit.worker")]
    assert known == [], f"{name_of(path)} imports the worker in {known}"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_only_the_rabbitmq_adapter_imports_pika(path: Path) -> None:
    """The rest is written against the port, so that another broker is another adapter."""
    if path.is_relative_to(PACKAGE / "brokers" / "rabbitmq"):
        return
    users = [line for line, name in imports(path) if name.partition(".")[0] == "pika"]
    assert users == [], f"{name_of(path)} imports pika in line {users}"


OPERATIONS = sorted((PACKAGE / "operations").glob("*.py"))


@pytest.mark.parametrize("path", OPERATIONS, ids=name_of)
def test_operations_neither_print_nor_parse(path: Path) -> None:
    """Whatever serves operators calls them: a command line, which shows and asks in its own way, or an API."""
    shown = [(line, name) for line, name in imports(path) if name.partition(".")[0] in {"click", "rich"}]
    assert shown == [], f"{name_of(path)} imports {shown}"
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    printed = [call.lineno for call in calls if isinstance(call.func, ast.Name) and call.func.id in {"print", "input"}]
    assert printed == [], f"{name_of(path)} prints or asks in line {printed}"


@pytest.mark.parametrize("path", sorted((PACKAGE / "cli").glob("*.py")), ids=name_of)
def test_the_command_line_leaves_the_work_to_operations(path: Path) -> None:
    """It parses, calls and prints. Only what starts a worker goes past them."""
    if path.name == "run.py":
        return
    parts = {name.split(".")[1] for _, name in imports(path) if name.startswith("workerkit.")}
    assert parts <= {"cli", "operations", "settings", "supervision"} | LAYERS[0][1]


@pytest.mark.parametrize("path", OPERATIONS, ids=name_of)
def test_one_module_of_the_operations_knows_the_brokers(path: Path) -> None:
    """The adapter is chosen by the URL's scheme there; all others use what every broker can do."""
    if path.name == "brokers.py":
        return
    adapters = [name for _, name in imports(path) if name.startswith("workerkit.brokers.")]
    assert [name for name in adapters if name != "workerkit.brokers.administration"] == []


@pytest.mark.parametrize("name", sorted(LAYERS[0][1]))
def test_the_words_import_the_standard_library_only(name: str) -> None:
    """Everything uses them, in both processes, also where no memory is left. What is to be sent is encoded as JSON."""
    allowed = {"workerkit", *sys.stdlib_module_names} | ({"msgspec"} if name == "outgoing" else set())
    for line, imported in imports(PACKAGE / f"{name}.py"):
        assert imported.partition(".")[0] in allowed, f"{name}.py:{line} imports {imported}"


def test_the_public_names_are_the_documented_ones() -> None:
    """And each of them is there."""
    assert set(workerkit.__all__) == PUBLIC
    assert workerkit.__all__ == sorted(workerkit.__all__)
    assert all(hasattr(workerkit, name) for name in PUBLIC)


def test_the_folder_supervisor_is_no_package() -> None:
    """With an ``__init__.py`` it would shadow the installed supervisor, from the project root."""
    assert not (PACKAGE.parent / "supervisor" / "__init__.py").exists()


@pytest.mark.parametrize("path", FILES, ids=map(name_of, FILES))
def test_a_file_can_be_read_in_one_sitting(path: Path) -> None:
    """What is longer has two subjects."""
    assert len(path.read_text().splitlines()) <= MAX_LINES


def test_importing_workerkit_costs_no_client_library() -> None:
    """An executor imports it in every process; what publishes is there as soon as somebody asks for it."""
    code = """
import sys, workerkit
assert not sys.modules.keys() & {"pika", "asyncio", "workerkit.publishing"}, sys.modules.keys()
from workerkit import AsyncPublisher, Publisher
assert Publisher.__module__ == "workerkit.publishing.publisher"
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)
