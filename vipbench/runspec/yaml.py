"""Reading and writing YAML that strangers may have written.

Tags that build objects are refused, as are anchors, aliases, merge keys, duplicate keys and
oversized files; every value's line is kept, so that an error can name it. Scalars follow YAML
1.1, whose `on` and `off` a suite uses, except where YAML 1.1 surprises: `2e-3` is a number,
`010` and `1:30` are not read in base 8 or 60, and a date is text.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import yaml

from vipbench.errors import UsageError

Scalar: TypeAlias = bool | int | float | str | None
Place: TypeAlias = tuple[str | int, ...]

MAX_BYTES = 64 * 1024
MAX_NODES = 10_000


@dataclass(frozen=True)
class Document:
    """A parsed document: its value, and the line (from 1) of each place in it."""

    value: Any
    lines: dict[Place, int] = field(default_factory=dict)

    def line(self, place: Place) -> int | None:
        """The line of `place`, or of the nearest place around it."""
        while place and place not in self.lines:
            place = place[:-1]
        return self.lines.get(place)


def read_yaml(path: Path, what: str = "file", limit: int = MAX_BYTES) -> Document:
    """The document in the UTF-8 file `path`; a byte order mark and CRLF are fine.

    what: what the file is to the user, for messages. Raises UsageError.
    """
    if not path.exists():
        raise UsageError(f"{what} '{path}' does not exist")
    if not path.is_file():
        raise UsageError(f"{what} '{path}' is not a file")
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise UsageError(f"{what} '{path}' cannot be read: {error.strerror}") from None
    if len(data) > limit:
        raise UsageError(f"{what} '{path}' is larger than {limit // 1024} KiB, the limit")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{what} '{path}' is not UTF-8 text (byte {error.start}); save it as UTF-8"
        ) from None
    return parse_yaml(text, f"{what} '{path}'")


def parse_yaml(text: str, source: str = "YAML") -> Document:
    """The one document in `text`; `source` names it in messages. Raises UsageError."""
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return Document(None)
            lines: dict[Place, int] = {}
            _locate(loader, node, (), lines)
            return Document(loader.construct_document(node), lines)
        finally:
            loader.dispose()
    except RecursionError:
        raise UsageError(f"{source} is nested too deeply") from None
    except (yaml.YAMLError, ValueError, KeyError) as error:
        # PyYAML lets the last two through for a plain value under the wrong tag (`!!bool x`).
        raise UsageError(f"{source}{_explain(error)}") from None


def parse_scalar(text: str) -> Scalar:
    """One scalar as YAML reads it: `off` -> False, `2e-3` -> 0.002, `'off'` -> "off".

    Raises ValueError for anything else than a scalar.
    """
    try:
        value = parse_yaml(text).value
    except UsageError:
        value = [...]
    if not (value is None or isinstance(value, bool | int | float | str)):
        raise ValueError(f"'{text}' is not one plain value; put text with punctuation in quotes")
    return value


def format_scalar(value: Scalar, quote: str = "") -> str:
    """The shortest text that `parse_scalar` reads back as `value`.

    quote: further characters whose presence puts a text in quotes.
    """
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, float):
        return _format_float(value)
    if isinstance(value, int):
        return str(value)
    plain = value == value.strip() and value[:1] not in "'\"" and not set(quote) & set(value)
    try:
        if plain and parse_scalar(value) == value:
            return value
    except ValueError:
        pass
    return "'" + value.replace("'", "''") + "'"


def dump_yaml(value: Any) -> str:
    """`value` (mappings, lists, scalars) as block YAML that `parse_yaml` reads back."""
    text = yaml.dump(
        value,
        Dumper=_Dumper,
        sort_keys=False,
        allow_unicode=True,
        width=96,
        default_flow_style=None,
    )
    return str(text)


def _format_float(value: float) -> str:
    if value != value:
        return ".nan"
    if value in (float("inf"), float("-inf")):
        return ".inf" if value > 0 else "-.inf"
    return repr(value)


_RESOLVERS: tuple[tuple[str, str], ...] = (
    ("bool", r"true|True|TRUE|false|False|FALSE|on|On|ON|off|Off|OFF|yes|Yes|YES|no|No|NO"),
    ("null", r"~|null|Null|NULL|"),
    ("int", r"[-+]?[0-9]+|0x[0-9a-fA-F]+"),
    (
        "float",
        r"[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
    ),
    ("merge", r"<<"),
)

_TAGS = frozenset(
    f"tag:yaml.org,2002:{name}" for name in ("map", "seq", "str", "bool", "null", "int", "float")
)


class _Loader(yaml.SafeLoader):
    """The safe loader with this module's scalars, of plain values whose keys are unique."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012
    nodes = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]  # PyYAML has no types here
        node = None
        if isinstance(event, yaml.AliasEvent) or event.anchor is not None:
            problem = "anchors and aliases (&name, *name) are not allowed; write the value out"
        else:
            node = super().compose_node(parent, index)
            self.nodes += 1
            problem = ""
            if node is not None and node.tag == "tag:yaml.org,2002:merge":
                problem = "merge keys (<<) are not allowed; write the keys out"
            elif node is not None and node.tag not in _TAGS:
                tag = node.tag.replace("tag:yaml.org,2002:", "!!")
                problem = f"the tag '{tag}' is not allowed"
            elif self.nodes > MAX_NODES:
                problem = f"it holds over {MAX_NODES:,} values"
        if problem:
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: dict[Any, int] = {}
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                continue
            key = self.construct_object(key_node)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None,
                    None,
                    f"the key '{key_node.value}' is there twice (first in line {seen[key]})",
                    key_node.start_mark,
                )
            seen[key] = key_node.start_mark.line + 1
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """The safe dumper that quotes whatever `_Loader` would read as something else."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)


for _tag, _pattern in _RESOLVERS:
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(
            f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), None
        )


def _construct_int(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    text = str(loader.construct_scalar(node))
    return int(text, 16) if text[:2] == "0x" else int(text)


def _construct_float(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> float:
    text = str(loader.construct_scalar(node)).lower()
    return float(text.replace(".inf", "inf").replace(".nan", "nan"))


_Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)
_Loader.add_constructor("tag:yaml.org,2002:float", _construct_float)
_Dumper.add_representer(
    float, lambda dumper, x: dumper.represent_scalar("tag:yaml.org,2002:float", _format_float(x))
)
_Dumper.add_representer(
    bool,
    lambda dumper, x: dumper.represent_scalar("tag:yaml.org,2002:bool", "on" if x else "off"),
)


def _locate(loader: _Loader, node: yaml.Node, place: Place, lines: dict[Place, int]) -> None:
    lines.setdefault(place, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode):
                lines[(*place, key.value)] = key.start_mark.line + 1
                _locate(loader, value, (*place, key.value), lines)
    elif isinstance(node, yaml.SequenceNode):
        for i, item in enumerate(node.value):
            _locate(loader, item, (*place, i), lines)


def _explain(error: Exception) -> str:
    """', line N: what is wrong', from PyYAML's several kinds of errors."""
    if isinstance(error, yaml.reader.ReaderError):
        return f" holds a character that YAML does not allow (number {error.position + 1})"
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        where = f", line {mark.line + 1}" if mark else ""
        return f"{where}: {error.problem or error.context}"
    return f": {' '.join(str(error).split())}"
