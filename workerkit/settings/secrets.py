"""What must not be shown: passwords in URLs, and values whose key says that they are secret."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

MASK: Final = "***"

_SECRET_WORDS: Final = ("password", "passwd", "secret", "token", "credential", "apikey")
_URL_START: Final = re.compile(r"""(?:^|(?<=[\s,;|=(<\['"`]))(?=[A-Za-z][A-Za-z0-9+.-]*://)""")
# From the first colon after the user to the *last* @: a password with an unescaped @, / or # still goes as a whole.
_PASSWORD: Final = re.compile(r"^((?:[A-Za-z][A-Za-z0-9+.-]*://)?[^:@/]*:)(?!//).+(@)", re.DOTALL)
_QUERY_VALUE: Final = re.compile(r"([?&])([^=&#\s]+)=([^&#\s]+)")


def redact_url(url: str) -> str:
    """``url`` with its password, and secret values of its query, as ``***``.

    Takes anything, valid URL or not, and never raises. Where it is unclear where a password ends, too much is hidden
    rather than too little.
    """
    return _QUERY_VALUE.sub(_query_value, _PASSWORD.sub(rf"\1{MASK}\2", url))


def redact_text(text: str) -> str:
    """``text`` with every URL in it redacted; the rest stays."""
    if "://" not in text:
        return text
    return "".join(redact_url(part) if "://" in part else part for part in _URL_START.split(text))


def redact(value: object) -> object:
    """A copy of ``value`` fit to be shown: dicts, lists and tuples are walked, tuples come back as lists.

    URLs in strings lose their passwords. What stands under a key that names a secret (``password``, ``token``,
    ``aws_secret``, ``ssl_key`` …) becomes ``***``, unless it is empty.
    """
    if isinstance(value, Mapping):
        return {key: MASK if is_secret(key) and not _is_empty(item) else redact(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [redact(item) for item in value]
    if isinstance(value, str):
        return redact_text(value)
    return value


def is_secret(key: object) -> bool:
    """Whether ``key`` is the name of something secret. Routing keys are not."""
    name = str(key).lower().replace("-", "_")
    if name.endswith("_key"):
        return not name.endswith("routing_key")
    return any(word in name for word in _SECRET_WORDS)


def _is_empty(value: object) -> bool:
    return value is None or (isinstance(value, str | list | tuple | Mapping) and not value)


def _query_value(match: re.Match[str]) -> str:
    separator, name, value = match.groups()
    return f"{separator}{name}={MASK if is_secret(name) else value}"
