"""Edits the text of a models.yaml and leaves all other lines as they are. Pure.

ruamel gives the position of each key and value, and writes the new ones. Its own round trip keeps comments and order,
but changes the layout of the whole file: indentation, quotes, the space before a comment, the breaks of long lines.
"""

import re
from collections.abc import Mapping, Sequence
from io import StringIO
from typing import Any, NamedTuple

from ruamel.yaml import YAML
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from ruamel.yaml.scalarstring import DoubleQuotedScalarString

from imagegen.catalog.yaml import Document, YamlProblem, read

Path = tuple[str, ...]


class NotEditable(Exception):
    """The layout of the file does not allow this edit."""


class Put(NamedTuple):
    """Set a key, and create the missing mappings above it."""

    path: Path
    value: Any


class Remove(NamedTuple):
    """Remove a key if it is there."""

    path: Path


Change = Put | Remove


class _Splice(NamedTuple):
    """Replace the text between two indices."""

    start: int
    end: int
    new: str

    def apply(self, text: str) -> str:
        return text[: self.start] + self.new + text[self.end :]


def edited(document: Document, changes: Sequence[Change]) -> Document:
    """The document after the changes, applied one after the other.

    Raises NotEditable, or YamlProblem for a value that no file can hold.
    """
    if len(changes) > 1 and (done := _edited_at_once(document, changes)) is not None:
        return done
    for change in changes:
        wanted = _expected(document.data, change)
        if not _same(document.data, wanted):
            document = _checked(_splice(document.text, document.root, change).apply(document.text), wanted)
    return document


def _edited_at_once(document: Document, changes: Sequence[Change]) -> Document | None:
    """The document after changes that touch different places: the new text is read once. None: they do not."""
    wanted, text = document.data, document.text
    for change in changes:
        wanted = _expected(wanted, change)
    needed = [change for change in changes if not _same(document.data, _expected(document.data, change))]
    try:
        splices = [_splice(text, document.root, change) for change in needed]
        # From the end to the beginning, so that the places before are still right; of equal places the last one first.
        for number, splice in sorted(enumerate(splices), key=lambda it: (it[1][:2], it[0]), reverse=True):
            if any(splice.start < other.end and other.start < splice.end for other in splices[:number]):
                return None
            text = splice.apply(text)
        return _checked(text, wanted) if text.endswith("\n") and document.text.endswith("\n") else None
    except (NotEditable, YamlProblem):
        return None


def _checked(text: str, wanted: Any) -> Document:
    """Read the edited text and check that its data is `wanted`. Raises NotEditable."""
    document = read(text)
    if not _same(document.data, wanted):
        raise NotEditable
    return document


def _same(one: Any, other: Any) -> bool:
    """Whether two values are equal, with the same types and order of keys: True is not 1, and 4 is not 4.0.

    An empty mapping equals None: in block style, nothing is left when the last key is removed.
    """
    if one in (None, {}) and other in (None, {}):
        return True
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return list(one) == list(other) and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(_same, one, other))
    return bool(one == other) or one != one  # .nan


def _expected(data: Any, change: Change) -> Any:
    """The data that the file must have after a change."""
    if isinstance(change, Remove) and not _has(data, change.path):
        return data
    key, *rest = change.path
    known: dict[Any, Any] = dict(data) if isinstance(data, dict) else {}
    if rest:
        return known | {key: _expected(known.get(key), change._replace(path=tuple(rest)))}
    if isinstance(change, Put):
        return known | {key: change.value}
    del known[key]
    return known


def _has(data: Any, path: Path) -> bool:
    for key in path:
        if not isinstance(data, dict) or key not in data:
            return False
        data = data[key]
    return True


# -- positions ---------------------------------------------------------------------------------------------------------


def _splice(text: str, node: Node | None, change: Change) -> _Splice:
    """Find the innermost mapping of the change, and what to change in the text there."""
    key, *rest = change.path
    while rest and isinstance(node, MappingNode) and (child := _entry(node, key)) is not None:
        if not isinstance(child.value, MappingNode):
            return _replace(text, node, child, _nested(rest, change))
        node, key, rest = child.value, rest[0], rest[1:]
    if not isinstance(node, MappingNode):
        raise NotEditable
    entry = _entry(node, key)
    if isinstance(change, Remove):
        assert entry is not None
        return _removal(text, node, entry)
    value = _nested(rest, change)
    return _insert(text, node, key, value) if entry is None else _replace(text, node, entry, value)


class _Entry(NamedTuple):
    key: Node
    value: Node
    place: int


def _entry(node: MappingNode, key: str) -> _Entry | None:
    for place, (name, value) in enumerate(node.value):
        if isinstance(name, ScalarNode) and name.value == key and str(name.tag).endswith(":str"):
            return _Entry(name, value, place)
    return None


def _nested(path: Sequence[str], change: Change) -> Any:
    assert isinstance(change, Put)
    value = change.value
    for key in reversed(path):
        value = {key: value}
    return value


def _is_empty(node: Node) -> bool:
    """Whether the value is empty in the text."""
    return isinstance(node, ScalarNode) and node.start_mark.index == node.end_mark.index


def _end(text: str, node: Node) -> int:
    """The end of a node's own text: the end mark of a block collection lies after the comments that follow it."""
    if isinstance(node, MappingNode) and not node.flow_style:
        key, value = node.value[-1]
        return _after_colon(text, key) if _is_empty(value) else _end(text, value)
    if isinstance(node, SequenceNode) and not node.flow_style and node.value:
        return _end(text, node.value[-1])
    end: int = node.end_mark.index
    return len(text[:end].rstrip())  # a block scalar's end mark lies after its line end


