"""Parses `Range` headers (RFC 9110, section 14). Pure."""

import re
from typing import NamedTuple

#: A request with more ranges gets the whole file.
MAX_RANGES = 8

#: No file has so many bytes that twenty digits do not suffice.
_SPEC = re.compile(r"[ \t]*(\d{0,20})-(\d{0,20})[ \t]*", re.ASCII)


class Range(NamedTuple):
    """The bytes from `start` to `stop`, without the one at `stop`."""

    start: int
    stop: int


def parse_ranges(header: str, size: int) -> list[Range] | None:
    """The ranges in the order of the header; an empty list if the file has none of them. None: send the whole file.

    None if the header is malformed or has another unit, too many ranges, or more bytes than the file.
    """
    unit, _, listed = header.partition("=")
    if unit.strip().lower() != "bytes" or listed.count(",") >= MAX_RANGES:
        return None
    found = [_SPEC.fullmatch(spec) for spec in listed.split(",")]
    asked = [_range(match[1], match[2], size) for match in found if match is not None]
    if len(asked) < len(found) or None in asked:
        return None
    there = [part for part in asked if part is not None and part.start < part.stop]
    return there if sum(part.stop - part.start for part in there) <= size else None


def _range(first: str, last: str, size: int) -> Range | None:
    """One range; None: malformed. If its `stop` is not above its `start`, the file has none of its bytes."""
    if first and last:
        return Range(int(first), min(int(last) + 1, size)) if int(first) <= int(last) else None
    if first:
        return Range(int(first), size)
    return Range(max(size - int(last), 0), size) if last else None
