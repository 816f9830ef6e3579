"""Every recipe of the cookbook, run as it is written."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.cookbook import Command, File, run_recipe, steps

from workerkit.testing.rabbitmq import PrivateRabbitmq

pytestmark = pytest.mark.e2e

COOKBOOK = Path(__file__).parents[2] / "cookbook"
RECIPES = sorted(COOKBOOK.glob("*/README.md"))


@pytest.fixture(scope="module")
def virtual_hosts(rabbitmq: PrivateRabbitmq) -> dict[Path, str]:
    """A broker URL for each recipe. All of them use the queue `hello`, and each as if it were alone."""
    names = {recipe: recipe.parent.name for recipe in RECIPES}
    rabbitmq.ctl(
        "eval",
        "".join(
            f'rabbit_vhost:add(<<"{name}">>, <<"cookbook">>), rabbit_auth_backend_internal:set_permissions('
            f'<<"guest">>, <<"{name}">>, <<".*">>, <<".*">>, <<".*">>, <<"cookbook">>), '
            for name in names.values()
        )
        + "ok.",
    )
    return {recipe: rabbitmq.url.replace("%2F", name) for recipe, name in names.items()}


@pytest.fixture
def folder() -> Iterator[Path]:
    # Not tmp_path: a Unix socket's path is limited, and the recipes show where it usually stands.
    with tempfile.TemporaryDirectory(prefix="wk-", dir="/tmp") as folder:
        yield Path(folder)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.parent.name)
def test_a_recipe_does_what_it_says(recipe: Path, virtual_hosts: dict[Path, str], folder: Path) -> None:
    """Commands, files and output are those that a reader sees; on a terminal, hence the format of the log."""
    run_recipe(
        recipe,
        folder,
        {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "AMQP_URL": virtual_hosts[recipe],
            "WORKERKIT_LOGGING__FORMAT": "console",
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTEST_ADDOPTS": "-p no:cacheprovider",
        },
    )


def test_a_recipe_that_prints_something_else_fails(tmp_path: Path) -> None:
    """Else the recipes would prove nothing: a wrong line, a missing one, one too many, an exit code."""
    recipe = tmp_path / "README.md"

    def run(block: str) -> None:
        recipe.write_text(f"# Title\n\n```console\n{block}\n```\n")
        run_recipe(recipe, tmp_path, {})

    run("$ echo one; echo two\none\ntwo")
    run("$ printf 'a 1 z\\nb\\nc\\n'\na ... z\n...\nc")
    run("$ cd /\n$ pwd\n/")
    run("$ false || echo no\nno")
    for wrong in ("$ echo one\ntwo", "$ echo one", "$ true\none", "$ echo one; echo two\none", "$ false", "$ exit"):
        with pytest.raises(AssertionError, match=r"README\.md:4: |ended the shell"):
            run(wrong)


def test_files_are_the_blocks_that_begin_with_a_file_name() -> None:
    """Others are there to be read."""
    text = "```python\n# workers/a.py\nimport b\n```\n```python\nimport c\n```\n```console\n$ true\n```\n"
    assert list(steps(text)) == [File("workers/a.py", "import b\n"), Command(9, "true")]
