"""Reading the memory cgroup, of both versions, with and without a limit."""

import os
from pathlib import Path

import pytest

from workerkit.worker import memory


class Tree:
    """A /proc/self/cgroup and a /sys/fs/cgroup in a folder."""

    def __init__(self, folder: Path) -> None:
        self.membership = folder / "membership"
        self.mount = folder / "cgroup"
        self.mount.mkdir()

    def file(self, path: str, text: str) -> None:
        target = self.mount / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tree:
    made = Tree(tmp_path)
    monkeypatch.setattr(memory, "_MEMBERSHIP", made.membership)
    monkeypatch.setattr(memory, "_MOUNT", made.mount)
    return made


def version_2(tree: Tree, path: str) -> None:
    tree.file("cgroup.controllers", "memory\n")
    tree.membership.write_text(f"0::{path}\n")


def version_1(tree: Tree, path: str) -> None:
    tree.membership.write_text(f"12:cpu,cpuacct:/other\n4:memory:{path}\n1:name=systemd:/x\n0::/y\n")


def test_the_least_limit_of_a_group_and_its_parents_counts(tree: Tree) -> None:
    """A parent's limit holds for its children too."""
    version_2(tree, "/system.slice/worker.service")
    tree.file("system.slice/worker.service/memory.max", "max\n")
    tree.file("system.slice/memory.max", "1073741824\n")
    assert memory.cgroup_limit() == 1 << 30
    tree.file("system.slice/worker.service/memory.max", "536870912\n")
    assert memory.cgroup_limit() == 512 << 20


def test_in_a_container_the_mount_itself_is_the_group(tree: Tree) -> None:
    """The path is the host's there, and leads nowhere."""
    version_2(tree, "/docker/0123abcd")
    tree.file("memory.max", "268435456\n")
    assert memory.cgroup_limit() == 256 << 20


def test_version_1_has_other_names_and_a_number_for_no_limit(tree: Tree) -> None:
    """Near 2**63, rounded to pages."""
    version_1(tree, "/docker/x")
    tree.file("memory/docker/x/memory.limit_in_bytes", "9223372036854771712\n")
    assert memory.cgroup_limit() is None
    tree.file("memory/docker/memory.limit_in_bytes", "104857600\n")
    assert memory.cgroup_limit() == 100 << 20


@pytest.mark.parametrize(
    ("version", "name", "text"),
    [
        (version_2, "g/memory.events", "low 0\nhigh 0\nmax 7\noom 3\noom_kill 2\noom_group_kill 0\n"),
        (version_1, "memory/g/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n"),
    ],
)
def test_oom_kills_are_counted(version, name: str, text: str, tree: Tree) -> None:
    """The line is `oom_kill`, not `oom` and not `oom_group_kill`."""
    version(tree, "/g")
    tree.file(name, text)
    assert memory.oom_kills() == 2


@pytest.mark.parametrize("membership", [None, "", "0::/\n", "5:cpu:/x\n"])
def test_where_nothing_is_known_there_is_no_limit_and_no_kill(membership: str | None, tree: Tree) -> None:
    """No cgroups, no memory controller, or no permission to look."""
    if membership is not None:
        tree.membership.write_text(membership)
    assert memory.cgroup_limit() is None
    assert memory.oom_kills() == 0


def test_the_cgroup_of_this_machine_can_be_read() -> None:
    """Whatever it is, it is a number or nothing."""
    assert memory.cgroup_limit() is None or memory.cgroup_limit() > 0  # type: ignore[operator]
    assert memory.oom_kills() >= 0


def test_resident_memory_is_that_of_the_process() -> None:
    """In bytes; nothing for a process that is gone."""
    assert 1 << 20 < memory.resident(os.getpid()) < 1 << 34
    assert memory.resident(2**22 + 1) == 0
