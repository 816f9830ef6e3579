"""What types cannot say: names the broker takes, keys that need each other, values that would be regretted."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final
from urllib.parse import urlsplit

from workerkit.settings.model import BrokerSettings, QueueSettings, Settings, WorkerSettings
from workerkit.settings.tree import ConfigTree, KeyPath, Problem, did_you_mean
from workerkit.settings.units import format_duration

_MAX_NAME_BYTES: Final = 200
"""AMQP allows 255; the rest is for the suffixes of derived queues."""

_SHORT: Final = 5
"""Seconds. Heartbeats below this drop connections on a busy host, lifetimes below this are spent starting."""

_MAX_HEARTBEAT: Final = 65_535
"""Seconds; an unsigned short on the wire."""

_WORKER_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_VARIABLE_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_CONTROL: Final = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_RAW_ARGUMENTS: Final = (
    ("x-queue-type", "write `type: quorum` or `type: classic` in its place"),
    ("x-dead-letter-", "dead letters go to the derived `.dead` queue: remove it"),
    ("x-delayed-retry-", "write `delayed_retry: {min: …, max: …}` in its place"),
)


def check_settings(tree: ConfigTree, settings: Settings) -> None:
    """Report in ``tree`` everything that is of the right type and still cannot work."""
    _check_broker(tree, settings.broker)
    for name in settings.exchanges:
        _check_name(tree, ("exchanges", name), "exchange", name)
    for name, queue in settings.queues.items():
        _check_queue(tree, ("queues", name), name, queue)
    for name, worker in settings.workers.items():
        _check_worker(tree, ("workers", name), name, worker)
    _check_environment(tree, ("supervisor", "environment"), settings.supervisor.environment)


def find_warnings(tree: ConfigTree, settings: Settings) -> tuple[str, ...]:
    """What works and will be regretted, one line each, with file, line and key."""
    warnings: list[tuple[KeyPath, str]] = []
    if 0 < settings.broker.heartbeat < _SHORT:
        text = (
            f"a heartbeat of {format_duration(settings.broker.heartbeat)} drops connections when the host is busy: "
            f"use {_SHORT}s or more"
        )
        warnings.append((("broker", "heartbeat"), text))
    for name, worker in settings.workers.items():
        if worker.ttl is not None and worker.ttl < _SHORT:
            text = f"a worker that lives {format_duration(worker.ttl)} spends its time starting: use {_SHORT}s or more"
            warnings.append((("workers", name, "ttl"), text))
    return tuple(str(Problem(tree.origin(path), path, text)) for path, text in warnings)


def _check_broker(tree: ConfigTree, broker: BrokerSettings) -> None:
    urls = [broker.url] if isinstance(broker.url, str) else broker.url
    if not urls:
        tree.report(("broker", "url"), "the list is empty: write at least one URL")
    for index, url in enumerate(urls):
        path: KeyPath = ("broker", "url") if isinstance(broker.url, str) else ("broker", "url", index)
        if problem := _url_problem(url):
            tree.report(path, problem)
    if broker.heartbeat > 0 and not 1 <= broker.heartbeat <= _MAX_HEARTBEAT:
        tree.report(("broker", "heartbeat"), f"must be 0 (no heartbeats) or from 1s to {_MAX_HEARTBEAT}s")


def _url_problem(url: str) -> str | None:
    """What is wrong with a broker's URL. The text holds nothing of the URL: any part of it may be the password."""
    if not url.isprintable() or " " in url:
        return "the URL holds spaces or control characters: percent-encode them"
    try:
        parts = urlsplit(url)
    except ValueError:
        return "not a URL: write amqp://user:password@host:5672/vhost"
    if parts.scheme == "memory":
        return "the URL must be memory:// alone, or with a name" if set("@:/?#") & set(url[9:]) else None
    if parts.scheme not in {"amqp", "amqps"}:
        return "the URL must begin with amqp:// or amqps://, like amqp://user:password@host:5672/vhost"
    if parts.fragment or "@" in parts.path + parts.query:
        return "the URL is ambiguous: percent-encode `/`, `#`, `?` and `@` in user, password and virtual host"
    if not parts.hostname:
        return "the URL names no host, like amqp://user:password@host:5672/vhost"
    try:
        port = parts.port
    except ValueError:
        port = 0
    if port == 0:
        return "the URL's port must be a number from 1 to 65535; `:`, `/` and `#` in a password are percent-encoded"
    return None


