"""The example workers against a broker in memory, and the promises their docstrings make."""

from __future__ import annotations

import ast
import hashlib
import json
from pathlib import Path

import pytest

import workerkit
from workerkit import Reason, RetryPolicy, WorkerTask
from workerkit.testing import WorkerTest
from workers.digest import DigestWorker
from workers.outline import OutlineWorker, outline_of

REPOSITORY = Path(__file__).parents[2]
WORKERS = [DigestWorker, OutlineWorker]


@pytest.fixture(autouse=True)
def results(tmp_path, monkeypatch):
    folder = tmp_path / "results"
    monkeypatch.setenv("RESULTS_FOLDER", str(folder))
    return folder


def result(folder, message_id):
    return json.loads((folder / f"{message_id}.json").read_bytes())


def test_a_file_is_digested(tmp_path, results):
    content = b"two lines\nof five words\n"
    (tmp_path / "text").write_bytes(content)
    with WorkerTest(DigestWorker) as worker:
        worker.publish({"path": str(tmp_path / "text")}, message_id="m1")
        worker.run()

        assert [record.message_id for record in worker.acked] == ["m1"]
    assert result(results, "m1") == {
        "path": str(tmp_path / "text"),
        "sha256": hashlib.sha256(content).hexdigest(),
        "bytes": 24,
        "lines": 2,
        "words": 5,
        "attempt": 1,
    }


def test_a_python_file_is_outlined_in_the_order_of_its_lines(tmp_path, results):
    source = tmp_path / "source.py"
    source.write_text("if True:\n    def f(): ...\n\nclass C:\n    async def m(self):\n        def inner(): ...\n")
    with WorkerTest(OutlineWorker) as worker:
        worker.publish({"path": str(source)}, message_id="m1")
        worker.run()

        assert len(worker.acked) == 1
    assert result(results, "m1")["outline"] == [[2, "def f"], [4, "class C"], [5, "def C.m"], [6, "def C.m.inner"]]


def test_headings_of_markdown_are_outlined_and_comments_in_code_are_not(tmp_path):
    text = tmp_path / "text.md"
    text.write_text("# One #\n\n```sh\n# a comment\n```\n\n## Two words\n#hashtag\n####### seven\n")
    assert outline_of(text) == [(1, "# One"), (7, "## Two words")]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("missing.py", None, "no such file"),
        ("binary.py", b"\xff\xfe", "can't decode"),
        ("nul.py", b"a = '\0'\n", "null byte"),
        ("wrong.py", b"def", "invalid syntax"),
        ("image.png", b"", "neither .py nor .md"),
    ],
)
def test_a_file_without_an_outline_is_rejected_at_once(tmp_path, name, content, reason):
    """Another attempt could not succeed."""
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with WorkerTest(OutlineWorker) as worker:
        worker.publish({"path": str(tmp_path / name)}, message_id="m1")
        worker.run_all()

        [dead] = worker.dead_letters
        assert (dead.reason, dead.attempt) == (Reason.REJECTED, 1)
        assert reason in dead.cause.message


@pytest.mark.parametrize("worker_class", WORKERS)
@pytest.mark.parametrize("message_id", [None, "", ".hidden", "../up", "a/b", "a" * 101, "é"])
def test_an_id_that_cannot_name_a_file_is_rejected(results, worker_class, message_id):
    """Whoever publishes must not be able to write anywhere else."""
    with WorkerTest(worker_class) as worker:
        worker.publish({"path": __file__}, message_id=message_id)
        worker.run_all()

        [dead] = worker.dead_letters
        assert dead.reason is Reason.REJECTED
    assert not results.exists()


@pytest.mark.parametrize("worker_class", WORKERS)
@pytest.mark.parametrize("body", [b"<no JSON>", b"[]", b"{}", b'{"path": 1}', b'{"path": "a", "misbehave": "sing"}'])
def test_a_body_of_another_shape_is_undecodable(worker_class, body):
    with WorkerTest(worker_class) as worker:
        worker.publish(body=body, message_id="m1")
        worker.run_all()

        [dead] = worker.dead_letters
        assert (dead.reason, dead.attempt, dead.body) == (Reason.UNDECODABLE, 1, body)


@pytest.mark.parametrize("worker_class", WORKERS)
def test_a_second_delivery_replaces_the_first_result(results, worker_class):
    with WorkerTest(worker_class) as worker:
        for _ in range(2):
            worker.publish({"path": __file__}, message_id="m1")
        worker.run()

        assert len(worker.acked) == 2
    assert [path.name for path in results.iterdir()] == ["m1.json"]


@pytest.mark.parametrize("worker_class", WORKERS)
def test_a_result_that_cannot_be_written_leaves_no_part_and_is_tried_again(tmp_path, results, worker_class):
    results.mkdir()
    (results / "m1.json").mkdir()  # os.replace fails on it
    with WorkerTest(worker_class, retry=RetryPolicy(2, (1.0,))) as worker:
        worker.publish({"path": __file__}, message_id="m1")
        worker.run()
        assert [path.name for path in results.iterdir()] == ["m1.json"]
        (results / "m1.json").rmdir()
        worker.run_all()

        assert [record.attempt for record in worker.acked] == [2]
    assert result(results, "m1")["attempt"] == 2


@pytest.mark.parametrize("worker_class", WORKERS)
@pytest.mark.parametrize(("way", "reason"), [("raise", Reason.EXCEPTION), ("exit", Reason.EXIT)], ids=["raise", "exit"])
def test_a_message_can_ask_for_trouble(worker_class, way, reason):
    """The ways that leave Python running; the demonstration shows the others."""
    with WorkerTest(worker_class, retry=RetryPolicy(2, (1.0,))) as worker:
        worker.publish({"path": __file__, "misbehave": way}, message_id="always")
        worker.publish({"path": __file__, "misbehave": way, "misbehave_attempts": 1}, message_id="once")
        worker.run_all()

        assert [(dead.message_id, dead.reason) for dead in worker.dead_letters] == [("always", reason)]
        assert [(record.message_id, record.attempt) for record in worker.acked] == [("once", 2)]


@pytest.mark.parametrize("path", sorted((REPOSITORY / "workers").glob("*.py")), ids=lambda path: path.name)
def test_workers_import_of_workerkit_only_what_it_exports(path):
    """They show users what they may rely on."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("workerkit"):
            assert node.module == "workerkit"
            assert {alias.name for alias in node.names} <= set(workerkit.__all__)
        elif isinstance(node, ast.Import):
            assert not any(alias.name.startswith("workerkit") for alias in node.names)


def test_they_are_workers_with_a_contract():
    for worker_class in WORKERS:
        assert issubclass(worker_class, WorkerTask)
        assert {"Body:", "Done:", "Rejected:", "Retried:"} <= set(worker_class.__doc__.split())
