"""Write a value so that Supervisor reads back precisely that value.

Supervisor takes a value through up to four readers, and each of them gives characters a meaning:

1. the INI parser ends a value at ``;`` or ``#`` after a space, strips it, and replaces ``%(here)s`` wherever it stands;
2. ``%``-expansion, applied once to most values and twice to ``stdout_logfile``;
3. for ``environment``, a shell-like lexer that knows quotes but no escapes, and strips quotes off both ends;
4. for ``command``, ``shlex.split``.

Functions here undo 1 to 3; ``shlex.join`` undoes 4. What cannot be written is refused.
"""

import re

from workerkit.errors import ConfigurationError

_NOTHING = "%(here).0s"
"""Expands to the empty string, in every section. It parts characters that the INI parser must not see together."""

_UNWRITABLE = re.compile("[\x00\n\r\ud800-\udfff]")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def literal(value: str, where: str, *, expansions: int = 1) -> str:
    """Return ``value`` as it must stand in the file for Supervisor to read ``value``.

    Args:
        value: any text of one line.
        where: what to call it in an error.
        expansions: how often Supervisor ``%``-expands this option.

    Raises:
        ConfigurationError: it holds a line break, a NUL or a surrogate, for which Supervisor's format has no spelling.
    """
    if _UNWRITABLE.search(value):
        raise ConfigurationError(
            f"{where}: the value cannot be written to a Supervisor file; remove the line break or control character"
        )
    for _ in range(expansions):
        value = value.replace("%", "%%").replace("%%(", f"%%{_NOTHING}(")
    return re.sub(r"(?<=\s)(?=[;#]|\Z)", _NOTHING, value)


def environment_pair(name: str, value: str, where: str) -> str:
    """Return ``NAME="value"`` for an ``environment`` option. Errors name the key, never the value: it may be a secret.

    Raises:
        ConfigurationError: the name is not one of an environment variable, or the value has no spelling in Supervisor's
            format: line breaks, both kinds of quotes, or a quote at its beginning or end.
    """
    if not _VARIABLE.fullmatch(name):
        raise ConfigurationError(
            f"{where}: {name!r} is not a name of an environment variable: use letters, digits and _, no digit first"
        )
    if value != value.strip("'\""):
        raise ConfigurationError(
            f"{where}: Supervisor strips quotes around a value; set one without a quote at either end"
        )
    quote = "'" if '"' in value else '"'
    if quote in value:
        raise ConfigurationError(
            f"{where}: Supervisor cannot read a value with both kinds of quotes; use ' or \", not both"
        )
    return f"{name}={literal(quote + value + quote, where)}"