def _check_queue(tree: ConfigTree, path: KeyPath, name: str, queue: QueueSettings) -> None:
    _check_name(tree, path, "queue", name)
    for argument in queue.arguments:
        for prefix, instead in _RAW_ARGUMENTS:
            if argument.startswith(prefix):
                tree.report((*path, "arguments", argument), f"is derived by workerkit: {instead}")
    for index, binding in enumerate(queue.bindings):
        _check_binding(tree, (*path, "bindings", index, "exchange"), binding.exchange)
    if queue.delayed_retry is None:
        return
    retry_path = (*path, "delayed_retry")
    if queue.type != "quorum":
        tree.report(retry_path, "only quorum queues have it: write `type: quorum`, or remove it")
    if queue.delayed_retry.max < queue.delayed_retry.min:
        least = format_duration(queue.delayed_retry.min)
        tree.report((*retry_path, "max"), f"must be at least `min`, which is {least}")


def _check_binding(tree: ConfigTree, path: KeyPath, exchange: str) -> None:
    # The written names: an exchange whose own entry is broken has been reported, and is not missing.
    written = tree.data.get("exchanges")
    exchanges = list(written) if isinstance(written, dict) else []
    if not exchange:
        tree.report(path, "the default exchange reaches every queue by its name and takes no bindings: remove this one")
    elif exchange not in exchanges and not exchange.startswith("amq."):
        hint = did_you_mean(exchange, exchanges) or ": add it there"
        tree.report(path, f"`{exchange}` is not listed under `exchanges`{hint}")


def _check_worker(tree: ConfigTree, path: KeyPath, name: str, worker: WorkerSettings) -> None:
    _check_name(tree, path, "worker", name)
    if name and not _WORKER_NAME.fullmatch(name):
        tree.report(path, "a worker's name is letters, digits, `_`, `-` and `.`, and begins with a letter or digit")
    if not _is_task(worker.task):
        tree.report((*path, "task"), f"`{worker.task}` must be `module:Class`, like workers.thumbnail:ThumbnailWorker")
    if worker.queue is not None:
        _check_name(tree, (*path, "queue"), "queue", worker.queue)
    for queue in worker.queues:
        _check_name(tree, (*path, "queues", queue), "queue", queue)
    if worker.queue is not None and worker.queues:
        tree.report((*path, "queues"), "`queue` is given as well: keep one of them")
    _check_environment(tree, (*path, "environment"), worker.environment)


def _is_task(task: str) -> bool:
    module, colon, name = task.partition(":")
    return bool(colon) and all(part.isidentifier() for part in [*module.split("."), name])


def _check_name(tree: ConfigTree, path: KeyPath, kind: str, name: str) -> None:
    if not name:
        tree.report(path, f"the {kind}'s name is empty")
    elif _CONTROL.search(name):
        tree.report(path, f"the {kind}'s name holds control characters or line breaks")
    elif len(name.encode()) > _MAX_NAME_BYTES:
        tree.report(path, f"the {kind}'s name is longer than {_MAX_NAME_BYTES} bytes")


def _check_environment(tree: ConfigTree, path: KeyPath, environment: Mapping[str, str]) -> None:
    for name, value in environment.items():
        if not _VARIABLE_NAME.fullmatch(name):
            tree.report((*path, name), "a variable's name is letters, digits and `_`, and does not begin with a digit")
        if any(character in value for character in "\0\r\n"):
            tree.report(
                (*path, name), "the value holds a NUL character or a line break, which Supervisor cannot pass on"
            )
