"""Reads one YAML document safely and remembers the position of each key."""

from typing import Any, NamedTuple

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    Event,
    MappingEndEvent,
    MappingStartEvent,
    NodeEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)
from ruamel.yaml.nodes import MappingNode, Node, SequenceNode
from ruamel.yaml.parser import Parser

MAX_BYTES = 1024 * 1024
MAX_DEPTH = 32
MAX_VALUE = 10_000
#: The largest number of events. Pure Python reads 15,000 a second, measured; a catalog of 100 models has 2,400.
MAX_EVENTS = 50_000

Loc = tuple[Any, ...]


class Position(NamedTuple):
    """Line and column, counted from 1."""

    line: int
    column: int


class YamlProblem(Exception):
    """The text is not YAML, or uses a feature that is refused."""

    def __init__(self, position: Position, message: str) -> None:
        self.position = position
        self.message = message
        super().__init__(message)


class Document(NamedTuple):
    """A text that was read: its data, and the tree of nodes with their positions."""

    text: str
    data: Any
    root: Node | None

    def position(self, loc: Loc) -> Position:
        """The position of the key or value at `loc`, or of its nearest existing parent."""
        position, node, data = Position(1, 1), self.root, self.data
        for part in loc:
            found = _child(node, data, part)
            if found is None:
                break
            position, node, data = found
        return position


def read(text: str) -> Document:
    """Parse one document without anchors, aliases, tags or excessive depth. Raises YamlProblem."""
    if len(text.encode("utf-8", "replace")) > MAX_BYTES:
        raise YamlProblem(Position(1, 1), f"the file is larger than {MAX_BYTES // 1024} KiB; split or shorten it")
    try:
        reader = YAML(typ="safe", pure=True)
        reader.Parser = _CarefulParser
        node = reader.compose(text)
        # From the nodes: `load` would scan the text once more, which is the most expensive part.
        return Document(text, None if node is None else reader.constructor.construct_document(node), node)
    except MarkedYAMLError as error:
        raise YamlProblem(_mark(error.problem_mark), str(error.problem or error.context)) from None
    except TypeError:
        raise YamlProblem(Position(1, 1), "a key is a list or a map; keys must be words") from None
    except (YAMLError, ValueError, RecursionError) as error:
        raise YamlProblem(Position(1, 1), str(error).splitlines()[0]) from None


def _mark(mark: Any) -> Position:
    return Position(mark.line + 1, mark.column + 1) if mark else Position(1, 1)


def _child(node: Node | None, data: Any, part: object) -> tuple[Position, Node, Any] | None:
    """Find a child in the nodes and in the data: a key may be written `yes` and mean True."""
    if isinstance(node, SequenceNode) and isinstance(part, int) and part < len(node.value):
        item = node.value[part]
        return _mark(item.start_mark), item, data[part]
    if not isinstance(node, MappingNode) or not isinstance(data, dict) or part not in data:
        return None
    key, value = node.value[list(data).index(part)]
    return _mark(key.start_mark), value, data[part]


class _CarefulParser(Parser):
    """Refuses dangers before data is built: 300 bytes of nested aliases make a value that takes forever to walk."""

    def __init__(self, loader: Any) -> None:
        super().__init__(loader)
        self._number = self._depth = self._documents = 0

    def get_event(self) -> Any:
        event = super().get_event()
        self._number += 1
        if self._number > MAX_EVENTS:
            raise YamlProblem(_mark(event.start_mark), f"more than {MAX_EVENTS} values; split or shorten the file")
        if isinstance(event, MappingStartEvent | SequenceStartEvent):
            self._depth += 1
        elif isinstance(event, MappingEndEvent | SequenceEndEvent):
            self._depth -= 1
        elif isinstance(event, DocumentStartEvent):
            self._documents += 1
        reason = _danger(event, self._depth, self._documents)
        if reason:
            raise YamlProblem(_mark(event.start_mark), reason)
        return event


def _danger(event: Event, depth: int, documents: int) -> str | None:
    if depth > MAX_DEPTH:
        return f"nested deeper than {MAX_DEPTH} levels"
    if documents > 1:
        return "a second document begins; keep everything in one"
    if isinstance(event, AliasEvent) or (isinstance(event, NodeEvent) and event.anchor):
        return "anchors and aliases are not allowed; write the value out"
    if getattr(event, "tag", None):
        return "tags are not allowed; remove the '!...'"
    if isinstance(event, ScalarEvent) and len(event.value) > MAX_VALUE:
        return f"a value longer than {MAX_VALUE} characters"
    if isinstance(event, ScalarEvent) and event.value == "<<" and event.implicit[0]:
        return "keys cannot be merged in with '<<'; write them out"
    return None
