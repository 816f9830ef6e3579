"""One more worker in somebody's YAML, every other character of it untouched.

PyYAML says where the things of a file stand; the text between them, comments and all, is never written anew.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import yaml

_STEP = 2
"""Columns of indentation, where the file gives no example."""


def add_worker(text: str, name: str, keys: Mapping[str, str]) -> str:
    """Return ``text`` with a worker ``name`` at the end of ``workers``; the section is made where there is none.

    Args:
        text: a valid configuration.
        name: the worker; plain in YAML.
        keys: what stands below it, plain as well.

    The result is not promised to be valid: YAML can be written in more ways than are provided for here. Load it.
    """
    newline = "\r\n" if "\r\n" in text else "\n"
    section = _section(text, "workers")
    if section is None:
        return _end_line(text, newline) + newline.join(["workers:", *_block(name, keys, _STEP, _STEP), ""])
    if isinstance(section, yaml.MappingNode) and section.value:
        if section.flow_style:
            return _add_to_flow(text, section, name, keys)
        indent = section.value[0][0].start_mark.column
        position = _end_of_block(text, section, indent)
        lines = _block(name, keys, indent, _step(section, indent))
    else:
        # `workers: {}`: the braces go, a comment behind them stays.
        start, end = section.start_mark.index, section.end_mark.index
        text = text[:start].rstrip(" ") + text[end:]
        position = _end_of_line(text, len(text[:start].rstrip(" ")))
        lines = _block(name, keys, _STEP, _STEP)
    before, after = _end_line(text[:position], newline), text[position:]
    return before + newline.join([*lines, ""]) + after


def _section(text: str, key: str) -> yaml.Node | None:
    # The pure Python loader: its marks count the characters of a str.
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    if not isinstance(root, yaml.MappingNode):
        return None
    return next((value for node, value in root.value if node.value == key), None)


def _block(name: str, keys: Mapping[str, str], indent: int, step: int) -> list[str]:
    return [f"{' ' * indent}{name}:", *(f"{' ' * (indent + step)}{key}: {value}" for key, value in keys.items())]


def _add_to_flow(text: str, section: yaml.MappingNode, name: str, keys: Mapping[str, str]) -> str:
    end = section.value[-1][1].end_mark.index  # of the last worker: a comma or a comment behind it stays there
    entry = ", ".join(f"{key}: {value}" for key, value in keys.items())
    return f"{text[:end]}, {name}: {{{entry}}}{text[end:]}"


def _step(section: yaml.MappingNode, indent: int) -> int:
    """How far the keys of the first worker are indented below its name."""
    first = section.value[0][1]
    if isinstance(first, yaml.MappingNode) and first.value and not first.flow_style:
        return int(first.value[0][0].start_mark.column) - indent
    return _STEP


def _end_of_block(text: str, section: yaml.MappingNode, indent: int) -> int:
    """Where the line after the last worker begins. Comments that are indented below that worker belong to it."""
    content = max(node.end_mark.index for node in _written_nodes(section))
    end = position = _end_of_line(text, len(text[:content].rstrip()))
    for line in text[position:].splitlines(keepends=True):
        position += len(line)
        comment = line.lstrip()
        if comment and not (comment.startswith("#") and len(line) - len(comment) > indent):
            break
        if comment:
            end = position
    return end


def _written_nodes(node: yaml.Node) -> Iterator[yaml.Node]:
    """The nodes whose end mark is where they end: a block mapping's is where the next thing begins."""
    if not isinstance(node, yaml.CollectionNode) or node.flow_style:
        yield node
        return
    for item in node.value:
        for part in item if isinstance(item, tuple) else (item,):  # a key with its value, or an item of a list
            yield from _written_nodes(part)


def _end_of_line(text: str, position: int) -> int:
    """Where the next line begins."""
    newline = text.find("\n", position)
    return len(text) if newline < 0 else newline + 1


def _end_line(text: str, newline: str) -> str:
    return text if not text or text.endswith("\n") else text + newline
