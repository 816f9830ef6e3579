"""What the two publishers have in common: how they are made, and what they take."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Self, Unpack

from workerkit.errors import ConfigurationError
from workerkit.outgoing import MessageOptions, Outgoing, compose
from workerkit.publishing.adapters import MakeAdapter, adapter_for
from workerkit.settings import load
from workerkit.settings.model import BrokerSettings

DEFAULT_TIMEOUT = 10.0
"""Seconds from the call to the confirm."""


class BasePublisher:
    """Made from a URL or from a configuration; connects later."""

    def __init__(self, url: str | list[str], *, timeout: float = DEFAULT_TIMEOUT) -> None:
        self._prepare(adapter_for(BrokerSettings(url=url), None, timeout), timeout)

    @classmethod
    def from_config(cls, path: str | Path = "config/workerkit.yaml", *, timeout: float = DEFAULT_TIMEOUT) -> Self:
        """A publisher to the broker of a configuration, read as the command line does, the environment included.

        It knows the queues' retry policies: a delay that is one of theirs shares its queue, and none is declared for
        queues with ``declare: false``, where the nearest is used. Reads a file: to be called before a loop is busy.

        Raises:
            ConfigurationError: the configuration cannot be used.
        """
        settings = load(Path(path), os.environ).settings
        try:
            make_adapter = adapter_for(settings.broker, settings, timeout)
        except ValueError as error:
            raise ConfigurationError(f"{path}: broker.url: {error}") from None
        self = cls.__new__(cls)
        self._prepare(make_adapter, timeout)
        return self

    def _prepare(self, make_adapter: MakeAdapter, timeout: float) -> None:
        self._make_adapter = make_adapter
        self._timeout = timeout
        self._closed = False

    @staticmethod
    def message(queue: str | None, data: Any = None, **options: Unpack[MessageOptions]) -> Outgoing:
        """A message for ``publish_many``. The arguments are those of ``publish``."""
        return compose(queue, data, **options)

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError("the publisher is closed")


def as_message(message: Outgoing | tuple[str, Any]) -> Outgoing:
    """A pair of queue and data as a message. Raises TypeError for anything else."""
    if isinstance(message, Outgoing):
        return message
    if isinstance(message, tuple) and len(message) == 2:
        return compose(*message)
    raise TypeError(f"a message is a pair of queue and data, or comes from message(), and is not {message!r:.100}")
