"""What commands share: the configuration, and how errors and results are shown."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console

    from workerkit.settings import LoadedSettings

DEFAULT_CONFIG = Path("config/workerkit.yaml")


@dataclass
class Context:
    """The options before the command, and what is made of them when a command first needs it."""

    config_path: Path

    @cached_property
    def loaded(self) -> LoadedSettings:
        """The configuration. Raises ConfigurationError."""
        from workerkit.settings import load

        return load(self.config_path, os.environ)


pass_context = click.make_pass_decorator(Context)

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
yes_option = click.option("--yes", is_flag=True, help="Do not ask.")
dry_run_option = click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")


def console(*, stderr: bool = False) -> Console:
    """A rich console; colours only on a terminal and without NO_COLOR."""
    from rich.console import Console

    return Console(stderr=stderr, highlight=False, soft_wrap=True)


def print_json(value: Any) -> None:
    """Print a result for machines."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False, default=str))
