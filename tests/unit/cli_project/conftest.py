"""A project that ``workerkit init`` made, and a way to type commands into it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import click.testing
import pytest

from workerkit.cli.main import cli
from workerkit.errors import WorkerkitError

Invoke = Callable[..., click.testing.Result]


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting of this machine reaches the tests."""
    for name in list(os.environ):
        if name.startswith("WORKERKIT_") or name in {"AMQP_URL", "RABBITMQ_URL", "CLOUDAMQP_URL"}:
            monkeypatch.delenv(name)


@pytest.fixture
def invoke() -> Invoke:
    """Run a command in this process. An error of workerkit's is ``result.exception``, with its exit code."""

    def run(*arguments: str) -> click.testing.Result:
        result = click.testing.CliRunner().invoke(cli, arguments)
        if isinstance(result.exception, WorkerkitError):
            result.exit_code = int(result.exception.exit_code)
        elif result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return run


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, invoke: Invoke) -> Path:
    """A new project, which is the working directory."""
    monkeypatch.chdir(tmp_path)
    assert invoke("init", "shop").exit_code == 0
    monkeypatch.chdir(tmp_path / "shop")
    return tmp_path / "shop"


@pytest.fixture
def write_yaml(project: Path) -> Callable[[str], None]:
    """Replace the project's YAML."""
    return (project / "config" / "workerkit.yaml").write_text
