"""docs/logs.md names every event that the source logs, with its level and its fields, and no other."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import imagegen

PAGE = (Path(__file__).parents[2] / "docs" / "logs.md").read_text()

#: Arguments that are logged under another name.
NAMES = {"exc_info": "exception"}


class Line(NamedTuple):
    """A call that logs an event."""

    event: str
    level: str
    fields: frozenset[str]


def logged() -> Iterator[Line]:
    for file in Path(imagegen.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and (levels := levels_of(node.func)):
                fields = frozenset(NAMES.get(it.arg, it.arg) for it in node.keywords if it.arg is not None)
                yield from (Line(event, levels[-1], fields) for event in events_of(node.args[0]))


def levels_of(function: ast.expr) -> list[str]:
    """The level of `log.info`; of `(log.debug if ... else log.info)` both; none: it logs nothing."""
    if isinstance(function, ast.IfExp):
        return levels_of(function.body) + levels_of(function.orelse)
    known = isinstance(function, ast.Attribute) and ast.unparse(function.value) in (
        "log",
        "structlog.get_logger(__name__)",
    )
    return [function.attr] if known and isinstance(function, ast.Attribute) else []


def events_of(argument: ast.expr) -> list[str]:
    if isinstance(argument, ast.IfExp):
        return events_of(argument.body) + events_of(argument.orelse)
    assert isinstance(argument, ast.Constant), ast.unparse(argument)
    return [str(argument.value)]


def test_the_page_has_every_event_with_its_level_and_fields() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| .*? \| ([^|]*) \|$", PAGE, re.MULTILINE)
    told = {event: (level, set(re.findall(r"`(\w+)`", fields))) for event, level, fields in rows}
    lines = list(logged())
    assert len(lines) > 40
    assert {line.event for line in lines} == told.keys()
    assert len(rows) == len(told)
    for line in lines:
        level, fields = told[line.event]
        assert (line.event, line.level) == (line.event, level)
        assert line.fields <= fields, line