def _after_colon(text: str, key: Node) -> int:
    return text.index(":", key.end_mark.index) + 1


def _line_end(text: str, index: int) -> int:
    """The index after the end of the line of `index`."""
    found = text.find("\n", index)
    return len(text) if found < 0 else found + 1


def _line_start(text: str, index: int) -> int:
    return text.rfind("\n", 0, index) + 1


# -- changes -----------------------------------------------------------------------------------------------------------


def _replace(text: str, node: MappingNode, entry: _Entry, value: Any) -> _Splice:
    if _is_empty(entry.value) or _is_block(entry.value):
        return _fill(text, entry, value, flow=bool(node.flow_style))
    shown = _inline(value, flow=bool(node.flow_style))
    return _Splice(entry.value.start_mark.index, entry.value.end_mark.index, shown)


def _is_block(node: Node) -> bool:
    if isinstance(node, ScalarNode):
        return node.style in ("|", ">")
    return isinstance(node, MappingNode | SequenceNode) and not node.flow_style


def _fill(text: str, entry: _Entry, value: Any, *, flow: bool = False) -> _Splice:
    """Replace the value after a key."""
    start = _after_colon(text, entry.key)
    end = start if _is_empty(entry.value) else _end(text, entry.value)
    return _Splice(start, end, f" {_inline(value, flow=flow)}")


def _insert(text: str, node: MappingNode, key: str, value: Any) -> _Splice:
    if node.flow_style:
        return _insert_inline(text, node, key, value)
    first, last = node.value[0][0], _end(text, node)
    place = _line_end(text, last)
    indent = first.start_mark.column
    lines = _block(key, value, _step(node))
    before = "" if text[:place].endswith("\n") else "\n"
    if isinstance(value, Mapping) and _apart(text, node):
        lines.insert(0, "")
    added = before + "".join(f"{' ' * indent}{line}".rstrip() + "\n" for line in lines)
    return _Splice(place, place, added.replace("\n", "\r\n") if "\r\n" in text else added)


def _step(node: MappingNode) -> int:
    """The indentation of this mapping's children."""
    for key, value in node.value:
        if isinstance(value, MappingNode) and not value.flow_style:
            return int(value.value[0][0].start_mark.column - key.start_mark.column)
    return 2


def _apart(text: str, node: MappingNode) -> bool:
    """Whether an empty line precedes the last entry and its comments."""
    if len(node.value) < 2:
        return False
    between = text[
        _line_end(text, _end(text, node.value[-2][1])) : _line_start(text, node.value[-1][0].start_mark.index)
    ]
    return not all(line.strip() for line in between.splitlines())


def _insert_inline(text: str, node: MappingNode, key: str, value: Any) -> _Splice:
    added = _inline({key: value}, flow=True)[1:-1]
    if not node.value:
        place = node.end_mark.index - 1
        return _Splice(place, place, added)
    last, place = node.value[-1][0].start_mark.index, _end(text, node.value[-1][1])
    indent = text[_line_start(text, last) : last]
    # Indented JSON has one key a line.
    separator = ", " if indent.strip() or "\n" not in text[node.start_mark.index : last] else f",\n{indent}"
    return _Splice(place, place, separator + added)


def _removal(text: str, node: MappingNode, entry: _Entry) -> _Splice:
    if node.flow_style:
        return _Splice(*_inline_extent(text, node, entry), "")
    value_end = _after_colon(text, entry.key) if _is_empty(entry.value) else _end(text, entry.value)
    start, end = _line_start(text, entry.key.start_mark.index), _line_end(text, value_end)
    if _blank_line_at(text, end) and re.search(r"\n[ \t\r]*\n\Z", text[:start]):
        end = _line_end(text, end)  # removes one of two empty lines that would be adjacent
    return _Splice(start, end, "")


def _blank_line_at(text: str, index: int) -> bool:
    return index < len(text) and not text[index : _line_end(text, index)].strip()


def _inline_extent(text: str, node: MappingNode, entry: _Entry) -> tuple[int, int]:
    if entry.place + 1 < len(node.value):
        return entry.key.start_mark.index, node.value[entry.place + 1][0].start_mark.index
    start = _end(text, node.value[entry.place - 1][1]) if entry.place else entry.key.start_mark.index
    return start, _end(text, entry.value)


# -- writing -----------------------------------------------------------------------------------------------------------


def _block(key: str, value: Any, step: int) -> list[str]:
    """The lines of a key in block style, with inline values."""
    if not isinstance(value, Mapping) or not value:
        return [f"{_inline(key)}: {_inline(value)}"]
    return [f"{_inline(key)}:", *(" " * step + f"{_inline(name)}: {_inline(inner)}" for name, inner in value.items())]


def _inline(value: Any, *, flow: bool = False) -> str:
    """A value on one line. Inside braces, strings are quoted, so that JSON stays JSON."""
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{_inline(key, flow=True)}: {_inline(it, flow=True)}' for key, it in value.items())}}}"
    if isinstance(value, list):
        return f"[{', '.join(_inline(it, flow=True) for it in value)}]"
    if value is None:
        return "null"
    if isinstance(value, str) and (flow or not value.isprintable()):
        value = DoubleQuotedScalarString(value)
    return _dumped({"_": value}).removeprefix("_:").lstrip()


def _dumped(value: Any) -> str:
    yaml = YAML()
    yaml.width = 2**30
    stream = StringIO()
    yaml.dump(value, stream)
    return stream.getvalue().removesuffix("\n")
