"""YAML into plain values that remember their line, and nothing that YAML can do besides.

The safe loader already refuses Python objects. What it allows and a configuration does not need is refused here:
duplicate keys (the last would win in silence), alias bombs, several documents, keys that are not text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import yaml

from workerkit.errors import ConfigurationError
from workerkit.settings.tree import BROKEN, ConfigTree, KeyPath, Origin, Problem

MAX_BYTES: Final = 2**20
MAX_DEPTH: Final = 50
MAX_VALUES: Final = 50_000
"""Counted after aliases are followed: nine lines of aliases can stand for a billion values."""

_TOO_DEEP: Final = f"nested more than {MAX_DEPTH} levels deep: this cannot be a workerkit configuration"
_TOO_MANY: Final = (
    f"stands for more than {MAX_VALUES} values, aliases followed: this cannot be a workerkit configuration"
)

_Loader: Final = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_RESOLVER: Final = yaml.resolver.Resolver()
_CONSTRUCTOR: Final = yaml.constructor.SafeConstructor()

_TAG: Final = "tag:yaml.org,2002:"
_CONSTRUCT: Final[Mapping[str, Callable[[yaml.ScalarNode], object]]] = {
    f"{_TAG}str": lambda node: node.value,
    f"{_TAG}null": _CONSTRUCTOR.construct_yaml_null,
    f"{_TAG}bool": _CONSTRUCTOR.construct_yaml_bool,
    f"{_TAG}int": _CONSTRUCTOR.construct_yaml_int,
    f"{_TAG}float": _CONSTRUCTOR.construct_yaml_float,
    # No key is a date or a lone `=`; both are text that happens to look like something to YAML.
    f"{_TAG}timestamp": lambda node: node.value,
    f"{_TAG}value": lambda node: node.value,
}
_SURPRISING_NUMBER: Final = re.compile(r"[-+]?0[0-9_]+|.*:.*")
_VARIABLE: Final = re.compile(
    r"\$(?:(?P<dollar>\$)|\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?P<fallback>:-(?P<default>[^{}]*))?\}|(?P<wrong>\{))"
)


def read_yaml(path: Path, environ: Mapping[str, str]) -> ConfigTree:
    """The values of the file at ``path``, with ``${VAR}`` expanded from ``environ``.

    Problems with single values are kept in the tree, for ``ConfigTree.raise_problems``.

    Raises:
        ConfigurationError: the file cannot be read, is too large, or is not one YAML mapping.
    """
    tree = ConfigTree(root=Origin(str(path)))
    text = _read_text(path)

    def origin(node: yaml.Node) -> Origin:
        return Origin(str(path), _line(node.start_mark))

    builder = _Builder(tree, origin, environ)
    node = _compose(text, lambda line: Origin(str(path), line))
    if node is None:
        return tree  # an empty file: every key has its default
    if not isinstance(node, yaml.MappingNode):
        raise ConfigurationError(f"{origin(node)}: the file must hold a mapping, like `workers:` and keys below it")
    tree.root = origin(node)
    data = builder.value(node, (), depth=1)
    if isinstance(data, dict):  # else its tag has been reported
        tree.data = data
    return tree


def parse_value(tree: ConfigTree, path: KeyPath, text: str, origin: Origin) -> object:
    """One value from outside the file, read as YAML reads a scalar or a flow list or mapping (``[1s, 2s]``).

    Text that does not begin with a bracket cannot be broken YAML: ``@``, ``#`` and ``: `` mean themselves.
    Problems are kept in ``tree``, which gets no values.
    """
    if not text.lstrip().startswith(("[", "{")):
        try:
            return _plain(text)
        except ValueError as error:
            tree.report(path, str(error), origin)
            return BROKEN
    scratch = ConfigTree(root=origin)
    try:
        node = _compose(text, lambda _line: origin)
        value = _Builder(scratch, lambda _node: origin, None).value(node, path, depth=1) if node else None
    except ConfigurationError as error:
        tree.report(path, str(error).removeprefix(f"{origin}: "), origin)
        return BROKEN
    tree.problems += scratch.problems
    return value


def expand(text: str, environ: Mapping[str, str]) -> str:
    """``text`` with ``${VAR}`` and ``${VAR:-default}`` replaced and ``$$`` as ``$``.

    As in a shell, the default stands for a variable that is unset or empty. A ``$`` before anything else is itself.

    Raises:
        ValueError: a variable without default is not set, or ``${`` begins something else.
    """

    def replacement(match: re.Match[str]) -> str:
        if match["dollar"]:
            return "$"
        if match["wrong"]:
            raise ValueError("`${` must be `${NAME}` or `${NAME:-default}`: write `$${` for the characters themselves")
        name = match["name"]
        if match["fallback"]:
            return environ.get(name) or str(match["default"])
        if name not in environ:
            raise ValueError(f"the environment variable {name} is not set: set it, or write `${{{name}:-default}}`")
        return environ[name]

    return _VARIABLE.sub(replacement, text)


def _read_text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise ConfigurationError(
            f"{path.absolute()}: no such file: `workerkit init DIR` makes a project with one, "
            "`workerkit --config PATH` names another"
        ) from None
    except OSError as error:
        raise ConfigurationError(f"{path.absolute()}: cannot be read: {error.strerror}") from None
    if len(raw) > MAX_BYTES:
        raise ConfigurationError(f"{path}: the file is larger than 1 MiB: this cannot be a workerkit configuration")
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ConfigurationError(f"{path}:{line}: the file is not UTF-8: save it as UTF-8") from None


def _compose(text: str, at: Callable[[int], Origin]) -> yaml.Node | None:
    try:
        _refuse_what_crashes(text, at)
        return yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        line = _line(error.problem_mark)
        if "nesting depth" in (error.problem or ""):  # newer parsers have a limit of their own
            raise _fatal(at(line), _TOO_DEEP) from None
        raise _fatal(at(line), f"not valid YAML: {_syntax_problem(error, text, line)}") from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise _fatal(at(line), "not valid YAML: control characters are not allowed") from None


def _refuse_what_crashes(text: str, at: Callable[[int], Origin]) -> None:
    """Look at the flat stream of events first: composing 50,000 open brackets overflows the C stack (SIGSEGV)."""
    depth = documents = 0
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        elif isinstance(event, yaml.DocumentStartEvent):
            documents += 1
        if depth > MAX_DEPTH:
            raise _fatal(at(_line(event.start_mark)), _TOO_DEEP)
        if documents > 1:
            raise _fatal(at(_line(event.start_mark)), "a second document begins here: keep one, without `---`")


def _syntax_problem(error: yaml.MarkedYAMLError, text: str, line: int) -> str:
    # Only the parser's own words: what stands in the file may be a password, so neither excerpts nor names.
    problem = re.sub(r"(alias|anchor|handle) '[^']*'", r"\1", error.problem or "syntax error")
    source = text.split("\n")[line - 1 : line]
    if source and "\t" in source[0]:
        return f"{problem}: indent with spaces, a tab is not allowed here"
    if "undefined alias" in problem:
        return f"{problem}: put a value that begins with `*` in quotes"
    if source and "${" in source[0]:
        return f"{problem}: between braces, put `${{…}}` in quotes"
    return problem


def _line(mark: Any) -> int:
    """The line of a mark of either loader, counted from 1."""
    return mark.line + 1 if mark else 1


def _fatal(origin: Origin, text: str, path: KeyPath = ()) -> ConfigurationError:
    return ConfigurationError(str(Problem(origin, path, text)))


def _plain(text: str) -> object:
    """What YAML makes of ``text`` written without quotes."""
    tag = _RESOLVER.resolve(yaml.ScalarNode, text, (True, False))  # type: ignore[no-untyped-call]
    return _scalar(yaml.ScalarNode(tag, text))


def _scalar(node: yaml.ScalarNode) -> object:
    try:
        value = _CONSTRUCT[node.tag](node)
    except (ValueError, KeyError, IndexError):  # PyYAML's, for `!!int x`, `!!bool x`, `!!int ""`, and 5,000 digits
        raise ValueError(f"cannot be read as YAML's !!{node.tag.removeprefix(_TAG)}: put it in quotes") from None
    if isinstance(value, int | float) and not isinstance(value, bool) and _SURPRISING_NUMBER.fullmatch(node.value):
        # `010` is 8 and `1:30` is 90 in YAML 1.1: nobody means that.
        raise ValueError(f"YAML reads this as {value}: write {value}, or put it in quotes if it is text")
    return value


class _Builder:
    """Builds values from composed nodes, in the order of the file, into one tree."""

    def __init__(
        self,
        tree: ConfigTree,
        origin: Callable[[yaml.Node], Origin],
        environ: Mapping[str, str] | None,
    ) -> None:
        self._tree = tree
        self._origin = origin
        self._environ = environ
        self._values = 0

    def value(self, node: yaml.Node, path: KeyPath, depth: int) -> object:
        if isinstance(node, yaml.MappingNode) and node.tag == f"{_TAG}map":
            return self._mapping(node, path, depth)
        if isinstance(node, yaml.SequenceNode) and node.tag == f"{_TAG}seq":
            return self._sequence(node, path, depth)
        self._count(node, path, depth)
        if isinstance(node, yaml.ScalarNode) and node.tag in _CONSTRUCT:
            return self._scalar(node, path)
        tag = node.tag.replace(_TAG, "!!") if node.tag.startswith(_TAG) else "with one `!`"
        self._tree.report(path, f"the tag {tag} is not allowed: write a plain value, in quotes if it begins with `!`")
        return BROKEN

    def _mapping(self, node: yaml.MappingNode, path: KeyPath, depth: int) -> dict[str, object]:
        values: dict[str, object] = {}
        for key, (key_node, value_node) in self._entries(node, path, depth).items():
            self._tree.origins[(*path, key)] = self._origin(key_node)
            values[key] = self.value(value_node, (*path, key), depth + 1)
        return values

    def _sequence(self, node: yaml.SequenceNode, path: KeyPath, depth: int) -> list[object]:
        self._count(node, path, depth)
        values = []
        for index, item in enumerate(node.value):
            self._tree.origins[(*path, index)] = self._origin(item)
            values.append(self.value(item, (*path, index), depth + 1))
        return values

    def _scalar(self, node: yaml.ScalarNode, path: KeyPath) -> object:
        try:
            if self._environ is None or "$" not in node.value:
                return _scalar(node)
            text = expand(node.value, self._environ)
            return text if node.style else _plain(text)
        except ValueError as error:
            self._tree.report(path, str(error))
            return BROKEN

    def _entries(
        self, node: yaml.MappingNode, path: KeyPath, depth: int
    ) -> dict[str, tuple[yaml.ScalarNode, yaml.Node]]:
        """The keys of one mapping; those merged with ``<<`` come last and never replace written ones."""
        self._count(node, path, depth)
        entries: dict[str, tuple[yaml.ScalarNode, yaml.Node]] = {}
        merged: list[yaml.Node] = []
        for key_node, value_node in node.value:
            if key_node.tag == f"{_TAG}merge":
                merged += value_node.value if isinstance(value_node, yaml.SequenceNode) else [value_node]
            elif not isinstance(key_node, yaml.ScalarNode) or key_node.tag != f"{_TAG}str":
                self._tree.report(path, "a key must be text: put it in quotes", self._origin(key_node))
            elif key_node.value in entries:
                first = self._origin(entries[key_node.value][0])
                text = f"is written twice, first at {first}: keep one of them"
                self._tree.report((*path, key_node.value), text, self._origin(key_node))
            else:
                entries[key_node.value] = (key_node, value_node)
        for source in merged:
            if isinstance(source, yaml.MappingNode):
                entries = self._entries(source, path, depth + 1) | entries
            else:
                self._tree.report(path, "`<<` must name a mapping, like `<<: *defaults`", self._origin(source))
        return entries

    def _count(self, node: yaml.Node, path: KeyPath, depth: int) -> None:
        self._values += 1
        if self._values > MAX_VALUES:
            raise _fatal(self._origin(node), _TOO_MANY, path)
        if depth > MAX_DEPTH:  # an alias may hold itself
            raise _fatal(self._origin(node), _TOO_DEEP)
