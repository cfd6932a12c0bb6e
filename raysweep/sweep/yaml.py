"""YAML as plain values, with the line of every key: safe, no tags, no key twice, `5e-5` is a number."""

from __future__ import annotations

import re
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

import yaml

from raysweep.errors import BadInput

__all__ = ["Document", "KeyPath", "parse", "parse_value"]

KeyPath = tuple[Hashable, ...]

# YAML 1.1 asks for a dot and a signed exponent; people write 5e-5 and mean a number.
_FLOAT = re.compile(r"^[-+]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)[eE][-+]?\d+$")
_DEEPEST = 64  # levels; a sweep file has five
_MOST = 100_000  # values; with aliases a few lines can mean any number of them


@dataclass(frozen=True)
class Document:
    """A parsed file: its values, and the line (from 1) of every key and list item by path."""

    name: str
    value: Any
    lines: dict[KeyPath, int] = field(default_factory=dict)


class _Loader(yaml.SafeLoader):
    """The safe loader with our floats; tags, duplicate keys and cycles are refused while walking the nodes."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node:
        if self.depth >= _DEEPEST:
            raise yaml.MarkedYAMLError(
                problem=f"nested deeper than {_DEEPEST} levels", problem_mark=self.peek_event().start_mark
            )
        self.depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1


_Loader.yaml_implicit_resolvers = {key: list(rules) for key, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()}
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))
_Loader.add_constructor(
    "tag:yaml.org,2002:float",
    lambda loader, node: (
        float(node.value.replace("_", "")) if _FLOAT.match(node.value) else loader.construct_yaml_float(node)
    ),
)

_PLAIN_TAGS = {f"tag:yaml.org,2002:{kind}" for kind in ("null", "bool", "int", "float", "str", "seq", "map")}


def parse(text: str, name: str) -> Document:
    """Parse one YAML document; BadInput names file, line and reason."""
    try:
        loader = _Loader(text)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise BadInput(
            f"{name}:{line}: not valid YAML: the character U+{ord(text[error.position]):04X} is not allowed"
        ) from None
    try:
        node = loader.get_single_node()
        lines: dict[KeyPath, int] = {}
        value = _value(loader, node, (), lines, name) if node is not None else None
    except yaml.YAMLError as error:
        raise BadInput(_syntax(error, name)) from None
    except ValueError as error:
        raise BadInput(f"{name}: {error}") from None
    finally:
        loader.dispose()
    return Document(name, value, lines)


def parse_value(text: str, name: str) -> Any:
    """One value as an option gives it, such as `[0, 1]`, `5e-5` or `kvr`."""
    return parse(text, name).value


def _value(loader: _Loader, node: yaml.Node, path: KeyPath, lines: dict[KeyPath, int], name: str) -> Any:
    _check_extent(node, path, lines, name)
    lines.setdefault(path, node.start_mark.line + 1)
    if node.tag not in _PLAIN_TAGS:
        kind = node.tag.rsplit(":", 1)[-1]
        raise BadInput(f"{name}:{node.start_mark.line + 1}: the YAML tag {kind!r} is not allowed; write plain values")
    match node:
        case yaml.MappingNode():
            return _mapping(loader, node, path, lines, name)
        case yaml.SequenceNode():
            return [_value(loader, item, (*path, index), lines, name) for index, item in enumerate(node.value)]
        case _:
            return loader.construct_object(node)


def _check_extent(node: yaml.Node, path: KeyPath, lines: dict[KeyPath, int], name: str) -> None:
    """Refuses what an alias makes endless, or as good as endless."""
    if len(path) > _DEEPEST:
        raise BadInput(f"{name}:{node.start_mark.line + 1}: an alias stands inside what it repeats; write plain values")
    if len(lines) > _MOST:
        raise BadInput(f"{name}:{node.start_mark.line + 1}: more than {_MOST:,} values; write fewer aliases")


def _mapping(
    loader: _Loader, node: yaml.MappingNode, path: KeyPath, lines: dict[KeyPath, int], name: str
) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if key_node.tag == "tag:yaml.org,2002:merge" or not isinstance(key_node, yaml.ScalarNode):
            raise BadInput(f"{name}:{line}: a key must be a plain word")
        key = key_node.value
        where = (*path, key)
        if key in result:
            raise BadInput(
                f"{name}:{line}: the key {key!r} stands here a second time; the first is in line {lines[where]}"
            )
        lines[where] = line
        result[key] = _value(loader, value_node, where, lines, name)
    return result


def _syntax(error: yaml.YAMLError, name: str) -> str:
    mark = getattr(error, "problem_mark", None)
    where = f"{name}:{mark.line + 1}" if mark else name
    return f"{where}: not valid YAML: {getattr(error, 'problem', None) or error}"
