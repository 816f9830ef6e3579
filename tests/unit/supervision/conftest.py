"""A project's folder for these tests."""

import tempfile
from pathlib import Path

import pytest


@pytest.fixture
def project():
    """An empty project whose path is short enough for a Unix socket, which pytest's ``tmp_path`` is not always."""
    with tempfile.TemporaryDirectory(prefix="wk-", dir="/tmp") as folder:
        yield Path(folder)
