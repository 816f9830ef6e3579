from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from workerkit.errors import ConfigurationError
from workerkit.settings import LoadedSettings, load

Load = Callable[..., LoadedSettings]
Problems = Callable[..., list[str]]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project folder, which is the working directory: errors show ``config/workerkit.yaml`` as people see it."""
    (tmp_path / "config").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def load_text(project: Path) -> Load:
    """Write the text to ``config/workerkit.yaml`` and load it with nothing but the given environment."""

    def load_it(text: str | bytes, environ: Mapping[str, str] | None = None) -> LoadedSettings:
        path = Path("config/workerkit.yaml")
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return load(path, environ or {})

    return load_it


@pytest.fixture
def problems(load_text: Load) -> Problems:
    """The lines of the error that loading the text must raise, without the name of the file."""

    def lines_of(text: str | bytes, environ: Mapping[str, str] | None = None) -> list[str]:
        with pytest.raises(ConfigurationError) as caught:
            load_text(text, environ)
        return [line.removeprefix("config/workerkit.yaml:") for line in str(caught.value).split("\n")]

    return lines_of
