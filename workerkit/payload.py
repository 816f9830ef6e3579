"""From the bytes of a body to a Python value, by content type. Data only: nothing here can execute what it loads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from workerkit.errors import UndecodableBody

BodyDecoder = Callable[[bytes, str | None, str | None], Any]
"""Takes a body, its content type and its content encoding."""


def body_decoder(payload_type: Any = None) -> BodyDecoder:
    """The decoder for a task whose JSON bodies are of ``payload_type``; None accepts any JSON.

    ``payload_type`` is anything msgspec can decode into: a Struct, a dataclass, a TypedDict, ``dict[str, int]`` …
    """
    json = msgspec.json.Decoder(Any if payload_type is None else payload_type)

    def decode_body(body: bytes, content_type: str | None, content_encoding: str | None) -> Any:
        if content_encoding and content_encoding.lower() not in ("identity", "utf-8", "utf8"):
            raise UndecodableBody(f"content encoding {content_encoding!r} is not supported")
        kind, _, parameters = (content_type or "application/json").lower().partition(";")
        kind = kind.strip()
        if kind == "application/json" or kind.endswith("+json"):
            try:
                return json.decode(body)
            except msgspec.ValidationError as error:
                raise UndecodableBody(f"not of the payload type: {error}") from None
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                raise UndecodableBody(f"not JSON: {error}") from None
            except RecursionError:
                raise UndecodableBody("not JSON that can be read: nested too deeply") from None
        if kind.startswith("text/"):
            charset = parameters.partition("charset=")[2].strip(' "') or "utf-8"
            try:
                return body.decode(charset)
            except (UnicodeDecodeError, LookupError) as error:
                raise UndecodableBody(f"not {kind} in {charset}: {error}") from None
        if kind == "application/octet-stream":
            return body
        raise UndecodableBody(f"content type {content_type!r} is not decoded; read message.body instead")

    return decode_body
