"""Paths in errors and results, as one would type them."""

from __future__ import annotations

import os
from pathlib import Path


def shown_path(path: Path) -> str:
    """Relative to the working directory where that is below it."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative
