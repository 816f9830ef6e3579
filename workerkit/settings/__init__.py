"""The configuration: what an operator can write, read and checked before anything connects."""

from workerkit.settings.load import LoadedSettings, load
from workerkit.settings.model import (
    BindingSettings,
    BrokerSettings,
    DelayedRetrySettings,
    ExchangeSettings,
    LoggingSettings,
    QueueSettings,
    Settings,
    SupervisorSettings,
    WorkerSettings,
)
from workerkit.settings.schema import json_schema
from workerkit.settings.secrets import redact, redact_text, redact_url
from workerkit.settings.units import as_written, format_duration, format_size, parse_duration, parse_size

__all__ = [
    "BindingSettings",
    "BrokerSettings",
    "DelayedRetrySettings",
    "ExchangeSettings",
    "LoadedSettings",
    "LoggingSettings",
    "QueueSettings",
    "Settings",
    "SupervisorSettings",
    "WorkerSettings",
    "as_written",
    "format_duration",
    "format_size",
    "json_schema",
    "load",
    "parse_duration",
    "parse_size",
    "redact",
    "redact_text",
    "redact_url",
]
