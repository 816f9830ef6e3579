"""The configuration: what an operator can write, read and checked before anything connects."""

from workerkit.settings.load import LoadedSettings, load
from workerkit.settings.model import Settings, WorkerSettings
from workerkit.settings.schema import json_schema
from workerkit.settings.secrets import redact, redact_text
from workerkit.settings.units import as_written, format_duration, format_size, parse_duration

__all__ = [
    "LoadedSettings",
    "Settings",
    "WorkerSettings",
    "as_written",
    "format_duration",
    "format_size",
    "json_schema",
    "load",
    "parse_duration",
    "redact",
    "redact_text",
]
