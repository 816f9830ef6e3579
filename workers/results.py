"""Where the example workers leave what they find out: one JSON file per message, whole or not there at all."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workerkit import RejectMessage

_USABLE_NAME = re.compile(r"\w[\w.-]{0,99}", re.ASCII)


class ResultFolder:
    """Writes results named after the message they come from.

    A message can come twice, for example when a host dies between the work and its acknowledgement. The name makes that
    harmless: the second result replaces the first.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(self, message_id: str | None, result: Mapping[str, Any]) -> Path:
        """Write one result; it is on disk when this returns, so the message may then be acknowledged.

        Raises:
            RejectMessage: the id cannot name a file. No attempt can succeed.
            OSError: it cannot be written now.
        """
        if message_id is None or not _USABLE_NAME.fullmatch(message_id):
            raise RejectMessage(f"the result needs a message_id of letters, digits, _, - and . (not {message_id!r})")
        path = self._path / f"{message_id}.json"
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        self._path.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("w", encoding="utf-8") as stream:
                json.dump(result, stream)
                stream.flush()
                os.fsync(stream.fileno())
            partial.replace(path)
            self._sync()
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        return path

    def _sync(self) -> None:
        """A new name is safe when its folder is on disk, too."""
        folder = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
